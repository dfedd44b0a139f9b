"""Stop the remaining processes of a local Ray cluster after its parent process has ended, even if it was killed.

Ray's servers end with the parent, but their helpers may run on for minutes. This is a separate program, so it outlives
the parent; its standard input closes when the parent ends or no longer needs the cluster. Processes of the cluster are
found by their open files: all write logs to the cluster's folder, which is new and used by nothing else.
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
    """Kill every process of the cluster in ``folder`` except the pid ``user``, then delete the folder."""
    for _ in range(_TRIES):
        remaining = [pid for pid in members(folder) if pid != user]
        for pid in remaining:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not remaining:
            break
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def members(folder: str) -> list[int]:
    """Pids of the cluster's processes, from /proc (Linux only; elsewhere empty)."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _has_open(entry, f"{folder}/")]


def _has_open(process: Path, folder: str) -> bool:
    try:
        for file in (process / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if os.readlink(file).startswith(folder):
                    return True
    except OSError:  # it has ended, or belongs to another user
        pass
    return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    sys.stdin.read()
    clean(sys.argv[1], parent)
