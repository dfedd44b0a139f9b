"""The device of networks, and the number of threads of torch."""

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
    """Import torch and set one thread per operation, for the whole process: the last bits of a sum depend on it.

    OMP_WAIT_POLICY makes waiting threads sleep, because spinning threads slow a busy machine down tenfold. Torch reads
    it on import, so code that imports torch elsewhere must set it before, as the command line does. In the process of a
    library's caller it is left as it is.
    """
    if not process.is_borrowed():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    process.change(_THREADS, _everywhere)
    torch.set_num_threads(1)
    return torch


@contextmanager
def threads_restored() -> Iterator[None]:
    """Torch uses one thread in the block. Afterwards the calling thread has its previous number of threads.

    Torch keeps a number for each thread, and a default for threads that have not used it yet. The block must be inside
    :func:`memskill_cli.utils.process.borrowed`, which restores the default.
    """
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0
    if before:
        torch_in_one_thread()
    try:
        yield
    finally:
        if process.changed(_THREADS):
            sys.modules["torch"].set_num_threads(before or _default)
            _set_default(1)  # for calls that still run: the line above has changed the default


_default = 0


def _everywhere() -> process.Undo:
    global _default
    _default = before = sys.modules["torch"].get_num_threads()
    return lambda: _set_default(before)


def _set_default(number: int) -> None:
    """Set the default for threads that have not used torch yet. The calling thread keeps its number."""
    thread = threading.Thread(target=sys.modules["torch"].set_num_threads, args=(number,))
    thread.start()
    thread.join()


def resolve_device(device: str, setting: str) -> str:
    """``cpu`` or ``cuda`` for ``device``, the value of ``setting``. ``auto`` is CUDA if there is a CUDA device.

    Raises DeviceError for ``cuda`` without a CUDA device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device on this machine", hint=f"use the CPU with --set {setting}=auto")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
