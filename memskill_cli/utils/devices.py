"""Which device networks run on, and in how many threads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memskill_cli.errors import DeviceError
from memskill_cli.utils import process

_THREADS = "torch threads"


def torch_in_one_thread() -> Any:
    """Torch, with one thread inside an operation (of the whole process: the last bits of a sum depend on it).

    Waiting threads must sleep: spinning ones slow a busy machine down tenfold. Torch reads that when it is imported:
    who imports it elsewhere has to have said so before (as the command does). In the process of a caller that is not
    ours to say.
    """
    if not process.is_borrowed():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    process.change(_THREADS, _everywhere)
    torch.set_num_threads(1)
    return torch


@contextmanager
def threads_restored() -> Iterator[None]:
    """Torch works with one thread in the block; afterwards the calling thread has the number that it had before.

    Torch keeps one number for each thread, and one for threads that have not used it yet. The block stands inside
    :func:`memskill_cli.utils.process.borrowed`, which restores the second one.
    """
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0
    if before:
        torch_in_one_thread()
    try:
        yield
    finally:
        if process.changed(_THREADS):
            sys.modules["torch"].set_num_threads(before or _default)
            _set_default(1)  # for calls that still run: the line above has changed it


_default = 0


def _everywhere() -> process.Undo:
    global _default
    _default = before = sys.modules["torch"].get_num_threads()
    return lambda: _set_default(before)


def _set_default(number: int) -> None:
    """Set the number of threads that have not used torch yet; that of the calling thread stays."""
    thread = threading.Thread(target=sys.modules["torch"].set_num_threads, args=(number,))
    thread.start()
    thread.join()


def resolve_device(device: str, setting: str) -> str:
    """``cpu`` or ``cuda``, for what a ``setting`` says: one of them, or ``auto``, which is CUDA if there is a device.

    DeviceError: there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device here", hint=f"--set {setting}=auto")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
