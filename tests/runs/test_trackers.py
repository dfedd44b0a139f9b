"""Trackers, with the real packages: what they were given is read back from their own files."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.config import load, to_dict
from memskill_cli.errors import TrackerError, UsageError
from memskill_cli.runs import trackers
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.runs.trackers import check_installed, numbers, tracked
from memskill_cli.utils import files

Row = dict[str, Any]
Point = tuple[str, int]


def a_row(n: int) -> Row:
    """A line of metrics.jsonl, as of ``n`` inner epochs done."""
    usage = {"insert": n, "write-down-moves": 2} if n % 2 else {"insert": n}
    return {"outer": 0, "inner": n - 1, "episode_reward_mean": n / 7, "skill_usage": usage, "rejected": {}, "note": "x"}


def points(rows: list[Row]) -> dict[Point, float]:
    """What a tracker must hold for ``rows``: a value for each name and step."""
    found: dict[Point, float] = {}
    for step, row in enumerate(rows, start=1):
        tables = [(name, value) for name, value in row.items() if isinstance(value, dict)]
        flat = {**row, **{f"{name}/{key}": count for name, table in tables for key, count in table.items()}}
        found |= {(name, step): value for name, value in flat.items() if isinstance(value, int | float)}
    return found


def a_run(folder: Path, **settings: Any) -> RunDir:
    return RunDir.create(folder, "r", load(overrides=settings), "digest")


def test_numbers_are_named_as_in_metrics_and_nothing_else_is_sent() -> None:
    row = {"a": 1, "b": {"c": 0.5, "d": {"e": 2}}, "text": "x", "none": None, "flag": True, "list": [1]}
    assert dict(numbers(row)) == {"a": 1, "b/c": 0.5, "b/d/e": 2}


def test_without_a_tracker_nothing_is_written(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    told: list[str] = []
    with tracked(run, run.settings(), told.append) as log:
        log(1, a_row(1))
    assert sorted(tmp_path.rglob("*")) == before
    assert told == []


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_installed("none")
    with pytest.raises(UsageError) as refused:
        check_installed("wandb")
    assert refused.value.hint == 'pip install "memskill[wandb]"'


def test_a_tracker_that_fails_is_given_up_with_one_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        where = "a place"
        asked = 0

        def log(self, step: int, row: Row) -> None:
            self.asked += 1
            if step == 3:
                raise ConnectionError("refused the key sk-secret")

        def close(self) -> None:
            raise AssertionError("it was given up")

    failing, told = Failing(), list[str]()
    monkeypatch.setattr(trackers, "_open", lambda run, settings: failing)
    run = a_run(tmp_path)
    files.append_line(run.metrics, a_row(1))
    with tracked(run, run.settings(), told.append) as log:
        for step in range(2, 6):
            log(step, a_row(step))
    assert failing.asked == 3
    assert told == [
        "metrics also go to a place",
        "the tracker failed (ConnectionError); training continues with metrics.jsonl only",
    ]


def killed_and_resumed(run: RunDir, tracker: str, **environ: str) -> list[str]:
    """Three rows, the process killed with one that no checkpoint has, then two more; what each process told.

    What is killed has logged the third row but not written it, and is resumed with another third row.
    """
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from memskill_cli.utils import files
        from memskill_cli.runs.run_dir import RunDir
        from memskill_cli.runs.trackers import tracked
        import importlib.util
        spec = importlib.util.spec_from_file_location("rows", sys.argv[2])
        rows = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(rows)
        run = RunDir(Path(sys.argv[1]))
        first, last, killed = map(int, sys.argv[3:6])
        with tracked(run, run.settings(), print) as log:
            for step in range(first, last + 1):
                if not killed or step < last:
                    files.append_line(run.metrics, rows.a_row(step))
                log(step, rows.a_row(step) if not killed or step < last else {"episode_reward_mean": -1.0})
            sys.stdout.flush()
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    told = []
    for span in (("1", "3", "1"), ("3", "5", "0")):
        command = [sys.executable, "-c", code, str(run.path), __file__, *span]
        done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=120)
        assert done.returncode == (-9 if span[2] == "1" else 0), done.stderr
        told.append(done.stdout)
    return told


@pytest.mark.extra
def test_tensorboard_holds_what_metrics_hold_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = a_run(tmp_path, tracker="tensorboard")
    told = killed_and_resumed(run, "tensorboard")
    assert all(str(run.path / "tensorboard") in text for text in told)
    assert len(list((run.path / "tensorboard").iterdir())) == 2, "one file a process"
    shown = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    shown.Reload()
    scalars = [(name, e.step, e.value) for name in shown.Tags()["scalars"] for e in shown.Scalars(name)]
    expected = points(list(files.read_jsonl(run.metrics)))
    assert max(step for _, step in expected) == 5
    assert Counter((name, step) for name, step, _ in scalars) == Counter(expected.keys()), "each step once"
    assert {(name, step): value for name, step, value in scalars} == pytest.approx(expected)
    text = shown.Tensors("config/text_summary")[-1]
    assert 'tracker = "tensorboard"' in text.tensor_proto.string_val[0].decode()


@pytest.mark.extra
def test_tensorboard_that_cannot_write_is_an_error_at_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = a_run(tmp_path, tracker="tensorboard")
    (run.path / "tensorboard").write_text("in the way")
    with pytest.raises(TrackerError, match="tensorboard"), tracked(run, run.settings(), print):
        pass


def wandb_records(folder: Path) -> list[Any]:
    """The records of a W&B transaction log: LevelDB's log format after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    data, records, parts, at = file.read_bytes(), [], b"", 7
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # the end of a block that no record's head fits in
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def history(records: list[Any]) -> dict[Point, float]:
    found: dict[Point, float] = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: float(item.value_json) for item in record.history.item}
            found |= {(name, int(row["_step"])): value for name, value in row.items() if not name.startswith("_")}
    return found


@pytest.mark.extra
def test_wandb_offline_keeps_its_id_and_the_whole_history_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    home = tmp_path / "home-of-somebody"
    run = a_run(tmp_path, tracker="wandb", **{"models.judge": f"embedded:{home}/judge.gguf"})
    key = "wk-" + "secret0123456789" * 3
    told = killed_and_resumed(run, "wandb", HOME=str(home), WANDB_MODE="offline", WANDB_API_KEY=key, OPENAI_API_KEY=key)
    before, after = sorted((run.path / "wandb").glob("offline-run-*"))
    assert f"wandb sync {after}" in told[1]
    identity = json.loads((run.path / "wandb.json").read_text())["id"]
    assert {folder.name.rpartition("-")[2] for folder in (before, after)} == {identity}
    records = wandb_records(after)
    (started,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (started.run_id, started.display_name, started.project) == (identity, "r", "memskill")
    assert history(records) == pytest.approx(points(list(files.read_jsonl(run.metrics))))
    config = {item.key: item.value_json for item in started.config.update}
    assert set(config) - {"_wandb"} == set(to_dict(run.settings()))
    assert json.loads(config["models"])["judge"] == "embedded:~/judge.gguf"
    told = b"".join(file.read_bytes() for file in after.rglob("*") if file.is_file())
    assert b"test_trackers.py" not in told, "nothing of the command line"
    for private in ("home-of-somebody", platform.node(), getpass.getuser()):
        assert not [record for record in records if private in re.findall(r"[\w-]+", str(record))]
    assert not [file for file in run.path.rglob("*") if file.is_file() and b"secret0123" in file.read_bytes()]
    assert {file.name for file in after.rglob("*") if file.is_file()} == {
        *(f"run-{identity}.wandb", "debug.log", "debug-core.log", "debug-internal.log")
    }, "no console, code, requirements or facts about the machine"


@pytest.mark.extra
def test_wandb_without_a_key_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = a_run(tmp_path, tracker="wandb")
    code = "import sys; from pathlib import Path; from memskill_cli.runs.run_dir import RunDir\n"
    code += "from memskill_cli.runs.trackers import tracked\nfrom memskill_cli.errors import TrackerError\n"
    code += "run = RunDir(Path(sys.argv[1]))\ntry:\n    with tracked(run, run.settings(), print): pass\n"
    code += "except TrackerError as error: print(error.message, error.hint)\n"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)],
        env={**clean, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "wandb login" in done.stdout
    assert "WANDB_MODE=offline" in done.stdout
