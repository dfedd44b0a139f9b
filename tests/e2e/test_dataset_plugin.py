"""The dataset in ``examples/dataset_plugin``, as a plug-in file and as an installed package."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.testing import rules
from memskill_cli.testing.server import MockLLMServer, Request

from ..conftest import Home

EXAMPLE = Path(__file__).parents[2] / "examples" / "dataset_plugin"
PLUGIN = ["--plugin", str(EXAMPLE / "my_dataset.py")]
LENGTH = ["--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "1", "--no-evolve"]


def flags(server: MockLLMServer, *more: str) -> list[str]:
    encoders = ["--encoder", "hashing", "--retriever", "hashing"]
    return ["--dataset", "my-dataset", "--model", "openai/rules", "--api-base", server.url, *encoders, *more, "--quiet"]


def talkative(request: Request) -> str:
    """Token F1 of this answer would be far below the 1 that the dataset's own score gives."""
    return "It was, if I remember it rightly, Turin." if request.role == "answer" else rules.reply(request)


def row(home: Home) -> dict[str, Any]:
    (file,) = home.path.glob("runs/r/evals/*/results.jsonl")
    return next(found for line in file.open() if (found := json.loads(line))["category"] == "place")


def use(home: Home, *plugin: str, **environ: str) -> dict[str, Any]:
    """Train, which prepares the data first, and evaluate; the identity of the evaluation."""
    with MockLLMServer(talkative) as server:
        for command in (
            ["train", "--run", "r", *flags(server, *LENGTH, *plugin)],
            ["eval", "--run", "r", *flags(server, *plugin)],
        ):
            done = home.memskill(*command, **environ)
            assert done.code == 0, done.err
    assert (row(home)["f1"], row(home)["truths"]) == (1.0, ["Turin"])
    (identity,) = home.path.glob("runs/r/evals/*/identity.json")
    found: dict[str, Any] = json.loads(identity.read_text())
    return found


def test_a_plugin_file_is_prepared_trained_and_evaluated(home: Home) -> None:
    assert len((EXAMPLE / "my_dataset.py").read_text().splitlines()) < 60
    assert len(use(home, *PLUGIN)["extensions"]["dataset"]) == 64, "the sha256 of the file"
    done = home.memskill("eval", "--dataset", "my-dataset", "--run", "r")
    assert done.code != 0
    assert "my-dataset" in done.err or "my_dataset.py" in done.err


def test_the_next_command_of_prepare_works_as_it_is_shown(home: Home) -> None:
    done = home.memskill("prepare", "--dataset", "my-dataset", *PLUGIN)
    assert done.code == 0, done.err
    (shown,) = [line for line in done.err.splitlines() if line.startswith("next: ")]
    assert shlex.split(shown)[1:] == ["memskill", "train", "--dataset", "my-dataset", *PLUGIN]
    other = home.memskill("prepare", "--dataset", "my-dataset", MEMSKILL_PLUGIN=PLUGIN[1])
    assert "next: memskill train --dataset my-dataset\n" in other.err, "the variable is still set"


def test_a_damaged_file_is_named_by_line(home: Home) -> None:
    (home.path / "own.jsonl").write_text('{"id": "x"}\n')
    done = home.memskill("prepare", "--dataset", "my-dataset", "--source", "own.jsonl", *PLUGIN)
    assert done.code == 1
    assert "own.jsonl, line 1: not a diary: KeyError('days')" in done.err.replace("\n", " ")


@pytest.mark.slow
def test_the_installed_package_needs_no_flag(home: Home) -> None:
    site = home.path / "site"
    pip = [sys.executable, "-m", "pip", "--retries", "1", "--timeout", "20", "--quiet"]
    done = subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(site), str(EXAMPLE)], capture_output=True, text=True, timeout=250
    )
    if "hatchling" in done.stderr and done.returncode:
        pytest.skip("no package index can be reached for the build backend")
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    assert use(home, PYTHONPATH=path)["extensions"] == {"dataset": "memskill-my-dataset 1.0"}
    done = home.memskill("prepare", "--dataset", "my-datset", PYTHONPATH=path)
    assert "did you mean my-dataset?" in done.err
