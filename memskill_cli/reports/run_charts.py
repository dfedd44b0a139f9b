"""Charts of a run: rewards and PPO metrics, skill usage, and memory actions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from memskill_cli.reports import charts, downsampling, page, svg
from memskill_cli.reports.charts import StageBand
from memskill_cli.reports.downsampling import Bucket, Rows
from memskill_cli.reports.run_files import Row, get_dict, number
from memskill_cli.skills.stages import JUDGED_SHARE, Stage

SMALL = (
    ("policy_loss", "policy loss", ""),
    ("value_loss", "value loss", ""),
    ("entropy", "policy entropy", "nats"),
    ("approx_kl", "approximate KL", "nats"),
    ("clipfrac", "clip fraction", ""),
    ("explained_variance", "explained variance", ""),
)
"""The small multiples: name in ``metrics.jsonl``, title, unit."""


@dataclass(frozen=True)
class RunCharts:
    """The charts of a run; None for a chart without data."""

    reward: Markup | None = None
    small: tuple[tuple[str, str, Markup], ...] = ()
    usage: Markup | None = None
    actions: Markup | None = None
    memories: Markup | None = None
    thinned: int = 1


def draw_run_charts(rows: Rows, known: Sequence[Stage], settings: Row) -> RunCharts:
    """All charts of a run's metrics."""
    if not rows:
        return RunCharts()
    found = downsampling.buckets(rows)
    target = number(get_dict(settings, "ppo"), "target_kl")
    share = number(get_dict(settings, "designer"), "judged_share") or JUDGED_SHARE
    return RunCharts(
        reward=svg.responsive(partial(_reward, found, _stage_bands(rows, known, share))),
        small=tuple(
            (title, unit, _small(found, name, title, target if name == "approx_kl" else None))
            for name, title, unit in SMALL
        ),
        usage=_usage(found),
        actions=_actions(found),
        memories=_memories(found),
        thinned=downsampling.thinned(found),
    )


def _stage_bands(rows: Rows, stages: Sequence[Stage], share: float) -> list[StageBand]:
    """First and last inner epoch of each stage, with the stage reward."""
    known = {stage.number: stage for stage in stages}
    found: list[StageBand] = []
    for at, row in enumerate(rows, 1):
        if at == 1 or downsampling.stage_of(row) != downsampling.stage_of(rows[at - 2]):
            found.append(StageBand(str(downsampling.stage_of(row)), at, at))
        stage = known.get(downsampling.stage_of(row))
        first = found[-1].first
        level = stage.reward if stage else None
        found[-1] = StageBand(found[-1].label, first, at, level, math.ceil((at - first + 1) * share))
    return found


def _reward(found: Sequence[Bucket], bounds: Sequence[StageBand], width: int) -> Markup:
    line = downsampling.points(found, "episode_reward_mean", "episode_reward_std")
    known = [point.value for point in line if point.value is not None]
    title = "Mean episode reward by inner epoch"
    if known:
        title += f": {page.score(known[0])} first, {page.score(known[-1])} last, {page.score(max(known))} highest"
    return charts.curve(title, line, width, show=lambda value: f"{100 * value:g}", stages=bounds)


def _small(found: Sequence[Bucket], name: str, title: str, target: float | None) -> Markup:
    line = downsampling.points(found, name)
    known = [point.value for point in line if point.value is not None]
    values = f"{svg.plain(known[0])} first, {svg.plain(known[-1])} last" if known else "no values"
    reference = (target, "stops early") if target is not None and known and target < 3 * max(known) else None
    return charts.curve(f"{title}: {values}", line, svg.SMALL, height=170, reference=reference)


def _usage(found: Sequence[Bucket]) -> Markup | None:
    layers = downsampling.shares(found, "skill_usage")
    if not layers:
        return None
    spans = [(bucket.first, bucket.last) for bucket in found]
    last = ", ".join(f"{layer.label} {100 * layer.values[-1]:.0f} %" for layer in layers)
    title = f"Share of each skill in the controller's selections; last values: {last}"
    return svg.responsive(partial(charts.stack, title, spans, layers, show=lambda v: f"{100 * v:.0f} %", full=1.0))


def _actions(found: Sequence[Bucket]) -> Markup | None:
    layers = downsampling.per_step(found, "actions")
    if not layers:
        return None
    spans = [(bucket.first, bucket.last) for bucket in found]
    last = ", ".join(f"{layer.label} {layer.values[-1]:.2f}" for layer in layers)
    title = f"Memory actions per span; last values: {last}"
    return svg.responsive(
        partial(charts.stack, title, spans, layers, show=lambda v: f"{v:.2f}".removesuffix(".00"), height=230)
    )


def _memories(found: Sequence[Bucket]) -> Markup | None:
    line = downsampling.points(found, "memories_mean")
    known = [point.value for point in line if point.value is not None]
    if not known:
        return None
    title = f"Memories at the end of an episode: {known[0]:,.0f} first, {known[-1]:,.0f} last"
    return svg.responsive(lambda width: charts.curve(title, line, width, height=200))
