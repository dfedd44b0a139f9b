"""Being stopped: by Ctrl-C, by a scheduler (SIGTERM), by a terminal that closes (SIGHUP).

While a command's coroutine runs (:func:`run`), the first signal lets what is under way come to its end: nothing new is
sent, replies on their way are waited for and written down, an update or a checkpoint completes. A second one, and any
that comes when no coroutine runs (imports, downloads, reports), ends the process at once. That is always safe: whatever
this program writes is whole at every instant, or is mended by whoever comes next.

The handlers are Python's, not an event loop's, so that the second works while something else holds the loop. They
raise nothing: an exception out of the blue is swallowed or shown as a traceback by whatever code it happens to meet.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from memskill_cli.errors import StoppedError

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = StoppedError.exit_code


class _State:
    """What the handler has to know. Signals belong to a process, so there is one of it."""

    resume_command = ""  # the command that goes on with what is being done
    work: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
    notice: Callable[[str], None]
    asked = False  # a first signal has come
    code: int | None = None  # the exit code of a command that is done

    def __init__(self) -> None:
        self.hold: list[Callable[[], None]] = []


_now = _State()


def install_handlers(resume_command: str) -> None:
    """Handle the signals, except those that are ignored (``nohup``). ``resume_command``: :func:`set_resume_command`."""
    _now.resume_command = resume_command
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _signalled)


def set_resume_command(command: str) -> None:
    """What to type to go on, told to whoever stops this process."""
    _now.resume_command = command


def resume_command() -> str:
    return _now.resume_command


def run(work: Coroutine[Any, Any, T], notice: Callable[[str], None]) -> T:
    """The result of a command's coroutine, in an event loop of its own.

    StoppedError if it ended early because of a signal. ``notice`` is told of the signal.
    """
    import asyncio

    async def whole() -> T:
        task = asyncio.current_task()
        assert task is not None
        _now.work = asyncio.get_running_loop(), task
        return await work

    _now.notice = notice
    try:
        return asyncio.run(whole())
    except (Exception, asyncio.CancelledError) as error:
        if not _now.asked:
            raise
        why = "" if isinstance(error, asyncio.CancelledError) else f"; meanwhile: {error}"
        raise StoppedError(f"interrupted{why}") from None
    finally:
        _now.work = None


@contextmanager
def on_first_signal(hold: Callable[[], None]) -> Iterator[None]:
    """``hold`` is called in the loop at the first signal, before the work is cancelled."""
    _now.hold.append(hold)
    try:
        yield
    finally:
        _now.hold.remove(hold)


async def finish_shielded(closing: Awaitable[None]) -> None:
    """Await ``closing`` to its end, though the first signal may come meanwhile."""
    import asyncio

    task = asyncio.ensure_future(closing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def exit_process(code: int) -> None:
    """The command is done, and ends with ``code`` whatever comes now.

    After a signal the process ends here: threads that are still at it (a download, a model) are not waited for.
    """
    _now.code = code
    if _now.asked:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        _end()


def _signalled(number: int, frame: object) -> None:
    _leave_dead_terminals()
    if _now.work is None or _now.asked:
        _end()
    _now.asked = True
    with suppress(RuntimeError):  # the loop is closed: the work is done
        _now.work[0].call_soon_threadsafe(_wind_down, _now.work[1])


def _wind_down(task: asyncio.Task[Any]) -> None:
    for hold in _now.hold:
        hold()
    task.cancel()
    _now.notice("stopping: what is under way is finished first; a second time stops at once")


def _end() -> NoReturn:
    if _now.code is None:
        cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # a progress bar may have hidden it
        with suppress(OSError):
            os.write(2, f"{cursor}error: interrupted\n  → {_now.resume_command}\n".encode(errors="replace"))
    os._exit(STOPPED if _now.code is None else _now.code)


def _leave_dead_terminals() -> None:
    """What is said to a terminal that has gone is said to nobody, and is no error."""
    for stream in (1, 2):
        try:
            os.get_terminal_size(stream)
        except OSError as error:  # a file or a pipe: ENOTTY
            if error.errno == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
