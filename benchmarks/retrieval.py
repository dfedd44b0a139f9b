"""The memory bank against what else could hold its vectors: plain Chroma, NumPy brute force, faiss.

    .venv/bin/python benchmarks/retrieval.py [--quick]

Compared, over banks of 1k, 10k and 100k memories of 384 dimensions (``--quick``: 1k and 10k):

- ``memskill``: ``MemoryBank`` as an episode uses it: exact, two spaces written at each change, history kept.
- ``numpy``: one preallocated matrix, a product, ``argpartition``. The floor for exact search in Python. Its product is
  shared out among all cores where it is large; ours stays on one, so that searches do not wait for each other.
- ``numpy, restacked``: a list of vectors stacked into a matrix at each search, as the published code does.
- ``chromadb``: a folder on disk and its own search, one write a change. What one gets by using it directly.
- ``faiss``: ``IndexFlatIP``, exact; left out where faiss is not installed.

Each round times every contestant on the same vectors, in random order, so that a busy machine disturbs all alike; the
table shows medians over rounds in milliseconds an operation, and each contestant's ratio to ``numpy``. ``recall@20`` is
against a float64 brute force in this script. To reach: ours within 1.5 × of numpy up to 10k, never worse than chromadb.
The former is about searching: a row written into a matrix knows no ids, no history and no second space.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from common import Measure, clock, compared, in_turns, save
from rich.console import Console
from rich.table import Table

from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.lexical import Ranking
from memskill_cli.types import Matrix, Provenance, Retrieved, Vector

DIM, TOP = 384, 20
OPERATIONS = ("insert", "update", "delete", "top-20")
Found = Sequence[tuple[int, float]]
ORIGIN = Provenance("bench", 0, ("insert",), 0)


class Contestant(Protocol):
    """Items are numbered in order of insertion. ``search`` gives the best 20 and their scores in a form of its own, in
    which ``numbers`` finds their numbers."""

    def insert(self, vector: Vector) -> None: ...
    def update(self, number: int, vector: Vector) -> None: ...
    def delete(self, number: int) -> None: ...
    def search(self, query: Vector) -> Any: ...
    def numbers(self, found: Any) -> list[int]: ...


class Ours:
    def __init__(self, rows: Matrix) -> None:
        self.bank = MemoryBank("bench")
        for row in rows:
            self.insert(row)

    def insert(self, vector: Vector) -> None:
        self.bank.insert("a memory", vector, vector, ORIGIN)

    def update(self, number: int, vector: Vector) -> None:
        self.bank.update(f"m{number + 1:06d}", "a memory", vector, vector, ORIGIN)

    def delete(self, number: int) -> None:
        self.bank.delete(f"m{number + 1:06d}", ORIGIN)

    def search(self, query: Vector) -> list[Retrieved]:
        return self.bank.retrieve(query, TOP, "retrieval")

    def numbers(self, found: list[Retrieved]) -> list[int]:
        return [int(hit.item.item_id[1:]) - 1 for hit in found]


class Numbered:
    """Finds pairs of a number and a score."""

    def numbers(self, found: Found) -> list[int]:
        return [number for number, _ in found]


class NumPy(Numbered):
    def __init__(self, rows: Matrix) -> None:
        self.matrix = np.zeros((2 * len(rows), DIM), np.float32)
        self.matrix[: len(rows)] = rows
        self.count = len(rows)

    def insert(self, vector: Vector) -> None:
        self.matrix[self.count] = vector
        self.count += 1

    def update(self, number: int, vector: Vector) -> None:
        self.matrix[number] = vector

    def delete(self, number: int) -> None:
        self.matrix[number] = 0  # zeros score 0, below any of the best 20 here

    def search(self, query: Vector) -> Found:
        scores = self.matrix[: self.count] @ query
        return best_of(scores)


class Restacked(Numbered):
    def __init__(self, rows: Matrix) -> None:
        self.rows: dict[int, Vector] = dict(enumerate(rows))

    def insert(self, vector: Vector) -> None:
        self.rows[len(self.rows)] = vector

    def update(self, number: int, vector: Vector) -> None:
        self.rows[number] = vector

    def delete(self, number: int) -> None:
        self.rows[number] = np.zeros(DIM, np.float32)

    def search(self, query: Vector) -> Found:
        scores = np.stack(list(self.rows.values())) @ query
        return best_of(scores)


class Chroma:
    def __init__(self, rows: Matrix) -> None:
        import chromadb

        self.folder = tempfile.TemporaryDirectory()
        client = chromadb.PersistentClient(self.folder.name, chromadb.Settings(anonymized_telemetry=False))
        self.items = client.create_collection(
            "bench", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )
        self.count = 0
        for start in range(0, len(rows), 5000):
            part = rows[start : start + 5000]
            ids = [str(start + place) for place in range(len(part))]
            self.items.add(ids=ids, embeddings=part, documents=["a memory"] * len(part))
            self.count += len(part)

    def insert(self, vector: Vector) -> None:
        self.items.add(ids=[str(self.count)], embeddings=[vector], documents=["a memory"])
        self.count += 1

    def update(self, number: int, vector: Vector) -> None:
        self.items.update(ids=[str(number)], embeddings=[vector], documents=["a memory"])

    def delete(self, number: int) -> None:
        self.items.delete(ids=[str(number)])

    def search(self, query: Vector) -> Any:
        return self.items.query(query_embeddings=[query], n_results=TOP)

    def numbers(self, found: Any) -> list[int]:
        return [int(name) for name in found["ids"][0]]


class Faiss(Numbered):
    def __init__(self, rows: Matrix) -> None:
        import faiss

        self.index = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
        self.index.add_with_ids(rows, np.arange(len(rows)))
        self.count = len(rows)

    def insert(self, vector: Vector) -> None:
        self.index.add_with_ids(vector[None], np.array([self.count]))
        self.count += 1

    def update(self, number: int, vector: Vector) -> None:
        self.delete(number)
        self.index.add_with_ids(vector[None], np.array([number]))

    def delete(self, number: int) -> None:
        self.index.remove_ids(np.array([number]))

    def search(self, query: Vector) -> Found:
        scores, numbers = self.index.search(query[None], TOP)
        return list(zip(numbers[0].tolist(), scores[0].tolist(), strict=True))


def best_of(scores: Vector) -> Found:
    best = np.argpartition(scores, -TOP)[-TOP:]
    best = best[np.argsort(-scores[best])]
    return list(zip(best.tolist(), scores[best].tolist(), strict=True))


def unit_rows(rng: np.random.Generator, count: int) -> Matrix:
    rows = rng.standard_normal((count, DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def contestants() -> dict[str, Callable[[Matrix], Contestant]]:
    all_of_them: dict[str, Callable[[Matrix], Contestant]] = {
        "memskill": Ours, "numpy": NumPy, "numpy, restacked": Restacked, "chromadb": Chroma, "faiss": Faiss,
    }  # fmt: skip
    if importlib.util.find_spec("faiss") is None:
        del all_of_them["faiss"]
    return all_of_them


def measure(size: int, rounds: int, searches: int) -> list[dict[str, Any]]:
    """One row a contestant: medians in milliseconds, and recall against float64."""
    rng = np.random.default_rng(0)
    rows = unit_rows(rng, size)
    fills: dict[str, list[float]] = {name: [] for name in contestants()}
    filled = {name: clock(fills[name], partial(make, rows)) for name, make in contestants().items()}
    retrieve = {name: recall_of(bank, rows, unit_rows(rng, 30)) for name, bank in filled.items()}
    times: dict[str, dict[str, list[float]]] = {name: {what: [] for what in OPERATIONS} for name in filled}
    drawn = [(unit_rows(rng, 2), unit_rows(rng, searches)) for _ in range(rounds)]
    for turn, name in in_turns(filled, rounds):
        one_round(filled[name], times[name], turn, *drawn[turn])
    gone = rng.permutation(size)[:rounds].tolist()
    for turn, name in in_turns(filled, rounds):
        clock(times[name]["delete"], partial(filled[name].delete, gone[turn]))
    return [
        {"memories": size, "bank": name, "fill_s": fills[name][0], "recall@20": retrieve[name]}
        | {what: statistics.median(taken) * 1e3 for what, taken in times[name].items()}
        for name in filled
    ]


def one_round(bank: Contestant, times: dict[str, list[float]], turn: int, new: Matrix, queries: Matrix) -> None:
    clock(times["insert"], partial(bank.insert, new[0]))
    clock(times["update"], partial(bank.update, turn, new[1]))
    bank.search(queries[0])  # what the others left in the processor's cache is nobody's fault
    for query in queries:
        clock(times["top-20"], partial(bank.search, query))


def recall_of(bank: Contestant, rows: Matrix, queries: Matrix) -> float:
    exact = np.argsort(-(queries.astype(np.float64) @ rows.astype(np.float64).T), axis=1, kind="stable")[:, :TOP]
    found = [set(bank.numbers(bank.search(query))) for query in queries]
    return float(np.mean([len(mine & set(best)) / TOP for mine, best in zip(found, exact.tolist(), strict=True)]))


def hybrid_against_dense(size: int, rounds: int) -> Measure:
    """The top 20 by cosine and BM25 together against those by cosine, over memories of 12 Zipf-distributed words."""
    rng = np.random.default_rng(0)
    words, weights = [f"word{i}" for i in range(3000)], 1 / np.arange(1, 3001)
    draw = partial(rng.choice, words, p=weights / weights.sum())
    bank = MemoryBank("bench", language="none")
    for row in unit_rows(rng, size):
        bank.insert(" ".join(draw(12)), row, row, ORIGIN)
    asked = [(" ".join(draw(8)), vector) for vector in unit_rows(rng, rounds)]
    bank.search("hybrid", *asked[0], TOP, "retrieval")  # the first search makes the index
    times: dict[Ranking, list[float]] = {"dense": [], "hybrid": []}
    for turn, ranking in in_turns(times, rounds):
        clock(times[ranking], partial(bank.search, ranking, *asked[turn], TOP, "retrieval"))
    dense, hybrid = (statistics.median(times[ranking]) * 1e3 for ranking in ("dense", "hybrid"))
    return compared(f"hybrid top-20 of {size:,}", hybrid, "ms", "dense", dense, at_most=2 if size == 10_000 else None)


def summary_of(rows: list[dict[str, Any]]) -> list[Measure]:
    """Ours against the others by size; of what changes a bank only against chromadb, which keeps as much of it."""
    found = []
    for ours in (row for row in rows if row["bank"] == "memskill"):
        others = {row["bank"]: row for row in rows if row["memories"] == ours["memories"]}
        where = f"{ours['memories']:,} memories"
        for name in ("numpy", "chromadb", "faiss"):
            if name in others:
                most = {"numpy": 1.5 if ours["memories"] <= 10_000 else None, "chromadb": 1.0}.get(name)
                other = others[name]["top-20"]
                found.append(compared(f"top-20 of {where}", ours["top-20"], "ms", name, other, at_most=most))
        for what in ("insert", "update", "delete"):
            other = others["chromadb"][what]
            found.append(compared(f"{what}, {where}", ours[what], "ms", "chromadb", other, at_most=1.0))
        retrieve = ours["recall@20"]
        found.append(Measure(f"recall@20, {where}", retrieve, "", target="1", reached=retrieve == 1))
    return found


def show(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="milliseconds an operation (in brackets: times numpy's)")
    for column in ("memories", "bank", "fill s", *OPERATIONS, "recall@20"):
        table.add_column(column, justify="left" if column == "bank" else "right")
    for row in rows:
        floor = next(other for other in rows if (other["memories"], other["bank"]) == (row["memories"], "numpy"))
        cells = [
            f"{row[what]:.3f} ({row[what] / floor[what]:.{1 if row[what] < 99 * floor[what] else 0}f})"
            for what in OPERATIONS
        ]
        table.add_row(
            f"{row['memories']:,}", row["bank"], f"{row['fill_s']:.1f}", *cells, f"{row['recall@20']:.3f}",
            end_section=row is rows[-1] or rows[rows.index(row) + 1]["memories"] != row["memories"],
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 10k memories, fewer rounds")
    quick = parser.parse_args().quick
    rows = []
    for size in (1_000, 10_000) if quick else (1_000, 10_000, 100_000):
        rows += measure(size, rounds=15 if quick else 50, searches=5)
    hybrid = [hybrid_against_dense(size, rounds=100 if quick else 400) for size in (1_000, 10_000)]
    save("retrieval", [*summary_of(rows), *hybrid], rows=rows)
    Console(width=140).print(show(rows))
    for measure_ in hybrid:
        Console().print(f"{measure_.measure}: {measure_.value:.2f} ms, {measure_.ratio:.2f} times dense")


if __name__ == "__main__":
    main()
