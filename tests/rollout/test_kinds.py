"""The two kinds of queries: how each one divides a trace into spans."""

from __future__ import annotations

import dataclasses

from memskill_cli.config import TrainConfig
from memskill_cli.datasets.spans import split_spans
from memskill_cli.envs.trajectories import pack_trajectories
from memskill_cli.rollout.kinds import kind_of
from memskill_cli.types import Session, Trace, Turn

SESSIONS = tuple(Session(f"{i}", "", (Turn("Ana", "word " * 40),)) for i in range(6))
TRACE = Trace("a", "locomo", "train", SESSIONS, ())
HOW = TrainConfig(span_mode="fixed-length", chunk_size=30, chunk_overlap=10, max_spans=3)


def test_questions_divide_a_trace_by_the_settings_of_spans() -> None:
    found = kind_of("locomo").spans(TRACE, HOW)
    assert found == split_spans(TRACE, "fixed-length", chunk_size=30, chunk_overlap=10, max_spans=3)
    assert len(found) == 3
    for change in ({"chunk_size": 40}, {"chunk_overlap": 0}, {"max_spans": 2}, {"span_mode": "full-session"}):
        assert kind_of("locomo").spans(TRACE, dataclasses.replace(HOW, **change)) != found, change


def test_tasks_put_whole_trajectories_into_spans() -> None:
    how = dataclasses.replace(HOW, chunk_size=100, max_spans=2)
    found = kind_of("alfworld").spans(TRACE, how)
    assert found == pack_trajectories(TRACE, 100, 2)
    assert len(found) == 2
    for change in ({"chunk_size": 200}, {"max_spans": 0}):
        assert kind_of("alfworld").spans(TRACE, dataclasses.replace(how, **change)) != found, change
