"""The bill of a report is that of the ledger."""

from __future__ import annotations

import random
from typing import Any

import pytest

from memskill_cli.reports import costs

from ..factories import make_ledger
from .conftest import call, write_jsonl


def many() -> list[dict[str, Any]]:
    draw = random.Random(1)
    rows = []
    for _ in range(300):
        cached = draw.random() < 0.3
        paid = {} if not cached else {"prompt_tokens": 0, "completion_tokens": 0, "usd": 0.0}
        scope, role = draw.choice(["train", "an-evaluation"]), draw.choice(["executor", "answer", "judge"])
        rows.append(call(scope, role, key=draw.choice(["openai#1", "openai#2"]), cached=cached, **paid))
    return rows


def test_totals_are_the_ledgers(tmp_path: Any) -> None:
    rows = many()
    write_jsonl(tmp_path / "usage.jsonl", rows)
    bill = costs.total(costs.sum_costs(rows), "train")
    usage = make_ledger(tmp_path / "usage.jsonl", scope="train").usage()
    assert (bill.calls, bill.cached) == (usage.calls, usage.cached_calls)
    assert (bill.prompt_tokens, bill.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    assert bill.usd == pytest.approx(usage.cost_usd)


def test_groups_add_up_to_the_total() -> None:
    bills = costs.sum_costs(many())
    whole = costs.total(bills)
    for names in (("role",), ("role", "model"), ("key",), ("scope",)):
        groups = costs.grouped_by(bills, *names)
        assert sum(bill.calls for bill in groups.values()) == whole.calls == 300
        assert sum(bill.usd for bill in groups.values()) == pytest.approx(whole.usd)
    by_key = costs.grouped_by(bills, "key")
    assert by_key["",].cached == by_key["",].calls == whole.cached, "what came from the cache used no key"


def test_an_unknown_price_is_no_price_of_nothing() -> None:
    bills = costs.sum_costs([call(usd=None), call(usd=None, outcome="error:Timeout"), call(usd=0.0, cached=True)])
    bill = costs.total(bills)
    assert (bill.unpriced, bill.failed, bill.known_usd) == (1, 1, None)
    assert costs.total(costs.sum_costs([call(usd=0.0)])).known_usd == 0.0


def test_lines_that_make_no_sense_count_as_calls_of_nothing() -> None:
    bill = costs.total(costs.sum_costs([{}, {"usd": "much", "prompt_tokens": -3, "role": 7}]))
    assert (bill.calls, bill.usd, bill.tokens) == (2, 0.0, 0)
