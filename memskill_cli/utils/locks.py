"""Locks on folders. One process at a time owns a folder; its lock ends with the process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memskill_cli.errors import RunLockedError
from memskill_cli.utils import files

LOCK, OWNER = ".lock", ".owner"
_PATIENCE = 0.5
"""Seconds to wait: :func:`is_held` holds the lock for a moment, and a new owner needs time to write ``.owner``."""


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Own ``folder`` (``what`` in messages) during the block. Raises RunLockedError if another process owns it.

    The operating system removes the lock when the process ends, also after a crash. ``.owner`` has the owner's process
    id, only for messages; the file of a process that has ended is ignored.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=_PATIENCE, poll_interval=0.02)
    try:
        lock.acquire()
    except Timeout:
        raise _in_use(folder, what) from None
    owner = folder / OWNER
    try:
        with files.run_on_exit(lambda: owner.unlink(missing_ok=True)):
            files.write_atomic(owner, f"{os.getpid()}\n")
            files.remove_stale(folder)
            yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a live process owns ``folder``. Needs only the right to read the folder."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _in_use(folder: Path, what: str) -> RunLockedError:
    if (pid := _owner(folder)) is None:
        return RunLockedError(f"{what} is in use by another process", hint="wait until it ends")
    return RunLockedError(f"{what} is in use by process {pid}", hint=f"wait until it ends, or stop it with: kill {pid}")


def _owner(folder: Path) -> int | None:
    """The process id in ``.owner``, if this process exists."""
    try:
        pid = int((folder / OWNER).read_bytes())
    except (OSError, ValueError):
        return None
    return pid if pid > 0 and _lives(pid) else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # it belongs to another user
    except (ProcessLookupError, OverflowError):
        return False
    return True
