"""README's commands are ones that the installed command takes: each is parsed, and its settings resolved, not run."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.app import app
from memskill_cli.datasets import base
from memskill_cli.errors import UsageError
from memskill_cli.evaluation import methods

README = Path(__file__).parents[1] / "README.md"
ENDS = {"&&", "||", "|", ";", ">", ">>", "&"}
"""Where a command ends in a shell."""
Refused = typer.BadParameter.__mro__[1]
"""click's error for a command line that makes no sense; typer brings a click of its own."""
SECTIONS = {"train": "train", "evolve": "train", "eval": "eval"}
"""The section of settings that a command's flags are about."""


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every ``memskill`` typed in a code block of Markdown, after a prompt or another command, too."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?([A-Z_]+=\S* )*\w[\w-]* ", line) and "memskill " in line:
                yield from _typed(shlex.split(line.removeprefix("$ "), comments=True))


def _typed(words: list[str]) -> Iterator[list[str]]:
    """``words`` of a shell, cut into commands; those of memskill without variables before them and without "…"."""
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in ENDS:
            if command or not re.fullmatch(r"[A-Z_]+=.*", word):
                command.append(word)
            continue
        if command[:1] == ["memskill"]:
            yield [word for word in command[1:] if word not in ("…", "...")]
        command = []


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]] | None:
    """The command's name and parameters as it would see them, None if it only shows help.

    Raises Refused for what it does not take.
    """
    group: Any = typer.main.get_command(app)
    seen: list[tuple[str, dict[str, Any]]] = []
    for name, command in group.commands.items():
        command.callback = lambda name=name, **flags: seen.append((name, flags))
    group.main(list(arguments), prog_name="memskill", standalone_mode=False)
    return seen[0] if seen else None


def check(arguments: list[str]) -> None:
    """Raises if memskill would refuse ``arguments`` before it did anything."""
    if (parsed := parse(arguments)) is None:
        return
    name, flags = parsed
    if flags.get("dataset") is not None:
        base.get(flags["dataset"])
    if name in SECTIONS and flags["config"] is None:
        o.settings_of(flags, SECTIONS[name])
    if name == "eval":
        for method in flags["method"].split(","):
            methods.get(method)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEMSKILL_")]:
        monkeypatch.delenv(name)


TYPED = list(commands(README.read_text("utf-8")))


@pytest.mark.parametrize("arguments", TYPED, ids=shlex.join)
def test_a_command_of_the_readme_can_be_typed(arguments: list[str]) -> None:
    check(arguments)


def test_the_readme_shows_every_command() -> None:
    assert {arguments[0] for arguments in TYPED} >= {"prepare", "train", "evolve", "eval", "inspect-skills"}


def test_commands_are_found_where_they_are_typed() -> None:
    text = """
Not `memskill here`, nor
memskill there.

```console
$ memskill eval --dataset locomo    # a comment
memskill is not the beginning of this output but prose
outer 0 inner 0: memskill says something
$ WANDB_MODE=offline memskill train … --tracker wandb
```

```
make demo
cd x && memskill prepare \\
    --dataset "a b" && memskill inspect-skills
```
"""
    found = list(commands(text))
    assert ["eval", "--dataset", "locomo"] in found
    assert ["train", "--tracker", "wandb"] in found
    assert ["prepare", "--dataset", "a b"] in found
    assert ["inspect-skills"] in found
    assert not [arguments for arguments in found if {"here", "there.", "says"} & set(arguments)]


@pytest.mark.parametrize(
    "wrong",
    [
        "eval --datasett locomo",
        "eval --dataset locomoo",
        "eval --method memskil",
        "train --preset papr",
        "train --set train.top_kk=3",
        "train --top-k many",
        "evaluate",
    ],
)
def test_a_command_that_would_be_refused_is_found_out(wrong: str) -> None:
    with pytest.raises((Refused, UsageError)):
        check(wrong.split())
