"""Servers that misbehave in every way we could think of: the right outcome, in time, and no request too many."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.errors import ModelError
from memskill_cli.llm import router as router_module
from memskill_cli.llm import transport
from memskill_cli.llm.client import MAX_REPLY, LLMClient
from memskill_cli.llm.embeddings import embed_texts
from memskill_cli.llm.key_cooldown import retry_after
from memskill_cli.llm.router import RetryingRouter
from memskill_cli.testing.server import Fault, MockLLMServer, Request
from memskill_cli.utils.files import read_jsonl

from ..factories import key_ring, make_ledger
from .conftest import Bench, question

JSON = {"Content-Type": "application/json"}
GOOD = {"role": "assistant", "content": "fine"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def in_200(body: Any) -> Fault:
    return Fault(200, json.dumps(body), JSON)


def completion(message: Any, usage: Any = USAGE, **more: Any) -> Fault:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return in_200({**head, "choices": [choice], "usage": usage, **more})


BROKEN: dict[str, Fault] = {
    **{str(status): Fault.server_error(status) for status in (408, 409, 500, 502, 503, 504, 529)},
    "503 with Retry-After": Fault.error(503, "busy", headers={"Retry-After": "1"}),
    "500 with an absurd Retry-After": Fault.error(500, "busy", headers={"Retry-After": "1e300"}),
    "cut": Fault.cut(),
    "refuse": Fault.refuse(),
    "no body": Fault.empty(),
    "flood": Fault.flood(),
    "a bomb": Fault(200, gzip.compress(b" " * 2**22), {**JSON, "Content-Encoding": "gzip"}),
    "redirect": Fault.redirect("/v1/chat/completions"),
    "redirect of another kind": Fault.redirect("/v1/chat/completions", 302),
    "html": Fault(200, "<html><body>Sign in to the wifi</body></html>", {"Content-Type": "text/html"}),
    "half of JSON": Fault(200, b'{"id": "1", "choices": [{"index": 0, "mess', JSON),
    "deep": Fault(200, b"[" * 100_000, JSON),
    "not UTF-8": Fault(200, b'\xff\xfe{"', JSON),
    "array": in_200([]),
    "number": in_200(7),
    "null": in_200(None),
    "object": in_200({}),
    "error in 200": Fault.error_in_200(),
    "error in 200 without a code": in_200({"error": {"message": "overloaded"}}),
    "error in 200 as a text": in_200({"error": "overloaded"}),
    "error in 200 with a code": in_200({"error": {"message": "overloaded", "code": 503}}),
    "choices null": completion(GOOD, choices=None),
    "choices text": completion(GOOD, choices="fine"),
    "choice null": completion(GOOD, choices=[None]),
    "choice empty": completion(GOOD, choices=[{}]),
    "message null": completion(None),
    "message text": completion("fine"),
    "content null": completion({**GOOD, "content": None}),
    "content blank": completion({**GOOD, "content": " "}),
    "content number": completion({**GOOD, "content": 7}),
    "content parts without text": completion({**GOOD, "content": [{"type": "image_url"}]}),
    "usage of texts": completion(GOOD, {"prompt_tokens": "many", "completion_tokens": "few"}),
}


@pytest.fixture(autouse=True)
def small_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BYTES", 2**20)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetryingRouter, "_time_to_sleep_before_retry", lambda *_, **__: 0.0)


# --- one retry loop ---


@pytest.mark.parametrize(
    ("model", "keys"),
    [("openai/gpt-4o-mini", 1), ("openai/gpt-4o-mini", 2), ("deepseek/deepseek-chat", 1)],
    ids=["OpenAI's client", "and two keys", "litellm's client"],
)
@pytest.mark.usefixtures("no_pauses")
def test_a_completion_that_fails_is_asked_for_as_often_as_set_and_no_more(bench: Bench, model: str, keys: int) -> None:
    names = [f"key-number-{i}" for i in range(keys)]
    with MockLLMServer(faults=lambda request: BROKEN[request.text]) as server:
        errors = bench.ask(server.url, *BROKEN, keys=names, model=model, retries=2, timeout=60, concurrency=8)
        asked = Counter(request.text for request in server.requests)
    assert asked == dict.fromkeys(BROKEN, 3)
    for name, error in zip(BROKEN, errors, strict=True):
        assert type(error) is ModelError, name
        assert error.hint
        assert not any(word in str(error) for word in ("Traceback", "LiteLLM", "\n")), name
    assert len(bench.notices) <= 1, "only that a price is not known"


VECTOR = {"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}


def vectors(*rows: Any) -> Fault:
    return in_200({"object": "list", "data": list(rows), "model": "m", "usage": USAGE})


NO_VECTORS = {
    **{name: BROKEN[name] for name in ("500", "529", "408", "cut", "refuse", "flood", "redirect", "html", "array")},
    "none": vectors(),
    "one too many": vectors(VECTOR, {**VECTOR, "index": 1}),
    "in another place": vectors({**VECTOR, "index": 7}),
    "null": vectors({**VECTOR, "embedding": None}),
    "words": vectors({**VECTOR, "embedding": ["a", "b"]}),
    "empty": vectors({**VECTOR, "embedding": []}),
    "data null": in_200({"object": "list", "data": None, "model": "m", "usage": USAGE}),
}


@pytest.mark.parametrize("model", ["openai/text-embedding-3-small", "mistral/mistral-embed"])
@pytest.mark.usefixtures("no_pauses")
def test_vectors_that_fail_are_asked_for_as_often_as_set_and_no_more(model: str) -> None:
    ring, ledger = key_ring(["key-number-one"]), make_ledger()
    with MockLLMServer(faults=lambda request: NO_VECTORS[request.body["input"][0]]) as server:
        for name in NO_VECTORS:
            with pytest.raises(ModelError, match="role embedding"):
                embed_texts(model, [name], keys=ring, api_base=server.url, ledger=ledger, notice=lambda _: None)
        asked = Counter(request.body["input"][0] for request in server.requests)
    assert asked == dict.fromkeys(NO_VECTORS, 5), "once and models.retries = 4 times again"


@pytest.mark.usefixtures("no_pauses")
def test_what_passes_is_over_when_it_has_passed(bench: Bench) -> None:
    """Every fault once or twice, then a good reply: the caller is not told."""
    seen: Counter[str] = Counter()

    def faults(request: Request) -> Fault | None:
        seen[request.text] += 1
        return BROKEN[request.text] if seen[request.text] <= 2 else None

    with MockLLMServer(lambda request: f"hello to {request.text}", faults=faults) as server:
        replies = bench.ask(server.url, *BROKEN, keys=["key-number-one"], retries=2, timeout=60)
    assert [reply.text for reply in replies] == [f"hello to {name}" for name in BROKEN]


# --- replies that are too much ---


def test_a_flood_is_stopped_at_the_bound(bench: Bench) -> None:
    with MockLLMServer({"answer": Fault.flood()}) as server:
        (error,) = bench.ask(server.url, retries=0, timeout=60)
    assert "the reply is larger than 1 MiB" in str(error)


def test_a_bomb_is_not_unpacked(bench: Bench) -> None:
    with MockLLMServer({"answer": BROKEN["a bomb"]}) as server:
        (error,) = bench.ask(server.url, retries=0)
        assert server.requests
    assert "the reply is larger than 1 MiB" in str(error)


def test_a_long_text_is_cut(bench: Bench) -> None:
    with MockLLMServer({"answer": "x" * (MAX_REPLY + 1000)}) as server:
        (reply,) = bench.ask(server.url, cache=True)
    assert reply.text == "x" * MAX_REPLY


def test_a_bill_is_neither_negative_nor_astronomical_because_the_server_says_so(bench: Bench) -> None:
    usages = {"less": -5, "more": 10**30, "less of a number": -1e300}
    replies = lambda request: completion(GOOD, dict.fromkeys(USAGE, usages[request.text]))  # noqa: E731
    with MockLLMServer(replies) as server:
        bench.ask(server.url, "less", "more", retries=0)
    rows = list(read_jsonl(bench.ledger_file))
    assert len(rows) == 2
    assert all(0 <= row["prompt_tokens"] <= 10**9 and 0 <= row["usd"] < 1e3 for row in rows)


def test_half_a_character_is_replaced(bench: Bench) -> None:
    body = b'{"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0, "message":'
    body += b' {"role": "assistant", "content": "\\ud83d bad"}, "finish_reason": "stop"}]}'
    with MockLLMServer({"answer": Fault(200, body, JSON)}) as server:
        for cached in (False, True):
            (reply,) = bench.ask(server.url, cache=True)
            assert (reply.text, reply.cached) == ("? bad", cached)


def test_a_redirect_takes_nothing_elsewhere(bench: Bench) -> None:
    with (
        MockLLMServer() as other,
        MockLLMServer({"answer": Fault.redirect(f"{other.url}/chat/completions")}) as server,
    ):
        (error,) = bench.ask(server.url, retries=0)
        assert len(server.requests) == 1
        assert other.requests == []
    assert f"the server redirects to {other.url}" in str(error)


# --- rate limits ---


def test_a_storm_of_429s_on_all_keys_is_waited_out(bench: Bench) -> None:
    texts = [f"question {i}" for i in range(30)]
    with MockLLMServer(faults=lambda request: Fault.rate_limit(1) if request.time < 2.5 else None) as server:
        replies = bench.ask(server.url, *texts, retries=0)
        last = max(request.time for request in server.requests)
        storm = [request for request in server.requests if request.time < 2.5]
    assert all(reply.text for reply in replies)
    assert last >= 2.5
    assert len(storm) <= 30 + 3 * 16, "while all keys rest nothing is sent"
    assert sum("rate-limited" in notice for notice in bench.notices) == 1


@pytest.mark.parametrize(
    "told", ["-5", "soon", "", "nan", "Mon, 32 Foo 2026 99:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"]
)
def test_a_retry_after_that_makes_no_sense_is_a_short_rest(bench: Bench, told: str) -> None:
    limits = iter([Fault.rate_limit(told)])
    with MockLLMServer(faults=lambda _: next(limits, None)) as server:
        (reply,) = bench.ask(server.url, keys=["key-number-one"], retries=0)
        first, second = server.requests
    assert reply.text
    assert second.time - first.time > 0.9


@pytest.mark.parametrize("told", ["1000000000", "inf", "1e308", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_an_absurd_retry_after_is_an_answer_at_once_or_the_other_keys_work(bench: Bench, told: str) -> None:
    def faults(request: Request) -> Fault | None:
        return Fault.rate_limit(told) if request.key == "key-number-one" else None

    async def work(llm: LLMClient) -> None:
        for i in range(8):
            await llm.ask("answer", question(f"question {i}"))

    with MockLLMServer(faults=faults) as server:
        (error,) = bench.ask(server.url, keys=["key-number-one"])
        assert type(error) is ModelError
        assert "rate-limited" in str(error)
        bench.run(server.url, work, keys=["key-number-one", "key-number-two"])
        assert sum(request.key == "key-number-one" for request in server.requests) <= 2


@given(
    st.text(max_size=40) | st.floats().map(str) | st.datetimes().map(lambda day: day.strftime("%a, %d %b %Y %T GMT"))
)
def test_any_retry_after_is_a_number_of_seconds(told: str) -> None:
    error = SimpleNamespace(litellm_response_headers={"retry-after": told}, response=None)
    assert 0 <= retry_after(error) < math.inf


# --- a server that is down ---


def answering(port: int = 0) -> MockLLMServer:
    return MockLLMServer(lambda request: f"hello to {request.text}", port=port)


def port_of(server: MockLLMServer) -> int:
    return int(server.url.split(":")[2].partition("/")[0])


@pytest.mark.parametrize("kind", ["completions", "vectors"])
def test_a_server_that_goes_down_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Without a single retry: an outage is no failed attempt."""
    monkeypatch.setattr(router_module, "_NOTICE_AFTER", 0.6)
    ring, ledger = key_ring(["key-number-one"]), make_ledger()
    back: list[threading.Timer] = []

    def ask_vectors(url: str) -> Any:
        model = "openai/text-embedding-3-small"
        return embed_texts(model, ["x"], keys=ring, api_base=url, ledger=ledger, notice=bench.notices.append).tolist()

    async def work(llm: LLMClient) -> None:
        async def once(text: str) -> Any:
            if kind == "vectors":
                return await asyncio.to_thread(ask_vectors, url)
            return (await llm.ask("answer", question(text))).text

        with first:
            await once("one")
        again = answering(port_of(first))
        back.append(threading.Timer(2.0, again.__enter__))
        back[0].start()
        replies = await asyncio.gather(once("two"), once("three"))
        assert all(replies)
        back[0].join()
        assert 2 <= len(again.requests) <= 3
        again.__exit__(None, None, None)

    first = answering()
    with first:
        url = first.url
    first = answering(port_of(first))
    bench.run(url, work, retries=0)
    (notice,) = [notice for notice in bench.notices if "has not answered" in notice]
    assert url in notice
    assert "waiting, at most 15 min" in notice


def test_a_server_that_stays_down_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "MAX_WAIT", 1.0)

    async def work(llm: LLMClient) -> Any:
        with server:
            await llm.ask("answer", question("one"))
        return await asyncio.gather(llm.ask("judge", question("two")), return_exceptions=True)

    server = answering()
    with server:
        url = server.url
    server = answering(port_of(server))
    (error,) = bench.run(url, work, retries=4)
    assert type(error) is ModelError
    assert f"no reply from {url} for" in str(error)
    assert "--resume" in error.hint


def test_one_question_that_the_server_hangs_up_on_is_no_outage(bench: Bench) -> None:
    """While others get their replies the server is not down, so attempts count."""

    async def work(llm: LLMClient) -> Any:
        async def others() -> None:
            for i in range(1000):
                await llm.ask("answer", question(f"other {i}"))

        await llm.ask("answer", question("other"))
        background = asyncio.create_task(others())
        try:
            return await asyncio.gather(llm.ask("answer", question("poison")), return_exceptions=True)
        finally:
            background.cancel()

    faults = lambda request: Fault.refuse() if request.text == "poison" else None  # noqa: E731
    with MockLLMServer(faults=faults, latency=0.02) as server:
        (error,) = bench.run(server.url, work, retries=1)
        poisoned = sum(request.text == "poison" for request in server.requests)
    assert type(error) is ModelError
    assert 2 <= poisoned <= 6, "two attempts, one more at each of the other keys, and some during its first seconds"


# --- the end of a command ---


async def on_their_way(llm: LLMClient, count: int) -> None:
    while llm.in_flight < count:  # noqa: ASYNC110 – nothing tells when a request leaves
        await asyncio.sleep(0.01)


def test_held_calls_are_not_sent_and_those_on_their_way_are_kept(bench: Bench) -> None:
    async def work(llm: LLMClient) -> list[Any]:
        asked = [asyncio.create_task(llm.ask("answer", question(f"question {i}"))) for i in range(6)]
        await on_their_way(llm, 2)
        llm.stop_sending()
        llm.stop_sending()
        await llm.aclose()
        assert llm.in_flight == 0
        return await asyncio.gather(*asked, return_exceptions=True)

    with MockLLMServer(latency=1.0) as server:
        replies = bench.run(server.url, work, cache=True, concurrency=2)
        assert len(server.requests) == 2
        again = bench.ask(server.url, *(f"question {i}" for i in range(2)), cache=True)
        assert len(server.requests) == 2
    assert sum(isinstance(reply, asyncio.CancelledError) for reply in replies) == 4
    assert all(reply.cached for reply in again)
    assert sum(not row["cached"] for row in read_jsonl(bench.ledger_file)) == 2
    assert sum("waiting for 2 replies in flight" in notice for notice in bench.notices) == 1


def test_a_reply_is_waited_for_up_to_its_own_deadline(bench: Bench) -> None:
    async def work(llm: LLMClient) -> None:
        asked = asyncio.create_task(llm.ask("answer", question()))
        await on_their_way(llm, 1)
        await llm.aclose()
        await asyncio.wait([asked])

    with MockLLMServer({"answer": Fault.hang()}) as server:
        start = time.monotonic()
        bench.run(server.url, work, cache=True, retries=4, timeout=1.5)
        assert len(server.requests) == 1, "no retry after the deadline"
    assert time.monotonic() - start > 1.4


def test_closing_may_be_cancelled(bench: Bench) -> None:
    async def work(llm: LLMClient) -> Callable[[], bool]:
        asked = asyncio.create_task(llm.ask("answer", question()))
        await on_their_way(llm, 1)
        closing = asyncio.create_task(llm.aclose())
        await asyncio.sleep(0.1)
        closing.cancel()
        await asyncio.wait([closing, asked], timeout=20)
        return asked.cancelled

    with MockLLMServer({"answer": Fault.hang()}) as server:
        cancelled = bench.run(server.url, work, cache=True, timeout=600.0)
    assert cancelled()
