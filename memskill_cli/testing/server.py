"""An OpenAI-compatible mock server on 127.0.0.1 with scripted replies.

It uses real HTTP, so tests cover everything between caller and model: keys, retries, time limits, broken replies. It
runs one asyncio loop in a thread with a minimal HTTP/1.1 implementation; a request takes well under 1 ms of CPU.

``python -m memskill_cli.testing.server`` runs the rule-based models of :mod:`memskill_cli.testing.rules` until Ctrl-C,
to try memskill without a model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType

import orjson

from memskill_cli.testing import rules
from memskill_cli.testing.http import Http, completion, embeddings, models, read, send, send_fault
from memskill_cli.testing.replies import Fault, Reply, Request, Script, role_of
from memskill_cli.types import Role
from memskill_cli.utils.files import append_line

__all__ = ["Fault", "MockLLMServer", "Request"]


class MockLLMServer:
    """A mock LLM server for one ``with`` block.

    ``replies``: a function of the request, or a script per role (default for a role: the rule-based models).
    ``latency``: seconds from a request to its reply, including the time of the script. ``keys``: the accepted keys (401
    for others); None accepts all.
    ``faults``: called first; a fault that it returns is sent instead of a reply. Functions run on the server's event
    loop, so they must be fast. If one raises, the request gets status 500, and the exception is raised again at the end
    of the block.

    ``requests`` and ``max_in_flight`` can be read from any thread.
    """

    def __init__(
        self,
        replies: Mapping[Role, Script] | Callable[[Request], Reply] = rules.reply,
        *,
        latency: float | Callable[[Request], float] = 0.0,
        keys: Collection[str] | None = None,
        faults: Callable[[Request], Fault | None] | None = None,
        port: int = 0,
    ) -> None:
        self._replies, self._latency, self._keys, self._faults = replies, latency, keys, faults
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="mock-llm-server", daemon=True)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self.reset()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def requests(self) -> list[Request]:
        """All requests for completions and embeddings so far, in order of arrival."""
        return list(self._requests)

    def reset(self) -> None:
        """Clear the requests and restart every script."""
        self._requests: list[Request] = []
        self._turns: dict[Role, int] = {}
        self._in_flight = 0
        self.max_in_flight = 0

    def __enter__(self) -> MockLLMServer:
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if self._failure and error is None:
            raise self._failure

    # --- the loop and its connections ---

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._started = time.monotonic()
        try:
            server = self._loop.run_until_complete(
                asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=1024)
            )
            self._port = server.sockets[0].getsockname()[1]
        except OSError as error:
            self._failure = error
            self._loop.close()
            return
        finally:
            self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while http := await read(reader, writer):
                if not await self._handle(http, reader, writer) or not http.keep_alive:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has closed the connection, or this server stops
        finally:
            with contextlib.suppress(RuntimeError):  # the loop may be closing
                writer.close()

    async def _handle(self, http: Http, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. False if the connection must be closed."""
        path = http.path.partition("?")[0].rstrip("/")
        if http.method == "GET" and path.endswith("/models"):
            return await send(writer, 200, models())
        if http.method != "POST" or not path.endswith(("/chat/completions", "/embeddings")):
            return await send_fault(Fault.error(404, f"No such address: {http.method} {path}"), "", b"", reader, writer)
        try:
            request = self._record(http, path)
        except (orjson.JSONDecodeError, TypeError, AttributeError):
            return await send_fault(Fault.error(400, "The body is not the JSON of a request."), "", b"", reader, writer)
        self._in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            return await self._answer(request, reader, writer)
        finally:
            self._in_flight -= 1

    def _record(self, http: Http, path: str) -> Request:
        body = orjson.loads(http.body)
        messages = list(body.get("messages") or [])
        model = str(body.get("model") or "")
        key = http.headers.get("authorization", "").removeprefix("Bearer ").strip()
        key = key or http.headers.get("api-key", "") or http.headers.get("x-api-key", "")
        elapsed = time.monotonic() - self._started
        role = role_of(model, messages)
        request = Request(role, model, key, messages, body, path, elapsed, len(self._requests))
        self._requests.append(request)
        return request

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        received = time.monotonic()
        try:
            delay = self._latency(request) if callable(self._latency) else self._latency
            reply = self._reply(request)
        except Exception as error:  # any exception of a script is raised again at the end of the block
            self._failure = self._failure or error
            delay, reply = 0.0, Fault.server_error(message=f"The script failed: {type(error).__name__}")
        if delay:
            await asyncio.sleep(received + delay - time.monotonic())
        if isinstance(reply, Fault):
            return await send_fault(reply, request.key, completion(request, "cut off"), reader, writer)
        return await send(writer, 200, reply)

    def _reply(self, request: Request) -> bytes | Fault:
        if self._keys is not None and request.key not in self._keys:
            return Fault.unauthorized()
        if self._faults and (fault := self._faults(request)):
            return fault
        if request.path.endswith("/embeddings"):
            return embeddings(request)
        if request.body.get("stream"):
            return Fault.error(400, "This server does not stream.")
        reply = self._scripted(request)
        return reply if isinstance(reply, Fault) else completion(request, reply)

    def _scripted(self, request: Request) -> Reply:
        script: Script = self._replies if callable(self._replies) else self._replies.get(request.role, rules.reply)
        if callable(script):
            return script(request)
        if isinstance(script, str | Fault):
            return script
        turn = self._turns.get(request.role, 0)
        self._turns[request.role] = turn + 1
        return script[min(turn, len(script) - 1)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m memskill_cli.testing.server",
        description="An OpenAI-compatible server with rule-based models, to try memskill without a model.",
    )
    parser.add_argument("--port", type=int, default=0, help="0: a free port")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds from a request to its reply")
    parser.add_argument("--key", action="append", help="accept only this key (repeatable)")
    parser.add_argument("--log", type=Path, help="append each call, without its key, to this JSON-lines file")
    options = parser.parse_args(arguments)

    def reply(request: Request) -> str:
        text = rules.reply(request)
        if options.log:
            call = {"role": request.role, "model": request.model, "messages": request.messages, "reply": text}
            append_line(options.log, {"time": round(request.time, 3), **call})
        return text

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with MockLLMServer(reply, latency=options.latency, keys=options.key, port=options.port) as server:
        print(server.url, flush=True)
        print(f"Try: memskill eval --dataset locomo --model openai/rules --api-base {server.url} --api-key none")
        print("Ctrl-C stops.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
