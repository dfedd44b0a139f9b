"""ALFWorld as typed: the sample's games really played, by rule-made models behind a scripted server."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.testing import rules
from memskill_cli.testing.server import MockLLMServer, Request

from ..conftest import Done, Home

pytestmark = [
    pytest.mark.extra,
    pytest.mark.timeout(900),  # the first test waits for a training and two evaluations
    pytest.mark.skipif(importlib.util.find_spec("alfworld") is None, reason="needs the extra alfworld"),
]
SAMPLE = Path(__file__).parents[2] / "data" / "samples" / "alfworld"
STEPS = 14
"""Enough for who knows the way."""
PLAY = ["--set", "env.workers=2", "--set", f"env.steps={STEPS}"]
TRAIN = ["--outer-epochs", "2", "--inner-epochs", "1", "--batch-size", "2"]
TYPES = {
    "look_at_obj_in_light",
    "pick_and_place_simple",
    "pick_clean_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_two_obj_and_place",
}


def flags(url: str, *more: str) -> list[str]:
    models = ["--model", "openai/rules", "--api-base", url, "--encoder", "hashing", "--retriever", "hashing"]
    return ["--dataset", "alfworld", *models, *PLAY, *more]


def jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@dataclass(frozen=True)
class Played:
    """A home in which the sample was prepared, trained on, and evaluated in two ways."""

    home: Home
    trained: Done
    training: list[Request]
    evaluated: Done
    evaluation: list[Request]

    @property
    def run(self) -> Path:
        return self.home.path / "runs" / "a"


@pytest.fixture(scope="module")
def prepared_games(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("games"))
    done = home.memskill("prepare", "--dataset", "alfworld", "--sample", "--quiet")
    assert done.code == 0, done.err
    return home


@pytest.fixture(scope="module")
def played(prepared_games: Home) -> Played:
    with MockLLMServer() as server:
        trained = prepared_games.memskill("train", *flags(server.url, *TRAIN, "--run", "a", "--json"))
        assert trained.code == 0, trained.err
        training = server.requests
        server.reset()
        evaluated = prepared_games.memskill(
            "eval", *flags(server.url, "--run", "a", "--method", "no-memory,memskill", "--json")
        )
        assert evaluated.code == 0, evaluated.err
        return Played(prepared_games, trained, training, evaluated, server.requests)


def test_training_reads_trajectories_and_plays_tasks(played: Played) -> None:
    rows = jsonl(played.run / "metrics.jsonl")
    assert len(rows) == 2
    assert all(row["tasks"] >= 2 and 1 <= row["task_steps_mean"] <= STEPS for row in rows)
    assert all(0 <= row["episode_reward_mean"] <= 1 and row["broken_games"] == 0 for row in rows)
    read = [rules.part(request, "span") for request in played.training if request.role == "executor"]
    assert read
    assert all(span.startswith("Goal: ") and "\nAgent: " in span for span in read)
    goals = {rules.part(request, "goal") for request in played.training if request.role == "answer"}
    assert not any(f"Goal: {goal}\n" in span for goal in goals for span in read if len(goals) == 1)
    assert played.trained.json["status"] == "finished"
    assert "too few games for full batches" in played.trained.err


def test_what_failed_goes_to_the_embodied_designer(played: Played) -> None:
    cases = jsonl(played.run / "hard_cases.jsonl")
    asked = [request.text for request in played.training if request.role == "designer"]
    failed = sum(row["episode_reward_mean"] < 1 for row in jsonl(played.run / "metrics.jsonl"))
    assert bool(cases) == bool(failed)
    assert all(case["prediction"].startswith("did not reach the goal") for case in cases)
    if asked:
        assert all("household" in text and "How it went: " in text for text in asked)


def test_memory_of_trajectories_helps_who_can_read_it(played: Played) -> None:
    without, memory = played.evaluated.json["evaluations"]
    assert (without["split"], without["method"], memory["method"]) == ("valid_seen", "no-memory", "memskill")
    assert memory["success_rate"] > without["success_rate"] > 0
    assert memory["steps"] < without["steps"] <= STEPS
    assert set(memory["by_task_type"]) == TYPES
    assert memory["errors"] == {}
    assert memory["queries"] == 6
    assert memory["memories"] > 0 == without["memories"]
    (gain,) = played.evaluated.json["differences"]
    assert gain["score"] == "success"
    assert gain["difference"] == pytest.approx(memory["success_rate"] - without["success_rate"])


def test_every_task_has_its_transcript(played: Played) -> None:
    for summary in played.evaluated.json["evaluations"]:
        rows = jsonl(played.home.path / summary["folder"] / "results.jsonl")
        assert {row["category"] for row in rows} == TYPES
        for row in rows:
            assert row["steps"] == len(row["transcript"])
            assert row["invalid_actions"] == sum(not move["valid"] for move in row["transcript"])
            assert "Your task is to" in row["opening"]
            assert row["f1"] == float(row["success"])
            assert row["judge"] is None
            assert bool(row["retrieved"]) == (summary["method"] == "memskill")
            if not row["success"]:
                assert row["steps"] == STEPS


def test_memory_is_asked_once_a_task_and_no_judge_is(played: Played) -> None:
    acting = [request for request in played.evaluation if request.role == "answer"]
    assert {request.role for request in played.evaluation} == {"executor", "answer"}
    shown: dict[str, set[str]] = {}
    for request in acting:
        shown.setdefault(rules.part(request, "goal"), set()).add(rules.part(request, "memories"))
    assert len(shown) == 6
    assert all(len(memories) == 2 for memories in shown.values()), "one with memory, one without, the same at each step"


def test_again_it_costs_nothing(played: Played) -> None:
    with MockLLMServer() as server:
        again = played.home.memskill("eval", *flags(server.url, "--run", "a", "--json"))
        assert again.code == 0, again.err
        assert server.requests == []
    assert again.json["id"] == played.evaluated.json["evaluations"][1]["id"]


def test_the_table_is_for_people(played: Played) -> None:
    with MockLLMServer() as server:
        shown = played.home.memskill("eval", *flags(server.url, "--run", "a"), COLUMNS="120")
    assert shown.code == 0, shown.err
    assert "success" in shown.out
    assert "pick_two_obj_and_place" in shown.out
    assert "reached the goal in" in shown.out


def test_what_makes_no_sense_is_refused(played: Played) -> None:
    commands = (["--method", "full-context"], ["--split", "valid_unseen"])
    method, split = (played.home.memskill("eval", *flags("http://127.0.0.1:9/v1", *more)) for more in commands)
    assert (method.code, split.code) == (2, 2)
    assert "full-context" in method.err
    assert "valid_unseen" in split.err
    judged = played.home.memskill("train", *flags("http://127.0.0.1:9/v1", "--reward", "judge", "--run", "j"))
    assert judged.code == 2
    assert "success rate" in judged.err
    assert not (played.home.path / "runs" / "j").exists()


def test_a_game_cut_in_half_is_owed_and_the_others_are_played(tmp_path: Path) -> None:
    home, games = Home(tmp_path), tmp_path / "games"
    shutil.copytree(SAMPLE, games)
    done = home.memskill("prepare", "--dataset", "alfworld", "--source", str(games), "--quiet")
    assert done.code == 0, done.err
    victim = sorted((games / "valid_seen").rglob("game.tw-pddl"))[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with MockLLMServer() as server:
        command = ["eval", *flags(server.url, "--method", "no-memory", "--json")]
        torn = home.memskill(*command)
        assert torn.code == 0, torn.err
        assert torn.json["errors"] == {"game": 1}
        assert "1 of 6 queries failed" in torn.err
        rows = jsonl(home.path / torn.json["folder"] / "results.jsonl")
        (broken,) = [row for row in rows if row["error"]]
        assert broken["query_id"] in broken["error"]
        assert broken["success"] is None
        victim.write_bytes(whole)
        server.reset()
        mended = home.memskill(*command)
        assert mended.json["errors"] == {}
        goals = {rules.part(request, "goal") for request in server.requests}
        assert goals == {broken["question"]}, "only what was owed is played"


@pytest.mark.slow
def test_one_seed_is_one_result_whatever_the_concurrency(played: Played) -> None:
    with MockLLMServer() as server:
        one = ["--concurrency", "1", "--set", "env.workers=1", "--run", "b", "--quiet"]
        done = played.home.memskill("train", *flags(server.url, *TRAIN, *one), MEMSKILL_CACHE_DIR="another")
    assert done.code == 0, done.err
    machine = {"seconds", "cost_usd", "cached_calls", "llm_calls"}
    first, second = (
        [{k: v for k, v in row.items() if k not in machine} for row in jsonl(run / "metrics.jsonl")]
        for run in (played.run, played.home.path / "runs" / "b")
    )
    assert first == second
