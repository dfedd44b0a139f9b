"""The gate: held-out questions decide about a change, not its stage reward; and a stopped run decides the same."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from memskill_cli.agent.controller import Controller
from memskill_cli.config import Config, load
from memskill_cli.distributed.base import LocalEngine
from memskill_cli.errors import ModelError
from memskill_cli.evaluation.comparison import paired_difference
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.runs import checkpoint
from memskill_cli.skills import stages
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.training.held_out import HeldOut, decide, held_out_of
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils import files

from ..factories import llm_client, make_ledger, rollout_context
from ..toy_models import HELP, designed
from .resume_harness import Lives, filmed, outcome, restored, trace
from .resume_harness import settings as run_settings

VAL = [trace("Dora"), trace("Emil")]
MARK = {"change": "refine", "name": "insert", "body": "## Purpose\nMARK everything.", "why": "marked"}


# --- the decision ---------------------------------------------------------------------------------------------------


def gate_settings(**overrides: Any) -> Config:
    return load(overrides={name.replace("__", "."): value for name, value in overrides.items()})


def table(*scores: float | None) -> dict[str, float | None]:
    return {f"q{i}": score for i, score in enumerate(scores)}


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ((0.2, 0.4), (0.3, 0.5), True),  # every difference is 0.1, so the interval is 0.1 to 0.1
        ((0.2, 0.4), (0.2, 0.4), False),  # no difference at all
        ((0.3, 0.5), (0.2, 0.4), False),
        ((0.5, 0.5), (1.0, 0.4), False),  # better in the mean, but the interval reaches -0.1
        ((0.5, 0.5), (1.0, 0.46), True),  # the interval reaches -0.04, which is less than the margin
    ],
)
def test_a_change_is_kept_if_it_gains_and_surely_loses_less_than_the_margin(
    before: tuple[float, ...], after: tuple[float, ...], kept: bool
) -> None:
    found = decide(table(*before), table(*after), gate_settings())
    assert found.kept is kept
    assert found.difference == pytest.approx((sum(after) - sum(before)) / 2)
    assert (found.champion, found.challenger) == (pytest.approx(sum(before) / 2), pytest.approx(sum(after) / 2))


def test_the_margin_is_a_setting() -> None:
    wide = gate_settings(designer__gate_margin=0.2)
    assert decide(table(0.5, 0.5), table(1.0, 0.4), wide).kept
    assert not decide(table(0.5, 0.5), table(1.0, 0.46), gate_settings(designer__gate_margin=0.0)).kept


def test_only_questions_with_both_scores_count_and_the_interval_is_that_of_an_evaluation() -> None:
    champion = table(0.1, None, 0.5, 0.9, 0.3, 0.0)
    challenger = {**table(0.4, 1.0, None, 0.8, 0.35), "other": 1.0}
    found = decide(champion, challenger, gate_settings(seed=5))
    expected = paired_difference([0.1, 0.9, 0.3], [0.4, 0.8, 0.35], resamples=2000, seed=5)
    assert expected is not None
    assert found is not None
    assert (found.queries, found.difference) == (3, pytest.approx(0.25 / 3))
    assert found.ci95 == pytest.approx(expected.ci95)
    assert decide(table(0.1, None), table(None, 0.2), gate_settings()) is None, "stage rewards judge instead"


# --- the questions --------------------------------------------------------------------------------------------------


def many(name: str, sizes: dict[str, int]) -> Trace:
    """A trace with questions of these categories; one more of each is not scored."""
    ids = [(category, f"{name}-{category}-{i}", i < n) for category, n in sizes.items() for i in range(n + 1)]
    queries = tuple(Query(i, name, category, f"What is {i}?", ("x",), scored=scored) for category, i, scored in ids)
    turns = (Turn(name, "First."), Turn(name, "Second."))
    return Trace(name, "locomo", "val", (Session("s", "1 May 2025", turns),), queries)


def asked(held_out: HeldOut) -> list[Query]:
    return [query for episode in held_out.episodes for query in episode.queries]


def test_questions_are_a_stratified_sample_of_those_that_are_scored() -> None:
    traces = [many("A", {"1": 6, "2": 2}), many("B", {"1": 6, "2": 2})]
    some = asked(HeldOut(gate_settings(designer__gate_queries=8), traces))
    assert sorted(query.category for query in some) == ["1"] * 6 + ["2"] * 2, "12 to 4, as in the split"
    assert all(query.scored for query in some)
    assert asked(HeldOut(gate_settings(designer__gate_queries=8), traces)) == some
    assert asked(HeldOut(gate_settings(designer__gate_queries=8, seed=1), traces)) != some
    for number in (0, 99):
        assert len(asked(HeldOut(gate_settings(designer__gate_queries=number), traces))) == 16


def test_traces_are_read_as_in_an_evaluation_and_only_those_that_are_asked_about() -> None:
    traces = [many("A", {"1": 1}), many("B", {"1": 0})]
    chosen = {"train.span_mode": "full-session", "eval.span_mode": "turn"}
    (episode,) = HeldOut(load(overrides=chosen), traces).episodes
    assert [(span.trace_id, span.index) for span in episode.spans] == [("A", 0), ("A", 1)]


def test_without_such_questions_stage_rewards_judge_and_it_is_said_once() -> None:
    told: list[str] = []

    def nothing_read() -> Sequence[Trace]:
        raise AssertionError("the split is not needed")

    assert held_out_of(gate_settings(designer__gate="rewards"), nothing_read, told.append) is None
    assert held_out_of(gate_settings(train__evolve=False), nothing_read, told.append) is None
    assert told == []
    assert held_out_of(gate_settings(dataset="alfworld"), nothing_read, told.append) is None
    for empty in ([], [many("A", {"1": 0})]):
        assert held_out_of(gate_settings(), lambda found=empty: found, told.append) is None  # type: ignore[misc]
    assert ["stage rewards" in text for text in told] == [True] * 3
    assert held_out_of(gate_settings(), lambda: VAL, told.append) is not None
    assert len(told) == 3


def test_the_paper_and_runs_of_version_0_1_are_judged_by_rewards() -> None:
    assert (gate_settings().designer.gate, load(preset="paper").designer.gate) == ("val", "rewards")


# --- answering ------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_an_evaluation(tmp_path: Path) -> None:
    """The number of skills and of memories of an evaluation, a judge if the reward needs one; noop is not shown."""
    chosen = {"eval__num_skills": 4, "train__num_skills": 1, "eval__span_mode": "turn", "reward__kind": "judge"}
    how = run_settings(memory__sources=False, eval__num_memories=1, **chosen)

    def reply(request: Request) -> str:
        if request.role == "judge":
            return '{"explanation": "so", "score": 0.5}'
        if request.role == "answer":
            return "baker"
        who = re.search(r"(\w+)'s (\w+) is", request.text.partition("<span>")[2]).groups()  # type: ignore[union-attr]
        return f"ACTION: INSERT\nMEMORY: {' '.join(who)} is known"

    with MockLLMServer(reply) as server:
        scores = asyncio.run(answered(how, server, HeldOut(how, VAL[:1])))
        executor = [request.text for request in server.requests if request.role == "executor"]
        answers = [request.text for request in server.requests if request.role == "answer"]
    assert scores == {"Dora-job": 0.5, "Dora-allergy": 0.5}
    assert [len(re.findall(r"Action type: (?:INSERT|UPDATE|DELETE)", text)) for text in executor] == [3, 3]
    assert not any("Action type: NOOP" in text for text in executor)
    assert [text.count("is known") for text in answers] == [1, 1]


async def answered(how: Config, server: MockLLMServer, held_out: HeldOut) -> dict[str, float | None]:
    with closing(load_encoder("hashing", cache_dir=None)) as encoder:
        llm = llm_client(server.url, base=how.models, keys=["k"], ledger=make_ledger())
        try:
            bank = seed_bank()
            skills_SD = torch.from_numpy(await encoder.aencode([skill.description for skill in bank.skills]))
            controller = Controller.seeded(encoder.dim, how.controller.hidden, how.seed)
            context = rollout_context(llm, encoder, how)
            return await held_out.scores(LocalEngine(context), controller, bank, skills_SD)
        finally:
            await llm.aclose()


def test_if_no_answer_has_a_score_the_run_stops() -> None:
    how = run_settings()
    with (
        MockLLMServer(lambda request: "<think>never" if request.role == "answer" else "ACTION: NOOP") as server,
        pytest.raises(ModelError, match="none of 4 held-out answers"),
    ):
        asyncio.run(answered(how, server, HeldOut(how, VAL)))


# --- in a training --------------------------------------------------------------------------------------------------

HARMS_VAL = {("train", False): {"job"}, ("train", True): {"job", "allergy"}, ("val", False): {"job", "allergy"}}
"""The facts that are written down, by split and whether the skill is marked. The change gives a higher reward only."""
HELPS_VAL = {("train", False): {"job"}, ("val", True): {"job", "allergy"}}
"""The change is worse in training and better on the held-out questions."""


class World:
    """All skills are shown for every span, so what is written down depends only on whether ``insert`` is marked.

    The designer marks it first. When it is told that this did not help, it adds a skill without any effect.
    """

    def __init__(self, known: dict[tuple[str, bool], set[str]]) -> None:
        self.known = known

    def __call__(self, request: Request) -> str:
        text = request.messages[-1]["content"]
        if request.role == "designer":
            return designed(request, HELP if "MARK" in text else MARK)
        if request.role == "answer":
            kind, who = re.search(r"What is the (\w+) of (\w+)\?", text).groups()  # type: ignore[union-attr]
            memories = re.findall(r"(\w+) (\w+) (\w+)$", text, flags=re.MULTILINE)
            return next((value for w, k, value in memories if (w, k) == (who, kind)), "unknown")
        skill, _, span = text.partition("<span>")
        who, kind, value = re.search(r"(\w+)'s (\w+) is (\w+)", span).groups()  # type: ignore[union-attr]
        split = "val" if who in ("Dora", "Emil") else "train"
        known = self.known.get((split, "MARK" in skill), set())
        return f"ACTION: INSERT\nMEMORY: {who} {kind} {value}" if kind in known else "ACTION: NOOP"


SMALL = {"train__num_skills": 3, "eval__span_mode": "turn", "memory__sources": False, "designer__gate": "val"}


@pytest.fixture
def lives(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lives]:
    """Runs in the world that is the parameter."""
    with MockLLMServer(World(request.param)) as server:
        yield Lives(tmp_path, server, val=VAL, **{**SMALL, "train__inner_epochs": 1})


@pytest.mark.parametrize("lives", [HARMS_VAL], indirect=True)
def test_a_change_that_is_worse_on_val_is_rolled_back_though_its_reward_is_higher(lives: Lives) -> None:
    told: list[str] = []
    run = lives.begin("run")
    lives.live(run, told=told)
    first, marked, idle = stages.read_all(run.stages)
    assert (first.reward, marked.reward) == (pytest.approx(0.5), pytest.approx(1.0))
    assert (marked.outcome, first.outcome) == ("rolled back", "best")
    assert marked.gate == stages.Gate(4, -1.0, (-1.0, -1.0), False, champion=1.0, challenger=0.0)
    assert first.held_out == dict.fromkeys(("Dora-job", "Dora-allergy", "Emil-job", "Emil-allergy"), 1.0)
    assert first.gate is None
    # A change without any effect can't be told from noise: it is not kept either.
    assert idle.gate is not None
    assert (idle.parent, idle.outcome, idle.gate.difference) == (0, "rolled back", 0.0)
    assert b"MARK" not in run.skill_bank.read_bytes()
    measured = "4 held-out questions: 0.000 with the change, 1.000 without; difference -1.000"
    assert any(measured in text and "rolled back to stage 0" in text for text in told)
    prompts = [request.text for request in lives.server.requests if request.role == "designer"]
    assert [measured in text for text in prompts].count(True) > 0, "the designer is told what was measured"
    assert not any("the best without it" in text for text in prompts), "and not that the reward was higher"


@pytest.mark.parametrize("lives", [HELPS_VAL], indirect=True)
def test_a_change_that_is_better_on_val_is_kept_though_its_reward_is_lower(lives: Lives) -> None:
    run = lives.begin("run")
    lives.live(run)
    first, marked, idle = stages.read_all(run.stages)
    assert (first.reward, marked.reward) == (pytest.approx(0.5), pytest.approx(0.0))
    assert (first.outcome, marked.outcome, idle.parent) == ("kept", "best", 1)
    assert marked.gate == stages.Gate(4, 1.0, (1.0, 1.0), True, champion=0.0, challenger=1.0)
    assert b"MARK" in run.skill_bank.read_bytes()


@pytest.mark.parametrize("lives", [HARMS_VAL], indirect=True)
def test_with_rewards_the_same_change_is_kept_and_nothing_is_asked(lives: Lives) -> None:
    lives.val = []
    run = lives.begin("run")
    lives.live(run)
    assert [stage.gate for stage in stages.read_all(run.stages)] == [None] * 3
    assert stages.read_all(run.stages)[1].is_best
    assert not any("Dora" in request.text for request in lives.server.requests)


@pytest.mark.parametrize("lives", [HELPS_VAL], indirect=True)
def test_each_bank_is_measured_once_and_its_cost_is_in_the_metrics(lives: Lives) -> None:
    run = lives.begin("run")
    lives.live(run)
    answers = [request.text for request in lives.server.requests if request.role == "answer"]
    # The third bank has the same memories as the second, so its answers are in the cache.
    assert sum("of Dora?" in text for text in answers) == 2 * 2
    bill = list(files.read_jsonl(run.usage))
    for name in ("prompt_tokens", "completion_tokens"):
        assert sum(row[name] for row in files.read_jsonl(run.metrics)) == sum(row[name] for row in bill)


# --- resumed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lives", [HARMS_VAL, HELPS_VAL], indirect=True)
def test_a_run_stopped_around_the_gate_decides_the_same(lives: Lives) -> None:
    lives.live(lives.begin("once"))  # now every reply is in the cache
    run, names = lives.begin("run"), count()
    with filmed(run, lives.folder / "film") as pictures:
        lives.live(run)
    whole = outcome(run)
    for picture in pictures[5::31]:
        again = restored(picture, lives.folder / f"life-{next(names)}")
        lives.live(again)
        assert outcome(again) == whole, picture


@pytest.mark.parametrize("lives", [HELPS_VAL], indirect=True)
def test_the_decision_needs_no_checkpoint_of_the_champion(lives: Lives) -> None:
    """The new best stage's checkpoint is damaged after the champion's has been deleted: the stage is judged again."""
    longer(lives, 2)
    run = lives.begin("run")
    lives.live(run)
    whole = outcome(run)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000003", "000004"]
    (run.checkpoints / "000004" / "state.json").write_bytes(b"torn")
    told: list[str] = []
    lives.live(run, told=told)
    assert any("judged again" in text for text in told)
    assert outcome(run) == whole


@pytest.mark.parametrize("lives", [HELPS_VAL], indirect=True)
def test_the_champion_is_measured_before_its_checkpoint_can_be_lost(lives: Lives) -> None:
    longer(lives, 2)
    lives.live(lives.begin("once"))  # now every reply is in the cache
    run = lives.begin("run")
    with filmed(run, lives.folder / "film") as pictures:
        lives.live(run)
    again = restored(within(pictures, 3), lives.folder / "life")
    (again.checkpoints / "000002" / "state.json").write_bytes(b"torn")
    told: list[str] = []
    lives.live(again, told=told)
    assert outcome(again) == outcome(run)
    assert not any("cannot be used" in text for text in told)


@pytest.mark.parametrize("lives", [HELPS_VAL], indirect=True)
def test_a_champion_without_scores_is_measured_with_its_own_checkpoint(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``memskill evolve``, or for a run that used rewards before."""
    longer(lives, 3)
    lives.live(lives.begin("once"))
    run = lives.begin("run")
    with filmed(run, lives.folder / "film") as pictures:
        lives.live(run)
    again = restored(within(pictures, 5), lives.folder / "life")
    champion = stages.read_all(again.stages)[1]
    assert (champion.is_best, champion.checkpoint) == (True, 4)
    stages.write(again.stages, dataclasses.replace(champion, held_out=None))
    used: list[torch.Tensor] = []
    scores = HeldOut.scores

    async def watched(self: HeldOut, engine: Any, controller: Controller, *rest: Any) -> Any:
        used.append(controller.state_dict()["actor_head.0.weight"].clone())
        return await scores(self, engine, controller, *rest)

    monkeypatch.setattr(HeldOut, "scores", watched)
    lives.live(again)
    assert outcome(again) == outcome(run)
    expected = [
        checkpoint.load(run.checkpoints / name).controller["actor_head.0.weight"] for name in ("000004", "000006")
    ]
    assert len(used) == 2
    assert all(torch.equal(one, other) for one, other in zip(used, expected, strict=True))


def longer(lives: Lives, outer: int) -> None:
    """Two inner epochs a stage, and only two checkpoints beside the best one."""
    train = dataclasses.replace(lives.settings.train, inner_epochs=2, outer_epochs=outer, keep_checkpoints=2)
    lives.settings = dataclasses.replace(lives.settings, train=train)


def within(pictures: list[Path], done: int) -> Path:
    """The first copy with a checkpoint of ``done`` inner epochs."""
    return next(picture for picture in pictures if (picture / f"checkpoints/{done:06d}").exists())
