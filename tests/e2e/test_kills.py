"""Killed with SIGKILL wherever it hurts, and gone on with: the end is that of a run never disturbed.

Every life of a run is a real process, killed by itself at a named place (:mod:`tests.fault_injection`) or from
outside at a random moment. The lives have another order of sets than the run they are compared with.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable

import pytest

from ..conftest import Home, tiny
from .resume_harness import (
    AT_ONCE,
    TRAIN,
    Settle,
    Undisturbed,
    assert_asked_once,
    assert_undisturbed,
    differences,
    evaluated,
    learned,
    rows,
)

pytestmark = pytest.mark.timeout(1200)  # a dozen processes, on a machine that may be busy
CHAINS = {
    "beginning": [
        "kill half write config.toml",
        "kill half write stage-000.json",
        "kill before replace skill_bank.json",
        "kill before replace run.json",
        "kill after replace run.json",
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
        "kill before call memskill_cli.rollout.episode:run_episode 2",
        "kill after call memskill_cli.rollout.episode:run_episode 3",
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
        "kill after call memskill_cli.llm.ledger:Ledger.record 20",
        "kill before call memskill_cli.llm.cache:ResponseCache.put 6",
        "kill after call memskill_cli.llm.cache:ResponseCache.put 3",
    ],
}


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
    place, chance, share = settle(*TRAIN), random.Random(6), undisturbed.asked.total() // 8
    kills = 0
    while kills < 6 and place.killed_after(chance.randint(1, share), chance.random() / 30):
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


EVAL = ["eval", *tiny("", "--judge", "--concurrency", str(AT_ONCE), "--api-key", "none")]


@pytest.mark.slow
def test_an_evaluation_killed_many_times_ends_as_if_undisturbed(settle: Settle) -> None:
    calm, place = settle(*EVAL), settle(*EVAL)
    done = calm.live()
    assert done.code == 0, done.err
    for faults in (
        "kill before replace untrained/run.json",
        "kill before call memskill_cli.llm.cache:ResponseCache.put 3",
        "kill half write usage.jsonl 4",
        "kill half write results.jsonl 2",
        "kill after write results.jsonl 2",
        "kill before call memskill_cli.memory.store:MemoryStore.write 1",
        "kill before call memskill_cli.memory.store:MemoryStore._fill 2",
        "kill after call memskill_cli.memory.store:MemoryStore.write 1",
        "kill before replace results.jsonl 1",
        "kill before replace summary.json 1",
        "kill half write attempts.jsonl 1",
        "kill before replace report.html 1",
    ):
        place.killed(faults)
    assert_asked_once(place, calm.asked)
    runs = [each.home.path / "runs" / "untrained" for each in (place, calm)]
    assert evaluated(runs[0]) == evaluated(runs[1])


@pytest.mark.slow
@pytest.mark.parametrize("judged", [True, False])
def test_a_designer_cycle_killed_many_times_ends_as_if_undisturbed(
    settle: Settle, undisturbed: Undisturbed, new_home: Callable[[], Home], judged: bool
) -> None:
    command = ["evolve", "--run", "k", "--api-key", "none", *(["--judge-on", "val"] if judged else [])]
    calm, place = (settle(*command, home=_copy(undisturbed.home, new_home())) for _ in range(2))
    done = calm.live()
    assert done.code == 0, done.err
    for faults in (
        "kill before call memskill_cli.agent.designer:Designer.propose 1",
        "kill before call memskill_cli.llm.cache:ResponseCache.put 2",
        "kill after call memskill_cli.agent.designer:Designer.propose 1",
        *([] if judged else ["kill before replace skill_bank.json 1", "kill after replace skill_bank.json 1"]),
        "kill half write stage-003.json 1",
        "kill before replace stage-003.json 1",
        *(JUDGING if judged else []),
    ):
        place.killed(faults)
    assert_asked_once(place, calm.asked)
    assert not differences(learned(place.run), learned(calm.run))


JUDGING = [
    "kill after replace stage-003.json 1",
    "kill half write results.jsonl 2",
    "kill before replace summary.json 1",
    "kill before replace skill_bank.json 1",
    "kill after replace skill_bank.json 1",
    "kill before replace stage-003.json 1",
]


def _copy(trained: Home, home: Home) -> Home:
    shutil.copytree(trained.path / "runs", home.path / "runs")
    return home
