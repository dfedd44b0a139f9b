"""The command that goes on with what was stopped, to be typed (or pasted) as it is."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memskill_cli.utils.redaction import NO_KEY, redact_patterns

if TYPE_CHECKING:
    import typer

KEY = "--api-key"
PLACES = ("runs_dir", "data_dir", "cache_dir", "keys")
"""Flags that are no settings of a run, so that a resuming command must repeat them."""


def current_command(arguments: Sequence[str] | None = None, *more: str) -> str:
    """The command as it was typed (without ``memskill``), with ``more`` after it, and no key in it."""
    words, keys, rest = [], [], iter(sys.argv[1:] if arguments is None else arguments)
    for word in rest:
        flag, sign, value = word.partition("=")
        if flag == KEY:
            keys.append(value if sign else next(rest, ""))
        else:
            words.append(redact_patterns(word))
    return _line([*words, *more], keys)


def resume_training(name: str, ctx: typer.Context) -> str:
    """``train --resume`` for the run ``name``, which ``ctx`` has begun or was already going on with."""
    if ctx.params["resume"]:
        return current_command(None, *([] if _given(ctx, "run") else ["--run", name]))
    flags = [flag for flag in PLACES if _given(ctx, flag)]
    places = [word for flag in flags for word in (f"--{flag.replace('_', '-')}", str(ctx.params[flag]))]
    if _given(ctx, "plugin"):
        places += [word for file in ctx.params["plugin"] for word in ("--plugin", str(file))]
    return _line(["train", "--run", name, "--resume", *places], ctx.params["api_key"] if _given(ctx, "api_key") else [])


def _given(ctx: typer.Context, flag: str) -> bool:
    """Whether a flag was typed, rather than read from the environment, where it still is."""
    source = ctx.get_parameter_source(flag)
    return source is not None and source.name == "COMMANDLINE"


def _line(words: Sequence[str], keys: Sequence[str]) -> str:
    shown = [KEY, NO_KEY] if NO_KEY in keys else []
    note = f"   (and {KEY}, not shown here)" if set(keys) - {NO_KEY} else ""
    return shlex.join(["memskill", *words, *shown]) + note
