"""Open files of conversations: plain, gzip or zstd; JSON Lines or one JSON list; read record by record.

Compression is recognised by content. No file is loaded as a whole, except one JSON object.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shlex
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from memskill_cli.datasets.conversations import Head
from memskill_cli.datasets.json_depth import DepthLimited
from memskill_cli.errors import DataError

START = 1 << 16
MAX_LINE = 1 << 28
"""Bytes of the longest line that is read, 256 MiB."""
MAX_OBJECT = 1 << 29
"""Bytes of the largest file that is one JSON object, 512 MiB."""
BOM = b"\xef\xbb\xbf"
LINES, ITEMS = 20, 5
"""How many records of a file :func:`head_of` parses."""


@contextmanager
def open_source(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for reading bytes, decompressed if it is gzip or zstd. Raises DataError if it is damaged."""
    magic = _magic(path)
    try:
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                yield file  # type: ignore[misc]  # GzipFile reads as any binary file does
        elif magic == b"\x28\xb5\x2f\xfd":
            import pyarrow as pa

            with pa.input_stream(str(path), compression="zstd") as stream:
                yield io.BufferedReader(_Raw(stream), START)
        else:
            with path.open("rb") as file:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path.name}: damaged gzip file: {error}", hint=f"test it: gzip -t {_quoted(path)}") from None
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read: {error}", hint=f"look at it: ls -l {_quoted(path)}") from None


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint=f"ls -l {_quoted(path)}") from None


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The records of a JSON Lines file with their line numbers, from 1. Blank lines are left out.

    A byte order mark and CRLF are accepted. Raises DataError with the line that is not JSON.
    """
    for number, line in lines(path):
        yield number, parsed(line, f"{path.name}:{number}")


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, stripped, with their numbers from 1."""
    with open_source(path) as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise DataError(
                    f"{path.name}:{number}: the line is longer than {MAX_LINE >> 20} MB",
                    hint="a line is one session; is the file one JSON list? see docs/own-data.md",
                )
            bare = line.removeprefix(BOM).strip() if number == 1 else line.strip()
            if bare:
                yield number, bare


def parsed(line: bytes, where: str) -> Any:
    """The JSON value of a line. Half of a surrogate pair (a cut emoji) is read as "?".

    Raises DataError, which begins with ``where``, if it is not JSON.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:  # orjson refuses text with half of a surrogate pair, which programs write that cut texts
            return orjson.loads(json.dumps(json.loads(line), ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            reason = str(error).split(": line ")[0]
        raise DataError(
            f"{where}: not JSON: {reason} (column {error.colno})", hint="every line must be one JSON object"
        ) from None


def list_items(path: Path) -> Iterator[Any]:
    """The items of a file that is one JSON list, one by one. Raises DataError if it is not JSON."""
    import ijson

    count = 0
    with open_source(path) as file:
        try:
            for value in ijson.items(DepthLimited(_without_bom(file), path.name), "item", use_float=True):
                count += 1
                yield value
        except ijson.JSONError as error:
            reason = re.sub(r"\s+", " ", str(error)).split(" \\n")[0][:80]
            raise DataError(
                f"{path.name}: not JSON: {reason} (after {count} records)",
                hint=f"look at it: python -m json.tool {_quoted(path)}",
            ) from None


def json_object(path: Path) -> Any:
    """The value of a file that is one JSON object. Raises DataError if it is too large or not JSON."""
    with open_source(path) as file:
        data = file.read(MAX_OBJECT + 1)
    if len(data) > MAX_OBJECT:
        raise DataError(
            f"{path.name}: one JSON object of more than {MAX_OBJECT >> 20} MB", hint="write it as JSON Lines"
        )
    return parsed(data.removeprefix(BOM).strip(), path.name)


def head_of(path: Path) -> Head:
    """The beginning of a file. Raises DataError for what is no data: an LFS pointer, a web page, an empty file."""
    if _magic(path) == b"PK\x03\x04":
        return Head(path, b"", "zip", members=_members(path))
    with open_source(path) as file:
        start = file.read(START).removeprefix(BOM).lstrip()
    _check_start(path, start)
    shape = _shape(path, start)
    values: tuple[Any, ...] = ()
    if shape == "lines":
        values = tuple(value for _, value in islice(json_lines(path), LINES))
    elif shape == "list":
        values = tuple(islice(list_items(path), ITEMS))
    elif shape == "object":
        values = (json_object(path),)
    return Head(path, start, shape, values)


def _shape(path: Path, start: bytes) -> Literal["lines", "list", "object", "other"]:
    if start[:1] == b"[":
        return "list"
    if start[:1] != b"{":
        return "other"
    _, first = next(lines(path))
    try:
        parsed(first, "")
    except DataError:
        # One object over several lines; or JSON Lines whose first line is broken, which the reader then says.
        return "object" if first in (b"{", b"{}") or not first.endswith(b"}") else "lines"
    return "lines"


def _check_start(path: Path, start: bytes) -> None:
    if not start:
        raise DataError(f"{path.name}: empty", hint=f"look at it: ls -l {_quoted(path)}")
    if start.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path.name}: a Git LFS pointer, not the file itself",
            hint=f"git lfs pull --include {_quoted(path)}",
        )
    if re.match(rb"<(!doctype html|html|\?xml|head|body)", start, re.IGNORECASE):
        raise DataError(
            f"{path.name}: a web page (HTML), not data: probably the error or sign-in page of a download",
            hint=f"read what it says, then download the file again: head -c 500 {_quoted(path)}",
        )
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            f"{path.name}: UTF-16, expected UTF-8",
            hint=f"iconv -f UTF-16 -t UTF-8 {_quoted(path)} > {shlex.quote(path.stem + '-utf8' + path.suffix)}",
        )


def _members(path: Path) -> tuple[str, ...]:
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except zipfile.BadZipFile as error:
        raise DataError(f"{path.name}: damaged zip file: {error}", hint=f"unzip -t {_quoted(path)}") from None


class _Raw(io.RawIOBase):
    """A stream of pyarrow, which has no lines, for :class:`io.BufferedReader`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _WithoutBom:
    """A binary file without its byte order mark."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._start = file.read(3).removeprefix(BOM)

    def read(self, size: int = -1) -> bytes:
        if size == 0:  # ijson asks once, to see whether it reads bytes
            return b""
        kept, self._start = self._start, b""
        return kept + self._file.read(size)


def _without_bom(file: IO[bytes]) -> _WithoutBom:
    return _WithoutBom(file)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
