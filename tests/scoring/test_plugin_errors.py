"""An exception in a plug-in that scores answers is one line that names the function, the query and the exception."""

from __future__ import annotations

import asyncio
import math
import pickle
import re
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import typer

from memskill_cli.cli.console import console
from memskill_cli.config import RewardConfig
from memskill_cli.config.datasets import DATASETS
from memskill_cli.config.extension_points import CREDITS
from memskill_cli.datasets.base import Dataset
from memskill_cli.datasets.registry import get, register_dataset
from memskill_cli.errors import DataError, PluginError
from memskill_cli.rollout import rewards
from memskill_cli.rollout.rewards import Reward, register_credit, score_result, step_shares
from memskill_cli.scoring import judge as judge_module
from memskill_cli.scoring.plugin_errors import plugin_errors
from memskill_cli.types import ExecutorResult, Query, QueryResult, SkillSelection, Step

from ..rollout.test_episode import Models, episode

QUERY = Query("q7", "t", "single-hop", "Where?", ("Leeds",))
RESULT = QueryResult(QUERY, "Leeds", (), 1.0)
HERE = rf"\({re.escape(__file__)}:\d+\)"


class Broken(Dataset):
    """Each function that scores answers raises an exception."""

    name = "broken"

    def read(self, part: Any, watch: Any) -> Any:
        raise NotImplementedError

    def score(self, query: Query, prediction: str) -> float:
        raise ZeroDivisionError("no words\nin the answer")

    def scored_text(self, reply: str) -> str:
        raise KeyError("answer")

    def judge_prompt(self, category: str) -> str:
        raise RuntimeError


class BrokenReward(Reward):
    def of(self, result: QueryResult) -> float | None:
        return float(result.prediction)


def told(work: Callable[[], Any]) -> PluginError:
    with pytest.raises(PluginError) as caught:
        work()
    assert "\n" not in caught.value.message
    assert "--debug" in caught.value.hint
    return caught.value


def answered(dataset: Dataset) -> str:
    """The error of an episode on ``dataset`` whose answers are scored by F1."""
    register_dataset(dataset)
    try:
        return told(lambda: episode(Models(), [QUERY], dataset=dataset.name)).message
    finally:
        DATASETS.unregister(dataset.name)


def test_the_line_names_function_file_query_and_exception() -> None:
    expected = rf"Broken\.score {HERE} failed for query q7: ZeroDivisionError: no words in the answer"
    assert re.fullmatch(expected, answered(Broken()))


def test_an_inherited_function_names_the_overridden_function_that_raised() -> None:
    class Inherits(Broken):
        score = Dataset.score

    assert re.fullmatch(rf"Broken\.scored_text {HERE} failed for query q7: KeyError: 'answer'", answered(Inherits()))


def test_a_function_without_a_frame_is_named_by_its_class() -> None:
    class Hypotenuse(Broken):
        score = math.hypot  # type: ignore[assignment]

    assert answered(Hypotenuse()) == "Hypotenuse failed for query q7: TypeError: must be real number, not Query"


def test_a_reward_and_a_credit_assignment() -> None:
    line = told(lambda: score_result(BrokenReward(), RESULT)).message
    expected = rf"BrokenReward\.of {HERE} failed for query q7: ValueError: could not convert string to float: 'Leeds'"
    assert re.fullmatch(expected, line)
    step = Step(None, SkillSelection((0,), 0.0, 0.0), ExecutorResult((), {}), 0.0)  # type: ignore[arg-type]

    @register_credit("broken")
    def broken(reward: float, steps: Any, settings: RewardConfig) -> list[float]:
        return [reward / 0]

    try:
        line = told(lambda: step_shares(0.5, [step, step], RewardConfig(credit="broken"))).message
    finally:
        CREDITS.unregister("broken")
    expected = rf"broken {HERE} failed for an episode of 2 steps: ZeroDivisionError: float division by zero"
    assert re.fullmatch(expected, line)


def test_the_judge_asks_a_plug_in_for_its_texts() -> None:
    async def judged(dataset: Dataset) -> float:
        return await judge_module.judge(None, dataset, QUERY, "Leeds", prompt="category")  # type: ignore[arg-type]

    class OnlyJudge(Broken):
        def scored_text(self, reply: str) -> str:
            return reply

    assert "Broken.scored_text (" in told(lambda: asyncio.run(judged(Broken()))).message
    line = told(lambda: asyncio.run(judged(OnlyJudge()))).message
    assert re.fullmatch(rf"Broken\.judge_prompt {HERE} failed for query q7: RuntimeError", line)


def test_an_error_of_memskill_passes_unchanged() -> None:
    with pytest.raises(DataError, match="mine"), plugin_errors(Broken(), "query q7"):
        raise DataError("mine")


@pytest.mark.parametrize(
    ("part", "function"),
    [
        (type(get("locomo")), "score"),
        (type(get("locomo")), "gold_answers"),
        (rewards.JudgeReward, "of"),
        (rewards, "distribute_reward"),
    ],
)
def test_an_exception_in_a_built_in_part_is_a_defect_of_memskill_and_passes_unchanged(
    part: Any, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(part, function, broken)
    with pytest.raises(ZeroDivisionError):
        episode(Models(), [QUERY], reward=RewardConfig(kind="judge"))


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("debug", [False, True])
def test_debug_shows_the_traceback(debug: bool, sent: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of an error that another process has sent."""
    error = told(lambda: score_result(BrokenReward(), RESULT))
    if sent:
        error = pickle.loads(pickle.dumps(error))
    with pytest.raises(typer.Exit) as ended, console(json=False, quiet=False, debug=debug):
        raise error from None
    shown = capsys.readouterr().err
    assert ended.value.exit_code == 1
    assert "error: BrokenReward.of (" in shown
    assert "failed for query q7: ValueError: could not convert string to float: 'Leeds'" in shown
    assert "defect of memskill" not in shown
    assert ("return float(result.prediction)" in shown) == debug
    assert ("return float(result.prediction)" in "".join(traceback.format_exception(error))) is True
