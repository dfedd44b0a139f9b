"""Does memory help to act? ALFWorld's seen tasks with no memory, with memory from training games, with a perfect one.

The acting model is made of rules (memskill_cli/testing/rule_actor.py): it can search a room and carry a thing,
and it knows of cleaning, heating, cooling, lamps and pairs only what retrieved memories tell it. The executor is made
of rules, too: it writes the procedure of each trajectory it reads. So nothing here depends on what a language model
happens to know, and everything else is the product's own: games, trajectories, spans, memory banks, retrieval by goal,
prompts, replies. What it can't show is how well a real model writes and follows such memories.

    no-memory     the rules alone
    rag           raw trajectories retrieved
    seed-skills   procedures written by the executor with the seed skills, before any training
    perfect       for each task the procedure of its own expert trajectory, and nothing else: the most that memory can
                  give to this actor

Run: ``python benchmarks/alfworld.py [--data-dir data] [--limit N]`` with ALFWorld (train, valid_seen) prepared;
without, the sample is played, and it says so.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import OUT, compared, save

from memskill_cli.app import evaluate as evaluations
from memskill_cli.app.runtime import ProviderAccess, env_root, open_runtime
from memskill_cli.config import Config, load
from memskill_cli.datasets.manifest import DatasetManifest
from memskill_cli.datasets.prepare import prepare
from memskill_cli.datasets.prepared import load_manifest, load_split
from memskill_cli.errors import DataError
from memskill_cli.evaluation import env_evaluation
from memskill_cli.evaluation.runner import EvalCallbacks
from memskill_cli.evaluation.spec import eval_specs
from memskill_cli.rollout.env_tasks import run_env_task
from memskill_cli.testing import rule_actor
from memskill_cli.testing.server import MockLLMServer
from memskill_cli.types import MemoryItem, Query, Retrieved, Trace
from memskill_cli.utils.files import read_jsonl

METHODS = ["no-memory", "rag", "seed-skills"]
SPLIT = "valid_seen"
SHORT = {"pick_and_place_simple": "place", "look_at_obj_in_light": "light", "pick_two_obj_and_place": "two"}


def find_data(data_dir: Path, folder: Path, report: Any) -> tuple[Path, DatasetManifest]:
    """Where ALFWorld is prepared: ``data_dir``, else the sample in ``folder``."""
    try:
        manifest = load_manifest("alfworld", data_dir)
        if {"train", SPLIT} <= manifest.splits.keys():
            return data_dir, manifest
    except DataError:
        pass
    report(f"ALFWorld's train and {SPLIT} are not prepared in {data_dir}: playing the sample, which shows little")
    prepare("alfworld", data_dir=folder / "data", sample=True)
    return folder / "data", load_manifest("alfworld", folder / "data")


def settings_for(url: str, encoder: str) -> Config:
    chosen = {"dataset": "alfworld", "models.api_base": url, "encoders.state": encoder, "encoders.retrieval": encoder}
    roles = {f"models.{role}": "openai/rules" for role in ("executor", "answer", "judge", "designer")}
    return load(overrides={**chosen, **roles, "env.workers": 2})


def perfect(games: Sequence[Trace]) -> dict[str, list[Retrieved]]:
    """By task, the procedure of the task's own expert trajectory."""
    found = {}
    for game in games:
        told = "\n".join(f"{turn.speaker}: {turn.text}" for turn in game.sessions[0].turns)
        tips = rule_actor.procedures(told)
        found[game.trace_id] = [Retrieved(MemoryItem(str(i), tip.text, ()), 1.0) for i, tip in enumerate(tips)]
    return found


async def play_perfectly(
    settings: Config, access: ProviderAccess, folder: Path, data_dir: Path, asked: set[str]
) -> dict[str, Any]:
    """The tasks called ``asked``, each with the memory made for it; the numbers of an evaluation."""
    games = [game for game in load_split("alfworld", data_dir, SPLIT) if game.trace_id in asked]
    memories = perfect(games)

    async def retrieve(query: Query) -> list[Retrieved]:
        return memories[query.query_id]

    where = env_root("alfworld", data_dir, SPLIT)
    async with open_runtime(settings, access, folder / "usage.jsonl", "perfect", lambda text: None, where) as opened:
        context = opened.context
        assert context.env_runner is not None
        answers = await asyncio.gather(
            *(run_env_task(context, context.env_runner, retrieve, game.queries[0]) for game in games)
        )
    rows = [{"category": a.query.category, "error": a.error, **env_evaluation.env_row(a)} for a in answers]
    numbers = env_evaluation.summarise(rows, steps=settings.env.steps, resamples=2000, seed=settings.seed)
    return {"method": "perfect", "memories": len(games), **numbers}


def evaluate(arguments: argparse.Namespace, url: str, folder: Path, report: Any) -> list[dict[str, Any]]:
    """The summary of each way to remember, on the same tasks."""
    data_dir, manifest = find_data(arguments.data_dir, folder, report)
    settings = settings_for(url, arguments.encoder)
    access = ProviderAccess(api_keys=["bench"], cache_dir=folder / "cache")
    tasks = eval_specs(manifest, [SPLIT], METHODS, arguments.limit, False)
    run = evaluations.open_run(folder / "runs", None, settings, tasks[0].data_digest)
    progress = evaluations.EvalProgress(lambda title, queries: EvalCallbacks(), lambda text: None)
    summaries = asyncio.run(evaluations.evaluate(run, tasks, settings, "best", data_dir, access, progress))
    asked = {row["query_id"] for row in read_jsonl(Path(summaries[0]["folder"]) / "results.jsonl")}
    summaries.append(asyncio.run(play_perfectly(settings, access, folder, data_dir, asked)))
    return summaries


def show(summaries: Sequence[dict[str, Any]], report: Any) -> None:
    from rich.table import Table

    types = list(summaries[0]["by_task_type"])
    title = f"success on {summaries[0]['queries']} tasks of {SPLIT}, in percent, by task type"
    table = Table(title=title, title_justify="left")
    table.add_column("memory", no_wrap=True)
    for name in (*(SHORT.get(kind, kind.split("_")[1]) for kind in types), "all", "steps", "invalid"):
        table.add_column(name, justify="right", no_wrap=True)
    for summary in summaries:
        by_type = [f"{100 * summary['by_task_type'][kind]['success_rate']:.0f}" for kind in types]
        low, high = summary["ci95"]["success_rate"]
        whole = f"{100 * summary['success_rate']:.1f} ({100 * low:.0f}–{100 * high:.0f})"
        table.add_row(summary["method"], *by_type, whole, f"{summary['steps']:.1f}", str(summary["invalid_actions"]))
    report(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--limit", type=int, default=0, help="only so many tasks, of all types in turn (0: all)")
    parser.add_argument("--encoder", default="minilm", help="for retrieval; hashing needs no model")
    parser.add_argument("--quick", action="store_true", help="12 tasks, without a text encoder")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.limit, arguments.encoder = 12, "hashing"

    from rich.console import Console

    console, began = Console(width=max(100, Console().width)), time.monotonic()
    with MockLLMServer() as server, tempfile.TemporaryDirectory() as name:
        summaries = evaluate(arguments, server.url, Path(name), console.print)
    show(summaries, console.print)
    kept = [{key: value for key, value in summary.items() if key not in ("folder", "report")} for summary in summaries]
    settings = dataclasses.asdict(settings_for("", arguments.encoder).env)
    took = round(time.monotonic() - began)
    rates = {summary["method"]: 100 * summary["success_rate"] for summary in summaries}
    without = rates.pop("no-memory")
    found = [compared(f"tasks done, {m}", rate, "%", "no-memory", without, more_than=1) for m, rate in rates.items()]
    save("alfworld", found, settings=settings, summaries=kept, seconds=took)
    console.print(f"{took} s; {OUT / 'alfworld.json'}")
    raise SystemExit(0 if min(rates.values()) > without else 1)


if __name__ == "__main__":
    main()
