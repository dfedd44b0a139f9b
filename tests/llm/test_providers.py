"""Providers as they are: refused prompts, keys that can't pay, failing deployments, odd parameters and shapes."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memskill_cli.config import ModelsConfig
from memskill_cli.errors import AuthError, RejectedPromptError, RejectedRequestError, UsageError
from memskill_cli.llm import load_litellm
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.embeddings import embed_texts
from memskill_cli.llm.key_cooldown import retry_after
from memskill_cli.llm.keys import Deployment
from memskill_cli.llm.prices import Price, unpriced
from memskill_cli.testing.server import Fault, MockLLMServer, Request
from memskill_cli.utils.files import read_jsonl

from ..factories import key_ring, make_ledger
from .conftest import Bench, question

JSON = {"Content-Type": "application/json"}


def reply(content: Any = "fine", *, finish: str = "stop", message: Any = None, **more: Any) -> Fault:
    """A complete reply of status 200, to change one part of it."""
    message = {"role": "assistant", "content": content} if message is None else message
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    return Fault(200, json.dumps({**body, **more}), JSON)


def bills(bench: Bench) -> list[Any]:
    return [row["usd"] for row in read_jsonl(bench.ledger_file) if row["outcome"] == "ok"]


# --- money ---


def test_a_call_whose_price_cannot_be_computed_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> float:
        raise KeyError("no such model")

    monkeypatch.setattr(load_litellm(), "completion_cost", broken)
    with MockLLMServer(lambda _: "fine") as server:
        replies = bench.ask(server.url, "one", "two")
    assert [each.text for each in replies] == ["fine", "fine"]
    assert bills(bench) == [None, None]
    assert bench.notices == ["the price of a reply of openai/gpt-4o-mini cannot be computed: it counts as $0"]


def test_the_provider_is_part_of_a_name_that_is_priced() -> None:
    price = Price(Deployment("groq#1", "groq/openai/gpt-oss-120b", "", {}))
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000}
    answer = load_litellm().ModelResponse(model="openai/gpt-oss-120b", usage=usage)
    assert price.known
    assert price.bill("answer", answer, 0.0).usd == pytest.approx(0.15)


@pytest.mark.parametrize("model", ["anthropic/claude-opus-4-1", "gemini/gemini-3.5-pro"])
def test_a_guess_is_no_price(model: str) -> None:
    guessed = key_ring(["k"]).deployments("answer", model, "")
    with pytest.raises(UsageError, match=f"price of {model} is unknown") as caught:
        unpriced(guessed, 5.0)
    assert f"--set prices.{model}=" in caught.value.hint
    told = key_ring(["k"]).deployments("answer", model, "", ModelsConfig(prices={model: [15.0, 75.0]}))
    assert unpriced(told, 5.0) == ""
    assert Price(told[0]).range(4_000_000, 1_000_000) == pytest.approx((15.0, 90.0))


def test_a_name_behind_a_server_of_ones_own_has_no_price() -> None:
    (own,) = key_ring(["k"]).deployments("answer", "gpt-4o-mini", "http://127.0.0.1:1/v1")
    (theirs,) = key_ring(["k"]).deployments("answer", "gpt-4o-mini", "https://api.openai.com/v1")
    assert (Price(own).known, Price(theirs).known) == (False, True)


@pytest.mark.parametrize(
    "stated",
    [
        reply(usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "cost": 0.125}),
        Fault(200, reply().body, {**JSON, "x-litellm-response-cost": "0.125"}),
    ],
    ids=["usage.cost", "header of a proxy"],
)
def test_what_a_reply_says_it_cost_is_its_price(bench: Bench, stated: Fault) -> None:
    with MockLLMServer(lambda _: stated) as server:
        bench.ask(server.url, model="openai/home-made")
    assert bills(bench) == [0.125]


# --- one prompt ---

REFUSALS = {
    "Azure": Fault(
        400,
        json.dumps({"error": {"message": "The response was filtered", "code": "content_filter", "status": 400}}),
        JSON,
    ),
    "OpenRouter": Fault.error(403, "Your chosen model requires moderation and your input was flagged"),
    "a refusal": reply(message={"role": "assistant", "content": None, "refusal": "I can't help with that."}),
    "an emptied reply": reply("", finish="content_filter"),
    "too long": Fault.error(400, "This model's maximum context length is 9 tokens", code="context_length_exceeded"),
    "too large": Fault.error(413, "Request Entity Too Large"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refused_prompt_is_asked_once_and_says_nothing_about_the_key(bench: Bench, kind: str) -> None:
    with MockLLMServer(lambda request: REFUSALS[kind] if request.text == "bad" else "fine") as server:
        bad, good = bench.ask(server.url, "bad", "good", keys=["only"], retries=3, concurrency=1)
        assert Counter(request.text for request in server.requests) == {"bad": 1, "good": 1}
    assert type(bad) is RejectedPromptError
    assert "litellm" not in str(bad).lower()
    assert good.text == "fine"
    assert bench.notices == []


# --- keys and deployments that fail ---


@pytest.mark.parametrize(
    "refusal",
    [
        Fault.error(402, "Insufficient Balance"),
        Fault.error(400, "Your credit balance is too low to access the API"),
        Fault.error(400, "API key not valid. Please pass a valid API key."),
        Fault.error(429, "You exceeded your current quota", code="insufficient_quota"),
    ],
    ids=lambda fault: f"{fault.status} {fault.body[:60]}",
)
def test_a_key_that_cannot_pay_or_is_wrong_is_out(bench: Bench, refusal: Fault) -> None:
    faults = lambda request: refusal if request.key == "key-two" else None  # noqa: E731
    with MockLLMServer(lambda _: "fine", faults=faults) as server:
        replies = bench.ask(server.url, *map(str, range(40)), retries=0, concurrency=4)
        asked = Counter(request.key for request in server.requests)
        assert [each.text for each in replies] == ["fine"] * 40
        assert asked["key-two"] <= 4, "only the calls that were in flight together"
        (alone,) = bench.ask(server.url, keys=["key-two"])
    assert len(bench.notices) == 2, "one for each session"
    assert isinstance(alone, AuthError)


@pytest.mark.parametrize("fault", [Fault.server_error(500), Fault.server_error(529), Fault.cut(), Fault.refuse()])
def test_one_of_two_keys_fails_always_and_no_call_fails(bench: Bench, fault: Fault) -> None:
    faults = lambda request: fault if request.key == "bad-key" else None  # noqa: E731
    with MockLLMServer(lambda _: "fine", faults=faults) as server:
        replies = bench.ask(server.url, *map(str, range(200)), keys=["bad-key", "good-key"], retries=2, concurrency=8)
        asked = Counter(request.key for request in server.requests)
    assert [getattr(each, "text", each) for each in replies] == ["fine"] * 200
    assert asked["good-key"] == 200
    assert asked["bad-key"] < 40, "it rests"


def test_a_deployment_that_never_answers_in_time_rests(bench: Bench) -> None:
    faults = lambda request: Fault.hang() if request.key == "bad-key" else None  # noqa: E731
    with MockLLMServer(lambda _: "fine", faults=faults) as server:
        replies = bench.ask(
            server.url, *map(str, range(40)), keys=["bad-key", "good-key"], retries=2, concurrency=4, timeout=0.5
        )
    assert [getattr(each, "text", each) for each in replies] == ["fine"] * 40


def test_the_delay_in_the_body_of_a_429_counts() -> None:
    body = 'GeminiException - {"error": {"details": [{"@type": "RetryInfo", "retryDelay": "17.5s"}]}}'
    error = type("Limited", (Exception,), {"litellm_response_headers": {}, "response": SimpleNamespace(headers={})})
    assert retry_after(error(body)) == 17.5
    assert retry_after(error("slow down")) == 0.0


def test_a_limit_on_requests_holds_over_all_roles_of_a_key(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[[all]]\nkeys = ["slow-key"]\nrpm = 4\n[[all]]\nkeys = ["fast-key"]\nrpm = 10000\n')
    file.chmod(0o600)

    async def work(llm: LLMClient) -> Any:
        asked = [llm.ask(role, question(f"{role} {i}")) for role in ("answer", "judge") for i in range(10)]
        return await asyncio.gather(*asked)

    with MockLLMServer(lambda _: "fine") as server:
        bench.run(server.url, work, keys=[], keys_file=file, concurrency=2)
        assert Counter(request.key for request in server.requests)["slow-key"] <= 4


# --- parameters ---


def sent(bench: Bench, url: str, parameters: dict[str, Any], **options: Any) -> None:
    (found,) = bench.ask(url, parameters=parameters, **options)
    assert found.text == "fine"


def test_parameters_of_a_role_are_sent(bench: Bench) -> None:
    parameters = {
        "all": {"seed": 7, "temperature": 0.5},
        "answer": {
            "temperature": "off",
            "reasoning_effort": "low",
            "max_completion_tokens": True,
            "thinking_tokens": 500,
            "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
        },
    }
    with MockLLMServer(lambda _: "fine") as server:
        sent(bench, server.url, parameters, model="openai/home-made", answer_max_tokens=100)
        (request,) = server.requests
    body = request.body
    assert (body["seed"], body["reasoning_effort"], body["max_completion_tokens"]) == (7, "low", 600)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"temperature", "max_tokens"} & body.keys()


def test_parameters_of_the_keys_file_win_and_have_their_own_cached_replies(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    with MockLLMServer(lambda request: str(request.body.get("seed"))) as server:
        for seed in (1, 2, 1):
            file.write_text(f'[[answer]]\nkeys = ["k"]\nseed = {seed}\n')
            file.chmod(0o600)
            (found,) = bench.ask(server.url, keys=[], keys_file=file, cache=True, parameters={"answer": {"seed": 5}})
            assert found.text == str(seed)
        assert len(server.requests) == 2


REFUSED_PARAMETERS: dict[str, tuple[str, str]] = {
    "temperature": ("temperature", "Unsupported value: 'temperature' does not support 0 with this model."),
    "max_tokens": (
        "max_tokens",
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    ),
    "in extra_body": ("enable_thinking", "Unrecognized request argument supplied: enable_thinking"),
}


@pytest.mark.parametrize("kind", REFUSED_PARAMETERS)
def test_a_parameter_that_is_refused_is_left_out_from_then_on(bench: Bench, kind: str) -> None:
    name, message = REFUSED_PARAMETERS[kind]
    faults = lambda request: Fault.error(400, message) if name in request.body else None  # noqa: E731
    with MockLLMServer(lambda _: "fine", faults=faults) as server:
        parameters = {"answer": {"extra_body": {"enable_thinking": False, "other": 1}}}
        replies = bench.ask(server.url, *"abcde", keys=["k"], retries=0, concurrency=1, parameters=parameters)
        bodies = [request.body for request in server.requests]
    assert [each.text for each in replies] == ["fine"] * 5
    assert len(bodies) == 6, "one request more, which is not repeated"
    assert all(body["other"] == 1 for body in bodies)
    assert ("max_completion_tokens" in bodies[-1]) == (name == "max_tokens")
    (notice,) = bench.notices
    assert name in notice


def test_a_parameter_that_nobody_has_sent_is_no_reason_to_try_again(bench: Bench) -> None:
    with MockLLMServer({"answer": Fault.error(400, "Unsupported parameter: 'top_k' for this model")}) as server:
        (error,) = bench.ask(server.url, keys=["k"], retries=3)
        assert len(server.requests) == 1
    assert type(error) is RejectedRequestError
    assert "unknown model" not in str(error)


@pytest.mark.parametrize("form", ["stream", "complete"])
def test_a_server_that_only_streams_is_asked_for_a_stream(bench: Bench, form: str) -> None:
    def chunk(text: str, **more: Any) -> str:
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return f"data: {json.dumps({**head, 'choices': [choice], **more})}\n\n"

    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    events = chunk("fi") + chunk("ne") + chunk("", usage=usage) + "data: [DONE]\n\n"

    def faults(request: Request) -> Fault:
        if not request.body.get("stream"):
            return Fault.error(400, "This model only support stream mode, please enable the stream parameter")
        return Fault(200, events, {"Content-Type": "text/event-stream"}) if form == "stream" else reply()

    with MockLLMServer(faults=faults) as server:
        replies = bench.ask(server.url, "a", "b", keys=["k"], retries=0, concurrency=1)
        assert len(server.requests) == 3
    assert [getattr(each, "text", each) for each in replies] == ["fine", "fine"]
    rows = [row for row in read_jsonl(bench.ledger_file) if row["outcome"] == "ok"]
    assert [row["prompt_tokens"] for row in rows] == [11 if form == "stream" else 5] * 2


# --- shapes ---

SHAPES = {
    "parts": reply(
        [{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}]
    ),
    "no role": reply(message={"content": "fine"}),
    "null usage": reply(usage=None),
    "gzip": Fault(200, gzip.compress(str(reply().body).encode()), {**JSON, "Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes_of_a_reply_are_understood(bench: Bench, shape: str) -> None:
    with MockLLMServer(lambda _: SHAPES[shape]) as server:
        (found,) = bench.ask(server.url, retries=0)
    assert getattr(found, "text", found) == "fine"


# --- embeddings ---

TEXTS = [f"text {i}" for i in range(96)]


def embedded(texts: list[str], faults: Any, **options: Any) -> tuple[np.ndarray, list[int], list[str]]:
    """The vectors, the number of texts of each request, and the notices."""
    notices: list[str] = []
    with MockLLMServer(faults=faults) as server:
        ring = key_ring(["k"])
        rows = embed_texts(
            "openai/e", texts, keys=ring, api_base=server.url, ledger=make_ledger(), notice=notices.append, **options
        )
        sizes = [len(request.body["input"]) for request in server.requests]
    return rows, sizes, notices


@pytest.mark.parametrize(
    ("most", "fault"),
    [
        (10, Fault.error(400, "batch size is invalid, it should not be larger than 10.: input.contents")),
        (32, Fault.error(413, "batch size 64 > maximum allowed batch size 32")),
        (1, Fault.error(400, "input must be a string")),
    ],
)
def test_requests_are_divided_into_what_a_server_takes(most: int, fault: Fault) -> None:
    expected, _, _ = embedded(TEXTS, None)
    rows, sizes, _ = embedded(
        TEXTS, lambda request: fault if len(request.body["input"]) > most else None, concurrency=1
    )
    np.testing.assert_array_equal(rows, expected)
    accepted = [size for size in sizes if size <= most]
    assert sum(accepted) == len(TEXTS), "no text is paid for twice"
    assert len(sizes) - len(accepted) <= 14, "the size is remembered"


def test_a_text_that_is_too_long_is_cut_and_told() -> None:
    def faults(request: Request) -> Fault | None:
        too_long = any(len(text) > 1000 for text in request.body["input"])
        return Fault.error(400, "This model's maximum context length is 250 tokens") if too_long else None

    rows, sizes, notices = embedded([*TEXTS, "x" * 5000], faults)
    assert rows.shape[0] == len(TEXTS) + 1
    assert len([text for text in notices if "cut" in text]) == 1
    assert len(sizes) < 30


def test_vectors_without_an_index_are_in_the_order_of_the_texts() -> None:
    def faults(request: Request) -> Fault:
        rows = [{"object": "embedding", "embedding": [float(text), 1.0]} for text in request.body["input"]]
        return Fault(200, json.dumps({"object": "list", "model": "e", "data": rows, "usage": None}), JSON)

    rows, _, _ = embedded(["3", "1", "2"], faults)
    assert rows[:, 0].tolist() == [3.0, 1.0, 2.0]


# --- whose key ---


def test_a_key_goes_only_to_its_provider() -> None:
    ring = key_ring(["sk-someone-0123456789"])
    ring.deployments("answer", "openai/gpt-4o-mini", "")
    with pytest.raises(UsageError, match="anthropic, openai"):
        ring.deployments("judge", "anthropic/claude-3-5-haiku-latest", "")
    ring = key_ring(["openai=sk-one-0123456789", "anthropic=sk-two-0123456789"])
    (answer,) = ring.deployments("answer", "openai/gpt-4o-mini", "")
    (judge,) = ring.deployments("judge", "anthropic/claude-3-5-haiku-latest", "")
    assert answer.params["api_key"] == "sk-one-0123456789"
    assert judge.params["api_key"] == "sk-two-0123456789"
    assert "sk-one-0123456789" not in ring.redact("it was sk-one-0123456789")


def test_a_variable_s_key_is_not_sent_to_a_server_of_ones_own(bench: Bench) -> None:
    ring = key_ring([], None, {"OPENAI_API_KEY": "sk-private-0123456789"})
    with MockLLMServer(lambda _: "fine") as server:
        bench.ask(server.url, ring=ring)
        assert all("private" not in request.key for request in server.requests)
    (official,) = ring.deployments("answer", "openai/gpt-4o-mini", "")
    assert official.params["api_key"] == "sk-private-0123456789"


def test_the_signature_of_a_cloud_is_not_replaced_by_a_key() -> None:
    ring = key_ring([], None, {"MEMSKILL_API_KEYS": "sk-someone-0123456789"})
    for base in ("", "https://bedrock.example.org"):
        (found,) = ring.deployments("answer", "bedrock/anthropic.claude-3-haiku-20240307-v1:0", base)
        assert found.params["api_key"] is None
