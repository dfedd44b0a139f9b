"""Files that a crash cannot damage: a rewrite is a temporary file, fsync and rename; a log is only appended."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from memskill_cli.errors import MemskillError, RunError

_owned: dict[Path, tuple[int, int]] = {}
"""Folders that this process owns, each with its device and inode."""
LEFT_BEHIND = 600.0
"""Age in seconds after which a temporary file is taken for one of a killed process."""
_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def to_json(value: Any, *, pretty: bool = False) -> bytes:
    """JSON with a final newline; dataclasses, enums and numpy values are supported."""
    return orjson.dumps(value, option=_JSON | orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if pretty else 0))


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace ``path`` atomically and durably. If the disk is full, the old file does not change."""
    data = content.encode() if isinstance(content, str) else content
    check_owned(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):  # if the disk has failed, the first error is the one to report
                os.unlink(name)
            raise
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, to_json(value, pretty=True))


def append_line(path: Path, value: Any, *, durable: bool = False) -> None:
    """Append one JSON line in one write. An incomplete last line, left by a crash or a full disk, is ended first.

    Several processes may append to one file: a lock makes them wait for each other. With ``durable``, the line is on
    the disk when this function returns.
    """
    data = to_json(value)
    check_owned(path)
    with _naming(path), path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END) and _last_byte(file) != b"\n":
            data = b"\n" + data
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file. A line that a crash left incomplete is skipped, so its work is done again."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """During the block, nothing is written below ``folder`` once it has been renamed, removed or replaced."""
    path, before = folder.absolute(), _owned.get(folder.absolute())
    _owned[path] = _identity(path)
    try:
        yield
    finally:
        if before is None:
            _owned.pop(path, None)


def check_owned(path: Path) -> None:
    """Raise RunError if ``path`` is below a folder that this process owns and that is no longer the same folder.

    Without this check, a run that is renamed while it runs would make the old folder again, and one whose symbolic link
    is changed would write into another run.
    """
    whole = path.absolute()
    for folder, identity in list(_owned.items()):
        if whole.is_relative_to(folder) and _identity(folder) != identity:
            raise RunError(
                f"{folder} was renamed, removed or replaced while this command used it: it stops here",
                hint="give the folder its name again, then run the same command again",
            )


def _identity(folder: Path) -> tuple[int, int]:
    """Device and inode of a folder; zeros if there is none."""
    try:
        found = folder.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


@contextmanager
def run_on_exit(work: Callable[[], None]) -> Iterator[None]:
    """Do ``work`` at the end of the block, also after an error. Then an error of ``work`` does not replace that one."""
    try:
        yield
    except BaseException:
        with suppress(OSError, MemskillError):
            work()
        raise
    work()


def remove_stale(folder: Path) -> None:
    """Remove temporary files that killed processes left in ``folder`` and its subfolders."""
    for left in folder.rglob(".*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_BEHIND:
                left.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """OSErrors get the name ``path``: a failed write has no name, and a failed rename that of the temporary file."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
