"""The summary of an evaluation's rows, against numbers computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from memskill_cli.evaluation.counts import add_counts, executor_counts
from memskill_cli.evaluation.summary import summarise
from memskill_cli.scoring.intervals import bootstrap_ci
from memskill_cli.types import Action, ActionStatus, ExecutorResult, MemoryAction, SkillSelection, Step


def row(f1: float | None, judge: float | None = None, category: str = "temporal", **more: Any) -> dict[str, Any]:
    return {"category": category, "f1": f1, "judge": judge, "error": "", **more}


def summary(*rows: dict[str, Any]) -> dict[str, Any]:
    return summarise(rows, resamples=200, seed=3)


def test_a_row_without_a_score_counts_in_no_mean() -> None:
    found = summary(row(0.5, 1.0), row(None, 0.5), row(1.0, None), row(0.0, 0.0, "multi-hop"))
    assert (found["queries"], found["f1"], found["judge"]) == (4, 0.5, 0.5)
    low, high = found["ci95"]["f1"]
    assert 0.0 <= low < 0.5 < high <= 1.0
    assert list(found["by_category"]) == ["temporal", "multi-hop"], "in the order of the rows"
    by_hand = {"queries": 3, "f1": 0.75, "judge": 0.75}
    assert {name: found["by_category"]["temporal"][name] for name in by_hand} == by_hand
    assert found["by_category"]["multi-hop"] == {
        "queries": 1,
        "f1": 0.0,
        "judge": 0.0,
        "ci95": {"f1": [0.0, 0.0], "judge": [0.0, 0.0]},
    }
    assert not {"abstention", "cut"} & set(found)


def test_intervals_are_those_of_each_group_and_drawn_by_the_seed() -> None:
    values = {"temporal": [0.11, 0.52, 0.93, 0.34, 0.77, 0.05], "multi-hop": [0.21, 0.68, 0.43, 0.99, 0.12, 0.35]}
    rows = [row(value, value / 2, category) for category, some in values.items() for value in some]
    found = summary(*rows, *(row(None, value, "abstention") for value in values["temporal"]))
    everything = [value for some in values.values() for value in some]
    assert found["ci95"]["f1"] == list(bootstrap_ci(everything, resamples=200, seed=3))
    assert found["ci95"]["judge"] == list(bootstrap_ci([v / 2 for v in everything], resamples=200, seed=3))
    for category, some in values.items():
        assert found["by_category"][category]["ci95"]["f1"] == list(bootstrap_ci(some, resamples=200, seed=3))
    expected = bootstrap_ci(values["temporal"], resamples=200, seed=3)
    assert found["abstention"]["ci95"]["judge"] == list(expected)


def test_without_any_score_there_is_neither_mean_nor_interval() -> None:
    found = summary(row(None), row(None))
    assert found == {
        "queries": 2,
        "f1": None,
        "judge": None,
        "ci95": {"f1": None, "judge": None},
        "by_category": {"temporal": found["by_category"]["temporal"]},
        "errors": {},
    }


def test_abstention_has_its_own_numbers_and_is_in_no_other() -> None:
    found = summary(row(1.0, 1.0), row(None, 0.0, "abstention"), row(None, 1.0, "abstention"))
    assert (found["queries"], found["f1"], found["judge"]) == (1, 1.0, 1.0)
    assert set(found["by_category"]) == {"temporal"}
    told = found["abstention"]
    assert (told["queries"], told["f1"], told["judge"], told["ci95"]["f1"]) == (2, None, 0.5, None)
    assert told["ci95"]["judge"] == list(bootstrap_ci([0.0, 1.0], resamples=200, seed=3))


def test_errors_are_counted_by_what_failed() -> None:
    found = summary(
        row(None, error="memory: no reply: 503"),
        row(None, error="memory: a timeout"),
        row(0.5, error="judge: unreadable"),
        row(1.0),
    )
    assert found["errors"] == {"memory": 2, "judge": 1}


def test_what_did_not_fit_is_told_with_the_mean_of_those_that_were_cut() -> None:
    found = summary(row(1.0, cut=0), row(1.0, cut=10), row(0.0, cut=5), row(0.0, cut=5), row(0.5))
    assert found["cut"] == {"queries": 3, "mean_tokens": 6.7}
    assert "cut" not in summary(row(1.0, cut=0))


def step(execution: ExecutorResult) -> Step:
    return Step(np.zeros(2, dtype=np.float32), SkillSelection((0,), 0.0, 0.0), execution, 0.0)


def test_replies_of_the_executor_are_counted_where_one_was_asked_for() -> None:
    done = ExecutorResult((MemoryAction(Action.NOOP),), {ActionStatus.TOO_LONG: 1, ActionStatus.BAD_INDEX: 2})
    steps = [
        step(done),
        step(ExecutorResult((), {ActionStatus.BAD_INDEX: 1}, cut=True)),
        step(ExecutorResult((), {}, protected={ActionStatus.SEEN_AGAIN: 2})),
        step(ExecutorResult((), {}, protected={ActionStatus.SEEN_AGAIN: 1, ActionStatus.UPDATE_TO_INSERT: 1})),
        step(ExecutorResult((), {}, unreadable=True)),
        step(ExecutorResult((), {}, unreadable=True)),
        step(replace(done, asked=False)),
    ]
    counts = executor_counts(steps)
    assert counts == {
        "replies": 6,
        "unreadable": 2,
        "cut": 1,
        "rejected": {"bad_index": 3, "too_long": 1},
        "protected": {"seen_again": 3, "update_to_insert": 1},
    }
    assert list(counts["rejected"]) == ["bad_index", "too_long"], "sorted by the names of the reasons"


def test_counts_are_added_name_by_name_at_any_depth() -> None:
    total = {"replies": 2, "rejected": {"bad_index": 1}}
    more = {"replies": 3, "cut": 1, "rejected": {"bad_index": 1, "too_long": 2}, "other": {"deep": {"deeper": 4}}}
    expected = {
        "replies": 5,
        "cut": 1,
        "rejected": {"bad_index": 2, "too_long": 2},
        "other": {"deep": {"deeper": 4}},
    }
    assert add_counts(total, more) == expected
