"""``memskill train``: train the controller on a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli import resume_command
from memskill_cli.cli.console import Advance, Console, Debug, Json, Quiet, console, percent
from memskill_cli.cli.prepare import listeners
from memskill_cli.utils.registry import load_plugins

if TYPE_CHECKING:
    from memskill_cli.app.train_start import TrainRequest
    from memskill_cli.runs.run_dir import RunDir

Resume = Annotated[bool, o.option("--resume", panel=o.WHERE, help="Resume a run: the newest, or --run.")]
InitFrom = Annotated[
    str | None,
    o.option("--init-from", panel=o.METHOD, help="Start from the controller and skills of another run's best stage."),
]
InitSkills = Annotated[
    Path | None,
    o.option("--init-skills", panel=o.METHOD, help="Start from a skill bank (JSON) or a folder of SKILL.md files."),
]
DryRun = Annotated[
    bool,
    o.option("--dry-run", panel=o.WHERE, help="Show the calls, tokens and dollars to expect, and write nothing."),
]
Override = Annotated[bool, o.option("--override", panel=o.WHERE, help="Resume even if settings differ.")]


def train(
    ctx: typer.Context,
    dataset: o.Dataset = "locomo",
    run: o.Run = None,
    resume: Resume = False,
    override: Override = False,
    dry_run: DryRun = False,
    init_from: InitFrom = None,
    init_skills: InitSkills = None,
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
    encoder: o.Encoder = None,
    retriever: o.Retriever = None,
    outer_epochs: o.OuterEpochs = None,
    inner_epochs: o.InnerEpochs = None,
    batch_size: o.BatchSize = None,
    span_mode: o.SpanMode = None,
    chunk_size: o.ChunkSize = None,
    chunk_overlap: o.ChunkOverlap = None,
    top_k: o.TopK = None,
    mem_top_k: o.MemTopK = None,
    retrieval: o.Retrieval = None,
    reward: o.Reward = None,
    judge: o.Judge = None,
    evolve: o.Evolve = None,
    seed: o.Seed = None,
    concurrency: o.Concurrency = None,
    max_cost: o.MaxCost = None,
    engine: o.Engine = None,
    ray_address: o.RayAddress = None,
    tracker: o.Tracker = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train the controller to select memory skills.

    Each inner epoch reads a batch of conversations with the skills that the controller selects, answers questions from
    the resulting memories, updates the controller by PPO with the scores, and writes a checkpoint. Training can be
    stopped at any time; the same command with --resume continues it.
    """
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        _train(out, ctx)


def _train(out: Console, ctx: typer.Context) -> None:
    """Train the run that the options in ``ctx`` ask for, and show the result."""
    from memskill_cli.app.train_start import open_training, train_session
    from memskill_cli.utils import signals

    request = _request(ctx, out)
    if ctx.params["dry_run"]:
        _show_estimate(out, ctx, request)
        return
    session = open_training(request, listeners(out))
    out.set_resume_command(resume_command.resume_training(session.run.name, ctx))
    with TrainProgressBars(out) as progress:
        signals.run(train_session(session, request, progress), out.notice)
    show(out, session.run)
    evaluation = ("eval", "--dataset", session.settings.dataset, "--run", session.run.name)
    out.next_command(resume_command.next_command(ctx, *evaluation))


def _show_estimate(out: Console, ctx: typer.Context, request: TrainRequest) -> None:
    from memskill_cli.app.dry_run import dry_run
    from memskill_cli.cli.estimate_table import estimate_table

    found = dry_run(request.options, request.data_dir, out.warn)
    out.result(found, estimate_table(found))
    out.notice("nothing was written; replies in the cache and second attempts are not counted")
    words = [word for word in resume_command.current_command().split() if word != "--dry-run"]
    out.next_command(" ".join(words))


def _request(ctx: typer.Context, out: Console) -> TrainRequest:
    from memskill_cli.app.train_start import TrainRequest

    options = ctx.params
    return TrainRequest(
        options,
        options["runs_dir"],
        options["data_dir"],
        o.access_of(options, out.warn),
        dataset=options["dataset"] if o.is_given(ctx, "dataset") else None,
        run=options["run"],
        resume=options["resume"],
        override=options["override"],
        init_from=options["init_from"],
        init_skills=options["init_skills"],
    )


class TrainProgressBars:
    """The progress of training: a bar of spans, and a line for each inner epoch."""

    def __init__(self, out: Console) -> None:
        self._out = out

    def __enter__(self) -> Any:
        from contextlib import ExitStack

        from memskill_cli.app.train import TrainProgress

        self._stack = ExitStack()
        return TrainProgress(self._begin, self._out.notice)

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def _begin(self, spans: int, notice: Callable[[str], None]) -> Any:
        from memskill_cli.training.trainer import TrainCallbacks

        self._advance: Advance = self._stack.enter_context(self._out.progress("training", spans, "spans"))
        self._notice = notice
        return TrainCallbacks(self._advance, self._epoch, notice)

    def _epoch(self, row: dict[str, Any]) -> None:
        used = sorted(row["skill_usage"].items(), key=lambda pair: (-pair[1], pair[0]))
        self._notice(
            f"outer {row['outer']} inner {row['inner']}: reward {percent(row['episode_reward_mean'])} "
            f"over {row['steps']} steps; skills {', '.join(f'{name} {count}' for name, count in used)}; "
            f"{row['llm_calls']} calls ({row['cached_calls']} cached), ${row['cost_usd']:.4f}, {row['seconds']:.0f} s"
        )


def show(out: Console, run: RunDir) -> None:
    """Show the result: the rewards of each stage, and the folder of the run."""
    from rich.table import Table

    from memskill_cli.skills import stages
    from memskill_cli.training import metrics
    from memskill_cli.utils.rows import read_rows

    rows = list(read_rows(run.metrics, metrics.LINE))
    table = Table(title=f"run {run.name}", title_justify="left")
    for name in ("stage", "inner epochs", "first reward", "last reward", "stage reward", ""):
        table.add_column(name, justify="left" if name in ("stage", "") else "right")
    found = stages.read_all(run.stages)
    champion = stages.best(found)
    report = run.path / "report.html"
    for stage in found:
        inner = [row["episode_reward_mean"] for row in rows if row["stage"] == stage.number]
        first, last = (percent(inner[0]), percent(inner[-1])) if inner else ("–", "–")
        numbers = (str(len(inner)), first, last, percent(stage.reward))
        table.add_row(f"{stage.number:03d}", *numbers, stage.outcome)
    out.result(
        {
            "run": run.name,
            "folder": str(run.path),
            "status": run.status,
            "inner_epochs": len(rows),
            "stages": [{"stage": s.number, "reward": s.reward, "is_best": s.is_best, "kept": s.kept} for s in found],
            "best_checkpoint": str(run.checkpoints / f"{champion.checkpoint:06d}") if champion else None,
            "report": str(report) if report.is_file() else None,
            "cost_usd": sum(row["cost_usd"] for row in rows),
            "llm_calls": sum(row["llm_calls"] for row in rows),
        },
        table,
        f"{_rewards(run)}; everything is in [bold]{run.path}[/bold]",
        *([f"report: [bold]{report}[/bold]"] if report.is_file() else []),
    )


def _rewards(run: RunDir) -> str:
    """What the rewards in the table are."""
    from memskill_cli.evaluation.kinds import kind_for_report

    kind = kind_for_report(run.manifest().dataset)
    return f"reward: {kind.describe_reward(run.settings().reward.kind)}, x 100"
