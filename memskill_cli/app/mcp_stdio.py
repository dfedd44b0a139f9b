"""MCP over stdin and stdout: nothing but the protocol is written to stdout, and a signal need not wait for input."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from pydantic import ValidationError

LINES_AHEAD = 16
"""Lines that are read before they are handled."""


@contextmanager
def wire() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The process's stdin and stdout, for the protocol alone, as (input, output).

    In the block, everything else that reads stdin finds its end, and what it writes to stdout goes to stderr, also from
    libraries in C and from child processes.
    """
    private = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    # closefd: the thread that reads may still wait in a read when the block ends.
    try:
        yield os.fdopen(private[0], "rb", closefd=False), os.fdopen(private[1], "wb", closefd=False)
    finally:
        os.dup2(private[0], 0)
        os.dup2(private[1], 1)


async def serve(server: Server[Any], given: BinaryIO, out: BinaryIO) -> None:
    """Serve one client until its input ends and all its requests are answered, or until it reads no longer."""
    pipe = _Pipe(given, out)
    try:
        async with stdio_server(stdin=pipe, stdout=pipe) as (read, write):
            await server.run(read, write, server.create_initialization_options())
    except* BrokenPipeError:
        pass  # the client is gone


class _Pipe:
    """Both streams as the SDK uses them. It knows which requests are open, so that the end can wait for them.

    (The SDK cancels open requests when its input ends. A client that writes its requests, closes its end and then reads
    would miss replies.)
    """

    def __init__(self, given: BinaryIO, out: BinaryIO) -> None:
        self._given, self._out = given, out
        self._open: set[str | int] = set()
        self._answered = asyncio.Event()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue(LINES_AHEAD)

    async def __aiter__(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), name="memskill stdin", daemon=True).start()
        while (line := await self._lines.get()) is not None:
            text = line.decode("utf-8", "replace")
            if (message := _parsed(text)) is None:
                text = _with_whole_characters(text)
                message = _parsed(text)
            self._note(message)
            yield text
        while self._open:
            self._answered.clear()
            await self._answered.wait()

    async def write(self, text: str) -> None:
        await asyncio.to_thread(self._write, text.encode("utf-8", "replace"))
        self._note(_parsed(text))

    async def flush(self) -> None:
        """Nothing to do: :meth:`write` has done it."""

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Not with ``asyncio.to_thread``: the end of the loop would wait for the next line."""
        with suppress(RuntimeError, OSError):  # the loop is closed
            for line in self._given:
                asyncio.run_coroutine_threadsafe(self._lines.put(line), loop).result()
            asyncio.run_coroutine_threadsafe(self._lines.put(None), loop).result()

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._out.flush()

    def _note(self, message: Any) -> None:
        if isinstance(message, types.JSONRPCRequest):
            self._open.add(message.id)
        elif isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
            self._close((message.params or {}).get("requestId"))  # it is not answered
        elif isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            self._close(message.id)

    def _close(self, number: Any) -> None:
        if isinstance(number, str | int):
            self._open.discard(number)
            self._answered.set()


def _parsed(text: str) -> Any:
    """The message of a line as the SDK reads it; None for a line that it would not answer."""
    try:
        return types.jsonrpc_message_adapter.validate_json(text, by_name=False)
    except ValidationError:
        return None


def _with_whole_characters(text: str) -> str:
    """JSON with half characters replaced (JavaScript writes ``"\\ud83d"`` for half an emoji), which the SDK refuses.

    A request that it cannot read gets no answer over stdio.
    """
    try:
        whole = json.dumps(json.loads(text), ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
    return whole.encode("utf-8", "replace").decode()
