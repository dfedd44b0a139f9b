"""The files of a store: what is created, what is refused, and what survives."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from memskill_cli.errors import MemoryBankError, RunLockedError
from memskill_cli.live import database
from memskill_cli.live.replies import SpanReplies, StoreLedger, kept_in
from memskill_cli.live.service import MemoryService
from memskill_cli.live.store import FILE, opened
from memskill_cli.llm.ledger import Call

from .harness import within


def test_only_the_owner_can_read_a_new_store(tmp_path: Path) -> None:
    with opened(tmp_path / "a/mem"):
        pass
    assert stat.S_IMODE((tmp_path / "a/mem").stat().st_mode) == 0o700


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    in_use = pytest.raises(RunLockedError, match=f"in use by process {os.getpid()}")
    with opened(tmp_path), in_use, opened(tmp_path):
        pass
    with opened(tmp_path):
        pass


def test_a_store_that_is_not_there_is_not_made_by_accident(tmp_path: Path) -> None:
    with pytest.raises(MemoryBankError, match="there is no memory in"), opened(tmp_path / "mem", create=False):
        pass
    assert not (tmp_path / "mem").exists()


@pytest.mark.parametrize("name", [FILE, "users/01/000001.sqlite"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    within(tmp_path, lambda service: service.add("One.", "anna"))
    (tmp_path / name).write_bytes(b"no database at all" * 100)
    with pytest.raises(MemoryBankError, match=f"{name} is damaged"):
        within(tmp_path, lambda service: service.get_all("anna"))
    assert (tmp_path / name).read_bytes().startswith(b"no database"), "nothing is overwritten"


@pytest.mark.parametrize("name", [FILE, "users/01/000001.sqlite"])
def test_a_newer_format_is_refused(tmp_path: Path, name: str) -> None:
    within(tmp_path, lambda service: service.add("One.", "anna"))
    connection = sqlite3.connect(tmp_path / name)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(MemoryBankError, match="has format 9") as refused:
        within(tmp_path, lambda service: service.get_all("anna"))
    assert refused.value.hint == database.UPGRADE


def test_a_full_disk_is_told_and_what_was_committed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(service: MemoryService) -> None:
        await service.add("I like tea.", "anna")
        run = database.Database.run

        def full(self: database.Database, statement: str, parameters: tuple[object, ...] = ()) -> int:
            if statement.startswith("INSERT INTO versions"):
                with self._errors():
                    raise sqlite3.OperationalError("database or disk is full")
            return run(self, statement, parameters)

        monkeypatch.setattr(database.Database, "run", full)
        with pytest.raises(MemoryBankError, match="database or disk is full"):
            await service.add("I like coffee.", "anna")
        monkeypatch.undo()
        assert [found.text for found in await service.search("like", "anna")] == ["I like tea."]
        assert [change.text for change in (await service.flush("anna")).changes] == ["I like coffee."]

    within(tmp_path, work)


def test_vectors_of_another_encoder_are_refused_for_each_user(tmp_path: Path) -> None:
    """As after a reindex that was interrupted between two users."""

    async def work(service: MemoryService) -> None:
        await service.add("One.", "anna")
        await service.add("Two.", "bo")

    within(tmp_path, work)
    with opened(tmp_path) as store:
        file = store.open_file(store.users()[0])
        file.set_fact("encoder", "another")
        file.close()

    async def look(service: MemoryService) -> None:
        assert len(await service.search("x", "bo")) == 1
        with pytest.raises(MemoryBankError, match="made by the encoder another"):
            await service.search("x", "anna")

    within(tmp_path, look)


def test_the_budget_is_that_of_the_store_over_all_its_openings(tmp_path: Path) -> None:
    call = Call("executor", "m", "key", "ok", prompt_tokens=10, completion_tokens=5, usd=0.25)
    with opened(tmp_path) as store:
        StoreLedger(store, max_cost=1).record(call)
    with opened(tmp_path) as store:
        ledger = StoreLedger(store, max_cost=1)
        assert ledger.spent == 0.25
        ledger.record(call)
        (row,) = store.usage()
        assert row == {
            "role": "executor",
            "model": "m",
            "calls": 2,
            "cached": 0,
            "failed": 0,
            "prompt_tokens": 20,
            "completion_tokens": 10,
            "usd": 0.5,
        }


def test_replies_are_kept_in_the_file_of_their_user(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        anna, bo = (store.open_file(store.find_or_add(name)) for name in ("anna", "bo"))
        cache = SpanReplies()
        cache.put("k", "nobody's")
        with kept_in(anna):
            cache.put("k", "text", '{"cut": true}')
            found = cache.get("k")
            assert found is not None
            assert (found.text, found.cut) == ("text", True)
        with kept_in(bo):
            assert cache.get("k") is None
        assert cache.get("k") is None
        anna.close()
        with kept_in(anna):
            cache.put("late", "text")  # after the user was closed: nothing to keep it in
        bo.close()
