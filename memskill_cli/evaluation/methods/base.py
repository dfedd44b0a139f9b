"""What a method of remembering is to the harness: it reads a trace, and what it kept is asked queries afterwards.

The harness does everything else: which traces and queries, when, the answer prompt, the scores, the rows, resuming.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

from memskill_cli.config import Config, setting_names
from memskill_cli.evaluation.artifact_store import MemoryCache
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.scoring.evidence import EvidenceMap
from memskill_cli.types import RetrieveFn, Span, Step, Trace

PolicyDependency = Literal["controller", "skills", "seeds", "nothing"]
"""What of a run a method depends on: its controller and skills, its skills alone, the seed skills, or nothing."""

EXECUTOR = frozenset(
    {
        "models.executor",
        "models.executor_max_tokens",
        "memory.max_chars",
        "memory.max_actions",
        "memory.server",
        "memory.parallel_spans",
        "memory.protect",
        "memory.resolve_dates",
        "memory.sources",
    }
)
"""Settings that matter only to memory that our executor writes."""
CONTROLLER = frozenset({"encoders.state", "encoders.skill", "memory.pooling", "memory.tau", "eval.num_skills"})
"""Settings that matter where a controller picks skills."""
SPANS = frozenset({"eval.span_mode", "eval.chunk_size", "eval.chunk_overlap", "eval.max_spans"})
"""Settings that matter where a trace is cut into spans."""
RETRIEVAL = frozenset(
    {
        "encoders.retrieval",
        "memory.num_memories",
        "memory.retriever",
        "memory.language",
        "memory.context_tokens",
    }
)
"""Settings that matter where memories are searched for a query."""
TRAINING = frozenset(
    name for name in setting_names() if name.startswith(("train.", "ppo.", "reward.", "controller.", "designer."))
)
"""Settings that matter while training, and to a method only by what of the run it uses (``policy_dependency``)."""
WINDOW = frozenset({"eval.context_tokens"})
"""Settings that matter where what is shown must be cut to the model's window."""


class MethodMemory(NamedTuple):
    """What a method has kept of one trace."""

    retrieve: RetrieveFn
    size: int
    """Items that can be recalled; their sum over traces is the summary's ``memories``."""
    omit_text: bool = False
    """Rows of ``results.jsonl`` name what was recalled with its length, and do not repeat its text."""
    cut: dict[str, int] | None = None
    """By query id, written by ``retrieve``: tokens that belong to the answer and did not fit the model's window. None
    where nothing is ever cut."""
    counts: Mapping[str, Any] = MappingProxyType({})
    """What else is counted of a trace, perhaps in groups; sums over traces go into the summary."""
    evidence: EvidenceMap | None = None
    """What its items derive from; None where that is not known."""
    rank: RetrieveFn | None = None
    """The best 20 for a query, whatever is shown of them: evidence recall is measured on these."""
    steps: Sequence[Step] = ()
    """The steps in which it was built, one for each span; () if it was stored, or is not built in steps."""
    persist: Callable[[], Awaitable[None]] | None = None
    """What is still to be written down when its queries have been asked."""


@dataclass(frozen=True)
class MethodContext:
    """With what a method works during one evaluation, wherever that is: it writes to no place but ``cache``."""

    rollout: RolloutContext
    settings: Config
    policy: EvaluatedPolicy
    cache: MemoryCache


class Method(ABC):
    """One method during one evaluation."""

    policy_dependency: ClassVar[PolicyDependency] = "nothing"
    irrelevant_settings: ClassVar[frozenset[str]] = frozenset()
    """Dotted names of settings that cannot change its scores: two evaluations that differ in these are the same.

    With none declared every setting counts. A forgotten name costs an evaluation made anew, and reuses nothing.
    """

    def __init__(self, site: MethodContext) -> None:
        self.context = site

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Called for every method of a command before anything is paid for; quick. UsageError for what can't work."""

    async def open(self) -> None:  # noqa: B027
        """What takes time, before the first trace is read."""

    @abstractmethod
    async def build_memory(self, trace: Trace, spans: Sequence[Span], advance: Callable[[], None]) -> MethodMemory:
        """Read ``spans`` of ``trace`` in order, with one ``advance()`` for each; several traces are read at once.

        What costs money is kept (by ``context.cache``, or by asking through the gateway, whose replies are cached), so
        that the same evaluation again pays for nothing twice. Raises ModelError if the trace can't be remembered: its
        queries then fail, and are asked again by the next run of the command.
        """

    def summary_metadata(self) -> dict[str, Any]:
        """What a reader of the numbers must know besides; goes into the summary after all queries were asked."""
        return {}

    async def aclose(self) -> None:  # noqa: B027
        """Let go of what :meth:`open` opened."""
