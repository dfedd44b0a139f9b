"""The parent's side of a worker process: one request and one reply at a time, each with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from memskill_cli.envs.environment import DEFAULT, ENVIRONMENTS, environment
from memskill_cli.errors import DataError, GameError
from memskill_cli.utils.registry import loaded_plugins

START_SECONDS = 120.0
"""Time limit for a worker to import its libraries: usually 1 to 2 s, more on a busy machine."""
LONGEST_REPLY = 4 << 20
"""Most bytes of a reply."""
ENV_VARS = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
"""Environment variables that a worker gets. No API keys."""


def program(name: str = DEFAULT) -> tuple[str, ...]:
    """The command that starts a worker for the environment ``name``. A plug-in's environment loads the plug-in files.

    Raises DataError, with the package to install, if the environment is not available.
    """
    environment(name).check()
    plugins = [str(plugin.path) for plugin in loaded_plugins()] if ENVIRONMENTS.identity(name) else []
    return (sys.executable, "-m", "memskill_cli.envs.env_worker", name, *plugins)


class EnvProcess:
    """A worker process, in its own process group so that its children are killed with it.

    ``usable`` is False after it died or was killed, and after a request was cancelled, because its next reply would
    belong to that request. ``games`` is the number of games it has started.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.usable = True
        self.games = 0

    @classmethod
    async def start(cls, command: Sequence[str], root: Path, install: str = "") -> EnvProcess:
        """Start a worker and wait until it is ready.

        Raises DataError, with the hint ``install``, if games cannot be played on this machine.
        """
        environ = {name: os.environ[name] for name in ENV_VARS if name in os.environ}
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
            raise DataError(f"games cannot be played on this machine: {error.message}", hint=install) from None
        except BaseException:
            await worker.kill()
            raise
        return worker

    async def ask(self, action: str, text: str, deadline: float, game: str) -> Any:
        """Send a request and return the reply; ``deadline`` in seconds.

        Raises GameError (died, hung or broken), which names ``game``. A worker that hangs is killed.
        """
        assert self._process.stdin is not None
        self.usable = False
        try:
            self._process.stdin.write(orjson.dumps({"do": action, "with": text}) + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            raise await self._died(game) from None
        return await self._reply(deadline, game)

    async def _reply(self, deadline: float, game: str) -> Any:
        assert self._process.stdout is not None
        try:
            # not wait_for: in Python 3.11 it can lose a cancellation of this task
            async with asyncio.timeout(deadline):
                line = await self._process.stdout.readline()
        except TimeoutError:
            await self.kill()
            raise GameError(f"{game}: no reply within {deadline:g} s, so its process was killed", kind="hung") from None
        except ValueError:  # readline() raises it for a line longer than LONGEST_REPLY
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
            raise GameError(f"{game}: {reply.get('broken', 'an invalid reply')}", kind="broken")
        return reply["ok"]

    async def _died(self, game: str) -> GameError:
        await self.kill()
        code = self._process.returncode
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with code {code}"
        return GameError(f"{game}: its process ended {how}", kind="died")

    async def kill(self) -> None:
        """Kill the process and its children, also if they are stopped or busy."""
        self.usable = False
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just exited
                os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
