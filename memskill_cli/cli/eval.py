"""``memskill eval``: build memory for a split, ask its queries, score them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console
from memskill_cli.cli.prepare import listeners
from memskill_cli.utils.registry import load_plugins

if TYPE_CHECKING:
    from memskill_cli.evaluation.runner import EvalCallbacks

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
        load_plugins(plugin, out.notice)
        from memskill_cli.app import eval_start, evaluate
        from memskill_cli.cli import eval_tables
        from memskill_cli.utils import signals

        request = eval_start.EvalRequest(
            ctx.params,
            runs_dir,
            data_dir,
            o.access_of(ctx.params, out.warn),
            methods=method.split(","),
            run=run,
            split=split,
            variant=variant,
            include_abstention=include_abstention,
            limit=limit,
            checkpoint=checkpoint,
            init_skills=init_skills,
        )
        session = eval_start.open_evaluation(request, listeners(out))
        with EvalProgressBars(out) as bars:
            progress = evaluate.EvalProgress(bars.begin, out.notice)
            summaries = signals.run(eval_start.evaluate_session(session, request, progress), out.notice)
        if len(summaries) == 1:
            out.result(summaries[0], *eval_tables.one(summaries[0]))
        else:
            gains = evaluate.compare_methods(summaries, session.settings)
            document = {"evaluations": summaries, "differences": gains}
            out.result(document, *eval_tables.several(summaries, gains))
        if owed := sum(sum(summary["errors"].values()) for summary in summaries):
            asked = sum(summary["queries"] for summary in summaries)
            out.warn(f"{owed} of {asked} queries failed; run the same command again to retry them")
        flag = f" --runs-dir {runs_dir}" if runs_dir != Path("runs") else ""
        out.next_command(f"memskill inspect-skills --run {session.run.name}{flag}")


class EvalProgressBars:
    """The progress of one evaluation after another: spans read, whose number is a guess at first, and queries."""

    def __init__(self, out: Console) -> None:
        self._out, self._stack = out, ExitStack()

    def __enter__(self) -> EvalProgressBars:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def begin(self, title: str, queries: int) -> EvalCallbacks:
        """Bars for the next evaluation, in place of those of the one before."""
        from memskill_cli.evaluation.runner import EvalCallbacks

        self._stack.close()
        reading = self._stack.enter_context(self._out.progress(f"{title}: reading", None, "spans"))
        asking = self._stack.enter_context(self._out.progress(f"{title}: asking", queries, "queries"))
        return EvalCallbacks(reading, asking)
