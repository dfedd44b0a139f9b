"""Chroma's clients: of a server, or of a folder, which is set aside and begun anew if its database is damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

OPEN_INDEXES = 32


def is_server(location: Path | str) -> bool:
    return "://" in str(location)


def connect(location: Path | str, notice: Callable[[str], None]) -> ClientAPI:
    """A client for a folder, or for a server's URL. ``notice`` is told if what was in the folder is set aside."""
    import chromadb
    from chromadb.config import Settings

    settings = Settings(anonymized_telemetry=False)
    if not is_server(location):
        _prepare(Path(location), notice)
        return _with_few_indexes(chromadb.PersistentClient(str(location), settings=settings))
    url = urlsplit(str(location))
    secure = url.scheme == "https"
    return chromadb.HttpClient(
        host=url.hostname or "localhost", port=url.port or (443 if secure else 8000), ssl=secure, settings=settings
    )


def _prepare(folder: Path, notice: Callable[[str], None]) -> None:
    """Make ``folder``, or set it aside and make a new one if its database is damaged."""
    database = folder / "chroma.sqlite3"
    if database.exists() and (fault := _fault(database)):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
            number += 1
        folder.rename(aside)
        notice(f"the memory in {folder} was damaged ({fault}): it is now {aside}, and a new one is begun")
    folder.mkdir(parents=True, exist_ok=True)


def _fault(database: Path) -> str:
    """What is broken in an SQLite file, "" if nothing is."""
    with closing(sqlite3.connect(database)) as opened:
        try:
            ((found,),) = opened.execute("PRAGMA quick_check(1)").fetchall()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                return str(error)
            raise
    return "" if found == "ok" else str(found)


def _with_few_indexes(client: Any) -> ClientAPI:
    """``client``, holding no more indexes open than :data:`OPEN_INDEXES`: its own limit has no setting, and is in the
    thousands, at 5 MB and eight files for a bank."""
    server = client._server
    server.stop()
    server.hnsw_cache_size = OPEN_INDEXES
    server.start()
    return client
