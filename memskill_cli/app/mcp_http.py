"""MCP over streamable HTTP at ``/mcp``: on this machine only, or behind a token; Host, Origin and sizes are checked."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import Route

from memskill_cli.errors import UsageError

PATH = "/mcp"
MAX_BODY = 4 * 1024 * 1024
"""Most bytes of a request: the messages of one call of ``add``, mostly as ASCII."""
MIN_TOKEN = 16
"""Fewest characters of a token."""
GRACE = 3
"""Seconds that requests have when the server ends. Messages that they added are stored."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Address:
    """Where to listen, who may ask, and under which names."""

    host: str
    port: int
    token: str | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str, token: str | None, names: Sequence[str] = ()) -> Address:
        """HOST:PORT. UsageError if it is none, or if other machines could ask without a token."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
            raise UsageError(f"--http {text}: not HOST:PORT", hint="for example --http 127.0.0.1:8765")
        if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
            hint = "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
            raise UsageError(f"the token must have at least {MIN_TOKEN} printable ASCII characters", hint=hint)
        if token is None and not _is_loopback(host):
            hint = "set MEMSKILL_MCP_TOKEN, or use 127.0.0.1"
            raise UsageError(f"--http {text}: other machines could read the memories without a token", hint=hint)
        return cls(host, int(port), token, tuple(names))

    @contextmanager
    def bound(self) -> Iterator[socket.socket]:
        """A socket that listens. UsageError if there can be none."""
        try:
            family = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0][0]
            listening = socket.create_server((self.host, self.port), family=family)
        except OSError as error:
            why = error.strerror or str(error)
            raise UsageError(f"cannot listen at {self.host}:{self.port}: {why}", hint="choose another --http") from None
        with listening:
            yield listening

    def url(self, bound: socket.socket) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{bound.getsockname()[1]}{PATH}"

    def security(self) -> TransportSecuritySettings:
        """Names that Host and Origin may have. A web page that found this address has another Origin."""
        own = f"[{self.host}]" if ":" in self.host else self.host
        hosts = [form for name in (*LOOPBACK, own, *self.names) for form in (name, f"{name}:*")]
        origins = [f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts]
        return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


def make_app(server: Server[Any], address: Address) -> Starlette:
    """The web application. Each request is served by itself: there are no sessions that a restart would end."""
    manager = StreamableHTTPSessionManager(
        server, stateless=True, security_settings=address.security(), max_request_body_size=MAX_BODY
    )
    endpoint: Any = StreamableHTTPASGIApp(manager)
    middleware = []
    if address.token is not None:
        backend = BearerAuthBackend(_OneToken(address.token))
        middleware = [Middleware(AuthenticationMiddleware, backend=backend)]
        endpoint = RequireAuthMiddleware(endpoint, [])
    return Starlette(routes=[Route(PATH, endpoint)], middleware=middleware, lifespan=lambda app: manager.run())


async def serve(server: Server[Any], address: Address, bound: socket.socket) -> None:
    """Serve until the task is cancelled; then open requests have GRACE seconds."""
    config = uvicorn.Config(
        make_app(server, address),
        log_config=None,  # uvicorn's own would write to stdout
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=GRACE,
    )
    web = _WebServer(config)
    running = asyncio.ensure_future(web.serve([bound]))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        web.should_exit = True
        await running
        raise


class _WebServer(uvicorn.Server):
    """Without handlers of signals: the command has its own (:mod:`memskill_cli.utils.signals`)."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _OneToken:
    """Accepts one token. The time of a comparison does not depend on where two tokens differ."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def verify_token(self, token: str) -> AccessToken | None:
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self._token):
            return None
        return AccessToken(token="", client_id="memskill", scopes=[])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
