"""``memskill runs``: list, show, compare and delete runs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Debug, Json, Quiet, console, escape_markup, percent
from memskill_cli.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from memskill_cli.app.runs import RunFacts

runs = typer.Typer(help="List, show, compare and delete runs.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The name of a run.", show_default=False)]
Names = Annotated[list[str], typer.Argument(help="Names of runs.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")]


@runs.command("list")
def list_runs(
    runs_dir: o.RunsDir = Path("runs"), json: Json = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """List the runs of a folder, the newest first. Commands without --run take the newest."""
    with console(json, quiet, debug) as out:
        from memskill_cli.app.runs import all_runs

        found = all_runs(runs_dir)
        out.result([dataclasses.asdict(run) for run in found], _table(found))
        if found:
            out.next_command(f"memskill runs show {found[0].name}")
        else:
            out.notice(f"there is no run in {runs_dir} yet; start one: memskill train --dataset locomo")


@runs.command("show")
def show_run(
    name: Name, runs_dir: o.RunsDir = Path("runs"), json: Json = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Show one run: its state, its stages and its evaluations."""
    with console(json, quiet, debug) as out:
        from memskill_cli.app.runs import evaluations, facts_of
        from memskill_cli.runs.run_dir import find_run

        path = find_run(runs_dir, name)
        assert path is not None  # find_run raises if there is no run of that name
        facts, found = facts_of(path), evaluations(path)
        data = {**dataclasses.asdict(facts), "folder": str(path), "evaluations": found}
        out.result(data, _table([facts]), *([_evaluations(found)] if found else []))
        out.next_command(f"memskill inspect-skills --run {facts.name}")


@runs.command("compare")
def compare_runs(
    first: Name,
    second: Name,
    runs_dir: o.RunsDir = Path("runs"),
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare two runs: settings that differ, rewards, and scores on the questions that both have answered."""
    with console(json, quiet, debug) as out:
        from memskill_cli.app.runs import compare

        found = compare(runs_dir, first, second)
        parts: list[Any] = [_settings(found)] if found.settings else ["the settings are equal"]
        parts += [_reward_line(name, rewards) for name, rewards in zip((first, second), found.rewards, strict=True)]
        parts.append(_scores(found) if found.scores else "no evaluation of both runs has the same data and method")
        out.result(dataclasses.asdict(found), *parts)


@runs.command("delete")
def delete_runs(
    names: Names,
    yes: Yes = False,
    runs_dir: o.RunsDir = Path("runs"),
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Delete runs with their checkpoints, evaluations and memory. Replies in the cache stay."""
    with console(json, quiet, debug) as out:
        from memskill_cli.app.runs import delete
        from memskill_cli.runs.run_dir import find_run

        for name in names:
            find_run(runs_dir, name)  # all must exist before one is deleted
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError("runs delete asks first, and there is no terminal", hint="add --yes")
            typer.confirm(f"Delete {', '.join(names)} in {runs_dir}?", abort=True, err=True)
        gone = [str(delete(runs_dir, name)) for name in names]
        out.result({"deleted": gone}, *(f"deleted {escape_markup(path)}" for path in gone))


def _table(found: list[RunFacts]) -> Table:
    from rich.table import Table

    table = Table(title="runs", title_justify="left")
    for name in ("run", "dataset", "status", "created"):
        table.add_column(name, overflow="fold", no_wrap=name == "status")
    for name in ("epochs", "reward", "evals", "cost"):
        table.add_column(name, justify="right")
    table.caption, table.caption_justify = "reward: of the best stage, x 100", "left"
    for run in found:
        if run.problem:
            table.add_row(escape_markup(run.name), "", f"[red]{escape_markup(run.problem)}[/red]")
            continue
        names = (run.name, run.dataset, run.status, run.created[:10])
        numbers = (str(run.inner_epochs), percent(run.best_reward), str(run.evaluations), f"${run.cost_usd:.2f}")
        table.add_row(*map(escape_markup, names), *numbers)
    return table


def _evaluations(found: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="evaluations; scores x 100", title_justify="left")
    for name in ("data", "method", "checkpoint"):
        table.add_column(name, overflow="fold")
    for name in ("queries", "F1 or success", "judge"):
        table.add_column(name, justify="right")
    for row in found:
        score = row.get("success_rate", row.get("f1"))
        cells = (f"{row.get('dataset')} {row.get('split')}", str(row.get("method")), str(row.get("checkpoint")))
        table.add_row(*map(escape_markup, cells), str(row.get("queries")), percent(score), percent(row.get("judge")))
    return table


def _settings(found: Any) -> Table:
    from rich.table import Table

    table = Table(title="settings that differ", title_justify="left")
    for name in ("setting", found.first, found.second):
        table.add_column(escape_markup(name), overflow="fold")
    for name, one, other in found.settings:
        table.add_row(name, escape_markup(str(one)), escape_markup(str(other)))
    return table


def _reward_line(name: str, rewards: list[float]) -> str:
    if not rewards:
        return f"{escape_markup(name)}: no inner epoch"
    tail = rewards[-max(1, len(rewards) // 4) :]
    return (
        f"{escape_markup(name)}: {len(rewards)} inner epochs; mean reward of the last quarter "
        f"{percent(sum(tail) / len(tail))}, first {percent(rewards[0])}"
    )


def _scores(found: Any) -> Table:
    from rich.table import Table

    table = Table(title=f"{found.second} minus {found.first}, on the same questions; x 100", title_justify="left")
    for name in ("data", "method", "score"):
        table.add_column(name, overflow="fold")
    for name in ("queries", found.first, found.second, "difference (95 % interval)"):
        table.add_column(escape_markup(name), justify="right")
    for row in found.scores:
        low, high = row["ci95"]
        difference = f"{100 * row['difference']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        cells = (f"{row['dataset']} {row['split']}", str(row["method"]), row["score"], str(row["queries"]))
        table.add_row(*map(escape_markup, cells), percent(row["first"]), percent(row["second"]), difference)
    return table
