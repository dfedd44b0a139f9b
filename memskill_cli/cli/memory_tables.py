"""Tables of ``memskill memory``. Texts of users and models are shown and never interpreted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from memskill_cli.cli.console import escape_markup

if TYPE_CHECKING:
    from rich.console import RenderableType

    from memskill_cli.live.records import Change, Found, Version


def memories(found: Sequence[Found], *, scores: bool = False) -> RenderableType:
    """One row a memory; with ``scores`` that of the search."""
    if not found:
        return "no memories"
    table = _table("id", *(("score",) if scores else ()), "memory", "updated", "session")
    for one in found:
        score = (f"{one.score:.2f}",) if scores else ()
        table.add_row(one.id, *score, _text(one.text), _time(one.updated_at), _text(one.session_id))
    return table


def users(found: Sequence[str]) -> RenderableType:
    if not found:
        return "no users"
    table = _table("user")
    for user in found:
        table.add_row(_text(user))
    return table


def changes(found: Sequence[Change], pending: int) -> Iterator[RenderableType]:
    """The changes of memories, and how many messages wait."""
    if found:
        table = _table("id", "event", "memory")
        for change in found:
            table.add_row(change.id, change.event, _text(change.text))
        yield table
    else:
        yield "no memory changed"
    if pending:
        yield f"{pending} messages wait for the rest of their span"


def one(memory_id: str, found: Found | None, history: Sequence[Version]) -> Iterator[RenderableType]:
    """A memory with its history and its sources."""
    yield Text(memory_id, "bold")
    if found is None:
        yield "deleted by the model"
    else:
        yield _text(found.text)
        about = f"created {_time(found.created_at)} · updated {_time(found.updated_at)} · session {found.session_id}"
        yield Text.assemble((about, "dim"))
        if found.metadata:
            yield _text(f"metadata {found.metadata}")
    table = _table("at", "event", "by", "skills", "text", title="history")
    for version in history:
        skills = ", ".join(version.skills)
        table.add_row(_time(version.at), version.event, version.by, _text(skills), _text(version.text))
    yield table
    if found is not None and found.sources:
        table = _table("message", "said", "speaker", "text", title="sources")
        for turn in found.sources:
            table.add_row(_text(turn.id), _time(turn.said_at), _text(turn.speaker), _text(turn.text))
        yield table


def stats(found: dict[str, Any]) -> Iterator[RenderableType]:
    """The counts of a user or of a store."""
    table = _table("what", "value")
    for name, value in found.items():
        if name != "calls":
            table.add_row(name.replace("_", " "), _text(str(value)))
    yield table
    if found.get("calls"):
        calls = _table(*found["calls"][0])
        for row in found["calls"]:
            calls.add_row(
                *(_text(f"{value:.4f}" if isinstance(value, float) else str(value)) for value in row.values())
            )
        yield calls


def _table(*headers: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left")
    for header in headers:
        table.add_column(header, no_wrap=header in ("id", "score", "event"))
    return table


def _text(text: str) -> Text:
    return Text.from_markup(escape_markup(text), emoji=False)


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"
