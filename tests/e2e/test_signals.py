"""Commands stopped by real signals: once in good order, twice at once; each says how to go on, and can."""

from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import socket
import time

import pytest

from memskill_cli.runs.run_dir import RunDir
from memskill_cli.testing.server import MockLLMServer

from ..conftest import Home, tiny
from .commands import FOREVER, SHORT, go_on, running, slow_after, usage


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
        assert "stopping: work in progress is finished first" in err
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
    with MockLLMServer(latency=lambda request: seconds if request.index >= 6 else 0.0) as server:
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
            flags = ["--dataset", "alfworld", *models, "--api-base", server.url, "--set", "env.workers=2"]
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
