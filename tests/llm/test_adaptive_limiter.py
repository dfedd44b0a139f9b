"""Who may send now: as the rules say in any order of events, and as servers see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.llm import key_cooldown
from memskill_cli.llm.adaptive_limiter import PRIORITY, AdaptiveLimiter, Slot
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.keys import CallRole
from memskill_cli.testing.server import Fault, MockLLMServer, Request
from memskill_cli.types import Role

from .conftest import Bench, question

LANES: dict[CallRole, str] = {"judge": "slow", "answer": "fast", "executor": "fast", "designer": "fast"}


# --- any order of events ---


@dataclass(eq=False)
class Call:
    """One call, as the rules see it (``place`` and ``cuts``) and as it is (``task``, ``leave`` and ``got``)."""

    role: CallRole
    sent: bool = False
    cuts: int = 0
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    got: Slot | None = None

    def cancel(self) -> None:
        assert self.task
        self.task.cancel()

    async def hold(self, flow: AdaptiveLimiter) -> None:
        async with flow.slot(self.role) as self.got:
            await self.leave.wait()


class Rules:
    """The rules as plainly as they can be written: after each event, look at everyone anew."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.calls: list[Call] = []  # waiting or in flight, by arrival
        self.limit = dict.fromkeys(LANES.values(), ceiling)
        self.cuts = dict.fromkeys(LANES.values(), 0)
        self.replies = dict.fromkeys(LANES.values(), 0)

    def in_flight(self, lane: str) -> int:
        return sum(call.sent and LANES[call.role] == lane for call in self.calls)

    def settle(self) -> None:
        for call in sorted(self.calls, key=lambda call: PRIORITY.index(call.role)):
            lane = LANES[call.role]
            room = self.in_flight(lane) < self.limit[lane] and sum(c.sent for c in self.calls) < self.ceiling
            if room and not call.sent:
                call.sent, call.cuts = True, self.cuts[lane]

    def outcome(self, call: Call, what: str) -> None:
        lane = LANES[call.role]
        if call.cuts != self.cuts[lane]:
            return
        if what == "refused":
            self.limit[lane] = max(1, min(self.limit[lane], self.in_flight(lane)) // 2)
            self.cuts[lane] += 1
            self.replies[lane] = 0
        elif what == "answered" and self.limit[lane] < self.ceiling:
            self.replies[lane] += 1
            if self.replies[lane] == self.limit[lane]:
                self.limit[lane] += 1
                self.replies[lane] = 0


async def rounds(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def settled() -> None:
    await rounds(16)  # a place is given in each turn of the loop


async def follow(ceiling: int, events: Sequence[tuple[str, CallRole, int]]) -> None:
    flow, rules = AdaptiveLimiter(ceiling, LANES), Rules(ceiling)
    for (what, role, which), (what_next, *_) in pairwise([*events, ("end", "judge", 0)]):
        if what == "ask":
            for call in [Call(role) for _ in range(1 + which % 4)]:
                rules.calls.append(call)
                call.task = asyncio.create_task(call.hold(flow))
        elif among := [call for call in rules.calls if call.got or what == "cancel"]:
            call = among[which % len(among)]
            if what in ("refused", "answered"):
                rules.outcome(call, what)
                (flow.on_429 if what == "refused" else flow.on_success)(call.got)
            rules.calls.remove(call)
            call.leave.set() if what != "cancel" else call.cancel()
        rules.settle()
        if what_next == "cancel":  # it may come before a place is handed on, or before whoever got it has noticed
            await rounds(which % 5)
            continue
        await settled()
        assert [bool(call.got) for call in rules.calls] == [call.sent for call in rules.calls]
        assert {lane: flow.limit(role) for role, lane in LANES.items()} == rules.limit
    for call in rules.calls:
        call.cancel()
    await settled()
    fresh = [Call("executor") for _ in range(ceiling + 1)]
    for call in fresh:
        call.task = asyncio.create_task(call.hold(flow))
    await settled()
    assert sum(bool(call.got) for call in fresh) == flow.limit("executor"), "no place was lost, and none made"
    for call in fresh:
        call.cancel()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "ask", "answered", "answered", "answered", "refused", "gone", "cancel"]),
            st.sampled_from(sorted(LANES)),
            st.integers(0, 30),
        ),
        min_size=30,
        max_size=60,
    ),
)
def test_in_any_order_of_events_the_rules_are_kept(ceiling: int, events: list[tuple[str, CallRole, int]]) -> None:
    """Never more in flight than the limit, nobody waiting where there is room, precedence, cuts and growth."""
    asyncio.run(follow(ceiling, events))


def test_a_chain_does_not_wait_for_all_of_a_crowd() -> None:
    """Each call that is let out costs the event loop a while: whoever comes next must not find a hundred let out."""

    async def crowd() -> None:
        flow, answers, executor = AdaptiveLimiter(64, LANES), [Call("answer") for _ in range(40)], Call("executor")
        for call in answers:
            call.task = asyncio.create_task(call.hold(flow))
        await rounds(4)
        executor.task = asyncio.create_task(executor.hold(flow))
        await rounds(4)
        assert executor.got
        assert 0 < sum(bool(call.got) for call in answers) < 10
        await rounds(60)
        assert all(call.got for call in answers), "nobody needs to push for that"
        for call in (*answers, executor):
            call.cancel()

    asyncio.run(crowd())


# --- as servers see it ---

SLOW = 1.0


def one_key(bench: Bench, server: MockLLMServer, work: Callable[[LLMClient], Awaitable[None]], **options: Any) -> None:
    bench.run(server.url, work, **{"keys": ["key-one"], "retries": 0, **options})


async def ask_all(llm: LLMClient, phase: str, count: int, role: Role = "answer") -> None:
    await asyncio.gather(*(llm.ask(role, question(f"{phase} {i}")) for i in range(count)))


def slow(request: Request) -> float:
    return 0.0 if request.text.startswith("quick") else SLOW


def at_once(server: MockLLMServer, phase: str) -> int:
    """How many calls of a phase, each of which takes ``SLOW`` seconds, came before the first can have had its reply."""
    times = [request.time for request in server.requests if request.text.startswith(phase)]
    return sum(time < times[0] + SLOW for time in times)


def test_a_burst_of_429s_halves_what_is_in_flight_and_good_replies_bring_it_back(bench: Bench) -> None:
    async def work(llm: LLMClient) -> None:
        await ask_all(llm, "storm", 8)  # the bound is 4 then, and 5 after the first four replies
        await ask_all(llm, "after", 6)
        await ask_all(llm, "quick", 20)
        await ask_all(llm, "calm", 10)

    faults = lambda request: Fault.rate_limit(1) if request.index < 8 else None  # noqa: E731
    with MockLLMServer(faults=faults, latency=slow) as server:
        one_key(bench, server, work, concurrency=8)
        assert [at_once(server, phase) for phase in ("storm", "after", "calm")] == [8, 5, 8]
        assert server.max_in_flight == 8


def test_a_storm_that_another_key_weathers_cuts_nothing(bench: Bench) -> None:
    async def work(llm: LLMClient) -> None:
        await ask_all(llm, "storm", 8)
        await ask_all(llm, "after", 8)

    faults = lambda request: Fault.rate_limit(600) if request.key == "key-one" else None  # noqa: E731
    with MockLLMServer(faults=faults, latency=slow) as server:
        one_key(bench, server, work, keys=["key-one", "key-two"], concurrency=8)
        assert any(request.key == "key-one" for request in server.requests)
        assert at_once(server, "after") == 8


def test_a_role_with_a_model_of_its_own_slows_no_other(bench: Bench) -> None:
    async def work(llm: LLMClient) -> None:
        await ask_all(llm, "storm", 8, "judge")
        await asyncio.gather(ask_all(llm, "answers", 8), ask_all(llm, "verdicts", 8, "judge"))

    faults = lambda request: Fault.rate_limit(1) if request.index < 8 else None  # noqa: E731
    with MockLLMServer(faults=faults, latency=slow) as server:
        one_key(bench, server, work, concurrency=16, judge="openai/gpt-4o")
        assert (at_once(server, "answers"), at_once(server, "verdicts")) == (8, 5)


def test_what_has_the_longest_way_to_go_is_sent_first(bench: Bench) -> None:
    waiting: list[Role] = ["judge", "answer", "executor", "answer", "designer", "executor", "judge"]

    async def work(llm: LLMClient) -> None:
        first = asyncio.create_task(ask_all(llm, "first", 1))
        while not llm.in_flight:  # noqa: ASYNC110 – nothing tells when a request leaves
            await asyncio.sleep(0.01)
        await asyncio.gather(first, *(ask_all(llm, f"{i} {role}", 1, role) for i, role in enumerate(waiting)))

    with MockLLMServer(latency=lambda request: SLOW if request.text.startswith("first") else 0.0) as server:
        one_key(bench, server, work, concurrency=1)
        order = [request.text for request in server.requests[1:]]
    assert [text[:-2] for text in order] == [
        "4 designer", "2 executor", "5 executor", "1 answer", "3 answer", "0 judge", "6 judge",
    ]  # fmt: skip


def test_standing_in_line_is_neither_an_attempt_that_takes_long_nor_a_key_that_rests(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer waits for 2.5 s, more than an attempt may take, and is then asked to wait for a second."""
    monkeypatch.setattr(key_cooldown, "MAX_WAIT", 2.0)
    limits = iter([Fault.rate_limit(1)])

    async def work(llm: LLMClient) -> None:
        chain = asyncio.create_task(ask_all(llm, "chain", 5, "executor"))
        while not llm.in_flight:  # noqa: ASYNC110 – nothing tells when a request leaves
            await asyncio.sleep(0.01)
        await asyncio.gather(chain, ask_all(llm, "late", 1))

    faults = lambda request: next(limits, None) if request.text.startswith("late") else None  # noqa: E731
    with MockLLMServer(faults=faults, latency=lambda request: 0.5 * request.text.startswith("chain")) as server:
        one_key(bench, server, work, concurrency=1, timeout=2.0)
        assert [request.text[:-2] for request in server.requests] == ["chain"] * 5 + ["late"] * 2
