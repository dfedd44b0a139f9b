"""One skill: its statistics and the rules for its words, at their limits."""

from __future__ import annotations

import pytest

from memskill_cli.errors import SkillBankError
from memskill_cli.skills.skill import MAX_BODY, MAX_DESCRIPTION, NAME, Skill, SkillStats, check_skill, faults
from memskill_cli.types import Action


def said(name: str = "keep", description: str = "when", body: str = "how") -> dict[str, str]:
    """What is wrong, by field; one fault a field."""
    found = faults(name, description, body)
    assert len(dict(found)) == len(found)
    return dict(found)


def test_a_use_adds_its_reward_to_count_mean_and_the_last_twenty() -> None:
    before = SkillStats(3, 1.0, (1.0, 0.5, 1.5), 0.25)
    assert before.recorded([]) == before
    assert before.recorded([3.0]) == SkillStats(4, 1.5, (1.0, 0.5, 1.5, 3.0), 0.25)
    assert before.recorded([0.0, 0.0, 3.0]) == SkillStats(6, 1.0, (1.0, 0.5, 1.5, 0.0, 0.0, 3.0), 0.25)
    many = SkillStats().recorded([float(i) for i in range(30)])
    assert (many.uses, many.mean_reward) == (30, 14.5)
    assert many.recent_rewards == tuple(map(float, range(10, 30)))


@pytest.mark.parametrize("name", ["a", "0", "a" * 64, "keep-it_2", "z_", "z-"])
def test_names_within_the_rule(name: str) -> None:
    assert said(name) == {}
    assert NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", "a" * 65, "-a", "_a", "A", "a b", "a.b", "a\n", "ä"])
def test_names_beyond_the_rule(name: str) -> None:
    assert set(said(name)) == {"name"}
    assert repr(name) in said(name)["name"]


def test_words_have_limits_and_are_told_with_their_size() -> None:
    assert said(description="d" * MAX_DESCRIPTION, body="é" * (MAX_BODY // 2)) == {}
    assert said(description="ä" * MAX_DESCRIPTION) == {}, "a description is counted in characters, a body in bytes"
    long = said(description="d" * (MAX_DESCRIPTION + 1), body="é" * (MAX_BODY // 2) + "x")
    assert set(long) == {"description", "body"}
    assert f"{MAX_DESCRIPTION + 1} characters" in long["description"]
    assert f"{MAX_BODY + 1} bytes" in long["body"]
    assert (MAX_DESCRIPTION, MAX_BODY) == (1024, 20_000), "what README and the designer's prompt say"


def test_words_are_neither_blank_nor_half_a_character() -> None:
    assert said(description=" \n", body="\t") == {"description": "is empty", "body": "is empty"}
    for half in ("\ud800", "\udbff", "\udc00", "\udfff", "a\ud83d."):
        found = said(description=half, body=half)
        assert set(found) == {"description", "body"}
        assert all(reason.startswith("has half a character") for reason in found.values())
    assert said(description="\ud7ff", body="\ue000 😀") == {}


def test_faults_are_told_in_the_order_of_the_fields() -> None:
    assert [where for where, _ in faults("A", "", "")] == ["name", "description", "body"]


def test_a_skill_that_breaks_a_rule_is_refused_by_its_name() -> None:
    check_skill(Skill("keep", "when", "how", Action.INSERT, "import"))
    with pytest.raises(SkillBankError, match="skill 'keep': body is empty"):
        check_skill(Skill("keep", "when", "", Action.INSERT, "import"))
    fresh = Skill("keep", "when", "how", Action.INSERT, "import")
    assert (fresh.created_stage, fresh.modified_stage, fresh.stats) == (0, 0, SkillStats(0, 0.0, (), 0.0))
