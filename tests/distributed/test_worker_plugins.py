"""A worker runs the plug-in files of the command's process, or says why it cannot."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import pytest

from memskill_cli.config import MemoryConfig, RewardConfig
from memskill_cli.config.datasets import DATASETS
from memskill_cli.config.extension_points import REWARDS
from memskill_cli.datasets.registry import get
from memskill_cli.distributed.proxies import WorkerConfig
from memskill_cli.distributed.worker import Hello, Worker
from memskill_cli.utils import registry
from memskill_cli.utils.registry import Plugin, load_plugin, loaded_plugins


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_loaded", {})


def greet(plugins: tuple[Plugin, ...]) -> Hello:
    """What a worker with these plug-ins says."""

    async def begun() -> Hello:
        config = WorkerConfig(
            MemoryConfig(), RewardConfig(), "locomo", {}, True, {"state": 4}, "category", None, plugins
        )
        return await Worker(pickle.loads(pickle.dumps(config)), pickle.dumps).begin()

    return asyncio.run(begun())


def reward(folder: Path, name: str) -> Path:
    file = folder / "their.py"
    file.write_text(
        f"from memskill_cli.rollout.rewards import Reward, register_reward\n"
        f"@register_reward({name!r})\nclass Their(Reward):\n    def of(self, result): return 1.0\n"
    )
    return file


def test_a_worker_runs_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugin(reward(tmp_path, "elsewhere"))
    here = loaded_plugins()
    monkeypatch.setattr(registry, "_loaded", {})
    REWARDS.unregister("elsewhere")  # as in another process
    assert greet(here).problem == ""
    assert REWARDS.get("elsewhere").__name__ == "Their"
    REWARDS.unregister("elsewhere")


def test_a_worker_says_which_file_it_lacks(tmp_path: Path) -> None:
    problem = greet((Plugin(tmp_path / "gone.py", "0"),)).problem
    assert f"has no plug-in file {tmp_path / 'gone.py'}: copy it to the same path on every node" in problem


def test_a_worker_with_another_version_says_so(tmp_path: Path) -> None:
    problem = greet((Plugin(reward(tmp_path, "of-two-versions"), "another"),)).problem
    REWARDS.unregister("of-two-versions")
    assert "has another version of the plug-in" in problem


def test_a_file_that_fails_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0")
    problem = greet((Plugin(tmp_path / "bad.py", "0"),)).problem
    assert problem.endswith("bad.py: ZeroDivisionError: division by zero")


def test_a_worker_knows_the_name_of_conversations_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS, "_builtin", dict(DATASETS._builtin))

    async def begun() -> Hello:
        config = WorkerConfig(
            MemoryConfig(), RewardConfig(), "my-chats", {}, True, {"state": 4}, "category", None, own_dataset=True
        )
        return await Worker(pickle.loads(pickle.dumps(config)), pickle.dumps).begin()

    assert asyncio.run(begun()).problem == ""
    assert get("my-chats").name == "my-chats"
