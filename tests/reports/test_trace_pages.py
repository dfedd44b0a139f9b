"""The pages of traces: the facts of ``steps.jsonl`` and ``results.jsonl``, as text that is never active."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from memskill_cli import config
from memskill_cli.reports.eval_report import write_eval_report

from .conftest import Made, Page, result, write_jsonl
from .test_run_report import HOSTILE


def action(kind: str, item: str | None, text: str = "", before: str = "") -> dict[str, Any]:
    return {"action": kind, "id": item, "text": text} | ({"before": before} if before else {})


def step(span: int, *actions: dict[str, Any], trace_id: str = "t", **more: Any) -> dict[str, Any]:
    """One line of steps.jsonl."""
    skills = [
        {"name": "keep_names", "action": "insert", "probability": 0.25},
        {"name": "mend", "action": "update", "probability": 0.125},
        {"name": "forget", "action": "delete", "probability": 0.0625},
    ]
    row = {"trace_id": trace_id, "span": span, "skills": skills, "actions": list(actions), "rejected": {}}
    row |= {"memories_before": span, "memories_after": span + 1, "prompt_tokens": 1200 + span, "completion_tokens": 34}
    row |= {"seconds": 1.5, "reply": "read", "protected": {}, "text": f"Ivo: text of {span}", "sources": [f"s{span}:0"]}
    return row | more


STEPS = [
    step(0, action("insert", "m000001", "Ivo paints boats"), action("insert", "m000002", "Ivo has a dog")),
    step(
        1,
        action("update", "m000001", "Ivo paints houses", "Ivo paints boats"),
        action("insert", "m000002", "Ivo has a dog", "Ivo has a dog"),
        rejected={"bad_index": 3},
        protected={"seen_again": 1},
    ),
    step(2, action("delete", "m000002", "", "Ivo has a dog"), action("noop", None)),
]


def evidence(stage: str, *refs: str) -> dict[str, Any]:
    return {"refs": list(refs), "recall": {"5": 0.5, "10": 1.0, "20": 1.0}, "stage": stage}


def written(made: Made, rows: list[dict[str, Any]], steps: list[dict[str, Any]], **summary: Any) -> tuple[Page, Path]:
    """The report, and the folder of the pages."""
    folder = made.evaluated("e", [{**row, "evidence": evidence("lost")} for row in rows], **summary)
    write_jsonl(folder / "results.jsonl", rows)
    if steps:
        write_jsonl(folder / "steps.jsonl", steps)
    return Page(write_eval_report(folder)), folder / "traces"


def only(folder: Path) -> Page:
    (file,) = folder.iterdir()
    return Page(file)


def parts(page: Page) -> list[str]:
    """The text of each collapsible part."""
    found = re.findall(r"<details[^>]*>(.*?)</details>", page.source, re.S)
    return [" ".join(re.sub(r"<[^>]*>", " ", part).split()) for part in found]


def test_each_span_has_what_it_wrote_changed_and_deleted_and_by_which_skill(made: Made) -> None:
    _, folder = written(made, [result(0)], STEPS)
    page = only(folder)
    first, second, third = parts(page)[:3]
    assert first.startswith("2 inserted Span 0 Ivo: text of 0")
    assert "keep_names 0.250, mend 0.125, forget 0.062" in first
    assert "0 before, 1 after" in first
    assert "read: 1,200 prompt tokens, 34 completion tokens, 1.5 s" in first
    assert "inserted m000001 by keep_names; changed in span 1 Ivo paints boats" in first
    assert "inserted m000002 by keep_names; seen again in span 1 Ivo has a dog" in first
    assert second.startswith("1 changed, 1 seen again Span 1")
    assert "changed m000001 by mend Ivo paints boats Ivo paints houses" in second
    assert "seen again m000002 by keep_names; deleted in span 2 Ivo has a dog" in second
    assert "rejected 3 bad_index memory.protect 1 seen_again" in second
    assert third.startswith("1 deleted Span 2")
    assert "deleted m000002 by forget Ivo has a dog" in third
    assert "memories 3 2 inserted, 1 changed, 1 deleted" in page.text


@pytest.mark.parametrize(
    ("reply", "words"),
    [("unreadable", "could not be read"), ("cut", "cut by the token limit"), ("not_asked", "no call")],
)
def test_a_span_without_a_usable_reply_says_so(made: Made, reply: str, words: str) -> None:
    _, folder = written(made, [result(0)], [step(0, reply=reply)])
    (span, _) = parts(only(folder))
    assert words in span
    assert "Nothing in the memory was changed." in span
    assert span.startswith("no change Span 0")


def test_a_question_has_its_evidence_and_where_it_failed(made: Made) -> None:
    rows = [
        result(0, 0.0, None, evidence=evidence("lost", "s1", "s0:0")),
        result(1, 0.6, None, evidence=evidence("not_used", "s9:4")),
        result(2, 0.4, None, evidence=evidence("not_retrieved", "s2:0")),
        result(3, 0.9, 0.5, evidence=evidence("not_stored", "s2:0")),
        result(4, 0.0, None),
    ]
    _, folder = written(made, rows, STEPS)
    page = only(folder)
    lost, right, missed, judged, unnamed = parts(page)[3:]
    assert lost.startswith("F1 0.00 What is number 0? lost truth truth 0 answer guess 0")
    assert "evidence s1 ( span 1 ); s0:0 ( span 0 )" in lost
    assert "evidence found 0.50 in the first 5, 1.00 in the first 10, 1.00 in the first 20" in lost
    assert "failed at lost: it was stored, then overwritten or deleted" in lost
    assert "0.900 memory 0 of query 0" in lost
    assert "evidence s9:4 evidence found" in right, "this turn was in no span"
    assert "failed at" not in right, "0.6 is above designer.f1_threshold"
    assert "failed at not retrieved" in missed
    assert "failed at not stored" in judged, "the judge decides if there is one"
    assert "evidence" not in unnamed
    assert "where their evidence was lost: 1 not stored, 1 lost, 1 not retrieved." in page.text
    assert {link for link in page.links() if link.startswith("#span-")} == {f"#span-{i}" for i in range(3)}


def test_the_threshold_is_that_of_the_settings(made: Made) -> None:
    folder = made.evaluated("e", [result(0, 0.6, None, evidence=evidence("lost", "s1"))])
    (folder / "config.toml").write_text(config.to_toml(config.load(sets=("designer.f1_threshold=0.7",))))
    write_eval_report(folder)
    assert "failed at lost" in only(folder / "traces").text


def test_the_report_links_to_each_trace(made: Made) -> None:
    rows = [result(0, 0.5, 1.0, trace_id="a"), result(1, 1.0, 0.0, trace_id="b"), result(2, 0.0, 1.0, trace_id="a")]
    page, folder = written(made, rows, [step(0, trace_id="b"), step(1, trace_id="b")])
    links = [link for link in page.links() if link.startswith("traces/")]
    assert [(folder.parent / link).exists() for link in links] == [True, True]
    assert "a – – 2 25.00 100.00 b 2 2 1 100.00 0.00" in page.text
    assert "Each trace has a page." in page.text
    first, second = (Page(folder.parent / link) for link in links)
    assert "trace 1 of 2 a " in first.text
    assert "No steps are recorded" in first.text
    assert "What is number 1?" in second.text
    assert "What is number 0?" not in second.text
    assert "../report.html" in first.links()


def test_only_the_first_traces_have_a_page_and_it_is_said(made: Made) -> None:
    rows = [result(at, trace_id=f"t{at % 23}") for at in range(46)]
    page, folder = written(made, rows, [step(0, trace_id=f"t{at}") for at in range(23)])
    assert len(list(folder.iterdir())) == 20
    assert "Only the first 20 of 23 traces have a page." in page.text
    assert all(Page(file).text.count("What is number") == 2 for file in folder.iterdir()), "rows after the 20th too"


@pytest.mark.parametrize("trace_id", ["../../evil", "a/b", HOSTILE, "", "x" * 400, ".."])
def test_a_name_of_a_file_has_no_text_from_data(made: Made, trace_id: str) -> None:
    page, folder = written(made, [result(0, trace_id=trace_id)], [])
    (file,) = folder.iterdir()
    assert re.fullmatch(r"001-[0-9a-f]{12}\.html", file.name)
    assert f"traces/{file.name}" in page.links()


def test_hostile_text_makes_no_element(made: Made) -> None:
    bad = step(0, action("update", HOSTILE, HOSTILE, HOSTILE), trace_id=HOSTILE, rejected={HOSTILE: 1}, text=HOSTILE)
    bad |= {"skills": [{"name": HOSTILE, "action": "update", "probability": 0.5}], "sources": [HOSTILE]}
    row = result(0, trace_id=HOSTILE, question=HOSTILE, truths=[HOSTILE], prediction=HOSTILE, category=HOSTILE)
    row |= {"query_id": HOSTILE, "error": HOSTILE, "evidence": evidence(HOSTILE, HOSTILE)}
    row["retrieved"][0]["text"] = HOSTILE
    report, folder = written(made, [row], [bad], method=HOSTILE)
    for page in (report, only(folder)):
        assert page.count("script") == page.count("img") == 0
        assert page.count("style") == page.source.count("</style") == 1
        assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
        assert "\u202e" not in page.source
        assert "<script>alert(1)</script>" in page.text
        assert not [link for link in page.links() if "script" in link]


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"span": "x", "skills": 3, "actions": {"action": "insert"}, "rejected": [], "text": None},
        {"actions": [None, {"action": "insert"}, {"action": "update", "id": 4, "text": 5}], "sources": [None, {}]},
        {"span": -1, "memories_after": "many", "reply": 7, "seconds": 1e300},
    ],
)
def test_damaged_lines_make_a_page_all_the_same(made: Made, broken: dict[str, Any]) -> None:
    rows = [result(0, evidence=[1]), result(1, evidence={"refs": "x", "recall": 3, "stage": {}})]
    page, folder = written(made, rows, [{"trace_id": "t", **broken}])
    assert "What is number 1?" in only(folder).text
    with (folder.parent / "steps.jsonl").open("ab") as file:
        file.write(b'{"trace_id": "t", "sp')
    assert "steps.jsonl: 1 line cannot be read" in Page(write_eval_report(folder.parent)).text
    assert "steps.jsonl" not in page.text
