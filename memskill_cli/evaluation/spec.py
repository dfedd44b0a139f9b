"""What one evaluation is: its task, what it asks, the settings that count, and the name that follows from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from memskill_cli.agent import prompts
from memskill_cli.config import Config, digest, to_dict
from memskill_cli.datasets.base import Manifest
from memskill_cli.errors import DataError, UsageError
from memskill_cli.evaluation import methods
from memskill_cli.evaluation.policy import Subject
from memskill_cli.scoring.prompt_selection import ABSTENTION
from memskill_cli.types import Query, Trace

SETTINGS_THAT_SCORE = ("models", "encoders", "memory", "eval", "seed")
NOT_SCORING = frozenset(
    f"models.{name}" for name in ("api_base", "timeout", "retries", "designer", "designer_max_tokens")
)
READING = 2
"""Version of how replies are read and scored. Raised when the same replies would give other rows."""
IDENTITY = "identity.json"
PLAYED_SETTINGS = ("steps", "query", "memory", "trajectories_max", "temperature", "top_p", "inventory")
"""Settings of ALFWorld that can change a score besides."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One evaluation: a method on a split. ``limit`` 0 asks all queries; ``include_abstention``: those too, apart."""

    dataset: str
    split: str
    method: str
    data_digest: str
    limit: int = 0
    include_abstention: bool = False

    @property
    def variant(self) -> str:
        """What follows the dash in the split's name: ``50`` of ``test-50``, "" of ``test``."""
        return self.split.partition("-")[2]


def method_names(text: str) -> list[str]:
    """The methods of a list as typed (``a,b,c``). UsageError for none, one twice, or one that does not exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        methods.get(name)
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"--method {text}: expected one method, or several different ones", hint="--method memskill,rag"
        )
    return names


def check_abstention(dataset: str, asked: bool) -> None:
    """Raises UsageError if abstention questions are asked for of a dataset that has none."""
    if asked and dataset != "longmemeval":
        raise UsageError(f"{dataset} has no abstention questions", hint="--include-abstention is for longmemeval")


def tasks_of(
    manifest: Manifest, splits: Sequence[str], names: Sequence[str], limit: int, abstention: bool
) -> list[Task]:
    """Every method on every split, by split."""
    return [
        Task(manifest.dataset, split, name, data_digest(manifest, split), limit, abstention)
        for split in splits
        for name in names
    ]


def default_split(dataset: str) -> str:
    """The split that is evaluated when none is asked for."""
    return "valid_seen" if dataset == "alfworld" else "test"


def data_digest(manifest: Manifest, split: str) -> str:
    """Names the data an evaluation depends on: in ALFWorld the trajectories that memory is made of, too."""
    if manifest.dataset != "alfworld":
        return manifest.digest_of(split)
    if "train" not in manifest.splits:
        raise DataError(
            "memory is made of ALFWorld's training games, and none are prepared",
            hint="memskill prepare --dataset alfworld --split train",
        )
    return digest([manifest.digest_of(split), manifest.digest_of("train")])


def splits_of(manifest: Manifest, split: str) -> list[str]:
    """``split``, or all its variants (``test-50``, ``test-100`` … for ``test``) where only those are prepared.

    Raises UsageError if there is no such split.
    """
    if split in manifest.splits:
        return [split]
    variants = [name for name in manifest.splits if name.startswith(f"{split}-")]
    if not variants:
        raise UsageError(f"{manifest.dataset} has no split called {split}; there are {', '.join(manifest.splits)}")
    return sorted(variants, key=lambda name: (len(name), name))


class Work(NamedTuple):
    """A trace, by its place in the split, with its length in characters, and the queries to ask of it."""

    place: int
    queries: list[Query]
    size: int


class Plan(NamedTuple):
    """All that an evaluation asks, and how many queries are not scored and left out."""

    work: list[Work]
    left_out: int

    @property
    def queries(self) -> list[Query]:
        return [query for work in self.work for query in work.queries]


def plan(traces: Iterable[Trace], task: Task) -> Plan:
    """The queries of a task by trace; of the traces themselves nothing is held."""
    left = task.limit or None
    work: list[Work] = []
    left_out = 0
    for index, trace in enumerate(traces):
        asked = [q for q in trace.queries if q.scored or (task.include_abstention and q.category == ABSTENTION)]
        left_out += len(trace.queries) - len(asked)
        queries = asked[:left]
        if queries:
            work.append(Work(index, queries, sum(len(t.text) for session in trace.sessions for t in session.turns)))
        left = None if left is None else left - len(queries)
    return Plan(work, left_out)


def settings_digest(settings: Config, method: str) -> str:
    """Names every setting that can change a score of ``method``."""
    ignored = NOT_SCORING | methods.get(method).ignores
    table = to_dict(settings)
    sections = {name: _without(table[name], name, ignored) for name in SETTINGS_THAT_SCORE}
    if settings.dataset == "alfworld":
        sections["alfworld"] = {name: table["alfworld"][name] for name in PLAYED_SETTINGS}
    return digest(sections)


def _without(section: object, name: str, ignored: frozenset[str]) -> object:
    if not isinstance(section, dict):
        return section
    return {inner: value for inner, value in section.items() if f"{name}.{inner}" not in ignored}


def identity(task: Task, settings: Config, subject: Subject) -> dict[str, Any]:
    """All that the rows of an evaluation depend on, by name. Where one of these differs, it is another evaluation."""
    return {
        "task": {key: value for key, value in dataclasses.asdict(task).items() if key != "include_abstention" or value},
        "settings": settings_digest(settings, task.method),
        "policy": subject.digest,
        "prompts": prompts.digest(designer=False),
        "reading": READING,
    }


def evaluation_id(task: Task, settings: Config, subject: Subject) -> str:
    parts = identity(task, settings, subject)
    return f"{task.dataset}-{task.split}-{task.method}-{digest(parts)}"


def changed_wording(folder: Path, own: dict[str, Any]) -> list[str]:
    """Names of the evaluations in ``folder`` that differ from ``own`` in the prompts or the reading of replies alone.

    ``own`` is an :func:`identity`. They were made by another version, or with prompts edited since.
    """
    found = []
    for file in sorted(folder.glob(f"*/{IDENTITY}")):
        with suppress(OSError, orjson.JSONDecodeError, AttributeError):
            other = orjson.loads(file.read_bytes())
            same = all(other.get(name) == own[name] for name in ("task", "settings", "policy"))
            if same and any(other.get(name) != own[name] for name in ("prompts", "reading")):
                found.append(file.parent.name)
    return found
