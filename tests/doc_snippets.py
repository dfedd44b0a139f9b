"""Finds the code blocks of Markdown pages and checks them without running them: commands, Python, TOML.

A command is parsed by the real command line and its settings are resolved. Python is compiled, its imports are looked
up and the keyword arguments of calls are compared with the signatures.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from markdown_it import MarkdownIt

from memskill_cli.app.options import settings_of
from memskill_cli.cli.app import app
from memskill_cli.config import load
from memskill_cli.config.datasets import DATASETS
from memskill_cli.config.extension_points import ENCODERS, NAMED_BY
from memskill_cli.config.loading import setting_names
from memskill_cli.evaluation import methods
from memskill_cli.utils import registry

from .factories import key_ring

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
OWN = ("support", "chats", "coding")
"""The names that pages give to conversations of one's own."""
ENDS = {"&&", "||", "|", ";", ">", ">>", "&"}
"""Where a command ends in a shell."""
Refused = typer.BadParameter.__mro__[1]
"""click's error for a command line that makes no sense; typer brings a click of its own."""
SECTIONS = {"train": "train", "evolve": "train", "eval": "eval"}
"""The section of settings that a command's options are about."""
SHELL = ("", "console", "bash", "sh", "shell")


@dataclass(frozen=True)
class Snippet:
    """A code block: its language as written, its text, and the line of the page on which it begins."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(page: str, text: str) -> list[Snippet]:
    """The fenced code blocks of a page."""
    return [
        Snippet(page, (token.map or [0])[0] + 1, token.info.split(" ")[0], token.content)
        for token in MarkdownIt("commonmark").parse(text)
        if token.type == "fence"
    ]


@dataclass(frozen=True)
class Command:
    """A command of a shell: the variables set before it, its name and its arguments without "…"."""

    environ: dict[str, str]
    name: str
    arguments: list[str]


def shell_commands(snippet: str) -> Iterator[Command]:
    """Every command in a block of a shell.

    Where lines begin with a prompt (``$``) the others are output.
    """
    lines = [line.strip() for line in snippet.replace("\\\n", " ").splitlines()]
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in prompted or lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # a table or a drawing
        yield from _split(words)


def _split(words: list[str]) -> Iterator[Command]:
    environ: dict[str, str] = {}
    command: list[str] = []
    for word in [*words, ";"]:
        if word in ENDS:
            if command:
                yield Command(environ, command[0], [word for word in command[1:] if word not in ("…", "...")])
            environ, command = {}, []
        elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
            command.append(word)
        else:
            name, _, environ[name] = word.partition("=")


def memskill_commands(text: str) -> Iterator[list[str]]:
    """The arguments of every ``memskill`` in the shell blocks of a page."""
    for snippet in snippets("", text):
        if snippet.language in SHELL:
            yield from (found.arguments for found in shell_commands(snippet.text) if found.name == "memskill")


def parse(arguments: list[str], environ: dict[str, str] | None = None) -> tuple[str, dict[str, Any]] | None:
    """The command's name and parameters as it would see them, None if it only shows help.

    Raises Refused for what it does not take.
    """
    group: Any = typer.main.get_command(app)
    seen: list[tuple[str, dict[str, Any]]] = []
    groups = [group, *(command for command in group.commands.values() if hasattr(command, "commands"))]
    for name, command in [found for one in groups for found in one.commands.items()]:
        if not hasattr(command, "commands"):
            command.callback = lambda name=name, **flags: seen.append((name, flags))
    with mock.patch.dict(os.environ, environ or {}):
        group.main(list(arguments), prog_name="memskill", standalone_mode=False)
    return seen[0] if seen else None


def check_command(arguments: list[str], environ: dict[str, str] | None = None) -> None:
    """Raises if memskill would refuse ``arguments`` before it did anything, or warn of the name of a setting."""
    if (parsed := parse(arguments, environ)) is None:
        return
    name, flags = parsed
    plugins = [ROOT / file for file in flags.get("plugin") or ()]
    if not all(file.is_file() for file in plugins):
        return  # a reader's own file: what it adds is not known
    with loaded(plugins):
        _check_values(name, flags)


@contextmanager
def loaded(files: list[Path]) -> Iterator[None]:
    """Plug-in files, for the time of a check."""
    registries = [DATASETS, methods.METHODS, ENCODERS, *NAMED_BY.values()]
    with mock.patch.dict(registry._loaded), ExitStack() as stack:
        for one in registries:
            stack.enter_context(mock.patch.dict(one._registered))
        registry.load_plugins(files)
        yield


def _check_values(name: str, flags: dict[str, Any]) -> None:
    if flags.get("dataset") not in (None, *OWN):
        DATASETS.check(flags["dataset"])
    if name in SECTIONS and flags["config"] is None:
        settings_of(flags, SECTIONS[name], _refuse)
    if name == "eval":
        for method in flags["method"].split(","):
            methods.METHODS.check(method)


def _refuse(warning: str) -> None:
    raise AssertionError(warning)


def check_shell(snippet: str) -> None:
    """Commands of memskill as :func:`check_command`; goals of make, extras of pip and scripts of ours must exist."""
    for found in shell_commands(snippet):
        if found.name == "memskill":
            check_command(found.arguments, found.environ)
        elif found.name == "make":
            _check_goals(found.arguments)
        elif found.name in ("pip", "python"):
            _check_python(found.arguments)


def _check_goals(arguments: list[str]) -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    goals = set(re.findall(r"^([a-z][\w-]*):(?!=)", text, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) *[?:]?=", text, re.MULTILINE))
    for word in arguments:
        variable, sign, _ = word.partition("=")
        assert variable in (variables if sign else goals), f"make {word}"


def _check_python(arguments: list[str]) -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
    for word in arguments:
        if found := re.fullmatch(r"(?:\.|memskill)\[([\w,-]+)\]", word):
            assert set(found[1].split(",")) <= extras, word
        elif re.match(r"(tools|tests|benchmarks|examples)/", word):
            assert (ROOT / word).exists(), word


def check_python(source: str) -> None:
    """Raises if ``source`` does not compile, imports what is not there or calls with keywords that are not taken."""
    tree = ast.parse(source)
    compile(source, "<snippet>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = dict(vars(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names})
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            names.update({alias.asname or alias.name: getattr(module, alias.name) for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            _check_call(node, names)


def _check_call(call: ast.Call, names: dict[str, Any]) -> None:
    """Keywords of a call to something imported; a variable's methods are not known."""
    path = ast.unparse(call.func).split(".")
    if not all(name.isidentifier() for name in path):
        return  # called on what another call gives
    target = names.get(path[0])
    for attribute in path[1:]:
        target = getattr(target, attribute) if target is not None else None
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    if target is not None and keywords:
        inspect.signature(target).bind_partial(**keywords)


def check_toml(text: str, folder: Path) -> None:
    """Settings as ``--config`` reads them, or keys as ``--keys`` does; ``folder`` is a place for a file."""
    table = tomllib.loads(text)
    file = folder / "snippet.toml"
    file.write_text(text, "utf-8")
    if "project" in table or "build-system" in table:
        return  # a pyproject.toml
    if {name.partition(".")[0] for name in setting_names()} >= set(table):
        load(file=file, warn=_refuse)
    else:
        names = re.findall(r'"env:(\w+)"', text)
        key_ring(file=file, environ=dict.fromkeys(names, "a-key"))
