"""A worker whose games are made up: the real program around another engine, so that faults can be had at will."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import types
from pathlib import Path

from memskill_cli.envs import env_worker
from memskill_cli.envs.environment import Observation


class TextWorldEnv:
    """A game is a file of text; what it says, and what is played, decides what goes wrong."""

    def start(self, file: Path) -> Observation:
        self.text = file.read_text("utf-8")
        self._misbehave(self.text)
        return self._scene(json.loads(self.text).get("opening", "") if self.text.startswith("{") else self.text)

    def play(self, command: str) -> Observation:
        self._misbehave(command)
        return self._scene(f"You {command}.", won=command == "win")

    def walkthrough(self) -> list[str]:
        return json.loads(self.text)["walkthrough"] or [] if self.text.startswith("{") else []

    def plan(self) -> list[str]:
        return json.loads(self.text)["plan"]

    def _misbehave(self, what: str) -> None:
        print("chatter of a library")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "leave":
            os._exit(3)
        elif what == "hang":
            time.sleep(600)
        elif what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif what == "break":
            raise ValueError("no such thing\nas this game")
        elif what == "exit":
            sys.exit("the translator gives up")
        elif what == "flood":
            self._scene = lambda text, won=False: Observation("x" * (5 << 20), (), "", False, False)
        elif what == "spawn":
            self.text = self._child()

    def _child(self) -> str:
        """A process of its own, as a library might start one; its id."""
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        return str(pid)

    def _scene(self, observation: str, won: bool = False) -> Observation:
        environ = " ".join(sorted(os.environ))
        commands = ("look", f"pid {os.getpid()}", f"environ {environ}", "die", "stop", "win")
        return Observation(observation, commands, "", won, won)


module = types.ModuleType("memskill_cli.envs.alfworld.textworld_env")
module.TextWorldEnv = TextWorldEnv  # type: ignore[attr-defined]
sys.modules["memskill_cli.envs.alfworld.textworld_env"] = module
env_worker.main()
