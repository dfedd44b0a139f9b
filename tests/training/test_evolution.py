"""Stage decisions against sequences computed by hand: kept, rolled back, shown to the designer, stopped early."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memskill_cli.agent.designer import FailedEdit, Proposal, SkillEdit
from memskill_cli.agent.hard_cases import HardCase, HardCasePool
from memskill_cli.config import DesignerConfig
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.training.evolution import Evolution, attempts, stage_of
from memskill_cli.types import Action


def adding(name: str) -> Proposal:
    change = SkillEdit("add", name, f"Write down {name}.", "## Purpose\nKeep it.", Action.INSERT, "it was lost")
    return Proposal(f"add {name}", (change,))


class Lineage:
    """The stages of a run. Each entry is the name of a proposal ("" for none) and the rewards of its stage."""

    def __init__(self, folder: Path, **how: Any) -> None:
        self.evolution = Evolution(folder, DesignerConfig(**how), lambda text: None)
        self.folder = folder
        self.bank: SkillBank = seed_bank(noop=False)
        self.evolution.begin(self.bank)

    def close(self, *rewards: float) -> stages.Stage:
        return self.evolution.close(self.bank, rewards, checkpoint=len(stages.read_all(self.folder)))

    def change(self, name: str) -> None:
        """Change the best bank, as after a rollback."""
        known = stages.read_all(self.folder)
        best = stages.best(known)
        proposal = adding(name) if name else Proposal("nothing to change")
        stage = stage_of(best.bank if best else self.bank, proposal, known[-1].number + 1)
        stages.write(self.folder, stage)
        self.bank = stage.bank.copy()

    @property
    def marked(self) -> list[tuple[int, float | None, bool, bool | None, int | None]]:
        known = stages.read_all(self.folder)
        return [(s.number, s.reward, s.is_best, s.kept, s.parent) for s in known]


def test_a_hand_worked_lineage(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    lineage.close(0.9, 0.1, 0.1, 0.2)  # the last quarter: 0.2
    lineage.change("moves")
    lineage.close(0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.2, 0.4)  # the last two: 0.3, better
    lineage.change("pets")
    lineage.close(0.3)  # no better
    lineage.change("jobs")
    lineage.close(0.5)
    assert lineage.marked == [
        (0, 0.2, False, True, None),
        (1, pytest.approx(0.3), False, True, 0),
        (2, 0.3, False, False, 1),
        (3, 0.5, True, True, 1),
    ]
    assert set(lineage.bank.names) == {"delete", "insert", "update", "moves", "jobs"}
    assert attempts(stages.read_all(tmp_path)) == [], "a new best clears the list"
    # A stage that was rolled back is recorded only in the list of attempts that the designer is shown.
    (tried,) = attempts([*stages.read_all(tmp_path)[:1], *_as_before(stages.read_all(tmp_path)[1:3])])
    assert (tried.stage, tried.summary, tried.reward, tried.best) == (2, "add pets", 0.3, pytest.approx(0.3))
    assert tried.changes[0]["name"] == "pets"


def _as_before(known: list[stages.Stage]) -> list[stages.Stage]:
    """Stages 1 and 2 as they were before stage 3 was judged: stage 1 was the best."""
    return [dataclasses.replace(stage, is_best=stage.number == 1) for stage in known]


@pytest.mark.parametrize("reward", [0.0, -0.25])
def test_the_first_stage_is_the_best_even_at_or_below_zero(tmp_path: Path, reward: float) -> None:
    lineage = Lineage(tmp_path)
    assert lineage.close(reward).is_best
    lineage.change("moves")
    assert lineage.close(reward + 0.1).is_best


def test_a_rollback_brings_back_the_statistics(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    lineage.bank.record_batch([[0], [1]], [0.5, 0.7])
    lineage.close(0.6)
    kept = {skill.name: skill.stats for skill in lineage.bank.skills}
    lineage.change("moves")
    lineage.bank.record_batch([[0], [0], [2]], [0.0, 0.0, 0.0])
    lineage.close(0.1)
    lineage.change("pets")
    assert {skill.name: skill.stats for skill in lineage.bank.skills if skill.name in kept} == kept
    assert lineage.bank.new == {"pets"}


def test_a_stage_that_changed_nothing_is_not_rolled_back_but_told_with_its_reason(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    lineage.close(0.6)
    lineage.change("")
    stage = lineage.close(0.1)
    assert (stage.is_best, stage.kept, stage.change, stage.outcome) == (False, False, {}, "no gain")
    (told,) = attempts(stages.read_all(tmp_path))
    assert (told.stage, told.summary, told.changes) == (1, "nothing to change", ())


def test_a_run_without_a_designer_tells_of_no_cycles(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    lineage.close(0.6)
    lineage.evolution.repeat_stage(lineage.bank)
    assert attempts(stages.read_all(tmp_path)) == []


class Reluctant:
    """A designer that never changes anything and records the attempts that it is shown."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []

    async def propose(self, bank: SkillBank, clusters: Any, tried: list[FailedEdit]) -> Proposal:
        self.told.append([attempt.summary for attempt in tried])
        return Proposal("", refused=(f"reply {len(self.told)} made no sense",)) if self.told[1:] else Proposal("")


def test_no_two_cycles_are_asked_the_same(tmp_path: Path) -> None:
    lineage, designer = Lineage(tmp_path), Reluctant()
    lineage.close(0.6)
    case = HardCase("q", "t", "1", "Where?", ("there",), "", (), 0.0, 1, 0)
    pool = HardCasePool(DesignerConfig(), [case])

    class Encoder:
        async def aencode(self, texts: list[str], side: str) -> Any:
            return np.ones((len(texts), 2))

    for _ in range(3):
        asyncio.run(lineage.evolution.propose(designer, lineage.bank, pool, Encoder(), 0))  # type: ignore[arg-type]
    assert designer.told == [[], ["no reason was given"], ["no reason was given", "reply 2 made no sense"]]


def test_stopping_early_after_too_many_cycles_without_a_better_stage(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path, patience=2)
    lineage.close(0.5)
    for name, reward, exhausted in (("a", 0.4, False), ("b", 0.6, False), ("c", 0.6, False), ("d", 0.1, True)):
        lineage.change(name)
        lineage.close(reward)
        assert bool(lineage.evolution.stop_reason()) is exhausted, name
    assert "2 designer cycles" in lineage.evolution.stop_reason()


def test_stopping_at_the_limit_of_cycles(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path, max_cycles=2)
    lineage.close(0.1)
    for reward in (0.2, 0.3):
        assert not lineage.evolution.stop_reason()
        lineage.change(f"skill{reward}".replace(".", ""))
        lineage.close(reward)
    assert lineage.evolution.stop_reason()


def test_closing_a_stage_again_after_a_crash_changes_nothing(tmp_path: Path) -> None:
    """After a kill between the stage file and the checkpoint, the last inner epoch is run and judged again."""
    lineage = Lineage(tmp_path)
    lineage.close(0.2)
    lineage.change("moves")
    lineage.close(0.4)
    before = lineage.marked
    lineage.evolution.close(lineage.bank, [0.4], checkpoint=2)
    assert lineage.marked == before


def test_without_hard_cases_no_model_is_asked(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    lineage.close(0.9)

    class Encoder:
        async def aencode(self, texts: list[str], side: str) -> list[Any]:
            assert not texts
            return []

    pool = HardCasePool(DesignerConfig())
    stage = asyncio.run(lineage.evolution.propose(None, lineage.bank, pool, Encoder(), 0))  # type: ignore[arg-type]
    assert stage.change == {}
    assert stages.first_unjudged(stages.read_all(tmp_path), 0) == stage


def judged(lineage: Lineage, number: int, *, kept: bool, checkpoint: int) -> None:
    """A stage after ``memskill evolve --judge-on``: an evaluation has decided whether it is kept."""
    change = {"summary": "tried"}
    stage = stages.Stage(number, bank_of(number), change=change, kept=kept, is_best=kept, checkpoint=checkpoint)
    stages.write(lineage.folder, stage)


def bank_of(number: int) -> SkillBank:
    return SkillBank(seed_bank(noop=False).skills, stage=number)


def test_rewinding_to_what_was_known_changes_nothing(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    lineage.close(0.2)
    lineage.change("moves")
    lineage.close(0.4)
    lineage.change("pets")
    before = {file.name: (file.stat().st_ino, file.read_bytes()) for file in tmp_path.iterdir()}
    lineage.evolution.truncate_after(2, stages.read_all(tmp_path)[1].bank)
    assert {file.name: (file.stat().st_ino, file.read_bytes()) for file in tmp_path.iterdir()} == before


def test_rewinding_opens_what_was_judged_later_and_drops_what_came_of_it(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    lineage.close(0.2)  # checkpoint 1
    lineage.change("moves")
    opened = stages.read_all(tmp_path)[1]
    lineage.close(0.4)  # checkpoint 2
    lineage.change("pets")
    lineage.close(0.5)  # checkpoint 3
    lineage.change("jobs")
    lineage.evolution.truncate_after(1, opened.bank)  # in the middle of stage 1
    first, again = stages.read_all(tmp_path)
    assert (first.is_best, first.reward, again) == (True, 0.2, opened)


def test_rewinding_keeps_a_proposal_that_was_waiting(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    lineage.close(0.2)
    zero = lineage.bank
    lineage.change("moves")
    lineage.evolution.truncate_after(0, zero)  # in the middle of stage 0
    first, waiting = stages.read_all(tmp_path)
    assert (first.judged, first.is_best, waiting.bank) == (False, False, lineage.bank)
    assert stages.first_unjudged([first, waiting], 0) == waiting


def test_rewinding_counts_what_an_evaluation_has_judged(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    lineage.close(0.4)  # checkpoint 1
    judged(lineage, 1, kept=True, checkpoint=1)
    judged(lineage, 2, kept=False, checkpoint=1)
    stages.write(tmp_path, stages.Stage(3, bank_of(3), 0.6, True, 5, kept=True))
    lineage.evolution.truncate_after(1, lineage.bank)
    assert [stage.number for stage in stages.read_all(tmp_path) if stage.is_best] == [1]
    assert [stage.number for stage in stages.read_all(tmp_path)] == [0, 1, 2]


def test_a_second_mark_that_a_crash_left_is_taken_away(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    lineage.close(0.2)
    first = stages.read_all(tmp_path)[0]
    lineage.change("moves")
    lineage.close(0.4)
    stages.write(tmp_path, first)
    lineage.evolution.truncate_after(2, lineage.bank)
    assert [stage.is_best for stage in stages.read_all(tmp_path)] == [False, True]


def test_the_proposal_that_waits_is_the_first_one(tmp_path: Path) -> None:
    """``memskill evolve`` can propose another stage while the stage before it is still in training."""
    for number in (1, 2):
        stages.write(tmp_path, stages.Stage(number, bank_of(number)))
    waiting = stages.first_unjudged(stages.read_all(tmp_path), 0)
    assert waiting is not None
    assert waiting.number == 1
