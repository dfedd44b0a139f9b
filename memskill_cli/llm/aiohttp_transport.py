"""An httpx transport on aiohttp connections. httpx's own transport takes 1.4 ms more per call (docs/benchmarks.md)."""

from __future__ import annotations

import asyncio
import atexit
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from weakref import WeakSet

import aiohttp
import httpx
from yarl import URL

from memskill_cli.llm import import_litellm

_TRANSPORTS: WeakSet[AiohttpTransport] = WeakSet()


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Sends each request once and returns the reply as received: no redirects, no decompression, no retries.

    Raises httpx's errors. Each event loop has its own connections, until :func:`close_connections`.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        _TRANSPORTS.add(self)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions.get("timeout", {})
        with _as_httpx_errors():
            reply = await self._session().request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=request.headers.multi_items(),
                data=await request.aread() or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(sock_connect=limits.get("connect"), sock_read=limits.get("read")),
            )
        return httpx.Response(reply.status, headers=reply.raw_headers, stream=_ReplyStream(reply))

    async def aclose(self) -> None:
        if session := self.sessions.pop(asyncio.get_running_loop(), None):
            await session.close()

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self.sessions:
            self.sessions = {other: session for other, session in self.sessions.items() if not other.is_closed()}
            self.sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._context, limit=0),  # AdaptiveLimiter limits calls
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=["User-Agent", "Content-Type"],
            )
        return self.sessions[loop]


async def close_connections() -> None:
    """Close the connections of the running event loop. Later calls open new ones."""
    for transport in list(_TRANSPORTS):
        await transport.aclose()
    _forget_clients(asyncio.get_running_loop())


def _forget_clients(loop: asyncio.AbstractEventLoop) -> None:
    """Drop litellm's clients of a loop: it keeps them under the loop's address, which another loop may get."""
    clients = import_litellm().in_memory_llm_clients_cache
    for name in [name for name in clients.cache_dict if str(name).endswith(f"-{id(loop)}")]:
        for table in (clients.cache_dict, clients.ttl_dict):
            table.pop(name, None)


@atexit.register
def _close_all() -> None:
    """Close what other loops left open. Otherwise aiohttp warns during interpreter shutdown."""
    for session in [session for transport in list(_TRANSPORTS) for session in transport.sessions.values()]:
        with suppress(RuntimeError):  # its loop is closed
            asyncio.run(session.close())


class _ReplyStream(httpx.AsyncByteStream):
    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors():
            async for chunk in self._reply.content.iter_any():
                yield chunk

    async def aclose(self) -> None:
        self._reply.close()  # no effect after a complete read: the connection is back in the pool


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise httpx.ConnectError(str(error)) from error
    except TimeoutError as error:
        raise httpx.ReadTimeout(str(error)) from error
    except aiohttp.ClientConnectionError as error:
        raise httpx.ReadError(str(error)) from error
    except (aiohttp.ClientError, ValueError) as error:
        raise httpx.RemoteProtocolError(str(error)) from error
