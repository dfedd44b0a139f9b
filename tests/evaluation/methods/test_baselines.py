"""No memory, the full history, raw spans: the prompts, what is cut from them, and how that is reported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.errors import UsageError
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils.tokens import count_tokens

from ..harness import Rig

TREES = [
    *("alder", "birch", "cedar", "dogwood", "elder", "fir", "gorse", "hazel", "ivy", "juniper"),
    *("kapok", "larch", "maple", "nutmeg", "olive", "pine", "quince", "rowan", "sycamore", "teak"),
]
SESSIONS = len(TREES)


def trace(name: str, words: int = 10) -> Trace:
    said = tuple(
        Session(
            f"session_{i}",
            f"{i + 1} May 2025",
            (Turn(name, f"Behind the {TREES[i]} I grow plums."), Turn("Zoe", " ".join(["well"] * words) + f" {i}.")),
        )
        for i in range(SESSIONS)
    )
    queries = tuple(
        Query(f"{name}-{i}", name, "single-hop", f"What grows behind the {TREES[i]}?", ("plums",)) for i in range(3)
    )
    return Trace(name, "locomo", "test", said, queries)


def rig(folder: Path, words: int = 10, **overrides: Any) -> Rig:
    return Rig(folder, traces=[trace("Ana", words), trace("Ben", words)], eval__judge=False, **overrides)


def memories(prompt: str) -> str:
    return prompt.split("<memories>\n")[1].split("\n</memories>")[0]


def tokens(rig: Rig) -> int:
    """The number of tokens of the longest prompt with its answer."""
    return max(count_tokens(prompt) for prompt in rig.prompts("answer")) + rig.settings.models.answer_max_tokens


def test_without_memory_only_questions_are_asked(tmp_path: Path) -> None:
    made = rig(tmp_path)
    summary = made.method("no-memory")
    assert made.roles() == {"answer": 6}
    assert all(memories(prompt) == "(none)" for prompt in made.prompts("answer"))
    assert (summary["memories"], summary["checkpoint"], summary["queries"]) == (0, "none", 6)
    assert all(row["retrieved"] == [] and "cut" not in row for row in made.rows())
    assert not (made.run.memory / made.id).exists()


def test_full_context_shows_every_line_under_its_date_in_order(tmp_path: Path) -> None:
    made = rig(tmp_path, eval__context_tokens=100_000)
    summary = made.method("full-context")
    assert made.roles() == {"answer": 6}
    lines = [
        line
        for i in range(SESSIONS)
        for line in (
            f"[{i}] [{i + 1} May 2025]",
            f"Ana: Behind the {TREES[i]} I grow plums.",
            f"Zoe: {'well ' * 10}{i}.",
        )
    ]
    shown = [memories(prompt).splitlines() for prompt in made.prompts("answer")]
    assert lines in shown
    assert "cut" not in summary
    assert (summary["memories"], summary["checkpoint"]) == (2 * SESSIONS, "none")
    row = made.rows()[0]
    assert row["cut"] == 0
    assert [one["id"] for one in row["retrieved"]] == [f"session_{i}" for i in range(SESSIONS)]
    assert all("plums" not in one["text"] and "tokens" in one["text"] for one in row["retrieved"]), (
        "rows without history"
    )


@pytest.mark.parametrize("window", [700, 1000, 1500])
def test_full_context_keeps_the_newest_that_fits_and_says_what_was_cut(tmp_path: Path, window: int) -> None:
    made = rig(tmp_path, words=60, eval__context_tokens=window)
    summary = made.method("full-context")
    assert 0.6 * window < tokens(made) <= window
    history = "\n".join(made.traces[0].sessions[i].turns[1].text for i in range(SESSIONS))
    for prompt in made.prompts("answer"):
        kept = [i for i in range(SESSIONS) if f" {i}." in memories(prompt)]
        assert kept == list(range(kept[0], SESSIONS)), "the newest sessions, without a gap"
        assert memories(prompt).splitlines()[0] == f"[0] [{kept[0] + 1} May 2025]", "a cut session keeps its date"
    rows = made.rows()
    assert all(0 < row["cut"] < 2 * count_tokens(history) for row in rows)
    assert summary["cut"] == {"queries": 6, "mean_tokens": pytest.approx(sum(row["cut"] for row in rows) / 6, abs=0.1)}


def test_full_context_refuses_a_window_that_nobody_knows_before_asking(tmp_path: Path) -> None:
    made = rig(tmp_path)
    with pytest.raises(UsageError, match="how many tokens") as failure:
        made.method("full-context")
    assert "eval.context_tokens" in failure.value.hint
    assert made.requests == []


def test_rag_shows_the_nearest_spans_as_they_are(tmp_path: Path) -> None:
    made = rig(tmp_path, memory__num_memories=2)
    summary = made.method("rag")
    assert made.roles() == {"answer": 6}
    assert summary["memories"] == 2 * SESSIONS
    for row in made.rows():
        nearest, other = row["retrieved"]
        number = row["query_id"][-1]
        assert f"Behind the {TREES[int(number)]} I grow plums." in nearest["text"]
        assert nearest["text"].startswith(f"[{int(number) + 1} May 2025]\n{row['trace_id']}: ")
        assert nearest["score"] >= other["score"]
        assert any(nearest["text"] in prompt for prompt in made.prompts("answer")), "with its line breaks"


def test_rag_leaves_out_the_farthest_that_do_not_fit(tmp_path: Path) -> None:
    free, tight = rig(tmp_path / "1", words=60), rig(tmp_path / "2", words=60, eval__context_tokens=700)
    free.method("rag")
    summary = tight.method("rag")
    assert tokens(tight) <= 700 < tokens(free)
    for whole, part in zip(free.rows(), tight.rows(), strict=True):
        kept = len(part["retrieved"])
        assert 0 < kept < len(whole["retrieved"])
        assert part["retrieved"] == whole["retrieved"][:kept]
        assert whole["cut"] == 0 < part["cut"]
    assert summary["cut"]["queries"] == 6


@pytest.mark.parametrize("name", ["no-memory", "full-context", "rag"])
def test_a_second_try_asks_only_what_is_owed(tmp_path: Path, name: str) -> None:
    made = rig(tmp_path, eval__context_tokens=700)
    first = made.method(name)
    lines = (made.folder / "results.jsonl").read_text().splitlines(keepends=True)
    (made.folder / "results.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])
    second = made.method(name)
    assert made.roles() == {"answer": 1}
    same = ("f1", "queries", "by_category", "errors", "memories", *(("cut",) if "cut" in first else ()))
    assert {key: second[key] for key in same} == {key: first[key] for key in same}


def test_documents_without_dates_are_one_item_cut_from_the_first(tmp_path: Path) -> None:
    documents = tuple(Turn("", f"Document {i}:\nTitle {i}\n{'word ' * 40}") for i in range(1, 21))
    query = Query("q", "t", "all", "Which title?", ("Title 20",))
    set_ = Trace("t", "hotpotqa", "test-20", (Session("documents", "", documents),), (query,))
    made = Rig(tmp_path, traces=[set_], eval__judge=False, eval__context_tokens=1200, dataset="hotpotqa")
    made.settings = dataclasses.replace(
        made.settings, models=dataclasses.replace(made.settings.models, answer_max_tokens=32)
    )
    made.method("full-context", split="test-20")
    (prompt,) = made.prompts("answer")
    assert "Title 20\n" in memories(prompt)
    assert "Title 1\n" not in memories(prompt)
    assert tokens(made) <= 1200
