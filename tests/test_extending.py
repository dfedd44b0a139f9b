"""docs/extending.md and examples/: every example is one file that works without any other change."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.envs.env_pool import EnvPool
from memskill_cli.errors import GameError
from memskill_cli.testing import rules
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.utils import registry

from .conftest import Home, tiny

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TEXT = (ROOT / "docs" / "extending.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SHORT = ["--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "2", "--no-evolve", "--set", "train.max_spans=2"]


def named(name: str) -> str:
    """The example whose docstring begins with its file's name."""
    (found,) = [block for block in BLOCKS if block.startswith(f'"""{name}: ')]
    return found


def written(folder: Path, *names: str) -> list[str]:
    """Flags for the examples of these names."""
    for name in names:
        (folder / name).write_text(named(name))
    return [word for name in names for word in ("--plugin", name)]


def rows(home: Home, run: str = "a") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home.path / "runs" / run / "metrics.jsonl").read_text().splitlines()]


def test_the_page_shows_the_examples_as_they_are() -> None:
    for file in (EXAMPLES / "custom_reward.py", EXAMPLES / "method_plugin" / "newest.py"):
        assert file.read_text("utf-8") in BLOCKS, file.name
        assert file.read_text("utf-8").count("\n") < 60


def test_every_group_of_the_page_is_one_that_is_looked_up() -> None:
    from memskill_cli.config import extension_points
    from memskill_cli.config.datasets import DATASETS
    from memskill_cli.envs.environment import ENVIRONMENTS
    from memskill_cli.evaluation.methods import METHODS

    of_settings = [part for part in vars(extension_points).values() if isinstance(part, registry.Registry)]
    found = [*of_settings, DATASETS, ENVIRONMENTS, METHODS]
    assert set(re.findall(r"`(memskill\.[a-z]+)` \|", TEXT)) == {part.group for part in found}


@pytest.mark.slow
def test_training_with_the_examples(prepared: Home) -> None:
    """A reward, a credit assignment, an algorithm, an encoder and a retriever, one file each."""
    flags = written(prepared.path, "uniform.py", "reinforce.py", "letters.py", "words.py")
    flags += ["--plugin", str(EXAMPLES / "custom_reward.py")]
    names = {
        "reward.kind": "brief",
        "reward.credit": "uniform",
        "train.algorithm": "reinforce",
        "memory.retriever": "words",
        "encoders.state": "letters",
        "encoders.retrieval": "letters",
    }
    sets = [word for item in names.items() for word in ("--set", "=".join(item))]
    with MockLLMServer() as server:
        command = ["train", *tiny(server.url)[:6], *SHORT, "--run", "a", *sets]
        done = prepared.memskill(*command, *flags)
        assert done.code == 0, done.err
        assert done.err.count("plug-in uniform.py is loaded: credit assignment uniform") == 1
        resume = ["train", "--resume", "--run", "a", "--outer-epochs", "2", "--quiet"]
        refused, more = prepared.together(resume, [*resume, *flags])
    rewards = [row["episode_reward_mean"] for row in rows(prepared)]
    assert 0 < max(rewards) < 1, "replies that hold the answer have lost something by their length"
    assert {row["clipfrac"] for row in rows(prepared)} == {0.0}
    assert refused.code == 1
    assert "run a was made with the plug-in uniform.py, which is not loaded" in refused.err
    assert "add --plugin FILE" in refused.err
    assert "Traceback" not in refused.err
    assert more.code == 0, more.err
    assert len(rows(prepared)) == 2


def test_a_method_of_a_file(prepared: Home, small: Callable[..., list[str]]) -> None:
    file = EXAMPLES / "method_plugin" / "newest.py"
    with MockLLMServer() as server:
        flags = small(server.url, "--method", "newest", "--limit", "3", "--no-judge")
        done = prepared.memskill("eval", *flags, "--json", MEMSKILL_PLUGIN=str(file))
    assert done.code == 0, done.err
    assert "plug-in newest.py is loaded: method newest" in done.err
    assert (done.json["method"], done.json["queries"], done.json["errors"]) == ("newest", 3, {})
    results = Path(prepared.path / done.json["folder"] / "results.jsonl").read_text().splitlines()
    numbers = [int(memory["id"].removeprefix("span-")) for memory in json.loads(results[0])["retrieved"]]
    assert numbers == sorted(numbers, reverse=True)
    identity = json.loads((prepared.path / done.json["folder"] / "identity.json").read_text())
    assert set(identity["extensions"]) == {"method"}


@pytest.mark.slow
def test_a_method_of_an_installed_package(prepared: Home, small: Callable[..., list[str]], tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for file in (EXAMPLES / "method_plugin").iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(target), str(source)], check=True, timeout=240)
    with MockLLMServer() as server:
        flags = small(server.url, "--method", "newest", "--limit", "2", "--no-judge")
        done = prepared.memskill("eval", *flags, "--json", PYTHONPATH=str(target))
        assert done.code == 0, done.err
        again = prepared.memskill("eval", *flags, "--json", PYTHONPATH=str(target))
    assert "is complete: showing it" in again.err, "the version names it before and after its module is loaded"
    identity = json.loads((prepared.path / done.json["folder"] / "identity.json").read_text())
    assert identity["extensions"] == {"method": "memskill-newest 1.0"}


def test_the_environment_is_played_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_loaded", {})
    written(tmp_path, "guess.py")
    registry.load_plugin(tmp_path / "guess.py")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "seven").write_text("7")
    (tmp_path / "tasks" / "broken").write_text("seven")

    async def played() -> list[str]:
        pool = EnvPool(tmp_path / "tasks", workers=1, name="guess")
        try:
            async with pool.open_task("seven") as game:
                seen = [game.observation, *[await game.play(f"guess {n}") for n in (5, 9, 7)]]
                assert (seen[-1].won, seen[-1].done, seen[-2].won) == (True, True, False)
            for task in ("broken", "gone", "../guess.py"):
                with pytest.raises(GameError):
                    async with pool.open_task(task):
                        pass
            return [observation.text for observation in seen]
        finally:
            await pool.aclose()

    assert asyncio.run(played()) == ["Guess a number from 1 to 9.", "Too low.", "Too high.", "Right."]


@pytest.mark.slow
def test_a_dataset_of_tasks_is_trained_and_evaluated(home: Home) -> None:
    flags = [*written(home.path, "guess.py"), "--dataset", "guessing"]
    (home.path / "tasks").mkdir()
    for number in range(1, 10):
        (home.path / "tasks" / f"task-{number}").write_text(str(number))

    def reply(request: Request) -> str:
        """The answering model guesses 1, 2, 3 and so on; the other roles follow their usual rules."""
        text = request.messages[-1]["content"]
        return f"guess {text.count('Too low.') + 1}" if request.role == "answer" else rules.reply(request)

    with MockLLMServer(reply) as server:
        model = ["--model", "openai/rules", "--api-base", server.url, "--encoder", "hashing", "--retriever", "hashing"]
        sets = ["--set", "env.steps=6", "--set", "env.workers=1"]
        done = home.memskill("prepare", *flags, "--source", "tasks", "--json")
        assert done.code == 0, done.err
        done = home.memskill("train", *flags, *model, *sets, *SHORT, "--run", "a")
        assert done.code == 0, done.err
        done = home.memskill("eval", *flags, "--run", "a", "--json", "--quiet")
    assert done.code == 0, done.err
    assert done.json["queries"] == 3
    assert done.json["success_rate"] == pytest.approx(2 / 3), "numbers 3 and 6 are reached in 6 guesses, 9 is not"
    assert rows(home)[0]["tasks"] > 0


def test_the_files_say_all_there_is_to_say() -> None:
    """A part needs only its own file: the package does not name any of the examples."""
    names = "brief|uniform|reinforce|letters|newest|guess"
    for file in (ROOT / "memskill_cli").rglob("*.py"):
        assert not re.search(rf"[\"']({names})[\"']", file.read_text("utf-8")), file
    assert os.environ.get("MEMSKILL_PLUGIN") is None
