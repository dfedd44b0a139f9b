"""The gateway over real HTTP, against a server that misbehaves as told."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import pytest

from memskill_cli.errors import (
    AuthError,
    BudgetExceededError,
    ModelError,
    RejectedPromptError,
    RejectedRequestError,
    UnknownModelError,
    UnreadableReplyError,
    UsageError,
)
from memskill_cli.llm import key_cooldown
from memskill_cli.llm.client import LLMClient
from memskill_cli.testing.http import tokens
from memskill_cli.testing.server import Fault, MockLLMServer, Request
from memskill_cli.utils.files import read_jsonl

from ..factories import make_ledger
from .conftest import Bench, question

TEXTS = [f"question {i}" for i in range(30)]


def hello(request: Request) -> str:
    return f"hello to {request.text}"


def by_key(server: MockLLMServer) -> Counter[str]:
    return Counter(request.key for request in server.requests)


# --- keys ---


def test_calls_rotate_over_all_keys(bench: Bench) -> None:
    with MockLLMServer(hello) as server:
        replies = bench.ask(server.url, *TEXTS)
        assert [reply.text for reply in replies] == [f"hello to {text}" for text in TEXTS]
        assert len(server.requests) == 30
        assert set(by_key(server)) == {"key-one", "key-two", "key-three"}
    assert {row["key"] for row in read_jsonl(bench.ledger_file)} == {"openai#1", "openai#2", "openai#3"}


def test_a_limited_key_rests_while_others_go_on(bench: Bench) -> None:
    def faults(request: Request) -> Fault | None:
        return Fault.rate_limit(600) if request.key == "key-one" else None

    async def one_after_another(llm: LLMClient) -> list[str]:
        return [(await llm.ask("answer", question(text))).text for text in TEXTS]

    with MockLLMServer(hello, faults=faults) as server:
        assert len(bench.run(server.url, one_after_another)) == 30
        assert by_key(server)["key-one"] <= 1
        assert len(server.requests) == 30 + by_key(server)["key-one"]
    assert bench.notices == []


@pytest.mark.parametrize("retry_after", ["1", "1.2", "date", None])
def test_when_all_keys_rest_calls_wait_and_it_is_no_retry(bench: Bench, retry_after: str | None) -> None:
    limited: set[str] = set()

    def faults(request: Request) -> Fault | None:
        if request.key in limited:
            return None
        limited.add(request.key)
        return Fault.rate_limit(formatdate(time() + 2, usegmt=True) if retry_after == "date" else retry_after)

    with MockLLMServer(hello, faults=faults) as server:
        (reply,) = bench.ask(server.url, retries=0)
        assert reply.text == "hello to What is new?"
        assert len(server.requests) == 4
        assert server.requests[3].time - server.requests[0].time > 0.9
    assert len(bench.notices) == 1
    assert "every key for role answer is rate-limited" in bench.notices[0]


def test_a_rest_is_lengthened_by_a_later_429(bench: Bench) -> None:
    def faults(request: Request) -> Fault | None:
        return [Fault.rate_limit(1), Fault.rate_limit(2), None][min(request.index, 2)]

    with MockLLMServer(hello, faults=faults, latency=lambda request: 0.3 * (1 + request.index)) as server:
        replies = bench.ask(server.url, "one", "two", keys=["key-one"])
        assert sorted(reply.text for reply in replies) == ["hello to one", "hello to two"]
        assert len(server.requests) == 4
        assert server.requests[2].time - server.requests[0].time > 1.9


def test_calls_that_would_wait_too_long_fail_and_say_so(bench: Bench) -> None:
    with MockLLMServer(hello, faults=lambda _: Fault.rate_limit(86_400)) as server:
        (error,) = bench.ask(server.url)
        assert len(server.requests) == 3
    assert type(error) is ModelError
    assert "rate-limited" in str(error)
    assert "--resume" in error.hint


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_out_for_the_run_with_one_warning(bench: Bench, status: int) -> None:
    def faults(request: Request) -> Fault | None:
        return Fault.unauthorized(status=status) if request.key == "key-two" else None

    async def work(llm: LLMClient) -> None:
        for text in TEXTS:
            await llm.ask("answer", question(text))
        for text in TEXTS:
            await llm.ask("judge", question(text))

    with MockLLMServer(hello, faults=faults) as server:
        bench.run(server.url, work)
        assert by_key(server)["key-two"] == 1  # not once more, by no role
        assert len(server.requests) == 61
    assert bench.notices == [f"key openai#2 was refused ({status}) and is disabled for this run"]


@pytest.mark.parametrize("keys", [["wrong-one"], ["wrong-one", "wrong-two"]])
def test_all_keys_refused_is_an_error_at_once(bench: Bench, keys: list[str]) -> None:
    async def work(llm: LLMClient) -> list[Any]:
        one = llm.ask("answer", question())
        return [await asyncio.gather(one, return_exceptions=True), await bench_again(llm)]

    async def bench_again(llm: LLMClient) -> Any:
        return (await asyncio.gather(llm.ask("answer", question()), return_exceptions=True))[0]

    with MockLLMServer(hello, keys=["right"]) as server:
        [first], second = bench.run(server.url, work, keys=keys, retries=4)
        assert len(server.requests) == len(keys)  # each tried once, and nothing tried after that
    assert type(first) is type(second) is AuthError
    assert "openai#1" in str(first)
    assert "--api-key" in first.hint


def test_a_key_without_quota_is_out(bench: Bench) -> None:
    def faults(request: Request) -> Fault | None:
        return Fault.error(429, "You exceeded your quota.", code="insufficient_quota")

    with MockLLMServer(hello, faults=faults) as server:
        (error,) = bench.ask(server.url, keys=["key-one"])
        assert len(server.requests) == 1
    assert type(error) is AuthError
    assert bench.notices == ["key openai#1 was refused (no quota left) and is disabled for this run"]


def test_a_local_server_needs_no_key(bench: Bench) -> None:
    with MockLLMServer(hello) as server:
        (reply,) = bench.ask(server.url, keys=[], model="some/local-model")
        assert reply.text == "hello to What is new?"
        assert server.requests[0].model == "some/local-model"
    assert bench.notices == ["the price of openai/some/local-model is unknown: its calls count as $0"]


def test_requests_per_minute_are_kept(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[[all]]\nkeys = ["slow-key"]\nrpm = 3\n[[all]]\nkeys = ["fast-key"]\nrpm = 10000\n')
    file.chmod(0o600)
    with MockLLMServer(hello) as server:
        for _ in range(3):
            bench.ask(server.url, *TEXTS, keys=[], keys_file=file)
        assert by_key(server)["slow-key"] <= 3 * 3  # each run counts its own minute


# --- failures and the one retry loop ---


def test_a_passing_fault_is_retried(bench: Bench) -> None:
    with MockLLMServer({"answer": [Fault.server_error(), "fine"]}) as server:
        (reply,) = bench.ask(server.url)
        assert (reply.text, len(server.requests)) == ("fine", 2)


@pytest.mark.parametrize(
    "fault",
    [
        Fault.server_error(500),
        Fault.server_error(503),
        Fault.cut(),
        Fault.empty(),
        Fault.refuse(),
        Fault.error_in_200(),
        Fault.hang(),
        Fault.drip(0.05),
        "",
    ],
    ids=["500", "503", "cut", "no body", "refuse", "error in 200", "hang", "drip", "empty"],
)
@pytest.mark.parametrize("keys", [["key-one"], ["key-one", "key-two"]], ids=["one key", "two keys"])
def test_retries_are_counted_once(bench: Bench, fault: Fault | str, keys: list[str]) -> None:
    """One retry is two requests: neither the provider's SDK nor a second loop of ours adds any."""
    endless = isinstance(fault, Fault) and fault.kind in ("hang", "drip")
    with MockLLMServer({"answer": fault}) as server:
        # On a busy machine a call may take a second to leave: only what never ends is cut short.
        (error,) = bench.ask(server.url, keys=keys, retries=1, timeout=1.5 if endless else 30)
        assert len(server.requests) == 2
        assert type(error) is ModelError
        assert server.url in str(error)
    assert "answer" in str(error)
    assert "LiteLLM" not in str(error)
    assert "--api-base" in error.hint
    assert [row["outcome"] for row in read_jsonl(bench.ledger_file)][-1] == "error:ModelError"


def test_a_refused_connection(bench: Bench) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        (error,) = bench.ask(url)  # while the port is taken, nobody else can listen there
    assert type(error) is ModelError
    assert url in str(error)


def test_retries_back_off(bench: Bench) -> None:
    with MockLLMServer({"answer": Fault.server_error()}) as server:
        bench.ask(server.url, retries=2)
        times = [request.time for request in server.requests]
    assert len(times) == 3
    assert times[1] - times[0] > 0.4
    assert times[2] - times[1] > 0.4


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.unknown_model(), UnknownModelError),
        (Fault.error(400, "not-a-model is not a valid model ID"), UnknownModelError),
        (Fault.error(400, "messages must alternate"), RejectedRequestError),
        (Fault.error(400, "maximum context length is 9 tokens", code="context_length_exceeded"), RejectedPromptError),
        (Fault.error(422, "what is that"), RejectedRequestError),
    ],
)
def test_what_no_retry_helps_fails_at_once(bench: Bench, fault: Fault, kind: type[ModelError]) -> None:
    with MockLLMServer({"answer": fault}) as server:
        (error,) = bench.ask(server.url, retries=4)
        assert len(server.requests) == 1
    assert type(error) is kind
    assert "answer" in str(error)
    assert "gpt-4o-mini" in str(error)
    assert error.hint


def test_empty_replies_are_billed(bench: Bench) -> None:
    with MockLLMServer({"answer": ["  ", "fine"]}) as server:
        (reply,) = bench.ask(server.url)
    assert reply.text == "fine"
    rows = list(read_jsonl(bench.ledger_file))
    assert [row["outcome"] for row in rows] == ["error:EmptyReply", "ok"]
    assert all(row["usd"] > 0 for row in rows)


@pytest.mark.parametrize("model", ["opnai/gpt-4o", "nonsense"])
def test_a_name_nobody_has(bench: Bench, model: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        bench.ask("", model=model)
    assert model in str(caught.value)
    assert "openai/gpt-4o" in caught.value.hint


def test_no_key_at_all(bench: Bench) -> None:
    with pytest.raises(AuthError) as caught:
        bench.ask("", keys=[])
    assert "OPENAI_API_KEY" in caught.value.hint


# --- replies ---


def number(text: str) -> int:
    if not text.isdigit():
        raise UnreadableReplyError(f"{text!r} is not a number")
    return int(text)


def test_an_unreadable_reply_is_asked_again_with_the_error(bench: Bench) -> None:
    with MockLLMServer({"judge": ["seven", "7"]}) as server:
        reply = bench.run(server.url, lambda llm: llm.ask("judge", question(JUDGE), parse=number))
        assert (reply.value, reply.text, reply.cached) == (7, "7", False)
        shown = server.requests[1].messages
    assert [message["role"] for message in shown] == ["user", "assistant", "user"]
    assert shown[1]["content"] == "seven"
    assert "'seven' is not a number" in shown[2]["content"]
    assert [row["outcome"] for row in read_jsonl(bench.ledger_file)] == ["unreadable", "ok"]


JUDGE = "You are the judge of this."


def test_a_second_unreadable_reply_is_the_callers_and_is_not_paid_for_again(bench: Bench) -> None:
    async def work(llm: LLMClient) -> None:
        with pytest.raises(UnreadableReplyError, match="eight"):
            await llm.ask("judge", question(JUDGE), parse=number)

    with MockLLMServer({"judge": ["seven", "eight", "9"]}) as server:
        for _ in range(2):
            bench.run(server.url, work, cache=True)
            assert len(server.requests) == 2
        ask_anew = lambda g: g.ask("judge", question(JUDGE), parse=number, reuse_cached_error=False)  # noqa: E731
        reply = bench.run(server.url, ask_anew, cache=True)
        assert (reply.value, reply.cached) == (9, False)
        reply = bench.run(server.url, ask_anew, cache=True)
        assert (reply.value, reply.cached) == (9, True)
        assert len(server.requests) == 3
    paid = [row for row in read_jsonl(bench.ledger_file) if not row["cached"]]
    assert [row["outcome"] for row in paid] == ["unreadable", "unreadable", "ok"]


def test_settings_reach_the_server(bench: Bench) -> None:
    async def work(llm: LLMClient) -> None:
        await llm.ask("answer", question(), grammar="root ::= [a-z]+")
        await llm.ask("answer", question(), max_tokens=7)

    with MockLLMServer(hello) as server:
        bench.run(server.url, work, answer_max_tokens=99, temperature=0.5)
        bodies = [request.body for request in server.requests]
    assert [body["max_tokens"] for body in bodies] == [99, 7]
    assert bodies[0]["temperature"] == 0.5
    assert "grammar" not in str(bodies)


def test_calls_in_flight_are_bounded(bench: Bench) -> None:
    with MockLLMServer(hello, latency=0.05) as server:
        bench.ask(server.url, *TEXTS, concurrency=3)
        assert server.max_in_flight == 3


# --- cache ---


def test_the_same_question_is_paid_for_once(bench: Bench) -> None:
    with MockLLMServer(hello) as server:
        (first,) = bench.ask(server.url, cache=True)
        (second,) = bench.ask(server.url, cache=True, keys=["another-key"])
        assert len(server.requests) == 1
        bench.ask(server.url, cache=True, temperature=0.7)
        bench.ask(server.url, cache=True, answer_max_tokens=5)
        bench.ask(server.url, cache=True, model="openai/gpt-4o")
        assert len(server.requests) == 4
    assert (first.cached, second.cached) == (False, True)
    assert first.text == second.text
    usage = make_ledger(bench.ledger_file).usage()
    assert (usage.calls, usage.cached_calls) == (5, 1)


def test_equal_questions_at_once_share_one_call(bench: Bench) -> None:
    with MockLLMServer(hello, latency=0.1) as server:
        replies = bench.ask(server.url, *["same"] * 20, cache=True)
        assert len(server.requests) == 1
    assert {reply.text for reply in replies} == {"hello to same"}
    assert sum(reply.cached for reply in replies) == 19


def test_a_reply_tells_its_tokens_and_seconds_and_a_cached_one_took_no_time(bench: Bench) -> None:
    asked, said = tokens("What is new?"), tokens("hello to What is new?")
    with MockLLMServer(hello, latency=0.1) as server:
        first, shared = bench.ask(server.url, "What is new?", "What is new?", cache=True)
        (cached,) = bench.ask(server.url, cache=True)
        (uncached,) = bench.ask(server.url)
    assert [reply.usage[:2] for reply in (first, shared, cached, uncached)] == [(asked, said)] * 4
    assert min(first.usage.seconds, uncached.usage.seconds) > 0.1
    assert shared.usage.seconds == cached.usage.seconds == 0


def test_the_tokens_of_a_reply_that_could_not_be_read_are_counted_too(bench: Bench) -> None:
    with MockLLMServer({"judge": ["seven", "7", "eight", "nine"]}) as server:
        ask = lambda llm: llm.ask("judge", question(JUDGE), parse=number)  # noqa: E731
        usage = [bench.run(server.url, ask, cache=True).usage for _ in range(2)]
        with pytest.raises(UnreadableReplyError) as failed:
            bench.run(server.url, ask)
        prompts = [tokens(request.text) for request in server.requests]
    assert [one[:2] for one in usage] == [(prompts[0] + prompts[1], tokens("seven") + tokens("7"))] * 2
    assert usage[0].seconds > usage[1].seconds == 0
    assert failed.value.prompt_tokens == prompts[2] + prompts[3]
    assert failed.value.completion_tokens == tokens("eight") + tokens("nine")
    assert failed.value.seconds > 0


def test_one_asker_giving_up_leaves_the_others_their_reply(bench: Bench) -> None:
    async def work(llm: LLMClient) -> str:
        first = asyncio.create_task(llm.ask("answer", question()))
        second = asyncio.create_task(llm.ask("answer", question()))
        await asyncio.sleep(0.1)
        first.cancel()
        return (await second).text

    with MockLLMServer(hello, latency=0.3) as server:
        assert bench.run(server.url, work, cache=True) == "hello to What is new?"
        assert len(server.requests) == 1


def test_failures_are_not_stored(bench: Bench) -> None:
    with MockLLMServer({"answer": [Fault.error(400, "no"), "fine"]}) as server:
        (error,) = bench.ask(server.url, cache=True)
        (reply,) = bench.ask(server.url, cache=True)
        assert len(server.requests) == 2
    assert isinstance(error, ModelError)
    assert (reply.text, reply.cached) == ("fine", False)


# --- money ---


def test_the_budget_stops_calls_and_holds_across_runs(bench: Bench) -> None:
    texts = [f"question {i} " + "x" * 4000 for i in range(40)]  # about 1000 tokens: $0.00015 a call
    with MockLLMServer(lambda _: "y" * 400) as server:  # and 100 tokens: $0.00006
        replies = bench.ask(server.url, *texts, max_cost=0.001, concurrency=2)
        made, spent = len(server.requests), bench.ledger.spent
        again = bench.ask(server.url, *texts, max_cost=0.001)
        assert len(server.requests) == made
        more = bench.ask(server.url, "short", max_cost=0.01)
    stopped = [reply for reply in replies if isinstance(reply, BudgetExceededError)]
    assert made == 40 - len(stopped)
    assert 3 <= made <= 6
    assert spent < 0.001 + 6 * 0.00007  # six calls at most were in flight, each a reply dearer than thought
    assert all(isinstance(reply, BudgetExceededError) for reply in again)
    assert "--max-cost" in again[0].hint
    assert more[0].text


def test_a_budget_needs_a_price(bench: Bench, tmp_path: Path) -> None:
    with MockLLMServer(hello) as server:
        with pytest.raises(UsageError) as caught:
            bench.ask(server.url, model="openai/home-made", max_cost=1)
        assert "--set prices." in caught.value.hint
        file = tmp_path / "keys.toml"
        file.write_text('[[all]]\nkeys = ["k"]\ninput_cost_per_token = 0.001\noutput_cost_per_token = 0.01\n')
        file.chmod(0o600)
        bench.ask(server.url, "x" * 400, model="openai/home-made", max_cost=1, keys=[], keys_file=file)
        assert len(server.requests) == 1
    row = list(read_jsonl(bench.ledger_file))[-1]
    expected = row["prompt_tokens"] * 0.001 + row["completion_tokens"] * 0.01
    assert row["usd"] == pytest.approx(expected)
    assert row["usd"] > 0.1


# --- odds and ends ---


def test_a_key_rests_in_every_role_that_uses_it(bench: Bench) -> None:
    def faults(request: Request) -> Fault | None:
        return Fault.rate_limit(600) if request.key == "key-one" else None

    async def work(llm: LLMClient) -> None:
        for role in ("executor", "answer", "judge", "designer"):
            for text in TEXTS:
                await llm.ask(role, question(text))  # type: ignore[arg-type]

    with MockLLMServer(hello, faults=faults) as server:
        bench.run(server.url, work)
        assert by_key(server)["key-one"] == 1


def test_tokens_used_up_by_thinking_are_not_paid_for_again(bench: Bench) -> None:
    body = (
        '{"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "choices": [{"index": 0,'
        ' "message": {"role": "assistant", "content": ""}, "finish_reason": "length"}],'
        ' "usage": {"prompt_tokens": 5, "completion_tokens": 32, "total_tokens": 37}}'
    )
    with MockLLMServer({"answer": Fault(200, body, {"Content-Type": "application/json"})}) as server:
        (error,) = bench.ask(server.url, retries=4)
        assert len(server.requests) == 1
    assert "models.answer_max_tokens" in error.hint
    assert bench.ledger.usage().completion_tokens == 32


def test_errors_of_the_embedded_model_keep_their_hint(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    (error,) = bench.ask("", model=f"embedded:{tmp_path}/none.gguf", keys=[], max_cost=1)
    assert type(error) is ModelError
    assert "none.gguf" in str(error)
    assert "LiteLLM" not in str(error)
    assert "GGUF" in error.hint


def test_a_whole_session_is_silent(tmp_path: Path) -> None:
    """litellm and its HTTP clients print nothing, from import to the end of the process; nor do failures."""
    script = """
import asyncio, sys
from memskill_cli.llm.embeddings import embed_texts
from tests.factories import key_ring, llm_client, make_ledger, models_config
async def main(url):
    ledger, ring = make_ledger(), key_ring(["k"])
    gateway = llm_client(url, model="openai/gpt-4o-mini", keys=ring, ledger=ledger, notice=print)
    for text in "abc":  # in a loop of its own
        await gateway.ask("answer", [{"role": "user", "content": "0"}])
        vectors = {"keys": ring, "api_base": url, "ledger": ledger, "settings": models_config(url)}
        await asyncio.to_thread(embed_texts, "openai/text-embedding-3-small", [text], **vectors)
    asked = [gateway.ask("answer", [{"role": "user", "content": str(i)}]) for i in range(20)]
    replies = await asyncio.gather(*asked, return_exceptions=True)
    await gateway.aclose()
    assert sum(isinstance(reply, Exception) for reply in replies) == 10
asyncio.run(main(sys.argv[1]))
"""
    replies = lambda request: Fault.cut() if int(request.text) % 2 else "fine"  # noqa: E731
    with MockLLMServer(replies) as server:
        done = subprocess.run(
            [sys.executable, "-c", script, server.url],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_rest_of_a_key_does_not_depend_on_the_wall_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is set back by an hour while all keys rest for a second."""
    limited: set[str] = set()
    real = key_cooldown.time.time

    def faults(request: Request) -> Fault | None:
        if request.key in limited:
            return None
        limited.add(request.key)
        if len(limited) == 2:
            monkeypatch.setattr(key_cooldown.time, "time", lambda: real() - 3600)
        return Fault.rate_limit(1)

    with MockLLMServer(hello, faults=faults) as server:
        reply = bench.run(server.url, lambda llm: llm.ask("answer", question("a")), keys=["one", "two"])
        assert reply.text == "hello to a", "an hour more would be longer than a call waits"


def test_a_key_in_a_reply_is_masked_counted_and_said(bench: Bench) -> None:
    with MockLLMServer(lambda request: f"my key is {request.key}") as server:

        async def ask(llm: LLMClient) -> list[str]:
            return [(await llm.ask("answer", question(text))).text for text in ("a", "b")]

        texts = bench.run(server.url, ask, keys=["our-own-key-0123456789"])
    assert texts == ["my key is [key]"] * 2
    assert bench.notices == [
        "a reply of role answer contains one of your keys: it is replaced by [key]",
        "replies in which a key was replaced by [key]: 2",
    ]
