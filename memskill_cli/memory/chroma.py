"""Chroma clients for a server or a folder. A folder with a damaged database is renamed and replaced."""

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
    """A client for a folder or the URL of a server. ``notice`` is called if a damaged folder is renamed."""
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
    """Create ``folder``. If its database is damaged, rename it first."""
    database = folder / "chroma.sqlite3"
    if database.exists() and (damage := _damage(database)):
        number = 1
        while (backup := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
            number += 1
        folder.rename(backup)
        notice(f"the memory in {folder} was damaged ({damage}): it was renamed to {backup}, and a new one was created")
    folder.mkdir(parents=True, exist_ok=True)


def _damage(database: Path) -> str:
    """SQLite's description of the damage of a file, "" if there is none."""
    with closing(sqlite3.connect(database)) as opened:
        try:
            ((found,),) = opened.execute("PRAGMA quick_check(1)").fetchall()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                return str(error)
            raise
    return "" if found == "ok" else str(found)


def _with_few_indexes(client: Any) -> ClientAPI:
    """``client`` with at most :data:`OPEN_INDEXES` open indexes. Chroma's own limit is in the thousands and has no
    setting; a bank takes 5 MB and eight open files."""
    server = client._server
    server.stop()
    server.hnsw_cache_size = OPEN_INDEXES
    server.start()
    return client
