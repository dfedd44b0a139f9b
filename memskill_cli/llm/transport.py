"""The connections below litellm, with bounds: no reply is endless, and none comes from elsewhere."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx

from memskill_cli.llm.aiohttp_transport import AiohttpTransport

MAX_BYTES = 16 * 2**20
"""Bytes of a reply that are read at most."""


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
    """

    def __init__(self, verify: ssl.SSLContext | bool | str = True, **options: Any) -> None:
        context = httpx.create_ssl_context(verify=verify, cert=options.get("cert"))
        through_proxy = options.get("proxy") is not None
        self._transport = (
            httpx.AsyncHTTPTransport(verify=context, **options) if through_proxy else AiohttpTransport(context)
        )

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        wire = _WIRE.get() or Wire()
        request.headers["accept-encoding"] = "identity"
        try:
            response = await self._transport.handle_async_request(request)
        except (httpx.NetworkError, httpx.ProtocolError, httpx.ProxyError) as error:
            wire.error = SilentError(f"the connection fails: {error or type(error).__name__}")
            raise wire.error from error
        wire.status = response.status_code
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Bounded(response.stream, wire)
        if refusal := _refusal(response):
            await response.aclose()
            wire.error = WireError(refusal)
            raise wire.error
        return response


class _Bounded(httpx.AsyncByteStream):
    """The bytes of a reply, up to :data:`MAX_BYTES`."""

    def __init__(self, stream: httpx.AsyncByteStream, wire: Wire) -> None:
        self._stream, self._wire = stream, wire

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
