"""Run by test_kills.py: kills processes that use a memory at every place, and prints what became of each as JSON.

``python kill_driver.py FOLDER URL``. Libraries are imported once; each process is a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import litellm.router  # noqa: F401 - imported here so that each fork has it
import sklearn.feature_extraction.text  # noqa: F401
import torch  # noqa: F401

import memskill_cli.app.evaluate
import memskill_cli.app.memory_service
import memskill_cli.live.reading
import memskill_cli.llm.client  # noqa: F401
from memskill_cli import Memory

LINES = ("I moved to Leeds.", "I have a cat.", "It is called Bento.", "I like tea.", "I play chess.")


def script(folder: Path, url: str) -> None:
    """Adds five messages with ids, in spans of two; may be run again after it was killed."""
    models: dict[str, Any] = {"model": "openai/rules", "api_base": url, "api_key": "none"}
    encoders = {"encoder": "hashing", "retriever": "hashing"}
    quiet = {"notice": lambda text: None, "settings": {"models.retries": 0}}
    with Memory.open(folder, span_mode="turn-pair", **models, **encoders, **quiet) as memory:  # type: ignore[arg-type]
        for number, line in enumerate(LINES):
            memory.add({"role": "user", "name": "Anna", "content": line, "id": str(number)}, "anna", "s1")
        memory.flush("anna")


def outcome(folder: Path) -> dict[str, Any]:
    with Memory.open(folder, notice=lambda text: None) as memory:
        data = memory.export("anna")
    memories = [row["text"] for row in data["memories"]]
    turns = [(row["text"], row["waits"]) for row in data["turns"]]
    spans = [(row["first"], row["last"]) for row in data["spans"]]
    return {"memories": memories, "turns": turns, "spans": spans, "versions": len(data["versions"])}


def kill_before(number: int) -> None:
    """Kill this process before SQLite executes its ``number``-th statement that is no query."""
    from memskill_cli.live import database

    count = 0

    def traced(statement: str) -> None:
        nonlocal count
        if statement.lstrip().upper().startswith(("SELECT", "PRAGMA", "--")):
            return
        count += 1
        if count == number:
            os.write(2, f"{statement[:60]}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def connect(*args: Any, **more: Any) -> sqlite3.Connection:
        connection = sqlite3.connect(*args, **more)
        connection.set_trace_callback(traced)
        return connection

    database.sqlite3 = type("sqlite3", (), {**vars(sqlite3), "connect": staticmethod(connect)})  # type: ignore[assignment]


def in_a_fork(work: Any) -> tuple[int, str]:
    """The signal or exit code of a fork that does ``work``, and what it wrote to stderr."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.dup2(write, 2)
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def main(home: Path, url: str, first: int, step: int) -> None:
    number = first
    while True:
        folder = home / f"mem-{number}"

        def killed(folder: Path = folder, number: int = number) -> None:
            kill_before(number)
            script(folder, f"{url}/k{number}")

        code, told = in_a_fork(killed)
        again, failed = in_a_fork(lambda folder=folder, number=number: script(folder, f"{url}/k{number}"))
        result = outcome_of(folder)
        print(
            json.dumps({"number": number, "code": code, "at": told, "again": again, "failed": failed, **result}),
            flush=True,
        )
        if code != -signal.SIGKILL:
            return
        number += step


def outcome_of(folder: Path) -> dict[str, Any]:
    """:func:`outcome`, from a fork, so that this process never opens a memory."""
    file = folder.with_suffix(".json")
    code, told = in_a_fork(lambda: file.write_text(json.dumps(outcome(folder))))
    return json.loads(file.read_text()) if code == 0 else {"error": told}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
