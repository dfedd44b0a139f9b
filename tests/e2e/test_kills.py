"""Killed with SIGKILL wherever it hurts, and gone on with: the end is that of a run never disturbed.

Every life of a run is a real process, killed by itself at a named place (:mod:`tests.saboteur`) or from outside at a
random moment. The lives have another order of sets than the run they are compared with.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.files import read_jsonl
from memskill_cli.testing import rules
from memskill_cli.testing.server import Request, ScriptedServer

from ..conftest import Home, tiny
from ..saboteur import Ended, Nursery

AT_ONCE = 4
"""Calls in flight at most, and so questions lost with a kill at most."""
LENGTH = ["--outer-epochs", "3", "--inner-epochs", "2", "--batch-size", "2", "--top-k", "2", "--evolve"]
FLAGS = [*LENGTH, "--concurrency", str(AT_ONCE), "--set", "train.keep_checkpoints=2", "--api-key", "none"]
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
        change = {"change": "refine", "name": "update", "body": "## Purpose\nKeep facts fresh.", "why": "fresher"}
    return json.dumps({"summary": "tried", "changes": [change]})


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def rows(file: Path) -> list[dict[str, Any]]:
    """All lines; none may be torn."""
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def learned(run: Path) -> dict[str, Any]:
    """All that must be the same, to the last bit."""
    kept = [*run.glob("stages/*"), *run.glob("checkpoints/*/*"), run / "hard_cases.jsonl", run / "skill_bank.json"]
    return {
        "status": json.loads((run / "run.json").read_text())["status"],
        "metrics": [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows(run / "metrics.jsonl")],
        "files": {str(file.relative_to(run)): digest(file) for file in sorted(kept)},
    }


@dataclass
class Place:
    """A home, a server of its own, and the processes that live there one after the other."""

    home: Home
    nursery: Nursery
    server: ScriptedServer
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

    def live(self) -> Ended:
        """A life to its natural end."""
        self.begin()
        return self._over("undisturbed")

    def killed(self, faults: str) -> None:
        """A life that must end by the fault."""
        self.begin(faults)
        ended = self._over(faults)
        assert ended.code == -signal.SIGKILL, f"{faults} was not reached: {ended.err}"

    def killed_after(self, seconds: float) -> bool:
        """A life that is ended from outside, ``seconds`` after it began to work; False if it ended before that."""
        pid, log = self.begin(), self.run / "logs" / "memskill.log"
        deadline = time.monotonic() + 120
        while not log.exists() or f" {pid} " not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self._over(f"killed after {seconds:.2f} s").code == -signal.SIGKILL

    def _over(self, what: str) -> Ended:
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


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Of all lives that are disturbed."""
    home = Home(tmp_path_factory.mktemp("nursery"))
    with Nursery(home.path, home.environ(), hash_seed=2) as opened:
        yield opened


Settle = Callable[..., Place]


@pytest.fixture
def settle(new_home: Callable[[], Home], nursery: Nursery) -> Iterator[Settle]:
    """Makes places; their servers stop with the test. What each life came to is printed."""
    with ExitStack() as stack:

        def make(*command: str, home: Home | None = None) -> Place:
            server = stack.enter_context(ScriptedServer(think, latency=0.005))
            place = Place(home or new_home(), nursery, server, [*command, "--api-base", server.url])
            stack.callback(lambda: print(*place.told, sep="\n"))
            return place

        yield make


@dataclass(frozen=True)
class Undisturbed:
    """What a run comes to that nobody disturbs."""

    home: Home
    learned: dict[str, Any]
    asked: Counter[str]
    seconds: float


TRAIN = ["train", "--run", "k", *tiny("", *FLAGS)]


@pytest.fixture(scope="module")
def undisturbed(new_home: Callable[[], Home]) -> Undisturbed:
    """One run from beginning to end, in a process of its own."""
    home = new_home()
    with ScriptedServer(think, latency=0.005) as server:
        command = [*TRAIN, "--api-base", server.url]
        done = home.memskill(*command, "--quiet", PYTHONHASHSEED="1")
        assert done.code == 0, done.err
        found = learned(home.path / "runs" / "k")
        seconds = sum(row["seconds"] for row in rows(home.path / "runs" / "k" / "metrics.jsonl"))
        return Undisturbed(home, found, Counter(json.dumps(r.messages) for r in server.requests), seconds)


def test_the_run_to_compare_with_has_seen_everything(undisturbed: Undisturbed) -> None:
    """A stage kept, one taken back, hard cases, checkpoints dropped: else the chains below would prove little."""
    run = undisturbed.home.path / "runs" / "k"
    stages = [json.loads(file.read_text()) for file in sorted(run.glob("stages/*"))]
    assert [stage["kept"] for stage in stages][:2] == [True, False]
    assert stages[2]["parent"] == 0
    assert stages[1]["change"]
    assert stages[2]["change"]
    assert rows(run / "hard_cases.jsonl")
    assert len(list(run.glob("checkpoints/*"))) < 7
    assert max(undisturbed.asked.values()) == 1


def assert_undisturbed(place: Place, undisturbed: Undisturbed) -> None:
    """The last life is over: all is as it would have been, and nothing was paid for twice."""
    last = place.live()
    assert last.code == 0, last.err
    assert learned(place.run) == undisturbed.learned
    assert not list(place.run.rglob("*.tmp"))
    assert place.asked.keys() == undisturbed.asked.keys(), "no question but those of the undisturbed run"
    again = place.asked.total() - len(place.asked)
    assert again <= place.lost, "asked again was only what was in flight when a life ended"
    paid = [row for row in read_jsonl(place.run / "usage.jsonl") if not row["cached"]]
    assert len(place.asked) <= len(paid) <= place.asked.total(), "what was paid for is in the ledger, once"


CHAINS = {
    "beginning": [
        "kill half write config.toml",
        "kill before replace run.json",
        "kill after replace run.json",
        "kill half write stage-000.json",
        "kill before replace skill_bank.json",
        "kill before replace 000000/state.json",
    ],
    "metrics": [
        "kill before write metrics.jsonl 2",
        "kill half write metrics.jsonl 2",
        "kill after write metrics.jsonl 2",
        "kill half write metrics.jsonl 1",
        "kill after replace metrics.jsonl 1",
        "kill half write metrics.jsonl 4",
    ],
    "checkpoint": [
        "kill half write controller.safetensors 2",
        "kill before replace optimizer.safetensors 1",
        "kill after replace state.json 1",
        "kill half write checkpoint.json 1",
        "kill before replace checkpoint.json 2",
        "kill after replace checkpoint.json 1",
    ],
    "after the checkpoint": [
        "kill half write hard_cases.jsonl 2",
        "kill before replace hard_cases.jsonl 2",
        "kill before replace skill_bank.json 1",
        "kill before call memskill_cli.runs.checkpoint:prune 1",
        "kill before replace run.json 2",
    ],
    "stages": [
        "kill half write stage-000.json 2",
        "kill after replace stage-000.json",
        "kill before replace stage-001.json",
        "kill after replace stage-001.json",
        "kill before replace stage-001.json",
        "kill after replace stage-002.json",
    ],
    "phases": [
        "kill before call memskill_cli.training.rollout:run_episode 2",
        "kill after call memskill_cli.training.rollout:run_episode 3",
        "kill before call memskill_cli.training.ppo:update 1",
        "kill after call torch.optim:Adam.step 2",
        "kill before call memskill_cli.agent.designer:Designer.propose 1",
        "kill after call memskill_cli.agent.designer:Designer.propose 1",
        "kill before call memskill_cli.training.evolution:Evolution.close 1",
        "kill after call memskill_cli.training.evolution:Evolution.close 1",
    ],
    "money": [
        "kill before call memskill_cli.llm.ledger:Ledger.record 5",
        "kill half write usage.jsonl 9",
        "kill after call memskill_cli.llm.ledger:Ledger.record 40",
        "kill before call memskill_cli.llm.cache:ResponseCache.put 6",
        "kill after call memskill_cli.llm.cache:ResponseCache.put 3",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_killed_at_every_place_a_training_ends_as_if_undisturbed(
    settle: Settle, undisturbed: Undisturbed, chain: str
) -> None:
    place = settle(*TRAIN)
    for faults in CHAINS[chain]:
        place.killed(faults)
    assert_undisturbed(place, undisturbed)


@pytest.mark.slow
def test_killed_at_random_moments_a_training_ends_as_if_undisturbed(settle: Settle, undisturbed: Undisturbed) -> None:
    place, chance = settle(*TRAIN), random.Random(6)
    kills = 0
    while kills < 6 and place.killed_after(chance.random() * undisturbed.seconds / 2):
        kills += 1
    assert kills >= 3, "or it was over too soon to prove anything"
    assert_undisturbed(place, undisturbed)


def test_a_training_killed_three_times_ends_as_if_undisturbed(settle: Settle, undisturbed: Undisturbed) -> None:
    """What the quick tests do of the above."""
    place = settle(*TRAIN)
    place.killed("kill half write metrics.jsonl 2")
    place.killed("kill before replace checkpoint.json 2")
    place.killed("kill after call memskill_cli.agent.designer:Designer.propose 1")
    assert_undisturbed(place, undisturbed)
