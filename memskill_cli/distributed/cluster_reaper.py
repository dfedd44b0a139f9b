"""Waits for the process that started a Ray cluster of its own to end, however it does, and takes down what is left.

Ray's servers end with it; their helpers may outlive them for minutes. Run as a program, so that it outlives its parent:
it knows by its standard input when that has ended, or has no use for the cluster any more. What belongs to the cluster
is known by the files it has open: all of it writes logs in the cluster's folder, which is new and ours alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_TRIES = 20


def clean(folder: str, user: int) -> None:
    """Kill every process of the cluster whose files are in ``folder``, save its ``user``, then delete those."""
    for _ in range(_TRIES):
        left = [pid for pid in members(folder) if pid != user]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def members(folder: str) -> list[int]:
    """Processes of the cluster, where the system tells of them (Linux)."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _has_open(entry, f"{folder}/")]


def _has_open(process: Path, folder: str) -> bool:
    try:
        for file in (process / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if os.readlink(file).startswith(folder):
                    return True
    except OSError:  # it has ended, or is not ours
        pass
    return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    sys.stdin.read()
    clean(sys.argv[1], parent)
