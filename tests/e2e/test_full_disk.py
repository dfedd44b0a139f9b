"""Disks that are full, or cannot be written: old state intact, one clear line, exit 1, and with room it goes on.

At every kind of write by the saboteur, whose disk stays full until the process ends; and on real disks (tmpfs) that are
small or read-only, where one can be mounted.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memskill_cli.testing.server import MockLLMServer

from ..conftest import tiny
from ..fault_injection import Done, Nursery
from .resume_harness import TRAIN, Place, Settle, Undisturbed, assert_undisturbed, evaluated, think

pytestmark = pytest.mark.timeout(1200)  # a dozen processes, on a machine that may be busy
CHAINS = {
    "full before a run is one": [
        ("ENOSPC before write config.toml 1+", "config.toml"),
        ("ENOSPC half write stage-000.json 1+", "stage-000.json"),
        ("ENOSPC before fsync skill_bank.json 1+", "skill_bank.json"),
        ("EROFS before open run.json 1+", "run.json"),
        ("ENOSPC before mkdir checkpoints/000000 1+", "controller.safetensors"),
        ("ENOSPC before write run.json 2+", "run.json"),
    ],
    "full in a checkpoint": [
        ("ENOSPC half write controller.safetensors 2+", "controller.safetensors"),
        ("ENOSPC before write optimizer.safetensors 1+", "optimizer.safetensors"),
        ("EROFS before replace state.json 1+", "state.json"),
        ("ENOSPC before write checkpoint.json 1+", "checkpoint.json"),
        ("EIO before fsync hard_cases.jsonl 1+", "hard_cases.jsonl"),
        ("ENOSPC before write skill_bank.json 1+", "skill_bank.json"),
    ],
    "full between": [
        ("ENOSPC half write metrics.jsonl 2+", "metrics.jsonl"),
        ("ENOSPC half write usage.jsonl 9+", "usage.jsonl"),
        ("EROFS before open usage.jsonl 3+", "usage.jsonl"),
        ("ENOSPC before write stage-001.json 1+", "stage-001.json"),
        ("EIO before write metrics.jsonl 1+", "metrics.jsonl"),
    ],
    "full for everything": [
        ("ENOSPC before write * 9+", ""),
        ("ENOSPC before write * 40+", ""),
        ("EROFS before open * 30+; EROFS before replace * 1+; EROFS before mkdir * 1+", ""),
        ("ENOSPC half write * 100+", ""),
    ],
}


def complaint(ended: Done) -> str:
    """The one line of what is wrong, after checking that nothing else but what to do follows."""
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    lines = ended.err.splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert lines[place + 1 :]
    assert all(line.startswith("  → ") for line in lines[place + 1 :])
    assert "defect" not in ended.err
    return lines[place]


def assert_whole(run: Path) -> None:
    """What is there can be read, checkpoints have their digests, and nothing lies about half written."""
    for file in [*run.glob("*.json"), *run.glob("stages/*.json")]:
        json.loads(file.read_bytes())
    for record in run.glob("checkpoints/*/checkpoint.json"):
        for name, digest in json.loads(record.read_bytes())["sha256"].items():
            assert hashlib.sha256((record.parent / name).read_bytes()).hexdigest() == digest
    assert not list(run.rglob("*.tmp"))


def suffer(place: Place, faults: str, name: str) -> None:
    ended = place.live(faults)
    told = complaint(ended)
    assert name in told, "the file that was meant, not the one that failed after it"
    assert re.search("the disk is full|Read-only file system|Input/output error|No space left", told)
    if (place.run / "run.json").exists():
        assert "memskill train --run k --resume" in ended.err
    assert_whole(place.run)


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_whatever_cannot_be_written_a_training_goes_on_when_it_can(
    settle: Settle, undisturbed: Undisturbed, chain: str
) -> None:
    place = settle(*TRAIN)
    for faults, name in CHAINS[chain]:
        suffer(place, faults, name)
    assert_undisturbed(place, undisturbed)


def test_a_training_goes_on_when_the_disk_has_room_again(settle: Settle, undisturbed: Undisturbed) -> None:
    """What the quick tests do of the above."""
    place = settle(*TRAIN)
    suffer(place, "ENOSPC half write metrics.jsonl 2+", "metrics.jsonl")
    suffer(place, "ENOSPC before write * 12+", "")
    assert_undisturbed(place, undisturbed)


@pytest.mark.slow
def test_reports_and_logs_are_courtesies(settle: Settle, undisturbed: Undisturbed) -> None:
    place = settle(*TRAIN)
    ended = place.live("ENOSPC before write report.html 1+; ENOSPC half write memskill.log 2+")
    assert ended.code == 0, ended.err
    assert "no report for k: OSError: [Errno 28] No space left on device" in ended.err
    assert_undisturbed(place, undisturbed)


# --- evaluations, designer cycles, exports, preparing ---


@pytest.mark.slow
def test_an_evaluation_goes_on_when_the_disk_has_room_again(settle: Settle) -> None:
    flags = ["--concurrency", "4", "--api-key", "none", "--judge", *tiny("")]
    calm, place = settle("eval", *flags), settle("eval", *flags)
    assert calm.live().code == 0
    for faults, name in (
        ("ENOSPC before write untrained/run.json 1+", "run.json"),
        ("ENOSPC before write config.toml 2+", "config.toml"),
        ("ENOSPC half write results.jsonl 2+", "results.jsonl"),
        ("ENOSPC before write memories.jsonl 1+", "memories.jsonl"),
        ("EROFS before open results.jsonl 2+", "results.jsonl"),
        ("ENOSPC before write * 12+", ""),
        ("ENOSPC before write summary.json 1+", "summary.json"),
    ):
        told = complaint(place.live(faults))
        assert name in told
    assert place.live().code == 0
    assert evaluated(untrained(place)) == evaluated(untrained(calm))
    assert place.asked == calm.asked, "nothing was asked twice"


def untrained(place: Place) -> Path:
    return place.home.path / "runs" / "untrained"


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own, mounted on ``folder``; only root can have one."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_preparing_on_a_full_disk_leaves_the_old_data(nursery: Nursery, tmp_path: Path) -> None:
    with disk(tmp_path / "data", "1m") as data:

        def prepare(dataset: str, *more: str) -> Done:
            return nursery.memskill("prepare", "--dataset", dataset, "--sample", "--quiet", *more, cwd=tmp_path)

        assert prepare("locomo").code == 0
        before = content(data)
        next(size for size in range(2000, 0, -4) if _fits(data / "filler", size * 1024))
        told = complaint(prepare("locomo", "--force"))
        assert "the disk is full" in told or "No space left" in told
        assert {
            file: file.read_bytes() for file in data.rglob("*") if file.is_file() and file.name != "filler"
        } == before
        (data / "filler").unlink()
        assert prepare("locomo", "--force").code == 0


def content(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _fits(file: Path, size: int) -> bool:
    """Whether ``file`` of ``size`` bytes could be written; it is there then."""
    try:
        file.write_bytes(bytes(size))
    except OSError:
        file.unlink()
        return False
    return True


@pytest.mark.slow
def test_prepared_data_may_lie_on_a_disk_that_cannot_be_written(nursery: Nursery, sample: Path, tmp_path: Path) -> None:
    with disk(tmp_path / "data", "4m") as data, MockLLMServer(think) as server:
        shutil.copytree(sample, data, dirs_exist_ok=True)
        remount(data, "ro")
        flags = ["--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "1", "--no-evolve", "--api-key", "none"]
        done = nursery.memskill("train", "--run", "r", *tiny(server.url, *flags), cwd=tmp_path)
        assert done.code == 0, done.err
        told = complaint(nursery.memskill("prepare", "--dataset", "locomo", "--sample", "--force", cwd=tmp_path))
        assert "Read-only file system" in told


@pytest.mark.slow
def test_runs_and_caches_on_disks_that_are_small_or_read_only(nursery: Nursery, sample: Path, tmp_path: Path) -> None:
    shutil.copytree(sample, tmp_path / "data")
    with (
        MockLLMServer(think) as server,
        disk(tmp_path / "runs", "64k") as runs,
        disk(tmp_path / "cache", "32k") as cache,
    ):

        def evaluate() -> Done:
            flags = [*tiny(server.url, "--api-key", "none"), "--cache-dir", str(cache)]
            return nursery.memskill("eval", *flags, cwd=tmp_path)

        assert str(cache) in complaint(evaluate()), "too small for any database"
        remount(cache, "size=96k")
        assert "embeddings.sqlite3: database or disk is full" in complaint(evaluate())
        remount(cache, "size=16m")
        assert "runs/untrained" in complaint(evaluate()), "the memory, or the rows"
        remount(runs, "size=16m")
        done = evaluate()
        assert done.code == 0, done.err
        remount(runs, "ro")
        shutil.rmtree(tmp_path / "data")
        shutil.copytree(sample, tmp_path / "data")
        assert "Read-only file system" in complaint(evaluate())


@pytest.mark.slow
def test_an_export_on_a_full_disk(nursery: Nursery, tmp_path: Path) -> None:
    with disk(tmp_path / "small", "4k") as small:
        told = complaint(nursery.memskill("inspect-skills", "--export", str(small / "out"), cwd=tmp_path))
        assert "the disk is full" in told
        assert str(small) in told
        remount(small, "size=1m")
        assert nursery.memskill("inspect-skills", "--export", str(small / "out"), cwd=tmp_path).code == 0
