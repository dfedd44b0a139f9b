"""Evaluations of a run's controller with skills that are not those of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from memskill_cli.agent.controller import Controller
from memskill_cli.app.evaluate import find_policy, policies_of
from memskill_cli.config import load
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.runs import checkpoint
from memskill_cli.runs.checkpoint import Checkpoint
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.stages import Stage

SETTINGS = load(overrides={})
OTHERS = SkillBank(seed_bank().skills[1:])


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir.create(tmp_path / "runs", "r", SETTINGS, "data")
    state = {"dim": 4, "hidden": 8, "window_start": 0, "rewards": [], "hard_cases": []}
    weights = Controller.seeded(4, 8, 1).state_dict()
    checkpoint.save(run.checkpoints, Checkpoint(1, weights, {}, seed_bank(), state, run=run.id))
    return run


def found(run: RunDir, which: str, bank: SkillBank | None) -> EvaluatedPolicy:
    return find_policy(run, which, SETTINGS, lambda text: None, bank)


@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize("which", ["best", "latest", "path"])
def test_the_controller_stays_and_the_evaluation_is_another(run: RunDir, which: str, judged: bool) -> None:
    if judged:
        stages.write(run.stages, Stage(0, seed_bank(), 0.5, True, checkpoint=1, kept=True))
    which = str(run.checkpoints / "000001") if which == "path" else which
    own, other, same = (found(run, which, bank) for bank in (None, OTHERS, seed_bank()))
    assert (own.bank, other.bank) == (seed_bank(), OTHERS)
    assert own.found is not None
    assert other.found is not None
    assert (own.checkpoint, own.found.digest) == (other.checkpoint, other.found.digest)
    assert own.digest != other.digest
    assert own.digest == same.digest  # the same skills are the same evaluation


def test_without_a_run_a_fresh_controller_chooses_from_them(tmp_path: Path) -> None:
    run, told = RunDir.create(tmp_path / "runs", "r", SETTINGS, "data"), []
    policy = find_policy(run, "best", SETTINGS, told.append, OTHERS)
    assert (policy.bank, policy.checkpoint) == (OTHERS, "untrained")
    assert told == ["no checkpoint found: using the skills given and an untrained controller"]
    assert policy.digest != find_policy(run, "best", SETTINGS, told.append).digest


def test_methods_without_skills_of_the_run_leave_them_alone(run: RunDir) -> None:
    names = ["memskill", "all-skills", "seed-skills", "rag"]
    table = policies_of(names, run, "best", SETTINGS, lambda text: None, OTHERS)
    assert [table[name].bank.names for name in names] == [OTHERS.names, OTHERS.names, seed_bank().names, ()]
