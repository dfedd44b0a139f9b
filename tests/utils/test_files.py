"""Files that survive a crash."""

from __future__ import annotations

import builtins
import io
import os
from pathlib import Path

import pytest

from memskill_cli.utils import files
from memskill_cli.utils.locks import locked

from ..fault_injection import Saboteur


def test_a_torn_line_is_owed_again_and_harms_no_other(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    files.append_line(log, {"n": 1})
    with log.open("ab") as file:
        file.write(b'{"n": 2, "te')  # killed here
    files.append_line(log, {"n": 3})
    assert [row["n"] for row in files.read_jsonl(log)] == [1, 3]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Saboteur:
    """Half of the next write to ``log.jsonl`` fits, and nothing of one to ``state.json``."""
    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that it is put back
    saboteur = Saboteur("ENOSPC half write log.jsonl 2; ENOSPC before write state.json 2")
    saboteur.install()
    return saboteur


def test_a_line_torn_by_a_full_disk_is_mended_by_the_next(tmp_path: Path, full_disk: Saboteur) -> None:
    log = tmp_path / "log.jsonl"
    files.append_line(log, {"n": 1})
    with pytest.raises(OSError, match="No space") as caught:
        files.append_line(log, {"n": 2})
    assert caught.value.filename == str(log), "what a failed write does not say by itself"
    assert not log.read_bytes().endswith(b"\n")
    files.append_line(log, {"n": 3})
    assert [row["n"] for row in files.read_jsonl(log)] == [1, 3]


def test_a_full_disk_is_said_of_the_file_that_was_meant(tmp_path: Path, full_disk: Saboteur) -> None:
    goal = tmp_path / "state.json"
    files.write_json(goal, {"old": True})
    with pytest.raises(OSError, match="No space") as caught:
        files.write_json(goal, {"new": True})
    assert caught.value.filename == str(goal)
    assert goal.read_bytes() == files.to_json({"old": True}, pretty=True)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_failed_rewrite_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = tmp_path / "state.json"
    files.write_json(goal, {"old": True})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(goal, {"new": True})
    assert goal.read_bytes() == files.to_json({"old": True}, pretty=True)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_what_a_killed_process_left_aside_is_swept_once_nobody_can_be_writing_it(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    old, new = tmp_path / "stages" / ".stage-000.json.abc.tmp", tmp_path / ".run.json.def.tmp"
    kept = tmp_path / "notes.tmp"
    for file in (old, new, kept):
        file.touch()
    for file in (old, kept):
        os.utime(file, (0, 0))
    with locked(tmp_path, "it"):
        assert not old.exists()
        assert new.exists(), "somebody may be about to put it in its place"
        assert kept.exists(), "not ours"


def test_what_is_done_at_last_does_not_hide_why_it_came_to_that() -> None:
    done: list[str] = []

    def fail() -> None:
        done.append("tried")
        raise OSError(28, "No space left on device", "run.json")

    with pytest.raises(OSError, match="metrics"), files.run_on_exit(fail):
        raise OSError(28, "No space left on device", "metrics.jsonl")
    with pytest.raises(OSError, match="run"), files.run_on_exit(fail):
        pass
    assert done == ["tried"] * 2
