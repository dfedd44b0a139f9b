"""Settings that name a part, and settings that were added after version 0.1."""

from __future__ import annotations

from typing import Any

import pytest

from memskill_cli.config import ADDED, Config, digest_section, load, setting_names, to_dict
from memskill_cli.config.extension_points import NAMED_BY, REWARDS
from memskill_cli.errors import UsageError


@pytest.mark.parametrize(
    ("setting", "wrong", "near"),
    [
        ("reward.kind", "judgee", "judge"),
        ("reward.credit", "final_decay", "final-decay"),
        ("train.algorithm", "pp", "ppo"),
        ("memory.retriever", "densse", "dense"),
    ],
)
def test_an_unknown_part_is_refused_with_the_nearest_name(setting: str, wrong: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"^{setting}: no .+ is called {wrong}; there are ") as caught:
        load(sets=[f"{setting}={wrong}"])
    assert caught.value.hint == f"did you mean {near}?"


def test_a_part_that_is_registered_can_be_named() -> None:
    REWARDS.register("of-a-test", object())
    try:
        assert load(sets=["reward.kind=of-a-test"]).reward.kind == "of-a-test"
    finally:
        REWARDS.unregister("of-a-test")


@pytest.mark.parametrize(("setting", "registry"), NAMED_BY.items())
def test_every_built_in_part_can_be_loaded(setting: str, registry: Any) -> None:
    for name in registry.names():
        assert callable(registry.get(name)), (setting, name)


@pytest.mark.parametrize("name", ADDED)
def test_a_later_setting_is_in_a_digest_only_with_another_value_than_before(name: str) -> None:
    section, _, inner = name.partition(".")
    table = {**to_dict(Config())[section], inner: ADDED[name]}
    assert digest_section(section, table) == digest_section(
        section, {key: value for key, value in table.items() if key != inner}
    )
    assert digest_section(section, {**table, inner: "other"})[inner] == "other"


def test_settings_are_in_a_digest_under_their_first_name() -> None:
    assert digest_section("memory", {"num_memories": 5, "tau": 1.0}) == {"top_k": 5, "tau": 1.0}
    assert set(ADDED) <= set(setting_names())
