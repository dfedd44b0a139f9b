"""What an episode is: what is read, and what is asked of the memory it leaves.

Of a dataset of questions it is one trace and a sample of its questions; of a dataset of tasks, a batch of expert
trajectories and a batch of tasks to be played. Everything follows from (seed, outer, inner, episode).
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
from memskill_cli.training.query_sampling import sample_queries
from memskill_cli.types import Query, Span, Trace
from memskill_cli.utils.seeding import batch_indices, seed_from


class EpisodeSpec(NamedTuple):
    """One episode's material."""

    spans: Sequence[Span]
    queries: Sequence[Query]


class EpisodeSampler(Protocol):
    """Where a training's episodes come from."""

    def __len__(self) -> int:
        """How many traces there are to learn from."""
        ...

    def episode(self, outer: int, inner: int, episode: int) -> EpisodeSpec:
        """The material of one episode, always the same for the same numbers."""
        ...


def make_sampler(settings: Config, traces: Sequence[Trace], notice: Callable[[str], None]) -> EpisodeSampler:
    """The sampler of a run, by the kind of its dataset's queries."""
    return SAMPLERS[get(settings.dataset).kind](settings, traces, notice)


def check_reward(settings: Config) -> None:
    """Raises UsageError for a reward that the dataset does not have."""
    name, kind, known = settings.dataset, settings.reward.kind, get(settings.dataset).rewards
    if known and kind not in known:
        raise UsageError(f"{name} has no reward {kind}, only {', '.join(known)}", hint=f"--reward {known[0]}")
    if reward_of(settings.reward).needs_judge and not kind_of(name).judged:
        raise UsageError(f"the reward of {name} is the success rate; there is nothing to judge", hint="--reward f1")


class QASampler:
    """Traces in batches that walk through all of them, each with a stratified sample of its queries."""

    def __init__(
        self, settings: Config, traces: Sequence[Trace], notice: Callable[[str], None] = lambda text: None
    ) -> None:
        self._settings, self._traces = settings, traces
        self._spans: dict[int, list[Span]] = {}

    def __len__(self) -> int:
        return len(self._traces)

    def episode(self, outer: int, inner: int, episode: int) -> EpisodeSpec:
        settings, how = self._settings, self._settings.train
        batch = batch_indices(how.batch_size, len(self._traces), outer * how.inner_epochs + inner, settings.seed)
        trace = self._traces[batch[episode]]
        drawn = (settings.seed, trace.trace_id, outer, inner)
        return EpisodeSpec(
            self._spans_of(batch[episode], trace), sample_queries(trace.queries, settings.reward.query_ratio, drawn)
        )

    def _spans_of(self, number: int, trace: Trace) -> list[Span]:
        """The spans of a trace, cut once."""
        if number not in self._spans:
            self._spans[number] = kind_of(self._settings.dataset).spans(trace, self._settings.train)
        return self._spans[number]


class EnvSampler:
    """Pairs of batches of one task type: Batch A is read, Batch B is played."""

    def __init__(self, settings: Config, traces: Sequence[Trace], notice: Callable[[str], None]) -> None:
        self._settings, how = settings, settings.alfworld
        self._games = by_type(traces)
        self._sizes = Sizes((how.trajectories_min, how.trajectories_max), (how.tasks_min, how.tasks_max), how.same_type)
        if few := undersized_types(self._games, self._sizes):
            told = ", ".join(f"{kind} {count}" for kind, count in few.items())
            notice(f"too few games for full batches, so episodes take what there is: {told}")

    def __len__(self) -> int:
        return sum(map(len, self._games.values()))

    def episode(self, outer: int, inner: int, episode: int) -> EpisodeSpec:
        settings = self._settings
        rng = random.Random(seed_from(settings.seed, "pair", outer, inner, episode))  # noqa: S311 - not for secrets
        pair = draw_pair(self._games, self._sizes, rng)
        read = merge_trajectories(f"trajectories-{outer}-{inner}-{episode}", settings.dataset, "train", pair.read)
        spans = kind_of(settings.dataset).spans(read, settings.train)
        return EpisodeSpec(spans, [query for game in pair.play for query in game.queries])


SAMPLERS: Mapping[str, Callable[[Config, Sequence[Trace], Callable[[str], None]], EpisodeSampler]] = {
    "qa": QASampler,
    "env": EnvSampler,
}
"""By the kind of a dataset's queries."""
