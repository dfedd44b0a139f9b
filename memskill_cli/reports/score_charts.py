"""Charts of an evaluation, each a function from numbers to inline SVG: means with intervals, histograms.

Axes start at zero. Labels are inside the charts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from memskill_cli.reports import svg
from memskill_cli.reports.svg import Frame, fit, nice_ticks, tag

ROW = 30
"""Height of a row in a dot-and-whisker chart."""


@dataclass(frozen=True)
class IntervalRow:
    """A mean with its interval; ``mark`` is a reference value. All values are from 0 to 1."""

    label: str
    value: float | None
    interval: tuple[float, float] | None
    mark: float | None = None
    strong: bool = False


def interval_chart(title: str, rows: Sequence[IntervalRow], width: int, *, mark: str = "") -> Markup:
    """A dot with its 95 % interval per row, on one axis from 0, and a diamond at the row's ``mark``.

    ``mark`` is the legend of the diamonds.
    """
    ends = [v for r in rows for v in (r.value, r.mark, *(r.interval or ())) if v is not None]
    ticks = nice_ticks(0, max(ends, default=0) or 1, 4)
    ticks = [tick for tick in ticks if tick <= 1]
    labels = min(max(map(_label_width, rows), default=0.0) + 14, width * 0.4)
    marked = bool(mark) and any(row.mark is not None for row in rows)
    frame = Frame(0, ticks[-1], 0, 1, labels, 8, width - labels - 64, ROW * len(rows))
    height = frame.bottom + (46 if marked else 24)
    parts = [
        part
        for tick in ticks
        for part in (
            tag("line", x1=frame.x(tick), x2=frame.x(tick), y1=8, y2=frame.bottom, class_="grid" if tick else "zero"),
            tag("text", f"{100 * tick:g}", x=frame.x(tick), y=frame.bottom + 17, class_="tick middle"),
        )
    ]
    for index, row in enumerate(rows):
        parts += _whisker(frame, row, 8 + ROW * (index + 0.5), labels)
    if marked:
        parts.append(_diamond(frame.left + 7, frame.bottom + 36))
        parts.append(tag("text", mark, x=frame.left + 18, y=frame.bottom + 40, class_="tick"))
    return svg.picture(title, width, height, parts)


def _whisker(frame: Frame, row: IntervalRow, y: float, labels: float) -> list[Markup]:
    strong = " strong" if row.strong else ""
    parts = [
        tag("text", fit(row.label, (labels - 12) / _weight(row)), x=labels - 10, y=y + 4, class_=f"label end{strong}")
    ]
    if row.interval:
        low, high = (frame.x(min(end, frame.x1)) for end in row.interval)
        parts.append(tag("line", x1=low, x2=high, y1=y, y2=y, class_="whisker"))
        parts += [tag("line", x1=x, x2=x, y1=y - 4, y2=y + 4, class_="whisker") for x in (low, high)]
    if row.mark is not None:
        parts.append(_diamond(frame.x(row.mark), y))
    if row.value is not None:
        parts.append(tag("circle", cx=frame.x(row.value), cy=y, r=5 if row.strong else 4, class_="dot"))
    text = "–" if row.value is None else f"{100 * row.value:.2f}"
    return [*parts, tag("text", text, x=frame.right + 58, y=y + 4, class_=f"label end{strong}")]


def _label_width(row: IntervalRow) -> float:
    return svg.length(row.label) * _weight(row)


def _weight(row: IntervalRow) -> float:
    """Width of the row's font relative to normal weight."""
    return 1.1 if row.strong else 1.0


def _diamond(x: float, y: float) -> Markup:
    points = [(x, y - 6), (x + 5, y), (x, y + 6), (x - 5, y)]
    return tag("path", d=svg.path(points, closed=True), class_="diamond")


def bars(title: str, values: Sequence[tuple[str, int]], width: int, *, name: str, height: int = 200) -> Markup:
    """Counts as columns, each with its number on top."""
    ticks = nice_ticks(0, max(4, *(count for _, count in values)), 3)
    left = svg.margin(ticks, None)
    frame = Frame(0, len(values), 0, ticks[-1], left, 18, width - left - 12, height - 62)
    parts = svg.y_axis(frame, ticks)
    crowded = max(svg.length(label) for label, _ in values) + 3 > frame.width / len(values)
    for index, (label, count) in enumerate(values):
        x, wide = frame.x(index + 0.08), frame.x(index + 0.92) - frame.x(index + 0.08)
        middle, top = x + wide / 2, frame.y(count)
        parts.append(tag("rect", x=x, y=top, width=wide, height=frame.bottom - top, class_="fill s0"))
        if count:
            parts.append(tag("text", f"{count:,}", x=middle, y=top - 4, class_="tick middle"))
        if not (crowded and index % 2):
            parts.append(tag("text", label, x=middle, y=frame.bottom + 17, class_="tick middle"))
    parts.append(tag("text", name, x=frame.left + frame.width / 2, y=frame.bottom + 35, class_="tick middle"))
    return svg.picture(title, width, height, parts)
