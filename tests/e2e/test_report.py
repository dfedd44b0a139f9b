"""Reports as ``train`` and ``eval`` leave them, and what happens when they cannot be written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from memskill_cli.testing.server import MockLLMServer

from ..conftest import Done, Home, tiny

LENGTH = ["--outer-epochs", "2", "--inner-epochs", "1", "--batch-size", "1", "--top-k", "2", "--no-evolve"]
KEY = "sk-canary-0123456789"


@dataclass(frozen=True)
class Reported:
    home: Home
    trained: Done
    evaluated: Done

    @property
    def run(self) -> Path:
        return self.home.path / "runs" / "a"


@pytest.fixture(scope="module")
def reported(new_home: Callable[[], Home]) -> Reported:
    """A tiny training and an evaluation of it with two methods."""
    home = new_home()
    with MockLLMServer(keys=[KEY]) as server:
        flags = tiny(server.url, "--run", "a", "--api-key", KEY)
        trained = home.memskill("train", *flags, *LENGTH)
        assert trained.code == 0, trained.err
        evaluated = home.memskill("eval", *flags, "--method", "memskill,no-memory", "--limit", "4", "--json")
        assert evaluated.code == 0, evaluated.err
    return Reported(home, trained, evaluated)


def test_train_writes_the_report_and_says_where(reported: Reported) -> None:
    assert "report: runs/a/report.html" in reported.trained.out
    page = (reported.run / "report.html").read_text()
    rows = [json.loads(line) for line in (reported.run / "metrics.jsonl").read_text().splitlines()]
    first, last = (f"{100 * rows[i]['episode_reward_mean']:.2f}" for i in (0, 1))
    assert f"Reward {first} in the first inner epoch, {last} in the last of 2." in page
    assert KEY not in page
    assert "openai#1" in page


def test_eval_writes_a_report_for_each_method(reported: Reported) -> None:
    found = reported.evaluated.json["evaluations"]
    assert [one["method"] for one in found] == ["memskill", "no-memory"]
    for one, other in (found, found[::-1]):
        page = (reported.home.path / one["report"]).read_text()
        assert f"{100 * one['f1']:.2f}" in page
        assert "4 queries were asked, the published split has 314" in page
        assert f'href="../{Path(other["folder"]).name}/report.html"' in page
        assert f'href="evals/{Path(one["folder"]).name}/report.html"' in (reported.run / "report.html").read_text()
        assert KEY not in page


def test_a_finished_run_is_reported_anew_without_a_call(reported: Reported) -> None:
    before = (reported.run / "report.html").read_bytes()
    (reported.run / "report.html").unlink()
    done = reported.home.memskill("train", "--run", "a", "--resume", "--json")
    assert done.code == 0, done.err
    assert done.json["report"] == "runs/a/report.html"
    assert (reported.run / "report.html").read_bytes() == before, "the same files, the same page"


def test_a_report_that_cannot_be_written_fails_nothing(reported: Reported, prepared: Home) -> None:
    run = prepared.path / "runs" / "a"
    shutil.copytree(reported.run, run)
    (run / "report.html").unlink()
    (run / "report.html" / "occupied").mkdir(parents=True)
    with MockLLMServer() as server:
        more = ["--resume", "--run", "a", "--outer-epochs", "3", "--api-base", server.url]
        done = prepared.memskill("train", *more, "--json")
    assert done.code == 0, done.err
    assert (done.json["status"], done.json["inner_epochs"], done.json["report"]) == ("finished", 3, None)
    assert "no report for a: IsADirectoryError" in done.err
