"""Runs, data and caches of version 0.1 are used by the present version; README.md says how the files were made."""

from __future__ import annotations

import json
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.agent.hard_cases import HardCase
from memskill_cli.config.loading import from_dict
from memskill_cli.config.renamed import ADDED, RENAMED
from memskill_cli.testing.server import MockLLMServer
from memskill_cli.utils import files

from ..conftest import Done, Home

ARCHIVE = Path(__file__).with_name("0.1.zip")
PORT = 18765
"""Replies are cached by who gave them, so the server stands where it stood."""
EVALUATION = "locomo-test-memskill-03dc195686dc"
SERVER = ["--api-base", f"http://127.0.0.1:{PORT}/v1", "--api-key", "none"]
FLAGS = [
    *["--dataset", "locomo", "--model", "openai/rules", *SERVER, "--encoder", "hashing", "--retriever", "hashing"],
    *["--set", "controller.hidden=16"],
]
TRAIN = ["train", *FLAGS, "--outer-epochs", "2", "--inner-epochs", "1", "--batch-size", "1", "--evolve"]


@pytest.fixture
def old(home: Home) -> Home:
    """A home with the files of version 0.1."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(home.path)
    return home


@pytest.fixture
def server() -> Iterator[MockLLMServer]:
    with MockLLMServer(port=PORT) as opened:
        yield opened


def run_of(home: Home) -> Path:
    return home.path / "runs" / "old"


def good(done: Done) -> Done:
    assert done.code == 0, done.err
    return done


def json_of(done: Done) -> Any:
    return json.loads(good(done).out)


def test_the_archive_is_small() -> None:
    assert ARCHIVE.stat().st_size < 700_000


@pytest.mark.parametrize(("before", "now"), RENAMED.items())
def test_settings_of_the_run_are_what_they_were(before: str, now: str) -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        table = tomllib.loads(archive.read("runs/old/config.toml").decode())
    section, _, name = before.partition(".")
    current, _, inner = now.partition(".")
    assert getattr(getattr(from_dict(table), current), inner) == table[section][name]


def test_the_skill_bank_is_shown(old: Home) -> None:
    one, history = old.together(["inspect-skills", "--run", "old", "--json"], ["inspect-skills", "--history"])
    names = [skill["name"] for skill in json.loads((run_of(old) / "skill_bank.json").read_text())["skills"]]
    assert len(names) >= 4
    assert all(name in json.dumps(json_of(one)) for name in names)
    assert all(reward in good(history).out for reward in ("19.17", "16.00")), "of both stages, x 100"


def test_a_finished_evaluation_is_shown_without_a_call(old: Home, server: MockLLMServer) -> None:
    """The names of settings are part of its id, so a new one would be made if they were not those of version 0.1."""
    folder = run_of(old) / "evals" / EVALUATION
    summary = json.loads((folder / "summary.json").read_text())
    results = (folder / "results.jsonl").read_bytes()
    shown = json_of(old.memskill("eval", *FLAGS, "--run", "old", "--judge", "--json"))
    assert server.requests == []
    assert [entry.name for entry in folder.parent.iterdir()] == [EVALUATION]
    assert (folder / "results.jsonl").read_bytes() == results
    assert (shown["f1"], shown["judge"], shown["by_category"]) == (
        summary["f1"],
        summary["judge"],
        summary["by_category"],
    )
    assert EVALUATION in json.dumps(shown)
    report = (folder / "report.html").read_text()
    assert any(row["question"] in report for row in files.read_jsonl(folder / "results.jsonl"))


def test_data_prepared_before_are_used(old: Home) -> None:
    manifest = old.path / "data" / "locomo" / "manifest.json"
    before = manifest.stat().st_mtime_ns, manifest.read_bytes()
    done = good(old.memskill("prepare", "--dataset", "locomo", "--sample"))
    assert "already" in done.err
    assert (manifest.stat().st_mtime_ns, manifest.read_bytes()) == before


def test_cached_replies_are_used_and_old_names_of_settings(old: Home, server: MockLLMServer) -> None:
    """The same training under another name asks nothing: same data, prompts, encodings and choices. The names of
    settings are those of version 0.1, once as a flag and once in a file; later settings have that version's values."""
    then = [
        part
        for name, value in ADDED.items()
        if value != {}
        for part in ("--set", f"{name}={json.dumps(value).strip(chr(34))}")
    ]
    (old.path / "mine.toml").write_text("[memory]\ntop_k = 20\n\n[ppo]\nclip = 0.2\n")
    done = good(old.memskill(*TRAIN, "--run", "again", "--set", "train.top_k=2", "--config", "mine.toml", *then))
    assert server.requests == []
    for name in ("train.num_skills", "memory.num_memories", "ppo.clip_coef"):
        assert done.err.count(f"now called {name};") == 1
    assert done.err.count("now called") == 3
    first, again = run_of(old), old.path / "runs" / "again"
    assert "num_skills = 2" in (again / "config.toml").read_text()
    kept = ("outer", "inner", "episode_reward_mean", "actions", "skill_usage", "steps")
    rows = [[[row[key] for key in kept] for row in files.read_jsonl(run / "metrics.jsonl")] for run in (first, again)]
    assert rows[0] == rows[1]
    assert {row["cached"] for row in files.read_jsonl(again / "usage.jsonl")} == {True}
    assert (again / "report.html").read_text().startswith("<!doctype html>")


def test_a_run_goes_on(old: Home, server: MockLLMServer) -> None:
    run = run_of(old)
    before = list(files.read_jsonl(run / "metrics.jsonl"))
    cases = {row["query_id"] for row in files.read_jsonl(run / "hard_cases.jsonl") if row["epoch"] == 0}
    done = good(old.memskill("train", "--run", "old", "--resume", "--outer-epochs", "3", *SERVER))
    rows = list(files.read_jsonl(run / "metrics.jsonl"))
    assert rows[:2] == before
    assert [row["outer"] for row in rows] == [0, 1, 2]
    assert f"{len(cases)} hard cases" in done.err, "stage 1 was no better, so its cases are gone and those before stay"
    assert cases <= {row["query_id"] for row in files.read_jsonl(run / "hard_cases.jsonl")}
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert len(list((run / "stages").iterdir())) == 3
    assert (run / "report.html").stat().st_size > 10_000
    assert {request.role for request in server.requests} >= {"executor", "answer"}
    config = (run / "config.toml").read_text()
    assert "num_skills = 2" in config
    assert "top_k" not in config, "written under the names of today"


def test_the_designer_reads_the_hard_cases(old: Home, server: MockLLMServer) -> None:
    """From the checkpoint; what it is shown are the queries that version 0.1 answered wrongly."""
    cases = [HardCase.from_row(row) for row in files.read_jsonl(run_of(old) / "hard_cases.jsonl")]
    assert all(case.gold_answers and case.question for case in cases)
    good(old.memskill("evolve", "--run", "old", "--dry-run", *SERVER))
    asked = "\n".join(request.text for request in server.requests if request.role == "designer")
    assert any(case.question in asked for case in cases)


def test_an_evaluation_goes_on_with_its_memories(old: Home, server: MockLLMServer) -> None:
    """Rows that are missing are answered again: from the memories that are there, with replies of the cache."""
    run = run_of(old)
    results, usage = run / "evals" / EVALUATION / "results.jsonl", run / "usage.jsonl"
    rows, calls = list(files.read_jsonl(results)), len(list(files.read_jsonl(usage)))
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:-3]))
    results.with_name("summary.json").unlink()  # it is written last
    good(old.memskill("eval", *FLAGS, "--run", "old", "--judge", "--quiet"))
    assert server.requests == []
    made = list(files.read_jsonl(usage))[calls:]
    assert {(row["role"], row["cached"]) for row in made} == {("answer", True), ("judge", True)}, "nothing is read anew"
    assert list(files.read_jsonl(results)) == rows
