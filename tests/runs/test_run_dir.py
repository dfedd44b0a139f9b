"""Run directories: one owner, one manifest, found by name or by age."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memskill_cli.config import Config, load
from memskill_cli.errors import RunError, RunLockedError
from memskill_cli.runs.run_dir import UNTRAINED, RunDir, find_run


def test_settings_survive_the_round_trip(tmp_path: Path) -> None:
    settings = load(preset="demo", sets=["ppo.gamma=0.5"])
    run = RunDir.create(tmp_path, "one", settings, "abc")
    assert RunDir.open(run.path).settings() == settings
    assert run.manifest().data_digest == "abc"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", ".."])
def test_a_run_is_named_by_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError):
        RunDir.create(tmp_path / "runs", name, Config(), "abc")
    assert not (tmp_path / "x").exists()


def test_the_newest_run_is_found_and_a_typo_gets_the_nearest_name(tmp_path: Path) -> None:
    assert find_run(tmp_path, None) is None
    for name in ("zeta", "alpha", UNTRAINED):
        RunDir.create(tmp_path, name, Config(), "abc")
    assert find_run(tmp_path, None) == tmp_path / "alpha"
    aside = tmp_path / "alpha" / "checkpoints" / ".000000.tmp"
    aside.mkdir(parents=True)
    (aside / "checkpoint.json").write_text("{}")
    assert find_run(tmp_path, None, trained=True) is None, "what a killed run was writing is no checkpoint"
    (tmp_path / "zeta/checkpoints/000000").mkdir(parents=True)
    (tmp_path / "zeta/checkpoints/000000/checkpoint.json").touch()
    assert find_run(tmp_path, None, trained=True) == tmp_path / "zeta"
    with pytest.raises(RunError) as failure:
        find_run(tmp_path, "alpa")
    assert failure.value.hint == "did you mean alpha?"
    with pytest.raises(RunError, match="already exists"):
        RunDir.create(tmp_path, "alpha", Config(), "abc")


HOLD = """
import sys, time
from pathlib import Path
from memskill_cli.runs.run_dir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("owned", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_the_holders_pid_and_a_dead_ones_lock_is_free(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "one", Config(), "abc")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "owned"
    with pytest.raises(RunLockedError, match=f"process {holder.pid}"), run.lock():
        pass
    holder.kill()
    holder.wait()
    with run.lock():
        assert (run.path / ".owner").read_text().strip() == str(os.getpid())
