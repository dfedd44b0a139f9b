"""Requirements for every other memory system: use our model and encoder, report failures, pay for nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.errors import BudgetExceededError, MemoryBankError, ModelError, UnreadableReplyError, UsageError
from memskill_cli.evaluation.methods import external
from memskill_cli.evaluation.methods.base import Method
from memskill_cli.evaluation.methods.external import read_object
from memskill_cli.testing import rules
from memskill_cli.testing.server import Fault, Request
from memskill_cli.types import Query, Span

SYSTEMS = [
    pytest.param(
        name, marks=[pytest.mark.extra, pytest.mark.skipif(util.find_spec(name) is None, reason="not installed")]
    )
    for name in ("mem0", "langmem")
]
CALLS = {"mem0": 2, "langmem": 1}  # requests to the executor model for each span
FACTS = ["Ana adopted a grey parrot called Figaro in Porto.", "Bo repairs 12 church organs near Lyon."]
SPANS = [
    Span("t1", 0, f"[8 May 2023]\nAna: {FACTS[0]}\nBo: How nice!"),
    Span("t1", 1, "[9 May 2023]\nBo: Hello again!"),
    Span("t1", 2, f"[2 June 2023]\nBo: {FACTS[1]}"),
]
QUESTION = "Which bird did Ana adopt in Porto?"


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_remembers_what_its_pipeline_made_of_the_replies(rig: Any, name: str) -> None:
    size, found, facts = rig.remember(name, SPANS, QUESTION)
    assert size == 2
    assert FACTS[0] in found[0].item.text
    assert "8 May 2023" in found[0].item.text
    assert FACTS[1] in found[1].item.text
    assert [item.item.item_id for item in found] == ["m000001", "m000002"]
    assert rig.advanced == len(SPANS)
    assert facts["unreadable_replies"] == 0
    assert re.fullmatch(r"(mem0ai|langmem) \d[\w.]+", facts["system"])
    assert {request.role for request in rig.requests} == {"executor"}
    assert rig.roles == {"executor": len(rig.requests)}, "the ledger has every call"


@pytest.mark.parametrize("name", SYSTEMS)
def test_scores_are_those_of_our_encoder(rig: Any, name: str) -> None:
    async def work(method: Method) -> list[tuple[float, str]]:
        memory = await rig.read(method, SPANS)
        found = await memory.retrieve(Query("q", "t1", "single-hop", QUESTION, ()))
        texts = [item.item.text.removeprefix("8 May 2023: ").removeprefix("2 June 2023: ") for item in found]
        asked = (await rig.encoder.aencode([QUESTION], "query"))[0]
        expected = np.asarray(await rig.encoder.aencode(texts)) @ asked
        assert [item.score for item in found] == pytest.approx(expected.tolist(), abs=1e-5)
        return [(item.score, item.item.text) for item in found]

    found = rig.run(name, work)
    assert len(found) == 2
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_finished_trace_is_not_read_again(rig: Any, name: str) -> None:
    first = rig.remember(name, SPANS, QUESTION)
    (rig.folder / "cache").rename(rig.folder / "gone")
    again = rig.remember(name, SPANS, QUESTION, Fault.server_error())
    assert rig.requests == []
    assert again[0] == first[0]
    assert [item.item for item in again[1]] == [item.item for item in first[1]]
    assert [item.score for item in again[1]] == pytest.approx([item.score for item in first[1]])


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_trace_cut_short_pays_only_for_the_rest(rig: Any, name: str) -> None:
    def fails_late(request: Request) -> str | Fault:
        return Fault.server_error() if FACTS[1] in request.text else rules.reply(request)

    with pytest.raises(ModelError):
        rig.remember(name, SPANS, QUESTION, fails_late)
    assert not list((rig.folder / "memory").glob("*"))
    before = len(rig.requests) - 1
    size, _, _ = rig.remember(name, SPANS, QUESTION)
    assert size == 2
    assert before > 0
    assert all(FACTS[1] in request.text for request in rig.requests), "the rest came from the cache"
    assert len(rig.requests) == CALLS[name]


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_call_that_fails_is_never_nothing_to_remember(rig: Any, name: str, nth: int) -> None:
    """Both libraries catch errors of model calls in some places and continue."""

    def fails(request: Request) -> str | Fault:
        return Fault.server_error() if request.index >= nth else rules.reply(request)

    with pytest.raises(ModelError, match="server had an error"):
        rig.remember(name, SPANS, QUESTION, fails)
    assert len(rig.requests) == nth + 1, "it makes no further call"


@pytest.mark.parametrize("name", SYSTEMS)
def test_replies_nobody_can_read_are_asked_again_and_counted(rig: Any, name: str) -> None:
    size, found, facts = rig.remember(name, SPANS[:1], QUESTION, "I would rather talk about the weather.")
    assert (size, found) == (0, [])
    assert facts["unreadable_replies"] == 1
    assert len(rig.requests) == 2
    assert "could not be read" in rig.requests[1].messages[-1]["content"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_was_unreadable_is_known_later_too(rig: Any, name: str) -> None:
    first = rig.remember(name, SPANS[:1], QUESTION, "Rain again.")
    assert rig.remember(name, SPANS[:1], QUESTION, Fault.server_error()) == first


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_another_version_kept_is_read_anew(rig: Any, name: str) -> None:
    rig.remember(name, SPANS, QUESTION)
    (file,) = (rig.folder / "memory").glob("*.json")
    whole = file.read_text()
    file.write_text(whole.replace('"system": "', '"system": "older '))
    size, _, _ = rig.remember(name, SPANS, QUESTION)
    assert (size, file.read_text()) == (2, whole)
    assert rig.requests == [], "the replies are in the cache"


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_damaged_file_is_named(rig: Any, name: str) -> None:
    rig.remember(name, SPANS, QUESTION)
    (file,) = (rig.folder / "memory").glob("*.json")
    file.write_text(file.read_text()[:50])
    with pytest.raises(MemoryBankError, match=file.name) as caught:
        rig.remember(name, SPANS, QUESTION)
    assert "delete the file" in caught.value.hint


@pytest.mark.parametrize("name", SYSTEMS)
def test_many_traces_at_once_share_nothing(rig: Any, name: str) -> None:
    """There are more traces than threads in asyncio's pool, and the cache needs one of these threads."""
    count = 8

    async def work(method: Method) -> list[list[str]]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        traces = [[Span(f"t{i}", 0, f"[1 May 2023]\nAna: I have {i + 20} plum trees.")] for i in range(count)]
        memories = await asyncio.gather(*(rig.read(method, spans) for spans in traces))
        query = Query("q", "t", "single-hop", "How many plum trees?", ())
        found = await asyncio.gather(*(memory.retrieve(query) for memory in memories))
        return [[item.item.text for item in items] for items in found]

    for i, texts in enumerate(rig.run(name, work)):
        assert len(texts) == 1
        assert f"{i + 20} plum trees" in texts[0]
    assert len(list((rig.folder / "memory").glob("*.json"))) == count


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_budget_stops_it_as_a_budget(rig: Any, name: str) -> None:
    with pytest.raises(BudgetExceededError):
        rig.remember(name, SPANS, QUESTION, model="openai/gpt-4o-mini", max_cost=1e-7)
    assert len(rig.requests) <= 1


@pytest.mark.parametrize("name", SYSTEMS)
def test_who_gives_up_asks_no_more(rig: Any, name: str) -> None:
    asked_for = threading.Event()

    def hang(request: Request) -> Fault:
        asked_for.set()
        return Fault.hang(seconds=0.5)

    async def work(method: Method) -> None:
        reading = asyncio.create_task(rig.read(method, SPANS))
        await asyncio.to_thread(asked_for.wait, 20)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    rig.run(name, work, hang)
    assert len(rig.requests) == 1


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_speaks_to_the_model_and_to_nobody_else(rig: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def noting(real: Callable[..., Any]) -> Callable[..., Any]:
        def note(first: Any, *rest: Any, **more: Any) -> Any:
            called.append(rest[0][0] if isinstance(first, socket.socket) and isinstance(rest[0], tuple) else first)
            return real(first, *rest, **more)

        return note

    for variable in ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(variable, "true")
    monkeypatch.setenv("LANGSMITH_API_KEY", "ls-key")
    monkeypatch.setenv("MEM0_TELEMETRY", "True")
    monkeypatch.setattr(socket.socket, "connect", noting(socket.socket.connect))
    monkeypatch.setattr(socket, "getaddrinfo", noting(socket.getaddrinfo))
    size, _, _ = rig.remember(name, SPANS, QUESTION)
    assert size == 2
    assert "127.0.0.1" in called
    assert {host for host in called if isinstance(host, str)} <= {"127.0.0.1", "localhost"}


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_kept_is_plain_json_without_the_key(rig: Any, name: str) -> None:
    def leaks(request: Request) -> str:
        return rules.reply(request).replace("Figaro", request.key)

    rig.remember(name, SPANS, QUESTION, leaks)
    kept = [file for file in (rig.folder / "memory").rglob("*") if file.is_file()]
    assert [file.suffix for file in kept] == [".json"]
    assert json.loads(kept[0].read_text())["memories"]
    from_disk = b"".join(file.read_bytes() for file in rig.folder.rglob("*") if file.is_file())
    assert b"sk-canary" not in from_disk


@pytest.mark.parametrize("name", ["mem0", "langmem"])
def test_without_the_extra_it_says_what_to_install(rig: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external.util, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match="is not installed") as caught:
        rig.remember(name, SPANS, QUESTION)
    assert f'pip install "memskill[{name}]"' in caught.value.hint
    assert rig.requests == []


@pytest.mark.parametrize(
    "text",
    [
        '{"facts": ["a"]}',
        '```json\n{"facts": ["a"]}\n```',
        'Here they are: {"facts": ["a"]} Good?',
        '{"facts": ["a",]}',
        "{'facts': ['a']",
    ],
)
def test_an_object_is_found_in_chatter_and_mended(text: str) -> None:
    assert read_object(text, "facts") == {"facts": ["a"]}


@given(st.text() | st.text(alphabet='{}[]":,facts \\'))
def test_no_reply_breaks_the_reader(text: str) -> None:
    with contextlib.suppress(UnreadableReplyError):
        assert "facts" in read_object(text, "facts")
