"""The vocabulary: every record that one part of the program hands to another.

Frozen, small, and free of behaviour beyond what a record can say about itself. Nothing here imports anything of ours.
Terms are those of MemSkill (arXiv 2602.02474).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""Shape (D,), float32, unit length."""
Matrix = NDArray[np.float32]
"""Shape (N, D), float32, rows of unit length."""

Role = Literal["executor", "answer", "judge", "designer"]
ROLES: tuple[Role, ...] = ("executor", "answer", "judge", "designer")
EncoderSide = Literal["query", "context"]
"""Which encoder of a dual-encoder pair: what is asked, or what is searched."""
Split = Literal["train", "val", "test"]
SpanMode = Literal["turn", "turn-pair", "full-session", "fixed-length", "paragraph"]


# --- what is read ------------------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """One utterance (or one document). ``text`` already carries the caption of a shared picture."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Session:
    """Consecutive turns with one date line; ``date`` is as the benchmark wrote it, "" if it has none."""

    label: str
    date: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """A question asked of a trace's memory.

    ``query_id`` is unique within its dataset (a question's text is not an id). ``date`` is the day it is asked, "" if
    the benchmark gives none. ``scored`` is False for questions the paper leaves out (LoCoMo category 5, abstention).
    """

    query_id: str
    trace_id: str
    category: str
    question: str
    gold_answers: tuple[str, ...]
    date: str = ""
    scored: bool = True


@dataclass(frozen=True, slots=True)
class Trace:
    """One conversation, document set or trajectory batch, with the queries asked of it."""

    trace_id: str
    dataset: str
    split: str
    sessions: tuple[Session, ...]
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """One contiguous piece of a trace, in order of reading from 0."""

    trace_id: str
    index: int
    text: str


# --- what is remembered ------------------------------------------------------------------------------------------


class Action(StrEnum):
    """Action types of skills and of what an executor does."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    NOOP = "noop"


@dataclass(frozen=True, slots=True)
class MemoryAction:
    """One action of an executor's reply. ``index`` is the 0-based place in the list of memories it was shown."""

    action: Action
    text: str = ""
    index: int | None = None


class ActionStatus(StrEnum):
    """What became of one piece of an executor's reply. All but ``APPLIED`` are rejections with their reason."""

    APPLIED = "applied"
    NOT_ALLOWED = "not_allowed"  # an action type that none of the chosen skills has
    BAD_INDEX = "bad_index"  # missing, not a number, or not in the list shown
    EMPTY_TEXT = "empty_text"
    TOO_LONG = "too_long"
    TOO_MANY = "too_many"  # more actions than one reply may hold
    DUPLICATE = "duplicate"  # the same index twice, or an UPDATE beside a DELETE of the same index
    UNKNOWN_ACTION = "unknown_action"
    CUT = "cut"  # the last action of a reply that the token limit ended: it may be half of one


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a memory item, or a change of one, comes from."""

    trace_id: str
    span_index: int
    skills: tuple[str, ...]
    step: int


@dataclass(frozen=True, slots=True)
class MemoryVersion:
    """One entry of an item's history: what was done to it, what it then said, and by whom."""

    action: Action
    text: str
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """A short text that the executor wrote. ``history`` ends with the version that is current."""

    item_id: str
    text: str
    history: tuple[MemoryVersion, ...]


class Retrieved(NamedTuple):
    """A memory item found for a query, with its cosine similarity."""

    item: MemoryItem
    score: float


# --- what is learned from ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SkillSelection:
    """The controller's ordered top-K for one span."""

    skills: tuple[int, ...]  # indices into the bank in name order, ordered as drawn
    log_prob: float
    value: float
    exploration_bonus: float = 0.0  # by which the logits of new skills were raised (exploration); PPO applies the same


@dataclass(frozen=True, slots=True)
class ExecutorResult:
    """What one executor call did to the memory bank."""

    applied: tuple[MemoryAction, ...]
    rejected: dict[ActionStatus, int]
    unreadable: bool = False  # the reply could not be read even when asked again
    cut: bool = False  # the token limit ended the reply
    asked: bool = True  # False: only noop was chosen in an evaluation, which needs no call

    @property
    def attempted(self) -> int:
        return len(self.applied) + sum(self.rejected.values())


@dataclass(frozen=True, slots=True)
class Step:
    """One span read: state, choice, what it did, and its reward (filled in when the episode has ended)."""

    state: Vector  # (2D,): e(span) and the fused embedding of what was retrieved
    selection: SkillSelection
    execution: ExecutorResult
    process_reward: float
    reward: float = 0.0


class EnvStep(NamedTuple):
    """One step in a text game: the command played, what the game said, and whether the reply was a valid command.

    ``valid`` is False where ``look`` was played because the model's reply was no admissible command.
    """

    command: str
    observation: str
    valid: bool


@dataclass(frozen=True, slots=True)
class EnvTrajectory:
    """One try at a text game, from its first observation to the end or the step limit."""

    opening: str
    steps: tuple[EnvStep, ...]
    won: bool

    @property
    def invalid(self) -> int:
        return sum(not move.valid for move in self.steps)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """A query answered and scored. ``error`` says why there is no score; such a query never counts as a 0.

    Of a task in a text game ``f1`` is 1.0 for success and 0.0 for failure, and ``played`` is how it went.
    """

    query: Query
    prediction: str
    retrieved: tuple[Retrieved, ...]
    f1: float | None
    judge: float | None = None
    error: str = ""
    trajectory: EnvTrajectory | None = None


RetrieveFn = Callable[[Query], Awaitable[Sequence[Retrieved]]]
"""What a memory is to whoever asks it: a query's memories, nearest first."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One trace read once with the bank fixed, and the queries asked of the memory it left."""

    trace_id: str
    steps: tuple[Step, ...]
    results: tuple[QueryResult, ...]
    reward: float
    memories: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals over language model calls."""

    calls: int = 0
    cached_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    by_role: dict[str, int] = field(default_factory=dict)
