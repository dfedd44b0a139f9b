"""Replies on disk: shared, kept, and never in the way."""

from __future__ import annotations

import contextlib
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from memskill_cli.errors import ModelError
from memskill_cli.llm import cache as llm_cache
from memskill_cli.llm.cache import ResponseCache, Stored
from memskill_cli.utils import shared_database


def test_what_is_put_is_got_also_by_another_cache(tmp_path: Path) -> None:
    one, two = ResponseCache(tmp_path), ResponseCache(tmp_path)
    assert one.get("k") is None
    one.put("k", "text with \x00 and 🙂")
    assert one.get("k") == two.get("k") == Stored("text with \x00 and 🙂")
    two.put("k", "newer", '{"usd": 0.5}')
    assert one.get("k") == Stored("newer", '{"usd": 0.5}')
    one.close()
    two.close()
    again = ResponseCache(tmp_path)
    assert again.get("k") == Stored("newer", '{"usd": 0.5}')
    again.close()


def _fill(folder: Path, name: str) -> None:
    cache = ResponseCache(folder)
    for i in range(200):
        cache.put(f"{name} {i}", name)
    cache.close()


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(tmp_path, name)) for name in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    cache = ResponseCache(tmp_path)
    assert all(cache.get(f"{name} {i}") == Stored(name) for name in ("a", "b") for i in range(200))
    cache.close()


@pytest.mark.parametrize("content", [b"this is no database at all " * 500, b"SQLite format 3\x00" + b"\xff" * 9000])
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "responses.sqlite").write_bytes(content)
    notices: list[str] = []
    cache = ResponseCache(tmp_path, notice=notices.append)
    cache.put("k", "v")
    assert cache.get("k") == Stored("v")
    cache.close()
    assert len(notices) == 1
    assert "renamed to" in notices[0]
    (aside,) = tmp_path.glob("responses.sqlite.damaged-*")
    assert aside.read_bytes() == content


def test_damage_found_while_reading(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path)
    for i in range(300):
        cache.put(f"{i:03}", "x" * 1000)
    cache.close()
    file = tmp_path / "responses.sqlite"
    data = file.read_bytes()
    file.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    notices: list[str] = []
    cache = ResponseCache(tmp_path, notice=notices.append)
    assert [cache.get(f"{i:03}") for i in range(300)] == [None] * 300
    cache.put("new", "v")
    assert cache.get("new") == Stored("v")
    cache.close()
    assert len(notices) == 1


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be opened"):
        ResponseCache(tmp_path / "file")


def test_a_cache_that_fails_later_costs_the_caching_only(tmp_path: Path) -> None:
    notices: list[str] = []
    cache = ResponseCache(tmp_path, notice=notices.append)
    cache.put("k", "v")
    with contextlib.closing(sqlite3.connect(tmp_path / "responses.sqlite")) as other:
        other.execute("DROP TABLE replies")  # fails as a full disk does: the file is sound, the statement is not done
    for _ in range(3):
        cache.put("k", "v")
        assert cache.get("k") is None
    cache.close()
    assert len(notices) == 1
    assert "no longer cached" in notices[0]


def test_a_locked_file_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_database, "GRACE", 0.0)
    monkeypatch.setattr(shared_database, "REST", 0.1)
    notices: list[str] = []
    cache = ResponseCache(tmp_path, notice=notices.append)
    cache.put("before", "v")
    with contextlib.closing(sqlite3.connect(cache.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        asked: list[Stored] = []
        store = cache._store
        monkeypatch.setattr(cache, "_store", lambda key, reply: asked.append(reply) or store(key, reply))
        for number in range(20):
            cache.put(f"{number}", "kept")
        assert len(asked) < 10, "the file is asked for the first reply, and then by the thread only"
        assert cache.get("before") == Stored("v"), "readers go on"
        assert cache.get("7") == Stored("kept"), "also what could not be stored yet"
        monkeypatch.undo()
        other.execute("ROLLBACK")
    cache.close()
    assert len(notices) == 1
    assert "locked by another process" in notices[0]
    again = ResponseCache(tmp_path)
    assert [again.get(f"{number}") for number in range(20)] == [Stored("kept")] * 20
    again.close()


def test_a_file_that_stays_locked_is_said_to_lose_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_cache, "_LAST_ATTEMPTS", 0.05)
    notices: list[str] = []
    cache = ResponseCache(tmp_path, notice=notices.append)
    with contextlib.closing(sqlite3.connect(cache.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        cache.put("k", "v")
        cache.close()
    assert notices == [f"1 replies could not be stored in {cache.path}: they may be paid for again"]


def test_damage_that_two_find_at_once_is_mended_once_and_loses_nothing_stored_since(tmp_path: Path) -> None:
    notices: list[str] = []
    one, two = (ResponseCache(tmp_path, notice=notices.append) for _ in range(2))
    for number in range(300):
        one.put(f"{number}", "x" * 200)
    two.get("1")
    with contextlib.closing(sqlite3.connect(one.path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with one.path.open("r+b") as file:
        file.write(b"\xff" * one.path.stat().st_size)
    one.get("7")
    one.put("paid 1", "a")
    two.put("paid 2", "b")
    one.put("paid 3", "c")
    one.close()
    two.close()
    again = ResponseCache(tmp_path)
    assert [again.get(f"paid {number}") for number in (1, 2, 3)] == [Stored("a"), Stored("b"), Stored("c")]
    again.close()
    assert len(notices) == 1
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


@pytest.mark.parametrize("row", [(5, ""), (b"x", ""), ("v", "{"), ("v", "[1]"), ("v", '{"usd": "x"}')])
def test_a_row_of_another_kind_is_no_reply_and_a_bill_of_another_kind_no_bill(tmp_path: Path, row: tuple) -> None:
    cache = ResponseCache(tmp_path)
    with contextlib.closing(sqlite3.connect(cache.path)) as other:
        other.execute("PRAGMA ignore_check_constraints = 1")
        other.execute("INSERT INTO replies VALUES ('k', ?, ?)", row)
        other.commit()
    found = cache.get("k")
    assert found in (None, Stored("v"), Stored("5"))
    cache.close()
