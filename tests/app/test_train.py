"""Resuming a run: which settings may change, and which are refused."""

from __future__ import annotations

import dataclasses
import typing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.app.train import check_resume_settings
from memskill_cli.config import Config, EnvConfig, load, setting_names
from memskill_cli.errors import RunError
from memskill_cli.evaluation import methods
from memskill_cli.evaluation.spec import settings_digest
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.testing.server import MockLLMServer
from memskill_cli.training import ppo
from memskill_cli.training.episode_sampler import EnvSampler, EpisodeSpec
from memskill_cli.utils import files

from ..training.resume_harness import OF_THE_MACHINE, Killed, Lives, reply
from ..training.test_episode_sampler import GAMES

FREE = {
    "how calls are made, not what is asked": (
        "limits.concurrency",
        "models.api_base",
        "models.timeout",
        "models.retries",
    ),
    "what calls are said to cost": ("models.prices",),
    "where the work is done": ("engine", "ray.address", "ray.workers", "ray.encoders", "env.workers"),
    "how long something may take": ("env.step_timeout", "limits.max_cost", "train.outer_epochs"),
    "after how many refused prompts it stops": ("limits.max_skipped",),
    "what is kept or told of the run": ("train.keep_checkpoints", "tracker", "preset"),
}
"""Settings that may change when a run is resumed, by the reason why they do not change what is learned."""
MAY_CHANGE = {name for names in FREE.values() for name in names}
DATASETS = ("locomo", "longmemeval", "hotpotqa", "alfworld")


def other(value: Any, kind: Any) -> Any:
    """Another value of the same kind."""
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in typing.get_args(kind) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {**value, "answer": [1.0, 2.0]}
    return f"{value}x" if isinstance(value, str) else value + 1


def changed(settings: Config, name: str) -> tuple[Config, Any, Any]:
    """``settings`` with another value of ``name``, the value before and after."""
    section, _, inner = name.rpartition(".")
    where: Any = getattr(settings, section) if section else settings
    before = getattr(where, inner)
    kind = typing.get_type_hints(type(where))[inner]
    after = next(one for one in DATASETS if one != before) if name == "dataset" else other(before, kind)
    there = dataclasses.replace(where, **{inner: after})
    return (dataclasses.replace(settings, **{section: there}) if section else there), before, after


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return RunDir.create(tmp_path_factory.mktemp("runs"), "r", load(overrides={}), "data")


def may_change(run: RunDir, name: str) -> bool:
    try:
        check_resume_settings(run, changed(run.settings(), name)[0], override=False)
    except RunError:
        return False
    return True


@pytest.mark.parametrize("name", setting_names())
def test_a_changed_setting_is_refused_unless_it_changes_no_result(run: RunDir, name: str) -> None:
    settings, before, after = changed(run.settings(), name)
    assert check_resume_settings(run, settings, override=True) == settings
    if name in MAY_CHANGE:
        assert check_resume_settings(run, settings, override=False) == settings
        return
    with pytest.raises(RunError) as failure:
        check_resume_settings(run, settings, override=False)
    assert f"{name}: {before!r} -> {after!r}" in failure.value.message
    assert "--override" in failure.value.hint


# --- what the list of free settings must agree with ---


@pytest.mark.parametrize("name", setting_names())
def test_what_changes_a_score_may_not_change_within_a_run(run: RunDir, name: str) -> None:
    """The names of evaluations depend on the settings that can change a score."""
    scored = [
        settings_digest(changed(before, name)[0], method) != settings_digest(before, method)
        for before in (load(overrides={"dataset": dataset}) for dataset in DATASETS)
        for method in methods.METHODS.names()
    ]
    assert not (any(scored) and may_change(run, name))


def test_what_changes_the_games_of_an_episode_may_not_change_within_a_run(run: RunDir) -> None:
    few = {f"env.{part}_{bound}": n for part, n in (("trajectories", 4), ("tasks", 2)) for bound in ("min", "max")}
    settings = load(overrides={"dataset": "alfworld", **few})

    def episode_specs(settings: Config) -> list[EpisodeSpec]:
        sampler = EnvSampler(settings, GAMES, lambda text: None)
        return [sampler.episode(0, 0, episode) for episode in range(8)]

    names = [name for name in setting_names() if name.startswith("env.")]
    different = [
        name
        for name in names
        if episode_specs(dataclasses.replace(settings, env=with_more(settings.env, name.partition(".")[2])))
        != episode_specs(settings)
    ]
    assert {"env.trajectories_max", "env.tasks_max", "env.same_type"} <= set(different)
    assert [name for name in different if may_change(run, name)] == []


def with_more(played: EnvConfig, name: str) -> EnvConfig:
    """``played`` with another value of a setting that is valid together with the other settings."""
    kind = typing.get_type_hints(EnvConfig)[name]
    after = 0.0 if name == "same_type" else other(getattr(played, name), kind)
    beside = {name.replace("_min", "_max"): after} if name.endswith("_min") else {}
    return dataclasses.replace(played, **{name: after, **beside})


def rows(run: RunDir) -> list[dict[str, Any]]:
    """The metrics of a run's inner epochs, without those that depend on the machine."""
    return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in files.read_jsonl(run.metrics)]


def test_what_may_change_within_a_run_changes_nothing_that_is_learned(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting that may change is changed in the middle of a run."""
    update, updates = ppo.update, count(1)

    def killed_in_the_third(*arguments: Any) -> Any:
        learned = update(*arguments)
        if next(updates) == 3:
            raise Killed
        return learned

    with MockLLMServer(reply) as server:
        steep = {"ppo__learning_rate": 0.03, "ppo__target_kl": 10.0}  # so that ratios are clipped
        lives = Lives(tmp_path, server, train__num_skills=2, train__batch_size=3, seed=7, **steep)
        lives.live(lives.begin("once"))  # after this, every reply is in the cache
        undisturbed, settings = lives.begin("undisturbed"), lives.settings
        lives.live(undisturbed)
        whole = rows(undisturbed)
        assert len(whole) == 6

        def gone_on_with(name: str) -> list[dict[str, Any]]:
            nonlocal updates
            updates, lives.settings = count(1), settings
            stopped = lives.begin(f"run-{name}")
            with monkeypatch.context() as patch:
                patch.setattr(ppo, "update", killed_in_the_third)
                with pytest.raises(Killed):
                    lives.live(stopped)
            assert len(rows(stopped)) == 2
            lives.settings = changed(settings, name)[0]
            lives.live(stopped)
            return rows(stopped)

        assert gone_on_with("ppo.gamma") != whole, "or this shows nothing"
        for name in filter(lambda name: may_change(run, name), setting_names()):
            assert gone_on_with(name)[:6] == whole, name


def test_all_that_differs_is_listed(run: RunDir) -> None:
    settings, _, _ = changed(run.settings(), "seed")
    settings, _, _ = changed(settings, "encoders.state")
    with pytest.raises(RunError, match=r"seed: 42 -> 43; encoders.state: 'minilm' -> 'minilmx'"):
        check_resume_settings(run, settings, override=False)
