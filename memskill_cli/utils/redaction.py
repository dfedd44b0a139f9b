"""Remove secrets from texts: known ones by their value, unknown ones by patterns.

A value is found in the forms in which servers repeat it: in another case, percent-encoded, escaped as in JSON or C
(``\\u0041``, ``\\x41``), as HTML entities, in hexadecimal, in base64 (alone, or within ``user:key``), reversed, with
single characters spaced out, broken over lines. Other forms (compressed, encrypted, in words, a mix of these forms) are
not found. The time of a search is linear in the length of the text.
Libraries that look for secrets know patterns only.
"""

from __future__ import annotations

import base64
import html
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO
from urllib.parse import unquote

FRAGMENT = 12
"""Every piece of a known secret with at least this number of characters is removed."""
SHORTEST = 8
"""Shorter values are not searched for, because ordinary texts contain them."""
MASK = "[key]"
NO_KEY = "none"
"""The key to give for servers that need no key. It is not a secret."""

# Maps upper case to lower case, and one alphabet of base64 to the other. The length of a text does not change.
_FOLD = str.maketrans(string.ascii_uppercase + "-_", string.ascii_lowercase + "+/")
_ESCAPE = re.compile(
    r"%[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|&#(?:\d{1,7}|[xX][0-9A-Fa-f]{1,6});|&(?:amp|lt|gt|quot|apos);"
    r"|\\[/\"'\\]|(?:[\r\n]|\\[rn])\s*"
)
_SPACED = re.compile(r"(?:[^\s]([ \t,.:|_-]{1,3}))(?:[^\s]\1){6,}[^\s]")
"""Single characters with the same separator between them."""
_NAMES = re.compile(
    r"(?:API_?KEYS?|_KEY|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|SECRET\w*)(?:_\d+)?$", re.IGNORECASE
)
_WORD = r"(?:key|token|secret|password|passwd|pwd|sig|signature|credential|auth)"
_IN_ADDRESSES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"://[^/\s\"'<>@]*@(?:[^/\s\"'<>@]*@)*"), f"://{MASK}@"),
    (re.compile(rf"([?&;][\w.-]{{0,40}}?{_WORD}=)[^&\s\"'<>#;]+", re.IGNORECASE), rf"\1{MASK}"),
)
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    *_IN_ADDRESSES,
    (
        re.compile(
            r"((?:authorization|api[-_ ]?key|subscription-key|security-token)[\"']?\s*[:=]\s*[\"']?"
            r"(?:(?:bearer|basic|token)\s+)?)(?=\S{0,200}\d)[^\s\"',;&]{8,}",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(\bbearer\s+)(?=\S{0,200}\d)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{MASK}"),
    (
        re.compile(
            r"\b(?:sk|pk|rk|gsk|hf|xai|gh[opsu]|pplx|nvapi|r8)[-_](?:\w{2,8}-){0,2}(?=[\w-]{0,40}\d)[A-Za-z0-9]{16,}[\w-]*"
        ),
        MASK,
    ),
    (re.compile(r"\bAIza[\w-]{30,}|\bAKIA[A-Z0-9]{16}|\beyJ[\w-]{10,}\.[\w-]+\.[\w-]*"), MASK),
)


class Secrets:
    """Values to remove from texts. Values shorter than :data:`SHORTEST` are ignored.

    With ``whole``, only whole values are removed, else also pieces of :data:`FRAGMENT` characters.
    """

    def __init__(self, values: Iterable[str], *, whole: bool = False) -> None:
        self._pieces: dict[int, set[str]] = {}  # by their length
        for form in {form for value in values if len(value) >= SHORTEST for form in _forms(value)}:
            length = len(form) if whole else min(len(form), FRAGMENT)
            self._pieces.setdefault(length, set()).update(_runs(form, length))

    def redact(self, text: str) -> str:
        """``text`` with :data:`MASK` in place of values, in all forms."""
        spans = [*self._find(text.translate(_FOLD))]
        for form in (_ESCAPE, _SPACED):
            if self._pieces and form.search(text):
                plain, places = _decoded(text, form)
                spans += [(places[start][0], places[end - 1][1]) for start, end in self._find(plain.translate(_FOLD))]
        return _masked(text, sorted(spans)) if spans else text

    def _find(self, folded: str) -> Iterator[tuple[int, int]]:
        for length, pieces in self._pieces.items():
            for start, run in enumerate(_runs(folded, length)):
                if run in pieces:
                    yield start, start + length


def redact_patterns(text: str) -> str:
    """``text`` without anything that looks like a secret, such as keys in addresses and headers."""
    return _replaced(text, _SHAPES)


def strip_credentials(address: str) -> str:
    """``address`` without user and password, and without keys in its parameters."""
    return _replaced(address, _IN_ADDRESSES)


def secrets_of(environ: Mapping[str, str]) -> set[str]:
    """The secrets in environment variables: values of variables with names like API_KEY, and passwords in addresses.

    Short values, plain words, and paths of existing files are left out.
    """
    named = {part.strip() for name, value in environ.items() if _NAMES.search(name) for part in _parts(name, value)}
    found = {value for value in named if not (value.isalpha() and len(value) < 16) and not os.path.exists(value)}
    for value in environ.values():
        for password in re.findall(r"://[^/\s:@]*:([^/\s]+)@", value):
            found |= {password, unquote(password)}
    return {value for value in found if len(value) >= SHORTEST}


class _Known:
    """The secrets that this process knows."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._secrets: Secrets | None = None

    def add(self, values: Iterable[str]) -> None:
        self._values.update(values)
        self._secrets = None

    def secrets(self) -> Secrets:
        if self._secrets is None:
            self._secrets = Secrets(self._values | secrets_of(os.environ))
        return self._secrets


_known = _Known()


def remember(values: Iterable[str]) -> None:
    """Let :func:`redact` also remove these values."""
    _known.add(values)


def redact(text: str) -> str:
    """``text`` for output and logs: without known secrets, and without anything that looks like one."""
    return redact_patterns(_known.secrets().redact(text))


class RedactingStream:
    """A replacement for stderr that removes secrets from everything that is written, also by libraries."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def names_secret(variable: str) -> bool:
    """Whether the value of an environment variable with this name is treated as a secret."""
    return bool(_NAMES.search(variable))


def _replaced(text: str, patterns: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in patterns:
        text = pattern.sub(replacement, text)
    return text


def _parts(name: str, value: str) -> list[str]:
    return value.split(",") if name.upper().endswith("KEYS") else [value]


def _forms(value: str) -> Iterator[str]:
    """The forms of ``value`` in a folded text. In base64, only the characters that depend on nothing but ``value``."""
    yield value.translate(_FOLD)
    yield value.translate(_FOLD)[::-1]
    yield _decoded(value, _ESCAPE)[0].translate(_FOLD)
    data = value.encode()
    yield data.hex()
    for before in range(3):  # number of other bytes before it in its first group of three
        text = base64.b64encode(bytes(before) + data).decode()
        first, end = -(-8 * before // 6), 8 * (before + len(data)) // 6
        yield text[first:end].translate(_FOLD)


def _runs(text: str, length: int) -> Iterator[str]:
    return (text[i : i + length] for i in range(len(text) - length + 1))


def _decoded(text: str, form: re.Pattern[str]) -> tuple[str, list[tuple[int, int]]]:
    """``text`` without escapes and line breaks, or without the separators of spaced characters (``form``); and the
    (start, end) in ``text`` of each of its characters."""
    pieces: list[str] = []
    places: list[tuple[int, int]] = []
    at = 0
    for found in form.finditer(text):
        start, end = found.span()
        pieces.append(text[at:start])
        places += [(i, i + 1) for i in range(at, start)]
        if form is _SPACED:
            step = 1 + len(found[1])
            pieces.append(found[0][::step])
            places += [(i, i + 1) for i in range(start, end, step)]
        else:
            pieces.append(char := _unescaped(found[0]))
            places += [(start, end)] * len(char)
        at = end
    places += [(i, i + 1) for i in range(at, len(text))]
    return "".join([*pieces, text[at:]]), places


def _unescaped(escape: str) -> str:
    if escape[0] == "%":
        return chr(int(escape[1:], 16))
    if escape[:2] in ("\\u", "\\x"):
        return chr(int(escape[2:], 16))
    if escape[0] == "&":
        return html.unescape(escape)
    return escape[1] if escape[0] == "\\" and escape[1] not in "rn" else ""


def _masked(text: str, spans: list[tuple[int, int]]) -> str:
    """``text`` with one mask for each region that ``spans`` cover. ``spans`` must be sorted."""
    kept: list[str] = []
    at, covered = 0, -1  # covered: the end of the current region
    for start, end in spans:
        if start > covered:
            kept += [text[at:start], MASK]
        covered = at = max(covered, end)
    return "".join([*kept, text[at:]])
