"""aiohttp's connections in the shape of an httpx transport: httpx's own take 1.4 ms more a call (docs/speed.md)."""

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

_TRANSPORTS: WeakSet[AiohttpTransport] = WeakSet()


class AiohttpTransport(httpx.AsyncBaseTransport):
    """What is sent is sent whole, and replies come as they are: nothing is followed, unpacked or sent twice.

    Raises httpx's errors. Each event loop has connections of its own, until :func:`close_connections`.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        _TRANSPORTS.add(self)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions.get("timeout", {})
        with _errors_of_httpx():
            reply = await self._session().request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=request.headers.multi_items(),
                data=await request.aread() or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(sock_connect=limits.get("connect"), sock_read=limits.get("read")),
            )
        return httpx.Response(reply.status, headers=reply.raw_headers, stream=_Stream(reply))

    async def aclose(self) -> None:
        if session := self.sessions.pop(asyncio.get_running_loop(), None):
            await session.close()

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self.sessions:
            self.sessions = {other: session for other, session in self.sessions.items() if not other.is_closed()}
            self.sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._context, limit=0),  # how many calls there are is flow's to say
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=["User-Agent", "Content-Type"],
            )
        return self.sessions[loop]


async def close_connections() -> None:
    """Close those of the running event loop; who makes a call later opens new ones."""
    for transport in list(_TRANSPORTS):
        await transport.aclose()


@atexit.register
def _hang_up() -> None:
    """Close what other loops have left open: aiohttp complains of it when the interpreter is half gone."""
    for session in [session for transport in list(_TRANSPORTS) for session in transport.sessions.values()]:
        with suppress(RuntimeError):  # its loop is closed
            asyncio.run(session.close())


class _Stream(httpx.AsyncByteStream):
    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _errors_of_httpx():
            async for chunk in self._reply.content.iter_any():
                yield chunk

    async def aclose(self) -> None:
        self._reply.close()  # nothing is done to a connection that was read to its end, and is in the pool again


@contextmanager
def _errors_of_httpx() -> Iterator[None]:
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
