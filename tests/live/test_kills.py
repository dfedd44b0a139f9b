"""A process that is killed before any statement: no message is lost, no span is applied or paid for twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.testing.server import MockLLMServer

from .harness import insert_lines

ROOT = Path(__file__).parents[2]
STORING = "INSERT OR REPLACE INTO replies"


def run(home: Path, url: str, first: int, step: int) -> list[dict[str, Any]]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "tests/live/kill_driver.py"), str(home), url, str(first), str(step)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("first", "step"), [(1, 20), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_killed_before_any_statement_it_ends_as_if_undisturbed(tmp_path: Path, first: int, step: int) -> None:
    with MockLLMServer(lambda request: insert_lines(request.messages[-1]["content"])) as server:
        lives = run(tmp_path, server.url, first, step)
        asked = Counter(
            (request.path.split("/k")[1].split("/")[0], json.dumps(request.messages)) for request in server.requests
        )
    *killed, undisturbed = lives
    assert len(killed) > 3
    assert undisturbed["code"] == 0
    assert len(undisturbed["memories"]) == 5
    assert undisturbed["spans"] == [[0, 1], [2, 3], [4, 4]]
    for life in killed:
        assert (life["code"], life["again"]) == (-signal.SIGKILL, 0), life
        same = ("memories", "turns", "spans", "versions")
        assert {name: life[name] for name in same} == {name: undisturbed[name] for name in same}, life
        repeated = [count for (number, _), count in asked.items() if number == str(life["number"]) and count > 1]
        # Only a reply that arrived and was not stored yet is asked for again.
        assert len(repeated) <= life["at"].startswith(STORING), life
