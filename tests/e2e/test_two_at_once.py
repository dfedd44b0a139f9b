"""Several commands on the same things at the same time: owners are alone, readers are not kept out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from memskill_cli.config import Config
from memskill_cli.errors import MemskillError
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.testing.server import MockLLMServer
from memskill_cli.utils.locks import locked

from ..conftest import Done, Home, tiny
from .test_signals import FOREVER, running, slow_after

SHORT = ["--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "2", "--no-evolve", "--concurrency", "2"]


def refused(done: Done, what: str, pid: int) -> None:
    """It failed at once, with one line that names the owner."""
    assert done.code == 1, done.err
    assert f"error: {what} is in use by process {pid}" in done.err.splitlines()
    assert f"kill {pid}" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_is_alone_with_its_run_and_keeps_no_reader_out(prepared: Home) -> None:
    with slow_after(6, FOREVER) as server, MockLLMServer() as other:
        with running(prepared, "train", *tiny(server.url, *SHORT, "--run", "s")) as command:
            command.until(lambda: len(server.requests) == 8)
            pid = command.process.pid
            resumed, begun, evolved, evaluated, shown, history, skill = prepared.together(
                ["train", "--run", "s", "--resume"],
                ["train", *tiny(other.url, *SHORT, "--run", "s", "--seed", "7")],
                ["evolve", "--run", "s", "--api-base", other.url],
                ["eval", *tiny(other.url, "--checkpoint", "latest", "--limit", "1", "--no-judge", "--json")],
                ["inspect-skills", "--json"],
                ["inspect-skills", "--history"],
                ["inspect-skills", "insert"],
            )
            assert len(server.requests) == 8, "what was refused asked nothing"
        for done in (resumed, begun, evolved):
            refused(done, "run s", pid)
        assert RunDir(prepared.path / "runs" / "s").settings().seed == 42, "what was refused changed nothing"
        assert evaluated.code == 0, evaluated.err
        assert evaluated.json["run"] == "s"
        assert evaluated.json["checkpoint"]
        assert (shown.code, shown.json["status"]) == (0, "running"), shown.err
        assert history.code == 0, history.err
        assert "stage 0" in history.out
        assert skill.code == 0, skill.err
        assert "insert" in skill.out
        after = prepared.memskill("inspect-skills", "--json")
        assert after.json["status"] == "paused", "killed in the end: nobody owns it"
        rows = (prepared.path / "runs" / "s" / "usage.jsonl").read_text().splitlines()
        assert {json.loads(row)["scope"] == "train" for row in rows} == {True, False}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_evaluations_share_a_run_but_not_one_of_them(prepared: Home) -> None:
    """Two begun at once make the folder for them together; each has its lines in the ledger they share."""
    flags = ["--limit", "3", "--no-judge", "--json"]
    with MockLLMServer() as server:
        one, two = prepared.together(
            *(["eval", *tiny(server.url, "--method", method, *flags)] for method in ("no-memory", "seed-skills"))
        )
        assert (one.code, two.code) == (0, 0), one.err + two.err
    usage = prepared.path / "runs" / "untrained" / "usage.jsonl"
    rows = [json.loads(line) for line in usage.read_text().splitlines()]
    assert len([row for row in rows if not row["cached"]]) == len(server.requests)
    for done in (one, two):
        assert sum(row["scope"] == done.json["id"] for row in rows) == done.json["usage"]["calls"]
    with slow_after(0, FOREVER) as server:
        same = tiny(server.url, "--method", "no-memory", "--limit", "2", "--no-judge")
        with running(prepared, "eval", *same) as command:
            command.until(lambda: len(server.requests) == 2)
            again = prepared.memskill("eval", *same)
            assert len(server.requests) == 2
        (folder,) = (path.parent for path in prepared.path.glob("runs/untrained/evals/*/.owner"))
    refused(again, f"evaluation {folder.name}", command.process.pid)


def test_a_dataset_is_prepared_by_one_at_a_time(home: Home) -> None:
    with locked(home.path / "data" / "locomo", "it"):
        done = home.memskill("prepare", "--dataset", "locomo", "--sample")
    assert done.code == 1
    assert done.err.startswith("error: data/locomo is in use by process")
    assert home.memskill("prepare", "--dataset", "locomo", "--sample").code == 0


def together(code: str, *arguments: Sequence[str]) -> list[str]:
    """What Python processes say that begin ``code`` at the same moment."""
    wait = "import sys\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    imports, _, work = code.partition("#\n")
    processes = [subprocess.Popen([sys.executable, "-c", imports + wait + work, *some], **pipes) for some in arguments]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return said


CREATES = """
from pathlib import Path
from memskill_cli.config import load
from memskill_cli.errors import MemskillError
from memskill_cli.runs.run_dir import RunDir
#
try:
    RunDir.create(Path(sys.argv[1]), "one", load(overrides={"seed": int(sys.argv[2])}), "abc")
    print("made")
except MemskillError as error:
    print(type(error).__name__)
"""


def test_a_run_is_begun_once(tmp_path: Path) -> None:
    """Of several that begin a run of one name at once, one does, with its own settings."""
    said = together(CREATES, *([str(tmp_path), str(seed)] for seed in range(1, 5)))
    assert sorted(said)[-1] == "made\n"
    assert set(said) <= {"made\n", "RunError\n", "RunLockedError\n"}
    assert said.count("made\n") == 1
    run = RunDir.open(tmp_path / "one")
    assert said[run.settings().seed - 1] == "made\n"
    assert run.manifest().seed == run.settings().seed


LINES = 500
APPENDS = f"""
from pathlib import Path
from memskill_cli.utils.files import append_line
#
for number in range({LINES}):
    append_line(Path(sys.argv[1]), {{"who": sys.argv[2], "number": number, "text": "x" * 300}})
"""


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    log = tmp_path / "usage.jsonl"
    together(APPENDS, *([str(log), who] for who in "abc"))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for who in "abc":
        assert [row["number"] for row in rows if row["who"] == who] == list(range(LINES))


CACHES = """
from pathlib import Path
from memskill_cli.llm.cache import ResponseCache
#
cache = ResponseCache(Path(sys.argv[1]), notice=print)
for number in range(20):
    key = f"{sys.argv[2]}{number}"
    cache.put(key, "a reply")
    assert cache.get(key)
cache.close()
"""


def test_processes_that_begin_a_cache_of_replies_together_share_it(tmp_path: Path) -> None:
    for turn in range(5):
        said = together(CACHES, *([str(tmp_path / str(turn)), who] for who in "abcd"))
        assert said == [""] * 4, "nothing to complain of"


def test_a_run_that_was_killed_is_paused_and_one_that_is_owned_runs(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "one", Config(), "abc")
    assert run.status == "new"
    run.set_status("running")
    assert run.status == "paused"
    with run.lock():
        assert run.status == "running"
    run.set_status("finished")
    assert run.status == "finished"


def test_a_run_that_could_not_be_filled_is_none(tmp_path: Path) -> None:
    """Killed (or out of space) before its first stage is written, a new run leaves its name free."""

    def fill(run: RunDir) -> None:
        raise MemskillError("no space")

    with pytest.raises(MemskillError, match="no space"):
        RunDir.create(tmp_path, "one", Config(), "abc", fill=fill)
    assert RunDir.create(tmp_path, "one", Config(), "abc").status == "new"
