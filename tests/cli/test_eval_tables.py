"""The sentences below the table of differences: they say no more than the intervals do."""

from __future__ import annotations

from typing import Any

from memskill_cli.cli.eval_tables import _conclusions


def entry(method: str, low: float, high: float, score: str = "f1", variant: str = "") -> dict[str, Any]:
    return {"first": "memskill", "method": method, "variant": variant, "score": score, "ci95": [low, high]}


def test_a_method_is_better_or_worse_only_if_its_interval_excludes_zero() -> None:
    given = [
        entry("rag", -0.2, -0.01),
        entry("insert", -0.1, 0.1),
        entry("bare", -0.1, 0.0),
        entry("big", 0.01, 0.3),
        entry("rag", -0.2, 0.3, "judge"),
        entry("x", -0.5, -0.4, variant="50"),
    ]
    assert _conclusions(given) == [
        "F1: rag, x 50 worse than memskill",
        "F1: insert, bare not distinguishable from memskill with these queries",
        "F1: big better than memskill",
        "judge: rag not distinguishable from memskill with these queries",
    ]
