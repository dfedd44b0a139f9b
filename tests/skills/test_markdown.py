"""Skills as SKILL.md files."""

import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from memskill_cli.errors import SkillBankError
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.markdown import export, folder_names, from_markdown, import_bank, to_markdown
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.skill import NAME, Skill, SkillStats
from memskill_cli.types import Action

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


# --- import ---


def test_what_was_exported_can_be_imported(tmp_path):
    bank = seed_bank(noop=True)
    bank.add(Skill("track_moves", "Follows people.", "Do it.", Action.UPDATE, "designer", 2, 3, SkillStats(4, 0.5)))
    bank.stage, bank.new = 3, frozenset({"track_moves"})
    export(bank, tmp_path / "folders")
    bank.save(tmp_path / "bank.json")
    (tmp_path / "folders" / "README.md").write_text("About these skills.")
    (tmp_path / "folders" / "insert" / "notes.md").write_text("Mine.")
    (tmp_path / "folders" / ".draft.md").write_text("Not yet.")
    for source in (tmp_path / "folders", tmp_path / "bank.json"):
        found = import_bank(source)
        assert found.digest() == bank.digest()
        assert (found.stage, found.new) == (0, frozenset())
        assert {(s.origin, s.created_stage, s.modified_stage, s.stats) for s in found.skills} == {
            ("import", 0, 0, SkillStats())
        }


def test_files_in_the_heading_style_are_imported(tmp_path):
    (tmp_path / "a.md").write_text(HEADINGS)
    (tmp_path / "b.md").write_text(HEADINGS.replace("Capture", "Refine").replace("INSERT", "UPDATE"))
    (tmp_path / "notes.txt").write_text("x")
    bank = import_bank(tmp_path)
    assert [(s.name, s.action) for s in bank.skills] == [
        ("capture-temporal-context", Action.INSERT),
        ("refine-temporal-context", Action.UPDATE),
    ]
    assert import_bank(tmp_path / "a.md").names == ("capture-temporal-context",)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "DIR: no skills there"),
        ({"notes.txt": "x"}, "DIR: no skills there"),
        ({"a.md": HEADINGS, "notes.md": "Just notes."}, "DIR/notes.md: found neither front matter nor"),
        ({"a.md": HEADINGS, "b/SKILL.md": HEADINGS}, "DIR/b/SKILL.md: a skill is already called capture"),
        ({"a.md": b"\xff"}, "DIR/a.md: not UTF-8 at byte 0"),
        ({f"{i}.md": HEADINGS.replace("# C", f"# {i} C") for i in range(10, 41)}, "DIR/40.md: one skill more than"),
        (
            {"a.md": HEADINGS.replace("Keep the order", "x" * 20_001)},
            "DIR/a.md: skill 'capture-temporal-context': body",
        ),
    ],
)
def test_a_folder_that_cannot_be_imported(tmp_path, files, reason):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SkillBankError) as error:
        import_bank(tmp_path)
    assert reason.replace("DIR", str(tmp_path)) in error.value.message


def test_a_path_that_is_not_there(tmp_path):
    for name in ("nothing", "nothing.json"):
        with pytest.raises(SkillBankError, match=f"{name}: no such file or folder"):
            import_bank(tmp_path / name)


def test_a_broken_bank_file_names_the_line(tmp_path):
    (tmp_path / "bank.json").write_text('{\n "format": 1,\n')
    with pytest.raises(SkillBankError, match=r"bank\.json:3: not JSON"):
        import_bank(tmp_path / "bank.json")
