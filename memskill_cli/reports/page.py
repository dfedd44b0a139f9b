"""Render a report to one HTML file: escaping, number formats, and the page template.

Text from models, datasets and users is never active: jinja escapes it, control and direction characters are shown as
escapes, and the content security policy of the page forbids scripts and requests.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from memskill_cli import __version__
from memskill_cli.utils import files

UNESCAPED = "\n\t\u200c\u200d"
"""Control and format characters that are not escaped: line breaks, tabs, and the joiners of emoji and Persian."""
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def write(path: Path, template: str, **facts: Any) -> Path:
    """Render ``template`` with ``facts`` and write it to ``path`` atomically; equal facts give equal bytes."""
    page = environment().get_template(template).render(version=__version__, style=style(), **facts)
    files.write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


@cache
def environment() -> Environment:
    env = Environment(
        loader=PackageLoader("memskill_cli.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "neutralise": neutralise,
        "score": score,
        "number": grouped,
        "money": money,
        "duration": duration,
        "diff_rows": diff_rows,
    }
    return env


@cache
def style() -> Markup:
    """The style sheet. It is marked as safe because it is a file of this package."""
    text = resources.files(__package__).joinpath("templates", "style.css").read_text("utf-8")
    return Markup(text)  # noqa: S704 - a file of this package


def visible(text: str) -> str:
    """``text`` with control, direction and unassigned characters as escapes, not as HTML."""
    return "".join(_escaped(c) for c in text)


def neutralise(text: object, limit: int = 0) -> Markup:
    """Untrusted ``text`` as inactive HTML; after ``limit`` characters (0: no limit) it is truncated, with a note."""
    whole = str(text)
    shown = whole[:limit] if limit and len(whole) > limit else whole
    if len(shown) == len(whole) and shown.replace("\n", "").replace("\t", "").isprintable():
        return escape(shown)  # the usual case; the rest takes 0.5 s for 1 MB
    runs = groupby(shown, _is_hidden)
    parts = Markup("").join(_as_span("".join(run)) if hidden else escape("".join(run)) for hidden, run in runs)
    if len(shown) < len(whole):
        parts += Markup(' <span class="cut">… {} more characters</span>').format(grouped(len(whole) - len(shown)))
    return parts


def _is_hidden(c: str) -> bool:
    return c not in UNESCAPED and unicodedata.category(c) in HIDDEN


def _escaped(c: str) -> str:
    return c.encode("unicode_escape").decode() if _is_hidden(c) else c


def _as_span(run: str) -> Markup:
    return Markup('<span class="esc">{}</span>').format(visible(run))


def diff_rows(lines: Iterable[str], most: int = 120) -> Iterator[tuple[str, str]]:
    """(kind, line) of a unified diff, kind plus, minus, hunk or same. After ``most`` lines a note gives the rest."""
    shown = list(lines)
    for line in shown[:most]:
        yield {"+": "plus", "-": "minus", "@": "hunk"}.get(line[:1], "same"), line
    if len(shown) > most:
        yield "hunk", f"… {len(shown) - most} more lines"


def score(value: float | None) -> str:
    """A score of 0 to 1, times 100: 38.78."""
    return "–" if value is None else f"{100 * value:.2f}"


def grouped(value: float | None, digits: int = 0) -> str:
    """12,345 or 12,345.6."""
    return "–" if value is None else f"{value:,.{digits}f}"


def money(value: float | None) -> str:
    """US dollars; amounts below 1 with three significant digits."""
    if value is None:
        return "–"
    digits = 2 if value >= 1 or value <= 0 else min(9, 2 - math.floor(math.log10(value)))
    return f"${value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """45 s, 12 min, 3 h 20 min."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
