"""What others wrote is shown, never obeyed; numbers are written as people read them."""

from __future__ import annotations

import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from memskill_cli.reports import page


class Heard(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[tuple[str, str]] = set()
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add((tag, str(dict(attrs).get("class"))))

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(deadline=None)
@given(st.text())
def test_foreign_text_makes_no_element_and_loses_nothing(text: str) -> None:
    heard = Heard(str(page.neutralise(text)))
    assert heard.tags <= {("span", "esc")}
    assert heard.text == "".join(shown_as(c) for c in text)


def shown_as(c: str) -> str:
    """What a reader should see of a character: control, direction, private and unassigned ones as escapes."""
    kept = c in "\n\t\u200c\u200d" or (unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029")
    return c if kept else c.encode("unicode_escape").decode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a\\u202eb"),  # right-to-left override
        ("\u2066x\u2069", "\\u2066x\\u2069"),  # isolates
        ("\x1b[31m", "\\x1b[31m"),
        ("\x00\x08\x7f", "\\x00\\x08\\x7f"),
        ("\ufeff\u00ad", "\\ufeff\\xad"),
        ("line\nnext\ttab", "line\nnext\ttab"),
        ("👩\u200d👧 می\u200cخواهم", "👩\u200d👧 می\u200cخواهم"),
    ],
)
def test_control_and_direction_characters_are_shown(text: str, shown: str) -> None:
    assert page.visible(text) == shown


def test_a_long_text_says_how_much_is_left_out() -> None:
    assert Heard(str(page.neutralise("<b>" * 1000, 30))).text == "<b>" * 10 + " … 2,970 more characters"
    assert Heard(str(page.neutralise("short", 30))).text == "short"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "–"),
        (0.0, "$0.00"),
        (1234.5, "$1,234.50"),
        (0.25, "$0.250"),
        (0.00123, "$0.00123"),
        (2.2e-7, "$0.000000220"),
    ],
)
def test_money(value: float | None, told: str) -> None:
    assert page.money(value) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "–"), (45.2, "45 s"), (600.0, "10 min"), (7200.0, "2 h 0 min"), (12000.0, "3 h 20 min")],
)
def test_durations(seconds: float | None, told: str) -> None:
    assert page.duration(seconds) == told


def test_a_diff_has_kinds_and_an_end() -> None:
    rows = list(page.diff_rows(["@@ -1 +1 @@", "-old", "+new", " same", *["+x"] * 10], most=6))
    assert [kind for kind, _ in rows] == ["hunk", "minus", "plus", "same", "plus", "plus", "hunk"]
    assert rows[-1][1] == "… 8 more lines"


def test_a_fact_that_a_template_lacks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError):
        page.write(tmp_path / "report.html", "run.html.j2")
    assert not (tmp_path / "report.html").exists()
