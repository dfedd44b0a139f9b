"""Cost of language model calls: one line per call in ``usage.jsonl``, totals, and the budget.

A call gets a bill first and a line second. The cache stores the bill with the reply. So if a process is killed between
the two, the line can be written later (:meth:`Ledger.is_missing`). litellm's budget counts calls that have ended; this
one also reserves the cost of calls in flight.
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
from memskill_cli.utils.files import append_line, check_owned
from memskill_cli.utils.rows import AMOUNT, COUNT, FLAG, TEXT, optional, read_rows

_LINE = {
    **{name: optional(TEXT) for name in ("scope", "id", "role")},
    **{name: optional(COUNT) for name in ("prompt_tokens", "completion_tokens")},
    "cached": optional(FLAG),
    "usd": optional(AMOUNT),
}
"""What is read of a line of ``usage.jsonl``."""
_POLL = 0.05
"""Seconds between two checks of a call that waits for budget."""


@dataclass(frozen=True)
class Call:
    """One call in the ledger. Tokens and cost are 0 if the reply came from the cache."""

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
    """Prompt tokens from the provider's prompt cache (part of ``prompt_tokens``)."""
    usd: float | None = 0.0
    """US dollars; None if the model's price is unknown (counted as 0)."""
    seconds: float = 0.0
    """Wall-clock time, including waits and retries."""
    cut: bool = False
    """Whether the token limit ended the reply."""


Bill = dict[str, Any]
"""A call with its ``time``, ``scope``, ``id`` and the ``owner`` of the ledger: the content of its line."""


class Ledger:
    """All calls of one ``scope`` (a run or an evaluation). ``path`` None: no file. ``max_cost`` 0: no limit.

    New lines are appended to an existing file. Its calls of the same scope count, so a budget covers resumed runs.
    ``owner`` is a unique name of the run in bills; with "" no missing lines are written. RunError if the file cannot
    be written.
    """

    def __init__(self, path: Path | None, *, scope: str, max_cost: float, owner: str = "") -> None:
        self.path = path
        self.owner = owner
        self.max_cost = max_cost
        self._id_prefix, self._numbers = secrets.token_hex(6), itertools.count(1)
        self._lock = threading.Lock()  # embedding calls run in another thread
        self.rescope(scope)

    def rescope(self, scope: str) -> None:
        """Switch to another scope, with its own budget. Not while calls are in flight."""
        self.scope = scope
        self.spent = 0.0
        """US dollars; calls of unknown price count as 0."""
        self._reserved = 0.0
        self._in_flight = 0
        self._sums: Counter[str] = Counter()
        self._roles: Counter[str] = Counter()
        self._max_usd: defaultdict[str, float] = defaultdict(float)  # by role, US dollars
        self._ids: set[str] = set()
        for row in read_rows(self.path, _LINE) if self.path else ():
            if row.get("scope") == scope:
                self._add(row)

    def record(self, call: Call) -> None:
        """Count a call and write its line."""
        self.write(self.bill(call))

    def bill(self, call: Call) -> Bill:
        """Count a call; its bill, not yet written. Do not await between a reply and its bill: a budget check in
        between would count the call neither as in flight nor as paid."""
        name = "" if call.cached else f"{self._id_prefix}{next(self._numbers):x}"
        row = {"time": round(time.time(), 3), "scope": self.scope, "id": name, **asdict(call)}
        self._add(row)
        return row | {"owner": self.owner}

    def is_missing(self, bill: Bill) -> bool:
        """Whether a bill is of this ledger and its line is missing."""
        ours = bool(self.owner) and (bill.get("owner"), bill.get("scope")) == (self.owner, self.scope)
        return ours and bill.get("id") not in self._ids

    def rewrite(self, bill: Bill) -> None:
        """Count a bill whose line is missing, and write the line."""
        self._add(bill)
        self.write(bill)

    def write(self, bill: Bill) -> None:
        """Write the line of a bill."""
        row = {name: value for name, value in bill.items() if name != "owner"}
        if self.path is None:
            return
        check_owned(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, row)
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error.strerror}",
                hint="free disk space, then continue with --resume",
            ) from None

    def usage(self) -> Usage:
        """Totals. ``calls`` and ``by_role`` include cached replies; tokens and cost do not."""
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
        """Reserve budget for one call that costs ``floor`` to ``ceiling`` US dollars, or raise BudgetExceededError.

        A call starts at once if the budget covers its ceiling. Near the limit it waits for the calls in flight. When
        none is left, it reserves the cost of the most expensive call of its role so far, or its floor if that is more.
        So the overshoot is at most what one call costs more than this estimate.
        """
        ceiling = ceiling or self._max_usd[role]  # the price may be known only from replies
        # Polls instead of waiting for an event: embedding calls end in the loop of another thread.
        while self._in_flight and not self._fits(ceiling):  # noqa: ASYNC110
            await asyncio.sleep(_POLL)
        estimate = ceiling if self._fits(ceiling) else max(floor, self._max_usd[role])
        if not self._fits(estimate):
            raise BudgetExceededError(
                f"the budget of ${self.max_cost:g} is used up (${self.spent:.4f} spent on {self.scope})",
                hint="continue with a higher --max-cost; calls already made are not paid for again",
            )
        self._update_reserved(1, estimate)
        try:
            yield
        finally:
            self._update_reserved(-1, -estimate)

    def _fits(self, more: float) -> bool:
        return not self.max_cost or self.spent + self._reserved + more <= self.max_cost

    def _update_reserved(self, calls: int, usd: float) -> None:
        with self._lock:
            self._in_flight += calls
            self._reserved = self._reserved + usd if self._in_flight else 0.0  # no rounding error left

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
            self._max_usd[row.get("role", "")] = max(self._max_usd[row.get("role", "")], usd)
