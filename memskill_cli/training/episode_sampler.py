"""What an episode is: what is read, and what is asked of the memory it leaves.

Of a benchmark of conversations it is one trace and a sample of its questions; of ALFWorld, a batch of expert
trajectories and a batch of tasks to be played. Everything follows from (seed, outer, inner, episode).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from memskill_cli.config import Config
from memskill_cli.datasets.spans import cut
from memskill_cli.envs.alfworld.trajectories import Sizes, by_type, draw_pair, gathered, pack, scarce
from memskill_cli.errors import UsageError
from memskill_cli.scoring.token_f1 import sample_queries
from memskill_cli.types import Query, Span, Trace
from memskill_cli.utils.seeding import batch_of, seed_from


class Lesson(NamedTuple):
    """One episode's material."""

    spans: Sequence[Span]
    queries: Sequence[Query]


class Curriculum(Protocol):
    """Where a training's episodes come from."""

    def __len__(self) -> int:
        """How many traces there are to learn from."""
        ...

    def lesson(self, outer: int, inner: int, episode: int) -> Lesson:
        """The material of one episode, always the same for the same numbers."""
        ...


def curriculum_of(settings: Config, traces: Sequence[Trace], notice: Callable[[str], None]) -> Curriculum:
    """The curriculum of a run."""
    if settings.dataset == "alfworld":
        return Trajectories(settings, traces, notice)
    return Conversations(settings, traces)


def check_reward(settings: Config) -> None:
    """Raises UsageError for a reward that the benchmark doesn't have."""
    if settings.dataset == "alfworld" and settings.reward.kind != "f1":
        raise UsageError("ALFWorld's reward is the success rate; there is nothing to judge", hint="--reward f1")


class Conversations:
    """Traces in batches that walk through all of them, each with a stratified sample of its queries."""

    def __init__(self, settings: Config, traces: Sequence[Trace]) -> None:
        self._settings, self._traces = settings, traces
        self._spans: dict[int, list[Span]] = {}

    def __len__(self) -> int:
        return len(self._traces)

    def lesson(self, outer: int, inner: int, episode: int) -> Lesson:
        settings, how = self._settings, self._settings.train
        batch = batch_of(how.batch_size, len(self._traces), outer * how.inner_epochs + inner, settings.seed)
        trace = self._traces[batch[episode]]
        drawn = (settings.seed, trace.trace_id, outer, inner)
        return Lesson(
            self._spans_of(batch[episode], trace), sample_queries(trace.queries, settings.reward.query_ratio, drawn)
        )

    def _spans_of(self, number: int, trace: Trace) -> list[Span]:
        """The spans of a trace, cut once."""
        if number not in self._spans:
            how = self._settings.train
            self._spans[number] = cut(
                trace,
                how.span_mode,
                chunk_size=how.chunk_size,
                chunk_overlap=how.chunk_overlap,
                max_spans=how.max_spans,
            )
        return self._spans[number]


class Trajectories:
    """ALFWorld's pairs: Batch A is read, Batch B is played."""

    def __init__(self, settings: Config, traces: Sequence[Trace], notice: Callable[[str], None]) -> None:
        self._settings, how = settings, settings.alfworld
        self._games = by_type(traces)
        self._sizes = Sizes((how.trajectories_min, how.trajectories_max), (how.tasks_min, how.tasks_max), how.same_type)
        if few := scarce(self._games, self._sizes):
            told = ", ".join(f"{kind} {count}" for kind, count in few.items())
            notice(f"too few games for full batches, so episodes take what there is: {told}")

    def __len__(self) -> int:
        return sum(map(len, self._games.values()))

    def lesson(self, outer: int, inner: int, episode: int) -> Lesson:
        settings = self._settings
        rng = random.Random(seed_from(settings.seed, "pair", outer, inner, episode))  # noqa: S311 - not for secrets
        pair = draw_pair(self._games, self._sizes, rng)
        read = gathered(f"trajectories-{outer}-{inner}-{episode}", "train", pair.read)
        spans = pack(read, settings.train.chunk_size, settings.train.max_spans)
        return Lesson(spans, [query for game in pair.play for query in game.queries])
