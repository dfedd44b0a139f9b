"""What a method of remembering is to the harness: it reads a trace, and what it kept is asked queries afterwards.

The harness does everything else: which traces and queries, when, the answer prompt, the scores, the rows, resuming.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

from memskill_cli.config import Config
from memskill_cli.evaluation.artifact_store import Keeper
from memskill_cli.evaluation.policy import Subject
from memskill_cli.rollout.episode import World
from memskill_cli.types import Recall, Span, Trace

Uses = Literal["controller", "skills", "seeds", "nothing"]
"""What of a run a method depends on: its controller and skills, its skills alone, the seed skills, or nothing."""

EXECUTOR = frozenset(
    {
        "models.executor",
        "models.executor_max_tokens",
        "memory.max_chars",
        "memory.max_actions",
        "memory.server",
        "memory.parallel_spans",
    }
)
"""Settings that matter to our executor only."""
CONTROLLER = frozenset({"encoders.state", "encoders.skill", "memory.fuse", "memory.tau", "eval.top_k"})
"""Settings that matter where a controller picks skills."""
SPANS = frozenset({"eval.span_mode", "eval.chunk_size", "eval.chunk_overlap", "eval.max_spans"})
"""Settings that matter where a trace is cut into spans."""
RETRIEVAL = frozenset({"encoders.retrieval", "memory.top_k"})
"""Settings that matter where memories are searched for a query."""
WINDOW = frozenset({"eval.context_tokens"})
"""Settings that matter where what is shown must be cut to the model's window."""


class Memory(NamedTuple):
    """What a method has kept of one trace."""

    recall: Recall
    size: int
    """Items that can be recalled; their sum over traces is the summary's ``memories``."""
    brief: bool = False
    """Rows of ``results.jsonl`` name what was recalled with its length, and do not repeat its text."""
    cut: dict[str, int] | None = None
    """By query id, written by ``recall``: tokens that belong to the answer and did not fit the model's window. None
    where nothing is ever cut."""
    counts: Mapping[str, Any] = MappingProxyType({})
    """What else is counted of a trace, perhaps in groups; sums over traces go into the summary."""
    keep: Callable[[], Awaitable[None]] | None = None
    """What is still to be written down when its queries have been asked."""


@dataclass(frozen=True)
class Site:
    """With what a method works during one evaluation, wherever that is: it writes to no place but ``keeper``."""

    world: World
    settings: Config
    subject: Subject
    keeper: Keeper


class Method(ABC):
    """One method during one evaluation."""

    uses: ClassVar[Uses] = "nothing"
    ignores: ClassVar[frozenset[str]]
    """Dotted names of settings that cannot change its scores: two evaluations that differ in these are the same."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Called for every method of a command before anything is paid for; quick. UsageError for what can't work."""

    async def open(self) -> None:  # noqa: B027
        """What takes time, before the first trace is read."""

    @abstractmethod
    async def remember(self, trace: Trace, spans: Sequence[Span], advance: Callable[[], None]) -> Memory:
        """Read ``spans`` of ``trace`` in order, with one ``advance()`` for each; several traces are read at once.

        What costs money is kept (by ``site.keeper``, or by asking through the gateway, whose replies are cached), so
        that the same evaluation again pays for nothing twice. Raises ModelError if the trace can't be remembered: its
        queries are then owed.
        """

    def facts(self) -> dict[str, Any]:
        """What a reader of the numbers must know besides; goes into the summary after all queries were asked."""
        return {}

    async def aclose(self) -> None:  # noqa: B027
        """Let go of what :meth:`open` opened."""
