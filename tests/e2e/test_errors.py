"""Errors a person can use: the right exit code, one clear line, what to type next, and nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from memskill_cli.config import load
from memskill_cli.datasets.prepared import load_manifest
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing.server import Fault, MockLLMServer, Request

from ..conftest import Done, Home, tiny

NOWHERE = "http://127.0.0.1:9"
SHORT = ["--run", "r", "--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "1", "--no-evolve"]
AT_ONCE = ["--set", "models.retries=0"]


def complaint(done: Done, code: int = 1) -> str:
    """The error and what to do, after checking that there is one of it and nothing for programmers."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    lines = done.err.splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    steps = lines[place + 1 :]
    assert 1 <= len(steps) <= 2, "one line, and one of what to do; of a training that has begun, how it goes on"
    assert all(step.startswith("  → ") for step in steps)
    return "\n".join(lines[place:])


def status(home: Home, run: str = "r") -> str:
    return str(json.loads((home.path / "runs" / run / "run.json").read_text())["status"])


def test_not_prepared_and_no_network(home: Home) -> None:
    train, evaluate = (
        home.memskill(command, "--dataset", "locomo", MEMSKILL_LOCOMO_URL=f"{NOWHERE}/locomo10.json")
        for command in ("train", "eval")
    )
    for done in (train, evaluate):
        told = complaint(done)
        assert "locomo is not prepared, and preparing it failed" in told
        assert NOWHERE in told
        assert "memskill prepare --dataset locomo --source FILE" in told
        assert "--sample" in told
    assert not (home.path / "runs").exists(), "no run was begun"


def test_a_wrong_key(prepared: Home) -> None:
    with MockLLMServer(keys={"the-right-key"}) as server:
        told = complaint(prepared.memskill("train", *tiny(server.url, *SHORT), "--api-key", "a-wrong-key"))
        assert "every key for role executor was refused (openai#1)" in told
        assert "--api-key" in told
        assert status(prepared) == "paused"


def test_a_model_that_the_server_does_not_know(prepared: Home) -> None:
    with MockLLMServer(faults=lambda request: Fault.unknown_model("The model rulez does not exist.")) as server:
        flags = tiny(server.url, *SHORT, "--model", "openai/rulez")
        trained, unserved = prepared.together(
            ["train", *flags], ["eval", *tiny("", "--model", "nobodys-model", "--runs-dir", "other")]
        )
        assert len(server.requests) == 1, "what no retry can help is not retried"
    told = complaint(trained)
    assert f"unknown model openai/rulez at {server.url}: The model rulez does not exist." in told
    assert "--model" in told
    assert "unknown provider for the model nobodys-model" in complaint(unserved)


def test_a_server_that_is_down(prepared: Home) -> None:
    flags = tiny(f"{NOWHERE}/v1", *AT_ONCE)
    trained, evaluated = prepared.together(["train", *flags, *SHORT], ["eval", *flags, "--runs-dir", "other"])
    told = complaint(trained)
    assert f"no reply from openai/rules at {NOWHERE}/v1" in told
    assert told.splitlines()[-1] == "  → memskill train --run r --resume"
    assert status(prepared) == "paused"
    told = complaint(evaluated)
    assert "none of 11 queries got an answer" in told
    assert f"{NOWHERE}/v1" in told
    (results,) = prepared.path.glob("other/untrained/evals/*/results.jsonl")
    assert all(json.loads(line)["error"].startswith("memory: ") for line in results.read_text().splitlines())


@pytest.mark.slow
def test_a_server_that_breaks_down_loses_nothing(prepared: Home) -> None:
    def breaks(request: Request) -> Fault | None:
        return Fault.server_error() if 10 <= request.index < down else None

    down = 10_000
    with MockLLMServer(faults=breaks) as server:
        flags = tiny(server.url, *SHORT, *AT_ONCE, "--concurrency", "1")
        told = complaint(prepared.memskill("train", *flags))
        assert "--resume" in told
        down, asked = 0, server.requests
        done = prepared.memskill("train", "--resume", "--run", "r", "--quiet")
        assert done.code == 0, done.err
        answered = {request.text for request in asked[:10]}
        assert not answered & {request.text for request in server.requests[len(asked) :]}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KB; only root can have one."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_and_room_on_it_is_enough_to_go_on(prepared: Home, small_disk: Path) -> None:
    with MockLLMServer() as server:
        flags = [*tiny(server.url, *SHORT), "--runs-dir", str(small_disk)]
        told = complaint(prepared.memskill("train", *flags))
        assert "full" in told.lower() or "no space left" in told.lower()
        assert "room" in told or "space" in told
        asked = len(server.requests)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        done = prepared.memskill("train", "--resume", "--run", "r", "--runs-dir", str(small_disk), "--quiet")
        assert done.code == 0, done.err
        texts = [request.text for request in server.requests]
        assert not set(texts[:asked]) & set(texts[asked:]), "replies were kept, on a disk that has room"


def test_a_run_in_use_is_refused_with_the_pid(prepared: Home) -> None:
    settings = load(overrides={"encoders.state": "hashing", "encoders.retrieval": "hashing"})
    digest = load_manifest("locomo", prepared.path / "data").digest
    run = RunDir.create(prepared.path / "runs", "r", settings, digest)
    stages.write(run.stages, stages.Stage(0, seed_bank(noop=False)))
    with run.lock():
        told = complaint(prepared.memskill("train", "--run", "r", "--resume", "--outer-epochs", "7", "--seed", "42"))
    assert f"run r is in use by process {os.getpid()}" in told
    assert f"kill {os.getpid()}" in told
    assert (run.settings(), run.manifest().status) == (settings, "new"), "a refused command changes nothing"


def test_typing_errors_are_met_with_the_nearest_name(prepared: Home) -> None:
    (prepared.path / "mine.toml").write_text("[train]\ninner_epoch = 3\n")
    (prepared.path / "broken.toml").write_text("[train\n")
    option, setting, file, broken, model, dataset, run = prepared.together(
        ["train", "--datset", "locomo"],
        ["train", "--set", "ppo.gama=0.5"],
        ["eval", "--config", "mine.toml"],
        ["eval", "--config", "broken.toml"],
        ["train", "--preset", "dem"],
        ["eval", "--dataset", "locmo"],
        ["eval", "--run", "nobody"],
    )
    assert option.code == 2
    assert "--datset" in option.err
    assert "--dataset" in option.err
    assert "did you mean ppo.gamma?" in complaint(setting, 2)
    told = complaint(file, 2)
    assert "mine.toml: no setting is called train.inner_epoch" in told
    assert "did you mean train.inner_epochs?" in told
    assert broken.code == 2
    assert "broken.toml: not TOML" in broken.err
    assert "line 1" in broken.err
    assert "did you mean demo?" in complaint(model, 2)
    assert "did you mean locomo?" in complaint(dataset, 2)
    assert "no run is called nobody" in complaint(run)


def test_a_traceback_is_shown_only_when_asked_for(prepared: Home) -> None:
    done = prepared.memskill("train", "--set", "ppo.gama=0.5", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert "error: command line: no setting is called ppo.gama" in done.err
