"""Which device networks run on."""

from __future__ import annotations

from memskill_cli.errors import DeviceError


def pick(device: str, setting: str) -> str:
    """``cpu`` or ``cuda``, for what a ``setting`` says: one of them, or ``auto``, which is CUDA if there is a device.

    DeviceError: there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device here", hint=f"--set {setting}=auto")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
