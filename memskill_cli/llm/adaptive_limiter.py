"""Adaptive concurrency limit (AIMD) and call priorities, which neither asyncio.Semaphore nor aiolimiter has.

The limit on calls in flight follows TCP congestion control (AIMD; Chiu and Jain 1989, RFC 5681). A 429 that leaves a
role without a usable key sets the limit to half of the calls in flight. After each full window of good replies the
limit grows by one. It starts at the ceiling, because most servers accept the full load. Calls sent before a reduction
belong to the burst that caused it: neither their 429s nor their replies change the new limit.

Roles with the same keys share one limit. Other roles have their own: a slow judge key does not slow the executor.

Calls with the longest chain of dependent calls go first. The calls of a trace depend on each other, so one executor
call behind five hundred answer calls would delay everything after it. A judge call follows an answer call, nothing
follows a judge call, and everything waits for a designer call. No role starves: chains end, and the next trace does not
start while answers of a trace wait.

A call takes milliseconds of CPU time in this process before it is sent. So the limiter admits one call per iteration of
the event loop: a hundred questions that arrive together do not delay the next executor call by a hundred calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from memskill_cli.llm.keys import CallRole

PRIORITY: tuple[CallRole, ...] = ("designer", "executor", "embedding", "answer", "judge")
"""Order of roles, highest priority first. Within a role: first in, first out."""


@dataclass
class _KeyGroup:
    """State of the roles that share the same keys."""

    limit: int
    in_flight: int = 0
    cuts: int = 0
    """How often the limit was reduced."""
    replies: int = 0
    """Good replies since the limit changed."""


@dataclass(frozen=True)
class Slot:
    """Permission to send one call. Valid inside :meth:`AdaptiveLimiter.slot`."""

    group: _KeyGroup
    cuts: int
    """Value of the group's ``cuts`` when the call was admitted."""


class AdaptiveLimiter:
    """At most ``ceiling`` calls in flight, fewer after 429s. Bound to one event loop.

    ``keys_of`` maps each role that will make calls to its keys. Roles with equal values share a limit.
    """

    def __init__(self, ceiling: int, keys_of: Mapping[CallRole, Hashable]) -> None:
        shared = {keys: _KeyGroup(ceiling) for keys in keys_of.values()}
        self._ceiling = self._free = ceiling
        self._groups = {role: shared[keys_of[role]] for role in sorted(keys_of, key=PRIORITY.index)}
        self._waiting: dict[CallRole, deque[asyncio.Future[None]]] = {role: deque() for role in self._groups}
        self._admitting = False

    @asynccontextmanager
    async def slot(self, role: CallRole) -> AsyncIterator[Slot]:
        """Wait until a call of ``role`` is admitted; hold the slot until the context ends."""
        admitted = asyncio.get_running_loop().create_future()
        self._waiting[role].append(admitted)
        self._admit()
        group = self._groups[role]
        try:
            await admitted
            yield Slot(group, group.cuts)
        finally:
            if not admitted.cancelled():  # else the call was cancelled before it was admitted
                group.in_flight -= 1
                self._free += 1
                self._admit()

    def limit(self, role: CallRole) -> int:
        """Current limit on calls in flight for the keys of ``role``."""
        return self._groups[role].limit

    def on_429(self, slot: Slot) -> None:
        """Report a 429 of the call that holds ``slot``, when no other key is left for it."""
        group = slot.group
        if slot.cuts == group.cuts:
            group.limit = max(1, min(group.limit, group.in_flight) // 2)
            group.cuts, group.replies = group.cuts + 1, 0

    def on_success(self, slot: Slot) -> None:
        """Report a good reply to the call that holds ``slot``."""
        group = slot.group
        if slot.cuts < group.cuts or group.limit == self._ceiling:
            return
        group.replies += 1
        if group.replies >= group.limit:
            group.limit, group.replies = group.limit + 1, 0

    def _admit(self) -> None:
        """Admit waiting calls while there is room, one per iteration of the event loop."""
        if not self._admitting and self._admit_one():
            self._admitting = True
            asyncio.get_running_loop().call_soon(self._admit_next)

    def _admit_next(self) -> None:
        self._admitting = False
        self._admit()

    def _admit_one(self) -> bool:
        for role, waiting in self._waiting.items():
            group = self._groups[role]
            while waiting and self._free and group.in_flight < group.limit:
                admitted = waiting.popleft()
                if not admitted.cancelled():
                    group.in_flight += 1
                    self._free -= 1
                    admitted.set_result(None)
                    return True
        return False
