"""The command ``memskill``.

Each command is a module with one function. typer takes the options from its signature and the help from its docstring.
The function calls code outside ``cli/`` and shows the result with :mod:`memskill_cli.cli.console`::

    def prepare(dataset: ..., json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
        with console(json, quiet, debug) as out:
            from memskill_cli.app.prepare import prepare  # heavy imports happen here
            ...
            out.result({"dataset": ...}, table)

Every option is also read from the environment variable ``MEMSKILL_<OPTION>``. Options that several commands have are in
:mod:`memskill_cli.cli.options`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer
from typer.exceptions import TyperException

from memskill_cli import __version__
from memskill_cli.cli.bundles import export, pull, push
from memskill_cli.cli.console import accept_any_encoding, error_document, print_json
from memskill_cli.cli.eval import eval_
from memskill_cli.cli.evolve import evolve
from memskill_cli.cli.import_ import import_
from memskill_cli.cli.inspect_skills import inspect_skills
from memskill_cli.cli.mcp import mcp
from memskill_cli.cli.memory import memory
from memskill_cli.cli.prepare import prepare
from memskill_cli.cli.process import own_process
from memskill_cli.cli.runs import runs
from memskill_cli.cli.train import train
from memskill_cli.utils import signals

app = typer.Typer(
    name="memskill",
    help="Train and evaluate a long-term memory for LLM agents (MemSkill, arXiv 2602.02474).",
    epilog="Start with: memskill prepare --dataset locomo --sample && memskill train --dataset locomo --preset demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _unwrap(text: str | None) -> str:
    """A docstring with each paragraph on one line, because typer keeps line breaks."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n"))


COMMANDS: dict[str, Callable[..., None]] = {
    "prepare": prepare,
    "train": train,
    "evolve": evolve,
    "eval": eval_,
    "inspect-skills": inspect_skills,
    "import": import_,
    "export": export,
    "push": push,
    "pull": pull,
    "mcp": mcp,
}
for _name, _command in COMMANDS.items():
    app.command(_name, help=_unwrap(_command.__doc__))(_command)
app.add_typer(runs, name="runs")
app.add_typer(memory, name="memory")
for _sub in (*runs.registered_commands, *memory.registered_commands):
    _sub.help = _unwrap(_sub.callback.__doc__ if _sub.callback else "")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"memskill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line, then exit with its exit code."""
    own_process()
    accept_any_encoding()
    code = 0
    try:
        code = _run_json() if "--json" in sys.argv else app()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
    signals.exit_process(code)
    sys.exit(code)


def _run_json() -> int:
    """Run the command line. An unknown option or an invalid value is also reported as JSON. Returns the exit code."""
    try:
        return app(standalone_mode=False) or 0
    except TyperException as error:
        typer.echo(f"error: {error.format_message()}", err=True)
        print_json(error_document(error.format_message(), "memskill --help", error.exit_code))
        return error.exit_code
