"""``memskill mcp`` as it is started by clients: the SDK's own client, over both transports, and raw bytes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from memskill_cli.testing.server import MockLLMServer, Request

from ..conftest import Home
from ..live.harness import bytes_of, insert_lines

sdk = pytest.importorskip("mcp", reason="the extra mcp is not installed")

from mcp.client.stdio import StdioServerParameters, stdio_client  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402

pytestmark = pytest.mark.extra
TOKEN = "e2e-token-Kq7pLw2ZxVb"
INITIALIZE = {
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}
Tour = Callable[[Any], Coroutine[Any, Any, None]]


def write(request: Request) -> str:
    return insert_lines(request.messages[-1]["content"])


@pytest.fixture
def llm() -> Iterator[MockLLMServer]:
    with MockLLMServer(write) as running:
        yield running


def flags(llm: MockLLMServer, *more: str) -> list[str]:
    encoders = ("--encoder", "hashing", "--retriever", "hashing")
    models = ("--model", "openai/rules", "--api-base", llm.url, "--api-key", "none")
    return ["mcp", "--memory", "mem", "--user", "anna", *models, *encoders, *more]


@contextmanager
def started(home: Home, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "memskill_cli", *arguments],
        cwd=home.path,
        env=home.environ(**environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(home.path / "told.txt").open("w"),
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def told(home: Home) -> str:
    return (home.path / "told.txt").read_text()


def say(process: subprocess.Popen[str], *messages: dict[str, Any] | str) -> None:
    assert process.stdin is not None
    for message in messages:
        text = message if isinstance(message, str) else json.dumps({"jsonrpc": "2.0", **message})
        process.stdin.write(text + "\n")
    process.stdin.flush()


def calling(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": number, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


# --- the SDK's client, over both transports ---


def over_stdio(home: Home, llm: MockLLMServer, mode: str, tour: Tour) -> None:
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "memskill_cli", *flags(llm)], cwd=home.path, env=home.environ()
    )
    with (home.path / "told.txt").open("w") as err:
        asyncio.run(_visit(stdio_client(server, errlog=err), mode, tour))


def over_http(home: Home, llm: MockLLMServer, mode: str, tour: Tour) -> None:
    async def whole(url: str) -> None:
        async with _with_token(TOKEN) as client:
            await _visit(streamable_http_client(url, http_client=client), mode, tour)

    with serving(home, llm, MEMSKILL_MCP_TOKEN=TOKEN) as (url, _):
        asyncio.run(whole(url))


def _with_token(token: str) -> Any:
    from mcp.shared._httpx_utils import create_mcp_http_client

    return create_mcp_http_client(headers={"Authorization": f"Bearer {token}"})


async def _visit(transport: AbstractAsyncContextManager[Any], mode: str, tour: Tour) -> None:
    async with sdk.Client(transport, mode=mode) as client:
        await tour(client)


@contextmanager
def serving(home: Home, llm: MockLLMServer, *more: str, **environ: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL of a server that listens, and its process."""
    with started(home, *flags(llm, "--http", "127.0.0.1:0", "--json", *more), **environ) as process:
        assert process.stdout is not None
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], told(home)
        yield json.loads("".join(lines))["url"], process


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("transport", [over_stdio, over_http])
def test_a_client_remembers_finds_corrects_and_erases(
    home: Home, llm: MockLLMServer, transport: Callable[..., None], mode: str
) -> None:
    async def tour(client: Any) -> None:
        assert len((await client.list_tools()).tools) == 7
        added = await client.call_tool("add_memory", {"text": "I moved to Leeds.", "session_id": "s1"})
        assert added.structured_content["changes"][0]["text"] == "I moved to Leeds."
        found = await client.call_tool("search_memories", {"query": "Where does she live?"})
        (memory,) = found.structured_content["memories"]
        assert memory["text"] == "I moved to Leeds."
        assert (await client.read_resource("memskill://memories")).contents[0].text.endswith("I moved to Leeds.")
        changed = await client.call_tool("update_memory", {"memory_id": memory["id"], "text": "Anna lives in York."})
        assert changed.structured_content["text"] == "Anna lives in York."
        wrong = await client.call_tool("get_memory", {"memory_id": "m2-1"})
        assert wrong.is_error
        await client.call_tool("add_memory", {"text": "My cat is called Bento."})
        await client.call_tool("delete_memory", {"memory_id": memory["id"]})
        rest = await client.call_tool("get_memories", {})
        assert [one["text"] for one in rest.structured_content["memories"]] == ["My cat is called Bento."]

    transport(home, llm, mode, tour)
    left = bytes_of(home.path / "mem")
    assert b"Bento" in left
    assert not {word for word in (b"Leeds", b"York") if word in left}


# --- stdin and stdout ---


def test_requests_before_the_end_of_the_input_are_answered_and_nothing_else_is_written(home: Home) -> None:
    """Also slow ones; and what waits is read at the end."""
    with MockLLMServer(write, latency=0.5) as slow, started(home, *flags(slow)) as process:
        say(process, INITIALIZE, {"method": "notifications/initialized"}, "rubbish", "", "[1]", '{"id": 7}')
        say(process, calling(2, "add_memory", text="I moved to Leeds."), calling(3, "search_memories", query="x"))
        say(process, calling(4, "add_memory", text="My cat is Bento.", wait=True), {"id": 5, "method": "no/such"})
        say(process, calling(6, "search_memories", query="half an emoji: \ud83d"), "[" * 100_000)
        assert process.stdin is not None
        process.stdin.close()
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        assert process.wait(60) == 0
    messages = [json.loads(line) for line in lines]
    assert all(message["jsonrpc"] == "2.0" for message in messages)
    answers = {message["id"]: message for message in messages if "id" in message}
    assert answers.keys() >= {1, 2, 3, 4, 5, 6}
    assert answers[2]["result"]["structuredContent"]["changes"][0]["text"] == "I moved to Leeds."
    assert "error" in answers[5]
    assert not answers[6]["result"]["isError"]
    stats = json.loads(home.memskill("memory", "stats", "--memory", "mem", "--user", "anna", "--json").out)
    assert (stats["pending"], stats["memories"]) == (0, 2)


def test_what_else_is_written_to_stdout_goes_to_stderr(home: Home, llm: MockLLMServer) -> None:
    """As by a plug-in, or a library in C."""
    (home.path / "loud.py").write_text("import os\nprint('from Python')\nos.system('echo from a child')\n")
    with started(home, *flags(llm, "--plugin", "loud.py")) as process:
        say(process, INITIALIZE)
        assert process.stdin is not None
        process.stdin.close()
        assert process.stdout is not None
        (line,) = process.stdout.read().splitlines()
        assert process.wait(60) == 0
    assert json.loads(line)["id"] == 1
    assert "from Python" in told(home)
    assert "from a child" in told(home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_while_it_waits_for_input(
    home: Home, llm: MockLLMServer, number: signal.Signals
) -> None:
    with started(home, *flags(llm)) as process:
        say(process, INITIALIZE, {"method": "notifications/initialized"})
        say(process, calling(2, "add_memory", text="I moved to Leeds.", wait=True))
        assert process.stdout is not None
        process.stdout.readline()
        assert json.loads(process.stdout.readline())["result"]["structuredContent"]["pending"] == 1
        process.send_signal(number)
        assert process.wait(60) == 0
    listed = json.loads(home.memskill("memory", "list", "--memory", "mem", "--user", "anna", "--json").out)
    assert [memory["text"] for memory in listed["memories"]] == ["I moved to Leeds."]


def test_a_client_that_is_killed_leaves_no_server(home: Home, llm: MockLLMServer) -> None:
    with started(home, *flags(llm)) as process:
        say(process, INITIALIZE)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        say(process, {"id": 2, "method": "tools/list"})
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
    assert "Traceback" not in told(home)


def test_a_second_server_is_told_who_has_the_memory(home: Home, llm: MockLLMServer) -> None:
    with started(home, *flags(llm)) as process:
        say(process, INITIALIZE)
        assert process.stdout is not None
        process.stdout.readline()
        done = home.memskill("mcp", "--memory", "mem", "--user", "bo")
    assert done.code == 1
    assert done.out == ""
    assert f"process {process.pid}" in done.err


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_without_stdin_or_stdout_it_is_refused(home: Home, closed: str) -> None:
    command = f"{sys.executable} -m memskill_cli mcp --memory mem --user anna {closed}"
    done = subprocess.run(
        command, shell=True, cwd=home.path, env=home.environ(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "stdin or stdout is closed" in done.stderr


# --- HTTP ---


def test_http_checks_token_host_origin_and_sizes(home: Home, llm: MockLLMServer) -> None:
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
    }
    body = json.dumps({"jsonrpc": "2.0", **INITIALIZE})
    big = json.dumps({"jsonrpc": "2.0", **calling(2, "add_memory", text="x" * 5_000_000)})

    def status(body: str = body, **changed: str) -> int:
        return client.post(url, content=body, headers={**headers, **changed}).status_code

    with serving(home, llm, "--allow-host", "memory.example", MEMSKILL_MCP_TOKEN=TOKEN) as (url, process):
        with httpx.Client(trust_env=False, timeout=60) as client:
            assert status() == 200
            for token in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}"):
                assert status(Authorization=token) == 401
            for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example", "http://localhostx:80"):
                assert status(Origin=origin) == 403
            for origin in ("http://localhost:3000", "http://127.0.0.1", "https://memory.example"):
                assert status(Origin=origin) == 200
            for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
                assert status(Host=host) == 421
            assert status(Host="memory.example:443") == 200
            assert status(big) == 413
            assert status("{" * 100_000) == 400
            assert client.get(url.removesuffix("/mcp"), headers=headers).status_code == 404
            assert status() == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert TOKEN not in told(home)
    assert "Traceback" not in told(home)


def test_http_ends_in_order_with_a_request_in_flight(home: Home) -> None:
    """The message is stored before the model is asked, and is read later."""
    with MockLLMServer(write, latency=lambda request: 600.0) as stuck, serving(home, stuck) as (url, process):
        headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
        request = {"jsonrpc": "2.0", **calling(2, "add_memory", text="I moved to Leeds.")}
        with httpx.Client(trust_env=False) as client, client.stream("POST", url, json=request, headers=headers):
            deadline = time.monotonic() + 60
            while not stuck.requests:
                assert time.monotonic() < deadline, told(home)
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            time.sleep(1)
            process.send_signal(signal.SIGTERM)  # the model will not answer
            process.wait(60)
    stats = json.loads(home.memskill("memory", "stats", "--memory", "mem", "--user", "anna", "--json").out)
    assert (stats["messages"], stats["memories"]) == (1, 0)
    with MockLLMServer(write) as well, serving(home, well) as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    listed = json.loads(home.memskill("memory", "list", "--memory", "mem", "--user", "anna", "--json").out)
    assert [memory["text"] for memory in listed["memories"]] == ["I moved to Leeds."]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--http", "0.0.0.0:0"], "without a token"),
        (["--http", "8765"], "not HOST:PORT"),
        (["--http", "0.0.0.0:0", "--token", "short"], "the token must have"),
        (["--set", "memory.protect"], "expected section.key=value"),
        (["--user", " "], "--user must be a text that is not empty"),
    ],
)
def test_wrong_usage(home: Home, llm: MockLLMServer, more: list[str], says: str) -> None:
    done = home.memskill(*flags(llm, *more))
    assert done.code == 2
    assert done.out == ""
    assert says in done.err
    assert not (home.path / "mem").exists()


def test_example_agent_remembers_in_a_second_process(home: Home) -> None:
    """examples/agent.py: what it is told in one process, it says in the next."""

    def reply(request: Request) -> str:
        text = request.messages[-1]["content"]
        if "<span>" in text:
            return insert_lines(text)
        known = request.messages[0]["content"]
        return "You live in Leeds." if "Leeds" in known else "I do not know."

    script = Path(__file__).parents[2] / "examples" / "agent.py"
    with MockLLMServer(reply) as llm:
        arguments = [
            *("--user", "anna", "--memory", "mem", "--model", "openai/rules", "--api-base", llm.url),
            *("--api-key", "none", "--encoder", "hashing"),
        ]

        def chat(text: str) -> str:
            done = subprocess.run(
                [sys.executable, str(script), *arguments],
                input=text,
                cwd=home.path,
                env=home.environ(),
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert "I do not know." in chat("Where do I live?\n")
        chat("I moved to Leeds.\n")
        assert "You live in Leeds." in chat("Where do I live?\n")
        other = [*arguments[:1], "bo", *arguments[2:]]
        arguments = other
        assert "I do not know." in chat("Where do I live?\n")
