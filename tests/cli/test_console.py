"""The message for errors that are not a MemskillError."""

from __future__ import annotations

import errno
import os

import pytest

from memskill_cli.cli.console import explain


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("ENOSPC", "the disk is full: runs/a/run.json could not be written"),
        ("EDQUOT", "the disk is full: runs/a/run.json could not be written"),
        ("EROFS", "cannot write runs/a/run.json: Read-only file system"),
        ("EACCES", "cannot write runs/a/run.json: Permission denied"),
        ("EIO", "runs/a/run.json: Input/output error"),
        ("ENOTDIR", "runs/a/run.json: Not a directory"),
    ],
)
def test_what_a_disk_says_names_the_file_and_what_to_do(code: str, line: str) -> None:
    number = getattr(errno, code)
    told, hint, exit_code = explain(OSError(number, os.strerror(number), "runs/a/run.json"))
    assert (told, exit_code) == (line, 1)
    assert hint
    assert "defect" not in hint


def test_a_disk_that_does_not_say_of_which_file() -> None:
    full = explain(OSError(errno.ENOSPC, "No space left on device"))
    assert full[0] == "the disk is full: a file could not be written"
    assert explain(OSError(errno.EIO, "Input/output error"))[0] == "a file: Input/output error"


@pytest.mark.parametrize(
    "error", [ConnectionResetError(errno.ECONNRESET, "Connection reset"), ValueError("x"), OSError()]
)
def test_what_no_file_system_said_is_a_defect_of_ours(error: Exception) -> None:
    assert "defect of memskill" in explain(error)[1]
