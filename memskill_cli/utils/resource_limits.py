"""Recognise errors that say that this machine, or a limit of the shell, gives no more memory, files or threads."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from memskill_cli.errors import ResourceLimitError

_DEPTH = 20
_MEMORY = (
    "out of memory: the machine, or a limit of this shell (ulimit -v), gives no more",
    "lower --concurrency or --batch-size, use a smaller encoder or model, or raise the limit",
)
_FILES = (
    "too many open files: the limit of this shell is reached",
    "raise it with: ulimit -n 4096; or lower --concurrency",
)
_THREADS = (
    "no more threads or processes can be started: the limit of this shell or container is reached",
    "raise it (ulimit -u), or lower --concurrency and env.workers",
)
_FULL = ("the disk is full", "free some space, then run the command again; no complete file is lost")
_BY_NUMBER = {
    errno.ENOMEM: _MEMORY,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
}
_BY_TEXT = (
    ("can't start new thread", _THREADS),
    ("can't allocate memory", _MEMORY),  # of torch
    ("Cannot allocate memory", _MEMORY),
    ("failed to map segment from shared object", _MEMORY),  # of the dynamic linker
    ("out of memory", _MEMORY),
    ("Too many open files", _FILES),
)


def limit_reached(error: BaseException) -> ResourceLimitError | None:
    """The limit that ``error``, or an error that caused it, comes from; None if it comes from something else."""
    for cause in _chain(error):
        if isinstance(cause, ResourceLimitError):
            return cause
        if found := _limit_of(cause):
            message, hint = found
            return ResourceLimitError(message, hint=hint)
    return None


def _limit_of(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, OSError) and error.errno in _BY_NUMBER:
        return _BY_NUMBER[error.errno]
    if isinstance(error, RuntimeError | OSError | ImportError):
        return next((limit for text, limit in _BY_TEXT if text in str(error)), None)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_DEPTH):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
