"""Costs of language model calls, summed from ``usage.jsonl`` in one pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from memskill_cli.reports.run_files import Row, count, get_str, number


class CallGroup(NamedTuple):
    """The fields by which calls are grouped. ``key`` is a label; "" if no key was used."""

    scope: str
    role: str
    model: str
    key: str


@dataclass
class Bill:
    """Totals over calls. Tokens and cost count only calls that were paid for (not from the cache)."""

    calls: int = 0
    cached: int = 0
    failed: int = 0
    unpriced: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0

    def add(self, other: Bill) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def known_usd(self) -> float | None:
        """US dollars; None if there are calls without a known price and the known cost is 0."""
        return None if self.unpriced and not self.usd else self.usd


Costs = dict[CallGroup, Bill]


def sum_costs(rows: Iterable[Row]) -> Costs:
    """Totals of the rows of ``usage.jsonl`` per :class:`CallGroup`."""
    costs: Costs = defaultdict(Bill)
    for row in rows:
        cached = row.get("cached") is True
        call = CallGroup(
            get_str(row, "scope"), get_str(row, "role"), get_str(row, "model"), "" if cached else get_str(row, "key")
        )
        costs[call].add(_from_row(row, cached))
    return dict(costs)


def _from_row(row: Row, cached: bool) -> Bill:
    usd = number(row, "usd")
    failed = get_str(row, "outcome") not in ("ok", "")
    return Bill(
        calls=1,
        cached=int(cached),
        failed=int(failed),
        unpriced=int(usd is None and not cached and not failed),
        prompt_tokens=count(row, "prompt_tokens"),
        completion_tokens=count(row, "completion_tokens"),
        usd=usd or 0.0,
        seconds=number(row, "seconds") or 0.0,
    )


def grouped_by(costs: Costs, *names: str, scope: str | None = None) -> dict[tuple[str, ...], Bill]:
    """Totals per value of the fields ``names`` of :class:`CallGroup`, sorted; of one ``scope``, or of all if None."""
    groups: dict[tuple[str, ...], Bill] = defaultdict(Bill)
    for call, bill in costs.items():
        if scope is None or call.scope == scope:
            groups[tuple(getattr(call, name) for name in names)].add(bill)
    return dict(sorted(groups.items()))


def total(costs: Costs, scope: str | None = None) -> Bill:
    """The total of one ``scope``, or of all if None."""
    whole = Bill()
    for bill in grouped_by(costs, "scope", scope=scope).values():
        whole.add(bill)
    return whole
