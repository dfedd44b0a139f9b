"""Going on with a run: which settings may change, and which are refused."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from memskill_cli.config import Config, load, setting_names
from memskill_cli.errors import RunError
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.training.launch import agree

FREE = {
    *("preset", "tracker", "engine", "limits.concurrency", "limits.max_cost"),
    *("ray.address", "ray.workers", "ray.encoders"),
    *("models.api_base", "models.timeout", "models.retries"),
    *("train.outer_epochs", "train.keep_checkpoints", "alfworld.workers", "alfworld.deadline"),
}
"""What changes neither what is learned nor what is asked, or only makes a run longer."""


def other(value: Any, kind: Any) -> Any:
    """Another value of the same kind."""
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in typing.get_args(kind) if choice != value)
    if isinstance(value, bool):
        return not value
    return f"{value}x" if isinstance(value, str) else value + 1


def changed(settings: Config, name: str) -> tuple[Config, Any, Any]:
    """``settings`` with another value of ``name``, the value before and after."""
    section, _, inner = name.rpartition(".")
    where: Any = getattr(settings, section) if section else settings
    before = getattr(where, inner)
    after = other(before, typing.get_type_hints(type(where))[inner])
    there = dataclasses.replace(where, **{inner: after})
    return (dataclasses.replace(settings, **{section: there}) if section else there), before, after


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return RunDir.create(tmp_path_factory.mktemp("runs"), "r", load(overrides={}), "data")


@pytest.mark.parametrize("name", setting_names())
def test_a_changed_setting_is_refused_unless_it_changes_no_result(run: RunDir, name: str) -> None:
    settings, before, after = changed(run.settings(), name)
    if name in FREE:
        assert agree(run, settings, override=False) == settings
        return
    with pytest.raises(RunError) as failure:
        agree(run, settings, override=False)
    assert f"{name}: {before!r} -> {after!r}" in failure.value.message
    assert "--override" in failure.value.hint
    assert agree(run, settings, override=True) == settings


def test_all_that_differs_is_listed(run: RunDir) -> None:
    settings, _, _ = changed(run.settings(), "seed")
    settings, _, _ = changed(settings, "encoders.state")
    with pytest.raises(RunError, match=r"seed: 42 -> 43; encoders.state: 'minilm' -> 'minilmx'"):
        agree(run, settings, override=False)
