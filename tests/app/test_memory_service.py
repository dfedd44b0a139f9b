"""The model of a memory is connected while spans are read, once for all that are read at the same time."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from memskill_cli.app.memory_service import Models
from memskill_cli.errors import AuthError
from memskill_cli.utils import process


def models(monkeypatch: pytest.MonkeyPatch, open_reader: Any) -> Models:
    made: Any = SimpleNamespace()
    monkeypatch.setattr(Models, "_open_reader", open_reader)
    return Models(made, made, made, made, print, print)


def test_overlapping_blocks_share_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks begin and end in all orders, also while another one is being connected or disconnected."""
    monkeypatch.setattr(process._now, "owned", False)  # another test of this process may have run a command
    opened = open_now = 0

    async def open_reader(self: Models, stack: AsyncExitStack) -> Any:
        nonlocal opened, open_now
        opened, open_now = opened + 1, open_now + 1
        assert open_now == 1

        async def close() -> None:
            nonlocal open_now
            await asyncio.sleep(0.001)
            open_now -= 1

        stack.push_async_callback(close)
        await asyncio.sleep(0.001)
        return object()

    async def work() -> None:
        one = models(monkeypatch, open_reader)

        async def read(number: int) -> None:
            await asyncio.sleep(number % 7 * 0.0007)
            async with one.reading():
                assert open_now == 1
                await asyncio.sleep(number % 5 * 0.0005)
                assert open_now == 1
                assert process.is_borrowed()

        await asyncio.gather(*(read(number) for number in range(60)))
        assert open_now == 0
        async with one.reading():
            pass
        assert open_now == 0
        assert opened > 1

    asyncio.run(work())
    assert not process.is_borrowed()


def test_a_failed_connection_leaves_nothing_and_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    async def open_reader(self: Models, stack: AsyncExitStack) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise AuthError("no key")
        return object()

    async def work() -> None:
        one = models(monkeypatch, open_reader)
        with pytest.raises(AuthError):
            async with one.reading():
                pass
        assert not process.is_borrowed()
        async with one.reading():
            pass

    asyncio.run(work())
    assert not process.is_borrowed()
