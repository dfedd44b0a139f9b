"""Training with rewards, credit assignments and algorithms of plug-ins; each is one function or class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from memskill_cli.app.evolve import failures
from memskill_cli.config import DesignerConfig, RewardConfig, load
from memskill_cli.config.extension_points import ALGORITHMS, CREDITS, REWARDS
from memskill_cli.errors import PluginError, UsageError
from memskill_cli.rollout.rewards import Reward, register_credit, register_reward, reward_of, step_shares
from memskill_cli.runs import checkpoint
from memskill_cli.training.algorithms import group_size, register_algorithm
from memskill_cli.training.ppo import PPOStats
from memskill_cli.types import Episode, ExecutorResult, QueryResult, SkillSelection, Step

from .test_trainer import Rig

STATS = PPOStats(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


class Seen:
    """The inputs that the parts of these tests have got."""

    episodes: ClassVar[list[list[Episode]]] = []
    judged: ClassVar[list[float | None]] = []


@pytest.fixture(autouse=True)
def _parts() -> Iterator[None]:
    Seen.episodes, Seen.judged = [], []

    @register_reward("half")
    class Half(Reward):
        def of(self, result: QueryResult) -> float | None:
            Seen.judged.append(result.judge)
            return None if result.error else 0.5

        def threshold(self, designer: DesignerConfig) -> float:
            return 0.6

    @register_reward("verdict-squared")
    class Squared(Reward):
        needs_judge = True

        def of(self, result: QueryResult) -> float | None:
            return None if result.judge is None else result.judge**2

    @register_credit("all-to-the-first")
    def first(reward: float, steps: Any, settings: RewardConfig) -> list[float]:
        return [reward, *[0.0] * (len(steps) - 1)]

    @register_credit("too-few")
    def too_few(reward: float, steps: Any, settings: RewardConfig) -> list[float]:
        return [reward]

    @register_algorithm("watching")
    def watching(episodes: Any, policy: Any) -> PPOStats:
        Seen.episodes.append(list(episodes))
        (0.0 * sum(p.sum() for p in policy.controller.parameters())).backward()
        policy.optimizer.step()
        return STATS

    yield
    for registry, names in (
        (REWARDS, ("half", "verdict-squared")),
        (CREDITS, ("all-to-the-first", "too-few")),
        (ALGORITHMS, ("watching",)),
    ):
        for name in names:
            registry.unregister(name)


def test_a_training_with_parts_of_ones_own(tmp_path: Path) -> None:
    parts = {"reward__kind": "half", "reward__credit": "all-to-the-first", "train__algorithm": "watching"}
    rig = Rig(tmp_path, reward__process_reward_scale=0.0, reward__process_penalty_scale=0.0, **parts)
    rows = rig.train()
    assert [row["episode_reward_mean"] for row in rows] == [0.5, 0.5]
    assert [row["policy_loss"] for row in rows] == [1.0, 1.0], "the metrics have the values that the algorithm returns"
    assert [len(episodes) for episodes in Seen.episodes] == [2, 2]
    rewards = [step.reward for step in Seen.episodes[0][0].steps]
    assert rewards == [0.5] + [0.0] * (len(rewards) - 1)
    assert rig.trainer is not None
    assert len(rig.trainer.pool) > 0, "0.5 is below the threshold of the reward, though not below that of F1"
    assert set(Seen.judged) == {None}, "the judge is not called"


def test_a_reward_that_needs_the_judge_is_given_its_score(tmp_path: Path) -> None:
    asked: list[str] = []
    rig = Rig(tmp_path, reward__kind="verdict-squared", train__inner_epochs=1)
    rig.train(epoch=lambda row, requests: asked.extend(request.role for request in requests))
    assert asked.count("judge") == asked.count("answer") > 0


@pytest.mark.parametrize("size", [1, 2])
def test_grpo_trains_and_goes_on(tmp_path: Path, size: int) -> None:
    rig = Rig(tmp_path, train__algorithm="grpo", train__group_size=size)
    rows = rig.train()
    assert [(row["value_loss"], row["explained_variance"]) for row in rows] == [(0.0, 0.0)] * 2
    newest = checkpoint.load_latest(rig.run.checkpoints)
    assert newest is not None
    assert newest.num_updates == 2, "the checkpoint is complete although there is no critic"
    moved = checkpoint.load(rig.run.checkpoints / "000001").controller
    assert any(not tensor.equal(moved[name]) for name, tensor in newest.controller.items())


def test_an_algorithm_is_told_of_its_groups_only_if_it_compares_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    watched = ALGORITHMS.get("watching")

    def watching(episodes: Any, policy: Any) -> PPOStats:
        sizes.append(policy.group_size)
        stats: PPOStats = watched(episodes, policy)
        return stats

    ALGORITHMS.register("counting", watching)
    try:
        for number, grouped in enumerate((False, True)):
            monkeypatch.setattr(watching, "grouped", grouped, raising=False)
            settings = {"train__algorithm": "counting", "train__group_size": 2, "train__inner_epochs": 1}
            Rig(tmp_path / str(number), **settings).train()
    finally:
        ALGORITHMS.unregister("counting")
    traces = [[episode.trace_id for episode in batch] for batch in Seen.episodes]
    assert sizes == [1, 2]
    assert [len(set(names)) for names in traces] == [2, 1], "the episodes of a group read one trace"
    first, second = Seen.episodes[1]
    assert [one.query for one in first.results] == [one.query for one in second.results]


@pytest.mark.parametrize(("batch", "fitting"), [(6, 8), (2, 4)])
def test_a_batch_that_is_no_whole_number_of_groups_is_refused(batch: int, fitting: int) -> None:
    how = load(overrides={"train.algorithm": "grpo", "train.batch_size": batch}).train
    with pytest.raises(UsageError, match=f"train.batch_size {batch} is not a multiple of train.group_size 4") as error:
        group_size(how)
    assert f"--batch-size {fitting}" in error.value.hint
    assert group_size(load(overrides={"train.batch_size": batch}).train) == 1, "PPO has no groups"


def test_shares_that_are_not_one_a_step_are_an_error() -> None:
    step = Step(None, SkillSelection((0,), 0.0, 0.0), ExecutorResult((), {}), 0.0)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="credit assignment too-few gives 1 shares for 2 steps") as error:
        step_shares(0.5, [step, step], RewardConfig(credit="too-few"))
    assert error.value.hint == "correct the plug-in, then resume the run"
    assert step_shares(0.5, [step], RewardConfig(credit="too-few")) == [0.5]


def test_the_default_credit_is_that_of_the_settings() -> None:
    step = Step(None, SkillSelection((0,), 0.0, 0.0), ExecutorResult((), {}), 0.0)  # type: ignore[arg-type]
    assert step_shares(1.0, [step, step], RewardConfig(final_share=0.5, decay=1.0)) == [0.25, 0.75]


def test_measures_and_thresholds() -> None:
    designer = DesignerConfig(f1_threshold=0.3)
    found = {
        kind: (reward.needs_judge, reward.measure, reward.threshold(designer))
        for kind in ("f1", "judge", "half", "verdict-squared")
        if (reward := reward_of(RewardConfig(kind=kind)))
    }
    assert found == {
        "f1": (False, "f1", 0.3),
        "judge": (True, "judge", 1.0),
        "half": (False, "f1", 0.6),
        "verdict-squared": (True, "judge", 0.3),
    }


def test_a_reward_may_be_registered_as_an_instance() -> None:
    instance = reward_of(RewardConfig(kind="half"))
    REWARDS.register("an-instance", instance)
    try:
        assert reward_of(RewardConfig(kind="an-instance")) is instance
    finally:
        REWARDS.unregister("an-instance")


def test_the_failures_of_an_evaluation_are_those_of_the_reward() -> None:
    """Rows of an evaluation have F1 and verdicts. The reward is computed from them as from answers in training."""
    row = {
        "query_id": "q",
        "trace_id": "t",
        "category": "1",
        "question": "Where?",
        "truths": ["Leeds"],
        "prediction": "In Leeds",
        "f1": 0.9,
        "judge": 0.5,
        "retrieved": [{"id": "m1", "text": "Leeds", "score": 0.5}],
        "error": "",
    }
    kinds = ("f1", "judge", "half", "verdict-squared")
    found = {kind: failures([row], load(sets=[f"reward.kind={kind}"])) for kind in kinds}
    assert [len(found[kind]) for kind in kinds] == [0, 1, 1, 1]
    (case,) = found["verdict-squared"]
    assert (case.score, case.retrieved, case.gold_answers) == (0.25, ("Leeds",), ("Leeds",))
    assert failures([{**row, "judge": None}], load(sets=["reward.kind=judge"])) == [], "without a score: no failure"
