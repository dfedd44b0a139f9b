"""Waits for the process that started a Ray cluster of its own to end, however it does, and takes down what is left.

Ray's servers end with it; their helpers may outlive them for minutes. Run as a program, so that it outlives its parent:
it knows by its standard input when that has ended. All that belongs to the cluster has :data:`MARK` in its environment.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "MEMSKILL_RAY_FOLDER"
_TRIES = 20


def clean(folder: str) -> None:
    """Kill every process of the cluster whose files are in ``folder``, then delete those."""
    for _ in range(_TRIES):
        left = marked(folder)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def marked(folder: str) -> list[int]:
    """Processes of the cluster, where the system tells of them (Linux)."""
    mark, found = f"{MARK}={folder}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not ours
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    clean(sys.argv[1])
