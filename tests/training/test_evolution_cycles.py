"""Designer cycles of a run: the designer's inputs, the files written and the notices. The models are stubs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memskill_cli.agent.designer import FailedEdit, Proposal, SkillEdit
from memskill_cli.agent.hard_cases import HardCase, HardCasePool, select
from memskill_cli.config import DesignerConfig, load
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.stages import Stage
from memskill_cli.training.evolution import Evolution, attempts, designer_of, stage_of
from memskill_cli.types import Action

PETS = SkillEdit("add", "pets", "Write down pets.", "## Purpose\nKeep it.", Action.INSERT, "they were lost")
SHORTER = SkillEdit("refine", "insert", None, "## Purpose\nKeep it short.", None, "it was long")
TWO = Proposal("two changes", (PETS, SHORTER), {"summary": "lost"}, ("reply 1 made no sense", "reply 2 neither"))


def case(name: str, question: str = "", fail_count: int = 1) -> HardCase:
    return HardCase(name, "t", "1", question or f"Where is {name}?", ("there",), "no idea", (), 0.0, fail_count, 0)


class Stand:
    """A stub of the designer: always the same proposal. It records its inputs."""

    def __init__(self, proposal: Proposal) -> None:
        self.proposal, self.given = proposal, list[tuple[Any, Any, Any]]()

    async def propose(self, bank: Any, clusters: Any, tried: Any) -> Proposal:
        self.given.append((bank, clusters, tried))
        return self.proposal


class Encoder:
    """Random vectors; only questions are encoded, as queries."""

    async def aencode(self, texts: Sequence[str], side: str) -> Any:
        assert side == "query"
        rows = [np.random.default_rng(list(text.encode())).normal(size=16) for text in texts]
        return np.array(rows, np.float32).reshape(-1, 16)


class Run:
    def __init__(self, folder: Path, **how: Any) -> None:
        self.folder, self.told = folder, list[str]()
        self.evolution = Evolution(folder, DesignerConfig(**how), self.told.append)

    def propose(self, designer: Stand | None, bank: SkillBank, *cases: HardCase, seed: int = 0, **more: Any) -> Stage:
        pool = HardCasePool(DesignerConfig(), cases)
        return asyncio.run(self.evolution.propose(designer, bank, pool, Encoder(), seed, **more))  # type: ignore[arg-type]

    @property
    def known(self) -> list[Stage]:
        return stages.read_all(self.folder)


def bank_of(number: int) -> SkillBank:
    return SkillBank(seed_bank().skills, stage=number)


# --- a cycle -----------------------------------------------------------------------------------------------------


def test_a_proposal_is_written_down_with_its_reasons_and_told(tmp_path: Path) -> None:
    run, bank, designer = Run(tmp_path), bank_of(2), Stand(TWO)
    for number in (2, 5):
        stages.write(tmp_path, Stage(number, bank_of(number)))
    cases = [case("q1"), case("q2", fail_count=3)]
    stage = run.propose(designer, bank, *cases)
    assert designer.given == [(bank, [[cases[1]], [cases[0]]], [])]
    assert run.known[-1] == stage
    assert (stage.number, stage.parent, stage.judged, stage.bank.stage) == (6, 2, False, 6)
    assert stage.change == TWO.to_dict()
    assert stage.rationale == "add pets: they were lost\nrefine insert: it was long"
    assert stage.bank.new == {"pets", "insert"}
    assert "short" in stage.bank["insert"].body
    assert "pets" not in bank, "the bank of the earlier stage is not changed"
    assert run.told == [
        "the designer's proposal was refused: reply 1 made no sense",
        "the designer's proposal was refused: reply 2 neither",
        "stage 6, from stage 2 and 2 hard cases: add pets, refine insert; two changes",
    ]


def test_a_proposal_may_be_looked_at_without_being_written_down(tmp_path: Path) -> None:
    run = Run(tmp_path)
    stage = run.propose(Stand(TWO), bank_of(0), case("q1"), write=False)
    assert (run.known, stage.number) == ([], 0)
    assert "pets" in stage.bank


def test_without_hard_cases_the_reason_is_written_down(tmp_path: Path) -> None:
    run = Run(tmp_path)
    stages.write(tmp_path, Stage(0, bank_of(0)))
    stage = run.propose(None, bank_of(0))
    assert (stage.number, stage.parent, stage.change) == (1, 0, {})
    assert stage.rationale == "no hard cases, so nothing to change"
    (told,) = run.told
    assert "0 hard cases: no change; no hard cases" in told


def test_a_cycle_that_changes_nothing_says_why(tmp_path: Path) -> None:
    refused = Proposal("retrieval failed", refused=("one", "two"))
    stage = Run(tmp_path).propose(Stand(refused), bank_of(3), case("q1"))
    assert (stage.rationale, stage.change, stage.parent) == ("retrieval failed; one; two", {}, 3)
    assert stage_of(bank_of(3), Proposal(""), 4).rationale == "no reason was given"
    silent = SkillEdit("add", "pets", "Write down pets.", "Keep it.", Action.INSERT, "")
    assert stage_of(bank_of(3), Proposal("s", (silent,)), 4).rationale == ""


def test_cases_are_clustered_with_the_seed_of_the_run(tmp_path: Path) -> None:
    cases = [case(f"q{i:02}", fail_count=1 + i % 3) for i in range(60)]
    vectors = asyncio.run(Encoder().aencode([one.question for one in cases], "query"))
    designer = Stand(Proposal("nothing"))
    Run(tmp_path).propose(designer, bank_of(0), *cases, seed=7)
    shown = designer.given[0][1]
    assert shown == select(cases, vectors, DesignerConfig(), 7) != select(cases, vectors, DesignerConfig(), 42)


class Stopped(Exception):
    pass


class Models:
    """A stub of the model client that takes one prompt."""

    prompt = ""

    async def ask(self, role: str, messages: Any, **more: Any) -> Any:
        assert role == "designer"
        self.prompt = "\n".join(message["content"] for message in messages)
        raise Stopped


def prompted(clusters: list[list[HardCase]], **overrides: Any) -> str:
    models = Models()
    designer = designer_of(models, load(overrides=overrides))  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        asyncio.run(designer.propose(seed_bank(), clusters, []))
    return models.prompt


def test_the_designer_of_a_run_is_shown_what_its_model_can_read_and_told_what_traces_are_about() -> None:
    large = "gpt-4o-mini"
    many = [[case(f"q{i}", "Where is it? " * 99) for i in range(15)]]
    without = len(prompted([[case("q", "?")]], **{"models.designer": large}))
    wide = len(prompted(many, **{"models.designer": large})) - without
    narrow = len(prompted(many, **{"models.designer": "embedded"})) - without
    assert wide > 10_000
    assert 4_000 < narrow <= 8_000
    talk, games = (prompted([[case("q")]], dataset=dataset) for dataset in ("locomo", "alfworld"))
    assert talk != games
    assert "precondition" in games
    assert "precondition" not in talk
    hinted = prompted([[case("q")]], **{"designer.prefer_new_skills": True})
    assert len(hinted) > len(prompted([[case("q")]], **{"designer.prefer_new_skills": False})), "as the settings say"


# --- stages without a designer, and the end ----------------------------------------------------------------------


def test_a_run_begins_once_with_stage_0(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.evolution.begin(seed_bank())
    run.evolution.begin(seed_bank(noop=False))
    (zero,) = run.known
    assert (zero.number, zero.bank, zero.judged) == (0, seed_bank(), False)


def test_without_a_designer_the_same_bank_is_judged_anew(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first = run.evolution.repeat_stage(bank_of(0))
    assert (first.number, first.bank.stage) == (0, 0)
    bank = bank_of(0)
    bank.record_batch([[0]], [0.5])
    second = run.evolution.repeat_stage(bank)
    assert (second.number, second.bank.stage, second.parent, second.judged) == (1, 1, 0, False)
    assert second.bank.skills == bank.skills
    assert bank.stage == 0
    assert run.known == [first, second]


def test_a_stage_whose_file_is_missing_is_judged_all_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path, judged_share=0.5)
    closed = run.evolution.close(bank_of(4), [0.0, 0.0, 0.2, 0.4], checkpoint=9)
    assert run.known == [closed]
    assert (closed.number, closed.reward, closed.checkpoint) == (4, pytest.approx(0.3), 9)
    assert (closed.is_best, closed.kept, closed.bank, closed.change) == (True, True, bank_of(4), {})


def test_why_no_further_cycle_is_worth_it(tmp_path: Path) -> None:
    run = Run(tmp_path, patience=1, max_cycles=2)
    assert run.evolution.stop_reason() == "", "nothing has been judged yet"
    for number, reward in enumerate((0.1, 0.2, 0.3)):
        assert run.evolution.stop_reason() == ""
        run.evolution.close(bank_of(number), [reward], checkpoint=number)
    assert run.evolution.stop_reason() == "the limit of 2 designer cycles is reached"
    run.evolution.close(bank_of(3), [0.2], checkpoint=3)
    assert run.evolution.stop_reason() == "no better stage in 1 designer cycles"


# --- going back --------------------------------------------------------------------------------------------------


def test_stages_judged_later_are_told_and_open_again_each_with_its_own_bank(tmp_path: Path) -> None:
    run = Run(tmp_path)
    change = {"summary": "s"}
    stages.write(tmp_path, Stage(0, bank_of(0), 0.1, checkpoint=1, kept=True))
    stages.write(tmp_path, Stage(1, bank_of(1), 0.2, checkpoint=8, kept=True, change=change, rationale="r", parent=0))
    stages.write(tmp_path, Stage(2, bank_of(2), 0.3, is_best=True, checkpoint=9, kept=True, change=change, parent=1))
    stages.write(tmp_path, Stage(3, bank_of(3), parent=2))
    trained = bank_of(2)
    trained.record_batch([[0], [1]], [0.5, 0.7])
    run.evolution.truncate_after(3, trained)
    zero, one, two, three = run.known
    assert (zero.reward, zero.is_best) == (0.1, True)
    assert one == Stage(1, bank_of(1), change=change, rationale="r", parent=0)
    assert two == Stage(2, trained, change=change, parent=1)
    assert three == Stage(3, bank_of(3), parent=2)
    (told,) = run.told
    assert told == "stages judged after inner epoch 3 are judged again: 1, 2"
    run.evolution.truncate_after(3, trained)
    assert len(run.told) == 1, "only once"


# --- what was tried ----------------------------------------------------------------------------------------------


def tried(number: int, reward: float | None, **more: Any) -> Stage:
    return Stage(number, bank_of(number), reward, change={"summary": f"s{number}", "changes": [{"name": "n"}]}, **more)


def test_what_was_rolled_back_is_told_with_the_best_reward_before_it() -> None:
    known = [
        Stage(0, bank_of(0), 0.3, is_best=True, kept=True),
        tried(1, None, kept=False),
        tried(2, 0.2, kept=False),
        tried(3, None),
    ]
    assert attempts(known) == [
        FailedEdit(1, "s1", ({"name": "n"},), None, 0.3),
        FailedEdit(2, "s2", ({"name": "n"},), 0.2, 0.3),
    ]
    assert attempts([Stage(0, bank_of(0)), tried(1, None, kept=False)]) == [
        FailedEdit(1, "s1", ({"name": "n"},), None, None)
    ]
    other = Stage(1, bank_of(1), 0.1, kept=False, change={"other": 1})
    assert attempts([known[0], other]) == [FailedEdit(1, "", (), 0.1, 0.3)]


def test_a_new_best_clears_what_was_tried_before_it() -> None:
    """The best stage's own reason for no change is not an attempt either."""
    known = [
        Stage(0, bank_of(0), 0.3, kept=True),
        tried(1, 0.2, kept=False),
        Stage(2, bank_of(2), 0.4, is_best=True, kept=True, rationale="no hard cases"),
        tried(3, 0.1, kept=False),
    ]
    assert [attempt.stage for attempt in attempts(known)] == [3]
