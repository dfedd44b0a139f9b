"""Designer cycles outside training, called as functions; tests/e2e/test_evolve.py runs the command."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from memskill_cli.app.evaluate import EvalProgress
from memskill_cli.app.evolve import CycleResult, EvolveOptions, decide_by, evolve, failures
from memskill_cli.app.runtime import ProviderAccess
from memskill_cli.config import load
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.testing.server import MockLLMServer
from memskill_cli.testing.server import Request as Asked
from memskill_cli.utils import files

from ..toy_models import designed, read_or_answered
from ..training.resume_harness import Lives

NOWHERE = {"change": "refine", "name": "nowhere", "body": "## Purpose\nX", "why": "there is no such skill"}


def helpless(request: Asked) -> str:
    """The models of the small world, with a designer whose changes are always invalid."""
    return designed(request, NOWHERE) if request.role == "designer" else read_or_answered(request)


@pytest.fixture
def server() -> Iterator[MockLLMServer]:
    with MockLLMServer(helpless) as running:
        yield running


@pytest.fixture
def lives(server: MockLLMServer, tmp_path: Path) -> Lives:
    encoders = {"encoders__state": "hashing", "encoders__retrieval": "hashing"}
    return Lives(tmp_path, server, models__api_base=server.url, train__outer_epochs=1, train__evolve=False, **encoders)


def by_hand(lives: Lives, run: RunDir, **asked: str) -> CycleResult:
    access = ProviderAccess(("k",), None, lives.folder / "cache")
    progress = EvalProgress(lambda *arguments: pytest.fail("nothing is evaluated"), lambda text: None)
    (cycle,) = asyncio.run(evolve(run, lives.settings, lives.folder, access, EvolveOptions(**asked), progress))  # type: ignore[arg-type]
    return cycle


def test_a_stage_that_changes_nothing_waits_for_nobody(lives: Lives) -> None:
    run = lives.begin("run")
    lives.live(run)
    bank = run.skill_bank.read_bytes()
    for number, asked in enumerate(({}, {"judge_on": "val"}, {}), start=1):
        cycle = by_hand(lives, run, **asked)
        assert (cycle.stage.number, cycle.stage.change, cycle.judged) == (number, {}, None)
    known = stages.read_all(run.stages)
    assert stages.first_unjudged(known, 0) is None
    assert [stage.is_best for stage in stages.mark_best(known)] == [True, False, False, False]
    assert run.skill_bank.read_bytes() == bank


def test_what_a_training_left_waiting_without_a_change_is_passed_over(lives: Lives) -> None:
    run = lives.begin("run")
    lives.live(run)
    bank = stages.read_all(run.stages)[0].bank.copy()
    bank.stage = 1
    stages.write(run.stages, stages.Stage(1, bank, rationale="no reason was given", parent=0))
    assert by_hand(lives, run, judge_on="val").stage.number == 2
    assert stages.first_unjudged(stages.read_all(run.stages), 0) is None


def test_failures_of_an_evaluation_say_where_the_evidence_was_lost() -> None:
    row = {"query_id": "q", "trace_id": "t", "category": "1", "question": "Where?", "truths": ["there"]}
    row |= {"prediction": "here", "retrieved": [], "f1": 0.0, "judge": None, "error": ""}
    rows = [row, {**row, "evidence": {"refs": ["s:1"], "recall": {}, "stage": "not_stored"}}]
    assert [case.stage for case in failures(rows, load())] == ["", "not_stored"]
    assert [case.stage for case in failures(rows, load(preset="paper"))] == ["", ""]


@pytest.mark.parametrize(("gate", "kept"), [("rewards", True), ("val", False)])
def test_judging_on_a_split_is_by_the_rule_of_the_run(tmp_path: Path, gate: str, kept: bool) -> None:
    """Better in the mean, but not surely: it is kept only where means alone decide."""
    summaries = []
    for name, scores in (("before", (0.5, 0.5)), ("after", (1.0, 0.4))):
        (tmp_path / name).mkdir()
        texts = dict.fromkeys(("trace_id", "category", "question", "prediction", "error"), "")
        row = {**texts, "truths": [], "judge": None, "retrieved": []}
        lines = [{**row, "query_id": f"q{i}", "f1": score} for i, score in enumerate(scores)]
        (tmp_path / name / "results.jsonl").write_bytes(b"".join(map(files.to_json, lines)))
        summaries.append({"folder": str(tmp_path / name), "f1": sum(scores) / 2})
    found = decide_by("f1", summaries, load(overrides={"designer.gate": gate}), ("f1", "judge"))
    assert found[0] is kept
    assert (found[1] is None) is (gate == "rewards")
