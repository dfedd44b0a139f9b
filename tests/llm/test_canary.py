"""No key leaves the gateway: canaries in every place that keys come from, a server that echoes them in every error."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest

from memskill_cli.errors import MemskillError, UnreadableReplyError
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.embeddings import embed_texts
from memskill_cli.llm.keys import KeyRing
from memskill_cli.testing.server import Fault, MockLLMServer, Request

from ..factories import key_ring, make_ledger
from .conftest import Bench, question

CANARY = "sk-canary-7Qm2xWfP9rTz4LkVb8NhYc3GdJs6Ae1U"
OTHER = "sk-yellow-5KpB0vXc7MnR2wQzJt9LfHd4GsYa8EuI"
SHORTEST = 12
ECHO = "You said {key} and pieces of it."

FAULTS = [
    Fault.unauthorized(),
    Fault.unauthorized(status=403),
    Fault.rate_limit(86_400, ECHO),
    Fault.error(429, ECHO, code="insufficient_quota"),
    Fault.error(400, ECHO),
    Fault.error(400, "model {key} does not exist"),
    Fault.error(404, ECHO),
    Fault.error(408, ECHO),
    Fault.error(422, ECHO),
    Fault.error(500, ECHO),
    Fault.error(503, ECHO),
    Fault.error_in_200(ECHO),
    Fault(200, "<html>not JSON: {key}</html>"),
    Fault(500, "<html>{key}</html>"),
    Fault(302, ECHO, {"Location": "http://127.0.0.1:9/{key}"}),
    Fault.cut(),
    Fault.empty(),
    Fault.refuse(),
    Fault.hang(),
]
PLACES = ["flags", "MEMSKILL_API_KEYS", "keys file", "keys file env:"]  # a variable is not sent to this server


def fragments() -> Iterator[str]:
    for key in (CANARY, OTHER):
        yield from (key[i : i + SHORTEST] for i in range(len(key) - SHORTEST + 1))


def planted(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> KeyRing:
    """A ring whose keys come from ``place``; the environment is the real one, which litellm reads, too."""
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEY_1", "MEMSKILL_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    file, flags = None, []
    match place:
        case "flags":
            flags = [CANARY, OTHER]
        case "MEMSKILL_API_KEYS":
            monkeypatch.setenv("MEMSKILL_API_KEYS", f"{CANARY}, {OTHER}")
        case "provider variable":
            monkeypatch.setenv("OPENAI_API_KEY", CANARY)
        case "numbered variable":
            monkeypatch.setenv("OPENAI_API_KEY", CANARY)
            monkeypatch.setenv("OPENAI_API_KEY_7", OTHER)
        case _:
            monkeypatch.setenv("A_CANARY", OTHER)
            key = "env:A_CANARY" if place.endswith("env:") else CANARY
            file = folder / "keys.toml"
            file.write_text(f'[[all]]\nkeys = ["{key}"]\n')
    return key_ring(flags, file, os.environ)


def everything(error: BaseException | None) -> str:
    """An error, its hint and its traceback, and those of whatever it is chained to, shown or not."""
    text = ""
    while error is not None:
        text += "".join(traceback.format_exception(error)) + str(error) + repr(error) + str(vars(error))
        error = error.__cause__ or error.__context__
    return text


@pytest.mark.parametrize("place", PLACES)
def test_no_key_leaves_the_gateway(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out"
    bench = Bench(out)
    seen: list[str] = []
    met: set[str] = set()
    fault: Fault | None = None

    def reply(request: Request) -> Fault | str:
        met.add(request.key)
        return fault or f"Your key is {request.key}."

    def unreadable(text: str) -> str:
        raise UnreadableReplyError(f"cannot read {text!r}")

    async def work(llm: LLMClient) -> None:
        for role in ("executor", "answer"):
            try:
                seen.append(str(await llm.ask(role, question(f"You are the {role}."))))  # type: ignore[arg-type]
            except MemskillError as error:
                seen.append(everything(error))
        if not fault:
            try:
                await llm.ask("judge", question("You are the judge."), parse=unreadable)
            except MemskillError as error:
                seen.append(everything(error))

    with MockLLMServer(reply) as server:
        for next_fault in [*FAULTS, None]:
            fault = next_fault
            ring = planted(place, tmp_path, monkeypatch)
            bench.run(server.url, work, ring=ring, cache=True, retries=0, timeout=0.3)
    with MockLLMServer(keys=["another"]) as server:
        book = make_ledger(out / "usage.jsonl", scope="embed")
        try:
            embed_texts("openai/text-embedding-3-small", ["a"], keys=ring, api_base=server.url, ledger=book)
        except MemskillError as error:
            seen.append(everything(error))
    with pytest.raises(MemskillError) as caught:
        asyncio.run(_unplaced(ring))
    seen.append(everything(caught.value))

    assert met & {CANARY, OTHER}  # the server did get the keys
    assert len(seen) == 2 * len(FAULTS) + 5
    captured = capfd.readouterr()
    places = {
        "errors and replies": "\n".join(seen),
        "notices": "\n".join(bench.notices),
        "logs": "\n".join(record.getMessage() + str(record.__dict__) for record in caplog.records),
        "stdout": captured.out,
        "stderr": captured.err,
        **{str(file): file.read_bytes().decode("latin-1") for file in out.rglob("*") if file.is_file()},
    }
    assert any(name.endswith("responses.sqlite") for name in places)
    assert any(name.endswith("usage.jsonl") for name in places)
    assert "[key]" in places["errors and replies"]
    for name, text in places.items():
        for fragment in fragments():
            assert fragment not in text, f"a key is in {name}"


async def _unplaced(ring: KeyRing) -> None:
    ring.deployments("answer", "nobody/knows", "")


class Parrot(BaseHTTPRequestHandler):
    """A server of any provider's style, which refuses everything and repeats all it was told, in many ways."""

    heard: ClassVar[list[str]] = []
    status = 400

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = [self.path, *(value.split(" ")[-1] for value in self.headers.values())]
        self.heard.append(" ".join(told))
        key = next((part for part in told if CANARY in part), "none")
        message = " ".join(
            [
                "\n  ".join(key[i : i + 8] for i in range(0, len(key), 8)),  # at first: long messages are cut
                "".join(f"%{ord(c):02x}" for c in key),
                base64.b64encode(f"user:{key}".encode()).decode(),
                key.upper(),
                f"http://user:{key}@127.0.0.1{self.path}&key={key}",
                *(f"{name}: {value}" for name, value in self.headers.items()),
            ]
        )
        body = json.dumps({"error": {"message": message, "type": key, "param": key, "code": key}}).encode()
        self.send_response(self.status, f"Refused {key}")
        for name in ("WWW-Authenticate", "x-request-id", "Set-Cookie"):
            self.send_header(name, key)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


STYLES = {
    "openai": ("openai/gpt-4o-mini", "MEMSKILL_API_KEYS"),  # its own variable is not sent to another server
    "azure": ("azure/gpt-4o-mini", "AZURE_API_KEY"),
    "gemini": ("gemini/gemini-2.0-flash", "GEMINI_API_KEY"),
    "anthropic": ("anthropic/claude-3-5-haiku-latest", "ANTHROPIC_API_KEY"),
    "cohere": ("cohere_chat/command-r", "COHERE_API_KEY"),
}


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("style", STYLES)
def test_no_style_of_provider_gives_a_key_away(
    style: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    model, variable = STYLES[style]
    monkeypatch.setenv(variable, CANARY)
    monkeypatch.setenv("AZURE_API_VERSION", "2024-10-21")
    monkeypatch.setattr(Parrot, "status", status)
    monkeypatch.setattr(Parrot, "heard", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Parrot)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bench = Bench(tmp_path)
    seen: list[str] = []

    async def work(llm: LLMClient) -> Any:
        with pytest.raises(MemskillError) as caught:
            await llm.ask("answer", question())
        seen.append(everything(caught.value))

    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        bench.run(url, work, model=model, ring=key_ring(environ=os.environ), retries=0, cache=True)
    finally:
        server.shutdown()
        server.server_close()
    assert any(CANARY in told for told in Parrot.heard), "the server did get the key"
    captured = capfd.readouterr()
    records = [record.getMessage() + str(record.__dict__) for record in caplog.records]
    files = [file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()]
    told = "\n".join([*seen, *bench.notices, *records, *files, captured.out, captured.err])
    read = "".join(unquote(told).replace("\\n", "").lower().split())
    assert not [fragment for fragment in fragments() if fragment.lower() in read]
    assert base64.b64encode(f"user:{CANARY}".encode()).decode()[8:30] not in told
