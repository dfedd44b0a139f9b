"""Stop on signals: Ctrl-C (SIGINT), a scheduler (SIGTERM), a closed terminal (SIGHUP).

While the coroutine of a command runs (:func:`run`), the first signal stops it in order: no new calls are sent, replies
to open calls are awaited and recorded, an update or a checkpoint is completed. A second signal, or one while no
coroutine runs (imports, downloads, reports), ends the process at once. That is safe: all files are complete at any
time, or the next command repairs them.

The handlers are Python's, not those of an event loop, so that a second signal works while the loop is blocked. They
raise no exceptions, because these would appear in arbitrary code, which may swallow them or print a traceback.
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
    """The state of the handlers. Signals belong to a process, so there is one instance."""

    resume_command = ""  # the command that continues the present work
    work: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
    notice: Callable[[str], None]
    asked = False  # the first signal has arrived
    code: int | None = None  # the exit code of a finished command

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
    """Set the command that continues the work. It is shown when the process is stopped."""
    _now.resume_command = command


def resume_command() -> str:
    return _now.resume_command


def run(work: Coroutine[Any, Any, T], notice: Callable[[str], None]) -> T:
    """Run the coroutine of a command in a new event loop and return its result.

    Raises StoppedError if it ended early because of a signal. ``notice`` is called when the signal arrives.
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
        why = "" if isinstance(error, asyncio.CancelledError) else f", and an error occurred: {error}"
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
    """Await the end of ``closing``, also if the first signal arrives in the meantime."""
    import asyncio

    task = asyncio.ensure_future(closing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def exit_process(code: int) -> None:
    """Set the exit code of the finished command. Later signals do not change it.

    After a signal the process ends here, without waiting for threads that still run (a download, a model).
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
    _now.notice("stopping: work in progress is finished first; a second signal stops at once")


def _end() -> NoReturn:
    if _now.code is None:
        cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # a progress bar may have hidden it
        with suppress(OSError):
            os.write(2, f"{cursor}error: interrupted\n  → {_now.resume_command}\n".encode(errors="replace"))
    os._exit(STOPPED if _now.code is None else _now.code)


def _leave_dead_terminals() -> None:
    """Send output for a closed terminal to the null device, so that writing is not an error."""
    for stream in (1, 2):
        try:
            os.get_terminal_size(stream)
        except OSError as error:  # a file or a pipe: ENOTTY
            if error.errno == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
