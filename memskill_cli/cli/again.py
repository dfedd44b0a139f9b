"""The command that goes on with what was stopped, to be typed (or pasted) as it is."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memskill_cli.redaction import without_shapes

if TYPE_CHECKING:
    import typer

KEY = "--api-key"
PLACES = ("runs_dir", "data_dir", "cache_dir", "keys")
"""Flags that are no settings of a run, so that a resuming command must repeat them."""


def typed(arguments: Sequence[str] | None = None, *more: str) -> str:
    """The command as it was typed (without ``memskill``), with ``more`` after it, and no key in it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    kept = [
        without_shapes(word)
        for before, word in zip(["", *given], given, strict=False)
        if KEY not in (before, word) and not word.startswith(f"{KEY}=")
    ]
    return _line([*kept, *more], keys=len(kept) < len(given))


def training(name: str, ctx: typer.Context) -> str:
    """``train --resume`` for the run ``name``, which ``ctx`` has begun or was already going on with."""
    if ctx.params["resume"]:
        return typed(None, *([] if _given(ctx, "run") else ["--run", name]))
    flags = [flag for flag in PLACES if _given(ctx, flag)]
    places = [word for flag in flags for word in (f"--{flag.replace('_', '-')}", str(ctx.params[flag]))]
    return _line(["train", "--run", name, "--resume", *places], keys=_given(ctx, "api_key"))


def _given(ctx: typer.Context, flag: str) -> bool:
    """Whether a flag was typed, rather than read from the environment, where it still is."""
    source = ctx.get_parameter_source(flag)
    return source is not None and source.name == "COMMANDLINE"


def _line(words: Sequence[str], *, keys: bool) -> str:
    return shlex.join(["memskill", *words]) + (f"   (and {KEY}, not shown here)" if keys else "")
