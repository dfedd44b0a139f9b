"""``--plugin`` on the command line: which commands have it, how it is read, and that a resuming command repeats it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import typer

from memskill_cli.cli import resume_command
from memskill_cli.cli.app import app

READS = ("prepare", "train", "eval", "evolve", "inspect-skills")
NEEDED = {"prepare": ["--dataset", "locomo"]}


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[dict[str, Any], str]:
    """The parameters of a command, and the command that would resume it."""
    group: Any = typer.main.get_command(app)
    context: list[Any] = []
    command = group.commands[arguments[0]]
    monkeypatch.setattr(command, "invoke", context.append)
    group.main(list(arguments), prog_name="memskill", standalone_mode=False)
    (ctx,) = context
    return ctx.params, resume_command.resume_training("r", ctx) if arguments[0] == "train" else ""


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEMSKILL_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("command", READS)
def test_every_command_that_reads_a_dataset_or_a_run_has_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, _ = parsed(monkeypatch, command, *NEEDED.get(command, []), "--plugin", "a.py", "--plugin", "b.py")
    assert flags["plugin"] == [Path("a.py"), Path("b.py")]


def test_the_environment_names_several_like_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSKILL_PLUGIN", os.pathsep.join(["x y/a.py", "b.py"]))
    flags, resume = parsed(monkeypatch, "train")
    assert flags["plugin"] == [Path("x y/a.py"), Path("b.py")]
    assert resume == "memskill train --run r --resume", "the variable is still there"


def test_a_resuming_command_repeats_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    _, resume = parsed(monkeypatch, "train", "--plugin", "x y/a.py", "--plugin", "b.py", "--runs-dir", "rs")
    assert resume == "memskill train --run r --resume --runs-dir rs --plugin 'x y/a.py' --plugin b.py"
