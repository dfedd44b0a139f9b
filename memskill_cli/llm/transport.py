"""Wraps litellm's HTTP transport: limits the size of replies, refuses redirects and compression, names what failed.

litellm's transport (on aiohttp; httpx's own takes 1.4 ms more per call, docs/benchmarks.md) does none of this.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet

import httpx

from memskill_cli.llm import import_litellm
from memskill_cli.llm.wire_shapes import as_stream, mend
from memskill_cli.utils import process
from memskill_cli.utils.resource_limits import limit_reached

MAX_BYTES = 16 * 2**20
"""Maximum size of a reply in bytes."""
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's parameter for each compression that is understood."""
_BROKEN = (httpx.RequestError, httpx.InvalidURL, ValueError)  # ValueError: headers that are not ASCII


class AttemptError(httpx.TransportError):
    """An attempt got no complete reply.

    It replaces httpx's own errors, because litellm answers some of them with a second request.
    """


class UnreachableError(AttemptError):
    """An attempt got no byte of a reply: the connection was refused or closed."""


class LocalLimitError(AttemptError):
    """An attempt failed because of a limit of this machine; ``__cause__`` is the ResourceLimitError. It says nothing
    about the server."""


@dataclass
class AttemptTrace:
    """HTTP status and error of one attempt. (The causes of an exception also include earlier attempts.)"""

    status: int = 0
    """HTTP status of the reply; 0 if there was none."""
    error: AttemptError | None = None
    deployment: str = ""
    """The name of the deployment that was asked; "" if none was."""
    sent: dict[str, Any] = field(default_factory=dict)
    """The arguments of litellm's call."""


_TRACE: ContextVar[AttemptTrace | None] = ContextVar("_TRACE", default=None)


def track_attempt() -> AttemptTrace:
    """A new trace, filled by the calls that this task makes from now on."""
    trace = AttemptTrace()
    _TRACE.set(trace)
    return trace


def current_attempt() -> AttemptTrace:
    """The trace of the attempt that this task makes; a new one, which nobody reads, if there is none."""
    return _TRACE.get() or AttemptTrace()


class BoundedTransport(httpx.AsyncBaseTransport):
    """An httpx transport for untrusted servers, around ``inner``, which makes the connections.

    It requests uncompressed replies, since a small compressed reply can expand to any size. Gzip that is sent
    nevertheless is decompressed up to the limit. It refuses redirects, so that keys are only sent to the configured
    address. Raises :class:`AttemptError`.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.loop: asyncio.AbstractEventLoop | None = None  # of the last request
        _TRANSPORTS.add(self)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        trace = _TRACE.get() or AttemptTrace()
        self.loop = asyncio.get_running_loop()
        request.headers["accept-encoding"] = "identity"
        try:
            response = await self._inner.handle_async_request(request)
        except httpx.TimeoutException:
            raise
        except _BROKEN as error:
            if limit := limit_reached(error):
                trace.error = LocalLimitError(limit.message)
                raise trace.error from limit
            trace.error = UnreachableError(f"connection failed: {error or type(error).__name__}")
            raise trace.error from error
        trace.status = response.status_code
        assert isinstance(response.stream, httpx.AsyncByteStream)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding in _WINDOW_BITS:  # some proxies compress although that was not asked for
            del response.headers["content-encoding"]
            response.headers.pop("content-length", None)
        response.stream = _BoundedStream(response.stream, trace, _WINDOW_BITS.get(encoding))
        if refusal := _reject_reason(response):
            await response.aclose()
            trace.error = AttemptError(refusal)
            raise trace.error
        if response.status_code == 200 and "json" in response.headers.get("content-type", ""):
            await _mend(response, _asks_for_stream(request))
        return response


_TRANSPORTS: WeakSet[BoundedTransport] = WeakSet()


async def close_connections() -> None:
    """Close the connections of the running event loop. Later calls open new ones."""
    loop = asyncio.get_running_loop()
    for transport in [transport for transport in _TRANSPORTS if transport.loop is loop]:
        await transport.aclose()
    # litellm keeps its clients under the loop's address, which another loop may get.
    clients = import_litellm().in_memory_llm_clients_cache
    for name in [name for name in clients.cache_dict if str(name).endswith(f"-{id(loop)}")]:
        for table in (clients.cache_dict, clients.ttl_dict):
            table.pop(name, None)


class _BoundedStream(httpx.AsyncByteStream):
    """The bytes of a reply, up to :data:`MAX_BYTES`, decompressed if ``window_bits`` (of zlib) are given."""

    def __init__(self, stream: httpx.AsyncByteStream, trace: AttemptTrace, window_bits: int | None = None) -> None:
        self._stream, self._trace = stream, trace
        self._inflate = None if window_bits is None else zlib.decompressobj(window_bits)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for received in self._stream:
                chunk = received
                if self._inflate:  # never more than one byte above the limit, whatever was sent
                    chunk = self._inflate.decompress(received, MAX_BYTES - size + 1)
                size += len(chunk)
                if size > MAX_BYTES:
                    raise httpx.RemoteProtocolError("too long")
                yield chunk
        except httpx.TimeoutException:
            raise
        except (httpx.RequestError, zlib.error) as error:
            too_long = f"the reply is larger than {MAX_BYTES // 2**20} MiB"
            broken = f"the connection broke after {size} bytes of the reply"
            self._trace.error = AttemptError(too_long if size > MAX_BYTES else broken)
            raise self._trace.error from error

    async def aclose(self) -> None:
        await self._stream.aclose()


def _asks_for_stream(request: httpx.Request) -> bool:
    try:
        return re.search(rb'"stream"\s*:\s*true', request.content) is not None
    except httpx.RequestNotRead:
        return False


async def _mend(response: httpx.Response, streamed: bool) -> None:
    """Read a JSON reply and give it the shape that litellm expects (:mod:`.wire_shapes`)."""
    received = response.stream
    assert isinstance(received, httpx.AsyncByteStream)
    try:
        body = b"".join([chunk async for chunk in received])
    finally:
        await received.aclose()
    response.headers.pop("content-length", None)
    body = mend(body)
    if streamed and (events := as_stream(body)):  # a server that ignores "stream"
        body, response.headers["content-type"] = events, "text/event-stream"
    response.stream = httpx.ByteStream(body)


def _reject_reason(response: httpx.Response) -> str:
    """Why a reply is refused before its body is read; "" if it is accepted."""
    if response.has_redirect_location:
        return f"the server redirects to {response.headers['location'][:200]}"
    if (encoding := response.headers.get("content-encoding", "identity").lower()) != "identity":
        return f"the reply is compressed ({encoding[:20]}), but an uncompressed one was requested"
    return ""


def install() -> None:
    """Make litellm's HTTP clients use this transport. May be called repeatedly.

    In a borrowed process (library use), clients for other callers of litellm are not changed.
    """
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    create = partial(_create_transport, AsyncHTTPHandler.create_async_transport)
    process.set_attribute(AsyncHTTPHandler, "create_async_transport", staticmethod(create))


def _create_transport(
    original: Callable[..., Any], ssl_context: ssl.SSLContext | None = None, **options: Any
) -> httpx.AsyncBaseTransport | None:
    if not process.is_borrowed() or _TRACE.get() is not None:
        cert = os.getenv("SSL_CERTIFICATE", import_litellm().ssl_certificate)
        if cert and ssl_context:  # litellm gives the client's certificate only to httpx's own transport
            ssl_context = httpx.create_ssl_context(verify=ssl_context, cert=cert)
        return BoundedTransport(original(ssl_context=ssl_context, **options) or httpx.AsyncHTTPTransport())
    return original(ssl_context=ssl_context, **options)
