"""The drawings of a run: how the controller learned, which skills it chose, and what was done to memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from memskill_cli.reports import charts, downsampling, page, svg
from memskill_cli.reports.charts import Boundary
from memskill_cli.reports.downsampling import Bucket, Rows
from memskill_cli.reports.run_files import Row, inner, number
from memskill_cli.skills.stages import JUDGED_SHARE, Stage

SMALL = (
    ("policy_loss", "policy loss", ""),
    ("value_loss", "value loss", ""),
    ("entropy", "entropy of the choice", "nats"),
    ("approx_kl", "approximate KL", "nats"),
    ("clipfrac", "clipped share", ""),
    ("explained_variance", "explained variance", ""),
)
"""The small multiples: name in ``metrics.jsonl``, title, unit."""


@dataclass(frozen=True)
class Drawings:
    """The drawings of the learning; None where nothing was measured."""

    reward: Markup | None = None
    small: tuple[tuple[str, str, Markup], ...] = ()
    usage: Markup | None = None
    actions: Markup | None = None
    memories: Markup | None = None
    thinned: int = 1


def drawn(rows: Rows, known: Sequence[Stage], settings: Row) -> Drawings:
    """Everything there is to draw of a run's metrics."""
    if not rows:
        return Drawings()
    found = downsampling.buckets(rows)
    target = number(inner(settings, "ppo"), "target_kl")
    share = number(inner(settings, "designer"), "judged_share") or JUDGED_SHARE
    return Drawings(
        reward=svg.responsive(partial(_reward, found, _boundaries(rows, known, share))),
        small=tuple(
            (title, unit, _small(found, name, title, target if name == "approx_kl" else None))
            for name, title, unit in SMALL
        ),
        usage=_usage(found),
        actions=_actions(found),
        memories=_memories(found),
        thinned=downsampling.thinned(found),
    )


def _boundaries(rows: Rows, stages: Sequence[Stage], share: float) -> list[Boundary]:
    """Where each stage begins and ends, with the reward it was judged by."""
    known = {stage.number: stage for stage in stages}
    found: list[Boundary] = []
    for at, row in enumerate(rows, 1):
        if at == 1 or downsampling.stage_of(row) != downsampling.stage_of(rows[at - 2]):
            found.append(Boundary(str(downsampling.stage_of(row)), at, at))
        stage = known.get(downsampling.stage_of(row))
        first = found[-1].first
        level = stage.reward if stage else None
        found[-1] = Boundary(found[-1].label, first, at, level, math.ceil((at - first + 1) * share))
    return found


def _reward(found: Sequence[Bucket], bounds: Sequence[Boundary], width: int) -> Markup:
    line = downsampling.points(found, "episode_reward_mean", "episode_reward_std")
    known = [point.value for point in line if point.value is not None]
    title = "Mean episode reward by inner epoch"
    if known:
        title += f": {page.score(known[0])} at first, {page.score(known[-1])} at last, {page.score(max(known))} at most"
    return charts.curve(title, line, width, show=lambda value: f"{100 * value:g}", stages=bounds)


def _small(found: Sequence[Bucket], name: str, title: str, target: float | None) -> Markup:
    line = downsampling.points(found, name)
    known = [point.value for point in line if point.value is not None]
    said = (
        f"{title}: {svg.plain(known[0])} at first, {svg.plain(known[-1])} at last" if known else f"{title}: no values"
    )
    reference = (target, "stops early") if target is not None and known and target < 3 * max(known) else None
    return charts.curve(said, line, svg.SMALL, height=170, reference=reference)


def _usage(found: Sequence[Bucket]) -> Markup | None:
    layers = downsampling.shares(found, "skill_usage")
    if not layers:
        return None
    spans = [(bucket.first, bucket.last) for bucket in found]
    told = ", ".join(f"{layer.label} {100 * layer.values[-1]:.0f} %" for layer in layers)
    title = f"Share of each skill in the controller's choices; at last {told}"
    return svg.responsive(partial(charts.stack, title, spans, layers, show=lambda v: f"{100 * v:.0f} %", full=1.0))


def _actions(found: Sequence[Bucket]) -> Markup | None:
    layers = downsampling.per_step(found, "actions")
    if not layers:
        return None
    spans = [(bucket.first, bucket.last) for bucket in found]
    told = ", ".join(f"{layer.label} {layer.values[-1]:.2f}" for layer in layers)
    title = f"Memory actions for each span read; at last {told}"
    return svg.responsive(
        partial(charts.stack, title, spans, layers, show=lambda v: f"{v:.2f}".removesuffix(".00"), height=230)
    )


def _memories(found: Sequence[Bucket]) -> Markup | None:
    line = downsampling.points(found, "memories_mean")
    known = [point.value for point in line if point.value is not None]
    if not known:
        return None
    title = f"Memories at the end of an episode: {known[0]:,.0f} at first, {known[-1]:,.0f} at last"
    return svg.responsive(lambda width: charts.curve(title, line, width, height=200))
