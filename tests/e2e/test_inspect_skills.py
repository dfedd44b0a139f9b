"""``memskill inspect-skills`` as it is typed."""

import json
import os
import subprocess
import sys

import pytest

from memskill_cli.skills.markdown import from_markdown
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.skill import Skill
from memskill_cli.types import Action


def memskill(*arguments, cwd, code=0, **env):
    command = [sys.executable, "-m", "memskill_cli", "inspect-skills", *map(str, arguments)]
    environ = {**os.environ, "COLUMNS": "160", **env}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def write_stage(run, number, bank, *, reward, is_best=False, kept=None, parent=None, summary="", rationale=""):
    stage = {
        "format": 1,
        "stage": number,
        "bank": bank.to_dict(),
        "reward": reward,
        "is_best": is_best,
        "checkpoint": number,
        "change": {"summary": summary, "changes": []} if summary else {},
        "rationale": rationale,
        "kept": kept,
        "parent": parent,
    }
    (run / "stages").mkdir(exist_ok=True)
    (run / "stages" / f"stage-{number:03}.json").write_text(json.dumps(stage), "utf-8")


@pytest.fixture
def home(tmp_path):
    """Two runs; the newer, ``evolved``, has three stages and a skill whose text would like to be obeyed."""
    for name, created in (("evolved", "2026-02-01T00:00:00"), ("plain", "2026-01-01T00:00:00")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps({"format": 1, "created": created}))
    run = tmp_path / "runs" / "evolved"
    first = seed_bank(noop=False)
    first.record_batch([(0, 1), (1, 2)], [0.5, 0.25])
    second = first.copy()
    second.stage = 1
    second.add(
        Skill(
            "moves",
            "Says \x1b[31mwho\x07 moves [bold]where[/bold] :cat:",
            "# How\n\x1b]0;owned\x07 go",
            Action.INSERT,
            "designer",
            1,
            1,
        )
    )
    second.refine("update", body="Write it anew.", stage=1)
    second.mark_new(["moves"])
    third = first.copy()
    third.stage = 2
    write_stage(run, 0, first, reward=0.30, is_best=False, kept=True)
    write_stage(
        run,
        1,
        second,
        reward=0.42,
        is_best=True,
        kept=True,
        parent=0,
        summary="Follow moves",
        rationale="Homes were lost.",
    )
    write_stage(run, 2, third, reward=0.31, kept=False, parent=1, summary="Shorter.")
    second.save(run / "skill_bank.json")
    plain = seed_bank(noop=True)
    plain.save(tmp_path / "runs" / "plain" / "skill_bank.json")
    return tmp_path


def test_no_run_shows_the_seeds_and_says_so(tmp_path):
    done = memskill(cwd=tmp_path)
    assert "no run in runs yet" in done.stderr
    assert all(name in done.stdout for name in ("insert", "update", "delete", "seed", "noop", "4 of at most 30"))
    assert list(tmp_path.iterdir()) == []


def test_the_newest_run_as_a_table(home):
    done = memskill(cwd=home)
    assert "evolved · stage 1 · 4 of at most 30 skills" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "│ insert" in line)
    assert [cell.strip() for cell in row.split("│")][1:6] == ["insert", "insert", "seed", "2", "37.50"]
    assert "moves new" in done.stdout


def test_json_is_the_bank(home):
    data = json.loads(memskill("--json", cwd=home).stdout)
    bank = json.loads((home / "runs/evolved/skill_bank.json").read_text("utf-8"))
    assert data == {"run": "evolved", "status": None, "source": "run", **bank}, "its run.json says nothing of a status"
    assert json.loads(memskill("--json", "--run", "plain", cwd=home).stdout)["run"] == "plain"
    assert json.loads(memskill("--json", cwd=home, MEMSKILL_RUN="plain").stdout)["run"] == "plain"
    moved = home / "elsewhere"
    (home / "runs").rename(moved)
    assert json.loads(memskill("--json", "--runs-dir", moved, cwd=home).stdout)["run"] == "evolved"


def test_one_skill_in_full(home):
    done = memskill("update", cwd=home)
    assert "Write it anew." in done.stdout
    assert "added in stage 0, last changed in stage 1" in done.stdout
    data = json.loads(memskill("insert", "--json", "--run", "plain", cwd=home).stdout)
    assert data["body"] == seed_bank()["insert"].body
    assert (data["action"], data["stats"]["uses"], data["new"]) == ("insert", 0, False)


@pytest.mark.parametrize("arguments", [[], ["moves"], ["--diff", "0", "1"]])
def test_text_of_a_model_is_shown_and_not_obeyed(home, arguments):
    out = memskill(*arguments, cwd=home, FORCE_COLOR="", TERM="dumb").stdout
    assert "\x07" not in out
    assert "\x1b" not in out
    assert "\\x1b" in out
    assert "[bold]where[/bold] :cat:" in out.replace("\n", " ")


def test_an_earlier_stage(home):
    data = json.loads(memskill("--stage", 0, "--json", cwd=home).stdout)
    assert [skill["name"] for skill in data["skills"]] == ["delete", "insert", "update"]
    done = memskill("--stage", 7, cwd=home, code=1)
    assert "run evolved has no stage 7" in done.stderr
    assert "its stages: 0, 1, 2" in done.stderr


def test_history(home):
    out = memskill("--history", cwd=home).stdout
    for words in (
        "30.00",
        "42.00",
        "best",
        "rolled back",
        "added moves; refined update",
        "Follow moves",
        "Homes were lost.",
    ):
        assert words in out
    stages = json.loads(memskill("--history", "--json", cwd=home).stdout)["stages"]
    assert [(s["stage"], s["reward"], s["is_best"], s["kept"], s["parent"]) for s in stages] == [
        (0, 0.30, False, True, None),
        (1, 0.42, True, True, 0),
        (2, 0.31, False, False, 1),
    ]
    assert (stages[1]["added"], stages[1]["refined"], stages[1]["removed"]) == (["moves"], ["update"], [])
    assert stages[2]["removed"] == ["moves"]
    assert [stage["gate"] for stage in stages] == [None] * 3


def test_history_has_what_held_out_questions_showed(home):
    path = home / "runs/evolved/stages/stage-002.json"
    gate = {"queries": 60, "difference": -0.018, "ci95": [-0.061, 0.022], "kept": False}
    gate |= {"champion": 0.33, "challenger": 0.312}
    path.write_text(json.dumps({**json.loads(path.read_text()), "gate": gate}))
    out = " ".join(memskill("--history", cwd=home).stdout.replace("│", " ").split())
    assert "60 held-out questions: 0.312 with the change, 0.330 without; difference -0.018" in out
    assert json.loads(memskill("--history", "--json", cwd=home).stdout)["stages"][2]["gate"] == gate


def test_diff(home):
    out = memskill("--diff", 0, 1, cwd=home).stdout
    assert "moves (added)" in out
    assert "+Write it anew." in out
    assert "insert (" not in out
    changes = json.loads(memskill("--diff", 1, 0, "--json", cwd=home).stdout)["changes"]
    assert [(change["name"], change["change"]) for change in changes] == [("moves", "removed"), ("update", "refined")]
    assert "have the same skills" in memskill("--diff", 0, 0, cwd=home).stdout


def test_export(home):
    data = json.loads(memskill("--export", "out", "--run", "plain", "--json", cwd=home).stdout)
    assert len(data["exported"]) == 4
    skill = from_markdown((home / "out/insert/SKILL.md").read_text("utf-8"))
    assert skill == seed_bank()["insert"]


def test_wrong_usage(home):
    assert "did you mean update?" in memskill("updat", cwd=home, code=1).stderr
    assert "did you mean plain?" in memskill("--run", "plan", cwd=home, code=1).stderr
    assert "only one of" in memskill("update", "--history", cwd=home, code=2).stderr
    assert "--stage cannot be combined" in memskill("--stage", 1, "--history", cwd=home, code=2).stderr
    memskill("--diff", "0", cwd=home, code=2)


def test_no_run_has_no_history(tmp_path):
    for arguments in (["--history"], ["--diff", "0", "1"], ["--stage", "0"]):
        done = memskill(*arguments, cwd=tmp_path, code=1)
        assert "there is no run in runs yet" in done.stderr
        assert "memskill train" in done.stderr


def test_a_bank_edited_into_an_error(home):
    path = home / "runs/evolved/skill_bank.json"
    lines = path.read_text("utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if '"action"' in line)
    lines[at] = '      "action": "remove",'
    path.write_text("\n".join(lines), "utf-8")
    done = memskill(cwd=home, code=1)
    said = " ".join(done.stderr.split())
    assert (
        f"skill_bank.json:{at + 1}: skills[0].action is 'remove', expected one of insert, update, delete, noop" in said
    )


def test_a_broken_stage_file(home):
    path = home / "runs/evolved/stages/stage-001.json"
    path.write_text('{"format": 1,\n', "utf-8")
    assert "stage-001.json: not a stage file" in " ".join(memskill("--history", cwd=home, code=1).stderr.split())
    path.write_text('{"format": 1}', "utf-8")
    assert "stage-001.json" in memskill("--history", cwd=home, code=1).stderr
