"""A dataset for memskill: short diaries with questions, read from the JSON Lines file in the same folder.

    memskill prepare --dataset my-dataset --plugin examples/dataset_plugin/my_dataset.py
    memskill train --dataset my-dataset --plugin examples/dataset_plugin/my_dataset.py --preset demo

Installed as a package (pip install ./examples/dataset_plugin) it needs no --plugin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from memskill_cli.datasets.base import Dataset, ReaderCallbacks, SourceFile
from memskill_cli.datasets.registry import register_dataset
from memskill_cli.errors import DataError
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils.text_metrics import normalise


@register_dataset
class MyDataset(Dataset):
    """Each line of the file is one diary. Its days become sessions, and its questions become queries."""

    name = "my-dataset"
    official = Path(__file__).with_suffix(".jsonl")  # what `prepare` reads without --source

    def read(self, part: SourceFile, watch: ReaderCallbacks) -> Iterator[Trace]:
        assert part.path is not None
        for number, line in enumerate(part.path.read_text("utf-8").splitlines(), start=1):
            try:
                yield self._trace(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                hint = f"an example of the format: {self.official}"
                raise DataError(f"{part.path.name}, line {number}: not a diary: {error!r}", hint=hint) from error

    def _trace(self, diary: dict) -> Trace:
        days = [Session(f"day {i}", day["date"], (Turn("me", day["text"]),)) for i, day in enumerate(diary["days"])]
        queries = [
            Query(f"{diary['id']}:{i}", diary["id"], one["category"], one["question"], tuple(one["answers"]))
            for i, one in enumerate(diary["questions"])
        ]
        return Trace(diary["id"], self.name, diary["split"], tuple(days), tuple(queries))

    def score(self, query: Query, prediction: str) -> float:
        """1 if the reply contains a true answer as whole words, else 0. Replaces token F1."""
        said = f" {' '.join(normalise(prediction))} "
        return float(any(f" {' '.join(normalise(truth))} " in said for truth in query.gold_answers))
