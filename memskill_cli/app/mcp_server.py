"""The MCP server of one user's memory, with the official SDK: over stdin and stdout, or over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import orjson
from mcp import types
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from memskill_cli import __version__
from memskill_cli.app.mcp_tools import INSTRUCTIONS, TOOLS, MemoryTool, ToolError, UserMemory, error_of, full, unknown
from memskill_cli.app.memory import AsyncMemory, MemoryOptions
from memskill_cli.errors import MemskillError
from memskill_cli.live.messages import check_name

if TYPE_CHECKING:
    from memskill_cli.live.records import Found

ALL = "memskill://memories"
"""The resource of all memories; that of one is below it, by its id."""
PAGE = 100
"""Resources in one reply."""
MOST_LISTED = 1_000
"""Most memories in the resource of all memories."""
_log = logging.getLogger("memskill")


@dataclass(frozen=True)
class ServerRequest:
    """Whose memory to serve, and where. ``http`` is HOST:PORT; None serves stdin and stdout."""

    folder: Path
    user: str
    options: MemoryOptions
    http: str | None = None
    token: str | None = field(default=None, repr=False)
    allowed_hosts: Sequence[str] = ()
    """Other names under which clients reach an HTTP server (of a proxy, or of a bound wildcard address)."""


async def serve(request: ServerRequest, ready: Callable[[str], None]) -> None:
    """Serve until the client ends the connection (stdio) or the task is cancelled; then read what waits, and close.

    ``ready`` is called with the URL of an HTTP server; what it writes to stdout is not redirected.

    Raises UsageError for a user or an address that is not valid, and what :meth:`AsyncMemory.open` raises.
    """
    from memskill_cli.app import mcp_http, mcp_stdio

    check_name(request.user, "--user")
    with contextlib.suppress(asyncio.CancelledError):  # a signal: the server is to end
        if request.http is None:
            with mcp_stdio.wire() as (lines, out):
                async with _opened(request) as memory:
                    await mcp_stdio.serve(make_server(memory), lines, out)
            return
        address = mcp_http.Address.read(request.http, request.token, request.allowed_hosts)
        stdout = sys.stdout
        with address.bound() as socket, contextlib.redirect_stdout(sys.stderr):
            async with _opened(request) as memory:
                with contextlib.redirect_stdout(stdout):
                    ready(address.url(socket))
                await mcp_http.serve(make_server(memory), address, socket)


@asynccontextmanager
async def _opened(request: ServerRequest) -> AsyncIterator[UserMemory]:
    memory = await AsyncMemory.open(request.folder, **request.options)
    try:
        yield UserMemory(memory, request.user)
    finally:
        with anyio.CancelScope(shield=True):
            await memory.close()


def make_server(memory: UserMemory) -> Server[Any]:
    """The server of a memory, for any transport."""
    handlers = _Handlers(memory)
    return Server(
        "memskill",
        version=__version__,
        title="memskill memory",
        instructions=INSTRUCTIONS,
        on_list_tools=handlers.list_tools,
        on_call_tool=handlers.call_tool,
        on_list_resources=handlers.list_resources,
        on_list_resource_templates=handlers.list_templates,
        on_read_resource=handlers.read_resource,
    )


class _Handlers:
    """Answers the requests of MCP. Errors of tools are results; those of resources are errors of the protocol."""

    def __init__(self, memory: UserMemory) -> None:
        self._memory = memory
        self._tools = {tool.name: tool for tool in TOOLS}

    async def list_tools(self, context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_described(tool) for tool in TOOLS])

    async def call_tool(self, context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            if (tool := self._tools.get(params.name)) is None:
                raise ToolError(f"there is no tool {params.name[:50]!r}; the tools are {', '.join(self._tools)}")
            found = await tool(self._memory, params.arguments or {})
        except ToolError as error:
            return types.CallToolResult(content=[_text(str(error))], is_error=True)
        except Exception:
            # A defect. Its text may have anything in it, so only the log gets it.
            _log.exception("%s failed", params.name[:50])
            defect = f"{params.name[:50]} failed: a defect of memskill; the log of the server says more"
            return types.CallToolResult(content=[_text(defect)], is_error=True)
        return types.CallToolResult(content=[_text(_json(found))], structured_content=found)

    async def list_resources(
        self, context: Any, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        """The resource of all memories, then one for each memory, the newest change first."""
        first = _offset(params.cursor if params else None)
        memories = await self._newest_first()
        resources = [_resource(memory) for memory in memories[first : first + PAGE]]
        if first == 0:
            about = f"All {len(memories)} memories about the user, the newest change first"
            whole = types.Resource(
                uri=ALL, name="memories", title="All memories", description=about, mime_type="text/plain"
            )
            resources.insert(0, whole)
        more = str(first + PAGE) if first + PAGE < len(memories) else None
        return types.ListResourcesResult(resources=resources, next_cursor=more)

    async def list_templates(self, context: Any, params: Any) -> types.ListResourceTemplatesResult:
        one = types.ResourceTemplate(
            uri_template=f"{ALL}/{{memory_id}}",
            name="memory",
            title="A memory",
            description="One memory with the messages that it was written from",
            mime_type="application/json",
        )
        return types.ListResourceTemplatesResult(resource_templates=[one])

    async def read_resource(self, context: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        if params.uri == ALL:
            shown = (await self._newest_first())[:MOST_LISTED]
            text = "\n".join(f"{memory.id} {memory.updated_at:%Y-%m-%d} {memory.text}" for memory in shown)
            return _contents(params.uri, text, "text/plain")
        memory_id = params.uri.removeprefix(f"{ALL}/")
        memory = await self._one(memory_id) if memory_id != params.uri else None
        if memory is None:
            raise MCPError(types.INVALID_PARAMS, str(unknown(memory_id)))
        return _contents(params.uri, _json(full(memory)), "application/json")

    async def _newest_first(self) -> list[Found]:
        with _protocol_errors():
            return await self._memory.newest_first()

    async def _one(self, memory_id: str) -> Found | None:
        with _protocol_errors():
            return await self._memory.find(memory_id)


@contextlib.contextmanager
def _protocol_errors() -> Iterator[None]:
    try:
        yield
    except MemskillError as error:
        raise MCPError(types.INTERNAL_ERROR, str(error_of(error))) from error


def _described(tool: MemoryTool) -> types.Tool:
    hints = types.ToolAnnotations(
        title=tool.title,
        read_only_hint=tool.read_only,
        destructive_hint=tool.destructive,
        idempotent_hint=tool.idempotent or tool.read_only,
        open_world_hint=False,
    )
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.takes,
        output_schema=tool.gives,
        annotations=hints,
    )


def _resource(memory: Found) -> types.Resource:
    title = " ".join(memory.text.split())
    return types.Resource(
        uri=f"{ALL}/{memory.id}",
        name=memory.id,
        title=title if len(title) <= 80 else f"{title[:79]}…",
        mime_type="application/json",
    )


def _contents(uri: str, text: str, mime_type: str) -> types.ReadResourceResult:
    return types.ReadResourceResult(contents=[types.TextResourceContents(uri=uri, text=text, mime_type=mime_type)])


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 10):
        raise MCPError(types.INVALID_PARAMS, "the cursor is not one of this server")
    return int(cursor)


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)


def _json(data: Any) -> str:
    return orjson.dumps(data).decode()
