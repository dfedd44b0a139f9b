"""How much of the evidence of LoCoMo's questions is found among the first k turns, by each way to rank turns.

    .venv/bin/python benchmarks/evidence_recall.py [--file LOCOMO10.JSON] [--split NAME ...] [--fit] [--quick]

No language model is needed. Without ``--file`` the sample is used, which is too small to say anything. The turns of a
whole conversation are ranked (:mod:`memskill_cli.memory.sources`) for each scored question that names its evidence.
``--fit`` fits the weights of the hybrid ranking on the train split: a linear score, a softmax over the turns of a
conversation, the mean negative log-likelihood of the evidence turns. The weights in ``sources.py`` are these, rounded.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import save
from rich.console import Console
from rich.table import Table

from memskill_cli.datasets.base import ReaderCallbacks, SourceFile
from memskill_cli.datasets.registry import get
from memskill_cli.datasets.samples import sample_path
from memskill_cli.datasets.spans import split_spans
from memskill_cli.memory.encoders import CachedEncoder, load_encoder
from memskill_cli.memory.sources import WEIGHTS, SourceIndex
from memskill_cli.scoring.evidence import RECALL_AT
from memskill_cli.scoring.intervals import bootstrap_ci
from memskill_cli.types import Trace

RANKINGS = ("dense", "lexical", "hybrid")
EPOCHS, LEARNING_RATE, BATCHES = 12, 5e-3, 40


class Asked(NamedTuple):
    """One question: its evidence by row, and for each ranking the scores of all turns; the features, (turns, F)."""

    split: str
    evidence: list[int]
    scores: dict[str, np.ndarray]
    features_TF: np.ndarray


async def questions(trace: Trace, encoder: CachedEncoder) -> list[Asked]:
    index = SourceIndex(encoder)
    sources = [source for span in split_spans(trace, "full-session") for source in span.sources]
    await index.add(sources)
    rows = {source.ref: row for row, source in enumerate(sources)}
    found = []
    for query in trace.queries:
        evidence = [rows[ref] for ref in query.evidence if ref in rows]
        if query.scored and evidence:
            vector = (await encoder.aencode([query.question], "query"))[0]
            scores = {ranking: index.scores(ranking, query.question, vector) for ranking in RANKINGS}
            features = index.features(query.question, vector)
            found.append(Asked(trace.split, evidence, scores, np.stack([features[name] for name in WEIGHTS], 1)))
    return found


def recall(scores: np.ndarray, evidence: Sequence[int], k: int) -> float:
    best = set(np.argsort(-scores, kind="stable")[:k].tolist())
    return sum(row in best for row in evidence) / len(evidence)


def fit(asked: Sequence[Asked]) -> dict[str, float]:
    torch.manual_seed(0)
    weights = torch.zeros(len(WEIGHTS), requires_grad=True)
    optimizer, rng = torch.optim.Adam([weights], lr=LEARNING_RATE), np.random.default_rng(0)
    features = [torch.tensor(one.features_TF, dtype=torch.float32) for one in asked]
    for _ in range(EPOCHS):
        for batch in np.array_split(rng.permutation(len(asked)), BATCHES):
            losses = [-torch.log_softmax(features[i] @ weights, 0)[asked[i].evidence].mean() for i in batch]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return dict(zip(WEIGHTS, weights.detach().numpy().round(2).tolist(), strict=True))


def with_interval(values: Sequence[float]) -> str:
    low, high = bootstrap_ci(values, resamples=2000, seed=0)
    return f"{np.mean(values):.3f} ({low:.3f} to {high:.3f})"


async def collect(traces: Sequence[Trace], cache: Path | None) -> list[Asked]:
    encoder = load_encoder("minilm", cache_dir=cache)
    return [one for trace in traces for one in await questions(trace, encoder)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=sample_path("locomo"))
    parser.add_argument("--split", action="append", choices=("train", "val", "test"))
    parser.add_argument("--fit", action="store_true", help="fit the weights on the train split")
    parser.add_argument("--quick", action="store_true", help="the val split only")
    parser.add_argument("--cache", type=Path, help="a folder for embeddings")
    options = parser.parse_args()
    splits = options.split or (["val"] if options.quick else ["train", "val"])
    traces = list(get("locomo").read(SourceFile(str(options.file), options.file), ReaderCallbacks()))
    asked = asyncio.run(collect([trace for trace in traces if trace.split in splits], options.cache))
    table = Table("split", "ranking", "questions", *(f"recall@{k}" for k in RECALL_AT))
    rows = []
    for split in splits:
        own = [one for one in asked if one.split == split]
        for ranking in RANKINGS:
            at = {k: [recall(one.scores[ranking], one.evidence, k) for one in own] for k in RECALL_AT}
            rows.append({"split": split, "ranking": ranking, **{f"@{k}": float(np.mean(at[k])) for k in RECALL_AT}})
            table.add_row(split, ranking, str(len(own)), *(with_interval(at[k]) for k in RECALL_AT))
    Console().print(table)
    if options.fit:
        Console().print("fitted on train:", fit([one for one in asked if one.split == "train"]))
    save("evidence_recall", [], rows=rows)


if __name__ == "__main__":
    main()
