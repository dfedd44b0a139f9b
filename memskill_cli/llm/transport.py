"""HTTP transport for litellm's clients: limits the size of replies and refuses redirects and compression."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from memskill_cli.llm.aiohttp_transport import AiohttpTransport
from memskill_cli.utils import process

MAX_BYTES = 16 * 2**20
"""Maximum size of a reply in bytes."""


class AttemptError(httpx.TransportError):
    """An attempt got no complete reply.

    It replaces httpx's own errors, because litellm answers some of them with a second request.
    """


class UnreachableError(AttemptError):
    """An attempt got no byte of a reply: the connection was refused or closed."""


@dataclass
class AttemptTrace:
    """HTTP status and error of one attempt. (The causes of an exception also include earlier attempts.)"""

    status: int = 0
    """HTTP status of the reply; 0 if there was none."""
    error: AttemptError | None = None


_TRACE: ContextVar[AttemptTrace | None] = ContextVar("_TRACE", default=None)


def track_attempt() -> AttemptTrace:
    """A new trace, filled by the calls that this task makes from now on."""
    trace = AttemptTrace()
    _TRACE.set(trace)
    return trace


class BoundedTransport(httpx.AsyncBaseTransport):
    """An httpx transport for untrusted servers. ``options`` are those of httpx.

    It requests and accepts only uncompressed replies, since a small compressed reply can expand to any size. It refuses
    redirects, so that keys are only sent to the configured address. Raises :class:`AttemptError`.
    """

    def __init__(self, verify: ssl.SSLContext | bool | str = True, **options: Any) -> None:
        context = httpx.create_ssl_context(verify=verify, cert=options.get("cert"))
        has_proxy = options.get("proxy") is not None
        self._transport = (
            httpx.AsyncHTTPTransport(verify=context, **options) if has_proxy else AiohttpTransport(context)
        )

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        trace = _TRACE.get() or AttemptTrace()
        request.headers["accept-encoding"] = "identity"
        try:
            response = await self._transport.handle_async_request(request)
        except (httpx.NetworkError, httpx.ProtocolError, httpx.ProxyError) as error:
            trace.error = UnreachableError(f"connection failed: {error or type(error).__name__}")
            raise trace.error from error
        trace.status = response.status_code
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _BoundedStream(response.stream, trace)
        if refusal := _reject_reason(response):
            await response.aclose()
            trace.error = AttemptError(refusal)
            raise trace.error
        return response


class _BoundedStream(httpx.AsyncByteStream):
    """The bytes of a reply, up to :data:`MAX_BYTES`."""

    def __init__(self, stream: httpx.AsyncByteStream, trace: AttemptTrace) -> None:
        self._stream, self._trace = stream, trace

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._stream:
                size += len(chunk)
                if size > MAX_BYTES:
                    raise httpx.RemoteProtocolError("too long")
                yield chunk
        except (httpx.NetworkError, httpx.ProtocolError) as error:
            too_long = f"the reply is larger than {MAX_BYTES // 2**20} MiB"
            broken = f"the connection broke after {size} bytes of the reply"
            self._trace.error = AttemptError(too_long if size > MAX_BYTES else broken)
            raise self._trace.error from error

    async def aclose(self) -> None:
        await self._stream.aclose()


def _reject_reason(response: httpx.Response) -> str:
    """Why a reply is refused before its body is read; "" if it is accepted."""
    if response.has_redirect_location:
        return f"the server redirects to {response.headers['location'][:200]}"
    if (encoding := response.headers.get("content-encoding", "identity").lower()) != "identity":
        return f"the reply is compressed ({encoding[:20]}), but an uncompressed one was requested"
    return ""


def install() -> None:
    """Make litellm's HTTP clients use this transport, also those behind a proxy. May be called repeatedly.

    In a borrowed process (library use), clients for other callers of litellm are not changed.
    """
    from litellm.llms.custom_httpx import http_handler

    handler = http_handler.AsyncHTTPHandler
    create, mounts = handler.create_async_transport, handler.create_httpx_proxy_mounts
    process.set_attribute(handler, "create_async_transport", staticmethod(partial(_create_transport, create)))
    process.set_attribute(handler, "create_httpx_proxy_mounts", staticmethod(partial(_proxy_mounts, mounts)))


def _create_transport(
    original: Callable[..., Any],
    ssl_context: ssl.SSLContext | None = None,
    ssl_verify: bool | None = None,
    **options: Any,
) -> Any:
    import litellm

    if process.is_borrowed() and _TRACE.get() is None:
        return original(ssl_context=ssl_context, ssl_verify=ssl_verify, **options)
    verify = ssl_context if ssl_context is not None else ssl_verify is not False
    return BoundedTransport(verify=verify, cert=os.getenv("SSL_CERTIFICATE", litellm.ssl_certificate))


def _proxy_mounts(original: Callable[..., Any], transport: Any, verify: Any, cert: Any) -> Any:
    """A client's transports for the addresses for which the environment defines a proxy."""
    from litellm.llms.custom_httpx import http_handler

    if not isinstance(transport, BoundedTransport):
        return original(transport, verify=verify, cert=cert)
    return http_handler._environment_proxy_mounts(lambda proxy: BoundedTransport(proxy=proxy, verify=verify, cert=cert))
