"""SVG building blocks of the charts: elements, scales, axes, and labels without overlaps.

Sizes are CSS pixels. Colours are classes of the style sheet, so that charts follow the light or dark scheme. Plotting
libraries draw fixed colours (matplotlib) or need scripts (plotly), which the page forbids.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from markupsafe import Markup, escape

from memskill_cli.reports.page import visible

WIDE = 880
"""Width of a chart on a screen; text in it is 13 px."""
HALF = 430
"""Width of one of two charts side by side."""
NARROW = 340
"""Width of the same chart on a phone."""
SMALL = 280
"""Width of one of the small multiples."""
WIDE_LETTERS = frozenset("mwMW@%&—…")
NARROW_LETTERS = frozenset("fijlrtI.,:;'|!()[]/- ")

LEAST = 0.01
"""Smallest range of an axis, relative to its values. Smaller differences are drawn as a flat line."""

TINY = 1e-12
"""Values below this count as 0."""

Draw = Callable[[int], Markup]
"""Draws a chart with the given width."""
Show = Callable[[float], str]
"""Formats a value for an axis."""


def tag(name: str, text: str = "", children: Iterable[Markup] = (), **attributes: object) -> Markup:
    """One element. Numbers are rounded to 0.1 pixel. ``text`` and attributes are escaped, control characters too.

    ``class_`` is written as ``class``, ``stroke_width`` as ``stroke-width``.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value)) for key, value in attributes.items()
    )
    body = escape(visible(text)) + Markup("").join(children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, body)


def picture(title: str, width: float, height: float, parts: Iterable[Markup]) -> Markup:
    """An SVG picture. Screen readers read ``title``, so it gives the result and not only the subject."""
    body = [tag("title", title), *parts]
    return tag("svg", children=body, viewBox=f"0 0 {width:g} {height:g}", role="img", style=f"max-width:{width:g}px")


def responsive(draw: Draw, wide: int = WIDE) -> Markup:
    """The chart in two widths, ``wide`` for a screen and narrow for a phone; the style sheet shows one of them."""
    return tag("div", children=[draw(wide)], class_="wide") + tag("div", children=[draw(NARROW)], class_="narrow")


@dataclass(frozen=True)
class Frame:
    """A plot area: maps data ranges to a rectangle."""

    x0: float
    x1: float
    y0: float
    y1: float
    left: float
    top: float
    width: float
    height: float

    def x(self, value: float) -> float:
        return self.left + (value - self.x0) / ((self.x1 - self.x0) or 1) * self.width

    def y(self, value: float) -> float:
        return self.top + (self.y1 - value) / ((self.y1 - self.y0) or 1) * self.height

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


def y_axis(frame: Frame, ticks: Sequence[float], show: Show | None = None) -> list[Markup]:
    """Grid lines with their values to the left; the default format has enough digits to distinguish the values."""
    parts = []
    show = show or distinct_format(ticks)
    for tick in ticks:
        y = frame.y(tick)
        parts.append(tag("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="zero" if tick == 0 else "grid"))
        parts.append(tag("text", show(tick), x=frame.left - 6, y=y + 4, class_="tick end"))
    return parts


def x_axis(frame: Frame, ticks: Sequence[float], name: str) -> list[Markup]:
    """Tick values below the plot, and the name of the axis."""
    parts = [tag("text", f"{tick:,.0f}", x=frame.x(tick), y=frame.bottom + 17, class_="tick middle") for tick in ticks]
    return [*parts, tag("text", name, x=frame.left + frame.width / 2, y=frame.bottom + 35, class_="tick middle")]


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from at or below ``low`` to at or above ``high``."""
    size = max(abs(low), abs(high))
    if size < TINY:
        low, high = 0.0, 1.0
    elif high - low < LEAST * size:
        low, high = (low + high - LEAST * size) / 2, (low + high + LEAST * size) / 2
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def whole_ticks(count: int, most: int) -> list[float]:
    """Ticks at some integers from 1 to ``count``, always with ``count``."""
    step = max(1, int(nice_ticks(0, count, most)[1]))
    inside = [float(i) for i in range(step, count + 1, step) if count - i >= step * 0.6]
    return [*inside, float(count)]


def plain(value: float) -> str:
    """A short form of a tick's value: 0.02, 1,500, 2e-05."""
    size = abs(value)
    if value == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        return f"{value:.2g}".replace("-", "\u2212", 1) if value < 0 else f"{value:.2g}"
    return f"{value:,.4g}".replace("-", "\u2212") if size < 1e4 else f"{value:,.0f}".replace("-", "\u2212")


def distinct_format(ticks: Sequence[float]) -> Show:
    """One number format for an axis: with the digits of its step, or with exponents."""
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits > 4:
        return plain
    return lambda value: f"{value:,.{digits}f}".replace("-", "\u2212")


def length(text: str) -> float:
    """Approximate width of ``text`` in pixels, in the widest common font."""
    return sum(_width(c) for c in text)


def _width(c: str) -> float:
    if unicodedata.east_asian_width(c) in "WF" or c in WIDE_LETTERS:
        return 13.0
    return 5.5 if c in NARROW_LETTERS else 9.5 if c.isupper() else 8.3


def fit(text: str, room: float) -> str:
    """``text`` truncated to about ``room`` pixels."""
    if length(text) <= room:
        return text
    ends = accumulate(map(_width, text), initial=length("…"))
    return text[: max(1, sum(end <= room for end in ends) - 1)] + "…"


def margin(ticks: Sequence[float], show: Show | None) -> float:
    """Width of the left margin for the values of :func:`y_axis`."""
    return max(44.0, 10 + max(map(length, map(show or distinct_format(ticks), ticks))))


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the ``wanted`` ones, in the same order, at least ``gap`` apart.

    They are between ``low`` and ``high`` if they fit.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(wanted[i], placed[-1] + gap if placed else low))
    ceiling = high
    for at in reversed(range(len(placed))):
        placed[at] = min(placed[at], ceiling)
        ceiling = placed[at] - gap
    result = [0.0] * len(wanted)
    for position, i in zip(placed, order, strict=True):
        result[i] = position
    return result


def path(points: Iterable[tuple[float, float]], *, closed: bool = False) -> str:
    """The ``d`` attribute of a path through ``points``."""
    found = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f"M{found}{'Z' if closed else ''}" if found else ""


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else visible(str(value))
