"""``memskill runs``: what a folder of runs has, how two differ, and how one is deleted."""

from __future__ import annotations

import json

from memskill_cli.runs.run_dir import RunDir
from memskill_cli.testing.server import MockLLMServer
from memskill_cli.utils import files

from ..conftest import Home, tiny

SHORT = ["--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "1", "--span-mode", "full-session"]


def test_runs_are_listed_shown_compared_and_deleted(prepared: Home) -> None:
    runs = prepared.path / "runs"
    with MockLLMServer() as server:
        for name, seed in (("a", "7"), ("b", "8")):
            done = prepared.memskill("train", *tiny(server.url, *SHORT, "--run", name, "--seed", seed), "--quiet")
            assert done.code == 0, done.err
            done = prepared.memskill("eval", *tiny(server.url, "--no-judge", "--limit", "6", "--run", name), "--quiet")
            assert done.code == 0, done.err
    listed = json.loads(prepared.memskill("runs", "list", "--json").out)
    assert [(run["name"], run["status"], run["inner_epochs"], run["evaluations"]) for run in listed] == [
        ("b", "finished", 1, 1),
        ("a", "finished", 1, 1),
    ], "the newest first"
    shown = prepared.memskill("runs", "show", "a")
    assert "memskill" in shown.out
    assert "locomo test" in shown.out

    compared = json.loads(prepared.memskill("runs", "compare", "a", "b", "--json").out)
    assert ["seed", 7, 8] in compared["settings"]
    (score,) = compared["scores"]
    rows = [list(files.read_jsonl(next((runs / name / "evals").glob("*/results.jsonl")))) for name in "ab"]
    means = [sum(row["f1"] for row in found) / len(found) for found in rows]
    assert score["queries"] == len(rows[0]) == 6
    assert abs(score["difference"] - (means[1] - means[0])) < 1e-12

    with RunDir(runs / "a").lock():
        held = prepared.memskill("runs", "delete", "a", "--yes")
    assert held.code == 1
    assert (runs / "a" / "run.json").exists()
    assert prepared.memskill("runs", "delete", "a").code == 2, "it asks, and nobody can answer"
    missing = prepared.memskill("runs", "delete", "a", "nobody", "--yes")
    assert (missing.code, (runs / "a" / "run.json").exists()) == (1, True), "all must exist before one is deleted"
    gone = prepared.memskill("runs", "delete", "a", "--yes")
    assert gone.code == 0, gone.err
    assert not (runs / "a").exists()
    assert prepared.memskill("runs", "delete", "../data", "--yes").code == 1
    assert (prepared.path / "data").exists()


def test_a_damaged_run_is_listed_with_its_problem(prepared: Home) -> None:
    (prepared.path / "runs" / "broken").mkdir(parents=True)
    (prepared.path / "runs" / "broken" / "run.json").write_text("{")
    listed = prepared.memskill("runs", "list")
    assert listed.code == 0
    assert "not a valid manifest" in " ".join(listed.out.split())
    assert prepared.memskill("runs", "delete", "broken", "--yes").code == 0
    assert prepared.memskill("runs", "list", "--json").out.strip() == "[]"
