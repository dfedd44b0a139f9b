"""``memskill evolve``: run designer cycles on a run's hard cases."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console, escape_markup, percent
from memskill_cli.cli.eval import EvalProgressBars
from memskill_cli.cli.resume_command import next_command, repeated
from memskill_cli.utils.registry import load_plugins

if TYPE_CHECKING:
    from rich.console import RenderableType

    from memskill_cli.app.evolve import CycleResult
    from memskill_cli.config import Config
    from memskill_cli.runs.run_dir import RunDir

DESIGN = "Designer"
Cycles = Annotated[int, o.option("--cycles", panel=DESIGN, help="Number of designer cycles; several need --judge-on.")]
FromEval = Annotated[
    str, o.option("--from-eval", panel=DESIGN, help="Use the failures of the evaluation with this id as hard cases.")
]
DryRun = Annotated[bool, o.option("--dry-run", panel=DESIGN, help="Show the change as a diff; change nothing.")]
JudgeOn = Annotated[
    str, o.option("--judge-on", panel=DESIGN, help="Evaluate both banks on this split and keep the better one.")
]
Attribution = Annotated[
    str,
    o.option(
        "--attribution",
        panel=DESIGN,
        help="Change nothing: evaluate the bank on this split without each of the designer's skills.",
    ),
]


def evolve(
    ctx: typer.Context,
    run: o.Run = None,
    cycles: Cycles = 1,
    from_eval: FromEval = "",
    dry_run: DryRun = False,
    judge_on: JudgeOn = "",
    attribution: Attribution = "",
    preset: o.Preset = "default",
    config: o.ConfigFile = None,
    set_: o.Set = None,
    plugin: o.Plugin = None,
    runs_dir: o.RunsDir = Path("runs"),
    data_dir: o.DataDir = Path("data"),
    cache_dir: o.CacheDir = None,
    model: o.Model = None,
    judge_model: o.JudgeModel = None,
    designer_model: o.DesignerModel = None,
    api_base: o.ApiBase = None,
    api_key: o.ApiKey = None,
    keys: o.Keys = None,
    concurrency: o.Concurrency = None,
    max_cost: o.MaxCost = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Let the designer improve the skill bank of a run, based on questions that were answered wrong.

    The change becomes a new stage, which the next training judges. With --judge-on val, the banks before and after the
    change are evaluated at once, and the better one is kept. --dry-run only shows the change. --attribution val shows
    what each skill that the designer added is worth.
    """
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        from memskill_cli.app.evaluate import EvalProgress
        from memskill_cli.app.evolve import EvolveOptions
        from memskill_cli.app.evolve import evolve as work
        from memskill_cli.app.options import settings_of
        from memskill_cli.datasets.registry import find_own
        from memskill_cli.errors import RunError, UsageError
        from memskill_cli.runs.run_dir import RunDir, find_run
        from memskill_cli.utils import signals

        if attribution and (cycles != 1 or from_eval or dry_run or judge_on):
            raise UsageError("--attribution makes no designer cycle, so it cannot be combined with options of one")
        if cycles < 1:
            raise UsageError(f"--cycles {cycles}: the number of cycles must be above 0")
        if cycles > 1 and not judge_on:
            raise UsageError(
                f"--cycles {cycles}: a change must be judged before the next cycle", hint="add --judge-on val"
            )
        find_own(data_dir)
        path = find_run(runs_dir, run)
        if path is None:
            raise RunError(f"there is no run in {runs_dir} yet", hint="memskill train --dataset locomo")
        opened = RunDir.open(path)
        settings = settings_of(ctx.params, "train", out.warn, opened.settings())
        if attribution:
            _attribute(ctx, out, opened, settings, data_dir, attribution)
            return
        with EvalProgressBars(out) as bars:
            request = EvolveOptions(cycles, from_eval, dry_run, judge_on)
            access = o.access_of(ctx.params, out.warn)
            cycles_made = work(opened, settings, data_dir, access, request, EvalProgress(bars.begin, out.notice))
            made = signals.run(cycles_made, out.notice)
        parts = [part for cycle in made for part in _shown(cycle)]
        out.result({"run": opened.name, "dry_run": dry_run, "cycles": [_facts(cycle) for cycle in made]}, *parts)
        if any(cycle.stage.change for cycle in made):
            out.next_command(_next(ctx, opened.name, settings.train.outer_epochs))


def _attribute(ctx: typer.Context, out: Console, run: RunDir, settings: Config, data_dir: Path, split: str) -> None:
    """Show the effect of each skill of the designer on ``split``."""
    from rich.table import Table

    from memskill_cli.app.attribution import attribute
    from memskill_cli.app.evaluate import EvalProgress
    from memskill_cli.utils import signals

    with EvalProgressBars(out) as bars:
        access = o.access_of(ctx.params, out.warn)
        work = attribute(run, settings, data_dir, access, split, EvalProgress(bars.begin, out.notice))
        effects = signals.run(work, out.notice)
    table = Table(title=f"gain by each skill on {split}: with it - without it, and the 95 % interval")
    for header in ("skill", "score", "queries", "gain", "interval"):
        table.add_column(header, justify="left" if header in ("skill", "score") else "right")
    for one in effects:
        low, high = one.ci95
        interval = f"{percent(low)} to {percent(high)}"
        table.add_row(escape_markup(one.skill), one.score, str(one.queries), percent(one.difference), interval)
    out.result({"run": run.name, "split": split, "effects": [dataclasses.asdict(one) for one in effects]}, table)


def _next(ctx: typer.Context, run: str, epochs: int) -> str:
    """The command that usually follows: make the change, see it, or train with it."""
    if ctx.params["dry_run"]:
        return next_command(ctx, "evolve", "--run", run)
    if ctx.params["judge_on"]:
        return shlex.join(["memskill", "inspect-skills", "--run", run, "--history", *repeated(ctx, "runs_dir")])
    return next_command(ctx, "train", "--run", run, "--resume", "--outer-epochs", str(epochs + 1))


def _facts(cycle: CycleResult) -> dict[str, Any]:
    stage = cycle.stage
    facts = {"stage": stage.number, "parent": stage.parent, "kept": stage.kept, "rationale": stage.rationale}
    gate = dataclasses.asdict(stage.gate) if stage.gate else None
    return {**facts, "change": stage.change, "diff": _diffs(cycle), "judged": cycle.judged, "gate": gate}


def _diffs(cycle: CycleResult) -> dict[str, list[str]]:
    from memskill_cli.skills.diff import diff_banks

    return {change.name: change.lines() for change in diff_banks(cycle.before, cycle.stage.bank)}


def _shown(cycle: CycleResult) -> list[RenderableType]:
    """The change as a coloured diff, the reasons for it, and the scores before and after if it was judged."""
    from rich.text import Text

    stage = cycle.stage
    if not stage.change:
        return [Text(f"stage {stage.number}: the designer proposed no valid change")]
    parts: list[RenderableType] = [Text(f"stage {stage.number}, from stage {stage.parent}", "bold")]
    parts.append(Text.from_markup(escape_markup(stage.rationale), emoji=False))
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for name, lines in _diffs(cycle).items():
        parts.append(Text.from_markup(escape_markup(name), style="bold", emoji=False))
        for line in lines:
            parts.append(Text.from_markup(escape_markup(line), style=colours.get(line[:1], ""), emoji=False))
    if cycle.judged:
        for name in ("before", "after"):
            score, measure = cycle.judged[name], cycle.judged["measure"]
            label = {"success_rate": "success", "f1": "F1"}.get(measure, measure)
            low, high = score["ci95"][measure] or (None, None)
            shown = f"{percent(score[measure])} ({percent(low)}–{percent(high)})"
            parts.append(f"{name}: {label} {shown} on {cycle.judged['split']}")
        if stage.gate:
            parts.append(stage.gate.describe())
        parts.append("kept" if stage.kept else "not better: rolled back")
    return parts
