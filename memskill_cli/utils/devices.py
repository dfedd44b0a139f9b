"""Which device networks run on, and in how many threads."""

from __future__ import annotations

import os
from typing import Any

from memskill_cli.errors import DeviceError


def torch_in_one_thread() -> Any:
    """Torch, with one thread inside an operation (of the whole process: the last bits of a sum depend on it).

    Waiting threads must sleep: spinning ones slow a busy machine down tenfold. Torch reads that when it is imported:
    who imports it elsewhere has to have said so before (as the command does).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(1)
    return torch


def pick(device: str, setting: str) -> str:
    """``cpu`` or ``cuda``, for what a ``setting`` says: one of them, or ``auto``, which is CUDA if there is a device.

    DeviceError: there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device here", hint=f"--set {setting}=auto")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
