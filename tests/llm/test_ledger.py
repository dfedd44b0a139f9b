"""The ledger's lines, totals and budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from memskill_cli.errors import BudgetExceededError, RunError
from memskill_cli.files import read_jsonl
from memskill_cli.llm.ledger import Call, Ledger

PAID = Call("answer", "openai/x", "openai#1", "ok", prompt_tokens=10, completion_tokens=2, usd=0.25, seconds=1.5)
FREE = Call("judge", "openai/x", "", "ok", cached=True)


def test_lines_and_totals(tmp_path: Path) -> None:
    file = tmp_path / "usage.jsonl"
    ledger = Ledger(file, scope="train", max_cost=0)
    for call in (PAID, FREE, PAID):
        ledger.record(call)
    usage = ledger.usage()
    assert (usage.calls, usage.cached_calls, usage.prompt_tokens, usage.completion_tokens) == (3, 1, 20, 4)
    assert usage.cost_usd == ledger.spent == 0.5
    assert usage.by_role == {"answer": 2, "judge": 1}
    row = next(read_jsonl(file))
    assert set(row) == {
        "time", "scope", "id", "role", "model", "key", "outcome", "cached", "prompt_tokens", "completion_tokens",
        "cached_prompt_tokens", "usd", "seconds",
    }  # fmt: skip
    assert (row["scope"], row["key"], row["usd"]) == ("train", "openai#1", 0.25)


def test_it_goes_on_where_it_was_left_in_its_own_scope(tmp_path: Path) -> None:
    file = tmp_path / "usage.jsonl"
    Ledger(file, scope="eval", max_cost=0).record(PAID)
    first = Ledger(file, scope="train", max_cost=0)
    first.record(PAID)
    with file.open("a") as torn:
        torn.write('{"scope": "train", "usd": 99, "ro')
    again = Ledger(file, scope="train", max_cost=0)
    assert again.usage() == first.usage()
    again.record(FREE)
    assert Ledger(file, scope="train", max_cost=0).usage().calls == 2


def test_the_budget_counts_what_is_in_flight() -> None:
    ledger = Ledger(None, scope="train", max_cost=1.0)
    ledger.record(PAID)
    with ledger.reserve("answer", 0.0), ledger.reserve("answer", 0.0):  # as dear as the one before: 0.25 each
        with ledger.reserve("judge", 0.2):
            pass
        with ledger.reserve("answer", 0.0), pytest.raises(BudgetExceededError) as caught:
            ledger.reserve("judge", 0.01).__enter__()
    assert caught.value.exit_code == 3
    assert "$1" in str(caught.value)
    with ledger.reserve("answer", 0.7):  # what was reserved is free again
        pass


def test_an_unknown_price_counts_as_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "usage.jsonl", scope="s", max_cost=0)
    ledger.record(Call("answer", "m", "k", "ok", usd=None))
    assert ledger.spent == 0
    assert next(read_jsonl(tmp_path / "usage.jsonl"))["usd"] is None


def test_a_file_that_cannot_be_written() -> None:
    with pytest.raises(RunError, match="cannot be written"):
        Ledger(Path("/dev/null/usage.jsonl"), scope="s", max_cost=0).record(PAID)
