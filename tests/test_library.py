"""memskill as a library: its names and types, what its calls do, and that they do not change the caller's process."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memskill
import memskill_cli
from memskill_cli import (
    MemskillError,
    ModelError,
    RunDir,
    RunError,
    SkillBank,
    UsageError,
    evaluate,
    evaluate_async,
    prepare,
    train,
    train_async,
)
from memskill_cli.llm import import_litellm
from memskill_cli.testing import rules
from memskill_cli.testing.server import Fault, MockLLMServer, Request
from memskill_cli.utils import process

from .conftest import Home

ROOT = Path(__file__).parents[1]
KEY = "sk-caller-7Qm2xWfP9rTz4LkVb8NhYc3GdJs6Ae1U"
LENGTH: dict[str, Any] = {"outer_epochs": 1, "inner_epochs": 2, "batch_size": 2, "evolve": False}


@pytest.fixture
def place(prepared: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The working folder, with the sample prepared in it."""
    monkeypatch.chdir(prepared.path)
    monkeypatch.setenv("MEMSKILL_CACHE_DIR", str(prepared.path / "cache"))
    return prepared


@pytest.fixture
def server() -> Iterator[MockLLMServer]:
    with MockLLMServer() as running:
        yield running


def models(server: MockLLMServer, **more: Any) -> dict[str, Any]:
    names = {"model": "openai/rules", "api_base": server.url, "api_key": "none"}
    return {**names, "encoder": "hashing", "retriever": "hashing", **more}


def in_new_process(home: Home, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=home.path,
        env=home.environ(PYTHONPATH=paths, **environ),
        capture_output=True,
        text=True,
        timeout=280,
    )


# Names


def test_an_import_loads_nothing_heavy(home: Home) -> None:
    code = "import sys, memskill_cli, memskill; print(*sys.modules)"
    loaded = set(in_new_process(home, "-c", code).stdout.split())
    assert "memskill_cli" in loaded
    assert not loaded & {"torch", "litellm", "numpy", "typer", "rich", "orjson", "asyncio", "memskill_cli.errors"}


def test_every_public_name_is_there_and_type_checkers_are_told_the_same() -> None:
    tree = ast.parse((ROOT / "memskill_cli/__init__.py").read_text())
    typed = {
        alias.asname: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    public = set(memskill_cli.__all__) - {"__version__"}
    assert typed.keys() == public
    for name in public:
        found = getattr(memskill_cli, name)
        assert found is getattr(importlib.import_module(str(typed[name])), name)
        assert getattr(memskill, name) is found
    assert set(memskill_cli.__all__) <= set(dir(memskill_cli))
    assert set(memskill.__all__) == set(memskill_cli.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        memskill_cli.no_such_name  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        exec("from memskill import no_such_name")


def test_every_error_can_be_caught_by_its_name() -> None:
    errors = importlib.import_module("memskill_cli.errors")
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MemskillError)}
    assert kinds <= set(memskill_cli.__all__)


GOOD = """
import asyncio
from memskill_cli import RunDir, SkillBank, evaluate, evaluate_async, prepare, train, train_async

def told(text: str) -> None: ...

traces: int = prepare("locomo", sample=True).traces
run: RunDir = train("locomo", preset="demo", run="demo", settings={"ppo.learning_rate": 3e-4}, notice=told)
for summary in evaluate(run="demo", methods=["memskill", "rag"], limit=5, num_skills=3, api_key=["a", "b"]):
    score: float = summary["f1"]
names: tuple[str, ...] = SkillBank.load(run.skill_bank).names

async def both() -> list[dict[str, object]]:
    again: RunDir = await train_async(run=run.name, resume=True, outer_epochs=2, on_epoch=lambda row: print(row))
    return [*await evaluate_async(run=again.name)]

asyncio.run(both())
"""
BAD = """
import memskill

memskill.train("locomo", outer_epochs="two")
memskill.train("locomo", outer_epoch=2)
memskill.evaluate(limit=None)
memskill.prepare(sample=True)
number: int = memskill.train("locomo")
memskill.no_such_function()
"""


def test_the_public_functions_are_typed(tmp_path: Path) -> None:
    """mypy reports each line of BAD, and accepts GOOD in strict mode."""
    for name, text in (("good.py", GOOD), ("bad.py", BAD)):
        (tmp_path / name).write_text(text)
    options = ["--strict", "--follow-imports=silent", "--config-file", str(ROOT / "pyproject.toml")]
    command = [sys.executable, "-m", "mypy", *options, str(tmp_path / "good.py"), str(tmp_path / "bad.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    lines = [Path(line.partition(": error:")[0]).name for line in done.stdout.splitlines() if ": error:" in line]
    assert lines == [f"bad.py:{n}" for n in range(4, 10)], done.stdout


# What calls do


def test_the_readme_s_lines_work(place: Home, server: MockLLMServer) -> None:
    told: list[str] = []
    rows: list[dict[str, Any]] = []
    assert prepare("locomo", sample=True).dataset == "locomo"
    run = train("locomo", run="demo", **LENGTH, **models(server), notice=told.append, on_epoch=rows.append,
                settings={"ppo.learning_rate": 3e-4, "memory.num_memories": 7})  # fmt: skip
    assert isinstance(run, RunDir)
    assert run.status == "finished"
    assert [(row["outer"], row["inner"]) for row in rows] == [(0, 0), (0, 1)]
    assert any("inner epochs 0 to 2" in text for text in told)
    assert run.settings().ppo.learning_rate == 3e-4
    assert run.settings().memory.num_memories == 7
    assert set(SkillBank.load(run.skill_bank).names) >= {"insert", "update", "delete"}

    summaries = evaluate(run="demo", methods=["memskill", "rag"], limit=3, **models(server))
    assert [summary["method"] for summary in summaries] == ["memskill", "rag"]
    assert json.loads((Path(summaries[0]["folder"]) / "summary.json").read_text())["f1"] == summaries[0]["f1"]
    asked = len(server.requests)
    assert evaluate(run="demo", methods=["memskill", "rag"], limit=3, **models(server)) == summaries
    assert train(run="demo", resume=True, **models(server)).path == run.path
    assert len(server.requests) == asked, "nothing is asked twice"


def test_after_a_call_litellm_knows_no_more_models_than_before(place: Home, server: MockLLMServer) -> None:
    """A Router adds its models to litellm's price list, and litellm caches what it finds there."""
    prepare("locomo", sample=True)
    for run in ("first", "second"):
        train(run=run, **LENGTH, **models(server))
        with pytest.raises(Exception, match="isn't mapped"):
            import_litellm().get_model_info("openai/rules")


def test_a_call_trains_what_the_command_trains(place: Home, server: MockLLMServer) -> None:
    flags = ["--outer-epochs", "1", "--inner-epochs", "2", "--batch-size", "2", "--no-evolve"]
    keys = ["--model", "openai/rules", "--api-base", server.url, "--api-key", "none"]
    encoders = ["--encoder", "hashing", "--retriever", "hashing"]
    done = place.memskill("train", "--run", "typed", *flags, *keys, *encoders, "--cache-dir", "other-cache")
    assert done.code == 0, done.err
    train(run="called", **LENGTH, **models(server))
    files = ["config.toml", "checkpoints/000002/controller.safetensors", "skill_bank.json"]
    for file in files:
        assert Path("runs/called", file).read_bytes() == Path("runs/typed", file).read_bytes(), file


def test_an_error_of_a_callback_is_the_caller_s_and_the_run_goes_on_later(place: Home, server: MockLLMServer) -> None:
    def stop(row: dict[str, Any]) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        train(run="demo", **LENGTH, **models(server), on_epoch=stop)
    assert RunDir.open(Path("runs/demo")).status == "paused"
    rows: list[dict[str, Any]] = []
    assert train(run="demo", resume=True, **models(server), on_epoch=rows.append).status == "finished"
    assert [row["inner"] for row in rows] == [1]


def test_a_mistake_is_told_before_anything_is_made(place: Home, server: MockLLMServer) -> None:
    with pytest.raises(TypeError, match=r"train\(\) got an unexpected keyword argument 'outer_epoch'"):
        train(outer_epoch=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"evaluate\(\) got an unexpected keyword argument 'inner_epochs'"):
        evaluate(inner_epochs=2)  # type: ignore[call-arg]
    with pytest.raises(UsageError) as wrong:
        train(**models(server), settings={"ppo.learnin_rate": 1.0})
    assert wrong.value.hint == "did you mean ppo.learning_rate?"
    train("locomo", run="demo", **LENGTH, **models(server))
    with pytest.raises(RunError, match="is trained on locomo, not on hotpotqa"):
        train("hotpotqa", run="demo", resume=True, **models(server))
    assert [path.name for path in Path("runs").iterdir()] == ["demo"]


def test_inside_an_event_loop_the_error_names_the_function_to_await(place: Home) -> None:
    async def call(function: Any) -> None:
        function("locomo")

    for name in ("prepare", "train", "evaluate"):
        with pytest.raises(UsageError, match=rf"{name}\(\) cannot run inside a running event loop") as wrong:
            asyncio.run(call(getattr(memskill_cli, name)))
        assert wrong.value.hint == f"await memskill_cli.{name}_async(...) instead"


def test_awaited_it_leaves_the_loop_free_and_calls_back_in_it(place: Home, server: MockLLMServer) -> None:
    here: list[bool] = []
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.005)

    def told(_: Any) -> None:
        here.append(threading.current_thread() is threading.main_thread() and asyncio.get_running_loop() is not None)

    async def work() -> list[dict[str, Any]]:
        pulse = asyncio.create_task(beat())
        run = await train_async(run="demo", **LENGTH, **models(server), notice=told, on_epoch=told)
        found = await evaluate_async(run=run.name, methods=["rag"], limit=2, **models(server))
        pulse.cancel()
        return found

    assert asyncio.run(work())[0]["queries"] == 2
    assert len(here) > 2
    assert all(here)
    assert beats > 20


def test_a_cancelled_call_pauses_the_run_and_leaves_no_thread(place: Home, server: MockLLMServer) -> None:
    before = set(threading.enumerate())

    async def work() -> None:
        begun = asyncio.Event()
        call = asyncio.create_task(
            train_async(run="demo", **LENGTH, **models(server), on_epoch=lambda row: begun.set())
        )
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert set(threading.enumerate()) <= before

    asyncio.run(work())
    assert RunDir.open(Path("runs/demo")).status == "paused"
    assert train(run="demo", resume=True, **models(server)).status == "finished"


def test_a_redirect_is_refused_as_by_the_command(place: Home) -> None:
    """memskill's transport is also used in a caller's process, so requests go only to the address that was given."""
    with MockLLMServer() as elsewhere:
        away = Fault(307, headers={"Location": elsewhere.url + "/chat/completions"})
        with (
            MockLLMServer(faults=lambda request: away) as server,
            pytest.raises(ModelError, match=r"redirect|elsewhere"),
        ):
            train(run="demo", **LENGTH, **models(server), settings={"models.retries": 0})
        assert server.requests
        assert not elsewhere.requests


def test_the_caller_s_own_clients_of_litellm_stay_litellm_s() -> None:
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    from memskill_cli.llm import load_litellm
    from memskill_cli.llm.transport import BoundedTransport, track_attempt

    async def kinds() -> tuple[Any, Any]:
        theirs = AsyncHTTPHandler.create_async_transport()
        track_attempt()
        return theirs, AsyncHTTPHandler.create_async_transport()

    with process.borrowed():
        load_litellm()
        theirs, ours = asyncio.run(kinds())
    assert isinstance(ours, BoundedTransport)
    assert not isinstance(theirs, BoundedTransport)


# The caller's process


@pytest.mark.parametrize(
    "mode", ["sync", pytest.param("async", marks=pytest.mark.slow), pytest.param("parallel", marks=pytest.mark.slow)]
)
def test_a_call_leaves_the_process_as_it_was(home: Home, mode: str) -> None:
    script = str(ROOT / "tests/process_state.py")
    done = in_new_process(home, script, str(home.path), mode, LITELLM_LOCAL_MODEL_COST_MAP="True")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


TALKATIVE = f"""
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(name)s %(message)s")
from memskill_cli import MemskillError, evaluate, train
options = dict(model="openai/rules", api_base=sys.argv[1], api_key=["{KEY}"], encoder="hashing", retriever="hashing",
               outer_epochs=1, inner_epochs=1, batch_size=1, evolve=False, notice=print)
try:
    train(run="demo", **options)
except MemskillError as error:
    logging.exception("it failed")
    print(error, error.hint, repr(error))
"""


def test_no_key_is_logged_though_the_caller_logs_everything(place: Home) -> None:
    """With all logs on; one server repeats the key in its models' replies, another in its errors."""

    def say(request: Request) -> str:
        return f"{rules.reply(request)} ({request.key})"

    talk = {"LITELLM_LOG": "DEBUG", "OPENAI_LOG": "debug", "PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "default"}
    with MockLLMServer(say) as good, MockLLMServer(faults=lambda request: Fault.error(400, "You sent {key}.")) as bad:
        works = in_new_process(place, "-c", TALKATIVE, good.url, **talk)
        assert (works.returncode, len(good.requests) > 5) == (0, True), works.stderr
        fails = in_new_process(place, "-c", TALKATIVE.replace("demo", "other"), bad.url, **talk)
        assert "rejected the request: You sent [key]." in fails.stdout, fails.stdout + fails.stderr
    pieces = [KEY[i : i + 12] for i in range(len(KEY) - 11)]
    for text in (works.stdout, works.stderr, fails.stdout, fails.stderr):
        assert not any(piece in text for piece in pieces)


def test_the_example_runs(home: Home, server: MockLLMServer) -> None:
    script = str(ROOT / "examples/train_and_evaluate.py")
    done = in_new_process(home, script, MEMSKILL_URL=server.url, MEMSKILL_MODEL="openai/rules")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[-3:]] == ["memskill", "rag", "skills"]
    assert "insert" in lines[-1]
