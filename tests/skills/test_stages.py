"""Stage files, and which stage is the best, worked by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.errors import MemskillError, RunError
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.stages import Stage, stage_reward


def stage(number: int, reward: float | None = None, **more: Any) -> Stage:
    return Stage(number, SkillBank(seed_bank().skills, stage=number), reward, **more)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([0.3], 0.3),
        ([0.9, 0.1, 0.1, 0.5], 0.5),
        ([0.9, 0.9, 0.9, 0.2, 0.4], 0.3),  # a quarter of 5 is 1.25: two
        ([0.0] * 6 + [0.2, 0.6], 0.4),
    ],
)
def test_a_stage_earned_the_mean_of_its_last_quarter(rewards: list[float], expected: float) -> None:
    assert stage_reward(rewards) == pytest.approx(expected)


def test_another_share_may_judge_a_stage() -> None:
    assert stage_reward([0.0, 0.2, 0.4, 0.8], 0.5) == pytest.approx(0.6)
    assert stage_reward([0.0, 0.2, 0.4, 0.8], 1.0) == pytest.approx(0.35)


FULL = Stage(
    7,
    SkillBank(seed_bank().skills, stage=7, new=["insert"]),
    reward=0.25,
    is_best=True,
    checkpoint=12,
    change={"summary": "s", "changes": [{"name": "n"}]},
    rationale="because",
    kept=True,
    parent=3,
)


def test_a_stage_file_holds_all_of_a_stage(tmp_path: Path) -> None:
    stages.write(tmp_path, FULL)
    stages.write(tmp_path, stage(8))
    file = tmp_path / "stage-007.json"
    assert stages.read(file) == FULL
    content = json.loads(file.read_text("utf-8"))
    assert content.pop("bank")["stage"] == 7
    assert content == {
        "format": 1,
        "stage": 7,
        "reward": 0.25,
        "is_best": True,
        "checkpoint": 12,
        "change": {"summary": "s", "changes": [{"name": "n"}]},
        "rationale": "because",
        "kept": True,
        "parent": 3,
    }
    waiting = stages.read(tmp_path / "stage-008.json")
    assert waiting == stage(8)
    assert (waiting.reward, waiting.is_best, waiting.checkpoint, waiting.change) == (None, False, None, {})
    assert (waiting.rationale, waiting.kept, waiting.parent) == ("", None, None)


GATE = stages.Gate(60, -0.018, (-0.061, 0.022), False, champion=0.33, challenger=0.312)


def test_what_held_out_questions_showed_is_kept_with_the_stage(tmp_path: Path) -> None:
    scores = {"q1": 0.25, "q2": None, "q3": 1.0}
    measured = dataclasses.replace(FULL, gate=GATE, held_out=scores)
    stages.write(tmp_path, measured)
    assert stages.read(tmp_path / "stage-007.json") == measured
    content = json.loads((tmp_path / "stage-007.json").read_text("utf-8"))
    assert content["held_out"] == scores
    assert content["gate"] == {
        "queries": 60,
        "difference": -0.018,
        "ci95": [-0.061, 0.022],
        "kept": False,
        "champion": 0.33,
        "challenger": 0.312,
    }
    assert GATE.describe() == (
        "60 held-out questions: 0.312 with the change, 0.330 without; difference -0.018, 95 % interval -0.061 to +0.022"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gate", {}),
        ("gate", {**dataclasses.asdict(GATE), "kept": None}),
        ("gate", {**dataclasses.asdict(GATE), "ci95": [0.1]}),
        ("held_out", ["q1"]),
        ("held_out", {"q1": "high"}),
    ],
)
def test_a_damaged_gate_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    stages.write(tmp_path, FULL)
    file = tmp_path / "stage-007.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), name: value}))
    with pytest.raises(RunError, match="not a stage file"):
        stages.read(file)


def test_a_gate_decides_in_place_of_rewards(tmp_path: Path) -> None:
    """After a kept change the reward to beat is that of its stage, also if an earlier one was higher."""
    keeps = dataclasses.replace(GATE, kept=True)
    known = [stage(0, 0.5), stage(1, 0.9, gate=GATE), stage(2, 0.3, gate=keeps), stage(3, 0.3), stage(4, 0.4)]
    for one in known:
        stages.write(tmp_path, one)
    best = [next(s.number for s in stages.mark_best(known[: n + 1]) if s.is_best) for n in range(5)]
    assert best == [0, 0, 2, 2, 4]
    found = [stages.best_before(tmp_path, number) for number in range(5)]
    assert [one.number if one else None for one in found] == [None, 0, 0, 2, 2]


def test_stages_are_read_in_order(tmp_path: Path) -> None:
    for number in (10, 2, 0, 101):
        stages.write(tmp_path, stage(number))
    (tmp_path / "stage-001.json.tmp").write_text("half a")
    assert [found.number for found in stages.read_all(tmp_path)] == [0, 2, 10, 101]


WRONG = {
    "stage": "7",
    "reward": "0.25",
    "is_best": None,
    "checkpoint": 1.5,
    "change": None,
    "rationale": None,
    "kept": "yes",
    "parent": "3",
    "bank": None,
    "format": "1",
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("missing", [False, True])
def test_a_field_that_is_wrong_or_missing_is_told_with_the_file(tmp_path: Path, name: str, missing: bool) -> None:
    stages.write(tmp_path, FULL)
    file = tmp_path / "stage-007.json"
    content = json.loads(file.read_text("utf-8")) | {name: WRONG[name]}
    if missing:
        del content[name]
    file.write_text(json.dumps(content))
    with pytest.raises(MemskillError) as error:
        stages.read(file)
    assert str(file) in error.value.message
    if name != "bank" and (missing or name != "format"):
        assert name in error.value.message.removeprefix(str(file))


def test_what_is_no_stage_file_is_told_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "stage-007.json"
    with pytest.raises(RunError, match="No such file") as error:
        stages.read(file)
    assert str(file) in error.value.message
    for text in ("", "{", "[]", "7", "null", '"text"'):
        file.write_text(text)
        with pytest.raises(RunError, match="not a stage file") as error:
            stages.read(file)
        assert str(file) in error.value.message


def test_a_file_under_another_stages_name_is_refused(tmp_path: Path) -> None:
    stages.write(tmp_path, FULL)
    (tmp_path / "stage-007.json").rename(tmp_path / "stage-008.json")
    with pytest.raises(RunError, match="it is stage 7"):
        stages.read(tmp_path / "stage-008.json")


def test_a_newer_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    stages.write(tmp_path, FULL)
    file = tmp_path / "stage-007.json"
    file.write_text(
        file.read_text("utf-8").replace('"format":1', '"format": 1').replace('"format": 1', '"format": 2', 1)
    )
    with pytest.raises(RunError, match="format 2 is newer") as error:
        stages.read(file)
    assert error.value.hint == "pip install -U memskill"


def champion(*found: Stage) -> int | None:
    marked = [one.number for one in stages.mark_best(found) if one.is_best]
    assert len(marked) <= 1
    return marked[0] if marked else None


def test_the_best_stage_earned_more_than_every_one_before_it() -> None:
    assert champion() is None
    assert champion(stage(0)) is None
    assert champion(stage(0, -0.5)) == 0, "even below zero"
    assert champion(stage(0, 0.2), stage(1, 0.1)) == 0
    assert champion(stage(0, 0.2), stage(1, 0.3), stage(2, 0.3)) == 1, "as much is no more"
    assert champion(stage(0, 0.2), stage(1, 0.1), stage(2, 0.15)) == 0
    assert champion(stage(0, 0.2), stage(1, 0.4), stage(2)) == 1


def test_an_evaluation_may_have_judged_a_stage() -> None:
    """Then it has no reward: it is the best if it was kept and changed something; rewards are compared as before."""
    tried = {"change": {"summary": "s"}}
    assert champion(stage(0, 0.2), stage(1, kept=True, **tried)) == 1
    assert champion(stage(0, 0.2), stage(1, kept=False, **tried)) == 0
    assert champion(stage(0, 0.2), stage(1, kept=True)) == 0, "it changed nothing"
    assert champion(stage(0, 0.5), stage(1, kept=True, **tried), stage(2, 0.4)) == 1
    assert champion(stage(0, 0.5), stage(1, kept=True, **tried), stage(2, 0.6)) == 2


def test_marking_changes_nothing_else() -> None:
    before = [stage(0, 0.2, is_best=True), stage(1, 0.4, parent=0, kept=True)]
    first, second = stages.mark_best(before)
    assert (first.is_best, second.is_best) == (False, True)
    assert (first.reward, second.reward, second.parent, second.kept) == (0.2, 0.4, 0, True)
    assert second.bank == before[1].bank


def test_of_two_marked_as_the_best_it_is_the_later() -> None:
    assert stages.best([]) is None
    assert stages.best([stage(0, 0.1), stage(1)]) is None
    found = stages.best([stage(0, 0.1, is_best=True), stage(1, 0.2, is_best=True), stage(2, 0.1)])
    assert found is not None
    assert found.number == 1


def test_what_waits_is_the_first_that_is_not_judged_after_a_stage() -> None:
    known = [stage(0), stage(1, 0.2), stage(2, kept=False), stage(3), stage(4)]
    assert [one.judged for one in known] == [False, True, True, False, False]
    waiting = [stages.first_unjudged(known, after) for after in (-1, 0, 2, 3, 4)]
    assert [one and one.number for one in waiting] == [0, 3, 3, 4, None]


def test_what_became_of_a_stage_is_told_in_words() -> None:
    tried = {"change": {"summary": "s"}}
    outcomes = {
        "best": stage(0, 0.2, is_best=True, kept=True),
        "not judged": stage(1),
        "kept": stage(1, 0.2, kept=True, **tried),
        "rolled back": stage(1, 0.2, kept=False, **tried),
        "no gain": stage(1, 0.2, kept=False),
    }
    assert {told: one.outcome for told, one in outcomes.items()} == {told: told for told in outcomes}
