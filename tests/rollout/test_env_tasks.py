"""Tasks as the queries of an episode: scores, errors, and retrieval. The games are stubs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.agent.env_runner import EnvRunner
from memskill_cli.agent.hard_cases import HardCasePool
from memskill_cli.config import DesignerConfig, EnvConfig, load
from memskill_cli.envs.alfworld.game_files import GAME_FILE
from memskill_cli.envs.env_pool import EnvPool
from memskill_cli.errors import ModelError
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.env_tasks import run_env_task
from memskill_cli.rollout.episode import run_episode
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing import rules
from memskill_cli.testing.server import Fault, MockLLMServer, Request
from memskill_cli.types import Episode, Query, QueryResult, Retrieved, SkillSelection, Span

from ..factories import llm_client, rollout_context

FAKE = (sys.executable, str(Path(__file__).parents[1] / "envs" / "fake_worker.py"))
SPAN = Span(
    "read",
    0,
    "Goal: put a hot egg in sink.\nEnvironment: A room.\nAgent: take egg 1 from fridge 1\nEnvironment: Taken.",
)
Reply = Callable[[Request], str | Fault]


def task(name: str) -> Query:
    return Query(name, name, "pick", f"do {name}", ())


def by_goal(**commands: str) -> Reply:
    """A model that repeats one command for each goal. The other roles use the rule-made models."""

    def reply(request: Request) -> str | Fault:
        if request.role != "answer":
            return rules.reply(request)
        return commands.get(rules.part(request, "goal").removeprefix("do "), "win")

    return reply


class Rig:
    """A folder of games, and the objects that tasks need."""

    def __init__(self, folder: Path, *games: str, query: Any = "goal", deadline: float = 30.0) -> None:
        self.root, self.query, self.deadline = folder / "games", query, deadline
        self.requests: list[Request] = []
        for name in games:
            (self.root / name).mkdir(parents=True)
            (self.root / name / GAME_FILE).write_text("break" if name == "cut" else f"You are at {name}.")

    def run(self, reply: Reply, what: Callable[[RolloutContext], Any], steps: int = 4) -> Any:
        with MockLLMServer(reply) as server:
            try:
                return asyncio.run(self._run(server.url, what, steps))
            finally:
                self.requests = server.requests

    async def _run(self, url: str, what: Callable[[RolloutContext], Any], steps: int) -> Any:
        settings = load(overrides={"dataset": "alfworld", "models.retries": 0})
        llm = llm_client(url, model="m", base=settings.models)
        encoder = load_encoder("hashing", cache_dir=None)
        pool = EnvPool(self.root, workers=2, deadline=self.deadline, command=FAKE)
        env_runner = EnvRunner(pool, EnvConfig(steps=steps, retrieval_query=self.query))
        try:
            return await what(rollout_context(llm, encoder, settings, env_runner=env_runner))
        finally:
            await pool.aclose()
            await llm.aclose()
            encoder.close()

    def episode(self, reply: Reply, *names: str) -> Episode:
        def choose(state: object) -> SkillSelection:
            return SkillSelection((1,), 0.0, 0.0)

        tasks = [task(name) for name in names]
        return self.run(reply, lambda context: run_episode(context, [SPAN], tasks, seed_bank(), choose))


def failed(answer: QueryResult) -> bool:
    return answer.f1 is None and answer.trajectory is None and answer.error.startswith("game: ")


def test_the_reward_is_the_success_rate(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "good", "bad")
    episode = rig.episode(by_goal(good="win", bad="look"), "good", "bad")
    good, bad = episode.results
    assert (good.f1, bad.f1, episode.reward) == (1.0, 0.0, 0.5)
    assert good.trajectory is not None
    assert good.trajectory.opening == "You are at good."
    assert [move.command for move in good.trajectory.steps] == ["win"]
    assert bad.trajectory is not None
    assert len(bad.trajectory.steps) == 4, "the step limit"
    assert bad.prediction.startswith("did not reach the goal in 4 commands")
    assert [found.item.text for found in bad.retrieved] == ["Goal: put a hot egg in sink. Steps: take egg from fridge."]


@pytest.mark.parametrize("end", ["die", "stop"])
def test_an_environment_that_fails_in_mid_game_costs_that_task_only(tmp_path: Path, end: str) -> None:
    rig = Rig(tmp_path, "good", "ill", "bad", deadline=30.0 if end == "die" else 1.5)
    episode = rig.episode(by_goal(ill=end, bad="look"), "good", "ill", "bad", "good")
    good, ill, bad, again = episode.results
    assert failed(ill)
    assert "ill" in ill.error
    assert (good.f1, bad.f1, again.f1) == (1.0, 0.0, 1.0)
    assert episode.reward == pytest.approx(2 / 3), "tasks that could not be played are left out of the mean"
    pool = HardCasePool(DesignerConfig())
    pool.observe(episode.results, 0, lambda answer: answer.f1, 0.5)
    assert [case.query_id for case in pool.cases] == ["bad"], "and are not hard cases"
    assert pool.cases[0].prediction == bad.prediction


def test_a_game_that_is_broken_or_gone_is_an_error_of_its_own(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "good", "cut")
    episode = rig.episode(by_goal(), "good", "cut", "gone", "../good")
    assert [failed(answer) for answer in episode.results] == [False, True, True, True]
    assert episode.reward == 1.0


def test_an_episode_without_one_game_played_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none of 2 answers could be scored: game: "):
        Rig(tmp_path, "cut").episode(by_goal(), "cut", "gone")


def test_a_model_that_fails_for_good_stops_the_episode(tmp_path: Path) -> None:
    def down(request: Request) -> str | Fault:
        return Fault.server_error() if request.role == "answer" else rules.reply(request)

    with pytest.raises(ModelError):
        Rig(tmp_path, "good").episode(down, "good")


def test_replies_that_are_no_command_are_counted(tmp_path: Path) -> None:
    (answer,) = Rig(tmp_path, "bad").episode(by_goal(bad="fly away"), "bad").results
    assert answer.f1 == 0.0
    assert answer.trajectory is not None
    assert (answer.trajectory.invalid, {move.command for move in answer.trajectory.steps}) == (4, {"look"})


@pytest.mark.parametrize(("query", "asked"), [("goal", "do good"), ("observation", "You are at good.")])
def test_memory_is_asked_once_with_goal_or_first_observation(tmp_path: Path, query: str, asked: str) -> None:
    questions = []

    async def retrieve(query: Query) -> list[Retrieved]:
        questions.append(query.question)
        return []

    rig = Rig(tmp_path, "good", query=query)
    answer = rig.run(
        by_goal(good="look"), lambda context: run_env_task(context, context.env_runner, retrieve, task("good"))
    )
    assert questions == [asked]
    assert answer.query.question == "do good"


def test_no_key_leaves_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    rig = Rig(tmp_path, "good")
    rig.episode(by_goal(), "good")
    shown = [rules.part(request, "commands") for request in rig.requests if request.role == "answer"]
    assert all("PATH" in text and "OPENAI_API_KEY" not in text for text in shown), "the stub reports its environment"


def test_the_executor_is_told_that_it_is_about_acting(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "good")
    rig.episode(by_goal(), "good")
    system = next(request.messages[0]["content"] for request in rig.requests if request.role == "executor")
    assert "trajector" in system
