"""Opening what a command needs to call models, checking it in advance, and closing it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from memskill_cli.app.runtime import ProviderAccess, check_access, open_runtime
from memskill_cli.config import load
from memskill_cli.errors import AuthError, DeviceError, EncoderError, UnknownModelError, UsageError
from memskill_cli.testing.server import MockLLMServer


def encoder_names(folder: Path, api_base: str, encoder: str) -> tuple[str, str]:
    """The names of the state and the retrieval encoder, after the latter has been used."""
    settings = load(
        overrides={
            **{f"models.{role}": "openai/m" for role in ("executor", "answer", "judge", "designer")},
            "models.api_base": api_base,
            "encoders.state": encoder,
            "encoders.retrieval": "hashing",
        }
    )

    async def session() -> tuple[str, str]:
        access = ProviderAccess(cache_dir=folder)
        async with open_runtime(settings, access, folder / "usage.jsonl", "train", lambda text: None) as opened:
            encoders = opened.context.encoders
            before = encoder_threads()
            await encoders.retrieval.aencode(["a text"])
            assert encoder_threads() > before
            return encoders.state.name, encoders.retrieval.name

    return asyncio.run(session())


def encoder_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("encoder")}


def test_encoders_are_closed_with_the_command(tmp_path: Path) -> None:
    before = encoder_threads()
    encoder_names(tmp_path, "http://127.0.0.1:9/v1", "hashing")
    assert encoder_threads() <= before


def test_vectors_of_two_servers_are_not_taken_for_each_other(tmp_path: Path) -> None:
    one, other = (encoder_names(tmp_path, f"http://{host}/v1", "litellm:openai/e") for host in ("one", "other"))
    assert "openai/e" in one[0]
    assert one[0] != other[0]
    assert one[1] == other[1], "an encoder of this machine is the same wherever the models are"


STOPPED = """
import asyncio, sys
from pathlib import Path
from memskill_cli.utils import signals
from memskill_cli.config import load
from memskill_cli.errors import AuthError, UnknownModelError, UsageError
from memskill_cli.app.runtime import ProviderAccess, check_access, open_runtime

folder, url, early = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
names = {f"models.{role}": "openai/m" for role in ("executor", "answer", "judge", "designer")}
encoders = {"encoders.state": "hashing", "encoders.retrieval": "hashing"}
settings = load(overrides={**names, **encoders, "models.api_base": url})

async def work():
    access = ProviderAccess(cache_dir=folder)
    async with open_runtime(settings, access, folder / "usage.jsonl", "train", print) as opened:
        ask = lambda text: opened.context.llm.ask("answer", [{"role": "user", "content": text}])
        asking = asyncio.create_task(ask("one"))
        while not opened.context.llm.in_flight:
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        if early:
            raise ValueError("something else ends the command")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            try:
                await ask("two")
            except asyncio.CancelledError:
                print("not sent", flush=True)
            raise

signals.install_handlers("")
try:
    signals.run(work(), print)
except signals.StoppedError:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("early", ["", "early"])
def test_after_a_signal_nothing_is_sent_and_what_was_sent_is_written_down(tmp_path: Path, early: str) -> None:
    """Also if the command was already ending and waiting for the reply when the signal came."""
    with MockLLMServer(latency=2.0) as server:
        command = [sys.executable, "-c", STOPPED, str(tmp_path), server.url, early]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            until = "waiting for 1 replies" if early else "ready"
            while until not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            said = process.stdout.read().splitlines()
        assert [request.text for request in server.requests] == ["one"]
    assert said[-1] == "stopped"
    assert early or "not sent" in said
    (row,) = (json.loads(line) for line in (tmp_path / "usage.jsonl").read_text().splitlines())
    assert row["outcome"] == "ok"


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"models.judge": "nobody/knows"}, UnknownModelError, "nobody/knows"),
        ({"models.judge": "groq/llama-3.3-70b-versatile"}, AuthError, "role judge"),
        ({"encoders.retrieval": "litellm:groq/an-encoder"}, AuthError, "role embedding"),
        ({"encoders.retrieval": "litellm:"}, EncoderError, "no model is named"),
        ({"encoders.retrieval": "litellm:groq/an-encoder@bfloat16"}, EncoderError, "no bfloat16 variant"),
        ({"encoders.state": "hashing@bfloat16"}, EncoderError, "no bfloat16 variant"),
        ({"encoders.state": "no/such/folder"}, EncoderError, "no such folder"),
        (
            {"models.judge": "openai/local", "models.api_base": "http://h/v1", "limits.max_cost": 1.0},
            UsageError,
            "price",
        ),
        pytest.param(
            {"controller.device": "cuda"},
            DeviceError,
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        ({"models.judge": "openai/local", "models.api_base": "http://h/v1"}, None, ""),
        ({}, None, ""),
    ],
)
def test_what_no_call_could_do_is_known_before_a_run_is_made(
    settings: dict[str, object], error: type[Exception] | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GROQ_API_KEY", "MEMSKILL_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    if error is None:
        check_access(load(overrides=settings), ProviderAccess())
        return
    with pytest.raises(error, match=says):
        check_access(load(overrides=settings), ProviderAccess())


def test_without_ray_its_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        check_access(load(overrides={"engine": "ray"}), ProviderAccess())
    assert "memskill[ray]" in caught.value.hint
