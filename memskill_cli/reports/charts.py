"""Charts of a run, each a function from numbers to inline SVG: curve, stacked areas, lineage of stages.

The y axis of stacked areas starts at zero; that of a curve may start elsewhere. Labels are inside the charts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from memskill_cli.reports import svg
from memskill_cli.reports.svg import Frame, Show, fit, nice_ticks, tag


@dataclass(frozen=True)
class Point:
    """A point of a curve: the mean over inner epochs ``first`` to ``last`` (from 1), and the range of the values."""

    first: int
    last: int
    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def at(self) -> float:
        return (self.first + self.last) / 2


@dataclass(frozen=True)
class StageBand:
    """A stage: inner epochs ``first`` to ``last`` (from 1). ``level``: its reward, measured over its last ``tail``."""

    label: str
    first: int
    last: int
    level: float | None = None
    tail: int = 1


@dataclass(frozen=True)
class Layer:
    """One layer of a stack: a value per bucket."""

    label: str
    values: Sequence[float]
    tone: str


@dataclass(frozen=True)
class Node:
    """One stage in the lineage. ``outcome`` is best, kept, no gain, rolled back or not judged."""

    number: int
    parent: int | None
    reward: float | None
    outcome: str


def curve(
    title: str,
    points: Sequence[Point],
    width: int,
    *,
    height: int = 260,
    show: Show | None = None,
    stages: Sequence[StageBand] = (),
    reference: tuple[float, str] | None = None,
) -> Markup:
    """A line over inner epochs with a shaded range, and the stages as bands above."""
    known = [point for point in points if point.value is not None]
    ends = [v for p in known for v in (p.value, p.low, p.high) if v is not None]
    ends += [stage.level for stage in stages if stage.level is not None]
    ends += [reference[0]] if reference else []
    ends += [0.0] if len(known) == 1 else []  # a single value has no range
    ticks = nice_ticks(min(ends, default=0), max(ends, default=1), 5 if height > 200 else 3)
    left, top = svg.margin(ticks, show), 26.0 if stages else 20.0
    last = points[-1].last if points else 1
    frame = Frame(0.5, last + 0.5, ticks[0], ticks[-1], left, top, width - left - 20, height - top - 44)
    parts = [*svg.y_axis(frame, ticks, show), *_bands(frame, stages)]
    parts += svg.x_axis(frame, svg.whole_ticks(last, 8 if width > 500 else 4), "inner epoch")
    if reference:
        parts += _level(frame, *reference)
    return svg.picture(title, width, height, [*parts, *_line(frame, known)])


def _line(frame: Frame, known: Sequence[Point]) -> list[Markup]:
    shade = [(frame.x(p.at), frame.y(p.high)) for p in known if p.high is not None]
    shade += [(frame.x(p.at), frame.y(p.low)) for p in reversed(known) if p.low is not None]
    parts = [tag("path", d=svg.path(shade, closed=True), class_="shade")] if len(shade) > 2 else []
    if len(known) == 1 and known[0].low is not None and known[0].high is not None:
        x = frame.x(known[0].at)
        parts.append(tag("line", x1=x, x2=x, y1=frame.y(known[0].low), y2=frame.y(known[0].high), class_="whisker"))
    parts.append(tag("path", d=svg.path((frame.x(p.at), frame.y(p.value or 0)) for p in known), class_="line"))
    if len(known) <= 40:
        parts += [tag("circle", cx=frame.x(p.at), cy=frame.y(p.value or 0), r=3, class_="dot") for p in known]
    return parts


def _bands(frame: Frame, stages: Sequence[StageBand]) -> list[Markup]:
    """The stages: borders, labels above (of every n-th stage if there are many), and stage rewards as lines."""
    parts = []
    room = frame.width / max(1, len(stages))
    names = [f"stage {stage.label}" if room > 70 else stage.label for stage in stages]
    every = 1 + int((max(map(svg.length, names), default=0) + 4) // room)
    for index, stage in enumerate(stages):
        x0, x1 = frame.x(stage.first - 0.5), frame.x(stage.last + 0.5)
        if index:
            parts.append(tag("line", x1=x0, x2=x0, y1=frame.top - 18, y2=frame.bottom, class_="border"))
        if index % every == 0:
            parts.append(tag("text", names[index], x=(x0 + x1) / 2, y=frame.top - 9, class_="tick middle"))
        if stage.level is not None:
            y, start = frame.y(stage.level), frame.x(stage.last - stage.tail + 0.5)
            parts.append(tag("line", x1=start, x2=x1, y1=y, y2=y, class_="level"))
    return parts


def _level(frame: Frame, value: float, label: str) -> list[Markup]:
    y = frame.y(value)
    line = tag("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="reference")
    return [line, tag("text", label, x=frame.right, y=y - 4, class_="tick end")]


def stack(
    title: str,
    spans: Sequence[tuple[int, int]],
    layers: Sequence[Layer],
    width: int,
    *,
    show: Show,
    full: float | None = None,
    height: int = 280,
) -> Markup:
    """Stacked columns, one per bucket of inner epochs, with ``layers`` from zero upwards. ``full``: end of the axis.

    On a screen the labels are at the right end of the layers; on a phone there is a legend.
    """
    totals = [sum(column) for column in zip(*(layer.values for layer in layers), strict=True)]
    ticks = nice_ticks(0, full or max(totals, default=1) or 1, 5)
    if full:
        ticks = [tick for tick in ticks if tick <= full * 1.001]
    left = svg.margin(ticks, show)
    gutter = 240 if width > 500 else 20
    last = spans[-1][1] if spans else 1
    frame = Frame(0.5, last + 0.5, 0, ticks[-1], left, 12, width - left - gutter, height - 56)
    parts = svg.x_axis(frame, svg.whole_ticks(last, 8 if width > 500 else 4), "inner epoch")
    edge = "" if len(spans) <= 60 else " edgeless"
    floor = [0.0] * len(spans)
    middles = []
    for layer in layers:
        roof = [a + b for a, b in zip(floor, layer.values, strict=True)]
        outline = _steps(frame, spans, roof) + _steps(frame, spans, floor)[::-1]
        parts.append(tag("path", d=svg.path(outline, closed=True), class_=f"fill {layer.tone}{edge}"))
        middles.append(frame.y((floor[-1] + roof[-1]) / 2))
        floor = roof
    parts += svg.y_axis(frame, ticks, show)
    if width > 500:
        return svg.picture(title, width, height, [*parts, *_names(frame, layers, middles, show, gutter)])
    return svg.picture(title, width, height, parts) + legend(layers)


def _names(frame: Frame, layers: Sequence[Layer], middles: Sequence[float], show: Show, room: float) -> list[Markup]:
    label_ys = svg.spread(middles, 17, frame.top + 6, frame.bottom - 4)
    parts = []
    for layer, label_y, middle in zip(layers, label_ys, middles, strict=True):
        x, value = frame.right, show(layer.values[-1])
        connector = f"M{x + 1:.1f} {middle:.1f}L{x + 10:.1f} {label_y:.1f}"
        parts.append(tag("path", d=connector, class_="thread"))
        parts.append(tag("rect", x=x + 13, y=label_y - 5, width=10, height=10, class_=f"fill {layer.tone}"))
        label = f"{fit(layer.label, room - 36 - svg.length(value))} {value}"
        parts.append(tag("text", label, x=x + 28, y=label_y + 4, class_="label"))
    return parts


def legend(layers: Sequence[Layer]) -> Markup:
    items = [
        tag("li", children=[tag("span", class_=f"key {layer.tone}"), tag("span", layer.label, class_="word")])
        for layer in reversed(layers)
    ]
    return tag("ul", children=items, class_="legend")


def _steps(frame: Frame, spans: Sequence[tuple[int, int]], values: Sequence[float]) -> list[tuple[float, float]]:
    return [
        (frame.x(edge), frame.y(value))
        for (first, last), value in zip(spans, values, strict=True)
        for edge in (first - 0.5, last + 0.5)
    ]


def lineage(title: str, nodes: Sequence[Node], width: int, *, show: Show, height: int = 240) -> Markup:
    """Stages by number and reward, each connected to its parent stage."""
    rewards = [node.reward for node in nodes if node.reward is not None]
    ticks = nice_ticks(min(rewards, default=0), max(rewards, default=1), 4)
    numbers = [node.number for node in nodes] or [0]
    left = svg.margin(ticks, show)
    frame = Frame(min(numbers) - 0.5, max(numbers) + 0.5, ticks[0], ticks[-1], left, 14, width - left - 20, height - 58)
    parts = svg.y_axis(frame, ticks, show)
    every = 1 + len(numbers) // (24 if width > 500 else 9)
    parts += svg.x_axis(frame, [float(n) for n in numbers[::every]], "stage")
    places = {node.number: (frame.x(node.number), _height(frame, node)) for node in nodes}
    for node in nodes:
        if node.parent in places and node.parent is not None:
            ends = [places[node.parent], places[node.number]]
            parts.append(tag("path", d=svg.path(ends), class_=f"tie {node.outcome.replace(' ', '-')}"))
    for node in nodes:
        x, y = places[node.number]
        label = f"stage {node.number}: {'no reward yet' if node.reward is None else show(node.reward)}, {node.outcome}"
        size = 7 if node.outcome == "best" else 5
        kind = f"node {node.outcome.replace(' ', '-')}"
        parts.append(tag("circle", children=[tag("title", label)], cx=x, cy=y, r=size, class_=kind))
    return svg.picture(title, width, height, parts)


def _height(frame: Frame, node: Node) -> float:
    return frame.y(node.reward) if node.reward is not None else frame.bottom
