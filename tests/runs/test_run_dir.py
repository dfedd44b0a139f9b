"""Run directories: one owner, one manifest, found by name or by age."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memskill_cli.config import Config, load
from memskill_cli.errors import RunError, RunLockedError
from memskill_cli.runs.run_dir import UNTRAINED, RunDir, find_run
from memskill_cli.utils import files


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


def test_the_newest_run_is_the_last_created_whatever_the_clock_said(tmp_path: Path) -> None:
    for name in ("first", "second"):
        run = RunDir.create(tmp_path, name, Config(), "abc")
    table = json.loads((run.path / "run.json").read_text())
    assert table["number"] == 2
    files.write_json(run.path / "run.json", {**table, "created": "1999-01-01T00:00:00.000000+00:00"})
    assert find_run(tmp_path, None) == tmp_path / "second"


def test_a_run_has_a_name_of_its_own_for_its_checkpoints(tmp_path: Path) -> None:
    ids: list[str] = []
    one = RunDir.create(tmp_path, "one", Config(), "abc", fill=lambda run: ids.append(run.id))
    other = RunDir.create(tmp_path, "other", Config(), "abc")
    assert ids == [RunDir.open(one.path).id]
    assert RunDir.open(other.path).id not in ("", *ids)


@pytest.mark.parametrize(
    "change",
    [{"format": "1"}, {"format": True}, {"status": 1}, {"created": None}, {"plugins": {"a": 1}}, {"seed": "x"}],
)
def test_a_manifest_of_another_kind_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    run = RunDir.create(tmp_path, "one", Config(), "abc")
    table = json.loads((run.path / "run.json").read_text())
    files.write_json(run.path / "run.json", {**table, **change})
    with pytest.raises(RunError, match=rf"run\.json: not a valid manifest: .*{next(iter(change))} is "):
        RunDir.open(run.path)
