"""``report.html`` of a run: just begun, small, long, damaged, and full of hostile text."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memskill_cli.reports.run_report import write_run_report
from memskill_cli.skills import stages
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.stages import Gate, Stage
from memskill_cli.utils import files

from .conftest import Made, Page, call, metrics, with_skill
from .test_run_files import JSON


def test_a_run_just_begun_says_so(made: Made) -> None:
    page = Page(write_run_report(made.path))
    assert "No inner epoch is complete yet." in page.text
    assert "No charts yet" in page.text
    assert "No model has been called yet." in page.text
    assert "Not everything could be read" not in page.text
    assert page.pictures() == []
    assert "insert" in page.text, "the skill bank is shown"


def test_the_run_that_only_holds_evaluations_says_so(made: Made) -> None:
    (made.path / "run.json").write_bytes(files.to_json({"dataset": "locomo", "status": "untrained"}))
    page = Page(write_run_report(made.path))
    assert "This run has no training" in page.text
    assert "Not everything could be read" not in page.text


def test_what_was_learned_is_told(trained: Made) -> None:
    page = Page(write_run_report(trained.path))
    assert "Reward 10.00 in the first inner epoch, 23.00 in the last of 12." in page.text
    assert "The best stage is 1, with 31.00; 1 change rolled back." in page.text
    titles = page.pictures()
    assert "Mean episode reward by inner epoch: 10.00 first, 23.00 last, 23.00 highest" in titles
    assert "Share of each skill in the controller&#39;s selections; last values: insert 67 %, update 33 %" in titles
    assert "Memory actions per span; last values: insert 3.00, update 0.50" in titles
    assert "stage 0 20.00 kept, stage 1 31.00 best, stage 2 25.00 rolled back" in titles[-1]
    assert "36 of 456 actions (7.9 %) were rejected." in page.text
    assert "12 of 120 replies could not be read at all." in page.text
    assert "bad index 24 5.3 %" in page.text


@pytest.mark.parametrize(
    ("dataset", "kind", "told"),
    [
        ("locomo", "f1", "(token F1)"),
        ("locomo", "judge", "the judge)"),
        ("alfworld", "f1", "the games of each episode that were won"),
    ],
)
def test_the_reward_is_named(trained: Made, dataset: str, kind: str, told: str) -> None:
    (trained.path / "run.json").write_bytes(files.to_json({"dataset": dataset, "status": "finished"}))
    (trained.path / "config.toml").write_text(f'[reward]\nkind = "{kind}"\n')
    assert told in Page(write_run_report(trained.path)).text


def test_the_lineage_has_what_changed_and_why(trained: Made) -> None:
    page = Page(write_run_report(trained.path))
    source = page.source
    assert "Places were lost." in page.text
    assert "add places: two cases asked where" in page.text
    added = [part.split("</span>")[0] for part in source.split('<span class="row plus">')[1:]]
    assert "+ Keep where it was." in added
    assert "+ Keep the dog&#39;s name." in added
    assert source.count('class="row minus"') == 0, "nothing was taken away from the stage it was made from"


def test_what_held_out_questions_showed_is_told(trained: Made) -> None:
    told = "60 held-out questions: 0.312 with the change, 0.330 without"
    assert told not in Page(write_run_report(trained.path)).text
    file = trained.path / "stages" / "stage-002.json"
    gate = Gate(60, -0.018, (-0.061, 0.022), False, champion=0.33, challenger=0.312)
    trained.staged(dataclasses.replace(stages.read(file), gate=gate))
    assert told in Page(write_run_report(trained.path)).text


def test_the_bill_is_by_role_and_by_key(trained: Made) -> None:
    trained.called([call(), call(role="answer", key="openai#2"), call("locomo-test-x", "judge", usd=None)])
    page = Page(write_run_report(trained.path))
    assert "executor openai/gpt-4o-mini 1 0 0 900 80 $0.00200" in page.text
    assert "openai#2 1 0 0 900 80 $0.00200" in page.text
    assert "The price of 1 call is unknown" in page.text
    assert "locomo-test-x 1 0 0 900 80 price unknown" in page.text


def test_evaluations_are_linked(trained: Made) -> None:
    folder = trained.evaluated("locomo-test-memskill-ab", [{"f1": 0.5, "judge": None, "category": "a", "error": ""}])
    assert "locomo-test-memskill-ab 000100 1 50.00" in Page(write_run_report(trained.path)).text
    (folder / "report.html").write_text("here")
    page = Page(write_run_report(trained.path))
    assert "evals/locomo-test-memskill-ab/report.html" in page.links()


def test_one_row_is_enough(made: Made) -> None:
    page = Page(write_run_report(made.learned([metrics(0, 0, 0.118)]).path))
    assert "One inner epoch so far, with a reward of 11.80." in page.text
    assert "No stage has been judged yet." in page.text


def test_a_long_run_is_thinned_out_and_says_so(made: Made) -> None:
    bank, known = seed_bank(noop=False), []
    for number in range(20):
        bank = with_skill(bank, number, f"skill-{number}", "## Purpose\n" + "Keep it. " * 200)
        parent = number - 1 if number else None
        known.append(Stage(number, bank, number / 20, number == 19, number, {"summary": "s"}, "r", True, parent))
    made.staged(*known)
    usage = [{f"skill-{i}": 5 + i for i in range(stage + 1)} for stage in range(20)]
    rows = [metrics(stage, i, 0.2, skill_usage=usage[stage]) for stage in range(20) for i in range(50)]
    file = write_run_report(made.learned(rows).path)
    page = Page(file)
    assert "Each point is the mean of up to 5 inner epochs" in page.text
    assert "14 others" in page.text
    assert file.stat().st_size < 2_000_000


def test_the_same_files_give_the_same_page(trained: Made) -> None:
    first = write_run_report(trained.path).read_bytes()
    assert write_run_report(trained.path).read_bytes() == first


DAMAGE = ("run.json", "config.toml", "metrics.jsonl", "usage.jsonl", "skill_bank.json", "stages/stage-001.json")


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("how", ["missing", "half", "garbage", "folder"])
def test_a_damaged_file_is_a_word_and_no_crash(trained: Made, name: str, how: str) -> None:
    file = trained.path / name
    content = file.read_bytes()
    file.unlink()
    if how == "half":
        middle = len(content) // 2
        file.write_bytes(content[: content.index(b"=", middle) + 1 if name.endswith(".toml") else middle])
    elif how == "garbage":
        file.write_bytes(b"\xff\x00{]\n" * 5)
    elif how == "folder":
        file.mkdir()
    page = Page(write_run_report(trained.path))
    assert "Learning" in page.text
    said = page.source.split("<main>")[0]
    if how in ("half", "garbage") or name in ("run.json", "metrics.jsonl", "usage.jsonl"):
        assert name in said


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(sorted(metrics(0, 0))), JSON, max_size=12), max_size=4))
def test_metrics_of_any_shape_make_a_page(made: Made, rows: list[dict[str, Any]]) -> None:
    def safe(value: Any) -> Any:
        """As orjson can write it."""
        if isinstance(value, dict):
            return {key: safe(item) for key, item in value.items()}
        if isinstance(value, list):
            return [safe(item) for item in value]
        return 0 if isinstance(value, int) and abs(value) >= 2**63 else value

    made.learned([safe(row) for row in rows]).called([safe(row) for row in rows])
    assert Page(write_run_report(made.path)).count("h2") == 7


def test_a_stage_with_values_of_a_wrong_kind_is_no_crash(trained: Made) -> None:
    file = trained.path / "stages" / "stage-001.json"
    row = json.loads(file.read_text())
    row |= {"reward": "high", "kept": "yes", "parent": [0], "change": 7, "rationale": {"a": 1}, "is_best": "so"}
    files.write_json(file, row)
    assert "stages/stage-001.json is damaged and left out" in Page(write_run_report(trained.path)).text


HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(1)> javascript:alert(1) {{ 7*7 }} \u202egnp.exe"


def test_hostile_text_makes_no_element(trained: Made) -> None:
    bank = with_skill(seed_bank(noop=False), 1, "bad", HOSTILE)
    trained.staged(Stage(1, bank, 0.31, True, 8, {"summary": HOSTILE}, HOSTILE, True, 0))
    rows = [metrics(0, 0, skill_usage={HOSTILE: 3}, actions={HOSTILE: 2}, rejected={HOSTILE: 1})]
    trained.learned(rows).called([call(role=HOSTILE, model=HOSTILE, key=HOSTILE)])
    (trained.path / "config.toml").write_text(f"# {HOSTILE}\n")
    manifest = files.to_json({"dataset": HOSTILE, "status": HOSTILE, "created": HOSTILE, "seed": HOSTILE})
    (trained.path / "run.json").write_bytes(manifest)
    moved = trained.path.parent / "<img src=x onerror=alert(2)>"
    shutil.move(trained.path, moved)
    page = Page(write_run_report(moved))
    assert page.count("script") == page.count("img") == 0
    assert page.count("style") == page.source.count("</style") == 1
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "{{ 7*7 }}" in page.text
    assert "\u202e" not in page.source
    assert "\\u202egnp.exe" in page.text
