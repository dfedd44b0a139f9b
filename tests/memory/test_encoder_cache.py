"""The cache of vectors: found again by content, shared between processes, and expendable."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memskill_cli.errors import EncoderError
from memskill_cli.memory import encoder_cache
from memskill_cli.memory.encoder_cache import FILE_NAME, EncoderCache, content_key
from memskill_cli.utils import shared_database


def vectors(count: int, dim: int = 5) -> dict[bytes, np.ndarray]:
    rows = np.random.default_rng(count).standard_normal((count, dim)).astype(np.float32)
    return {content_key("encoder", "", str(number)): row for number, row in enumerate(rows)}


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
def test_vectors_come_back_bit_for_bit_and_only_those_asked_for(tmp_path, on_disk):
    cache = EncoderCache(tmp_path if on_disk else None, pytest.fail)
    kept = vectors(1300)
    cache.put("encoder", kept)
    missing = content_key("encoder", "", "never seen")
    wanted = [*list(kept)[::2], missing]
    found = cache.get(wanted)
    assert set(found) == set(wanted) - {missing}
    assert all(np.array_equal(found[key], kept[key]) for key in found)
    assert cache.dim("encoder") == 5
    assert cache.dim("another") is None


def test_a_key_tells_encoder_side_and_text_apart():
    keys = {
        content_key(*parts) for parts in (("a", "", "b"), ("a", "query", "b"), ("a", "context", "b"), ("b", "", "a"))
    }
    assert len(keys) == 4


def test_processes_that_begin_a_cache_together_share_it(tmp_path):
    """SQLite alone fails about one such start in eighty with "database is locked"."""
    code = """
import sys, pathlib, numpy as np
from memskill_cli.memory.encoder_cache import EncoderCache, content_key
print("ready", flush=True)
for line in sys.stdin:
    cache = EncoderCache(pathlib.Path(line.strip()), print)
    for number in range(5):
        cache.put("encoder", {content_key("encoder", "", f"{sys.argv[1]} {number}"): np.full(3, number, np.float32)})
    cache.close()
    print("done", flush=True)
"""
    names = ("one", "two", "three", "four")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", code, name], **pipes) for name in names]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 4
    folders = [tmp_path / str(number) for number in range(40)]
    for folder in folders:  # all at once into each
        for writer in writers:
            writer.stdin.write(f"{folder}\n")
            writer.stdin.flush()
        assert [writer.stdout.readline() for writer in writers] == ["done\n"] * 4
    for writer in writers:
        writer.stdin.close()
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    for folder in folders:
        cache = EncoderCache(folder, pytest.fail)
        for name in names:
            keys = [content_key("encoder", "", f"{name} {number}") for number in range(5)]
            found = cache.get(keys)
            assert [found[key][0] for key in keys] == list(range(5))
        cache.close()


@pytest.mark.parametrize("size", [100, 9000], ids=["short", "long"])
def test_a_file_that_is_no_database_is_set_aside(tmp_path, size):
    (tmp_path / FILE_NAME).write_bytes(b"\x07" * size)
    notices: list[str] = []
    cache = EncoderCache(tmp_path, notices.append)
    cache.put("encoder", vectors(3))
    assert len(cache.get(vectors(3))) == 3
    (aside,) = tmp_path.glob("*.broken-*")
    assert aside.read_bytes() == b"\x07" * size
    assert len(notices) == 1
    assert str(aside) in notices[0]


def test_a_file_found_broken_later_on_is_set_aside(tmp_path):
    before = EncoderCache(tmp_path, pytest.fail)
    before.put("encoder", vectors(2000, 64))
    before.close()
    file = tmp_path / FILE_NAME
    content = bytearray(file.read_bytes())
    content[4096 * 3 :] = b"\xff" * (len(content) - 4096 * 3)  # the schema is whole, the rows are not
    file.write_bytes(content)
    notices: list[str] = []
    cache = EncoderCache(tmp_path, notices.append)
    assert cache.get(vectors(2000, 64)) == {}
    cache.put("encoder", vectors(7))
    assert len(cache.get(vectors(7))) == 7
    assert len(notices) == 1


def test_a_folder_that_cannot_be_written_is_an_error_with_a_hint(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EncoderError, match="embedding cache") as caught:
        EncoderCache(tmp_path / "file", pytest.fail)
    assert caught.value.hint


def test_a_full_disk_is_an_error_and_not_a_broken_file(tmp_path):
    cache = EncoderCache(tmp_path, pytest.fail)
    cache._db.write(lambda db: db.execute("PRAGMA max_page_count = 12"))
    with pytest.raises(EncoderError, match="full"):
        cache.put("encoder", vectors(500, 384))
    assert not list(Path(tmp_path).glob("*.broken-*"))


def _rewrite(folder, change):
    with contextlib.closing(sqlite3.connect(folder / "embeddings.sqlite3")) as db:
        for key, vector in db.execute("SELECT key, vector FROM vectors").fetchall():
            db.execute("UPDATE vectors SET vector = ? WHERE key = ?", (change(vector), key))
        db.commit()


@pytest.mark.parametrize(
    "change", [lambda v: v[:-2], lambda v: b"", lambda v: v[:-4], lambda v: v[::-1], lambda v: "text", lambda v: v + v]
)
def test_a_vector_that_was_changed_is_not_used_and_said_once(tmp_path, change):
    notices = []
    cache = EncoderCache(tmp_path, notices.append)
    keys = [content_key("e", "", text) for text in "ab"]
    vectors = {key: np.array([0.6, 0.8, 0, place], np.float32) for place, key in enumerate(keys)}
    cache.put("e", vectors)
    _rewrite(tmp_path, change)
    assert cache.get(keys) == cache.get(keys) == {}
    assert len(notices) == 1
    assert "encoded again" in notices[0]
    cache.put("e", vectors)
    assert cache.get(keys).keys() == vectors.keys()
    cache.close()


def test_a_vector_under_the_key_of_another_text_is_not_used(tmp_path):
    cache = EncoderCache(tmp_path, print)
    keys = [content_key("e", "", text) for text in "ab"]
    cache.put("e", {keys[0]: np.array([0.6, 0.8], np.float32), keys[1]: np.array([1, 0], np.float32)})
    with contextlib.closing(sqlite3.connect(tmp_path / "embeddings.sqlite3")) as db:
        (other,) = db.execute("SELECT vector FROM vectors WHERE key = ?", (keys[1],)).fetchone()
        db.execute("UPDATE vectors SET vector = ? WHERE key = ?", (other, keys[0]))
        db.commit()
    assert cache.get(keys).keys() == {keys[1]}
    cache.close()


def test_rows_of_older_versions_have_no_checksum_and_are_used_if_they_are_unit_vectors(tmp_path):
    cache = EncoderCache(tmp_path, print)
    keys = [content_key("e", "", text) for text in "abc"]
    rows = ([0.6, 0.8], [3.0, 4.0], [float("nan"), 0.0])
    with contextlib.closing(sqlite3.connect(tmp_path / "embeddings.sqlite3")) as db:
        for key, row in zip(keys, rows, strict=True):
            db.execute("INSERT INTO vectors VALUES (?, ?)", (key, np.array(row, "<f4").tobytes()))
        db.commit()
    assert cache.get(keys).keys() == {keys[0]}
    cache.close()


def test_a_locked_file_is_left_after_a_bounded_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_cache, "_PATIENCE", 0.1)
    monkeypatch.setattr(shared_database, "GRACE", 0.0)
    notices = []
    cache = EncoderCache(tmp_path, notices.append)
    key, vector = content_key("e", "", "a"), np.array([0.6, 0.8], np.float32)
    with contextlib.closing(sqlite3.connect(tmp_path / "embeddings.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        cache.put("e", {key: vector})
        cache.put("e", {key: vector})
        assert cache.get([key]) == {}
        other.execute("ROLLBACK")
    assert len(notices) == 1
    assert "locked by another process" in notices[0]
    cache._db.try_now()
    cache.put("e", {key: vector})
    assert cache.get([key]).keys() == {key}
    cache.close()
