"""Evaluation on questions: each trace is read, then its questions are answered and scored by F1 and by the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from memskill_cli.config import Config
from memskill_cli.datasets.manifest import DatasetManifest
from memskill_cli.evaluation.summary import SCORES, summarise
from memskill_cli.types import QueryResult, Trace


class QAEvaluation:
    """See :class:`~memskill_cli.evaluation.kinds.EvalKind`."""

    scores = SCORES

    def check_methods(self, dataset: str, names: Sequence[str]) -> None:
        """Accepts all methods: each one can answer questions."""

    def data_digest(self, manifest: DatasetManifest, split: str) -> str:
        return manifest.digest_of(split)

    def identity_settings(self, table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {}

    def traces(
        self, split: Sequence[Trace], load: Callable[[str], Iterable[Trace]], settings: Config, limit: int
    ) -> Sequence[Trace]:
        return split

    def row_fields(self, result: QueryResult) -> dict[str, Any]:
        return {}

    def summarise(self, rows: Sequence[dict[str, Any]], settings: Config) -> dict[str, Any]:
        return summarise(
            rows,
            resamples=settings.eval.bootstrap,
            seed=settings.seed,
            threshold=settings.designer.f1_threshold,
        )

    def measure(self, reward: str) -> str:
        return reward

    def describe_reward(self, reward: str) -> str:
        score = {"f1": "token F1", "judge": "the verdict of the judge"}.get(reward, f"the reward {reward}")
        return f"Mean score of the questions of each episode ({score})"
