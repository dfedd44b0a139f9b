"""Who may send now: a bound that learns from 429s, and an order of precedence.

How many may be in flight follows the congestion control of TCP (AIMD; Chiu and Jain 1989, RFC 5681): a 429 that leaves
a role without a key cuts the number to half of what is in flight, and each time a whole windowful of replies has come
since, one more is let out. It begins at the ceiling, since most servers take what they are sent. Calls that left before
a cut belong to the burst it was made for: neither their 429s nor their replies say anything about the new number.

Roles that have the same keys learn together, others apart: a judge whose key is slow does not slow the executor.

What has the longest way to go is sent first. The calls of a trace are a chain, so one executor call that waits behind
five hundred answers delays all that follows it; after an answer comes a judge, after a judge nothing; a designer is
waited for by everything. Nobody starves: chains end, and a trace whose answers wait keeps the next from beginning.
A call takes milliseconds of this process before it leaves. So calls leave one by one, each in a turn of the event loop:
a hundred questions that come at once do not keep a chain's next call waiting for all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from memskill_cli.llm.keys import Purpose

PRECEDENCE: tuple[Purpose, ...] = ("designer", "executor", "embedding", "answer", "judge")
"""Who goes first. Within a role it is who came first."""


@dataclass
class _Lane:
    """The calls that share their keys."""

    limit: int
    in_flight: int = 0
    cuts: int = 0
    replies: int = 0
    """Good ones since the limit changed."""


@dataclass(frozen=True)
class Place:
    """Leave to send one call, for as long as it is held."""

    lane: _Lane
    cuts: int
    """Those made before the call left."""


class Flow:
    """At most ``ceiling`` calls in flight, and fewer where servers refuse them. Lives within one event loop.

    ``lanes`` has the roles that will ask; those with equal values share their keys.
    """

    def __init__(self, ceiling: int, lanes: Mapping[Purpose, Hashable]) -> None:
        shared = {keys: _Lane(ceiling) for keys in lanes.values()}
        self._ceiling = self._free = ceiling
        self._lanes = {role: shared[lanes[role]] for role in sorted(lanes, key=PRECEDENCE.index)}
        self._waiting: dict[Purpose, deque[asyncio.Future[None]]] = {role: deque() for role in self._lanes}
        self._admitting = False

    @asynccontextmanager
    async def place(self, role: Purpose) -> AsyncIterator[Place]:
        """A place for one call, when its turn has come."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting[role].append(turn)
        self._admit()
        lane = self._lanes[role]
        try:
            await turn
            yield Place(lane, lane.cuts)
        finally:
            if not turn.cancelled():  # else it was given up before its turn came
                lane.in_flight -= 1
                self._free += 1
                self._admit()

    def limit(self, role: Purpose) -> int:
        """How many calls with the keys of ``role`` may be in flight now."""
        return self._lanes[role].limit

    def refused(self, place: Place) -> None:
        """The call that still has ``place`` met a 429, and there is no other key for it."""
        lane = place.lane
        if place.cuts == lane.cuts:
            lane.limit = max(1, min(lane.limit, lane.in_flight) // 2)
            lane.cuts, lane.replies = lane.cuts + 1, 0

    def answered(self, place: Place) -> None:
        """The call that still has ``place`` got a good reply."""
        lane = place.lane
        if place.cuts < lane.cuts or lane.limit == self._ceiling:
            return
        lane.replies += 1
        if lane.replies >= lane.limit:
            lane.limit, lane.replies = lane.limit + 1, 0

    def _admit(self) -> None:
        """Give what places there are to those who wait, one in each turn of the event loop."""
        if not self._admitting and self._admit_one():
            self._admitting = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._admitting = False
        self._admit()

    def _admit_one(self) -> bool:
        for role, waiting in self._waiting.items():
            lane = self._lanes[role]
            while waiting and self._free and lane.in_flight < lane.limit:
                turn = waiting.popleft()
                if not turn.cancelled():
                    lane.in_flight += 1
                    self._free -= 1
                    turn.set_result(None)
                    return True
        return False
