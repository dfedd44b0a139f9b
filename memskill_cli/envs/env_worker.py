"""The program of a worker process: plays one text game at a time for the process that started it.

JSON lines: a request ``{"do": "start"|"play"|"walkthrough"|"plan", "with": text}`` on stdin, its reply
``{"ok": …}`` or ``{"broken": why}`` on stdout. The first line says whether games can be played here. Whatever
libraries print goes nowhere, and when stdin ends (whoever started this is gone) the process ends at once, even in the
middle of a search, with all it may have started.
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


def main() -> None:
    replies = _only_replies()
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        from memskill_cli.envs.alfworld.textworld_env import Engine

        engine = Engine()
    except (ImportError, OSError, RuntimeError) as error:
        _send(replies, {"broken": _line(error)})
        return
    _send(replies, {"ok": "ready"})
    acts: dict[str, Callable[[str], Any]] = {
        "start": lambda file: engine.start(Path(file)),
        "play": engine.play,
        "walkthrough": lambda _: engine.walkthrough(),
        "plan": lambda _: engine.plan(),
    }
    while True:
        request = json.loads(requests.get())
        try:
            reply = {"ok": acts[request["do"]](request["with"])}
        except (Exception, SystemExit) as error:  # the translator of games leaves by SystemExit
            reply = {"broken": _line(error)}
        _send(replies, reply)


def _only_replies() -> TextIO:
    """The real stdout; what anything else prints from now on, native code too, goes to stderr."""
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


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


if __name__ == "__main__":
    main()
