"""``Memory`` and ``AsyncMemory`` with a real client of models: opening, threads, tasks, closing, the process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from memskill_cli import (
    AddResult,
    AsyncMemory,
    AuthError,
    Change,
    Found,
    Memory,
    MemoryBankError,
    ModelError,
    RunError,
    RunLockedError,
    UsageError,
)
from memskill_cli.agent.controller import Controller
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.runs import bundle
from memskill_cli.runs.checkpoint import Checkpoint
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing.server import Fault, MockLLMServer, Request

from .harness import insert_lines

ROOT = Path(__file__).parents[2]
ANNA = "u-anna"


def write(request: Request) -> str:
    return insert_lines(request.messages[-1]["content"])


@pytest.fixture
def server() -> Iterator[MockLLMServer]:
    with MockLLMServer(write) as running:
        yield running


def options(server: MockLLMServer, **more: Any) -> Any:
    models = {"model": "openai/rules", "api_base": server.url, "api_key": "none"}
    quiet = {"notice": lambda text: None}
    return {**models, "encoder": "hashing", "retriever": "hashing", **quiet, **more}


def test_the_ten_lines_of_the_page(tmp_path: Path, server: MockLLMServer) -> None:
    messages = [
        {"role": "user", "name": "Anna", "content": "I moved to Leeds."},
        {"role": "assistant", "content": "Noted."},
    ]
    with Memory.open(tmp_path / "mem", skills="seeds", **options(server)) as memory:
        assert memory.add(messages, user_id=ANNA, session_id="s9") == AddResult([], 2)
        assert "I moved to Leeds." in memory.context("Where does she live?", user_id=ANNA, max_tokens=800)
        result = memory.flush(ANNA)
        assert result.changes[0] == Change(result.changes[0].id, "insert", "I moved to Leeds.")
        (found, _) = memory.search("Where did she move to?", user_id=ANNA, limit=5)
        assert isinstance(found, Found)
        assert found.text == "I moved to Leeds."
    assert len(server.requests) == 1


def test_closing_reads_what_waits_and_an_exception_does_not(tmp_path: Path, server: MockLLMServer) -> None:
    def interrupted() -> None:
        with Memory.open(tmp_path, **options(server)) as memory:
            memory.add("I moved.", ANNA)
            raise LookupError

    with pytest.raises(LookupError):
        interrupted()
    assert not server.requests
    with Memory.open(tmp_path, notice=lambda text: None) as memory:  # model and encoders are remembered
        assert memory.stats(ANNA)["pending"] == 1
    assert len(server.requests) == 1
    with Memory.open(tmp_path, notice=lambda text: None) as memory:
        assert [found.text for found in memory.get_all(ANNA)] == ["I moved."]
    memory.close()
    with pytest.raises(UsageError, match="the memory is closed"):
        memory.users()


def test_it_can_be_awaited(tmp_path: Path, server: MockLLMServer) -> None:
    async def work() -> None:
        async with AsyncMemory.open(tmp_path, span_mode="turn", **options(server)) as memory:
            await asyncio.gather(*(memory.add(f"I am {name}.", name) for name in "abcdefgh"))
            for name in "abcdefgh":
                assert [found.text for found in await memory.search("who", name)] == [f"I am {name}."]
            with pytest.raises(RunLockedError, match=str(os.getpid())):
                await AsyncMemory.open(tmp_path)
        again = await AsyncMemory.open(tmp_path, notice=lambda text: None)
        assert await again.users() == list("abcdefgh")
        await again.close()
        await again.close()

    before = set(threading.enumerate())
    asyncio.run(work())
    assert {thread for thread in threading.enumerate() if "memskill" in thread.name} <= before


def test_threads_share_one_memory(tmp_path: Path, server: MockLLMServer) -> None:
    with Memory.open(tmp_path, span_mode="turn", **options(server)) as memory, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: memory.add(f"Number {number}.", f"u{number % 3}"), range(24)))
        for user in range(3):
            texts = {found.text for found in memory.get_all(f"u{user}")}
            assert texts == {f"Number {number}." for number in range(24) if number % 3 == user}


def test_a_cancelled_add_keeps_the_message_and_the_reply(tmp_path: Path) -> None:
    async def work(server: MockLLMServer) -> None:
        async with AsyncMemory.open(tmp_path, span_mode="turn", **options(server)) as memory:
            adding = asyncio.create_task(memory.add("I moved.", ANNA))
            while not server.requests:  # noqa: ASYNC110 - the server is in another thread
                await asyncio.sleep(0.01)
            adding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding
            assert (await memory.flush(ANNA)).changes[0].text == "I moved."
            assert (await memory.stats())["calls"][0]["cached"] == 1

    with MockLLMServer(write, latency=0.3) as server:
        asyncio.run(work(server))
        assert len(server.requests) == 1, "the reply that was in flight is used"


def test_a_model_that_is_down_is_told_and_the_messages_wait(tmp_path: Path) -> None:
    down = MockLLMServer(write, faults=lambda request: Fault.error(400, "no"))
    with down as server, Memory.open(tmp_path, **options(server, settings={"models.retries": 0})) as memory:
        memory.add("I moved.", ANNA)
        with pytest.raises(ModelError) as failed:
            memory.flush(ANNA)
        assert "the messages are stored" in failed.value.hint
        assert memory.stats(ANNA)["pending"] == 1


def test_a_missing_key_is_told_when_a_span_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if "API_KEY" in name]:
        monkeypatch.delenv(name)
    hashing: Any = {"encoder": "hashing", "retriever": "hashing", "notice": lambda text: None}
    memory = Memory.open(tmp_path, model="openai/gpt-4o-mini", **hashing)
    try:
        memory.add("I moved.", ANNA)
        with pytest.raises(AuthError):
            memory.flush(ANNA)
    finally:
        memory.close()


def bundle_in(folder: Path) -> Path:
    """A bundle with one skill and a controller for the encoder ``hashing``."""
    identity = {"encoder": "hashing", "identity": load_encoder("hashing", cache_dir=None).name}
    record = {
        "name": "support",
        "dataset": "locomo",
        "encoders": {"state": identity, "skill": identity},
        "settings": {"encoders.state": "hashing", "encoders.retrieval": "hashing", "train.span_mode": "turn"},
    }
    weights = Controller.seeded(512, 8, 0, skill_dim=512).state_dict()
    bank = SkillBank([seed_bank()["insert"]])
    found = Checkpoint(3, weights, {}, bank, {"dim": 512, "skill_dim": 512, "hidden": 8})
    bundle.write(folder, bundle.contents(record, found, "card"))
    return folder


def test_a_bundle_writes_memories_and_may_be_moved_later(tmp_path: Path, server: MockLLMServer) -> None:
    made = bundle_in(tmp_path / "support")
    given = {name: value for name, value in options(server).items() if name not in ("encoder", "retriever")}
    with Memory.open(tmp_path / "mem", skills=str(made), **given) as memory:
        assert memory.add("I moved to Leeds.", ANNA).changes[0].text == "I moved to Leeds.", "a turn is a span"
    shutil.rmtree(made)
    with Memory.open(tmp_path / "mem", **given) as memory:
        assert memory.add("I like tea.", ANNA).changes[0].text == "I like tea."
    prompts = [request.messages[-1]["content"] for request in server.requests]
    assert all("insert" in prompt and "delete" not in prompt for prompt in prompts), "with the bundle's skill only"


@pytest.mark.parametrize("skills", ["bundle.zip", "folder"])
def test_a_damaged_bundle_is_refused_before_a_store_is_made(tmp_path: Path, skills: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/bundle.json").write_text("{}")
    (tmp_path / "bundle.zip").write_bytes(b"PK")
    with pytest.raises(RunError, match="not a bundle"):
        Memory.open(tmp_path / "mem", skills=str(tmp_path / skills), encoder="hashing", retriever="hashing")
    assert not (tmp_path / "mem").exists()


def test_mistakes_in_options_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'modell'"):
        Memory.open(tmp_path, modell="x")  # type: ignore[call-arg]
    with pytest.raises(RunError, match="no run is called nobody"):
        Memory.open(tmp_path, skills="nobody", runs_dir=tmp_path)
    with pytest.raises(RunError, match="there is no run in some/where"):
        Memory.open(tmp_path, skills="some/where")
    with pytest.raises(UsageError):
        Memory.open(tmp_path, settings={"memory.protec": True})
    (tmp_path / "file").write_text("")
    with pytest.raises(MemoryBankError, match="is not a folder"):
        Memory.open(tmp_path / "file")


def test_another_encoder_is_refused_with_the_command_that_changes_it(tmp_path: Path, server: MockLLMServer) -> None:
    with Memory.open(tmp_path, **options(server)) as memory:
        memory.add("I moved.", ANNA)
    with pytest.raises(MemoryBankError, match="hashing") as refused:
        Memory.open(tmp_path, encoder="minilm", retriever="minilm")
    assert f"memskill memory reindex --memory {tmp_path}" in refused.value.hint


def test_the_skills_of_a_run_are_used(tmp_path: Path, server: MockLLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from memskill_cli import prepare, train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMSKILL_CACHE_DIR", str(tmp_path / "cache"))
    prepare("locomo", sample=True)
    length: Any = {"outer_epochs": 1, "inner_epochs": 1, "batch_size": 1, "evolve": False}
    models = {name: value for name, value in options(server).items() if name != "notice"}
    run = train("locomo", run="r", **length, **models, settings={"train.span_mode": "turn-pair"})
    told: list[str] = []
    for skills in ("r", run.path):
        with Memory.open(f"mem-{len(told)}", skills=skills, api_key="none", notice=told.append) as memory:
            result = memory.add([{"role": "user", "content": text} for text in ("One fact.", "Two facts.")], ANNA)
            assert [change.text for change in result.changes] == ["One fact.", "Two facts."], "as the run's span mode"
            assert set(memory.history(result.changes[0].id)[0].skills) <= set(run_skills(run.path))
        assert not any("untrained" in text for text in told)
        told.append("")


def run_skills(run: Path) -> list[str]:
    return [skill["name"] for skill in json.loads((run / "skill_bank.json").read_text())["skills"]]


def test_untrained_skills_are_told_once_by_logging(
    tmp_path: Path, server: MockLLMServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    given = options(server, span_mode="turn")
    del given["notice"]
    with Memory.open(tmp_path, **given) as memory:
        assert not caplog.records
        memory.add("One.", ANNA)
        memory.add("Two.", ANNA)
    told = [record.levelname for record in caplog.records if "untrained" in record.message]
    assert told == ["WARNING"]
    assert capfd.readouterr() == ("", "")


def test_a_second_process_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    code = (
        "import sys; from memskill_cli import Memory; Memory.open(sys.argv[1], encoder='hashing', retriever='hashing')"
    )
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with Memory.open(tmp_path, encoder="hashing", retriever="hashing", notice=lambda text: None):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert f"is in use by process {os.getpid()}" in done.stderr


@pytest.mark.slow
def test_the_caller_s_process_stays_as_it_was(tmp_path: Path) -> None:
    """After opening, after every call while the memory is open, and after closing."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": paths, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [sys.executable, str(ROOT / "tests/process_state.py"), str(tmp_path), "memory"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
