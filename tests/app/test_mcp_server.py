"""The tools and resources of the MCP server, in this process, with the SDK's own client. The transports: tests/e2e."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from memskill_cli.app.mcp_tools import TOOLS, ToolError, UserMemory
from memskill_cli.cli import mcp as command
from memskill_cli.cli.app import app
from memskill_cli.errors import ModelError, UsageError
from memskill_cli.live.service import MemoryService

from ..live.harness import Model, memory

sdk = pytest.importorskip("mcp", reason="the extra mcp is not installed")

from memskill_cli.app.mcp_http import Address  # noqa: E402
from memskill_cli.app.mcp_server import ALL, PAGE, make_server  # noqa: E402

pytestmark = pytest.mark.extra
NAMES = [
    *("add_memory", "search_memories", "get_memories", "get_memory"),
    *("update_memory", "delete_memory", "delete_all_memories"),
]
CANARY = "Bo keeps his savings in Zurich."
Work = Callable[[Any, MemoryService], Coroutine[Any, Any, None]]


@asynccontextmanager
async def connected(
    folder: Path, model: Model | None = None, **options: Any
) -> AsyncIterator[tuple[Any, MemoryService]]:
    """A client of Anna's memory, and the memory of all users."""
    async with memory(folder, model, **options) as service:
        server = make_server(UserMemory(service, "anna"))  # type: ignore[arg-type]
        async with sdk.Client(server) as client:
            yield client, service


def within(folder: Path, work: Work, model: Model | None = None) -> None:
    async def whole() -> None:
        async with connected(folder, model) as (client, service):
            await work(client, service)

    asyncio.run(whole())


async def call(client: Any, name: str, **arguments: Any) -> dict[str, Any]:
    """The result of a tool, which is the same as structure and as text, and as its schema says."""
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result.content
    (text,) = result.content
    assert json.loads(text.text) == result.structured_content
    schema = next(tool.gives for tool in TOOLS if tool.name == name)
    Draft202012Validator(schema).validate(result.structured_content)
    return dict(result.structured_content)


async def refused(client: Any, name: str, **arguments: Any) -> str:
    """What a tool says that fails: one line."""
    result = await client.call_tool(name, arguments)
    assert result.is_error
    (text,) = result.content
    assert len(text.text.splitlines()) == 1
    assert len(text.text) <= 600
    return str(text.text)


# --- what clients see ---


def test_seven_tools_with_schemas_and_annotations(tmp_path: Path) -> None:
    async def work(client: Any, service: MemoryService) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == NAMES
        reading = {name for name, tool in tools.items() if tool.annotations.read_only_hint}
        destroying = {name for name, tool in tools.items() if tool.annotations.destructive_hint}
        assert reading == {"search_memories", "get_memories", "get_memory"}
        assert destroying == {"update_memory", "delete_memory", "delete_all_memories"}
        for tool in tools.values():
            Draft202012Validator.check_schema(tool.input_schema)
            Draft202012Validator.check_schema(tool.output_schema)
            assert tool.input_schema["additionalProperties"] is False
            # Some providers of models refuse these at the top of a tool's schema.
            assert not {"oneOf", "anyOf", "allOf", "$ref"} & tool.input_schema.keys()
            assert len(tool.description) > 40

    within(tmp_path / "mem", work)


def test_no_tool_takes_a_user() -> None:
    for tool in TOOLS:
        assert not {name for name in tool.takes["properties"] if "user" in name}


def test_a_user_in_the_arguments_is_refused(tmp_path: Path) -> None:
    async def work(client: Any, service: MemoryService) -> None:
        await service.add("Anna lives in Leeds.", "anna")
        needed = {"query": "x", "memory_id": "m1-1", "text": "x"}
        for tool in TOOLS:
            right = {name: needed[name] for name in tool.takes["required"]}
            for key in ("user", "user_id"):
                assert f"'{key}' was unexpected" in await refused(client, tool.name, **right, **{key: "bo"})
        assert len(await service.get_all("anna")) == 1
        assert await service.users() == ["anna"]

    within(tmp_path / "mem", work)


# --- what tools do ---


def test_a_memory_from_its_first_message_to_its_erasure(tmp_path: Path) -> None:
    async def work(client: Any, service: MemoryService) -> None:
        added = await call(client, "add_memory", text="I moved to Leeds.", session_id="s1", metadata={"app": "chat"})
        assert added == {"changes": [{"id": "m1-1", "event": "insert", "text": "I moved to Leeds."}], "pending": 0}
        said = [
            {"role": "user", "name": "Anna", "content": "My cat is Bento.", "timestamp": "2025-03-04T09:34:00Z"},
            {"role": "assistant", "content": "A fine name."},
        ]
        more = await call(client, "add_memory", messages=said)
        assert [change["text"] for change in more["changes"]] == ["My cat is Bento.", "A fine name."]
        (found,) = (await call(client, "search_memories", query="cat Bento", limit=1))["memories"]
        assert (found["id"], found["text"]) == ("m1-2", "My cat is Bento.")
        page = await call(client, "get_memories", limit=1, offset=2)
        assert page["total"] == 3
        assert [(one["id"], one["metadata"], one["session_id"]) for one in page["memories"]] == [
            ("m1-1", {"app": "chat"}, "s1")
        ]
        shown = await call(client, "get_memory", memory_id="m1-2")
        assert [(source["speaker"], source["said_at"]) for source in shown["sources"]] == [
            ("Anna", "2025-03-04T09:34:00+00:00")
        ]
        updated = await call(client, "update_memory", memory_id="m1-1", text="Anna lives in York.", metadata={"n": 1})
        assert (updated["text"], updated["metadata"]) == ("Anna lives in York.", {"app": "chat", "n": 1})
        assert await call(client, "delete_memory", memory_id="m1-1") == {"deleted": 1}
        assert "no memory 'm1-1'" in await refused(client, "get_memory", memory_id="m1-1")
        assert await call(client, "delete_all_memories") == {"deleted": 2}
        assert await call(client, "get_memories") == {"memories": [], "total": 0}

    within(tmp_path / "mem", work)


def test_messages_wait_only_if_they_are_asked_to(tmp_path: Path) -> None:
    async def whole() -> None:
        async with connected(tmp_path / "mem", mode="turn-pair") as (client, _):
            assert await call(client, "add_memory", text="I moved.", wait=True) == {"changes": [], "pending": 1}
            both = await call(client, "add_memory", text="To Leeds.")
            assert [change["text"] for change in both["changes"]] == ["I moved.", "To Leeds."]
            assert both["pending"] == 0

    asyncio.run(whole())


# --- errors ---


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("add_memory", {}, "give either text or messages"),
        ("add_memory", {"text": "a", "messages": [{"role": "user", "content": "b"}]}, "give either text or messages"),
        ("add_memory", {"text": "x" * 100_001}, "add_memory.text: at most 100000 characters"),
        ("add_memory", {"messages": [{"role": "user"}]}, "add_memory.messages[0]: 'content' is a required property"),
        ("add_memory", {"messages": [{"role": "root", "content": "x"}]}, "add_memory.messages[0].role: 'root' is not"),
        ("add_memory", {"text": "x", "metadata": {"x": "y" * 20_000}}, "metadata has 20008 bytes as JSON"),
        (
            "add_memory",
            {"messages": [{"role": "user", "content": "x", "timestamp": "soon"}]},
            "messages[0].timestamp is no time",
        ),
        ("search_memories", {}, "'query' is a required property"),
        ("search_memories", {"query": "x", "limit": 0}, "search_memories.limit: 0 is less than the minimum of 1"),
        ("search_memories", {"query": "x", "limit": True}, "search_memories.limit: True is not of type 'integer'"),
        ("get_memory", {"memory_id": "m1-1\nrm"}, "there is no memory"),
        ("update_memory", {"memory_id": "m1-1", "text": " \n"}, "text is empty"),
        ("delete_memory", {"memory_id": "m9-9"}, "there is no memory 'm9-9'"),
        ("drop_tables", {}, "there is no tool 'drop_tables'"),
    ],
)
def test_an_error_is_one_line_that_says_what_and_where(
    tmp_path: Path, name: str, arguments: dict[str, Any], says: str
) -> None:
    async def work(client: Any, service: MemoryService) -> None:
        assert says in await refused(client, name, **arguments)

    within(tmp_path / "mem", work)


def test_a_model_that_cannot_be_asked_is_an_error_and_the_messages_are_kept(tmp_path: Path) -> None:
    def fail(prompt: str) -> str:
        raise ModelError("the model\nis away", hint="try\nlater")

    async def work(client: Any, service: MemoryService) -> None:
        said = await refused(client, "add_memory", text="I moved to Leeds.")
        assert said.startswith("the model is away; the messages are stored, so do not add them again")
        assert (await service.stats("anna"))["pending"] == 1

    within(tmp_path / "mem", work, Model(fail))


def test_the_text_of_a_defect_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(prompt: str) -> str:
        raise KeyError(CANARY)

    async def work(client: Any, service: MemoryService) -> None:
        said = await refused(client, "add_memory", text="I moved to Leeds.")
        assert said == "add_memory failed: a defect of memskill; the log of the server says more"

    within(tmp_path / "mem", work, Model(fail))
    assert CANARY in caplog.text


TEXT = st.text(max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted({name for tool in TOOLS for name in tool.takes["properties"]})


@settings(max_examples=150)
@given(st.sampled_from(TOOLS), st.dictionaries(st.sampled_from(KEYS) | TEXT, VALUE, max_size=4))
def test_any_arguments_give_a_result_or_a_tool_error(tool: Any, arguments: dict[str, Any]) -> None:
    """Calls reach the memory only with arguments of the right kind, so a memory that takes anything is enough."""

    class Anything:
        def __getattr__(self, name: str) -> Any:
            async def accept(*given: Any) -> Any:
                assert all(not isinstance(one, float) for one in given)
                raise UsageError("reached")

            return accept

    async def whole() -> None:
        with pytest.raises(ToolError) as caught:
            await tool(UserMemory(Anything(), "anna"), arguments)  # type: ignore[arg-type]
        assert len(str(caught.value).splitlines()) <= 1

    asyncio.run(whole())


# --- other users ---


def test_nothing_of_another_user_is_reached(tmp_path: Path) -> None:
    """Bo's memory is there, its id is known, and its words are asked for."""

    async def work(client: Any, service: MemoryService) -> None:
        await service.add("Anna lives in Leeds.", "anna")
        await service.add(CANARY, "bo")
        before = await service.export("bo")
        (bos,) = await service.get_all("bo")
        said = [await refused(client, "get_memory", memory_id=bos.id)]
        said.append(await refused(client, "update_memory", memory_id=bos.id, text="gone"))
        said.append(await refused(client, "delete_memory", memory_id=bos.id))
        with pytest.raises(sdk.MCPError) as caught:
            await client.read_resource(f"{ALL}/{bos.id}")
        said.append(str(caught.value))
        said.append(str(await call(client, "search_memories", query=CANARY, limit=100)))
        said.append(str(await call(client, "get_memories")))
        said.append(str(await client.list_resources()))
        said.append(str(await client.read_resource(ALL)))
        assert await call(client, "delete_all_memories") == {"deleted": 1}
        assert not [text for text in said if "Zurich" in text]
        assert await service.export("bo") == before

    within(tmp_path / "mem", work)


# --- resources ---


def test_every_memory_is_a_resource_a_page_at_a_time(tmp_path: Path) -> None:
    async def work(client: Any, service: MemoryService) -> None:
        await service.add([{"role": "user", "content": f"Fact {n}. {'x' * 100}"} for n in range(PAGE + 50)], "anna")
        first = await client.list_resources()
        second = await client.list_resources(cursor=first.next_cursor)
        assert second.next_cursor is None
        assert first.resources[0].uri == ALL
        uris = [resource.uri for resource in first.resources[1:] + second.resources]
        assert set(uris) == {f"{ALL}/m1-{number}" for number in range(1, PAGE + 51)}
        assert len(first.resources[1].title) == 80
        for cursor in ("-1", "x", "9" * 50, "١"):
            with pytest.raises(sdk.MCPError, match="cursor"):
                await client.list_resources(cursor=cursor)

    within(tmp_path / "mem", work)


def test_resources_are_read(tmp_path: Path) -> None:
    async def work(client: Any, service: MemoryService) -> None:
        await service.add("I moved to Leeds.", "anna")
        (template,) = (await client.list_resource_templates()).resource_templates
        (one,) = (await client.read_resource(template.uri_template.format(memory_id="m1-1"))).contents
        assert one.mime_type == "application/json"
        assert json.loads(one.text)["sources"][0]["text"] == "I moved to Leeds."
        (whole,) = (await client.read_resource(ALL)).contents
        assert whole.text.startswith("m1-1 20")
        assert whole.text.endswith("I moved to Leeds.")
        for uri in (f"{ALL}/m1-9", f"{ALL}/", f"{ALL}/../m1-1", "file:///etc/passwd", "memskill://users"):
            with pytest.raises(sdk.MCPError, match="there is no memory"):
                await client.read_resource(uri)

    within(tmp_path / "mem", work)


# --- addresses ---

TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8765", "127.0.0.1", 8765),
        ("localhost:0", "localhost", 0),
        ("[::1]:80", "::1", 80),
        ("127.9.9.9:1", "127.9.9.9", 1),
    ],
)
def test_addresses_of_this_machine_need_no_token(text: str, host: str, port: int) -> None:
    address = Address.read(text, None)
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize("text", ["0.0.0.0:80", "[::]:80", "192.168.1.2:80", "example.org:80", "localhost.example:80"])
def test_addresses_that_others_reach_need_a_token(text: str) -> None:
    with pytest.raises(UsageError, match="without a token"):
        Address.read(text, None)
    assert Address.read(text, TOKEN).token == TOKEN
    assert TOKEN not in repr(Address.read(text, TOKEN))


@pytest.mark.parametrize(
    "text", ["", "8765", ":8765", "localhost", "localhost:", "localhost:65536", "localhost:٣", "a:b"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not HOST:PORT"):
        Address.read(text, TOKEN)


@pytest.mark.parametrize("token", ["short", "a token with an ümlaut", "a-token-with\x00-a-nul", "               \n"])
def test_weak_tokens_are_refused(token: str) -> None:
    with pytest.raises(UsageError, match="token must have"):
        Address.read("localhost:80", token)


def test_an_address_in_use_is_refused() -> None:
    with Address.read("127.0.0.1:0", None).bound() as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1:{port}"),
            Address.read(f"127.0.0.1:{port}", None).bound(),
        ):
            pass


# --- the command ---


def test_without_the_extra_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command.util, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["mcp", "--memory", str(tmp_path / "mem"), "--user", "anna"])
    assert done.exit_code == 2
    assert 'pip install "memskill[mcp]"' in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "mem").exists()
