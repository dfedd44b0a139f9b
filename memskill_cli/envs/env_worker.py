"""The program of a worker process: plays one text game at a time for its parent process.

Protocol in JSON lines: a request ``{"do": "start"|"play"|"walkthrough"|"plan", "with": text}`` on stdin, its reply
``{"ok": …}`` or ``{"broken": reason}`` on stdout. The first reply says whether games can be played on this machine.
Output of libraries is discarded. When stdin closes (the parent has ended), the process kills its process group at once,
also during a search of the planner.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from memskill_cli.envs.environment import DEFAULT, Engine, Observation, environment
from memskill_cli.errors import MemskillError
from memskill_cli.utils.registry import load_plugin


def main() -> None:
    replies = _reserve_stdout()
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        engine: Any = _engine(*sys.argv[1:])
    except (ImportError, OSError, RuntimeError, MemskillError) as error:
        _send(replies, {"broken": _one_line(error)})
        return
    _send(replies, {"ok": "ready"})
    actions: dict[str, Callable[[str], Any]] = {
        "start": lambda file: _to_json(engine.start(Path(file))),
        "play": lambda command: _to_json(engine.play(command)),
        "walkthrough": lambda _: engine.walkthrough(),
        "plan": lambda _: engine.plan(),
    }
    while True:
        request = json.loads(requests.get())
        try:
            reply = {"ok": actions[request["do"]](request["with"])}
        # Any exception: a plug-in's engine or TextWorld may raise any type. Its translator of games raises SystemExit.
        except (Exception, SystemExit) as error:
            reply = {"broken": _one_line(error)}
        _send(replies, reply)


def _engine(name: str = DEFAULT, *plugins: str) -> Engine:
    """The engine of the environment ``name``, after loading the plug-in files ``plugins``."""
    for file in plugins:
        load_plugin(Path(file))
    return environment(name).engine()


def _to_json(observation: Observation) -> dict[str, Any]:
    return {
        "observation": observation.text,
        "commands": observation.commands,
        "inventory": observation.inventory,
        "won": bool(observation.won),
        "done": bool(observation.done),
    }


def _reserve_stdout() -> TextIO:
    """A stream to the real stdout. From now on other output to stdout, also of native code, goes to stderr."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def _listen(requests: queue.Queue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _send(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


if __name__ == "__main__":
    main()
