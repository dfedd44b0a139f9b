"""The offline model behind litellm. The slow tests run the real one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.config import ModelsConfig
from memskill_cli.errors import ModelError
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.grammars import executor_grammar, judge_grammar
from memskill_cli.llm.local_model import litellm, register
from memskill_cli.llm.model_file import QWEN, cache_folder, installed_parts
from memskill_cli.types import Action

from ..factories import llm_client, make_ledger

SPAN = """<memories>
[0] Ann has a cat.
[1] Bob is a teacher.
</memories>

<span>
[8 May, 2023]
Ann: I got a new dog, a beagle called Max.
Bob: I left the school and work in a bakery now.
</span>"""
BLOCK = re.compile(r"ACTION: INSERT\nMEMORY: \S.*|ACTION: UPDATE\nINDEX: [01]\nMEMORY: \S.*")


def test_registering_twice_is_registering_once():
    register()
    register()
    assert [entry["provider"] for entry in litellm.custom_provider_map].count("memskill_embedded") == 1
    assert litellm.get_llm_provider("memskill_embedded/")[:2] == ("", "memskill_embedded")


def _llm(model: str, ledger: Path | None = None) -> LLMClient:
    return llm_client("", model=model, base=ModelsConfig(), ledger=make_ledger(ledger))


async def _asked(llm: LLMClient, **options: Any) -> str:
    try:
        return (await llm.ask("executor", [{"role": "user", "content": "Hello"}], **options)).text
    finally:
        await llm.aclose()


def test_a_model_that_is_not_there_is_named(tmp_path: Path):
    missing = tmp_path / "missing.gguf"

    async def ask() -> str:
        return await _asked(_llm(f"embedded:{missing}"))

    with pytest.raises(ModelError, match="No such file") as caught:
        asyncio.run(ask())
    assert str(missing) in caught.value.message
    assert caught.value.hint


def test_a_file_that_llama_cannot_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("MEMSKILL_CACHE_DIR", str(tmp_path))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing more")

    async def ask() -> str:
        return await _asked(_llm(f"embedded:{broken}"))

    with pytest.raises(ModelError, match="cannot load this model"):
        asyncio.run(ask())


# --- the real model ---


@pytest.fixture(scope="module")
def model() -> Iterator[None]:
    """The real model, offline; skipped where it is not installed."""
    pytest.importorskip("xllamacpp")
    if not installed_parts() and not (cache_folder() / QWEN.name).exists():
        pytest.skip("the embedded model is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def _router() -> Any:
    register()
    entry = {"model_name": "executor", "litellm_params": {"model": "memskill_embedded/", "drop_params": True}}
    return litellm.Router(model_list=[entry], num_retries=0)


def _completion(content: str, **params: Any) -> Any:
    system = {"role": "system", "content": "You are the executor. Write memory actions for the span."}
    messages = [system, {"role": "user", "content": content}]
    return asyncio.run(_router().acompletion(model="executor", messages=messages, temperature=0, **params))


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_a_grammar_binds_the_executors_reply():
    grammar = executor_grammar({Action.INSERT, Action.UPDATE}, 2, max_actions=3)
    reply = _completion(SPAN, max_tokens=200, grammar=grammar)
    blocks = reply.choices[0].message.content.split("\n\n")
    assert 1 <= len(blocks) <= 3
    assert blocks == ["ACTION: NOOP"] or all(BLOCK.fullmatch(block) for block in blocks)
    assert reply.choices[0].finish_reason == "stop"
    usage = reply.usage
    assert 0 < usage.completion_tokens < 200
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    again = _completion(SPAN, max_tokens=200, grammar=grammar)
    assert again.choices[0].message.content == reply.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0.9 * usage.prompt_tokens


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_a_grammar_can_leave_nothing_but_noop_and_a_verdict_is_json():
    assert (
        _completion(SPAN, max_tokens=50, grammar=executor_grammar({Action.DELETE}, 0)).choices[0].message.content
        == "ACTION: NOOP"
    )
    verdict = json.loads(_completion("Is 7 May the 7th of May?", grammar=judge_grammar()).choices[0].message.content)
    assert verdict["score"] in (0, 0.5, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_a_reply_ends_at_max_tokens_and_a_prompt_beyond_the_window_is_an_error():
    reply = _completion("Count from one to a hundred.", max_tokens=5)
    assert reply.usage.completion_tokens == 5
    assert reply.choices[0].finish_reason == "length"
    with pytest.raises(litellm.ContextWindowExceededError, match="8192"):
        _completion("word " * 9000, max_tokens=5)


@pytest.mark.slow
@pytest.mark.usefixtures("model")
@pytest.mark.timeout(200)  # the reply that nobody waits for would take longer
def test_a_caller_who_gives_up_stops_the_model():
    async def give_up_then_ask() -> str:
        router = _router()
        hello = [{"role": "user", "content": "Hello"}]
        endless = {"max_tokens": 7000, "grammar": "root ::= [a-z ] root"}
        long = asyncio.create_task(router.acompletion(model="executor", messages=hello, **endless))
        await asyncio.sleep(8)
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        short = await router.acompletion(model="executor", messages=hello, max_tokens=2)
        return short.choices[0].message.content

    assert asyncio.run(give_up_then_ask())


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_llama_cpp_is_silent_and_its_web_server_is_shut(tmp_path: Path):
    program = """
import asyncio, sys
import httpx, psutil
from memskill_cli.llm.local_model import litellm, register
register(lambda text: print(text, file=sys.stderr))
ask = {"model": "memskill_embedded/", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
reply = asyncio.run(litellm.acompletion(**ask))
ports = [c.laddr.port for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
paths = ("/v1/chat/completions", "/completion", "/slots", "/props", "/v1/embeddings")
urls = [f"http://127.0.0.1:{port}{path}" for port in ports for path in paths]
codes = {httpx.request(method, url, json={}).status_code for url in urls for method in ("GET", "POST")}
print(bool(reply.choices[0].message.content), len(ports), sorted(codes))
"""
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True 1 [401]\n"
    assert [line for line in done.stderr.splitlines() if not line.startswith(("loading ", "joining "))] == []
