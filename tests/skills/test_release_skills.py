"""Skills of the published code: those of its checkpoints, and its folders of Markdown files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.errors import SkillBankError
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.markdown import export, import_bank
from memskill_cli.skills.release_skills import bank_of, starting_bank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.skill import MAX_DESCRIPTION

FILE = """# Note What Is New

## Description
For what is {name}.

## Purpose
Write it down.

Action type: INSERT only.
"""


def operation(name: Any = "insert", **more: Any) -> dict[str, Any]:
    words = {"name": name, "description": "For new facts.", "body": "Write.", "action": "insert"}
    statistics = dict.fromkeys(("usage_count", "avg_reward", "recent_rewards", "recent_usage_ema"))
    return {**words, **statistics, **more}


def made(*operations: dict[str, Any], capacity: Any = 30, new: tuple[str, ...] = ()) -> tuple[SkillBank, list[str]]:
    told: list[str] = []
    return bank_of(operations, capacity, new, told.append), told


def test_names_are_kept_where_they_can_be() -> None:
    names = ["insert", "capture_details", "capture-details", "Capture Details", "CAPTURE DETAILS", "__", "x" * 70]
    bank, told = made(*map(operation, names), new=("Capture Details", "gone"))
    kept = ("capture-details", "capture_details", "insert")
    assert bank.names == tuple(sorted((*kept, "capture-details-2", "capture-details-3", "skill", "x" * 56)))
    assert bank.new == {"capture-details-2"}
    assert told[0] == "skill 'Capture Details' is renamed to capture-details-2"
    assert told[-1] == "marked as new, but there are no such skills (ignored): gone"
    assert len(told) == 5


def test_a_description_that_is_too_long_is_cut_at_a_word() -> None:
    fives, sixes = "word " * 300, "words " * 300
    bank, told = made(*(operation(n, description=d) for n, d in (("insert", sixes), ("a", fives), ("b", "x" * 2000))))
    assert bank["insert"].description == ("words " * 170).strip()
    assert bank["a"].description == fives[:MAX_DESCRIPTION] == ("word " * 205).strip()
    assert bank["b"].description == "x" * MAX_DESCRIPTION
    assert told[0] == f"the description of skill insert has 1799 characters; truncated to {MAX_DESCRIPTION}"
    exact, told = made(operation(description="y" * MAX_DESCRIPTION))
    assert exact["insert"].description == "y" * MAX_DESCRIPTION
    assert told == []


def test_placeholders_are_said() -> None:
    _, told = made(operation(body="Read {session_text} with care."))
    assert told == ["the body of skill insert has {session_text}; memskill does not fill in placeholders"]


def test_every_action_is_a_skill_and_case_does_not_matter() -> None:
    actions = ("insert", "UPDATE", " delete ", "noop")
    bank, _ = made(*(operation(action.strip().lower(), action=action) for action in actions))
    assert [skill.action.value for skill in bank.skills] == ["delete", "insert", "noop", "update"]
    assert {skill.origin for skill in bank.skills} == {"import"}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"name": None}, "skill 1: its name is missing"),
        ({"description": None}, "skill insert: its description is missing"),
        ({"description": " "}, "description is empty"),
        ({"description": "\ud800"}, "half a character"),
        ({"body": ""}, "body is empty"),
        ({"body": "x" * 20_001}, "body has 20001 bytes"),
        ({"action": "merge"}, "its update_type is 'merge'"),
        ({"action": None}, "its action is missing"),
        ({"avg_reward": math.nan}, "not finite"),
        ({"avg_reward": "1"}, "not finite"),
        ({"recent_rewards": [math.inf]}, "not finite"),
        ({"recent_rewards": "x"}, "not finite"),
        ({"usage_count": -1}, "usage_count -1 or"),
        ({"usage_count": 1.5}, "usage_count 1.5 or"),
        ({"usage_count": 1e18}, "usage_count 1e"),
        ({"recent_usage_ema": 1.5}, "recent_usage_ema 1.5 is out of range"),
    ],
)
def test_what_cannot_be_mended_is_refused(more: dict[str, Any], why: str) -> None:
    with pytest.raises(SkillBankError, match=why):
        made(operation(**more))


def test_two_of_one_name() -> None:
    with pytest.raises(SkillBankError, match="two skills are called 'insert'"):
        made(operation(), operation())


@pytest.mark.parametrize(
    ("told", "capacity"), [(2, 3), (5, 5), (None, 30), ("x", 30), (0, 30), (10**13, 30), (True, 30)]
)
def test_the_capacity(told: Any, capacity: int) -> None:
    bank, notices = made(*map(operation, "abc"), capacity=told)
    assert bank.capacity == capacity
    assert len(notices) == (told == 2)


def test_rounding_in_a_recent_usage() -> None:
    bank, _ = made(operation(recent_usage_ema=1 + 1e-9), operation("b", recent_usage_ema=-1e-12))
    assert (bank["insert"].stats.usage_ema, bank["b"].stats.usage_ema) == (1.0, 0.0)


def test_a_published_folder_keeps_its_names(tmp_path: Path) -> None:
    for name in ("insert", "capture_activity_details"):
        (tmp_path / f"{name}.md").write_text(FILE.format(name=name))
    (tmp_path / "README.md").write_text("not a skill")
    (tmp_path / ".hidden.md").write_text("not a skill")
    bank = starting_bank(str(tmp_path))
    assert bank.names == ("capture-activity-details", "insert")
    assert bank["insert"].description == "For what is insert."
    assert bank["insert"].origin == "import"
    assert starting_bank(str(tmp_path / "insert.md")).names == ("insert",)


def test_folders_with_a_file_each_and_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "old_one").mkdir()
    (tmp_path / "old_one" / "SKILL.md").write_text(FILE.format(name="old"))
    (tmp_path / "own.md").write_text("---\nname: mine\ndescription: d\nmetadata: {action: insert}\n---\nbody")
    assert starting_bank(str(tmp_path)).names == ("mine", "old-one")


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for name in ("a_b", "a-b"):
        (tmp_path / f"{name}.md").write_text(FILE.format(name=name))
    with pytest.raises(SkillBankError, match=r"a_b\.md: a skill is already called a-b"):
        starting_bank(str(tmp_path))


def test_a_file_that_is_no_skill_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A title and nothing else")
    with pytest.raises(SkillBankError, match=r"a\.md: found neither"):
        starting_bank(str(tmp_path))


def test_seeds_and_what_is_read_elsewhere_too(tmp_path: Path) -> None:
    assert starting_bank("seeds", noop=True) == seed_bank(noop=True)
    assert starting_bank("seeds", noop=False) == seed_bank(noop=False)
    seed_bank().save(tmp_path / "bank.json")
    export(seed_bank(), tmp_path / "folder")
    for source in ("bank.json", "folder"):
        assert starting_bank(str(tmp_path / source)) == import_bank(tmp_path / source)
    with pytest.raises(SkillBankError, match="no such file or folder"):
        starting_bank(str(tmp_path / "nowhere"))
