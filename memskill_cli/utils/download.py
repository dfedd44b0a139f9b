"""Fetching one file over HTTP: streamed, resumed where it broke off, its length checked.

Bytes go to ``<file>.part`` beside the goal, with a note of what they are part of in ``<file>.part.json``; both are kept
when an attempt fails, so that the same command later goes on from there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import orjson

from memskill_cli.errors import DownloadError, UsageError
from memskill_cli.utils.files import sync_folder, write_json
from memskill_cli.utils.redaction import strip_credentials

ATTEMPTS = 3
PAUSE = 0.5
"""Seconds before the second attempt; twice as long before the third."""
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
"""Seconds without a single byte before a connection counts as lost."""

Report = Callable[[int, int | None], None]
"""(bytes there so far, bytes in all or None when the server doesn't say)."""


class _LostError(Exception):
    """This attempt failed in a way that the next one may not."""


class _RefusedError(Exception):
    """The server will not give the file, however often it is asked."""


class _Part(NamedTuple):
    """What the bytes of a ``.part`` file belong to."""

    url: str  # without a password
    validator: str  # ETag or Last-Modified; "" if the server gave neither
    total: int | None


def download(url: str, goal: Path, *, hint: str = "", report: Report = lambda done, total: None) -> None:
    """Fetch ``url`` to ``goal``, whole or not at all.

    Raises DownloadError with ``hint`` when the server refuses, or after three attempts that broke off or came to the
    wrong length.
    """
    goal.parent.mkdir(parents=True, exist_ok=True)
    problem = ""
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT) as client:
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE * attempt)
            try:
                return _attempt(client, url, goal, report)
            except (httpx.TransportError, _LostError) as error:
                problem = f"{str(error) or type(error).__name__} (tried {ATTEMPTS} times)"
            except (httpx.HTTPError, httpx.InvalidURL, _RefusedError) as error:
                problem = str(error)
                break
    raise DownloadError(f"could not download {without_password(url)}: {strip_credentials(problem)}", hint=hint)


def without_password(url: str) -> str:
    """``url`` as it may be shown and stored: without passwords and keys. UsageError if it is none."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"{strip_credentials(url)!r} is no address: {strip_credentials(str(error))}") from None
    return strip_credentials(str(parsed.copy_with(userinfo=b"")) if parsed.userinfo else url)


def _attempt(client: httpx.Client, url: str, goal: Path, report: Report) -> None:
    part, note = goal.with_name(f"{goal.name}.part"), goal.with_name(f"{goal.name}.part.json")
    known = _read_note(note, without_password(url))
    done = part.stat().st_size if known and part.exists() else 0
    with client.stream("GET", url, headers=_headers(known, done)) as response:
        _check_status(response)
        if response.status_code == 200:
            done = 0
            known = _Part(without_password(url), _validator(response), _length(response))
            part.write_bytes(b"")  # before the note: bytes are never taken for part of something else
            write_json(note, known._asdict())
        elif not _continues(response, known, done):
            part.unlink(missing_ok=True)
            raise _LostError("what was begun does not fit what the server has now")
        total = known.total if known else None
        report(done, total)
        done = _append(response, part, done, total, report)
    if total is not None and done != total:
        raise _LostError(f"{done} bytes came, {total} were announced")
    os.replace(part, goal)
    note.unlink()
    sync_folder(goal.parent)


def _append(response: httpx.Response, part: Path, done: int, total: int | None, report: Report) -> int:
    with part.open("ab") as file:
        for chunk in response.iter_bytes():
            file.write(chunk)
            done += len(chunk)
            report(done, total)
        file.flush()
        os.fsync(file.fileno())
    return done


def _headers(known: _Part | None, done: int) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}  # lengths and ranges are to be those of the file itself
    if known and done:
        headers["Range"] = f"bytes={done}-"
        if known.validator:
            headers["If-Range"] = known.validator
    return headers


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    said = f"the server answered {status} {response.reason_phrase}".rstrip()
    if status in (408, 429) or status >= 500:
        raise _LostError(said)
    if status not in (200, 206, 416):
        raise _RefusedError(said)


def _continues(response: httpx.Response, known: _Part | None, done: int) -> bool:
    """Whether a 206 starts where the ``.part`` file ends, in a file of the same length."""
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("content-range", ""))
    return bool(known and span and int(span[1]) == done and int(span[2]) == known.total)


def _length(response: httpx.Response) -> int | None:
    return int(response.headers["content-length"]) if "content-length" in response.headers else None


def _validator(response: httpx.Response) -> str:
    """What ``If-Range`` may be asked with: a strong ETag, else the date of the last change."""
    etag = response.headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("last-modified", "")


def _read_note(note: Path, url: str) -> _Part | None:
    """The note beside a ``.part`` file; None if there is none, it is unreadable, or it is about another address."""
    try:
        part = _Part(**orjson.loads(note.read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None
    return part if part.url == url else None
