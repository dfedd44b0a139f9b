"""Evaluations with unusual replies, over HTTP, for every role."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.evaluation.spec import EvalSpec
from memskill_cli.reports.eval_notes import executor_notes
from memskill_cli.testing import rules
from memskill_cli.testing.replies import CutReply
from memskill_cli.testing.server import Request
from memskill_cli.types import Query, Session, Trace, Turn

from .harness import TASK, TRACES, Rig

DRAFT = 'ACTION: INSERT\nMEMORY: a draft. Maybe 1999? {"score": 0}'


def marked(role: str, form: str) -> Callable[[Request], str]:
    """Rule-made models. The model of ``role`` writes its reasoning into the reply in the given ``form``."""

    def reply(request: Request) -> str:
        said = rules.reply(request)
        return form.format(draft=DRAFT, said=said) if request.role == role else said

    return reply


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rig = Rig(tmp_path_factory.mktemp("plain"))
    return rig.evaluate(), rig.rows()


@pytest.mark.parametrize("role", ["executor", "answer", "judge"])
@pytest.mark.parametrize(
    "form",
    [
        "<think>\n{draft}\n</think>\n\n{said}",
        "{draft}\n</think>\n\n{said}",
        "[THINK]{draft}[/THINK]{said}",
        "<|channel|>analysis<|message|>{draft}<|end|><|start|>assistant<|channel|>final<|message|>{said}",
        "{said}<|im_end|>",
    ],
)
def test_reasoning_changes_no_row(
    tmp_path: Path, role: str, form: str, plain: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    rig = Rig(tmp_path)
    summary = rig.evaluate(marked(role, form))
    assert rig.rows() == plain[1]
    assert (summary["f1"], summary["judge"], summary["executor"]) == tuple(
        plain[0][name] for name in ("f1", "judge", "executor")
    )


def test_answers_that_end_inside_their_reasoning_have_no_score_and_are_no_failed_calls(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    summary = rig.evaluate(marked("answer", "<think>\n{draft}"))
    assert (summary["f1"], summary["judge"], summary["errors"]) == (None, None, {"unreadable": 6})
    assert all(row["prediction"] == "" and "max_tokens" in row["error"] for row in rig.rows())
    assert rig.roles()["answer"] == 12, "each request was repeated once"
    assert "judge" not in rig.roles()
    again = rig.evaluate()
    assert (again["errors"], again["queries"]) == ({}, 6)
    assert again["f1"] is not None


def test_a_verdict_that_is_cut_or_thought_is_none(tmp_path: Path) -> None:
    def cut(request: Request) -> str:
        if request.role == "judge":
            return CutReply('The form is {"explanation": "...", "score": 0}. The first answer says')
        return rules.reply(request)

    rig = Rig(tmp_path)
    summary = rig.evaluate(cut)
    assert (summary["judge"], summary["errors"]) == (None, {"judge": 6})
    assert summary["f1"] is not None


def test_eval_notes_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    replies = iter(
        [
            CutReply("ACTION: INSERT\nMEMORY: Ana has 2 plum trees.\n\nACTION: INSERT\nMEMORY: Ana has 3 pl"),
            "<think>no end",
            "<think>no end",
        ]
    )

    def reply(request: Request) -> str:
        return next(replies) if request.role == "executor" else rules.reply(request)

    rig = Rig(tmp_path, limits__concurrency=1, eval__judge=False)
    summary = rig.evaluate(reply)
    assert summary["executor"] == {"replies": 2, "unreadable": 1, "cut": 1, "rejected": {"cut": 1}, "protected": {}}
    assert summary["memories"] == 1
    told = " ".join(executor_notes(summary))
    assert "1 of 2 executor replies could not be read" in told
    assert "1 of 2 executor replies were cut by the token limit" in told
    assert "actions rejected: 1 cut" in told
    assert "memory.protect" not in told
    (told,) = executor_notes({"executor": {"protected": {"seen_again": 3, "update_to_insert": 1}}})
    assert told == "actions changed or refused by memory.protect: 3 seen_again, 1 update_to_insert"


def test_the_counts_of_a_memory_that_is_taken_up_again_stay(tmp_path: Path) -> None:
    rig = Rig(tmp_path, eval__judge=False)
    first = rig.evaluate()["executor"]
    assert first["replies"] == 2
    (rig.folder / "results.jsonl").unlink()
    assert rig.evaluate()["executor"] == first


def test_rejected_actions_are_told_by_reason(tmp_path: Path) -> None:
    def reply(request: Request) -> str:
        if request.role != "executor":
            return rules.reply(request)
        return "ACTION: UPDATE\nINDEX: 4\nMEMORY: x\n\nACTION: INSERT\nMEMORY: y\n\nACTION: MERGE\nMEMORY: z"

    summary = Rig(tmp_path, eval__judge=False).evaluate(reply)
    assert summary["executor"]["rejected"] == {"bad_index": 2, "unknown_action": 2}
    assert summary["executor"]["unreadable"] == 0


def test_methods_without_our_executor_have_no_such_counts(tmp_path: Path) -> None:
    assert "executor" not in Rig(tmp_path, eval__judge=False).method("rag")


SAID = (Session("s1", "1 May 2025", (Turn("Ana", "I moved to Porto."),)),)


def one_query(folder: Path, dataset: str, category: str, truth: str, **overrides: Any) -> Rig:
    query = Query("q", "t", category, "Where does Ana live?", (truth,))
    return Rig(folder, traces=[Trace("t", dataset, "test", SAID, (query,))], dataset=dataset, **overrides)


def test_of_an_open_domain_truth_the_judge_sees_what_f1_sees(tmp_path: Path) -> None:
    made = one_query(tmp_path, "locomo", "open-domain", "Porto; since she moved there in May")
    made.method("rag")
    (request,) = (request for request in made.requests if request.role == "judge")
    assert rules.part(request, "truth") == "Porto"


@pytest.mark.parametrize(
    ("reply", "judged"),
    [
        ("<answer>Porto</answer> or <answer>Rome</answer>", "Porto"),
        ("Well.\nAnswer: Porto\nI am sure.", "Porto"),
        ("The answer is Porto.\nIt says so.", "Porto."),
        ("Porto it is", "Porto it is"),
    ],
)
def test_f1_and_the_judge_compare_the_same_extracted_text(tmp_path: Path, reply: str, judged: str) -> None:
    made = one_query(tmp_path, "hotpotqa", "", "Porto")
    made.evaluate(
        lambda request: reply if request.role == "answer" else rules.reply(request),
        EvalSpec("hotpotqa", "test", "rag", "data"),
    )
    (request,) = (request for request in made.requests if request.role == "judge")
    assert rules.part(request, "answer") == judged
    assert (made.rows()[0]["f1"] == 1.0) == (judged.strip(".") == "Porto")


@pytest.mark.parametrize(("prompt", "ruled"), [("category", True), ("general", False)])
def test_a_setting_says_whether_the_judge_goes_by_the_category(tmp_path: Path, prompt: str, ruled: bool) -> None:
    made = one_query(tmp_path, "longmemeval", "knowledge-update", "Porto", eval__judge_prompt=prompt)
    made.method("rag")
    (asked,) = made.prompts("judge")
    assert ("latest state" in asked) is ruled


def test_other_prompts_are_another_evaluation_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memskill_cli.agent import prompts

    rig = Rig(tmp_path, eval__judge=False)
    rig.evaluate()
    before, rows = rig.id, rig.rows()
    assert not [told for told in rig.notices if "prompts" in told]
    template = prompts.template
    monkeypatch.setattr(prompts, "template", lambda name: template(name) + (" Be brief." if name == "answer" else ""))
    rig.evaluate()
    assert rig.id != before
    assert any(before in told and "other prompts" in told for told in rig.notices)
    kept = [json.loads(line) for line in (rig.run.evals / before / "results.jsonl").read_text().splitlines()]
    assert kept == rows, "the rows of the earlier evaluation are not changed"


def test_the_designers_prompts_are_no_part_of_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memskill_cli.agent import prompts

    before = prompts.digest(designer=False), prompts.digest(designer=True)
    template = prompts.template
    monkeypatch.setattr(prompts, "template", lambda name: template(name) + "x" * name.startswith("designer"))
    assert prompts.digest(designer=False) == before[0]
    assert prompts.digest(designer=True) != before[1]


def test_spans_read_together_see_only_what_was_there_before_them(tmp_path: Path) -> None:
    """When four spans are read two at a time, the third is the first that is shown memories."""

    def reply(request: Request) -> str:
        if request.role != "executor":
            return rules.reply(request)
        return f"ACTION: INSERT\nMEMORY: read {rules.part(request, 'span').splitlines()[-1]}"

    shown = {}
    for together in (1, 2):
        sessions = tuple(Session(f"s{i}", "", (Turn("Ana", f"fact {i}"),)) for i in range(4))
        trace = Trace("t", "locomo", "test", sessions, TRACES[0].queries[:1])
        rig = Rig(tmp_path / str(together), traces=[trace], memory__parallel_spans=together, eval__judge=False)
        assert rig.evaluate(reply, TASK)["memories"] == 4
        memories = [rules.part(request, "memories") for request in rig.requests if request.role == "executor"]
        shown[together] = sorted(text.count("read Ana: fact") for text in memories)
    assert shown == {1: [0, 1, 2, 3], 2: [0, 0, 2, 2]}
