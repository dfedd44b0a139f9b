"""The output of commands: results, notices, progress and errors.

Results go to stdout: as rich text, or with ``--json`` as one JSON document with the same content. Everything else goes
to stderr; with ``--quiet`` that is only warnings and errors. Text from a model or a file is passed through
:func:`escape_markup` first, so that terminal escape codes and rich markup in it are shown and have no effect.
"""

from __future__ import annotations

import codecs
import errno
import io
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.errors import BudgetExceededError, MemskillError, StoppedError, UsageError
from memskill_cli.utils import signals
from memskill_cli.utils.redaction import redact
from memskill_cli.utils.registry import plugin_frame
from memskill_cli.utils.resource_limits import limit_reached

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; notices go to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no notices.")]
Debug = Annotated[bool, typer.Option("--debug", envvar="MEMSKILL_DEBUG", help="Show the traceback of an error.")]

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
PLAIN_INTERVAL = 5.0
"""Seconds between progress lines when stderr is not a terminal."""
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def escape_markup(text: str) -> str:
    """``text`` with control characters made visible and rich markup escaped; newlines and tabs stay."""
    from rich.markup import escape

    shown = "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in text)
    body = shown.rstrip("\\")
    last = len(shown) - len(body)
    # rich reads "\\" as one backslash only before markup. Empty markup after the last ones makes the result certain.
    return escape(body) + ("\\\\" * last + "[none][/none]" if last else "")


def percent(value: float | None) -> str:
    """A score from 0 to 1, times 100 with two decimals, as papers print it: 38.78."""
    return "–" if value is None else f"{100 * value:.2f}"


Advance = Callable[..., None]
"""``advance(n=1, note="")``: n more are done; ``total=`` sets a new total."""


class Console:
    """The output of one command. Created by :func:`console`."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        from rich.console import Console as RichConsole

        self.json = json
        self.quiet = quiet
        self.resumable = False
        self._out: RichConsole = RichConsole(highlight=False, emoji=False)
        self._err: RichConsole = RichConsole(stderr=True, highlight=False, emoji=False)

    def set_resume_command(self, command: str) -> None:
        """Show ``command`` as the way to continue if this command ends early from now on."""
        self.resumable = True
        signals.set_resume_command(command)

    def notice(self, text: str) -> None:
        """Show information, except with ``--quiet``. ``text`` is plain text without markup."""
        if not self.quiet:
            self._err.print(f"[dim]·[/dim] {escape_markup(text)}", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Show a problem that the user should correct, also with ``--quiet``."""
        self._err.print(f"[yellow]warning:[/yellow] {escape_markup(text)}", soft_wrap=True)

    def result(self, data: Any, *human: RenderableType) -> None:
        """Print the result: ``data`` with ``--json``, otherwise the renderables in ``human``."""
        if self.json:
            print_json(data)
        else:
            for part in human:
                self._out.print(part)

    def next_command(self, command: str) -> None:
        """Suggest the next command, except with ``--json`` and ``--quiet``."""
        if not (self.json or self.quiet):
            self._err.print(f"[dim]next:[/dim] [bold]{escape_markup(command)}[/bold]", soft_wrap=True)

    @contextmanager
    def progress(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Advance]:
        """A bar on a terminal; elsewhere a line every few seconds; nothing with ``--quiet``."""
        if self.quiet:
            yield lambda n=1, note="", total=None: None
        elif self._err.is_terminal:
            yield from self._bar(title, total, unit)
        else:
            yield from self._lines(title, total, unit)

    def _bar(self, title: str, total: float | None, unit: str) -> Iterator[Advance]:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), count, TimeElapsedColumn())
        with Progress(
            *columns, TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"), console=self._err
        ) as bar:
            task = bar.add_task(escape_markup(title), total=total, note="")

            def advance(n: float = 1, note: str = "", total: float | None = None) -> None:
                bar.update(task, advance=n, total=total)
                if note:
                    bar.update(task, note=escape_markup(note))

            yield advance

    def _lines(self, title: str, total: float | None, unit: str) -> Iterator[Advance]:
        done, goal, last = 0.0, total, time.monotonic() - PLAIN_INTERVAL

        def advance(n: float = 1, note: str = "", total: float | None = None) -> None:
            nonlocal done, last, goal
            done, goal = done + n, total or goal
            now = time.monotonic()
            if now - last >= PLAIN_INTERVAL or (goal and done >= goal and n):
                last = now
                self._err.print(
                    escape_markup(f"{title} {done:g}" + (f"/{goal:g}" if goal else "") + f" {unit} {note}".rstrip())
                )

        yield advance


@contextmanager
def console(json: bool, quiet: bool, debug: bool) -> Iterator[Console]:
    """The output of a command. An error in the block becomes a line on stderr and an exit code."""
    out = Console(json=json, quiet=quiet)
    try:
        yield out
    except (typer.Exit, typer.Abort, SystemExit):  # rich raises SystemExit if the reader of stdout has closed the pipe
        raise
    except BaseException as error:
        if debug:
            # not as a traceback of rich, which breaks lines: a key in two parts would not be found and removed
            out._err.print(escape_markup(redact("".join(traceback.format_exception(error)))), soft_wrap=True)
        line, hint, code = explain(error)
        out._err.print(f"[bold red]error:[/bold red] {escape_markup(line)}", soft_wrap=True)
        next_steps = [step for step in (hint, signals.resume_command() if _can_continue(out, code) else "") if step]
        for step in next_steps:
            out._err.print(f"  [dim]→[/dim] {escape_markup(step)}", soft_wrap=True)
        if out.json:
            print_json(error_document(line, "; ".join(next_steps), code))
        raise typer.Exit(code) from None


def error_document(message: str, hint: str, code: int) -> dict[str, Any]:
    """What a command that fails prints with ``--json``. ``code`` is its exit code."""
    return {"error": {"message": message, "hint": hint, "code": code}}


def print_json(document: Any) -> None:
    """Write one JSON document to stdout."""
    import orjson

    option = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    text = orjson.dumps(document, option=option, default=str).decode()
    # JSON can escape any character, so nothing is lost in an encoding that lacks some
    sys.stdout.write(text if _is_utf8(sys.stdout) else _NOT_ASCII.sub(_escaped, text))
    sys.stdout.flush()


def accept_any_encoding() -> None:
    """Make stdout and stderr show ``?`` for a character that the terminal's encoding lacks, and not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _is_utf8(stream):
            stream.reconfigure(errors="replace")


def _is_utf8(stream: Any) -> bool:
    """Whether ``stream`` takes every character; True for one that has no encoding."""
    encoding = getattr(stream, "encoding", None)
    return not encoding or codecs.lookup(encoding).name.startswith("utf")


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _can_continue(out: Console, code: int) -> bool:
    """Whether the command can be continued: its training has started, or a signal or the budget stopped it."""
    return code in (StoppedError.exit_code, BudgetExceededError.exit_code) or (
        out.resumable and code != UsageError.exit_code
    )


def explain(error: BaseException) -> tuple[str, str, int]:
    """(line, hint, exit code) for the error that ended a command."""
    if isinstance(error, MemskillError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "", StoppedError.exit_code
    full = isinstance(error, OSError) and error.errno in FULL  # is told with the file's name
    if not full and (limit := limit_reached(error)):
        return limit.message, limit.hint, limit.exit_code
    if isinstance(error, OSError) and error.errno is not None and (explained := _explain_file_error(error)):
        return *explained, 1
    what = f"unexpected {type(error).__name__}: {error}"
    if place := plugin_frame(error):
        return f"{place} failed: {what}", "correct the plug-in, then run it again; --debug shows the traceback", 1
    return (
        what,
        "this is a defect of memskill; run it again with --debug to see the traceback",
        1,
    )


def _explain_file_error(error: OSError) -> tuple[str, str] | None:
    """(line, hint) for an error of the file system, which the user can correct; None for other errors."""
    if error.errno in FULL:
        where = f"{error.filename} could not be written" if error.filename else "a file could not be written"
        return f"the disk is full: {where}", "free some space, then run the command again; no complete file is lost"
    if error.errno in CLOSED:
        hint = "check its permissions, or choose another folder with --runs-dir, --data-dir or --cache-dir"
        return f"cannot write {error.filename or 'a file'}: {error.strerror}", hint
    if error.errno == errno.EIO or error.filename:
        return f"{error.filename or 'a file'}: {error.strerror}", "check the disk or the folder, then run it again"
    return None
