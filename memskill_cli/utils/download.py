"""Download one file over HTTP. An interrupted download is resumed, and the length is checked.

Bytes are written to ``<file>.part``, and a description of their file to ``<file>.part.json``. Both are kept if an
attempt fails, so that the same command continues the download later. huggingface_hub does this only for the Hub;
LoCoMo is on GitHub.
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
"""Called with (bytes so far, bytes in total or None if unknown)."""


class _LostError(Exception):
    """This attempt failed; the next one may succeed."""


class _RefusedError(Exception):
    """The server refused the file; another attempt would not help."""


class _Part(NamedTuple):
    """The file to which the bytes of a ``.part`` file belong."""

    url: str  # without a password
    validator: str  # ETag or Last-Modified; "" if the server gave neither
    total: int | None


def download(url: str, goal: Path, *, hint: str = "", report: Report = lambda done, total: None) -> None:
    """Download ``url`` to ``goal``, which exists only when it is complete.

    Raises DownloadError with ``hint`` if the server refuses, or after three attempts that were interrupted or had the
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
    """``url`` without passwords and keys, to be shown and stored. Raises UsageError if it is not a valid URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(
            f"{strip_credentials(url)!r} is not a valid address: {strip_credentials(str(error))}"
        ) from None
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
            part.write_bytes(b"")  # before the note, so that bytes are never counted as part of another file
            write_json(note, known._asdict())
        elif not _continues(response, known, done):
            part.unlink(missing_ok=True)
            raise _LostError("the file on the server has changed since the download began")
        total = known.total if known else None
        report(done, total)
        done = _append(response, part, done, total, report)
    if total is not None and done != total:
        raise _LostError(f"received {done} bytes instead of {total}")
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
    headers = {"Accept-Encoding": "identity"}  # so that lengths and ranges are those of the file itself
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
    """The value for ``If-Range``: a strong ETag, else the date of the last change."""
    etag = response.headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("last-modified", "")


def _read_note(note: Path, url: str) -> _Part | None:
    """The note beside a ``.part`` file; None if it is missing or damaged, or is for another address."""
    try:
        part = _Part(**orjson.loads(note.read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None
    return part if part.url == url else None
