"""Which policy is evaluated if checkpoints of the run are damaged, or change in the meantime."""

from __future__ import annotations

from pathlib import Path

import pytest

from memskill_cli.agent.controller import Controller
from memskill_cli.app import evaluate
from memskill_cli.app.evaluate import find_policy
from memskill_cli.config import load
from memskill_cli.errors import CheckpointError, MemskillError, RunError
from memskill_cli.runs import checkpoint
from memskill_cli.runs.checkpoint import Checkpoint
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.stages import Stage

SETTINGS = load(overrides={})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Checkpoints 1 to 3; the best stage was measured with the second."""
    run = RunDir.create(tmp_path / "runs", "r", SETTINGS, "data")
    for done in (1, 2, 3):
        controller = Controller.seeded(4, 8, done).state_dict()
        state = {"dim": 4, "hidden": 8, "window_start": 0, "rewards": [], "hard_cases": []}
        checkpoint.save(run.checkpoints, Checkpoint(done, controller, {}, seed_bank(), state, run=run.id))
    judge(run, 0, checkpoint=2)
    return run


def judge(run: RunDir, number: int, **how: int) -> None:
    """Write a best stage. Its bank has no ``delete``, unlike the banks of the checkpoints."""
    bank = seed_bank()
    stages.write(run.stages, Stage(number, type(bank)(bank.skills[1:], stage=number), 0.5, True, kept=True, **how))


def harm(run: RunDir, *numbers: int) -> None:
    for number in numbers:
        (run.checkpoints / f"{number:06d}" / "state.json").write_bytes(b"{}")


def found(run: RunDir, which: str) -> tuple[str, tuple[str, ...], list[str]]:
    told: list[str] = []
    policy = find_policy(run, which, SETTINGS, told.append)
    return policy.checkpoint, policy.bank.names, told


def test_the_best_stage_is_its_bank_and_the_controller_it_was_measured_with(run: RunDir) -> None:
    assert found(run, "best") == ("000002", ("insert", "noop", "update"), [])
    assert found(run, "latest") == ("000003", ("delete", "insert", "noop", "update"), [])


@pytest.mark.parametrize(("harmed", "used"), [((2,), "000001"), ((1, 2), "000003")])
def test_a_damaged_best_checkpoint_is_named_and_the_nearest_sound_one_used(
    run: RunDir, harmed: tuple[int, ...], used: str
) -> None:
    harm(run, *harmed)
    name, bank, told = found(run, "best")
    assert (name, bank) == (used, ("insert", "noop", "update"))
    assert f"{run.checkpoints}/000002/state.json" in told[0]
    assert (
        f"the best stage, 0, cannot be used: using the skills of that stage with the controller of checkpoint {used}"
        in told[-1]
    )


@pytest.mark.parametrize("which", ["best", "latest"])
def test_without_any_sound_checkpoint_nothing_untrained_is_passed_off_as_the_run(run: RunDir, which: str) -> None:
    harm(run, 1, 2, 3)
    for _ in range(2):
        with pytest.raises(RunError, match="run r has no usable checkpoint") as failure:
            found(run, which)
        assert "--resume" in failure.value.hint
        stages.path_of(run.stages, 0).unlink(missing_ok=True)  # the same without a judged stage


def test_a_damaged_checkpoint_asked_for_by_its_path_is_named(run: RunDir) -> None:
    harm(run, 2)
    with pytest.raises(CheckpointError, match=r"000002/state\.json: the content does not match its sha256"):
        found(run, str(run.checkpoints / "000002"))
    assert found(run, str(run.checkpoints / "000001"))[0] == "000001"
    for nothing in ("nowhere", str(run.path / "run.json")):
        with pytest.raises(MemskillError, match="the checkpoint is incomplete"):
            found(run, nothing)


def test_a_better_stage_found_meanwhile_is_the_best(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in another process removes the checkpoint of the former best stage."""
    real = evaluate._measured_with

    def measured(*arguments: object) -> Checkpoint:
        judge(run, 1, checkpoint=3)
        monkeypatch.undo()
        checkpoint.prune(run.checkpoints, 1, 3, done=3)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "_measured_with", measured)
    policy = find_policy(run, "best", SETTINGS, lambda text: None)
    assert (policy.checkpoint, policy.bank.stage) == ("000003", 1)
