"""Which spans are read and which queries are asked in each training episode.

On a dataset of questions an episode has one trace and a sample of its questions. On a dataset of tasks it has a batch
of expert trajectories and a batch of tasks to play. All draws depend only on (seed, outer, inner, episode). For an
algorithm that compares episodes of one trace, the episodes of a group have the same draws. At the start of a run, a
curriculum (``curriculum.py``) may shorten what is read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from memskill_cli.config import Config
from memskill_cli.datasets.registry import get
from memskill_cli.envs.trajectories import (
    Sizes,
    by_type,
    draw_pair,
    merge_trajectories,
    undersized_types,
)
from memskill_cli.errors import UsageError
from memskill_cli.rollout.kinds import kind_of
from memskill_cli.rollout.rewards import reward_of
from memskill_cli.training.algorithms import group_size
from memskill_cli.training.curriculum import Curriculum
from memskill_cli.training.query_sampling import sample_queries
from memskill_cli.types import Query, Span, Trace
from memskill_cli.utils.seeding import batch_indices, seed_from


class EpisodeSpec(NamedTuple):
    """The spans and the queries of one episode."""

    spans: Sequence[Span]
    queries: Sequence[Query]


class EpisodeSampler(Protocol):
    """Draws the episodes of a training."""

    def __len__(self) -> int:
        """The number of training traces."""
        ...

    def episode(self, outer: int, inner: int, episode: int) -> EpisodeSpec:
        """The spans and queries of one episode. The same numbers always give the same result."""
        ...


def make_sampler(settings: Config, traces: Sequence[Trace], notice: Callable[[str], None]) -> EpisodeSampler:
    """The sampler for the kind of queries that the run's dataset has. ``notice`` takes messages for the user."""
    return SAMPLERS[get(settings.dataset).kind](settings, traces, notice)


def check_reward(settings: Config) -> None:
    """Raises UsageError if the reward of ``settings`` cannot be used on their dataset."""
    name, kind, known = settings.dataset, settings.reward.kind, get(settings.dataset).rewards
    if known and kind not in known:
        raise UsageError(
            f"reward {kind} cannot be used on {name}; available: {', '.join(known)}", hint=f"--reward {known[0]}"
        )
    if reward_of(settings.reward).needs_judge and not kind_of(name).judged:
        raise UsageError(f"the reward on {name} is the success rate, which needs no judge", hint="--reward f1")


class QASampler:
    """Batches of traces that cover all traces in turn, each trace with a stratified sample of its queries."""

    def __init__(
        self, settings: Config, traces: Sequence[Trace], notice: Callable[[str], None] = lambda text: None
    ) -> None:
        self._settings, self._traces = settings, traces
        self._group_size = group_size(settings.train)
        self._curriculum = Curriculum(settings.train)
        self._spans: dict[int, list[Span]] = {}

    def __len__(self) -> int:
        return len(self._traces)

    def episode(self, outer: int, inner: int, episode: int) -> EpisodeSpec:
        settings, how = self._settings, self._settings.train
        groups = how.batch_size // self._group_size
        batch = batch_indices(groups, len(self._traces), outer * how.inner_epochs + inner, settings.seed)
        number = batch[episode // self._group_size]
        trace = self._traces[number]
        spans, queries = self._curriculum.select(outer, inner, self._spans_of(number, trace), trace.queries)
        drawn = (settings.seed, trace.trace_id, outer, inner)
        return EpisodeSpec(spans, sample_queries(queries, settings.reward.query_ratio, drawn))

    def _spans_of(self, number: int, trace: Trace) -> list[Span]:
        """The spans of a trace, computed once."""
        if number not in self._spans:
            self._spans[number] = kind_of(self._settings.dataset).spans(trace, self._settings.train)
        return self._spans[number]


class EnvSampler:
    """Pairs of batches of one task type: the trajectories of batch A are read, the tasks of batch B are played."""

    def __init__(self, settings: Config, traces: Sequence[Trace], notice: Callable[[str], None]) -> None:
        self._settings, how = settings, settings.env
        self._group_size = group_size(settings.train)
        self._curriculum = Curriculum(settings.train)
        self._games = by_type(traces)
        self._sizes = Sizes((how.trajectories_min, how.trajectories_max), (how.tasks_min, how.tasks_max), how.same_type)
        if few := undersized_types(self._games, self._sizes):
            told = ", ".join(f"{kind} {count}" for kind, count in few.items())
            notice(f"too few games for full batches, so some episodes are smaller; games by task type: {told}")

    def __len__(self) -> int:
        return sum(map(len, self._games.values()))

    def episode(self, outer: int, inner: int, episode: int) -> EpisodeSpec:
        settings, group = self._settings, episode // self._group_size
        rng = random.Random(seed_from(settings.seed, "pair", outer, inner, group))  # noqa: S311 - not for secrets
        pair = draw_pair(self._games, self._sizes, rng)
        read = merge_trajectories(f"trajectories-{outer}-{inner}-{group}", settings.dataset, "train", pair.read)
        spans = kind_of(settings.dataset).spans(read, settings.train)
        tasks = [query for game in pair.play for query in game.queries]
        return EpisodeSpec(*self._curriculum.select(outer, inner, spans, tasks))


SAMPLERS: Mapping[str, Callable[[Config, Sequence[Trace], Callable[[str], None]], EpisodeSampler]] = {
    "qa": QASampler,
    "env": EnvSampler,
}
"""Samplers by the kind of a dataset's queries."""
