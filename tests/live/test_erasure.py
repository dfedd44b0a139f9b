"""What is erased is in no file of the store any more, whatever happened before and wherever a crash stopped it."""

from __future__ import annotations

import asyncio
import random
import shutil
import string
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.errors import MemoryBankError
from memskill_cli.live.database import Database
from memskill_cli.live.service import MemoryService
from memskill_cli.live.store import opened

from .harness import Model, bytes_of, memory, within

ANNA, BO = "u-anna", "u-bo"


def words(number: int, seed: int) -> list[str]:
    """Random texts, each found by its first 16 characters."""
    draw = random.Random(seed)
    return ["".join(draw.choices(string.ascii_letters, k=draw.randrange(20, 200))) for _ in range(number)]


def left(folder: Path, texts: list[str]) -> list[str]:
    found = bytes_of(folder)
    return [text for text in texts if text[:16].encode() in found]


async def fill(service: MemoryService, user: str, texts: list[str]) -> None:
    for number, text in enumerate(texts):
        await service.add({"role": "user", "content": text, "metadata": {"m": f"meta {text}"}}, user, f"s{number}")


def test_delete_leaves_nothing_of_the_memory_and_all_of_the_others(tmp_path: Path) -> None:
    texts = words(60, 1)

    async def work(service: MemoryService) -> None:
        await fill(service, ANNA, texts)
        await service.context("x", ANNA)
        gone = random.Random(2).sample(range(60), 15)
        for number in gone:
            await service.update(f"m1-{number + 1}", texts[number] + " changed")
            await service.feedback(f"m1-{number + 1}", 1)
            await service.delete(f"m1-{number + 1}")
        erased = [texts[number] for number in gone]
        kept = [text for text in texts if text not in erased]
        assert left(tmp_path, erased) == []
        assert [one.text for one in await service.get_all(ANNA)] == kept
        assert left(tmp_path, kept) == kept
        assert await service.get(f"m1-{gone[0] + 1}") is None
        with pytest.raises(MemoryBankError):
            await service.history(f"m1-{gone[0] + 1}")

    within(tmp_path, work)


def test_delete_erases_the_messages_that_a_memory_was_written_from_also_if_a_part_waits(tmp_path: Path) -> None:
    async def work(service: MemoryService) -> None:
        long = " ".join(f"word{number}" for number in range(150))
        await service.add(
            [{"role": "user", "content": f"zebra-4711 {long}"}, {"role": "user", "content": "ibex-1"}], ANNA
        )
        found = await service.get_all(ANNA)
        assert found
        for one in found:
            await service.delete(one.id)
        assert b"zebra-4711" not in bytes_of(tmp_path)
        assert "zebra" not in await service.context("zebra", ANNA)
        await service.flush(ANNA)
        assert [one.text for one in await service.get_all(ANNA)] == ["ibex-1"]

    within(tmp_path, work, mode="fixed-length")


def test_delete_all_leaves_nothing_but_the_user(tmp_path: Path) -> None:
    texts = words(30, 3)

    async def work(service: MemoryService) -> None:
        await fill(service, ANNA, texts)
        await fill(service, BO, ["bo-4711"])
        assert await service.delete_all(ANNA) == 29
        assert left(tmp_path, texts) == []
        assert await service.flush(ANNA) == (await service.flush(ANNA))
        assert await service.get_all(ANNA) == []
        assert await service.context(texts[0], ANNA) == ""
        assert await service.users() == [ANNA, BO]
        await service.add("again", ANNA)
        assert (await service.flush(ANNA)).changes[0].id == "m1-30"

    within(tmp_path, work, mode="turn-pair")


def test_forget_leaves_nothing_at_all(tmp_path: Path) -> None:
    async def work(service: MemoryService) -> None:
        await fill(service, "user-horse-4712", ["zebra-4711"])
        await service.context("zebra", "user-horse-4712")
        await fill(service, BO, ["bo-4713"])
        assert await service.forget("user-horse-4712")
        for canary in (b"horse-4712", b"zebra-4711"):
            assert canary not in bytes_of(tmp_path)
        assert not await service.forget("user-horse-4712")
        assert await service.users() == [BO]
        assert await service.search("zebra", "user-horse-4712") == []
        result = await service.add("new", "user-horse-4712")
        assert result.changes[0].id == "m3-1", "the number of a forgotten user is not used again"

    within(tmp_path, work)


def test_replies_are_erased_with_their_span(tmp_path: Path) -> None:
    """A reply that a crash left behind: with the next span, with delete and with forget."""

    async def work(service: MemoryService) -> None:
        for erase in (
            lambda: service.add("two", ANNA),
            lambda: service.delete("m1-1"),
            lambda: service.delete_all(ANNA),
            lambda: service.forget(ANNA),
        ):
            await service.add("one", ANNA)
            opened_user = next(iter(service._users._open.values()))
            opened_user.file.run("INSERT INTO replies VALUES ('key', 'zebra-4711', '{}')")
            assert b"zebra-4711" in bytes_of(tmp_path)
            await erase()
            if erase.__code__.co_names[0] != "add":
                assert b"zebra-4711" not in bytes_of(tmp_path)
            assert opened_user.file.closed or opened_user.file.rows("SELECT * FROM replies") == []

    within(tmp_path, work)


class StoppedError(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("what", ["delete", "delete_all", "forget"])
def test_an_interrupted_erasure_is_completed_when_the_store_is_opened(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each statement, and each file that is removed, a copy of the folder is a store that a crash left."""
    store, texts = tmp_path / "store", words(20, 4)
    within(store, lambda service: fill(service, "user-horse-4712", texts))
    copies: list[Path] = []
    erasing = False

    def copied(original: Any) -> Any:
        def call(self: Any, *args: Any, **more: Any) -> Any:
            if erasing:
                copies.append(tmp_path / f"copy-{len(copies)}")
                shutil.copytree(store, copies[-1])
            return original(self, *args, **more)

        return call

    monkeypatch.setattr(Database, "run", copied(Database.run))
    monkeypatch.setattr(Path, "unlink", copied(Path.unlink))

    async def work(service: MemoryService) -> None:
        nonlocal erasing
        erasing = True
        await getattr(service, what)("m1-1" if what == "delete" else "user-horse-4712")
        erasing = False

    within(store, work)
    monkeypatch.undo()
    assert len(copies) > 4
    outcomes = []
    for copy in copies:
        with opened(copy):
            pass
        outcomes.append(len(left(copy, texts[:1])))
    assert outcomes == sorted(outcomes, reverse=True), "it is not done, then it is"
    assert outcomes[0] == 1
    assert outcomes[-1] == 0


def test_a_forgotten_user_s_calls_that_wait_find_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        model = Model()
        async with memory(tmp_path, model) as service:
            await service.add("one", ANNA)
            model.hold = asyncio.Event()
            reading = asyncio.create_task(service.add("two zebra-4711", ANNA))
            await model.asked(2)
            waiting = asyncio.create_task(service.add("three zebra-4711", ANNA))
            forgetting = asyncio.create_task(service.forget(ANNA))
            also = asyncio.create_task(service.flush(ANNA))
            await asyncio.sleep(0)
            model.hold.set()
            assert (await reading).changes
            await waiting
            assert await forgetting
            assert (await also).pending == 0
            assert await service.search("one", ANNA) == []
            assert b"zebra-4711" not in bytes_of(tmp_path)

    asyncio.run(work())
