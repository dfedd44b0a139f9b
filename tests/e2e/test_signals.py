"""Commands stopped by real signals: once in good order, twice at once; each says how to go on, and can."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from memskill_cli.runs.run_dir import RunDir
from memskill_cli.testing.server import ScriptedServer

from ..conftest import Done, Home, tiny

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


def slow_after(count: int, seconds: float) -> ScriptedServer:
    """The first ``count`` replies come at once, later ones after ``seconds``."""
    return ScriptedServer(latency=lambda request: seconds if request.index >= count else 0.0)


def go_on(home: Home, err: str) -> Done:
    """Type what the last line says."""
    line = err.splitlines()[-1]
    assert line.startswith("  → memskill ")
    return home.memskill(*shlex.split(line.removeprefix("  → memskill ").partition("   (")[0]))


def usage(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "usage.jsonl").read_text().splitlines()]


def test_the_first_signal_keeps_what_is_paid_for_and_the_command_it_shows_goes_on(prepared: Home) -> None:
    run = prepared.path / "my runs" / "s"
    with slow_after(6, 3.0) as server:
        flags = tiny(server.url, *SHORT, "--run", "s", "--runs-dir", "my runs", "--api-key", "never-to-be-shown-1")
        with running(prepared, "train", *flags) as command:
            command.until(lambda: len(server.requests) == 8)
            command.send(signal.SIGINT)
            assert command.end() == 130
            err = command.err
        assert len(server.requests) == 8, "nothing new was sent"
        assert [row["outcome"] for row in usage(run)] == ["ok"] * 8, "what was on its way came back and is written down"
        assert "stopping: what is under way is finished first" in err
        assert "waiting for 2 replies" in err
        assert "Traceback" not in err
        assert "never-to-be-shown-1" not in err
        told = [
            "error: interrupted",
            "  → memskill train --run s --resume --runs-dir 'my runs'   (and --api-key, not shown here)",
        ]
        assert err.splitlines()[-2:] == told
        assert RunDir(run).status == "paused"
        done = go_on(prepared, err)
        assert done.code == 0, done.err
        texts = [request.text for request in server.requests]
        assert len(set(texts)) == len(texts), "nothing is paid for twice"
    assert RunDir(run).status == "finished"


def test_the_second_signal_leaves_a_run_that_goes_on_and_no_process(prepared: Home) -> None:
    run = prepared.path / "runs" / "s"
    seconds = FOREVER
    with ScriptedServer(latency=lambda request: seconds if request.index >= 6 else 0.0) as server:
        with running(prepared, "train", *tiny(server.url, *SHORT, "--run", "s")) as command:
            command.until(lambda: len(server.requests) == 8)
            command.send(signal.SIGTERM)
            command.until(lambda: "waiting for 2 replies" in command.err)
            command.send(signal.SIGTERM)
            assert command.end() == 130
            err = command.err
            assert command.family() == []
        assert err.splitlines()[-2:] == ["error: interrupted", "  → memskill train --run s --resume"]
        assert "Traceback" not in err
        assert json.loads((run / "run.json").read_text())["status"] == "running", "nobody was left to write another"
        assert RunDir(run).status == "paused"
        seconds = 0.0
        done = go_on(prepared, err)
        assert done.code == 0, done.err
    assert RunDir(run).status == "finished"


@pytest.mark.slow
def test_an_evaluation_goes_on_as_it_was_typed(prepared: Home) -> None:
    with slow_after(3, 2.0) as server:
        flags = tiny(server.url, "--limit", "2", "--method", "rag", "--concurrency", "1")
        with running(prepared, "eval", *flags) as command:
            command.until(lambda: len(server.requests) == 4)
            command.send(signal.SIGTERM)
            assert command.end() == 130
            err = command.err
        assert "Traceback" not in err
        assert err.splitlines()[-2:] == ["error: interrupted", f"  → {shlex.join(['memskill', 'eval', *flags])}"]
        done = go_on(prepared, err)
        assert done.code == 0, done.err
        texts = [request.text for request in server.requests]
        assert len(set(texts)) == len(texts), "nothing is paid for twice"


def test_a_download_is_broken_off_at_once(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/locomo10.json"
        with running(home, "prepare", "--dataset", "locomo", MEMSKILL_LOCOMO_URL=url) as command:
            caller, _ = silent.accept()
            with caller:
                command.send(signal.SIGTERM)
                assert command.end() == 130
                assert command.err == "error: interrupted\n  → memskill prepare --dataset locomo\n"


STOPS_AT = """
import os, signal, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == os.environ["STOP_AT"]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("module", ["typer", "memskill_cli.cli.train", "torch", "litellm"])
def test_a_signal_during_imports_is_no_traceback(prepared: Home, module: str) -> None:
    (prepared.path / "sitecustomize.py").write_text(STOPS_AT)
    typed = [
        "train",
        "--run",
        "r",
        "--dataset",
        "locomo",
        "--model",
        "openai/rules",
        "--api-base",
        "http://127.0.0.1:9",
    ]
    done = prepared.memskill(*typed, PYTHONPATH=str(prepared.path), STOP_AT=module)
    assert done.code == 130
    assert done.err.splitlines()[-2] == "error: interrupted"
    assert "Traceback" not in done.err
    assert "Aborted" not in done.err
    line = done.err.splitlines()[-1]
    assert line in (f"  → {shlex.join(['memskill', *typed])}", "  → memskill train --run r --resume")
    assert (line.endswith("--resume")) == (prepared.path / "runs" / "r" / "run.json").exists()


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("alfworld") is None, reason="needs the extra alfworld")
@pytest.mark.timeout(300)
def test_no_game_process_outlives_its_command(home: Home) -> None:
    """Whether it is stopped in good order, at once, or killed."""
    done = home.memskill("prepare", "--dataset", "alfworld", "--sample", "--quiet")
    assert done.code == 0, done.err
    models = ["--model", "openai/rules", "--encoder", "hashing", "--retriever", "hashing", "--method", "no-memory"]
    for ways in ([signal.SIGINT], [signal.SIGINT, signal.SIGTERM], [signal.SIGKILL]):
        with slow_after(0, FOREVER if len(ways) == 2 else 3.0) as server:
            flags = ["--dataset", "alfworld", *models, "--api-base", server.url, "--set", "alfworld.workers=2"]
            with running(home, "eval", *flags, "--runs-dir", f"runs-{len(ways)}") as command:
                command.until(lambda: len(server.requests) >= 2)
                assert len(command.family()) == 3, "two workers"
                for count, number in enumerate(ways):
                    command.send(number)
                    if count + 1 < len(ways):
                        command.until(lambda: "waiting for" in command.err)
                assert command.end() == (-signal.SIGKILL if signal.SIGKILL in ways else 130)
                deadline = time.monotonic() + 20
                while (left := command.family()) and time.monotonic() < deadline:
                    time.sleep(0.02)
                assert left == []
