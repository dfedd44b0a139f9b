"""``memskill eval``: build memory for a split, ask its queries, score them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console, percent, safe

if TYPE_CHECKING:
    from rich.table import Table

Dataset = Annotated[str | None, o.option("--dataset", "-d", panel=o.WHERE, help="The benchmark; left out: the run's.")]
Split = Annotated[str, o.option("--split", panel=o.METHOD, help="train, val or test.")]
Method = Annotated[str, o.option("--method", panel=o.METHOD, help="How memory is made; this version: memskill.")]
Limit = Annotated[int, o.option("--limit", panel=o.LIMITS, help="Ask only the first N queries (0: all).")]
Which = Annotated[str, o.option("--checkpoint", panel=o.WHERE, help="best, latest, or a checkpoint's folder.")]


def eval_(
    ctx: typer.Context,
    dataset: Dataset = None,
    run: o.Run = None,
    split: Split = "test",
    method: Method = "memskill",
    limit: Limit = 0,
    checkpoint: Which = "best",
    preset: o.Preset = "default",
    config: o.ConfigFile = None,
    set_: o.Set = None,
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
    span_mode: o.SpanMode = None,
    chunk_size: o.ChunkSize = None,
    chunk_overlap: o.ChunkOverlap = None,
    top_k: o.TopK = None,
    mem_top_k: o.MemTopK = None,
    judge: o.Judge = None,
    seed: o.Seed = None,
    concurrency: o.Concurrency = None,
    max_cost: o.MaxCost = None,
    engine: o.Engine = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a run: memory for every conversation of a split, its questions answered and scored.

    The same evaluation again goes on where it stopped and pays for nothing twice; with all queries answered it only
    shows them. Without any run it uses the seed skills and an untrained controller, and says so.
    """
    with console(json, quiet, debug) as out:
        import asyncio

        from memskill_cli.cli.prepare import ensure_prepared
        from memskill_cli.datasets.base import load_manifest
        from memskill_cli.errors import UsageError
        from memskill_cli.evaluation import launch
        from memskill_cli.evaluation.runner import Task
        from memskill_cli.runs.run_dir import RunDir, find_run

        if method != "memskill":
            raise UsageError(f"method {method} is not in this version", hint="--method memskill")
        path = find_run(runs_dir, run, trained=True)
        settings = o.settings_of(ctx.params, "eval", RunDir.open(path).settings() if path else None)
        ensure_prepared(out, settings.dataset, data_dir)
        manifest = load_manifest(settings.dataset, data_dir)
        opened = launch.open_run(runs_dir, run, settings, manifest.digest)
        task = Task(settings.dataset, split, method, manifest.digest, limit)
        with ExitStack() as stack:
            progress = launch.Progress(lambda spans, queries: _bars(out, stack, spans, queries), out.notice)
            access = o.access_of(ctx.params)
            summary = asyncio.run(launch.evaluate(opened, task, settings, checkpoint, data_dir, access, progress))
        show(out, summary)
        if owed := sum(summary["errors"].values()):
            out.warn(f"{owed} of {summary['queries']} queries are owed; the same command again asks only these")
        flag = f" --runs-dir {runs_dir}" if runs_dir != Path("runs") else ""
        out.next_command(f"memskill inspect-skills --run {opened.name}{flag}")


def _bars(out: Console, stack: ExitStack, spans: int, queries: int) -> Any:
    from memskill_cli.evaluation.runner import Watcher

    reading = stack.enter_context(out.progress("reading", spans, "spans"))
    asking = stack.enter_context(out.progress("asking", queries, "queries"))
    return Watcher(reading, asking)


def show(out: Console, summary: dict[str, Any]) -> None:
    """The table, a few answers as they are, and where the rest lies."""
    parts: list[Any] = [_table(summary)]
    parts += [f"[bold]{safe(line)}[/bold]" for line in _caveats(summary)]
    parts.append(_samples(summary))
    parts.append(f"all answers: [bold]{summary['folder']}/results.jsonl[/bold]")
    out.result(summary, *parts)


def _table(summary: dict[str, Any]) -> Table:
    from rich.table import Table

    title = f"{summary['dataset']} {summary['split']}, {summary['method']}, checkpoint {summary['checkpoint']}"
    table = Table(title=title, title_justify="left", caption="95 % bootstrap intervals", caption_justify="left")
    table.add_column("category")
    for name in ("queries", "F1", "judge"):
        table.add_column(name, justify="right")
    for category, row in summary["by_category"].items():
        table.add_row(safe(category), str(row["queries"]), *(_score(row, name) for name in ("f1", "judge")))
    table.add_section()
    cells = (_score(summary, name) for name in ("f1", "judge"))
    table.add_row("all", str(summary["queries"]), *cells, style="bold")
    return table


def _score(row: dict[str, Any], name: str) -> str:
    interval = row["ci95"][name]
    if row[name] is None or interval is None:
        return "–"
    return f"{percent(row[name])} [dim]{percent(interval[0])}–{percent(interval[1])}[/dim]"


def _caveats(summary: dict[str, Any]) -> list[str]:
    """What a reader of the numbers must know."""
    lines = []
    if summary["errors"]:
        failed = ", ".join(f"{count} {what}" for what, count in summary["errors"].items())
        lines.append(f"without a score, and in no mean: {failed}")
    if summary["max_spans"]:
        lines.append(f"only the first {summary['max_spans']} spans of each trace were read (eval.max_spans)")
    if summary["limit"]:
        lines.append(f"only the first {summary['limit']} queries were asked (--limit)")
    return lines


def _samples(summary: dict[str, Any], count: int = 6) -> Table:
    """Some answers, spread evenly over the evaluation: what the numbers are made of."""
    from rich.table import Table

    from memskill_cli import files

    rows = list(files.read_jsonl(Path(summary["folder"]) / "results.jsonl"))
    table = Table(title="some answers", title_justify="left", show_lines=False)
    for name in ("question", "truth", "answer", "F1"):
        table.add_column(name, justify="right" if name == "F1" else "left", overflow="fold")
    for row in rows[:: max(1, len(rows) // count)][:count]:
        score = "–" if row["f1"] is None else percent(row["f1"])
        truth = " / ".join(row["truths"])
        table.add_row(safe(row["question"]), safe(truth), safe(row["prediction"] or row["error"]), score)
    return table
