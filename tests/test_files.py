"""Files that survive a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from memskill_cli import files


def test_a_torn_line_is_owed_again_and_harms_no_other(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    files.append_line(log, {"n": 1})
    with log.open("ab") as file:
        file.write(b'{"n": 2, "te')  # killed here
    files.append_line(log, {"n": 3})
    assert [row["n"] for row in files.read_jsonl(log)] == [1, 3]


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
