"""The bank's rules, its statistics, and its file as a person may have edited it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.errors import SkillBankError
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.skill import RECENT, Skill, SkillStats
from memskill_cli.types import Action


def skill(name, *, uses=0, mean=0.0, ema=0.0, created=0):
    stats = SkillStats(uses, mean, (mean,) * min(uses, RECENT), ema)
    return Skill(name, f"what {name} is for", f"how to {name}", Action.INSERT, "designer", created, created, stats)


def bank_of(*skills, capacity=3):
    return SkillBank(skills, capacity=capacity)


# --- what is in it -----------------------------------------------------------------------------------------------


def test_seeds():
    assert seed_bank(noop=False).names == ("delete", "insert", "update")
    bank = seed_bank()
    assert {s.name: s.action.value for s in bank.skills} == {n: n for n in ("insert", "update", "delete", "noop")}
    assert all(s.origin == "seed" and s.stats == SkillStats() for s in bank.skills)
    assert len({s.description for s in bank.skills}) == 4


def test_the_order_of_skills_is_that_of_their_names():
    bank = bank_of(skill("b"), skill("c"), skill("a"))
    assert bank.names == tuple(s.name for s in bank.skills) == ("a", "b", "c")
    assert len(bank) == 3
    assert bank["b"].description == "what b is for"


def test_a_taken_name_is_refused():
    bank = bank_of(skill("a"))
    with pytest.raises(SkillBankError, match="already called a") as error:
        bank.add(skill("a", created=1))
    assert "refine it" in error.value.hint
    assert bank["a"].created_stage == 0


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(SkillBankError, match="no skill is called inser") as error:
        seed_bank()["inser"]
    assert error.value.hint == "did you mean insert?"
    with pytest.raises(SkillBankError) as error:
        bank_of(skill("b"), skill("a"))["zzz"]
    assert error.value.hint == "there are: a, b"


@pytest.mark.parametrize("name", ["", "A", "-a", "a b", "../a", "a" * 65, "a\n", "é"])
def test_names_that_break_the_rule(name):
    with pytest.raises(SkillBankError, match="name is"):
        bank_of().add(skill(name))


def test_a_full_bank_gives_up_the_used_skill_with_the_lowest_mean_reward():
    bank = bank_of(skill("good", uses=2, mean=0.5), skill("bad", uses=1, mean=-0.1), skill("unused"))
    bank.mark_new(["bad", "good"])
    assert bank.add(skill("fresh")) == "bad"
    assert bank.names == ("fresh", "good", "unused")
    assert bank.new == {"good"}
    last = bank_of(skill("a", uses=1, mean=0.2), skill("b"), skill("z", uses=9, mean=0.1, ema=0.9, created=5))
    assert last.add(skill("x")) == "z", "whatever else is said of it"


def test_a_full_bank_of_unused_skills_gives_up_the_least_used_then_the_oldest():
    assert bank_of(skill("a", ema=0.2), skill("b", ema=0.1), skill("c", ema=0.3)).add(skill("x")) == "b"
    assert bank_of(skill("a", created=2), skill("b", created=1), skill("c", created=2)).add(skill("x")) == "b"


def test_of_skills_that_earned_as_little_the_one_used_least_of_late_goes_then_the_oldest_then_by_name():
    used = {"uses": 1, "mean": 0.2}
    assert bank_of(*(skill(n, ema=e, **used) for n, e in (("a", 0.3), ("b", 0.1), ("c", 0.2)))).add(skill("x")) == "b"
    assert bank_of(*(skill(n, created=c, **used) for n, c in (("a", 2), ("b", 1), ("c", 2)))).add(skill("x")) == "b"
    assert bank_of(*(skill(n, **used) for n in "bac")).add(skill("x")) == "a"
    assert bank_of(skill("a", mean=-1.0), skill("b", mean=9.0, ema=-0.1), skill("c")).add(skill("x")) == "b"


def test_more_skills_than_fit_are_refused():
    assert len(bank_of(*map(skill, "abc"))) == 3
    with pytest.raises(SkillBankError, match="capacity 3 cannot hold d"):
        bank_of(*map(skill, "abcd"))


def test_an_empty_bank_is_of_stage_0_and_holds_30():
    bank = SkillBank()
    assert (bank.stage, bank.capacity, len(bank), bank.new) == (0, 30, 0, frozenset())


def test_a_bank_is_no_other_thing_and_knows_its_names():
    assert SkillBank() == SkillBank()
    assert SkillBank() != SkillBank().to_dict()
    assert SkillBank() != bank_of(skill("a"), capacity=30)
    assert "a" in bank_of(skill("a"))
    assert "b" not in bank_of(skill("a"))


def test_there_is_room_below_capacity():
    bank = bank_of(skill("a", uses=1, mean=-1.0))
    assert bank.add(skill("b")) is None
    assert len(bank) == 2


def test_refining_changes_words_only():
    bank = bank_of(skill("a", uses=3, mean=0.4))
    bank.refine("a", body="better", stage=4)
    refined = bank["a"]
    assert (refined.body, refined.description, refined.modified_stage) == ("better", "what a is for", 4)
    assert (refined.action, refined.origin, refined.created_stage) == (Action.INSERT, "designer", 0)
    assert refined.stats.uses == 3
    for words in ({"body": " "}, {"description": "x" * 1025}, {"body": "é" * 10_001}):
        with pytest.raises(SkillBankError):
            bank.refine("a", stage=5, **words)
    with pytest.raises(SkillBankError, match="no skill is called z"):
        bank.refine("z", body="x", stage=1)
    assert bank["a"] == refined


# --- statistics --------------------------------------------------------------------------------------------------


def test_a_batch_by_hand():
    bank = bank_of(skill("a"), skill("b"), skill("c"))
    bank.record_batch([(0, 2), (2, 1), (2, 0), (2,)], [1.0, 0.5, 0.0, -0.5])
    a, b, c = (s.stats for s in bank.skills)
    assert (a.uses, a.mean_reward, a.recent_rewards) == (2, 0.5, (1.0, 0.0))
    assert (b.uses, b.mean_reward, b.recent_rewards) == (1, 0.5, (0.5,))
    assert (c.uses, c.mean_reward, c.recent_rewards) == (4, 0.25, (1.0, 0.5, 0.0, -0.5))
    assert [s.usage_ema for s in (a, b, c)] == pytest.approx([f * (1 - 0.9**4) for f in (0.5, 0.25, 1.0)])
    bank.record_batch([(1,)], [2.0])
    assert bank["a"].stats.usage_ema == pytest.approx(0.5 * (1 - 0.9**4) * 0.9)
    assert bank["b"].stats.usage_ema == pytest.approx(0.25 * (1 - 0.9**4) * 0.9 + 0.1)
    assert bank["b"].stats.mean_reward == 1.25


def test_a_batch_has_a_reward_for_each_step():
    with pytest.raises(ValueError, match="zip"):
        bank_of(skill("a")).record_batch([(0,), (0,)], [1.0])


def test_an_empty_batch_changes_nothing():
    bank = seed_bank()
    bank.record_batch([], [])
    assert bank == seed_bank()


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 2), min_size=1), st.floats(-1, 1)), min_size=1, max_size=60), st.data()
)
def test_statistics_do_not_depend_on_how_steps_are_batched(steps, data):
    bank = bank_of(skill("a"), skill("b"), skill("c"))
    cut = data.draw(st.integers(0, len(steps)))
    for part in (steps[:cut], steps[cut:]):
        bank.record_batch([sorted(chosen) for chosen, _ in part], [reward for _, reward in part])
    for place, s in enumerate(bank.skills):
        earned = [reward for chosen, reward in steps if place in chosen]
        assert s.stats.uses == len(earned)
        assert s.stats.recent_rewards == tuple(earned[-RECENT:])
        assert s.stats.mean_reward == pytest.approx(sum(earned) / len(earned) if earned else 0.0, abs=1e-12)
        assert 0 <= s.stats.usage_ema <= 1


# --- snapshots ---------------------------------------------------------------------------------------------------


def test_a_copy_does_not_change_afterwards():
    bank = seed_bank()
    bank.mark_new(["insert"])
    snapshot, before = bank.copy(), bank.to_json()
    bank.record_batch([(0,)], [1.0])
    bank.refine("insert", body="other", stage=1)
    bank.add(skill("x"))
    bank.clear_new()
    bank.stage = 1
    assert snapshot.to_json() == before != bank.to_json()


def test_a_copy_is_equal_in_all():
    bank = SkillBank([skill("a", uses=2, mean=0.5)], stage=3, capacity=7, new=["a"])
    again = bank.copy()
    assert again == bank
    assert (again.stage, again.capacity, again.new, again["a"].stats.uses) == (3, 7, {"a"}, 2)


def test_a_bank_may_be_a_part_of_a_file():
    bank = bank_of(skill("a"))
    text = json.dumps({"other": 1, "bank": json.loads(bank.to_json())})
    assert SkillBank.from_json(text, "f", at=("bank",)) == bank


def test_the_digest_names_what_matters_to_behaviour():
    bank = seed_bank()
    digest = bank.digest()
    bank.record_batch([(0,)], [1.0])
    bank.stage = 3
    bank.mark_new(["insert"])
    assert bank.digest() == digest
    bank.refine("insert", description="another", stage=3)
    assert bank.digest() != digest


def test_every_word_a_model_sees_is_in_the_digest():
    def digest(**words):
        one = {"name": "a", "description": "d", "body": "b", "action": Action.INSERT, "origin": "seed"} | words
        return SkillBank([Skill(**one)]).digest()

    changes = [{"name": "x"}, {"description": "x"}, {"body": "x"}, {"action": Action.UPDATE}]
    assert len({digest(), *(digest(**change) for change in changes)}) == 5
    assert digest(origin="import") == digest()
    assert len(digest()) == 12


def test_what_is_new_is_so_until_it_is_cleared():
    bank = seed_bank()
    bank.mark_new(["insert", "delete"])
    bank.mark_new(["update"])
    assert bank.new == {"update"}
    bank.clear_new()
    assert bank.new == frozenset()


def test_new_names_are_known():
    with pytest.raises(SkillBankError, match="no skill is called x"):
        seed_bank().mark_new(["x"])


# --- the file ----------------------------------------------------------------------------------------------------


def test_it_survives_the_file(tmp_path):
    bank = bank_of(skill("a", uses=25, mean=0.1), skill("b_c"), capacity=7)
    bank.stage = 2
    bank.mark_new(["b_c"])
    path = tmp_path / "new" / "skill_bank.json"
    bank.save(path)
    loaded = SkillBank.load(path)
    assert loaded == bank
    assert (loaded.stage, loaded.capacity, loaded.new, loaded.skills) == (2, 7, {"b_c"}, bank.skills)
    assert loaded.to_json() == path.read_text("utf-8")
    assert loaded["a"].stats == bank["a"].stats
    assert isinstance(loaded["a"].action, Action)
    lines = path.read_text("utf-8").split("\n")
    assert lines[1] == '  "format": 1,', "a person may edit it"
    assert lines[-1] == ""


def test_the_file_is_that_of_the_contract():
    data = json.loads(seed_bank().to_json())
    assert list(data) == ["format", "stage", "capacity", "skills", "new"]
    assert data["format"] == 1
    assert data["capacity"] == 30
    fields = ["name", "description", "body", "action", "origin", "created_stage", "modified_stage", "stats"]
    assert list(data["skills"][0]) == fields
    assert list(data["skills"][0]["stats"]) == ["uses", "mean_reward", "recent_rewards", "usage_ema"]


EDITS = {
    "action": ('"action": "insert"', '"action": "remove"', "skills[1].action is 'remove', expected one of insert,"),
    "misspelt key": ('"uses"', '"use"', "skills[0].stats.use is not a known key"),
    "missing key": ('"origin": "seed",\n', "\n", "skills[0] has no 'origin'"),
    "type": ('"created_stage": 0', '"created_stage": "0"', "skills[0].created_stage is '0', expected a whole number"),
    "below": ('"stage": 0', '"stage": -1', "stage is -1, expected at least 0"),
    "capacity": ('"capacity": 30', '"capacity": 2', "skills has 4 skills, more than the capacity of 2"),
    "same name": ('"name": "insert"', '"name": "delete"', "skills[1].name is 'delete', already the name of skills[0]"),
    "name": ('"name": "insert"', '"name": "In sert"', "skills[1].name is 'In sert', expected 1 to 64 of"),
    "unknown new": ('"new": []', '"new": ["upsert"]', "new[0] is 'upsert', which is not the name of a skill"),
    "syntax": ('"origin": "seed",', '"origin": "seed"', "not JSON: Expecting ',' delimiter"),
    "same key": ('"stage": 0', '"stage": 0, "stage": 1', "not JSON: duplicate key 'stage'"),
    "nan": ('"mean_reward": 0.0', '"mean_reward": NaN', "not JSON: a number that is not finite"),
    "inf": ('"mean_reward": 0.0', '"mean_reward": 1e999', "stats.mean_reward has a number that is too large"),
    "many rewards": ('"recent_rewards": []', f'"recent_rewards": {[0] * 21}', "recent_rewards has 21 items"),
    "extra": ('"body": "## Purpose', '"bodi": "", "body": "', "skills[0].bodi is not a known key"),
    "empty": ('"description": "Remove', '"description": "  ",\n"notes": "Remove', "skills[0].notes is not a known key"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "reason"), EDITS.values(), ids=EDITS)
def test_an_edit_with_an_error_is_refused_with_its_line(tmp_path, old, new, reason):
    text = seed_bank().to_json()
    assert old in text
    path = tmp_path / "skill_bank.json"
    edited = text.replace(old, new, 1)
    path.write_text(edited, "utf-8")
    with pytest.raises(SkillBankError) as error:
        SkillBank.load(path)
    where, line, said = error.value.message.split(":", 2)
    assert where == str(path)
    assert reason in said
    edited_line = (
        edited[: next(i for i, (a, b) in enumerate(zip(text, edited, strict=False)) if a != b)].count("\n") + 1
    )
    # What is missing is noticed at the thing that lacks it, or where the next one begins.
    assert abs(int(line) - edited_line) <= (5 if "has no" in reason else 1)


def test_the_line_is_exact():
    text = '{"format": 1, "stage": 0,\n "capacity": 30,\n "new": [\n "a",\n "b"],\n "skills": [\n\n' + json.dumps(
        json.loads(bank_of(skill("a")).to_json())["skills"][0]
    )
    with pytest.raises(SkillBankError, match=r"^f:5: new\[1\] is 'b'"):
        SkillBank.from_json(text + "]}", "f")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "f:1: not JSON"),
        ("[]", r"f:1: the file is \[\], expected an object"),
        ("null", "f:1: the file is null, expected an object"),
        ('{"format": 2}', r"f: format 2 is newer than this memskill supports \(1\)"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_bank_at_all(text, reason):
    with pytest.raises(SkillBankError, match=reason):
        SkillBank.from_json(text, "f")


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(SkillBankError, match="no such file"):
        SkillBank.load(tmp_path / "skill_bank.json")
    (tmp_path / "bin").write_bytes(b"\xff\xfe")
    with pytest.raises(SkillBankError, match="not UTF-8 at byte 0"):
        SkillBank.load(tmp_path / "bin")


def test_half_a_character_is_refused():
    with pytest.raises(SkillBankError, match="half a character"):
        SkillBank.from_json(seed_bank().to_json().replace("## Purpose", r"\ud83d", 1), "f")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(st.data())
def test_any_value_anywhere_is_read_or_refused(data):
    bank = json.loads(seed_bank().to_json())
    spot: object = bank
    while isinstance(spot, dict | list) and spot:
        key = data.draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else range(len(spot))))
        if not isinstance(spot[key], dict | list) or data.draw(st.booleans()):
            spot[key] = data.draw(_JSON)
            break
        spot = spot[key]
    try:
        loaded = SkillBank.from_json(json.dumps(bank), "f")
    except SkillBankError:
        return
    assert SkillBank.from_json(loaded.to_json(), "f") == loaded
