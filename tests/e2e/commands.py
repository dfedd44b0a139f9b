"""Commands that run while a test does something to them, and are gone on with."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from memskill_cli.testing.server import MockLLMServer

from ..conftest import Done, Home

SHORT = ["--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "2", "--no-evolve", "--concurrency", "2"]
FOREVER = 600.0


@dataclass(frozen=True)
class Command:
    """A command that runs, in a session of its own, so that all it starts can be found."""

    process: subprocess.Popen[str]
    told: Path

    @property
    def err(self) -> str:
        return self.told.read_text()

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for a state of affairs, however busy the machine is."""
        deadline = time.monotonic() + 120
        while not happened():
            assert self.process.poll() is None, self.err
            assert time.monotonic() < deadline, self.err
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        return self.process.wait(60)

    def family(self) -> list[int]:
        """The processes of its session that live."""
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _session(entry) == self.process.pid]


def _session(process: Path) -> int:
    """The session of a process that lives, else 0."""
    try:
        state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return 0
    return 0 if state in "ZX" else int(session)


@contextmanager
def running(home: Home, *arguments: str, **environ: str) -> Iterator[Command]:
    told = home.path / "told.txt"
    with told.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "memskill_cli", *arguments],
            cwd=home.path,
            env=home.environ(**environ),
            stdout=subprocess.DEVNULL,
            stderr=err,
            text=True,
            start_new_session=True,
        )
        command = Command(process, told)
        try:
            yield command
        finally:
            for pid in command.family():
                os.kill(pid, signal.SIGKILL)
            process.wait()


def slow_after(count: int, seconds: float) -> MockLLMServer:
    """The first ``count`` replies come at once, later ones after ``seconds``."""
    return MockLLMServer(latency=lambda request: seconds if request.index >= count else 0.0)


def go_on(home: Home, err: str) -> Done:
    """Type what the last line says."""
    line = err.splitlines()[-1]
    assert line.startswith("  → memskill ")
    return home.memskill(*shlex.split(line.removeprefix("  → memskill ").partition("   (")[0]))


def usage(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "usage.jsonl").read_text().splitlines()]
