"""The growing number of spans, and the queries that are asked about the beginning of a trace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from memskill_cli.config import TrainConfig, load
from memskill_cli.datasets.spans import split_spans
from memskill_cli.testing.server import MockLLMServer
from memskill_cli.training.curriculum import Curriculum
from memskill_cli.training.episode_sampler import QASampler
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils import files

from . import resume_harness

SESSIONS = tuple(Session(f"s{i}", "", tuple(Turn("Ivo", f"Fact {i} {turn}.") for turn in range(2))) for i in range(4))


def asked(name: str, *evidence: str, scored: bool = True) -> Query:
    return Query(name, "talk", "1", "What?", ("that",), evidence=evidence, scored=scored)


def spans() -> list:
    """Eight spans: span n is turn n % 2 of session n // 2."""
    return split_spans(trace(), "turn")


def trace(*queries: Query) -> Trace:
    return Trace("talk", "locomo", "train", SESSIONS, queries)


def selected(queries: list[Query], *, outer: int = 0, inner: int = 0, epochs: int = 4) -> tuple[int, list[str]]:
    """The number of spans read and the names of the queries asked; an outer epoch has 3 inner epochs."""
    found, rest = Curriculum(TrainConfig(curriculum=epochs, inner_epochs=3)).select(outer, inner, spans(), queries)
    assert list(found) == spans()[: len(found)], "it is the beginning of the trace"
    return len(found), [query.query_id for query in rest]


def test_the_number_of_spans_grows_linearly_from_a_quarter_to_all() -> None:
    """20 spans, 5 inner epochs: 5, then 3 more each."""
    growing = Curriculum(TrainConfig(curriculum=5))
    assert [growing.spans_read(done, 20) for done in range(7)] == [5, 8, 11, 14, 17, 20, 20]


@pytest.mark.parametrize(("total", "first"), [(1, 1), (2, 2), (3, 2), (8, 2), (9, 3), (12, 3), (13, 4)])
def test_at_first_it_is_a_quarter_rounded_up_and_at_least_two(total: int, first: int) -> None:
    assert Curriculum(TrainConfig(curriculum=9)).spans_read(0, total) == first


def test_without_a_curriculum_all_is_read() -> None:
    assert selected([asked("late", "s3:1")], epochs=0) == (8, ["late"])


def test_the_epochs_of_the_run_count() -> None:
    """Of 4 inner epochs the first reads 2 of 8 spans, and each of the others 1.5 more, rounded down."""
    numbers = [(outer, inner) for outer in range(2) for inner in range(3)]
    found = [selected([asked("any")], outer=outer, inner=inner)[0] for outer, inner in numbers]
    assert found == [2, 3, 5, 6, 8, 8]


def test_queries_whose_evidence_was_not_read_are_left_out() -> None:
    """Two spans are read: both turns of the first session."""
    early, late, both = asked("early", "s0:1"), asked("late", "s1:0"), asked("both", "s0:0", "s3:0")
    assert selected([late, early, asked("unnamed"), both]) == (2, ["early", "unnamed"])


def test_a_session_is_read_when_its_last_span_is() -> None:
    """Three spans are read in the second inner epoch: one of the two of session s1."""
    assert selected([asked("whole", "s0"), asked("half", "s1")], inner=1) == (3, ["whole"])


def test_evidence_that_is_nowhere_needs_all_spans() -> None:
    assert selected([asked("early", "s0:0"), asked("nowhere", "s9:0")], inner=2) == (5, ["early"])
    assert selected([asked("nowhere", "s9:0")]) == (8, ["nowhere"])


def test_as_many_spans_more_are_read_as_one_scored_query_needs() -> None:
    queries = [asked("late", "s3:0"), asked("middle", "s2:0"), asked("unscored", "s0:0", scored=False)]
    assert selected(queries) == (5, ["middle", "unscored"])


def test_the_sample_is_drawn_from_the_queries_that_are_left() -> None:
    """Four queries can be answered of eight, and a half of these is asked."""
    queries = [asked(f"early-{i}", "s0:0") for i in range(4)] + [asked(f"late-{i}", "s3:0") for i in range(4)]
    chosen = {"train.curriculum": 5, "train.span_mode": "turn", "train.batch_size": 1, "reward.query_ratio": 0.5}
    sampler = QASampler(load(overrides=chosen), [trace(*queries)])
    first, after = sampler.episode(0, 0, 0), sampler.episode(0, 5, 0)
    assert (len(first.spans), len(after.spans)) == (2, 8)
    assert (len(first.queries), len(after.queries)) == (2, 4)
    assert all(query.query_id.startswith("early") for query in first.queries)
    assert QASampler(load(overrides=chosen), [trace(*queries)]).episode(0, 0, 0) == first, "in any order of episodes"


def long_trace(who: str) -> Trace:
    """Four facts, each in a turn, and a question about the first and the last one."""
    facts = (("job", "baker"), ("pet", "cat"), ("sport", "chess"), ("town", "Leeds"))
    turns = tuple(Turn(who, f"{who}'s {kind} is {value}, as all say.") for kind, value in facts)
    queries = tuple(
        Query(f"{who}-{kind}", who, "1", f"What is the {kind} of {who}?", (value,), evidence=(f"s:{turn}",))
        for turn, (kind, value) in ((0, facts[0]), (3, facts[3]))
    )
    return Trace(who, "locomo", "train", (Session("s", "1 May 2025", turns),), queries)


def test_a_run_with_groups_evidence_and_a_curriculum_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed in the middle of its curriculum, it ends with the same files, to the last bit."""
    monkeypatch.setattr(resume_harness, "TRACES", [long_trace(who) for who in ("Ada", "Bruno", "Chen")])
    chosen = {"train__algorithm": "grpo", "train__group_size": 2, "train__batch_size": 4, "train__curriculum": 3}
    length = {"train__outer_epochs": 1, "train__inner_epochs": 4, "train__evolve": False}
    with MockLLMServer(resume_harness.reply) as server:
        lives = resume_harness.Lives(
            tmp_path, server, reward__credit="evidence", memory__sources=False, **chosen, **length
        )
        lives.live(lives.begin("once"))  # now every reply is in the cache
        run = lives.begin("r")
        lives.live(run)
        whole = resume_harness.outcome(run)
        for number in (3, 4):
            shutil.rmtree(run.checkpoints / f"{number:06d}")
        lives.live(run)
    rows = list(files.read_jsonl(run.metrics))
    assert [row["steps"] for row in rows] == [8, 8, 12, 16], "4 episodes of 2, 2, 3, 4 spans"
    assert any(row["episode_reward_std"] for row in rows[2:]), "there is something to learn from"
    assert resume_harness.outcome(run) == whole
