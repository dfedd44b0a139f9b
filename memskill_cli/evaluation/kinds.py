"""The differences between evaluations on questions and on tasks, behind one protocol. The dataset decides which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from memskill_cli.config import Config
from memskill_cli.datasets.manifest import DatasetManifest
from memskill_cli.datasets.registry import find, get
from memskill_cli.evaluation.env_evaluation import EnvEvaluation
from memskill_cli.evaluation.qa_evaluation import QAEvaluation
from memskill_cli.types import QueryResult, Trace

Row = dict[str, Any]


class EvalKind(Protocol):
    """The part of an evaluation that depends on the kind of queries."""

    @property
    def scores(self) -> Sequence[str]:
        """The fields of a row that are compared between methods."""
        ...

    def check_methods(self, dataset: str, names: Sequence[str]) -> None:
        """Raises UsageError for methods that cannot be used on this kind of queries."""
        ...

    def data_digest(self, manifest: DatasetManifest, split: str) -> str:
        """A digest of the data that an evaluation of ``split`` depends on. DataError if a part is not prepared."""
        ...

    def identity_settings(self, table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The settings, by section, that can change a score of this kind only. ``table``: all settings by section."""
        ...

    def traces(
        self, split: Sequence[Trace], load: Callable[[str], Iterable[Trace]], settings: Config, limit: int
    ) -> Sequence[Trace]:
        """The traces to evaluate for ``split``. ``load`` reads another split; ``limit``: most queries (0: all)."""
        ...

    def row_fields(self, result: QueryResult) -> Row:
        """The fields of a line in ``results.jsonl`` that only this kind has."""
        ...

    def summarise(self, rows: Sequence[Row], settings: Config) -> dict[str, Any]:
        """The scores and counts of ``summary.json``."""
        ...

    def measure(self, reward: str) -> str:
        """The score of a summary by which skill banks are compared if training uses ``reward`` (f1 or judge)."""
        ...

    def describe_reward(self, reward: str) -> str:
        """A sentence for reports that explains the episode reward; ``reward`` is the setting ``reward.kind``."""
        ...


KINDS: Mapping[str, EvalKind] = {"qa": QAEvaluation(), "env": EnvEvaluation()}


def kind_of(dataset: str) -> EvalKind:
    """The kind of evaluation for the dataset with this name. UsageError if there is no such dataset."""
    return KINDS[get(dataset).kind]


def kind_for_report(dataset: str) -> EvalKind:
    """As :func:`kind_of`, but questions if the dataset is unknown because its plug-in is not loaded."""
    found = find(dataset)
    return KINDS[found.kind if found else "qa"]
