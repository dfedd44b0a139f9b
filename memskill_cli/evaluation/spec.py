"""The definition of an evaluation: its task, its queries, the settings that count, and the name made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from memskill_cli.agent import prompts
from memskill_cli.config import Config, digest, digest_section, former_section, to_dict
from memskill_cli.datasets.base import ABSTENTION
from memskill_cli.datasets.manifest import DatasetManifest
from memskill_cli.datasets.registry import get
from memskill_cli.errors import RunError, UsageError
from memskill_cli.evaluation import extensions, methods
from memskill_cli.evaluation.kinds import kind_of
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.types import Query, Trace
from memskill_cli.utils.rows import read_object

SCORING_SETTINGS = ("models", "encoders", "memory", "eval", "seed")
IRRELEVANT_SETTINGS = frozenset(
    f"models.{name}" for name in ("api_base", "timeout", "retries", "designer", "designer_max_tokens", "prices")
)
SCORING_VERSION = 2
"""Version of reading and scoring replies. It is increased when the same replies would give other rows."""
IDENTITY = "identity.json"
_NEW_FOLDER = "rename or delete that folder, then run the same command again: replies are taken from the cache"
_PARTS = {"reading": "the version of reading and scoring", "policy": "the controller and the skills"}


@dataclasses.dataclass(frozen=True)
class EvalSpec:
    """A method on a split. ``limit`` 0: all queries. ``include_abstention``: ask these too and score them apart."""

    dataset: str
    split: str
    method: str
    data_digest: str
    limit: int = 0
    include_abstention: bool = False

    @property
    def variant(self) -> str:
        """The part of the split's name after the dash: ``50`` for ``test-50``, "" for ``test``."""
        return self.split.partition("-")[2]


def method_names(text: str) -> list[str]:
    """The methods in a list (``a,b,c``). UsageError if it is empty, or if a method is repeated or does not exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        methods.get(name)
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"--method {text}: expected one method, or several different ones", hint="--method memskill,rag"
        )
    return names


def check_abstention(dataset: str, asked: bool) -> None:
    """Raises UsageError if abstention questions are requested (``asked``) and the dataset has none."""
    if asked and not get(dataset).has_abstention:
        raise UsageError(f"{dataset} has no abstention questions", hint="run the command without --include-abstention")


def eval_specs(
    manifest: DatasetManifest, splits: Sequence[str], names: Sequence[str], limit: int, abstention: bool
) -> list[EvalSpec]:
    """Every method on every split, ordered by split."""
    kind = kind_of(manifest.dataset)
    return [
        EvalSpec(manifest.dataset, split, name, kind.data_digest(manifest, split), limit, abstention)
        for split in splits
        for name in names
    ]


def splits_of(manifest: DatasetManifest, split: str) -> list[str]:
    """``split``, or all its variants (``test-50``, ``test-100`` … for ``test``) if only those are prepared.

    Raises UsageError if there is no such split.
    """
    if split in manifest.splits:
        return [split]
    variants = [name for name in manifest.splits if name.startswith(f"{split}-")]
    if not variants:
        raise UsageError(f"{manifest.dataset} has no split called {split}; there are {', '.join(manifest.splits)}")
    return sorted(variants, key=lambda name: (len(name), name))


class TraceJob(NamedTuple):
    """A trace, given by its position in the split, with the queries to ask and its length in characters."""

    place: int
    queries: list[Query]
    size: int


class EvalPlan(NamedTuple):
    """The queries of an evaluation by trace, and the number of queries left out because they are not scored."""

    jobs: list[TraceJob]
    excluded: int

    @property
    def queries(self) -> list[Query]:
        return [query for work in self.jobs for query in work.queries]


def plan(traces: Iterable[Trace], task: EvalSpec) -> EvalPlan:
    """The queries of a task by trace. The traces themselves are not kept in memory."""
    left = task.limit or None
    work: list[TraceJob] = []
    left_out = 0
    for index, trace in enumerate(traces):
        asked = [q for q in trace.queries if q.scored or (task.include_abstention and q.category == ABSTENTION)]
        left_out += len(trace.queries) - len(asked)
        queries = asked[:left]
        if queries:
            work.append(TraceJob(index, queries, sum(len(t.text) for session in trace.sessions for t in session.turns)))
        left = None if left is None else left - len(queries)
    return EvalPlan(work, left_out)


def settings_digest(settings: Config, method: str) -> str:
    """The digest of every setting that can change a score of ``method``."""
    foreign, table = extensions.is_foreign(method), to_dict(settings)
    counted = tuple(name for name in table if name not in extensions.NEVER_COUNTED) if foreign else SCORING_SETTINGS
    ignored = (extensions.OF_CALLS if foreign else IRRELEVANT_SETTINGS) | methods.get(method).irrelevant_settings
    sections = {former_section(name): _section(table[name], name, ignored) for name in counted}
    for name, values in kind_of(settings.dataset).identity_settings(table).items():
        sections.setdefault(former_section(name), _section(values, name, frozenset()))
    return digest(sections)


def _section(values: object, section: str, ignored: frozenset[str]) -> object:
    """A section without the ignored settings, in the form that digests use (old names of settings)."""
    if not isinstance(values, dict):
        return values
    return digest_section(section, {key: value for key, value in values.items() if f"{section}.{key}" not in ignored})


def identity(task: EvalSpec, settings: Config, policy: EvaluatedPolicy) -> dict[str, Any]:
    """Everything that the rows of an evaluation depend on. If one value differs, it is another evaluation."""
    versions = extensions.versions(task.dataset, settings, task.method)
    return {
        "task": {key: value for key, value in dataclasses.asdict(task).items() if key != "include_abstention" or value},
        "settings": settings_digest(settings, task.method),
        "policy": policy.digest,
        "prompts": prompts.digest(designer=False),
        "reading": SCORING_VERSION,
        **({"extensions": versions} if versions else {}),
    }


def evaluation_id(task: EvalSpec, settings: Config, policy: EvaluatedPolicy) -> str:
    parts = identity(task, settings, policy)
    return f"{task.dataset}-{task.split}-{task.method}-{digest(parts)}"


def check_same(file: Path, own: dict[str, Any]) -> None:
    """Raise RunError if ``file``, the identity of an evaluation's folder, is not ``own``: its rows are of another one.

    The message says what differs.
    """
    other = read_object(file, {}, hint=_NEW_FOLDER)
    differs = [name for name in sorted({*own, *other}) if own.get(name) != other.get(name)]
    if differs:
        what = ", ".join(_PARTS.get(name, name) for name in differs)
        raise RunError(f"{file.parent} has the rows of another evaluation: {what} differ", hint=_NEW_FOLDER)


def evaluations_with_other_prompts(folder: Path, own: dict[str, Any]) -> list[str]:
    """Names of the evaluations in ``folder`` that differ from ``own`` only in the prompts or the reading of replies.

    ``own`` is an :func:`identity`. They were made by another version, or the prompts were edited since.
    """
    found = []
    for file in sorted(folder.glob(f"*/{IDENTITY}")):
        with suppress(OSError, orjson.JSONDecodeError, AttributeError):
            other = orjson.loads(file.read_bytes())
            same = all(other.get(name) == own.get(name) for name in ("task", "settings", "policy", "extensions"))
            if same and any(other.get(name) != own[name] for name in ("prompts", "reading")):
                found.append(file.parent.name)
    return found
