"""What an evaluation does differently for questions and for tasks, behind one protocol; chosen here, by dataset."""

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
    """The part of an evaluation that depends on what a query is."""

    @property
    def scores(self) -> Sequence[str]:
        """Fields of a row in which methods are compared."""
        ...

    @property
    def reward_unit(self) -> str:
        """What the numbers of a training's table are."""
        ...

    def check_methods(self, dataset: str, names: Sequence[str]) -> None:
        """Raises UsageError for methods that make no sense here."""
        ...

    def data_digest(self, manifest: DatasetManifest, split: str) -> str:
        """Names the data that an evaluation of ``split`` depends on. DataError if some of them are not prepared."""
        ...

    def identity_settings(self, table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Sections of the settings (``table``: all of them) that can change a score here, besides the common ones."""
        ...

    def traces(
        self, split: Sequence[Trace], load: Callable[[str], Iterable[Trace]], settings: Config, limit: int
    ) -> Sequence[Trace]:
        """What is read and asked for a split; ``load`` reads another split, ``limit`` is the most queries (0: all)."""
        ...

    def row_fields(self, result: QueryResult) -> Row:
        """What a line of ``results.jsonl`` says besides."""
        ...

    def summarise(self, rows: Sequence[Row], settings: Config) -> dict[str, Any]:
        """The numbers of ``summary.json``."""
        ...

    def measure(self, reward: str) -> str:
        """The number of a summary by which banks are compared after a training with ``reward`` (f1 or judge)."""
        ...

    def describe_reward(self, reward: str) -> str:
        """What an episode's reward is, as a sentence of a report; ``reward`` is the setting ``reward.kind``."""
        ...


KINDS: Mapping[str, EvalKind] = {"qa": QAEvaluation(), "env": EnvEvaluation()}


def kind_of(dataset: str) -> EvalKind:
    """The kind of evaluation of the dataset of this name. UsageError if there is no such dataset."""
    return KINDS[get(dataset).kind]


def kind_for_report(dataset: str) -> EvalKind:
    """As :func:`kind_of`; questions where the dataset is not known, since its plug-in is not loaded."""
    found = find(dataset)
    return KINDS[found.kind if found else "qa"]
