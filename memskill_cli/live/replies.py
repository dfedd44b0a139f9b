"""Replies of the model and their cost, kept in the store's own files.

A reply is kept in the file of the user whose span it is about, from the moment it arrives until the span is committed;
then it is deleted in the same transaction. So a crash in between pays for nothing twice, and no reply outlives its
user.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from memskill_cli.live.store import Store
from memskill_cli.live.user_file import UserFile
from memskill_cli.llm.cache import Stored
from memskill_cli.llm.ledger import Bill, Ledger

_FILE: ContextVar[UserFile | None] = ContextVar("_FILE", default=None)


@contextmanager
def kept_in(file: UserFile) -> Iterator[None]:
    """The replies to this task's calls in the block are kept in ``file``."""
    token = _FILE.set(file)
    try:
        yield
    finally:
        _FILE.reset(token)


class SpanReplies:
    """A reply cache (:class:`~memskill_cli.llm.cache.ReplyCache`) over the files of users."""

    def get(self, key: str) -> Stored | None:
        file = _FILE.get()
        found = file.row("SELECT text, bill FROM replies WHERE key = ?", (key,)) if file else None
        return Stored(*found) if found else None

    def put(self, key: str, text: str, bill: str = "") -> None:
        file = _FILE.get()
        if file is not None and not file.closed:  # a call that was cancelled may get its reply late
            file.run("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, text, bill))


class StoreLedger(Ledger):
    """A ledger whose calls are added up in the store: the budget is one of the store, over all its openings.

    A process that is killed between a reply and its line in the ledger loses the line: the reply is kept, its cost is
    not counted. For calls in flight that is the same.
    """

    def __init__(self, store: Store, *, max_cost: float) -> None:
        super().__init__(None, scope=f"the memory in {store.folder}", max_cost=max_cost)
        self._store = store
        self.spent = sum(row["usd"] for row in store.usage())

    def write(self, bill: Bill) -> None:
        self._store.add_usage(bill)
