"""What language model calls cost: one line a call in ``usage.jsonl``, totals, and the budget.

A call has a bill before it has a line. Where replies are cached the bill is stored with the reply, so that a process
killed between the two leaves a reply whose line can be written late (:meth:`Ledger.lost`).
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memskill_cli.errors import BudgetExceededError, RunError
from memskill_cli.types import Usage
from memskill_cli.utils.files import append_line, read_jsonl

_LOOK = 0.05
"""Seconds after which a call that waits for room in the budget looks again."""


@dataclass(frozen=True)
class Call:
    """One call as it stands in the ledger. Tokens and money are those of this call: 0 if the reply was cached."""

    role: str
    model: str
    key: str
    """The key's label, never the key."""
    outcome: str
    """``ok``, ``unreadable`` or ``error:<class>``."""
    cached: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    """Prompt tokens that the provider had in its own cache (part of ``prompt_tokens``)."""
    usd: float | None = 0.0
    """US dollars; None if nobody knows the model's price (counted as 0)."""
    seconds: float = 0.0
    """Wall time, with all waiting and every retry."""
    cut: bool = False
    """Whether the token limit ended the reply."""


Bill = dict[str, Any]
"""A call with its ``time``, ``scope``, ``id`` and the ``owner`` of the ledger: a line to be."""


class Ledger:
    """Every call of one ``scope`` (a run, or one evaluation). ``path`` None keeps no file; ``max_cost`` 0 is no limit.

    A file that is there already is gone on with, and the calls of the same scope in it count: a budget holds across
    resumed runs. ``owner`` names the run in bills, in a way no other run is named; "" takes no bill for a lost one.
    RunError if the file cannot be written.
    """

    def __init__(self, path: Path | None, *, scope: str, max_cost: float, owner: str = "") -> None:
        self.path = path
        self.owner = owner
        self.max_cost = max_cost
        self._name, self._numbers = secrets.token_hex(6), itertools.count(1)
        self._lock = threading.Lock()  # encoders that are called live in a thread of their own
        self.rescope(scope)

    def rescope(self, scope: str) -> None:
        """Count for another scope from now on, which has a budget of its own; not while calls are on their way."""
        self.scope = scope
        self.spent = 0.0
        """US dollars, as far as prices are known."""
        self._reserved = 0.0
        self._flying = 0
        self._sums: Counter[str] = Counter()
        self._roles: Counter[str] = Counter()
        self._dearest: defaultdict[str, float] = defaultdict(float)  # by role, US dollars of one call
        self._ids: set[str] = set()
        for row in read_jsonl(self.path) if self.path else ():
            if row.get("scope") == scope:
                self._add(row)

    def record(self, call: Call) -> None:
        """Count a call and write its line."""
        self.write(self.bill(call))

    def bill(self, call: Call) -> Bill:
        """Count a call; its line, not yet written. Nothing is awaited between a reply and its bill: a budget that
        looked meanwhile would see the call neither in flight nor paid for."""
        name = "" if call.cached else f"{self._name}{next(self._numbers):x}"
        row = {"time": round(time.time(), 3), "scope": self.scope, "id": name, **asdict(call)}
        self._add(row)
        return row | {"owner": self.owner}

    def lost(self, bill: Bill) -> bool:
        """Whether a call was paid for in this ledger, and its line is missing."""
        ours = bool(self.owner) and (bill.get("owner"), bill.get("scope")) == (self.owner, self.scope)
        return ours and bill.get("id") not in self._ids

    def restore(self, bill: Bill) -> None:
        """Count a lost bill and write its line."""
        self._add(bill)
        self.write(bill)

    def write(self, bill: Bill) -> None:
        """Write the line of a bill."""
        row = {name: value for name, value in bill.items() if name != "owner"}
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, row)
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error.strerror}",
                hint="make room on the disk, then go on with --resume",
            ) from None

    def usage(self) -> Usage:
        """Totals; ``calls`` and ``by_role`` count replies from the cache too, tokens and money only what was paid."""
        sums = self._sums
        return Usage(
            calls=sums["calls"],
            cached_calls=sums["cached"],
            prompt_tokens=sums["prompt_tokens"],
            completion_tokens=sums["completion_tokens"],
            cost_usd=self.spent,
            by_role=dict(self._roles),
        )

    @asynccontextmanager
    async def reserve(self, role: str, floor: float, ceiling: float) -> AsyncIterator[None]:
        """Room in the budget for one call that costs ``floor`` to ``ceiling`` US dollars, or BudgetExceededError.

        Calls are made at once while the budget would bear the ceiling of each. Near the limit a call waits for those
        in flight; alone, it is taken to cost what the dearest call of its role did, or its floor if that is more. So
        the limit is passed by no more than one call can outdo its estimate.
        """
        # Looks instead of waiting for an event: encoders' calls end in another thread's loop.
        while self._flying and not self._bears(ceiling):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)
        room = ceiling if self._bears(ceiling) else max(floor, self._dearest[role])
        if not self._bears(room):
            raise BudgetExceededError(
                f"the budget of ${self.max_cost:g} is used up (${self.spent:.4f} spent on {self.scope})",
                hint="go on with a higher --max-cost; nothing is paid for twice",
            )
        self._hold(1, room)
        try:
            yield
        finally:
            self._hold(-1, -room)

    def _bears(self, more: float) -> bool:
        return not self.max_cost or self.spent + self._reserved + more <= self.max_cost

    def _hold(self, calls: int, usd: float) -> None:
        with self._lock:
            self._flying += calls
            self._reserved = self._reserved + usd if self._flying else 0.0  # no rest of rounding

    def _add(self, row: dict[str, Any]) -> None:
        with self._lock:
            if name := row.get("id"):
                self._ids.add(name)
            self._sums["calls"] += 1
            self._sums["cached"] += bool(row.get("cached"))
            self._roles[row.get("role", "")] += 1
            for name in ("prompt_tokens", "completion_tokens"):
                self._sums[name] += row.get(name) or 0
            usd = row.get("usd") or 0.0
            self.spent += usd
            self._dearest[row.get("role", "")] = max(self._dearest[row.get("role", "")], usd)
