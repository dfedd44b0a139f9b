"""``memskill eval``: build memories for a split, answer its queries and score the answers."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console
from memskill_cli.cli.prepare import listeners
from memskill_cli.cli.resume_command import repeated
from memskill_cli.utils.registry import load_plugins

if TYPE_CHECKING:
    from memskill_cli.app.eval_start import EvalRequest
    from memskill_cli.evaluation.runner import EvalCallbacks

Dataset = Annotated[
    str | None, o.option("--dataset", "-d", panel=o.WHERE, help="The dataset; default: the one the run is trained on.")
]
Split = Annotated[
    str | None,
    o.option(
        "--split", panel=o.METHOD, help="train, val, test, valid_seen, …; default: test, or valid_seen for alfworld."
    ),
]
Variant = Annotated[
    str, o.option("--variant", panel=o.METHOD, help="hotpotqa: only the variant with this number of documents.")
]
Methods = Annotated[
    str,
    o.option("--method", panel=o.METHOD, help="The method to evaluate (see above), or several: memskill,rag."),
]
Abstention = Annotated[
    bool,
    o.option(
        "--include-abstention", panel=o.METHOD, help="longmemeval: also judge unanswerable questions, separately."
    ),
]
Limit = Annotated[int, o.option("--limit", panel=o.LIMITS, help="Ask only the first N queries (0: all).")]
InitSkills = Annotated[
    str | None,
    o.option(
        "--init-skills",
        panel=o.METHOD,
        help="Use these skills, not the run's: a skill bank (JSON), a folder of SKILL.md files, or the word seeds.",
    ),
]
Which = Annotated[str, o.option("--checkpoint", panel=o.WHERE, help="best, latest, or the folder of a checkpoint.")]


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
    retrieval: o.Retrieval = None,
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
    """Evaluate a run on a split: build a memory for each trace, answer its questions and score the answers.

    If the same evaluation is started again, it continues where it stopped, and no paid call is repeated. If all queries
    are answered, it shows the results. If there is no run, it uses the seed skills and an untrained controller.

    Methods: memskill; the same executor with seed-skills (and an untrained controller), random-skills or all-skills;
    no-memory; full-context; rag (retrieves raw spans); mem0 and langmem (extras). Several methods are compared on the
    same queries; --max-cost applies to each of them.
    """
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        _evaluate(out, ctx)


def _evaluate(out: Console, ctx: typer.Context) -> None:
    """Run the evaluations that the options in ``ctx`` ask for, and show the results."""
    from memskill_cli.app import eval_start, evaluate
    from memskill_cli.utils import signals

    request = _request(ctx.params, out)
    session = eval_start.open_evaluation(request, listeners(out))
    with EvalProgressBars(out) as bars:
        progress = evaluate.EvalProgress(bars.begin, out.notice)
        summaries = signals.run(eval_start.evaluate_session(session, request, progress), out.notice)
    differences = evaluate.compare_methods(summaries, session.settings) if len(summaries) > 1 else []
    _show(out, summaries, differences)
    inspect = ["inspect-skills", "--run", session.run.name, *repeated(ctx, "runs_dir")]
    out.next_command(shlex.join(["memskill", *inspect]))


def _request(options: dict[str, Any], out: Console) -> EvalRequest:
    from memskill_cli.app.eval_start import EvalRequest

    return EvalRequest(
        options,
        options["runs_dir"],
        options["data_dir"],
        o.access_of(options, out.warn),
        methods=options["method"].split(","),
        run=options["run"],
        split=options["split"],
        variant=options["variant"],
        include_abstention=options["include_abstention"],
        limit=options["limit"],
        checkpoint=options["checkpoint"],
        init_skills=options["init_skills"],
    )


def _show(out: Console, summaries: list[dict[str, Any]], differences: list[dict[str, Any]]) -> None:
    from memskill_cli.cli import eval_tables

    if len(summaries) == 1:
        out.result(summaries[0], *eval_tables.one(summaries[0]))
    else:
        document = {"evaluations": summaries, "differences": differences}
        out.result(document, *eval_tables.several(summaries, differences))
    if failed := sum(sum(summary["errors"].values()) for summary in summaries):
        asked = sum(summary["queries"] for summary in summaries)
        out.warn(f"{failed} of {asked} queries failed; run the same command again to retry them")


class EvalProgressBars:
    """Progress bars of evaluations that run one after the other: spans read (the total is estimated), queries asked."""

    def __init__(self, out: Console) -> None:
        self._out, self._stack = out, ExitStack()

    def __enter__(self) -> EvalProgressBars:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def begin(self, title: str, queries: int) -> EvalCallbacks:
        """Show the bars of the next evaluation instead of those of the last one."""
        from memskill_cli.evaluation.runner import EvalCallbacks

        self._stack.close()
        reading = self._stack.enter_context(self._out.progress(f"{title}: reading", None, "spans"))
        asking = self._stack.enter_context(self._out.progress(f"{title}: asking", queries, "queries"))
        return EvalCallbacks(reading, asking)
