"""Skills as SKILL.md files."""

import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from memskill_cli.errors import SkillBankError
from memskill_cli.records import Action
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.markdown import export, folder_names, from_markdown, to_markdown
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.skill import NAME, Skill

CONVENTION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

_NAMES = st.from_regex(NAME, fullmatch=True)
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=200)
_WORDS = _TEXT.map(str.strip).filter(bool)
_SKILLS = st.builds(
    Skill, _NAMES, _WORDS, _WORDS, st.sampled_from(Action), st.sampled_from(["seed", "designer", "import"])
)


@given(_SKILLS)
@example(Skill("a_b", "one\x85two\u2028three\n---\nfour: {", "---\nbody\n---", Action.NOOP, "seed"))
def test_round_trip(skill):
    assert from_markdown(to_markdown(skill)) == skill


@given(_SKILLS)
def test_the_front_matter_is_plain_yaml_by_the_convention(skill):
    text = to_markdown(skill)
    front = yaml.safe_load(text.split("\n---\n")[0])
    assert CONVENTION.fullmatch(front["name"])
    assert len(front["name"]) <= 64
    assert front["description"] == skill.description
    assert all(isinstance(value, str) for value in front["metadata"].values())


@given(st.sets(_NAMES, max_size=30))
def test_folders_are_distinct_and_by_the_convention(names):
    folders = folder_names(names)
    assert set(folders) == names
    assert len(set(folders.values())) == len(names)
    assert all(CONVENTION.fullmatch(folder) and len(folder) <= 64 for folder in folders.values())
    assert all(folders[name] == name for name in names if CONVENTION.fullmatch(name))


def test_collisions():
    assert folder_names(["a_b", "a-b", "a__b", "a-b-2"]) == {
        "a-b": "a-b",
        "a-b-2": "a-b-2",
        "a__b": "a-b-3",
        "a_b": "a-b-4",
    }
    long = "x" * 63
    assert folder_names([long + "_", long]) == {long: long, long + "_": "x" * 62 + "-2"}


def test_export(tmp_path):
    bank = seed_bank(noop=True)
    bank.add(Skill("track_moves", "Follows people who move.", "Do it.", Action.UPDATE, "designer", 2, 3))
    (tmp_path / "skills" / "insert").mkdir(parents=True)
    (tmp_path / "skills" / "insert" / "notes.txt").write_text("mine")
    files = export(bank, tmp_path / "skills")
    assert [file.relative_to(tmp_path / "skills").as_posix() for file in files] == [
        f"{name}/SKILL.md" for name in ("delete", "insert", "noop", "track-moves", "update")
    ]
    read = [from_markdown(file.read_text("utf-8")) for file in files]
    assert SkillBank(read).digest() == bank.digest()
    assert (tmp_path / "skills" / "insert" / "notes.txt").read_text() == "mine"


def test_export_onto_a_file(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(SkillBankError, match="cannot export"):
        export(seed_bank(), tmp_path / "taken")


HEADINGS = """# Capture Temporal Context

## Description
Records when things
happened.

## Purpose
Keep the order of events.

## Constraints
Only dates that are said.

Action type: INSERT only.
"""


def test_the_heading_style_is_read():
    skill = from_markdown(HEADINGS.replace("\n", "\r\n"))
    assert (skill.name, skill.action, skill.origin) == ("capture-temporal-context", Action.INSERT, "import")
    assert skill.description == "Records when things happened."
    assert skill.body.startswith("## Purpose\nKeep the order")
    assert skill.body.endswith("Action type: INSERT only.")


def test_a_foreign_skill_says_its_action_in_the_body():
    text = "---\nname: dates\ndescription: Finds dates.\nlicense: MIT\n---\nBody.\n\n**Action type:** UPDATE only"
    assert from_markdown(text).action is Action.UPDATE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither front matter nor"),
        ("---\nname: a\ndescription: b\n---\nbody", "action type is None"),
        ("---\nname: a\ndescription: b\nmetadata: {action: merge}\n---\nbody", "action type is 'merge'"),
        ("---\nname: ../../etc/x\ndescription: b\nmetadata: {action: insert}\n---\nbody", "name is '../../etc/x'"),
        ("---\nname: a\ndescription: b\nmetadata: {action: insert, bank-name: ../b}\n---\nbody", "name is '../b'"),
        ("---\nname: a\nmetadata: {action: insert}\n---\nbody", "no text called description"),
        ("---\nname: 7\ndescription: b\nmetadata: {action: insert}\n---\nbody", "no text called name"),
        ("---\nname: a\ndescription: b\nmetadata: {action: insert}\n---\n  \n", "body is empty"),
        ("---\nname: [\n---\nbody", "not YAML"),
        ("---\n!!python/object/apply:os.system [ls]\n---\nbody", "not YAML"),
        ("---\n- a\n---\nbody", "not a list of keys"),
        ("# ???\n## Description\nx\n## Purpose\nAction type: INSERT only.", "name is ''"),
    ],
)
def test_what_is_no_skill_is_refused(text, reason):
    with pytest.raises(SkillBankError, match=re.escape(reason)) as error:
        from_markdown(text, "x/SKILL.md")
    assert error.value.message.startswith("x/SKILL.md: ")


@given(st.text() | st.text("-#:\n a[]{}&*!|>'\"%@`0123").map(lambda text: f"---\n{text}\n---\nbody"))
def test_any_text_is_read_or_refused(text):
    try:
        skill = from_markdown(text)
    except SkillBankError:
        return
    assert NAME.fullmatch(skill.name)
