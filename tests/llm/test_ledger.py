"""The ledger's lines, totals and budget."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from memskill_cli.errors import BudgetExceededError, RunError
from memskill_cli.llm.ledger import Call, Ledger
from memskill_cli.utils.files import read_jsonl

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
        "cached_prompt_tokens", "usd", "seconds", "cut",
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


def test_near_the_limit_of_the_budget_calls_go_one_after_another() -> None:
    ledger, begun = Ledger(None, scope="train", max_cost=10), []

    async def call(name: str, usd: float) -> None:
        async with ledger.reserve("answer", 0, ceiling=3):
            begun.append(name)
            await asyncio.sleep(0)
        ledger.record(replace(PAID, usd=usd))

    async def near_the_limit() -> None:
        async with ledger.reserve("judge", 0, ceiling=3):
            waiting = [asyncio.create_task(call(name, 2)) for name in "abcd"]
            await asyncio.sleep(0)
            assert begun == ["a", "b"], "9 are reserved"
            await asyncio.sleep(0.2)
            assert begun == ["a", "b", "c"], "6 are spent and 3 reserved"
        await asyncio.gather(*waiting)
        assert ledger.spent == 8
        await call("e", 3)  # no room for its ceiling, but for as much as the dearest before it
        with pytest.raises(BudgetExceededError) as caught:
            await call("f", 2)
        assert caught.value.exit_code == 3
        assert "$10 is used up ($11" in str(caught.value)

    asyncio.run(near_the_limit())
    assert begun == list("abcde")


def test_a_call_counts_as_soon_as_its_bill_is_made(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "usage.jsonl", scope="s", max_cost=1.0, owner="me")
    bill = ledger.bill(PAID)
    assert ledger.spent == PAID.usd
    assert not ledger.is_missing(bill)
    ledger.write(bill)
    assert ledger.spent == PAID.usd
    again = Ledger(tmp_path / "usage.jsonl", scope="s", max_cost=1.0, owner="me")
    assert again.spent == PAID.usd
    assert Ledger(None, scope="s", max_cost=1.0, owner="me").is_missing(bill)


def test_an_unknown_price_counts_as_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "usage.jsonl", scope="s", max_cost=0)
    ledger.record(Call("answer", "m", "k", "ok", usd=None))
    assert ledger.spent == 0
    assert next(read_jsonl(tmp_path / "usage.jsonl"))["usd"] is None


def test_a_file_that_cannot_be_written() -> None:
    with pytest.raises(RunError, match="cannot be written"):
        Ledger(Path("/dev/null/usage.jsonl"), scope="s", max_cost=0).record(PAID)
