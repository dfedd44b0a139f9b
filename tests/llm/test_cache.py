"""Replies on disk: shared, kept, and never in the way."""

from __future__ import annotations

import contextlib
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from memskill_cli.errors import ModelError
from memskill_cli.llm.cache import ResponseCache, Stored


def test_what_is_put_is_got_also_by_another_cache(tmp_path: Path) -> None:
    one, two = ResponseCache(tmp_path), ResponseCache(tmp_path)
    assert one.get("k") is None
    one.put("k", "text with \x00 and 🙂")
    assert one.get("k") == two.get("k") == Stored("text with \x00 and 🙂")
    two.put("k", "newer", "a bill")
    assert one.get("k") == Stored("newer", "a bill")
    one.close()
    two.close()
    again = ResponseCache(tmp_path)
    assert again.get("k") == Stored("newer", "a bill")
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
