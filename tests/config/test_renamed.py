"""Settings under the names that they had in version 0.1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memskill_cli.config import load
from memskill_cli.config.loading import from_dict, setting_names
from memskill_cli.config.renamed import (
    ADDED,
    RENAMED,
    SECTIONS,
    current_names,
    current_sections,
    digest_section,
    former_name,
    former_section,
)
from memskill_cli.errors import UsageError

MOVED = {
    f"{old}.{name.partition('.')[2]}": name
    for old, new in SECTIONS.items()
    for name in setting_names()
    if name.startswith(f"{new}.")
}
"""Settings that have only another section."""


def value_of(config: Any, name: str) -> Any:
    section, _, inner = name.partition(".")
    return getattr(getattr(config, section), inner)


def other_value(name: str) -> Any:
    """A value of the setting that is not its default and that is allowed."""
    others = {"memory.pooling": "softmax", "env.retrieval_query": "observation", "env.memory": "all"}
    others |= dict.fromkeys(("env.same_type", "env.top_p", "env.temperature"), 0.5)
    now = value_of(load(), name)
    if name in others:
        return others[name]
    return not now if isinstance(now, bool) else type(now)(now + 1 if now >= 1 else now / 2)


def test_an_old_name_is_none_of_today_and_leads_to_one() -> None:
    names = set(setting_names())
    assert set(RENAMED.values()) <= names
    assert not set(RENAMED) & names
    assert len(set(RENAMED.values())) == len(RENAMED), "no two old names for one setting"
    sections = [(old.partition(".")[0], new.partition(".")[0]) for old, new in RENAMED.items()]
    assert all(SECTIONS.get(old, old) == new for old, new in sections)
    assert not set(SECTIONS) & {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(("old", "new"), (RENAMED | MOVED).items())
def test_an_old_name_sets_what_it_set(old: str, new: str, tmp_path: Path) -> None:
    """With ``--set``, in a file of ``--config`` and in the config.toml of a run."""
    section, _, inner = old.partition(".")
    value, warnings = other_value(new), list[str]()
    by_flag = load(sets=[f"{old}={value}"], warn=warnings.append)
    assert value_of(by_flag, new) == value != value_of(load(), new)
    (tmp_path / "old.toml").write_text(f"[{section}]\n{inner} = {_toml(value)}\n")
    assert load(file=tmp_path / "old.toml", warn=warnings.append) == by_flag
    assert [(old in text, new in text) for text in warnings] == [(True, True)] * 2
    assert value_of(from_dict({section: {inner: value}}), new) == value


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


@pytest.mark.parametrize("given", [["ppo.clip=0.3", "ppo.clip_coef=0.4"], ["ppo.clip_coef=0.4", "ppo.clip=0.3"]])
def test_of_both_names_the_new_one_counts(given: list[str]) -> None:
    warnings: list[str] = []
    assert load(sets=given, warn=warnings.append).ppo.clip_coef == 0.4
    assert len(warnings) == 1


def test_the_command_line_counts_more_than_a_file_under_either_name(tmp_path: Path) -> None:
    (tmp_path / "new.toml").write_text("[train]\nnum_skills = 5\n")
    assert load(file=tmp_path / "new.toml", sets=["train.top_k=2"]).train.num_skills == 2


def test_names_of_today_are_not_warned_of() -> None:
    warnings: list[str] = []
    assert load(sets=["train.num_skills=2", "memory.tau=2"], warn=warnings.append).train.num_skills == 2
    assert warnings == []


def test_a_value_under_an_old_name_is_checked_as_today() -> None:
    with pytest.raises(UsageError, match=r"ppo\.clip_coef must be above 0"):
        load(sets=["ppo.clip=0"])


def test_what_is_given_is_not_changed() -> None:
    given = {"memory.top_k": 5, "seed": 1}
    assert current_names(given) == {"memory.num_memories": 5, "seed": 1}
    assert given == {"memory.top_k": 5, "seed": 1}


def test_tables_of_sections() -> None:
    table = {"seed": 3, "eval": {"top_k": 7, "judge": True}, "train": {"top_k": 2, "num_skills": 4}}
    now = current_sections(table)
    assert now == {"seed": 3, "eval": {"num_skills": 7, "judge": True}, "train": {"num_skills": 4}}
    assert table["eval"] == {"top_k": 7, "judge": True}


def test_tables_with_a_former_section() -> None:
    moved = {"alfworld": {"query": "goal", "steps": 9}}
    assert current_sections(moved) == {"env": {"retrieval_query": "goal", "steps": 9}}
    assert current_sections({**moved, "env": {"steps": 3}}) == {"env": {"steps": 3}}
    assert current_sections({"env": {"steps": 3}, **moved}) == {"env": {"steps": 3}}


def test_a_dataset_of_a_plug_in_may_use_an_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memskill_cli.config.loading.dataset_settings", lambda name: {"alfworld.steps": 7})
    monkeypatch.setattr("memskill_cli.config.loading.preset_settings", lambda preset, name: {"alfworld.workers": 3})
    found = load(overrides={"dataset": "games"}, preset="demo").env
    assert (found.steps, found.workers) == (7, 3)


def test_group_relative_is_grpo_with_a_batch_of_different_traces() -> None:
    """As the algorithm was when it had that name: a run that has it in its config.toml goes on as it began."""
    warnings: list[str] = []
    typed = load(sets=["train.algorithm=group-relative"], warn=warnings.append).train
    assert (typed.algorithm, typed.group_size) == ("grpo", 1)
    assert len(warnings) == 1
    assert "train.algorithm = group-relative is now called train.algorithm = grpo, train.group_size = 1" in warnings[0]
    run = from_dict({"train": {"algorithm": "group-relative", "batch_size": 3}}).train
    assert (run.algorithm, run.group_size, run.batch_size, run.curriculum) == ("grpo", 1, 3, 0)
    both = load(sets=["train.algorithm=group-relative", "train.group_size=2"]).train
    assert (both.algorithm, both.group_size) == ("grpo", 2)
    assert current_sections({"train": {"algorithm": "group-relative"}}) == {
        "train": {"algorithm": "grpo", "group_size": 1}
    }
    assert load(sets=["train.algorithm=grpo"]).train.group_size == 4


def test_digests_use_the_former_names() -> None:
    assert former_name("eval", "num_skills") == "top_k"
    assert former_name("memory", "num_memories") == "top_k"
    assert former_name("memory", "tau") == "tau"
    assert former_name("env", "retrieval_query") == "query"
    assert former_name("env", "steps") == "steps"
    assert (former_section("env"), former_section("eval")) == ("alfworld", "eval")
    assert former_name("eval", "num_memories") == "num_memories", "of another section than the one that was renamed"


def test_a_later_setting_counts_in_a_digest_when_it_is_not_what_version_01_did() -> None:
    assert digest_section("memory", {"num_memories": 5, "retriever": "dense"}) == {"top_k": 5}
    assert digest_section("memory", {"retriever": "mine"}) == {"retriever": "mine"}


@pytest.mark.parametrize(("name", "value"), ADDED.items())
def test_a_run_of_version_01_keeps_what_it_did(name: str, value: Any) -> None:
    """Its config.toml has no later settings. Their defaults may differ from what version 0.1 did."""
    assert value_of(from_dict({"memory": {"top_k": 7}}), name) == value
