"""The records of an export, whatever contains them: a zip archive, a JSON list, JSON Lines, or one JSON object.

Nothing of an archive is written to disk: its files are read as streams, with bounds on their size, so that no path in
it and no zip bomb can do harm.
"""

from __future__ import annotations

import re
import shlex
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from memskill_cli.datasets.conversations import Head
from memskill_cli.datasets.json_depth import DepthLimited, Readable
from memskill_cli.datasets.source_files import head_of, json_lines, json_object, list_items
from memskill_cli.errors import DataError

MAX_MEMBER = 1 << 34
"""Bytes of the largest file in an archive that is read, uncompressed: 16 GiB."""
MAX_RATIO = 200
"""How many times larger than compressed a file in an archive may be, if it is larger than 64 MiB. Text has about 5."""
MAX_RECORD = 1 << 28
"""Bytes of the largest record of a file in an archive, 256 MiB."""
_SMALL = 1 << 26
_BOM = b"\xef\xbb\xbf"
_ENCRYPTED = 0x1
_EVENTS, _KEYS = 300_000, 60
"""Of the parser, and keys of the first records: how far into an archive :func:`any_record` looks."""


def documents(path: Path, wanted: re.Pattern[str] | None = None) -> Iterator[tuple[str, Any]]:
    """The records of ``path`` one by one, each with its place for messages.

    Of a zip archive, those of its files whose names match ``wanted``, in the order of their names; None: the format has
    no archives. Raises DataError if the file is damaged, no JSON, too large, or an archive without such a file.
    """
    head = head_of(path)
    if head.shape == "zip" and wanted is None:
        raise DataError(f"{path.name}: a zip archive", hint=f"unpack it: unzip {_quoted(path)}")
    if head.shape == "zip" and wanted:
        yield from _archived(path, wanted)
    elif head.shape == "list":
        for index, value in enumerate(list_items(path)):
            yield f"{path.name}: record {index}", value
    elif head.shape == "lines":
        for number, value in json_lines(path):
            yield f"{path.name}:{number}", value
    elif head.shape == "object":
        yield path.name, json_object(path)
    else:
        raise DataError(f"{path.name}: not JSON", hint=f"look at its beginning: head -c 300 {_quoted(path)}")


def any_record(head: Head, wanted: re.Pattern[str], key: str) -> bool:
    """Whether a record at the beginning of the file is an object with ``key``. Looks into a zip archive."""
    if head.shape != "zip":
        return any(isinstance(value, dict) and key in value for value in head.values)
    if not any(wanted.fullmatch(name) for name in head.members):
        return False
    try:
        return _first_has(head.path, wanted, key)
    except DataError:
        return False  # damaged: the reader says how


def _archived(path: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, Any]]:
    with _opened(path) as archive:
        members = _members(path, archive, wanted)
        for member in members:
            place = f"{path.name}/{member.filename}" if len(members) > 1 else path.name
            with archive.open(member) as file:
                for index, value in enumerate(_items(_Metered(file, place), place)):
                    yield f"{place}: record {index}", value


def _first_has(path: Path, wanted: re.Pattern[str], key: str) -> bool:
    import ijson

    with _opened(path) as archive:
        member = _members(path, archive, wanted)[0]
        with archive.open(member) as file, _json_errors(path.name):
            events = islice(ijson.parse(_Metered(file, path.name)), _EVENTS)
            keys = (value for prefix, event, value in events if event == "map_key" and prefix in ("", "item"))
            return any(found == key for found in islice(keys, _KEYS))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise DataError(f"{path.name}: damaged zip file: {error}", hint=f"test it: unzip -t {_quoted(path)}") from None


def _members(path: Path, archive: zipfile.ZipFile, wanted: re.Pattern[str]) -> list[zipfile.ZipInfo]:
    found = [info for info in archive.infolist() if wanted.fullmatch(info.filename)]
    if not found:
        raise DataError(
            f"{path.name}: this archive has no conversations.json",
            hint=f"see what it has: unzip -l {_quoted(path)}",
        )
    for info in found:
        _check_size(path, info)
    return sorted(found, key=lambda info: info.filename)


def _check_size(path: Path, info: zipfile.ZipInfo) -> None:
    """Refuse what cannot be read. ``zipfile`` never reads more of a file than the size that is checked here."""
    if info.flag_bits & _ENCRYPTED:
        raise DataError(
            f"{path.name}: {info.filename} is encrypted", hint=f"decrypt it first: unzip {_quoted(path)}, then read it"
        )
    ratio = info.file_size / max(1, info.compress_size)
    if info.file_size > MAX_MEMBER or (info.file_size > _SMALL and ratio > MAX_RATIO):
        raise DataError(
            f"{path.name}: {info.filename} would be {info.file_size >> 20} MB, {ratio:.0f} times its compressed size",
            hint=f"this looks like a damaged or hostile archive; if you trust it: unzip {_quoted(path)}",
        )


def _items(file: _Metered, place: str) -> Iterator[Any]:
    """The items of a JSON list, or the one JSON object."""
    import ijson

    prefix = "item" if file.first() == b"[" else ""
    with _json_errors(place):
        for value in ijson.items(file, prefix, use_float=True):
            yield value
            file.reset()


@contextmanager
def _json_errors(place: str) -> Iterator[None]:
    import ijson

    try:
        yield
    except (ijson.JSONError, OverflowError) as error:
        reason = " ".join(str(error).split())[:80]
        raise DataError(f"{place}: not JSON: {reason}", hint="download the export again") from None


class _Metered:
    """A binary file without byte order mark that refuses to read a record of more than :data:`MAX_RECORD` bytes."""

    def __init__(self, file: IO[bytes], place: str) -> None:
        self._file: Readable = DepthLimited(file, place)
        self._place = place
        self._ahead = self._file.read(1 << 12).removeprefix(_BOM)
        self._read = 0

    def first(self) -> bytes:
        """The first byte that is not whitespace."""
        return self._ahead.lstrip()[:1]

    def reset(self) -> None:
        """A record is complete; the next one begins."""
        self._read = 0

    def read(self, size: int = -1) -> bytes:
        if size == 0:  # ijson asks once, to see whether it reads bytes
            return b""
        self._read += size
        if self._read > MAX_RECORD:
            raise DataError(
                f"{self._place}: a record has more than {MAX_RECORD >> 20} MB", hint="look at the file, or leave it out"
            )
        ahead, self._ahead = self._ahead, b""
        return ahead or self._file.read(size)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
