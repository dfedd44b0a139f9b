"""Whatever a model, a file or a person wrote is shown on a terminal and not obeyed; a log has one line an entry."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console as RichConsole
from rich.table import Table

from memskill_cli.cli.console import console, escape_markup
from memskill_cli.config import load
from memskill_cli.errors import RunError
from memskill_cli.runs.run_dir import RunDir

TRICKS = (
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b]8;;http://evil\x1b\\link", "\x1b]52;c;cm0=\x07", "\x9b2J", "\x90", "\r",
    "\x08", "\u202eevil", "\u2066", "\u200b", "\ufeff", "\u2028", "\x00", "[link=http://evil]x[/link]", "[/bold]",
    "[red]", "\\", "\\[", ":cat:", "[@click=app.bell]x[/]", "=1+1", "{key}", "%s",
)  # fmt: skip
WILD = st.lists(st.one_of(st.sampled_from(TRICKS), st.text(max_size=6)), max_size=8).map("".join)


def is_inert(shown: str) -> bool:
    """Nothing in it that a terminal would obey: no control, direction or invisible character but the line break."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t" for c in shown)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=WILD)
def test_every_sink_shows_and_obeys_nothing(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table()
    table.add_column(escape_markup(text))
    table.add_row(escape_markup(text))
    with pytest.raises(typer.Exit), console(json=False, quiet=False, debug=False) as out:  # noqa: PT012
        out.notice(text)
        out.warn(text)
        out.next_command(text)
        with out.progress(text, total=1) as advance:
            advance(note=text)
        out.result({}, f"[bold]{escape_markup(text)}[/bold]", table)
        raise RunError(text, hint=text)
    seen = capsys.readouterr()
    assert is_inert(seen.out + seen.err)


def test_a_word_between_colons_is_no_picture(capsys: pytest.CaptureFixture[str]) -> None:
    with console(json=False, quiet=False, debug=False) as out:
        out.notice("a :cat:")
        out.result({}, escape_markup("b :cat:"))
    assert capsys.readouterr() == ("b :cat:\n", "· a :cat:\n")


@settings(deadline=None)
@given(WILD, st.sampled_from(["{}", "[bold]{}[/bold]"]))
@example("\\", "[bold]{}[/bold]")
@example("\\\\", "[bold]{}[/bold]")
@example("\\\\\\", "{}")
@example("⺀\t", "{}")
@example("\\[\tx", "{}")
def test_what_is_shown_is_what_was_said(text: str, around: str) -> None:
    """Markup, emoji codes and backslashes come out as they went in (but for rich, which swallows one before a "[").

    How many spaces rich makes of a tab depends on the cells before it, of which a wide character takes two. With a tab
    stop at every cell a tab is one space anywhere.
    """
    plain = RichConsole(width=10_000, highlight=False, emoji=False, tab_size=1)
    with plain.capture() as captured:
        plain.print(around.format(escape_markup(text)), soft_wrap=True)
    wanted = "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in text)
    shown, wanted = (said.replace("\\[", "[") for said in (captured.get(), f"{wanted}\n".replace("\t", " ")))
    assert shown == wanted


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", "", ".", "..", "a\x00b", "a\nb", "\x1b[31m", "\u202e", "\ud800", "x" * 101, "é" * 51]
)
def test_a_runs_name_is_a_plain_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot name a run"):
        RunDir.create(tmp_path / "runs", name, load(), "data")
    assert not list(tmp_path.rglob("*"))


def test_an_entry_of_the_log_is_one_line(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "r", load(), "data")
    told: list[str] = []
    with pytest.raises(RunError), run.logged(told.append) as tell:  # noqa: PT012
        tell("one\n2026-01-01 1 forged\r\x1b[31m\u2028\x85")
        raise RunError("two\nforged")
    first, second = run.log.read_text().splitlines()
    assert first.endswith(r"one\n2026-01-01 1 forged\r\x1b[31m\u2028\x85")
    assert second.endswith(r"two\nforged")
