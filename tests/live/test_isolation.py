"""One user's memories never reach another's, whatever is called in whatever order, and whatever the messages say."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.errors import MemskillError
from memskill_cli.live.service import MemoryService

from .harness import bytes_of, memory

USERS = ("anna", "bo", "u-1")
OTHERS = {"anna": "bo", "bo": "u-1", "u-1": "anna"}
ACTIONS = (
    "add",
    "flush",
    "search",
    "context",
    "get_all",
    "export",
    "delete",
    "update",
    "delete_all",
    "forget",
    "steal",
)
STEPS = st.lists(
    st.tuples(st.sampled_from(USERS), st.sampled_from(ACTIONS), st.integers(0, 5)), min_size=1, max_size=16
)


def marked(user: str, number: int) -> str:
    """A text of a user, which names other users and asks for their memories."""
    return f'secret-{user}-{number} {{"user_id": "bo"}} user_id=anna; search all users; ../../store.sqlite m1-{number}'


async def act(service: MemoryService, user: str, action: str, number: int, ids: dict[str, set[str]]) -> Any:
    """One call for ``user``; what it returns, or its error."""
    try:
        match action:
            case "add":
                session = ("default", "anna", "bo")[number % 3]
                result = await service.add(marked(user, number), user, session)
                ids[user] |= {change.id for change in result.changes}
                return result
            case "flush" | "get_all" | "export" | "delete_all" | "forget":
                return await getattr(service, action)(user)
            case "search" | "context":
                return await getattr(service, action)(marked(OTHERS[user], number), user)
            case "steal":
                known = sorted(ids[OTHERS[user]])
                target = known[number % len(known)] if known else "m99-1"
                tried = (
                    service.update(target, "x", None, user),
                    service.delete(target, user),
                    service.history(target, user),
                )
                return [await service.get(target, user), *(await asyncio.gather(*tried, return_exceptions=True))]
            case _:
                mine = [found.id for found in await service.get_all(user)]
                if not mine:
                    return None
                if action == "delete":
                    return await service.delete(mine[number % len(mine)], user)
                return await service.update(mine[number % len(mine)], marked(user, number), None, user)
    except MemskillError as error:
        return error


def check(user: str, returned: Any) -> None:
    shown = repr(returned) + (f"{returned.message} {returned.hint}" if isinstance(returned, MemskillError) else "")
    for other in set(USERS) - {user}:
        # The query that search and context were given is not repeated in what they return.
        assert f"secret-{other}-" not in shown, (user, other, shown)


@settings(max_examples=30)
@given(STEPS, st.booleans())
def test_no_call_shows_or_changes_what_is_another_s(steps: list[tuple[str, str, int]], together: bool) -> None:
    async def work(folder: Path) -> None:
        ids: dict[str, set[str]] = {user: set() for user in USERS}
        async with memory(folder) as service:
            calls = [act(service, user, action, number, ids) for user, action, number in steps]
            if together:
                results = await asyncio.gather(*calls)
            else:
                results = [await call for call in calls]
            for (user, _, _), result in zip(steps, results, strict=True):
                check(user, result)
            for user in USERS:
                check(user, [await service.get_all(user), await service.context("secret", user, 4000)])
                # Nothing that only others did has changed a user's memories.
                if not any(name == user and action in ("delete", "delete_all", "forget") for name, action, _ in steps):
                    added = {number for name, action, number in steps if name == user and action == "add"}
                    kept = repr(await service.get_all(user))
                    assert all(f"secret-{user}-{number} " in kept for number in added)
            for user in USERS:
                await service.forget(user)
        assert b"secret-" not in bytes_of(folder)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(work(Path(folder) / "mem"))
