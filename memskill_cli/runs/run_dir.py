"""One run directory: its layout, its manifest, and the lock that says who owns it."""

from __future__ import annotations

import difflib
from pathlib import Path

import orjson

from memskill_cli.errors import RunError

FORMAT = 1
UNTRAINED = "untrained"
"""Name of the run that holds evaluations made without any trained run."""


def find_run(runs_dir: Path, name: str | None) -> Path | None:
    """The run called ``name``, or the newest one; None if none has been made yet.

    Raises RunError, with the nearest name, if ``name`` is given and no run is called so.
    """
    runs = {run.parent.name: run.parent for run in sorted(runs_dir.glob("*/run.json"))}
    if name is not None:
        if name in runs:
            return runs[name]
        near = difflib.get_close_matches(name, runs, n=1)
        known = f"did you mean {near[0]}?" if near else "there are: " + (", ".join(sorted(runs)) or "none yet")
        raise RunError(f"no run is called {name} in {runs_dir}", hint=known)
    trained = [run for run in runs.values() if run.name != UNTRAINED]
    return max(trained, key=lambda run: (_created(run), run.name), default=None)


def _created(run: Path) -> str:
    try:
        return str(orjson.loads((run / "run.json").read_bytes())["created"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
