"""A bound on the nesting of JSON that is parsed as a stream.

ijson keeps the path of every level, so a file of 100 kB that is nothing but ``[`` would take more memory than there is.
"""

from __future__ import annotations

import re
from typing import IO, Protocol

import numpy as np

from memskill_cli.errors import DataError

MAX_DEPTH = 1000
_BRACKETS = b'[]{}"'
_REST = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_STRING = re.compile(rb'"[^"]*"')


class Readable(Protocol):
    """What ijson reads from."""

    def read(self, size: int = -1, /) -> bytes: ...


class DepthLimited:
    """A binary file of JSON. ``read`` raises DataError when the text becomes nested deeper than :data:`MAX_DEPTH`."""

    def __init__(self, file: IO[bytes] | Readable, where: str) -> None:
        self._file, self._where = file, where
        self._depth = 0
        self._in_string = False
        self._escape = b""

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._follow(data)
        return data

    def _follow(self, data: bytes) -> None:
        """Follow the depth of nesting through ``data``: first without escaped quotes, then without texts."""
        text = self._escape + data
        cut = (len(text) - len(text.rstrip(b"\\"))) % 2  # an escape whose second byte is in the next chunk
        self._escape = text[len(text) - cut :]
        text = text[: len(text) - cut].replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _REST)
        outside, quote, _ = _STRING.sub(b"", b'"' * self._in_string + text).partition(b'"')
        self._in_string = bool(quote)
        if not outside:
            return
        # The last four bits of "[" and "{" are 11, those of "]" and "}" are 13.
        depths = self._depth + np.cumsum(12 - (np.frombuffer(outside, np.uint8) & 15).astype(np.int64))
        if depths.max() > MAX_DEPTH:
            raise DataError(
                f"{self._where}: nested deeper than {MAX_DEPTH} levels", hint="this is no export of conversations"
            )
        self._depth = int(depths[-1])
