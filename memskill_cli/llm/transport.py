"""The connections below litellm, with bounds: no reply is endless, and none comes from elsewhere."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx

MAX_BYTES = 16 * 2**20
"""Bytes of a reply that are read at most."""
POOL = 2  # calls at a time to one pool of connections


class WireError(httpx.TransportError):
    """There is no whole reply.

    httpx's own errors of this kind are never let through: litellm answers some of them with a second request.
    """


class SilentError(WireError):
    """There is not a word of a reply: nobody listens, or whoever listened hung up."""


@dataclass
class Wire:
    """What was seen on the wire during one attempt (an error's chain of causes tells of earlier attempts, too)."""

    status: int = 0
    """HTTP status of the reply; 0 if there was none."""
    error: WireError | None = None


_WIRE: ContextVar[Wire | None] = ContextVar("_WIRE", default=None)


def watch() -> Wire:
    """What will be seen from now on, by calls made in this task."""
    wire = Wire()
    _WIRE.set(wire)
    return wire


class BoundedTransport(httpx.AsyncBaseTransport):
    """As httpx's, for servers that are not trusted; ``options`` are httpx's.

    Replies are asked for, and taken, uncompressed, since a small one may unpack to anything. Redirects are refused:
    what is sent, keys included, goes to the address that was given and to no other.

    There are as many pools of connections as it takes to have few calls in each: a pool looks at all of its connections
    at each call, which with 64 of them was a third of what a call costs, and it holds no more than a hundred. A call
    goes to the first pool with room, so that connections are used again before the server or httpx lets go of them.
    """

    def __init__(self, verify: ssl.SSLContext | bool | str = True, **options: Any) -> None:
        context = verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify=verify)
        self._options = {"verify": context, **options}
        self._pools: list[_Pool] = []

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.transport.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        wire = _WIRE.get() or Wire()
        request.headers["accept-encoding"] = "identity"
        pool = self._with_room()
        pool.calls += 1
        try:
            response = await pool.transport.handle_async_request(request)
        except BaseException as error:
            pool.calls -= 1
            if not isinstance(error, (httpx.NetworkError, httpx.ProtocolError, httpx.ProxyError)):
                raise
            wire.error = SilentError(f"the connection fails: {error or type(error).__name__}")
            raise wire.error from error
        wire.status = response.status_code
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Bounded(response.stream, wire, pool)
        if refusal := _refusal(response):
            await response.aclose()
            wire.error = WireError(refusal)
            raise wire.error
        return response

    def _with_room(self) -> _Pool:
        for pool in self._pools:
            if pool.calls < POOL:
                return pool
        self._pools.append(_Pool(httpx.AsyncHTTPTransport(**self._options)))
        return self._pools[-1]


@dataclass
class _Pool:
    transport: httpx.AsyncHTTPTransport
    calls: int = 0
    """Whose replies are not yet read to the end."""


class _Bounded(httpx.AsyncByteStream):
    """The bytes of a reply, up to :data:`MAX_BYTES`."""

    def __init__(self, stream: httpx.AsyncByteStream, wire: Wire, pool: _Pool) -> None:
        self._stream, self._wire, self._pool = stream, wire, pool

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._stream:
                size += len(chunk)
                if size > MAX_BYTES:
                    raise httpx.RemoteProtocolError("too long")
                yield chunk
        except (httpx.NetworkError, httpx.ProtocolError) as error:
            long = f"the reply has more than {MAX_BYTES // 2**20} MiB"
            self._wire.error = WireError(long if size > MAX_BYTES else f"the reply breaks off after {size} bytes")
            raise self._wire.error from error

    async def aclose(self) -> None:
        self._pool.calls -= 1
        await self._stream.aclose()


def _refusal(response: httpx.Response) -> str:
    """Why a reply is not even read; "" if it may be."""
    if response.has_redirect_location:
        return f"the server sends us elsewhere, to {response.headers['location'][:200]}"
    if (packed := response.headers.get("content-encoding", "identity").lower()) != "identity":
        return f"the reply is compressed ({packed[:20]}), which was not asked for"
    return ""


def install() -> None:
    """Give litellm's HTTP clients this transport, also those that go through a proxy. Any number of times."""
    from litellm.llms.custom_httpx import http_handler as handler

    handler.AsyncHTTPTransport = BoundedTransport
    handler.AsyncHTTPHandler.create_async_transport = staticmethod(_create)


def _create(ssl_context: ssl.SSLContext | None = None, ssl_verify: bool | None = None, **_: Any) -> BoundedTransport:
    import litellm

    verify = ssl_context if ssl_context is not None else ssl_verify is not False
    return BoundedTransport(verify=verify, cert=os.getenv("SSL_CERTIFICATE", litellm.ssl_certificate))
