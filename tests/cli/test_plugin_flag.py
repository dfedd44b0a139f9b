"""``--plugin`` on the command line: which commands have it, how it is read, and that suggested commands repeat it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import typer

from memskill_cli.cli import resume_command
from memskill_cli.cli.app import COMMANDS, app

NEEDED = {
    "prepare": ["--dataset", "locomo"],
    "import": ["file.pt", "--run", "r"],
    "mcp": ["--memory", "mem", "--user", "u"],
}


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The context of a command with its parameters; the command itself is not run."""
    group: Any = typer.main.get_command(app)
    context: list[Any] = []
    command = group.commands[arguments[0]]
    monkeypatch.setattr(command, "invoke", context.append)
    group.main(list(arguments), prog_name="memskill", standalone_mode=False)
    (ctx,) = context
    return ctx


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEMSKILL_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = parsed(monkeypatch, command, *NEEDED.get(command, []), "--plugin", "a.py", "--plugin", "b.py")
    assert ctx.params["plugin"] == [Path("a.py"), Path("b.py")]


def test_the_environment_names_several_like_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSKILL_PLUGIN", os.pathsep.join(["x y/a.py", "b.py"]))
    ctx = parsed(monkeypatch, "train")
    assert ctx.params["plugin"] == [Path("x y/a.py"), Path("b.py")]
    resume = resume_command.resume_training("r", ctx)
    assert resume == "memskill train --run r --resume", "the variable is still set"
    assert resume_command.next_command(ctx, "eval") == "memskill eval"


def test_a_resuming_command_repeats_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = parsed(monkeypatch, "train", "--plugin", "x y/a.py", "--plugin", "b.py", "--runs-dir", "rs")
    resume = resume_command.resume_training("r", ctx)
    assert resume == "memskill train --run r --resume --runs-dir rs --plugin 'x y/a.py' --plugin b.py"


def test_the_next_command_repeats_the_files_and_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--plugin", "x y/a.py", "--data-dir", "d"]
    for command in ("train", "evolve", "import"):
        ctx = parsed(monkeypatch, command, *NEEDED.get(command, []), *given)
        shown = resume_command.next_command(ctx, "eval", "--run", "r")
        assert shown == "memskill eval --run r --data-dir d --plugin 'x y/a.py'", command
