"""Who owns a folder: one process at a time, found out at once, and forgotten with the process that held it."""

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
"""Seconds to try for: a look at the lock (:func:`is_held`) takes it for a moment, and a new owner has to sign."""


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Own ``folder`` (``what`` in messages) while the block lasts; RunLockedError if another process does.

    The lock is the operating system's, so that of a process that died, however it did, is gone with it. ``.owner`` only
    tells others the owner's id; what a dead owner left there means nothing.
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
    """Whether a live process owns ``folder``. Asks no more of the folder than to be read."""
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
        return RunLockedError(f"{what} is in use by another process", hint="wait for it")
    return RunLockedError(f"{what} is in use by process {pid}", hint=f"wait for it, or stop it with: kill {pid}")


def _owner(folder: Path) -> int | None:
    """The id that the owner of ``folder`` left there, if such a process lives."""
    try:
        pid = int((folder / OWNER).read_bytes())
    except (OSError, ValueError):
        return None
    return pid if pid > 0 and _lives(pid) else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # somebody else's
    except (ProcessLookupError, OverflowError):
        return False
    return True
