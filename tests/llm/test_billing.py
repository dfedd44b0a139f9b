"""Nothing answered is paid for twice, and every bill is in the ledger once, wherever a process was killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.cache import ResponseCache, Stored
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.ledger import Ledger
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.utils.files import read_jsonl

from .conftest import Bench, question

TEXTS = [f"question {i}" for i in range(12)]


class Killed(BaseException):
    """Stands for SIGKILL where one process must go on."""


def paid(bench: Bench) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(bench.ledger_file) if not row["cached"]]


def number(text: str) -> int:
    if not text.isdigit():
        raise UnreadableReplyError(f"{text!r} is not a number")
    return int(text)


def mumble(request: Request) -> str:
    """Says something unreadable first, and a number when asked again."""
    return "7" if len(request.messages) > 1 else "seven"


def lose_the_line_of(bench: Bench, url: str, text: str) -> None:
    """The reply to ``text`` is stored, and the process dies before its line is written."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Ledger, "write", _die)
        bench.ask(url, text, cache=True)


def _die(*_: Any) -> None:
    raise Killed


def test_a_line_that_was_lost_is_written_late_and_once(bench: Bench) -> None:
    with MockLLMServer(lambda request: f"hello to {request.text}") as server:
        bench.ask(server.url, "one", cache=True)
        lose_the_line_of(bench, server.url, "two")
        assert len(paid(bench)) == 1
        for _ in range(2):
            replies = bench.ask(server.url, "one", "two", cache=True)
            assert [reply.text for reply in replies] == ["hello to one", "hello to two"]
            assert all(reply.cached for reply in replies)
            assert len(paid(bench)) == 2
        assert len(server.requests) == 2
    rows = list(read_jsonl(bench.ledger_file))
    assert Counter(row["cached"] for row in rows) == {False: 2, True: 3}, "the late line is that of its call"
    assert len({row["id"] for row in paid(bench)}) == 2
    assert all(row["usd"] > 0 and row["completion_tokens"] > 0 for row in paid(bench))
    assert bench.ledger.usage().cost_usd == pytest.approx(sum(row["usd"] for row in paid(bench)))


def test_the_first_line_of_a_ledger_may_be_the_lost_one(bench: Bench) -> None:
    with MockLLMServer() as server:
        lose_the_line_of(bench, server.url, "one")
        assert paid(bench) == []
        bench.ask(server.url, "one", cache=True)
        assert (len(paid(bench)), len(server.requests)) == (1, 1)


@pytest.mark.parametrize("change", [{"owner": "run of tomorrow"}, {"scope": "another evaluation"}, {"owner": ""}])
def test_who_did_not_pay_is_not_billed(bench: Bench, change: dict[str, str]) -> None:
    with MockLLMServer() as server:
        lose_the_line_of(bench, server.url, "one")
        for name, value in change.items():
            setattr(bench, name, value)
        bench.ask(server.url, "one", cache=True)
        assert len(server.requests) == 1
    assert paid(bench) == []


def test_an_unreadable_first_reply_is_not_paid_for_again(bench: Bench) -> None:
    async def work(llm: LLMClient) -> Any:
        return await llm.ask("judge", question("You are the judge."), parse=number)

    with MockLLMServer({"judge": mumble}) as server:
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr("memskill_cli.llm.client._retry_messages", _die)
            bench.run(server.url, work, cache=True)
        assert [request.text for request in server.requests] == ["You are the judge."]
        reply = bench.run(server.url, work, cache=True)
        assert (reply.value, reply.cached) == (7, False)
        assert len(server.requests) == 2, "the second question only"
        assert "'seven' is not a number" in server.requests[1].text
        assert bench.run(server.url, work, cache=True).cached
        assert len(server.requests) == 2
    assert [row["outcome"] for row in paid(bench)] == ["unreadable", "ok"]


def test_a_full_disk_under_the_cache_costs_the_caching_only(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: ResponseCache, *_: Any) -> None:
        self._failed(sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(ResponseCache, "put", full)
    with MockLLMServer() as server:
        assert all(reply.text for reply in bench.ask(server.url, *TEXTS, cache=True))
    assert len(paid(bench)) == len(TEXTS)
    assert sum("no longer cached" in notice for notice in bench.notices) == 1


SESSION = """
import asyncio, os, sys
from pathlib import Path
from memskill_cli.config import LimitsConfig
from memskill_cli.llm.cache import ResponseCache
from memskill_cli.llm.ledger import Ledger
from tests.factories import llm_client, make_ledger

url, folder, place, left = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def mortal(do):
    def done(*arguments):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), 9)
        return do(*arguments)
    return done

if place == "before the reply is stored":
    ResponseCache.put = mortal(ResponseCache.put)
else:
    Ledger.write = mortal(Ledger.write)

async def main():
    ledger = make_ledger(folder / "usage.jsonl", owner="run of today")
    gateway = llm_client(url, model="openai/gpt-4o-mini", limits=LimitsConfig(concurrency=1), keys=["k"],
                         ledger=ledger, cache=ResponseCache(folder))
    for i in range(12):
        await gateway.ask("answer", [{"role": "user", "content": f"question {i}"}])

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("place", "again"), [("before the reply is stored", 1), ("before the line is written", 0)], ids=["store", "line"]
)
def test_a_process_killed_at_the_worst_moment(bench: Bench, tmp_path: Path, place: str, again: int) -> None:
    """Between a reply's arrival and its storing lies a moment in which it can be lost; after that, none."""
    with MockLLMServer() as server:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SESSION), server.url, str(tmp_path), place, "5"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            timeout=60,
        )
        assert done.returncode == -9
        assert len(paid(bench)) == 4
        assert len(server.requests) == 5
        bench.ask(server.url, *TEXTS, cache=True, retries=4)
        assert len(server.requests) == len(TEXTS) + again
    assert len(paid(bench)) == len(TEXTS)
    assert len({row["id"] for row in paid(bench)}) == len(TEXTS)


# --- files of before ---


def old_file(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "responses.sqlite")) as file:
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("CREATE TABLE replies (key TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
        file.execute("INSERT INTO replies VALUES ('k', 'of old')")
        file.commit()


def test_a_file_of_format_0_is_gone_on_with(tmp_path: Path) -> None:
    old_file(tmp_path)
    for _ in range(2):
        cache = ResponseCache(tmp_path)
        assert cache.get("k") == Stored("of old")
        cache.put("new", "text", '{"usd": 0.5}')
        assert cache.get("new") == Stored("text", '{"usd": 0.5}')
        cache.close()


def _open(folder: Path, go: Any, name: str) -> None:
    go.wait()
    cache = ResponseCache(folder)
    cache.put(name, name)
    cache.close()


def test_two_processes_migrate_at_once(tmp_path: Path) -> None:
    old_file(tmp_path)
    context = multiprocessing.get_context("spawn")
    go = context.Event()
    workers = [context.Process(target=_open, args=(tmp_path, go, f"p{i}")) for i in range(3)]
    for worker in workers:
        worker.start()
    go.set()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    cache = ResponseCache(tmp_path)
    assert [cache.get(name) for name in ("k", "p0", "p1", "p2")] == [Stored("of old"), *map(Stored, ("p0", "p1", "p2"))]
    cache.close()


def test_the_cache_of_before_this_version_answers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second, readable reply used to be stored under the first question."""
    with MockLLMServer({"judge": mumble}) as server:
        work = lambda llm: llm.ask("judge", question("You are the judge."), parse=number)  # noqa: E731
        keys: list[str] = []
        put = ResponseCache.put
        monkeypatch.setattr(
            ResponseCache, "put", lambda cache, key, *rest: (keys.append(key), put(cache, key, *rest))[1]
        )
        bench.run(server.url, work, cache=True)
        monkeypatch.undo()
        (bench.folder / "responses.sqlite").unlink()
        old_file(bench.folder)
        with contextlib.closing(sqlite3.connect(bench.folder / "responses.sqlite")) as file:
            file.execute("INSERT INTO replies VALUES (?, '9')", (keys[0],))
            file.commit()
        reply = bench.run(server.url, work, cache=True)
        assert (reply.value, reply.cached) == (9, True)
        assert len(server.requests) == 2
