"""The parts of HTTP/1.1 and of OpenAI's reply format that clients of model servers need."""

from __future__ import annotations

import array
import asyncio
import base64
import contextlib
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson

from memskill_cli.testing import rules
from memskill_cli.testing.replies import CutReply, Fault, Request

MAX_BODY = 64 * 2**20
ENDLESS = 2**40
"""Content-Length of an endless reply."""


class Http(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Http | None:
    """The next request of a connection; None if the client has closed it or sent invalid HTTP."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    first, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length", "0")
    if first.count(" ") != 2 or not length.isdigit() or int(length) > MAX_BODY or "transfer-encoding" in headers:
        await send(writer, 400, b"")
        return None
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(length))
    method, path, version = first.split(" ")
    keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return Http(method, path, headers, body, keep_alive)


def _head(status: int, length: int, headers: Mapping[str, str] | None = None) -> bytes:
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"
    fields = {"Content-Type": "application/json", "Content-Length": str(length), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode("latin-1")


async def send(
    writer: asyncio.StreamWriter, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> bool:
    writer.write(_head(status, len(body), headers) + body)
    await writer.drain()
    return True


async def send_fault(
    fault: Fault, key: str, good: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Send ``fault``; ``good`` is the reply that a ``cut`` truncates. False if the connection must be closed."""
    if fault.kind == "status":
        body = fault.body.encode() if isinstance(fault.body, str) else fault.body
        return await send(writer, fault.status, body.replace(b"{key}", key.encode()), fault.headers)
    if fault.kind == "empty":
        return await send(writer, 200, b"", fault.headers)
    if fault.kind == "hang":
        with contextlib.suppress(TimeoutError):  # read() returns when the client closes the connection
            await asyncio.wait_for(reader.read(), fault.seconds or None)
    elif fault.kind in ("drip", "flood"):
        writer.write(_head(200, ENDLESS))
        while True:
            writer.write(b" " if fault.kind == "drip" else b" " * 2**16)
            await writer.drain()
            await asyncio.sleep(fault.seconds)
    elif fault.kind == "cut":
        writer.write(_head(200, len(good)) + good[: len(good) // 2])
        await writer.drain()
    else:
        writer.transport.abort()
    return False


# --- replies in OpenAI's format ---


def tokens(text: str) -> int:
    """A rough, deterministic count: four characters per token."""
    return -(-len(text) // 4)


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion(request: Request, text: str) -> bytes:
    reason = "length" if isinstance(text, CutReply) else "stop"
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": str(text)}}
    return orjson.dumps(
        {
            "id": f"chatcmpl-{request.index}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [choice],
            "usage": _usage(tokens(request.text), tokens(text)),
        }
    )


def embeddings(request: Request) -> bytes:
    given = request.body.get("input") or []
    texts = [given] if isinstance(given, str) else [str(text) for text in given]
    data: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        vector: Any = rules.embed(text)
        if request.body.get("encoding_format") == "base64":
            vector = base64.b64encode(array.array("f", vector).tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    usage = _usage(sum(map(tokens, texts)), 0)
    return orjson.dumps({"object": "list", "data": data, "model": request.model, "usage": usage})


def models() -> bytes:
    names = ["executor", "answer", "judge", "designer"]
    models = [{"id": f"rules-{name}", "object": "model", "created": 0, "owned_by": "memskill"} for name in names]
    return orjson.dumps({"object": "list", "data": models})
