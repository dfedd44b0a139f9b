"""Locks on folders. One process at a time owns a folder; its lock ends with the process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memskill_cli.errors import RunLockedError
from memskill_cli.utils import files

LOCK, OWNER = ".lock", ".owner"
_PATIENCE = 0.5
"""Seconds to wait: :func:`is_held` holds the lock for a moment, and a new owner needs time to write ``.owner``."""


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Own ``folder`` (``what`` in messages) during the block. Raises RunLockedError if another process owns it.

    The operating system removes the locks when the process ends, also after a crash. There are two: one on ``.lock``,
    which older versions use too, and one on the folder itself, which holds whatever happens to ``.lock`` and by
    whichever path the folder is reached. ``.owner`` has the owner's process id, for messages and for file systems
    that cannot lock a folder; the file of a process that has ended is ignored.

    If the folder is renamed or replaced during the block, writing into it raises RunError (:func:`files.owned`).
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=_PATIENCE, poll_interval=0.02)
    try:
        lock.acquire()
    except Timeout:
        raise _in_use(folder, what) from None
    try:
        with _folder_locked(folder, what), files.owned(folder):
            owner = folder / OWNER
            with files.run_on_exit(lambda: _remove_own(owner)):
                files.write_atomic(owner, f"{os.getpid()}\n")
                files.remove_stale(folder)
                yield
    finally:
        lock.release()


@contextmanager
def _folder_locked(folder: Path, what: str) -> Iterator[None]:
    """Lock the folder itself. Raises RunLockedError if a live process has this lock, or is the owner in ``.owner``."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise _in_use(folder, what) from None
                time.sleep(0.02)
            except OSError:  # this file system cannot lock folders
                if (pid := _owner(folder)) is not None and pid != os.getpid():
                    raise _in_use(folder, what) from None
                break
        yield
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether a live process owns ``folder``. Needs only the right to read the folder."""
    return any(map(_is_locked, (folder / LOCK, folder)))


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _remove_own(owner: Path) -> None:
    """Remove ``.owner`` if it is ours: the folder may have been replaced by one that another process owns."""
    with suppress(OSError):
        if owner.read_bytes().split()[:1] == [str(os.getpid()).encode()]:
            owner.unlink()


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
