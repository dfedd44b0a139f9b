"""The records that the packages exchange. Terms are those of MemSkill (arXiv 2602.02474).

Records are frozen and have no behaviour except properties of their own fields. This module imports no other module of
memskill.
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
"""Which encoder of a dual-encoder pair: the one for queries, or the one for the texts that are searched."""
Split = Literal["train", "val", "test"]
SpanMode = Literal["turn", "turn-pair", "full-session", "fixed-length", "paragraph"]


# --- input ------------------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """One utterance or one document. ``text`` includes the caption of a shared picture."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Session:
    """Consecutive turns with one date. ``date`` has the format of the benchmark; "" if there is none."""

    label: str
    date: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """A question about a trace, which is answered from the memory of that trace.

    ``query_id`` is unique within its dataset; the text of a question is not. ``date`` is the date of the question, ""
    if it has none. ``scored`` is False for questions that the paper excludes (LoCoMo category 5, abstention).
    """

    query_id: str
    trace_id: str
    category: str
    question: str
    gold_answers: tuple[str, ...]
    date: str = ""
    scored: bool = True
    evidence: tuple[str, ...] = ()
    """What an answer follows from, if the data name it: ``ref`` of sources, or labels of whole sessions."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One conversation, document set or trajectory batch, with the queries about it."""

    trace_id: str
    dataset: str
    split: str
    sessions: tuple[Session, ...]
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A piece of a trace as it was said: one turn, or a part of a long one.

    ``ref`` is ``<session label>:<turn, from 0>``, with ``.<part, from 0>`` behind it for a part of a turn.
    """

    ref: str
    date: str
    speaker: str
    text: str

    @property
    def session(self) -> str:
        """The label of its session."""
        return self.ref.rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Span:
    """One contiguous piece of a trace. ``index`` counts from 0 in reading order."""

    trace_id: str
    index: int
    text: str
    sources: tuple[Source, ...] = ()
    """The turns that the span has a part of, in their order."""
    date: str = ""
    """The date of its session."""


# --- memory ------------------------------------------------------------------------------------------


class Action(StrEnum):
    """Action types of skills and of the executor's actions."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    NOOP = "noop"


@dataclass(frozen=True, slots=True)
class MemoryAction:
    """One action of an executor's reply. ``index`` is the 0-based position in the prompt's list of memories."""

    action: Action
    text: str = ""
    index: int | None = None


class ActionStatus(StrEnum):
    """The outcome of one action of an executor's reply: ``APPLIED``, or the reason why it was rejected or changed."""

    APPLIED = "applied"
    NOT_ALLOWED = "not_allowed"  # no selected skill has this action type
    BAD_INDEX = "bad_index"  # missing, not a number, or outside the list in the prompt
    EMPTY_TEXT = "empty_text"
    TOO_LONG = "too_long"
    TOO_MANY = "too_many"  # the reply has more actions than are allowed
    DUPLICATE = "duplicate"  # the same index twice, or both an UPDATE and a DELETE of one index
    UNKNOWN_ACTION = "unknown_action"
    CUT = "cut"  # the last action of a reply that reached the token limit: it may be incomplete
    # what memory.protect does (memskill_cli/agent/protection.py); the first two are rejected
    UNSUPPORTED_DELETE = "unsupported_delete"  # the span is not about the memory
    TOO_MANY_DELETES = "too_many_deletes"
    UPDATE_TO_INSERT = "update_to_insert"  # the new text is about something else: applied as an INSERT
    SEEN_AGAIN = "seen_again"  # an INSERT of what a memory says already: applied, without a second item


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of a memory item, or of a change to it."""

    trace_id: str
    span_index: int
    skills: tuple[str, ...]
    step: int
    date: str = ""
    """The date of the span's session."""
    speakers: tuple[str, ...] = ()
    """Who speaks in the span."""


@dataclass(frozen=True, slots=True)
class MemoryVersion:
    """One entry of an item's history: the action, the text after it, and the origin."""

    action: Action
    text: str
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """A short text that the executor wrote. The last entry of ``history`` is the current version."""

    item_id: str
    text: str
    history: tuple[MemoryVersion, ...]

    @property
    def described(self) -> str:
        """The text behind the date and the speakers of the span from which it was written.

        If it was seen again in later spans (versions with the same text), the first one counts.
        """
        if not self.history:
            return self.text
        origin = self.history[-1].provenance
        for version in reversed(self.history):
            if version.text != self.text:
                break
            origin = version.provenance
        about = "; ".join(filter(None, (origin.date, ", ".join(origin.speakers))))
        return f"[{about}] {self.text}" if about else self.text


class Retrieved(NamedTuple):
    """A memory item found for a query, with its cosine similarity."""

    item: MemoryItem
    score: float


# --- episodes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SkillSelection:
    """The skills that the controller selected for one span, in order."""

    skills: tuple[int, ...]  # indices into the bank sorted by name, in the order of drawing
    log_prob: float
    value: float
    exploration_bonus: float = 0.0  # added to the logits of new skills (exploration); PPO adds the same
    probabilities: tuple[float, ...] = ()  # softmax probability of each selected skill; () if no controller selected


class CallUsage(NamedTuple):
    """What one reply took, with the call before it if that reply could not be read.

    A cached reply has the tokens of the call that it came from, and 0 seconds.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """Wall-clock time, including waits and retries."""


class MemoryChange(NamedTuple):
    """An action as it was applied to a memory bank. ``item_id`` is "" for NOOP.

    ``text`` and ``before`` are the item's text after and before the action; "" where there is no item. Both are equal
    for an INSERT that repeats the item (``memory.protect``).
    """

    action: Action
    item_id: str = ""
    text: str = ""
    before: str = ""


@dataclass(frozen=True, slots=True)
class ExecutorResult:
    """The effect of one executor call on the memory bank."""

    applied: tuple[MemoryAction, ...]
    rejected: dict[ActionStatus, int]
    unreadable: bool = False  # the reply could not be parsed, also not the second one
    refused: str = ""  # why the model or its provider refused the prompt; then the span changes nothing
    cut: bool = False  # the reply reached the token limit
    asked: bool = True  # False: no call was made, since an evaluation selected only noop
    changes: tuple[MemoryChange, ...] = field(default=(), compare=False)  # the applied actions, in the same order
    usage: CallUsage = field(default=CallUsage(), compare=False)
    protected: dict[ActionStatus, int] = field(default_factory=dict)
    """Actions that ``memory.protect`` refused or changed, by rule; the refused ones are in ``rejected`` too."""

    @property
    def attempted(self) -> int:
        return len(self.applied) + sum(self.rejected.values())


class StepTrace(NamedTuple):
    """What ``steps.jsonl`` says about a step besides its execution."""

    trace_id: str
    span: int
    """The index of the span."""
    skills: tuple[tuple[str, Action], ...]
    """Names and action types of the selected skills, in the order of ``SkillSelection.skills``."""
    memories_before: int
    memories_after: int


@dataclass(frozen=True, slots=True)
class Step:
    """The reading of one span: state, selected skills, effect on the memory, and reward (set after the episode)."""

    state: Vector  # shape (2D,): embedding of the span, then the pooled embeddings of the retrieved memories
    selection: SkillSelection
    execution: ExecutorResult
    process_reward: float
    reward: float = 0.0
    trace: StepTrace | None = field(default=None, compare=False)


class EnvStep(NamedTuple):
    """One step in a text game: the command, the game's observation, and whether the model's reply was valid.

    ``valid`` is False if the reply was not an admissible command; then ``look`` was played instead.
    """

    command: str
    observation: str
    valid: bool


@dataclass(frozen=True, slots=True)
class EnvTrajectory:
    """One attempt at a text game, from its first observation to the end or the step limit."""

    opening: str
    steps: tuple[EnvStep, ...]
    won: bool

    @property
    def invalid(self) -> int:
        return sum(not move.valid for move in self.steps)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """A query with its answer and scores. ``error`` is the reason if there is no score; that never counts as a 0.

    For a task in a text game, ``f1`` is 1.0 for success and 0.0 for failure, and ``trajectory`` has the steps.
    """

    query: Query
    prediction: str
    retrieved: tuple[Retrieved, ...]
    f1: float | None
    judge: float | None = None
    error: str = ""
    trajectory: EnvTrajectory | None = None
    failure: str = ""
    """One of ``scoring.evidence.FAILURES``: where the evidence was lost if the answer is wrong; "" if unknown."""
    refused: bool = False
    """Whether ``error`` says that a model or its provider refused the prompt."""


RetrieveFn = Callable[[Query], Awaitable[Sequence[Retrieved]]]
"""Returns the memories for a query, the most similar first."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One trace, read once with a fixed skill bank, and the results of queries to the resulting memory."""

    trace_id: str
    steps: tuple[Step, ...]
    results: tuple[QueryResult, ...]
    reward: float
    memories: int = 0
    scored: bool = True
    """False if every query was refused by a model: the episode has no reward and trains nothing."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals over language model calls."""

    calls: int = 0
    cached_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    by_role: dict[str, int] = field(default_factory=dict)
