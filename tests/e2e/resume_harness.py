"""A run that lives several times, each life a process of its own that ends by a fault, and what it must come to."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memskill_cli.testing import rules
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.utils.files import read_jsonl

from ..conftest import Home, tiny
from ..fault_injection import Done, Nursery

AT_ONCE = 4
"""Calls in flight at most, and so questions lost with a kill at most."""
LENGTH = ["--outer-epochs", "3", "--inner-epochs", "2", "--batch-size", "2", "--top-k", "2", "--evolve"]
FLAGS = [*LENGTH, "--concurrency", str(AT_ONCE), "--set", "train.keep_checkpoints=2", "--api-key", "none"]
# The small world that answers here reads memories alone.
FLAGS += ["--set", "designer.gate=rewards", "--set", "memory.sources=false", "--set", "memory.protect=false"]
OF_THE_MACHINE = {"seconds", "llm_calls", "cached_calls", "cost_usd"}
"""Of metrics: what may differ between a run that was killed and one that was not."""
BLUR = "## Purpose\nBLUR what is said.\n\n## How to apply\nLeave everything out."


def think(request: Request) -> str:
    """Rule-made models, and a designer whose first change does harm, so that it is taken back."""
    if request.role == "executor" and "BLUR" in request.text:
        return "ACTION: NOOP"
    if request.role != "designer":
        return rules.reply(request)
    if "<limit>" not in request.text:
        pattern = {"name": "lost", "cases": [1], "cause": "storage", "explanation": "x", "fix": "y"}
        advice = {"change": "refine", "skill": "insert", "why": "storage", "priority": 1}
        return json.dumps({"patterns": [pattern], "recommendations": [advice], "summary": "lost"})
    change: dict[str, Any] = {"change": "refine", "name": "insert", "body": BLUR, "why": "shorter"}
    if "BLUR" in request.text:
        body = f"## Purpose\nKeep facts fresh, as told in {len(request.text)} letters."
        change = {"change": "refine", "name": "update", "body": body, "why": "fresher"}
    return json.dumps({"summary": "tried", "changes": [change]})


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def rows(file: Path) -> list[dict[str, Any]]:
    """All lines; none may be torn."""
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def digest_without_run(file: Path) -> str:
    """The digest of a file, for ``checkpoint.json`` without the id of its run, which is random."""
    if file.name != "checkpoint.json":
        return digest(file)
    record = {name: value for name, value in json.loads(file.read_text()).items() if name != "run"}
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def learned(run: Path) -> dict[str, Any]:
    """All that must be the same, to the last bit."""
    kept = [
        *run.glob("stages/*.json"),
        *run.glob("checkpoints/[0-9]*/*"),
        run / "hard_cases.jsonl",
        run / "skill_bank.json",
    ]
    return {
        "status": json.loads((run / "run.json").read_text())["status"],
        "metrics": [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows(run / "metrics.jsonl")],
        "files": {str(file.relative_to(run)): digest_without_run(file) for file in sorted(kept)},
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What is not the same in two of :func:`learned`."""
    files = {**expected["files"], **found["files"]}
    differ = [name for name in files if found["files"].get(name) != expected["files"].get(name)]
    rows = zip(found["metrics"], expected["metrics"], strict=False)
    differ += [f"metrics {mine} not {its}" for mine, its in rows if mine != its]
    if len(found["metrics"]) != len(expected["metrics"]) or found["status"] != expected["status"]:
        differ.append(f"{found['status']} after {len(found['metrics'])} inner epochs")
    return differ


@dataclass
class Place:
    """A home, a server of its own, and the processes that live there one after the other."""

    home: Home
    nursery: Nursery
    server: MockLLMServer
    command: list[str]
    lost: int = 0
    """Questions sent whose replies no life has kept: they were in flight when it ended."""
    told: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.home.path / "runs" / "k"

    def begin(self, faults: str = "") -> int:
        resumed = self.command[0] == "train" and (self.run / "run.json").exists()
        flags = ["train", "--run", "k", "--resume", "--concurrency", str(AT_ONCE)] if resumed else self.command
        self.began = len(self.server.requests), self.cached
        cache = str(self.home.path / "cache")
        return self.nursery.start(*flags, faults=faults, cwd=self.home.path, MEMSKILL_CACHE_DIR=cache)

    def live(self, faults: str = "") -> Done:
        """A life to its natural end, which may be an error."""
        self.begin(faults)
        return self._over(faults or "undisturbed")

    def killed(self, faults: str) -> None:
        """A life that must end by the fault."""
        self.begin(faults)
        ended = self._over(faults)
        assert ended.code == -signal.SIGKILL, f"{faults} was not reached: {ended.err}"

    def killed_after(self, questions: int, seconds: float) -> bool:
        """A life that is ended from outside, ``seconds`` after it has asked so many questions that were new.

        False if it ended before that. How much a life gets done does not depend on how busy the machine is.
        """
        pid = self.begin()
        with suppress(ProcessLookupError):
            while len(self.server.requests) < self.began[0] + questions:
                os.kill(pid, 0)
                time.sleep(0.002)
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
        return self._over(f"killed {seconds:.3f} s after {questions} questions").code == -signal.SIGKILL

    def _over(self, what: str) -> Done:
        """Wait for its end, and see that no more questions were lost with it than were in flight."""
        ended = self.nursery.wait()
        requests, cached = len(self.server.requests) - self.began[0], self.cached - self.began[1]
        self.told.append(f"{what}: exit {ended.code}, {requests} asked, {cached} kept")
        assert 0 <= requests - cached <= (AT_ONCE if ended.code < 0 else 0), self.told
        self.lost += requests - cached
        return ended

    @property
    def cached(self) -> int:
        """Replies that are kept."""
        file = self.home.path / "cache" / "responses.sqlite"
        if not file.exists():
            return 0
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
            try:
                return int(db.execute("SELECT count(*) FROM replies").fetchone()[0])
            except sqlite3.OperationalError:  # killed before it had a table
                return 0

    @property
    def asked(self) -> Counter[str]:
        return Counter(json.dumps(request.messages) for request in self.server.requests)


Settle = Callable[..., Place]
"""Makes a :class:`Place` in which a command is to be done."""


@dataclass(frozen=True)
class Undisturbed:
    """What a run comes to that nobody disturbs."""

    home: Home
    learned: dict[str, Any]
    asked: Counter[str]


TRAIN = ["train", "--run", "k", *tiny("", *FLAGS)]


def assert_asked_once(place: Place, asked: Counter[str]) -> None:
    """One more life comes to its end, and all lives together have asked what is in ``asked``."""
    last = place.live()
    assert last.code == 0, last.err
    assert place.asked.keys() == asked.keys(), "no question but those of the undisturbed run"
    again = place.asked.total() - len(place.asked)
    assert again <= place.lost, "asked again was only what was in flight when a life ended"


def assert_undisturbed(place: Place, undisturbed: Undisturbed) -> None:
    """With one more life all is as it would have been, and nothing was paid for twice."""
    assert_asked_once(place, undisturbed.asked)
    differ = differences(learned(place.run), undisturbed.learned)
    assert not differ, differ
    paid = [row for row in read_jsonl(place.run / "usage.jsonl") if not row["cached"]]
    assert len(place.asked) <= len(paid) <= place.asked.total(), "what was paid for is in the ledger, once"


def evaluated(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and numbers of the one evaluation in a run, but for what they took."""
    (found,) = folder.glob("evals/*")
    summary = json.loads((found / "summary.json").read_bytes())
    return rows(found / "results.jsonl"), {k: v for k, v in summary.items() if k not in ("seconds", "usage")}
