"""The scripted server, over real HTTP."""

from __future__ import annotations

import asyncio
import base64
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from memskill_cli.testing.server import Fault, MockLLMServer, Request
from memskill_cli.utils.files import read_jsonl


def _post(server: MockLLMServer, content: str = "hi", *, model: str = "m", key: str = "k1", timeout: float = 5.0):
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/chat/completions", json=body, headers=headers, timeout=timeout)


def _said(response: httpx.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


def test_scripts_by_role_in_turn_and_by_function():
    def judge(request: Request) -> str:
        return f"judged {request.messages[0]['content']}"

    with MockLLMServer({"answer": ["one", "two"], "executor": "same", "judge": judge}) as server:
        assert [_said(_post(server)) for _ in range(3)] == ["one", "two", "two"]
        assert _said(_post(server, model="my-executor")) == "same"
        assert _said(_post(server, "x", model="judge-7b")) == "judged x"
        server.reset()
        assert server.requests == []
        assert _said(_post(server)) == "one"


def test_the_prompt_names_the_role_when_the_model_does_not():
    with MockLLMServer(lambda request: request.role) as server:
        said = [
            _said(_post(server, f"You are the {name} of memories.\nGo.")) for name in ("executor", "answering model")
        ]
        assert said == ["executor", "answer"]
        assert _said(_post(server, "You are the executor", model="judge")) == "judge"
        assert _said(_post(server, "anything")) == "answer"


def test_requests_are_recorded_as_they_came():
    with MockLLMServer({"answer": "x"}) as server:
        usage = _post(server, "12345", key="sk-abc").json()["usage"]
        _post(server)
        first, second = server.requests
        assert (first.key, first.model, first.messages[0]["content"], first.index) == ("sk-abc", "m", "12345", 0)
        assert second.index == 1
        assert second.time >= first.time >= 0
        assert usage == {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}


def test_only_given_keys_are_let_in():
    with MockLLMServer({"answer": "x"}, keys={"good"}) as server:
        assert _post(server, key="good").status_code == 200
        refused = _post(server, key="sk-wrong")
        assert refused.status_code == 401
        assert "sk-wrong" in refused.text  # careless on purpose
        assert len(server.requests) == 2


def test_sixty_four_requests_are_in_flight_at_once():
    async def ask_all(url: str) -> list[int]:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=64)) as client:
            calls = [client.post(f"{url}/chat/completions", json={"model": "m"}) for _ in range(64)]
            return [reply.status_code for reply in await asyncio.gather(*calls)]

    with MockLLMServer({"answer": "x"}, latency=1.5) as server:
        assert asyncio.run(ask_all(server.url)) == [200] * 64
        assert server.max_in_flight == 64


def test_a_connection_is_kept():
    with MockLLMServer({"answer": "x"}) as server, httpx.Client() as client:
        sources = set()
        for _ in range(3):
            with client.stream("POST", f"{server.url}/chat/completions", json={"model": "m"}) as response:
                response.read()
                sources.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        assert len(sources) == 1


def test_faults_with_a_status():
    faults = [
        Fault.rate_limit(retry_after=7),
        Fault.unauthorized(),
        Fault.server_error(503),
        Fault.error_in_200(),
        Fault.unknown_model(),
    ]
    with MockLLMServer({"answer": [*faults, "fine"]}) as server:
        replies = [_post(server, key="sk-echo") for _ in range(6)]
        assert [reply.status_code for reply in replies] == [429, 401, 503, 200, 404, 200]
        assert replies[0].headers["retry-after"] == "7"
        assert "sk-echo" in replies[1].json()["error"]["message"]
        assert "error" in replies[3].json()
        assert _said(replies[5]) == "fine"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.hang(), httpx.ReadTimeout),
        (Fault.hang(seconds=0.05), httpx.RemoteProtocolError),
        (Fault.cut(), httpx.RemoteProtocolError),
        (Fault.refuse(), httpx.TransportError),
    ],
)
def test_faults_of_the_line(fault: Fault, error: type[Exception]):
    with MockLLMServer({"answer": "x"}, faults=lambda request: fault if request.index == 0 else None) as server:
        with pytest.raises(error):
            _post(server, timeout=0.3)
        assert _said(_post(server)) == "x"


def test_a_drip_keeps_sending():
    with (
        MockLLMServer({"answer": Fault.drip(0.01)}) as server,
        httpx.stream("POST", f"{server.url}/chat/completions", json={"model": "m"}, timeout=1) as response,
    ):
        pieces = response.iter_raw(chunk_size=1)
        assert [next(pieces) for _ in range(20)] == [b" "] * 20


def test_an_empty_body():
    with MockLLMServer({"answer": Fault.empty()}) as server:
        reply = _post(server)
        assert (reply.status_code, reply.content) == (200, b"")


def test_leaving_does_not_wait_for_a_hanging_request():
    with ThreadPoolExecutor(1) as pool:
        with MockLLMServer({"answer": Fault.hang()}) as server:
            call = pool.submit(_post, server, timeout=60)
            while not server.requests:
                time.sleep(0.01)
        with pytest.raises(httpx.TransportError):
            call.result(timeout=30)


def test_a_script_that_raises_is_the_tests_own_fault():
    def broken(request: Request) -> str:
        raise LookupError("no such line in the script")

    with pytest.raises(LookupError, match="no such line"), MockLLMServer({"answer": broken}) as server:
        assert _post(server).status_code == 500


def test_embeddings_and_models():
    with MockLLMServer() as server:
        ask = {"model": "e", "input": ["a red apple", "red apples", "the sea"]}
        plain = [row["embedding"] for row in httpx.post(f"{server.url}/embeddings", json=ask).json()["data"]]
        coded = httpx.post(f"{server.url}/embeddings", json={**ask, "encoding_format": "base64"}).json()["data"]
        assert struct.unpack("<64f", base64.b64decode(coded[2]["embedding"])) == pytest.approx(plain[2])
        near, far = (sum(a * b for a, b in zip(plain[0], other, strict=True)) for other in plain[1:])
        assert near > far
        assert httpx.get(f"{server.url}/models").json()["data"]


@pytest.mark.parametrize("raw", [b"not json", b"[]", b""])
def test_what_is_no_request_is_refused(raw: bytes):
    with MockLLMServer() as server:
        assert httpx.post(f"{server.url}/chat/completions", content=raw).status_code == 400
        assert httpx.post(f"{server.url}/nothing", json={}).status_code == 404
        assert server.requests == []


def test_the_command_serves_until_stopped(tmp_path: Path):
    log = tmp_path / "calls.jsonl"
    command = [sys.executable, "-W", "error", "-m", "memskill_cli.testing.server", "--key", "sk-a", "--log", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        body = {"model": "judge", "messages": [{"role": "user", "content": "<truth>x</truth><answer>x</answer>"}]}
        for key in ("sk-a", "sk-b"):
            httpx.post(f"{url}/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        process.terminate()
        assert process.wait(timeout=20) == 0
    (call,) = read_jsonl(log)
    assert call["role"] == "judge"
    assert '"score":1' in call["reply"]
    assert "sk-a" not in log.read_text()
