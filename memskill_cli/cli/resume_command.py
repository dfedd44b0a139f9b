"""Commands to suggest, complete enough to be pasted: how to continue a stopped command, and what to run next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memskill_cli.utils.redaction import NO_KEY, redact_patterns

if TYPE_CHECKING:
    import typer

KEY = "--api-key"
PLACES = ("runs_dir", "data_dir", "cache_dir", "keys", "plugin")
"""Options that are not stored with a run, so a command that uses the run must repeat them."""


def current_command(arguments: Sequence[str] | None = None, *more: str) -> str:
    """The command as it was typed, followed by ``more``; keys are removed. ``arguments`` are without ``memskill``."""
    words, keys, rest = [], [], iter(sys.argv[1:] if arguments is None else arguments)
    for word in rest:
        flag, sign, value = word.partition("=")
        if flag == KEY:
            keys.append(value if sign else next(rest, ""))
        else:
            words.append(redact_patterns(word))
    return _line([*words, *more], keys)


def resume_training(name: str, ctx: typer.Context) -> str:
    """The ``train --resume`` command for the run ``name``, which the command of ``ctx`` has started or resumed."""
    if ctx.params["resume"]:
        return current_command(None, *([] if _given(ctx, "run") else ["--run", name]))
    words = ["train", "--run", name, "--resume", *repeated(ctx, *PLACES)]
    return _line(words, ctx.params["api_key"] if _given(ctx, "api_key") else [])


def next_command(ctx: typer.Context, *words: str) -> str:
    """The command to suggest after the one of ``ctx``: ``memskill``, ``words``, and the options in :data:`PLACES`."""
    return shlex.join(["memskill", *words, *repeated(ctx, *PLACES)])


def repeated(ctx: typer.Context, *options: str) -> list[str]:
    """The words of those ``options`` that were given on the command line of ``ctx``, with their values."""
    words: list[str] = []
    for option in filter(lambda name: name in ctx.params and _given(ctx, name), options):
        value = ctx.params[option]
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{option.replace('_', '-')}", str(one)]
    return words


def _given(ctx: typer.Context, flag: str) -> bool:
    """Whether an option was given on the command line. One from the environment is still set there."""
    source = ctx.get_parameter_source(flag)
    return source is not None and source.name == "COMMANDLINE"


def _line(words: Sequence[str], keys: Sequence[str]) -> str:
    shown = [KEY, NO_KEY] if NO_KEY in keys else []
    note = f"   (and {KEY}, not shown here)" if set(keys) - {NO_KEY} else ""
    return shlex.join(["memskill", *words, *shown]) + note
