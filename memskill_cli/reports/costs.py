"""What language model calls cost, added up from ``usage.jsonl`` in one pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from memskill_cli.reports.run_files import Row, count, number, words


class Call(NamedTuple):
    """What calls are added up by. ``key`` is a label; "" where no key was used."""

    scope: str
    role: str
    model: str
    key: str


@dataclass
class Bill:
    """Totals over calls; tokens and money are of those that were paid for."""

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
        """US dollars; None if nothing that was paid for had a known price."""
        return None if self.unpriced and not self.usd else self.usd


Costs = dict[Call, Bill]


def added_up(rows: Iterable[Row]) -> Costs:
    costs: Costs = defaultdict(Bill)
    for row in rows:
        cached = row.get("cached") is True
        call = Call(words(row, "scope"), words(row, "role"), words(row, "model"), "" if cached else words(row, "key"))
        costs[call].add(_one(row, cached))
    return dict(costs)


def _one(row: Row, cached: bool) -> Bill:
    usd = number(row, "usd")
    failed = words(row, "outcome") not in ("ok", "")
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
    """Bills by some fields of :class:`Call`, in order of their names; of one ``scope`` or of all."""
    groups: dict[tuple[str, ...], Bill] = defaultdict(Bill)
    for call, bill in costs.items():
        if scope is None or call.scope == scope:
            groups[tuple(getattr(call, name) for name in names)].add(bill)
    return dict(sorted(groups.items()))


def total(costs: Costs, scope: str | None = None) -> Bill:
    whole = Bill()
    for bill in grouped_by(costs, "scope", scope=scope).values():
        whole.add(bill)
    return whole
