"""``memskill evolve``: designer cycles on a run's hard cases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console, escape_markup, percent
from memskill_cli.cli.eval import EvalProgressBars
from memskill_cli.utils.registry import load_plugins

if TYPE_CHECKING:
    from rich.console import RenderableType

    from memskill_cli.app.evolve import CycleResult

DESIGN = "What to evolve from"
Cycles = Annotated[int, o.option("--cycles", panel=DESIGN, help="Designer cycles; several need --judge-on.")]
FromEval = Annotated[str, o.option("--from-eval", panel=DESIGN, help="An evaluation's id: learn from its failures.")]
DryRun = Annotated[bool, o.option("--dry-run", panel=DESIGN, help="Show the change as a diff; change nothing.")]
JudgeOn = Annotated[str, o.option("--judge-on", panel=DESIGN, help="Evaluate on this split; keep the better bank.")]


def evolve(
    ctx: typer.Context,
    run: o.Run = None,
    cycles: Cycles = 1,
    from_eval: FromEval = "",
    dry_run: DryRun = False,
    judge_on: JudgeOn = "",
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
    """Let the designer change the skill bank of a run, from the questions that its memory answered wrong.

    The change becomes a new stage, judged by the next training or, with --judge-on val, by evaluating the bank before
    and after; --dry-run only shows it.
    """
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        from memskill_cli.app.evaluate import EvalProgress
        from memskill_cli.app.evolve import EvolveOptions
        from memskill_cli.app.evolve import evolve as work
        from memskill_cli.app.options import settings_of
        from memskill_cli.errors import RunError, UsageError
        from memskill_cli.runs.run_dir import RunDir, find_run
        from memskill_cli.utils import signals

        if cycles < 1 or (cycles > 1 and not judge_on):
            raise UsageError(f"--cycles {cycles}: every cycle but one must be judged", hint="add --judge-on val")
        path = find_run(runs_dir, run)
        if path is None:
            raise RunError(f"there is no run in {runs_dir} yet", hint="memskill train --dataset locomo")
        opened = RunDir.open(path)
        settings = settings_of(ctx.params, "train", out.warn, opened.settings())
        with EvalProgressBars(out) as bars:
            request = EvolveOptions(cycles, from_eval, dry_run, judge_on)
            access = o.access_of(ctx.params, out.warn)
            cycles_made = work(opened, settings, data_dir, access, request, EvalProgress(bars.begin, out.notice))
            made = signals.run(cycles_made, out.notice)
        parts = [part for cycle in made for part in _shown(cycle)]
        out.result({"run": opened.name, "dry_run": dry_run, "cycles": [_facts(cycle) for cycle in made]}, *parts)
        if any(cycle.stage.change for cycle in made):
            _next(out, opened.name, dry_run, judge_on, settings.train.outer_epochs)


def _next(out: Console, run: str, dry_run: bool, judge_on: str, epochs: int) -> None:
    if dry_run:
        out.next_command(f"memskill evolve --run {run}")
    elif judge_on:
        out.next_command(f"memskill inspect-skills --run {run} --history")
    else:
        out.next_command(f"memskill train --run {run} --resume --outer-epochs {epochs + 1}")


def _facts(cycle: CycleResult) -> dict[str, Any]:
    stage = cycle.stage
    facts = {"stage": stage.number, "parent": stage.parent, "kept": stage.kept, "rationale": stage.rationale}
    return {**facts, "change": stage.change, "diff": _diffs(cycle), "judged": cycle.judged}


def _diffs(cycle: CycleResult) -> dict[str, list[str]]:
    from memskill_cli.skills.diff import diff_banks

    return {change.name: change.lines() for change in diff_banks(cycle.before, cycle.stage.bank)}


def _shown(cycle: CycleResult) -> list[RenderableType]:
    """The change as a coloured diff, its reasons, and how it was judged."""
    from rich.text import Text

    stage = cycle.stage
    if not stage.change:
        return [Text(f"stage {stage.number}: the designer proposed no change that could be made")]
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
            called = {"success_rate": "success", "f1": "F1"}.get(measure, measure)
            low, high = score["ci95"][measure] or (None, None)
            shown = f"{percent(score[measure])} ({percent(low)}–{percent(high)})"
            parts.append(f"{name}: {called} {shown} on {cycle.judged['split']}")
        parts.append("kept" if stage.kept else "not better: rolled back")
    return parts
