"""A worker process as whoever owns it sees it: one request, one reply, each before a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from memskill_cli.errors import DataError, GameError

START_SECONDS = 120.0
"""How long a worker may take to import its libraries: a second or two, more on a busy machine."""
LONGEST_REPLY = 4 << 20
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
"""Of the environment, what a worker gets: never a key."""
INSTALL = 'pip install "memskill[alfworld]"   (builds from source: a compiler and cmake, about two minutes)'


def program() -> tuple[str, ...]:
    """The command that starts a worker. DataError, with what to install, without the extra ``alfworld``."""
    if missing := [name for name in ("alfworld", "textworld") if importlib.util.find_spec(name) is None]:
        raise DataError(f"ALFWorld's games need {' and '.join(missing)}, not installed here", hint=INSTALL)
    return (sys.executable, "-m", "memskill_cli.envs.env_worker")


class Worker:
    """One process, in a process group of its own so that it is killed with all it may have started.

    ``usable`` is False once it has died, was killed, or was left in the middle of a request (cancelled): its next
    reply would be to a question that nobody asks any more. ``games`` counts those it was given.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.usable = True
        self.games = 0

    @classmethod
    async def start(cls, command: Sequence[str], root: Path) -> Worker:
        """A worker that is ready. DataError if games cannot be played on this machine."""
        environ = {name: os.environ[name] for name in KEPT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**environ, "ALFWORLD_DATA": str(root), "OMP_NUM_THREADS": "1"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=LONGEST_REPLY,
            process_group=0,
        )
        worker = cls(process)
        try:
            await worker._reply(START_SECONDS, "the game program")
        except GameError as error:
            await worker.kill()
            raise DataError(f"games cannot be played here: {error.message}", hint=INSTALL) from None
        except BaseException:
            await worker.kill()
            raise
        return worker

    async def ask(self, what: str, text: str, deadline: float, game: str) -> Any:
        """The reply to one request. GameError (died, hung or broken) names ``game``; a worker that hung is killed."""
        assert self._process.stdin is not None
        self.usable = False
        try:
            self._process.stdin.write(orjson.dumps({"do": what, "with": text}) + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            raise await self._died(game) from None
        return await self._reply(deadline, game)

    async def _reply(self, deadline: float, game: str) -> Any:
        assert self._process.stdout is not None
        try:
            # not wait_for, which in Python 3.11 may swallow that this task is cancelled
            async with asyncio.timeout(deadline):
                line = await self._process.stdout.readline()
        except TimeoutError:
            await self.kill()
            raise GameError(f"{game}: no reply within {deadline:g} s, so its process was killed", kind="hung") from None
        except ValueError:  # asyncio's word for a line longer than LONGEST_REPLY
            await self.kill()
            raise GameError(f"{game}: a reply of more than {LONGEST_REPLY} bytes", kind="broken") from None
        if not line:
            raise await self._died(game)
        try:
            reply = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise await self._died(game) from None
        self.usable = True
        if "ok" not in reply:
            raise GameError(f"{game}: {reply.get('broken', 'no reply that makes sense')}", kind="broken")
        return reply["ok"]

    async def _died(self, game: str) -> GameError:
        await self.kill()
        code = self._process.returncode
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with code {code}"
        return GameError(f"{game}: its process ended {how}", kind="died")

    async def kill(self) -> None:
        """End the process and whatever it started, stopped or busy as it may be."""
        self.usable = False
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
