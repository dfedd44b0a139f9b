"""A folder has one owner, and no dead process keeps it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memskill_cli.errors import RunError, RunLockedError
from memskill_cli.utils import files, locks
from memskill_cli.utils.locks import is_held, locked

HOLD = """
import sys, time
from pathlib import Path
from memskill_cli.utils.locks import locked
with locked(Path(sys.argv[1]), "it"):
    print("owned", flush=True)
    time.sleep(600)
"""


@contextmanager
def held(folder: Path, *, code: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns ``folder``."""
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "owned\n"
        try:
            yield holder
        finally:
            holder.kill()


def refusal(folder: Path) -> RunLockedError:
    with pytest.raises(RunLockedError) as caught, locked(folder, "it"):
        pass
    return caught.value


def test_a_second_process_is_told_who_the_first_is(tmp_path: Path) -> None:
    with held(tmp_path) as holder:
        assert is_held(tmp_path)
        refused = refusal(tmp_path)
    assert refused.message == f"it is in use by process {holder.pid}"
    assert refused.hint == f"wait until it ends, or stop it with: kill {holder.pid}"


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with held(tmp_path) as holder:
        pass
    assert (tmp_path / ".owner").read_text() == f"{holder.pid}\n", "it could not tidy up"
    assert not is_held(tmp_path)
    with locked(tmp_path, "it"):
        assert (tmp_path / ".owner").read_text() == f"{os.getpid()}\n"
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    assert not (tmp_path / ".owner").exists()


WITH_CHILD = HOLD.replace(
    "import sys, time", "import subprocess, sys, time\nchild = [sys.executable, '-c', 'import time; time.sleep(600)']"
).replace(
    "    print",
    "    process = subprocess.Popen(child)\n    print(process.pid, file=open(sys.argv[1] + '/child', 'w'))\n    print",
)


def test_a_child_that_outlives_the_owner_does_not_own_what_it_did(tmp_path: Path) -> None:
    with held(tmp_path, code=WITH_CHILD):
        pass
    child = int((tmp_path / "child").read_text())
    try:
        with locked(tmp_path, "it"):
            os.kill(child, 0)
    finally:
        os.kill(child, 9)


@pytest.mark.parametrize("left", ["1\n", f"{os.getppid()}\n", "", "\udcff", "-1", "0", "999999999999", "nobody"])
def test_what_lies_about_owns_nothing(tmp_path: Path, left: str) -> None:
    """The lock file of a dead process, and its id, which may be another process's by now, or no id at all."""
    (tmp_path / ".lock").write_text("whatever")
    (tmp_path / ".owner").write_text(left, errors="surrogateescape")
    assert not is_held(tmp_path)
    with locked(tmp_path, "it"):
        assert is_held(tmp_path)


@pytest.mark.parametrize("left", ["", "\udcff", "-1", "0", "999999999999", "4194304", "nobody"])
def test_an_owner_who_cannot_be_told_is_not_made_up(tmp_path: Path, left: str) -> None:
    """Least of all one that a user would then kill."""
    with held(tmp_path):
        (tmp_path / ".owner").write_text(left, errors="surrogateescape")
        refused = refusal(tmp_path)
    assert (refused.message, refused.hint) == ("it is in use by another process", "wait until it ends")


def test_looking_does_not_get_in_the_way(tmp_path: Path) -> None:
    """Readers look at any moment, and owners come and go all the same."""
    code = "import sys\nfrom pathlib import Path\nfrom memskill_cli.utils.locks import is_held\n"
    code += "print('owned', flush=True)\n"
    with held(tmp_path, code=code + "while True: is_held(Path(sys.argv[1]))"):
        until = time.monotonic() + 1
        while time.monotonic() < until:
            with locked(tmp_path, "it"):
                assert is_held(tmp_path)


LOOKS = """
import fcntl, os, sys, time
handle = os.open(sys.argv[1] + "/.lock", os.O_RDONLY | os.O_CREAT)
fcntl.flock(handle, fcntl.LOCK_SH)
print("owned", flush=True)
time.sleep(0.3)
os.close(handle)
time.sleep(600)
"""


def test_an_owner_waits_for_whoever_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 60.0)  # for a busy machine
    with held(tmp_path, code=LOOKS), locked(tmp_path, "it"):
        assert is_held(tmp_path)


def test_a_folder_that_is_not_there_is_owned_by_nobody(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_whose_lock_file_was_deleted_still_has_its_owner(tmp_path: Path) -> None:
    with held(tmp_path) as holder:
        (tmp_path / ".lock").unlink()
        assert is_held(tmp_path)
        assert refusal(tmp_path).message == f"it is in use by process {holder.pid}"
        (tmp_path / ".owner").unlink()
        assert refusal(tmp_path).message == "it is in use by another process"


def test_a_folder_is_owned_by_whichever_path_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with held(tmp_path / "link"):
        (tmp_path / "run").rename(tmp_path / "renamed")
        assert "in use" in refusal(tmp_path / "renamed").message


def test_a_folder_that_is_renamed_while_it_is_owned_is_written_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder, "it"):
        files.write_json(folder / "logs" / "a.json", 1)
        folder.rename(tmp_path / "renamed")
        for write in (files.write_json, files.append_line):
            with pytest.raises(RunError, match="was renamed, removed or replaced"):
                write(folder / "b.json", 1)
        assert not folder.exists(), "it is not made again"
    files.write_json(folder / "b.json", 1)


def test_a_link_that_is_changed_while_its_folder_is_owned_leads_to_no_write(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    link = tmp_path / "run"
    link.symlink_to("one")
    with locked(link, "it"):
        link.unlink()
        link.symlink_to("other")
        with pytest.raises(RunError, match="was renamed, removed or replaced"):
            files.append_line(link / "usage.jsonl", {})
    assert not list((tmp_path / "other").iterdir())


def test_where_a_folder_cannot_be_locked_its_owner_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    with held(tmp_path) as holder:
        (tmp_path / ".lock").unlink()
        monkeypatch.setattr(locks.fcntl, "flock", flock)
        monkeypatch.setattr("filelock.FileLock.acquire", lambda self: None)
        assert refusal(tmp_path).message == f"it is in use by process {holder.pid}"
