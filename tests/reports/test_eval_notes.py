"""The notes on an evaluation, as lines of text."""

from __future__ import annotations

from memskill_cli.reports.eval_notes import evidence_notes


def test_recall_and_the_causes_of_wrong_answers_are_told() -> None:
    summary = {
        "evidence_recall": {"5": 0.25, "10": 0.5, "20": 0.8125},
        "failures": {"not_stored": 1, "lost": 0, "not_retrieved": 3, "not_used": 2, "no_evidence": 4},
    }
    recall, causes = evidence_notes(summary)
    assert recall.endswith("25.0 % @5, 50.0 % @10, 81.2 % @20")
    assert causes.startswith("10 wrong answers")
    assert causes.endswith("1 not stored, 3 not retrieved, 2 not used, 4 no evidence")


def test_data_without_evidence_have_no_notes() -> None:
    assert evidence_notes({"f1": 0.5}) == []
