"""``report.html`` of an evaluation: the numbers as they are, what went worst, and what may be compared."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memskill_cli import config
from memskill_cli.reports.eval_report import write_eval_report
from memskill_cli.utils import files

from .conftest import Made, Page, call, result, write_jsonl
from .test_run_files import JSON
from .test_run_report import HOSTILE


def rows_of(count: int) -> list[dict[str, Any]]:
    draw = random.Random(2)
    return [result(at, draw.choice([0.0, 0.0, 0.4, 1.0]), draw.choice([0.0, 0.5, 1.0])) for at in range(count)]


def test_scores_have_their_intervals(made: Made) -> None:
    rows = rows_of(40)
    folder = made.evaluated("e", rows)
    page = Page(write_eval_report(folder))
    f1 = sum(row["f1"] for row in rows) / 40
    single = [row["judge"] for row in rows if row["category"] == "single-hop"]
    assert f"all 40 {100 * f1:.2f}" in page.text
    assert f"single-hop 20 {100 * sum(r['f1'] for r in rows[::2]) / 20:.2f}" in page.text
    assert f"{100 * sum(single) / 20:.2f}" in page.text
    titles = page.pictures()
    assert any(title.startswith("token F1 by category: single-hop") for title in titles)
    zeros, ones = (sum(row["judge"] == value for row in rows) for value in (0, 1))
    halves = 40 - zeros - ones
    assert f"Queries by verdict: 0: {zeros}, 0.5: {halves}, 1: {ones}" in titles


def test_the_histogram_of_f1_counts_every_query_once(made: Made) -> None:
    scores = [0.0, 0.0, 0.001, 0.1, 0.29, 0.3, 0.999, 1.0, 1.0, 1.0]
    folder = made.evaluated("e", [result(at, f1, None) for at, f1 in enumerate(scores)])
    title = next(
        title for title in Page(write_eval_report(folder)).pictures() if title.startswith("Queries by token F1")
    )
    told = dict(part.rsplit(": ", 1) for part in title.split(": ", 1)[1].split(", "))
    inside = {f"{tens}0–": "0" for tens in range(1, 9)} | {"10–": "1", "20–": "1", "30–": "1", "90–": "1"}
    assert told == {"0": "2", "&gt;0": "1", **inside, "100": "3"}


def test_the_worst_come_first_and_each_category_has_its_turn(made: Made) -> None:
    rows = [result(at, 0.0, 0.0, category="common" if at < 60 else "rare") for at in range(65)]
    rows += [result(70, 0.0, 1.0), result(71, 0.9, 0.5)]
    page = Page(write_eval_report(made.evaluated("e", rows)))
    assert "25 of 66 with a score below 100" in page.text, "the one that the judge found right is none of them"
    shown = [part.split("?")[0] for part in page.text.split("What is number ")[1:]]
    assert len(shown) == 25
    assert {str(at) for at in range(60, 65)} <= set(shown), "five of the rare ones, though sixty others are as bad"
    assert "71" not in shown


def test_an_example_has_truth_answer_and_what_was_retrieved(made: Made) -> None:
    row = result(3)
    row["retrieved"][12]["text"] = "On Monday it was TRUTH 3, he said."
    row["retrieved"][0]["text"] = "untruth 31 is another thing"
    page = Page(write_eval_report(made.evaluated("e", [row])))
    assert "truth truth 3 answer guess 3 category temporal (t:3)" in page.text
    assert "0.900 untruth 31 is another thing" in page.text
    assert "… 12 more retrieved, the 13th holds the answer" in page.text
    assert "In 1 of the 1 a retrieved memory contains a true answer" in page.text
    assert "holds the answer untruth" not in page.text


def test_queries_without_a_score_are_apart(made: Made) -> None:
    rows = [result(0, 1.0, 1.0), *(result(at, None, None, error=f"answer: timed out {at}") for at in range(1, 14))]
    page = Page(write_eval_report(made.evaluated("e", rows)))
    assert "Without a score and excluded from averages: 13 answer." in page.text
    assert "13 queries have no score and are excluded from averages; the first 10:" in page.text
    assert "answer: timed out 10" in page.text
    assert "timed out 11" not in page.text
    assert "Every query with a score has 100." in page.text


def test_tokens_and_money_of_a_query_by_role(made: Made) -> None:
    made.called(
        [
            *(call("e", "executor", usd=0.01, prompt_tokens=1000, completion_tokens=100) for _ in range(2)),
            *(call("e", "answer", usd=0.001, prompt_tokens=500, completion_tokens=10) for _ in range(8)),
            *(call("train", "executor", usd=5.0) for _ in range(9)),
        ]
    )
    page = Page(write_eval_report(made.evaluated("e", rows_of(4))))
    assert "answer openai/gpt-4o-mini 2.00 1,000 20.0 $0.00200" in page.text
    assert "executor openai/gpt-4o-mini 0.50 500 50.0 $0.00500" in page.text
    assert "cost of a query $0.00700 1,570 tokens" in page.text


def test_methods_of_the_same_evaluation_stand_side_by_side(made: Made) -> None:
    folder = made.evaluated("b", rows_of(10))
    made.evaluated("a", rows_of(10), method="rag", checkpoint="none", f1=0.123)
    made.evaluated("c", rows_of(10), method="no-memory", limit=10, f1=0.9)
    made.evaluated("d", rows_of(10), method="all-skills", split="val", f1=0.8)
    page = Page(write_eval_report(folder))
    assert "Comparison with other methods" in page.text
    assert "memskill @ 000100 this one 10" in page.text
    assert "rag 10 12.30" in page.text
    assert page.links().count("../a/report.html") == 1
    assert "no-memory" not in page.text, "it asked other queries"
    assert "all-skills" not in page.text, "of another split"
    alone = Page(write_eval_report(folder.parent / "d"))
    assert "Comparison with other methods" not in alone.text


def test_the_paper_is_beside_and_the_difference_is_said(made: Made) -> None:
    page = Page(write_eval_report(made.evaluated("e", rows_of(60), limit=60)))
    assert "Not comparable with the paper: 60 queries were asked, the published split has 314" in page.text
    assert "the executor is embedded, the paper's Llama-3.3-70B-Instruct" in page.text
    assert "MemSkill Llama-3.3-70B-Instruct 7 38.78 50.96" in page.text
    assert "Only the first 60 queries were asked (--limit)." in page.text
    assert not any("the paper" in title for title in page.pictures())


def test_a_comparable_figure_is_drawn(made: Made) -> None:
    folder = made.evaluated("e", rows_of(314), checkpoint="001000")
    (folder / "config.toml").write_text(config.to_toml(config.load(preset="paper")))
    page = Page(write_eval_report(folder))
    assert "the figures are comparable" in page.text
    assert any("; the paper: 38.78" in title for title in page.pictures())
    assert any("; the paper: 50.96" in title for title in page.pictures())


def test_games_are_told_in_their_own_words(made: Made) -> None:
    moves = [{"command": f"go to drawer {i}", "observation": f"Drawer {i}.", "valid": i != 1} for i in range(60)]
    game = {"category": "pick_heat_then_place_in_recep", "question": "put a hot mug in the cabinet", "truths": []}
    row = {"query_id": "g", **game, "success": False, "steps": 50, "invalid_actions": 1, "transcript": moves}
    folder = made.path / "evals" / "g"
    write_jsonl(folder / "results.jsonl", [{**row, "retrieved": [], "error": ""}, {**row, "success": True, "steps": 9}])
    ci = {"ci95": {"success_rate": [0.0, 1.0]}}
    whole = {"queries": 2, "success_rate": 0.5, "steps": 29.5, **ci}
    task = {"dataset": "alfworld", "split": "valid_seen", "method": "memskill", "checkpoint": "000010", "errors": {}}
    types = {"by_task_type": {"pick_heat_then_place_in_recep": whole}}
    files.write_json(folder / "summary.json", {**task, **whole, **types})
    page = Page(write_eval_report(folder))
    assert "pick heat then place in recep 2 50.00 0.00–100.00 29.50" in page.text
    assert "Worst tasks" in page.text
    assert "failed in 50 steps put a hot mug in the cabinet" in page.text
    assert "2 go to drawer 1 no command Drawer 1." in page.text
    assert "… 10 more steps" in page.text
    assert "MemSkill Llama-3.3-70B-Instruct 5 47.86 30.88" in page.text
    assert "Tasks by outcome: failed: 1, succeeded: 1" in page.pictures()
    assert "token F1" not in page.text


def test_abstention_is_a_line_of_its_own(made: Made) -> None:
    apart = {"queries": 4, "f1": None, "judge": 0.75, "ci95": {"f1": None, "judge": [0.5, 1.0]}}
    page = Page(write_eval_report(made.evaluated("e", rows_of(6), abstention=apart)))
    assert "abstention excluded from averages 4 – 75.00 50.00–100.00" in page.text


def test_ten_thousand_queries_make_a_small_page(made: Made) -> None:
    long = "A memory of some length, as executors like to write them. " * 60
    rows = []
    for at in range(10_000):
        row = result(at, 0.0, 0.0, question=f"Why {at}?", retrieved=[])
        if at < 60:
            row |= {"question": f"Why {at}? " + "and so on " * 200, "prediction": long, "truths": [long] * 9}
            row["retrieved"] = [{"id": "m", "text": long, "score": 0.5}] * 20
        rows.append(row)
    folder = made.evaluated("e", rows)
    file = write_eval_report(folder)
    assert file.stat().st_size < 2_000_000
    page = Page(file)
    assert page.text.count("more characters") > 100, "what is cut is counted"
    assert "… 4 more" in page.text


def test_an_evaluation_that_has_not_ended(made: Made) -> None:
    folder = made.evaluated("e", rows_of(6))
    (folder / "summary.json").unlink()
    with (folder / "results.jsonl").open("ab") as file:
        file.write(b'{"query_id": "t:7", "f1": 0.')
    page = Page(write_eval_report(folder))
    assert "this evaluation is not complete" in page.text
    assert "summary.json is missing" in page.text
    assert "results.jsonl: 1 line cannot be read and is left out" in page.text
    assert "Distribution of the scores" in page.text
    assert page.count("svg") == 4, "two spreads, each for a screen and for a phone"


def test_nothing_at_all_is_a_page_too(made: Made) -> None:
    folder = made.path / "evals" / "e"
    folder.mkdir(parents=True)
    assert "No query has been asked." in Page(write_eval_report(folder)).text


def test_hostile_text_makes_no_element(made: Made) -> None:
    row = result(0, 0.0, 0.0, question=HOSTILE, prediction=HOSTILE, gold_answers=[HOSTILE], category=HOSTILE)
    row["retrieved"] = [{"id": HOSTILE, "text": HOSTILE, "score": 0.5}]
    bad = result(1, None, None, error=HOSTILE, question=HOSTILE)
    folder = made.evaluated("e", [row, bad], method=HOSTILE, checkpoint=HOSTILE, data_digest=HOSTILE)
    made.evaluated("f", [row, bad], method=HOSTILE, data_digest=HOSTILE)
    made.called([call("e", HOSTILE, model=HOSTILE)])
    page = Page(write_eval_report(folder))
    assert page.count("script") == page.count("img") == 0
    assert page.count("style") == page.source.count("</style") == 1
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert all(not link.startswith("javascript") for link in page.links())
    assert "\u202e" not in page.source
    assert page.text.count("alert(1)") > 8


KEYS = [*result(0), "success", "steps", "transcript"]
WHOLE = ["queries", "f1", "judge", "ci95", "by_category", "errors", "abstention", "success_rate", "steps", "checkpoint"]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=14), max_size=4),
    st.dictionaries(st.sampled_from(WHOLE), JSON, max_size=10),
)
def test_files_of_any_shape_make_a_page(made: Made, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    folder = made.path / "evals" / "e"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row).encode("utf-8", "surrogatepass") for row in rows]
    (folder / "results.jsonl").write_bytes(b"\n".join(lines))
    task = {"dataset": "locomo", "split": "test", "method": "memskill"}
    (folder / "summary.json").write_bytes(json.dumps(task | summary).encode("utf-8", "surrogatepass"))
    assert Page(write_eval_report(folder)).count("h2") >= 5


@pytest.mark.parametrize("own", [True, False])
def test_the_settings_are_the_evaluations_own_or_else_its_runs(made: Made, own: bool) -> None:
    folder = made.evaluated("e", rows_of(4))
    if own:
        (folder / "config.toml").write_text(config.to_toml(config.load(sets=("models.executor=openai/other",))))
    page = Page(write_eval_report(folder))
    assert ("this evaluation openai/other 7" in page.text) is own
    assert ("this evaluation embedded 7" in page.text) is not own


def test_what_did_not_fit_a_window_is_said(made: Made) -> None:
    facts = {"cut": {"queries": 3, "mean_tokens": 1234.5}, "skills_shown": 8, "skills": 12, "system": "mem0ai 1.0"}
    page = Page(write_eval_report(made.evaluated("e", rows_of(4), **facts)))
    assert (
        "The context of 3 queries did not fit the model's window and was truncated by 1,234 tokens on average."
        in page.text
    )
    assert "Only 8 of the 12 skills fit the executor's context window." in page.text
    assert "of run a, with mem0ai 1.0" in page.text


def test_a_benchmark_without_categories_has_one_line(made: Made) -> None:
    rows = [{**row, "category": "all"} for row in rows_of(4)]
    page = Page(write_eval_report(made.evaluated("e", rows)))
    assert page.text.count("all 4 ") == 1
