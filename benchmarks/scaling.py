"""Does it scale? Evaluations of 1 to 10,000 traces: memory is to stay flat, and time to grow linearly.

    .venv/bin/python benchmarks/scaling.py [--quick] [--full]

Synthetic conversations in LongMemEval's format, a question each, are prepared and evaluated by the installed command,
each time in a new process with empty caches, against rule-made models behind HTTP in another process that answer at
once; with the hashing encoder, so that what is measured is the program itself. Compared:

- **small traces** (8 messages, two spans): 1, 10, 100 and 1,000 of them, with ``--full`` 10,000. A program that held
  all traces, or looked at all that it has done for each that it does, would show it here. The most memory a process
  had with the most traces is held against that with a tenth of them (to reach: no more than 1.1 ×), and what each
  further trace takes between the last two sizes against the same between the two before (no more than 1.25 ×).
- **large traces** of LongMemEval's size (500 messages, about 115,000 tokens): one, and a handful at once.

Small sizes are measured three times, shown are medians. Seconds are those of the evaluation, without starting up; CPU
and memory are of the whole process. *Prepare* is the most memory of the command that prepared these traces.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import MEMSKILL, WORDS, Measure, Ran, compared, run_command, save, server
from rich.console import Console
from rich.table import Table

FLAT, LINEAR = 1.1, 1.25


class Shape(NamedTuple):
    """How large a trace is."""

    name: str
    sessions: int
    messages: int
    words: int


SMALL = Shape("small", sessions=2, messages=4, words=12)
LARGE = Shape("large", sessions=50, messages=10, words=225)


def records(shape: Shape, count: int) -> Iterator[dict[str, Any]]:
    """``count`` records of LongMemEval, one at a time. A question asks for what one of the messages says."""
    for number in range(count):
        rng = random.Random(number)
        chats = [[message(rng, shape, place) for place in range(shape.messages)] for _ in range(shape.sessions)]
        asked = rng.choice(chats[0])["content"].split()[:6]
        days = [f"2024/{1 + place // 28 % 12:02d}/{1 + place % 28:02d} (Mon) 09:00" for place in range(shape.sessions)]
        yield {
            "question_id": f"{shape.name}-{number}",
            "question_type": "single-session-user",
            "question": f"What was said of {' '.join(asked)}?",
            "question_date": "2025/01/01 (Wed) 10:00",
            "answer": " ".join(asked),
            "haystack_dates": days,
            "haystack_session_ids": [f"s{place}" for place in range(shape.sessions)],
            "haystack_sessions": chats,
        }


def message(rng: random.Random, shape: Shape, place: int) -> dict[str, str]:
    words = rng.choices(WORDS, k=rng.randint(shape.words // 2, shape.words * 3 // 2))
    return {"role": "assistant" if place % 2 else "user", "content": " ".join(words) + "."}


def write(path: Path, found: Iterator[dict[str, Any]]) -> None:
    """A JSON list, never held as a whole."""
    with path.open("w") as file:
        for number, record in enumerate(found):
            file.write(("[" if number == 0 else ",\n") + json.dumps(record))
        file.write("]\n")


def prepare(folder: Path, shape: Shape, count: int) -> Ran:
    file = folder / "made.json"
    write(file, records(shape, count))
    source = ("--source", str(file), "--split", "test", "--data-dir", str(folder / "data"))
    return run_command([MEMSKILL, "prepare", "--dataset", "longmemeval", *source, "--quiet"])


def evaluate(url: str, data: Path) -> dict[str, float]:
    """One evaluation with nothing cached: seconds, calls, CPU seconds, and the most memory in MB."""
    with tempfile.TemporaryDirectory() as name:
        places = ("--data-dir", str(data), "--runs-dir", f"{name}/runs", "--cache-dir", f"{name}/cache")
        model = ("--model", "openai/rules", "--api-base", url, "--api-key", "none")
        encoders = ("--encoder", "hashing", "--retriever", "hashing")
        ran = run_command([MEMSKILL, "eval", "--dataset", "longmemeval", *places, *model, *encoders, "--json"])
    said = json.loads(ran.out)
    calls = said["usage"]["calls"]
    return {"seconds": said["seconds"], "calls": calls, "cpu_s": ran.cpu, "peak_mb": ran.peak_mb}


def measure(url: str, shape: Shape, count: int, rounds: int) -> dict[str, Any]:
    """One row: medians over rounds."""
    with tempfile.TemporaryDirectory() as name:
        prepared = prepare(Path(name), shape, count)
        found = [evaluate(url, Path(name) / "data") for _ in range(rounds)]
    medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
    return {"shape": shape.name, "traces": count, **medians, "prepare_peak_mb": prepared.peak_mb}


def slope(rows: Sequence[dict[str, Any]], key: str) -> float:
    """What each further trace adds between two sizes."""
    before, after = rows
    return (after[key] - before[key]) / (after["traces"] - before["traces"])


def fit(rows: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    """The straight line a + b · traces that is nearest to what was measured."""
    line = statistics.linear_regression([row["traces"] for row in rows], [row[key] for row in rows])
    return {"a": line.intercept, "b": line.slope}


def summary_of(rows: list[dict[str, Any]]) -> list[Measure]:
    small, large = ([row for row in rows if row["shape"] == shape.name] for shape in (SMALL, LARGE))
    before, last = small[-2:]
    size, tenth = f"{last['traces']:,} traces", f"{before['traces']:,} traces"
    further = [1e3 * slope(pair, "seconds") for pair in (small[-3:-1], small[-2:])]
    cpu = 1e3 * (last["cpu_s"] - before["cpu_s"]) / (last["calls"] - before["calls"])
    alone, together = large[0], large[-1]
    many = f"{together['traces']} traces of LongMemEval's size"
    return [
        compared(f"most memory, {size}", last["peak_mb"], "MB", tenth, before["peak_mb"], at_most=FLAT),
        compared(f"each further trace up to {size}", further[1], "ms", f"up to {tenth}", further[0], at_most=LINEAR),
        Measure("memory that stays for each thousand traces", 1e3 * slope(small[-2:], "peak_mb"), "MB"),
        Measure("CPU for each further call", cpu, "ms"),
        compared(f"most memory, prepare {size}", last["prepare_peak_mb"], "MB", tenth, before["prepare_peak_mb"],
                 at_most=FLAT),
        compared(f"most memory, {many}", together["peak_mb"], "MB", "one of them", alone["peak_mb"]),
        Measure(f"seconds a trace, {many}", together["seconds"] / together["traces"], "s"),
    ]  # fmt: skip


def show(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="evaluations of synthetic traces, models that answer at once", title_justify="left")
    for column in ("traces", "calls", "seconds", "ms a trace", "CPU s", "most MB", "prepare MB"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (row["calls"], row["seconds"], 1e3 * row["seconds"] / row["traces"], row["cpu_s"])
        cells = [f"{numbers[0]:,.0f}", f"{numbers[1]:.2f}", f"{numbers[2]:,.0f}", f"{numbers[3]:.1f}"]
        memory = (f"{row['peak_mb']:,.0f}", f"{row['prepare_peak_mb']:,.0f}")
        table.add_row(f"{row['traces']:,} {row['shape']}", *cells, *memory)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 40 small traces and 2 large ones, once each")
    parser.add_argument("--full", action="store_true", help="up to 10,000 small traces")
    arguments = parser.parse_args()
    sizes = [1, 10, 40] if arguments.quick else [1, 10, 100, 1_000, *([10_000] if arguments.full else [])]
    with server() as url:
        rows = [measure(url, SMALL, size, 1 if arguments.quick or size > 100 else 3) for size in sizes]
        rows += [measure(url, LARGE, size, 1) for size in ((1, 2) if arguments.quick else (1, 5))]
    small = [row for row in rows if row["shape"] == SMALL.name]
    fits = {key: fit(small, key) for key in ("seconds", "cpu_s", "peak_mb")}
    path = save("scaling", summary_of(rows), rows=rows, fits=fits)
    console = Console(width=120)
    console.print(show(rows))
    seconds, memory = fits["seconds"], fits["peak_mb"]
    console.print(f"seconds ≈ {seconds['a']:.2f} + {1e3 * seconds['b']:.1f} · thousands of traces")
    console.print(f"MB ≈ {memory['a']:.0f} + {1e3 * memory['b']:.1f} · thousands of traces; {path}")


if __name__ == "__main__":
    main()
