"""``memskill eval``: build memory for a split, ask its queries, score them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console

if TYPE_CHECKING:
    from memskill_cli.evaluation.runner import Watcher

Dataset = Annotated[str | None, o.option("--dataset", "-d", panel=o.WHERE, help="The benchmark; left out: the run's.")]
Split = Annotated[
    str | None,
    o.option(
        "--split", panel=o.METHOD, help="train, val or test (default; of HotpotQA all its variants); valid_seen, …"
    ),
]
Variant = Annotated[str, o.option("--variant", panel=o.METHOD, help="Only the one with so many documents (HotpotQA).")]
Methods = Annotated[
    str,
    o.option("--method", panel=o.METHOD, help="How memory is made (see above); several: memskill,rag."),
]
Abstention = Annotated[
    bool,
    o.option("--include-abstention", panel=o.METHOD, help="Judge LongMemEval's unanswerable questions, too, apart."),
]
Limit = Annotated[int, o.option("--limit", panel=o.LIMITS, help="Ask only the first N queries (0: all).")]
InitSkills = Annotated[
    str | None,
    o.option(
        "--init-skills",
        panel=o.METHOD,
        help="Other skills for the controller: a bank's JSON, a folder of SKILL.md, or the word seeds.",
    ),
]
Which = Annotated[str, o.option("--checkpoint", panel=o.WHERE, help="best, latest, or a checkpoint's folder.")]


def eval_(
    ctx: typer.Context,
    dataset: Dataset = None,
    run: o.Run = None,
    split: Split = None,
    variant: Variant = "",
    method: Methods = "memskill",
    include_abstention: Abstention = False,
    limit: Limit = 0,
    checkpoint: Which = "best",
    init_skills: InitSkills = None,
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
    ray_address: o.RayAddress = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a run: memory for every trace of a split, its questions answered and scored.

    The same evaluation again goes on where it stopped and pays for nothing twice; with all queries answered it only
    shows them. Without any run it uses the seed skills and an untrained controller, and says so.

    Methods: memskill; the same executor with seed-skills (untrained), random-skills, all-skills; no-memory,
    full-context, rag (raw spans retrieved); mem0, langmem (extras). Several are compared on the same queries;
    --max-cost holds for each of them.
    """
    with console(json, quiet, debug) as out:
        from memskill_cli.app import evaluate
        from memskill_cli.app.runtime import check_access
        from memskill_cli.cli import eval_tables
        from memskill_cli.cli.prepare import ensure_prepared
        from memskill_cli.config import for_evaluation
        from memskill_cli.datasets.base import load_manifest
        from memskill_cli.evaluation import env_evaluation, spec
        from memskill_cli.runs.run_dir import RunDir, find_run
        from memskill_cli.skills.release_skills import starting_bank
        from memskill_cli.utils import signals

        names = spec.method_names(method)
        path = find_run(runs_dir, run, trained=True)
        settings = for_evaluation(o.settings_of(ctx.params, "eval", RunDir.open(path).settings() if path else None))
        bank = starting_bank(init_skills, noop=settings.controller.noop_seed) if init_skills is not None else None
        if bank is not None:
            out.notice(f"evaluating with the {len(bank)} skills of {init_skills}, not with the run's own")
        spec.check_abstention(settings.dataset, include_abstention)
        env_evaluation.check_methods(settings.dataset, names)
        ensure_prepared(out, settings.dataset, data_dir)
        manifest = load_manifest(settings.dataset, data_dir)
        split = split or spec.default_split(settings.dataset)
        splits = spec.splits_of(manifest, f"{split}-{variant}" if variant else split)
        tasks = spec.tasks_of(manifest, splits, names, limit, include_abstention)
        access = o.access_of(ctx.params, out.warn)
        check_access(settings, access)
        opened = evaluate.open_run(runs_dir, run, settings, tasks[0].data_digest)
        with Bars(out) as bars:
            progress = evaluate.Progress(bars.begin, out.notice)
            work = evaluate.evaluate(opened, tasks, settings, checkpoint, data_dir, access, progress, bank)
            summaries = signals.run(work, out.notice)
        if len(summaries) == 1:
            out.result(summaries[0], *eval_tables.one(summaries[0]))
        else:
            gains = evaluate.compared(summaries, settings)
            document = {"evaluations": summaries, "differences": gains}
            out.result(document, *eval_tables.several(summaries, gains))
        if owed := sum(sum(summary["errors"].values()) for summary in summaries):
            asked = sum(summary["queries"] for summary in summaries)
            out.warn(f"{owed} of {asked} queries failed; run the same command again to retry them")
        flag = f" --runs-dir {runs_dir}" if runs_dir != Path("runs") else ""
        out.next_command(f"memskill inspect-skills --run {opened.name}{flag}")


class Bars:
    """The progress of one evaluation after another: spans read, whose number is a guess at first, and queries."""

    def __init__(self, out: Console) -> None:
        self._out, self._stack = out, ExitStack()

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def begin(self, title: str, queries: int) -> Watcher:
        """Bars for the next evaluation, in place of those of the one before."""
        from memskill_cli.evaluation.runner import Watcher

        self._stack.close()
        reading = self._stack.enter_context(self._out.progress(f"{title}: reading", None, "spans"))
        asking = self._stack.enter_context(self._out.progress(f"{title}: asking", queries, "queries"))
        return Watcher(reading, asking)
