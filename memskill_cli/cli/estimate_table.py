"""The table of what a training and an evaluation are expected to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memskill_cli.cli.console import escape_markup

if TYPE_CHECKING:
    from rich.table import Table

ROWS = {"prompt_tokens": "prompt tokens", "completion_tokens": "reply tokens", "usd": "US dollars"}
"""What a row is called, where that is not its name."""


def estimate_table(facts: Mapping[str, Any]) -> Table:
    """``facts`` has ``model``, ``concurrency``, ``training`` and ``evaluation`` (app/estimate.py)."""
    from rich.table import Table

    title = f"expected, with {facts['model']} and {facts['concurrency']} calls at once"
    table = Table(title=escape_markup(title), title_justify="left")
    for column in ("", "training", "evaluation"):
        table.add_column(column, justify="right" if column else "left")
    both = facts["training"], facts["evaluation"]
    for key in ("spans", "calls", "prompt_tokens", "completion_tokens", "usd", "minutes"):
        shown = ("price unknown" if row[key] is None else f"{row[key]:,}" for row in both)
        table.add_row(ROWS.get(key, key), *shown)
    return table
