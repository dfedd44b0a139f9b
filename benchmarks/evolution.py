"""Does the bank evolve, and are only changes that help kept? A run with a designer against one without.

Diaries tell of jobs and of allergies; questions ask for both. The executor behind a real HTTP server is literal: a
skill writes down one kind of thing, and none of the seed skills writes down allergies. The designer is scripted too,
and no wiser than a coin: it proposes either the skill that would (add `allergies`), or one that does harm (an `insert`
that blurs what it writes). Training has to tell one from the other: a stage that earns less is rolled back, and what it
tried is shown to the designer. Without the new skill, half of the questions can be answered at best.

Ablations: ``--ablation no-designer`` (part of the default run), ``refine-only`` (the designer may reword, not add),
``random`` (the designer acts, but the controller never learns). Run: ``python benchmarks/evolution.py [--quick]``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import OUT, compared, save
from learning import PEOPLE, opened  # a script beside this one

from memskill_cli.agent.designer import Designer
from memskill_cli.config import Config, load
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.training.episode_sampler import QASampler
from memskill_cli.training.trainer import TrainCallbacks, Trainer
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils.files import read_jsonl

JOBS = ["baker", "nurse", "pilot", "judge", "tailor", "miner"]
ALLERGENS = ["peanuts", "pollen", "latex", "penicillin", "wasps", "lupins"]
VARIANTS = ("designer", "no-designer", "refine-only", "random")
HELPFUL = {
    "change": "add",
    "name": "allergies",
    "description": "Write down allergies and what somebody must avoid: the text says who cannot bear which substance.",
    "body": "## Purpose\nKeep every ALLERGY that the text tells of.\n\n## How to apply\nOne INSERT for each.",
    "action": "insert",
    "why": "no skill writes allergies down",
}
HARMFUL = {
    "change": "refine",
    "name": "insert",
    "body": "## Purpose\nKeep the memory short: BLUR what people do.\n\n## How to apply\nName nobody.",
    "why": "shorter memories",
}
REWORDED = {
    "change": "refine",
    "name": "insert",
    "body": "## Purpose\nKeep every ALLERGY that the text tells of, nothing else.\n\n## How to apply\nOne INSERT each.",
    "why": "no skill writes allergies down",
}


def diary(number: int, seed: int) -> Trace:
    """Two jobs and two allergies, in any order."""
    rng = random.Random(f"evolution-{seed}-{number}")
    people = rng.sample(PEOPLE, 4)
    facts = [(who, "job", rng.choice(JOBS)) for who in people[:2]]
    facts += [(who, "allergy", rng.choice(ALLERGENS)) for who in people[2:]]
    rng.shuffle(facts)
    told = {"job": "{} earns a living, the job being {}.", "allergy": "{} must avoid it, the allergy being {}."}
    turns = tuple(Turn("Diary", told[kind].format(who, value)) for who, kind, value in facts)
    trace_id = f"evolution-{seed}-{number}"
    queries = (
        Query(f"{number}:{i}", trace_id, kind, f"What is the {kind} of {who}?", (value,))
        for i, (who, kind, value) in enumerate(facts)
    )
    return Trace(trace_id, "evolution", "train", (Session("1", "", turns),), tuple(queries))


class World:
    """The scripted models of one run. ``helps`` is the coin that decides what the designer proposes."""

    def __init__(self, seed: int, variant: str) -> None:
        self._coin = random.Random(f"designer-{seed}")
        self._helpful = REWORDED if variant == "refine-only" else HELPFUL

    def __call__(self, request: Request) -> str:
        text = request.messages[-1]["content"]
        if request.role == "designer":
            return self._design(text)
        memories = re.findall(r"^\[\d+\] (\w+) (\w+) (\w+)$", text, flags=re.MULTILINE)
        if request.role == "answer":
            kind, who = re.search(r"What is the (\w+) of (\w+)\?", text).groups()
            return next((value for w, k, value in memories if (w, k) == (who, kind)), "unknown")
        skill, _, span = text.partition("<span>")
        who, kind, value = re.search(r"(\w+) (?:earns|must).* the (\w+) being (\w+)\.", span).groups()
        if "Action type: INSERT" not in skill or ("ALLERGY" in skill) != (kind == "allergy"):
            return "ACTION: NOOP"
        return f"ACTION: INSERT\nMEMORY: {who} {kind} {'something' if 'BLUR' in skill else value}"

    def _design(self, text: str) -> str:
        if "<limit>" not in text:
            pattern = {"name": "lost", "cases": [1], "cause": "storage", "explanation": "not written", "fix": "write"}
            advice = {"change": "add", "skill": "", "why": "storage", "priority": 1}
            return json.dumps({"patterns": [pattern], "recommendations": [advice], "summary": "facts are lost"})
        # What is in the bank already is not proposed again; then only harm is left to propose.
        reuse_cached_error = "allergies" in text.partition("<skills>")[2].partition("</skills>")[0]
        change = self._helpful if self._coin.random() < 0.5 and not reuse_cached_error else HARMFUL
        return json.dumps({"summary": change["why"], "changes": [change]})


def settings_for(seed: int, url: str, variant: str, stages_: int, epochs: int) -> Config:
    models = [f"models.{role}=openai/world-{role}" for role in ("executor", "answer", "designer")]
    return load(
        sets=[
            *models,
            f"models.api_base={url}",
            "encoders.state=hashing",
            "encoders.retrieval=hashing",
            "train.span_mode=turn",
            "train.num_skills=1",
            f"train.outer_epochs={stages_}",
            f"train.inner_epochs={epochs}",
            "train.batch_size=8",
            f"train.evolve={variant != 'no-designer'}",
            f"ppo.learning_rate={0.0 if variant == 'random' else 1e-3}",
            f"controller.new_skill_epochs={epochs}",
            f"seed={seed}",
            "limits.concurrency=32",
        ]
    )


async def one_run(seed: int, url: str, variant: str, stages_: int, epochs: int) -> dict[str, Any]:
    """One training; reward by inner epoch, and the fate of every stage."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = settings_for(seed, url, variant, stages_, epochs)
        run = RunDir.create(folder / "runs", variant, settings, "evolution")
        traces = [diary(number, seed) for number in range(24)]
        async with opened(settings, folder, "train") as found:
            designer = Designer(found.context.llm, settings.designer) if settings.train.evolve else None
            episode_specs = QASampler(settings, traces)
            trainer = Trainer(
                run, settings, found.context, found.ledger, episode_specs, seed_bank(), designer, TrainCallbacks()
            )
            await trainer.train()
        known = stages.read_all(run.stages)
        fates = [
            {
                "stage": stage.number,
                "changes": [f"{c['change']} {c['name']}" for c in stage.change.get("changes", ())],
                "harmful": any("BLUR" in (c.get("body") or "") for c in stage.change.get("changes", ())),
                "reward": stage.reward,
                "kept": stage.kept,
            }
            for stage in known
        ]
        champion = stages.best(known)
        curve = [row["episode_reward_mean"] for row in read_jsonl(run.metrics)]
        return {"seed": seed, "variant": variant, "curve": curve, "stages": fates, "final": champion.reward}


def plot(results: list[dict[str, Any]], epochs: int, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2))
    for variant in dict.fromkeys(result["variant"] for result in results):
        curves = [result["curve"] for result in results if result["variant"] == variant]
        longest = max(map(len, curves))
        padded = np.array([curve + [np.nan] * (longest - len(curve)) for curve in curves])
        (line,) = axes.plot(np.nanmean(padded, axis=0), linewidth=2, label=f"{variant} (mean of {len(curves)} seeds)")
        axes.plot(padded.T, color=line.get_color(), alpha=0.2, linewidth=1)
    for edge in range(epochs, max(len(result["curve"]) for result in results), epochs):
        axes.axvline(edge, color="lightgrey", linewidth=0.8, zorder=0)
    axes.set(xlabel="inner epoch (lines: designer cycles)", ylabel="share of questions answered right", ylim=(0, 1.02))
    axes.set_title("Skills that evolve, and are kept only when they help")
    axes.legend(loc="upper left", fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=140)


def run_all(variants: list[str], seeds: int, stages_: int, epochs: int, say: Callable[[str], None]) -> list[dict]:
    results = []
    for variant in variants:
        for seed in range(seeds):
            with MockLLMServer(World(seed, variant)) as server:
                results.append(asyncio.run(one_run(seed, server.url, variant, stages_, epochs)))
            fates = ", ".join(
                f"{'; '.join(s['changes']) or 'seeds'} {s['reward']:.2f} {'kept' if s['kept'] else 'rolled back'}"
                for s in results[-1]["stages"]
                if s["reward"] is not None
            )
            say(f"{variant} seed {seed}: best stage {results[-1]['final']:.2f} | {fates}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, fewer stages")
    parser.add_argument("--ablation", action="append", choices=VARIANTS[1:], default=[], help="add a variant")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=16, help="inner epochs of a stage")
    arguments = parser.parse_args()
    seeds, stages_ = (1, 4) if arguments.quick else (arguments.seeds, arguments.stages)
    variants = list(dict.fromkeys(["designer", "no-designer", *arguments.ablation]))

    from rich.console import Console
    from rich.table import Table

    console, began = Console(), time.monotonic()
    results = run_all(variants, seeds, stages_, arguments.epochs, console.print)
    table = Table(title="best stage's reward (share of questions answered right)", title_justify="left")
    for name in ("variant", "by seed", "mean", "harmful changes tried", "of them kept"):
        table.add_column(name)
    for variant in variants:
        mine = [result for result in results if result["variant"] == variant]
        finals = [result["final"] for result in mine]
        harmful = [s for result in mine for s in result["stages"] if s["harmful"] and s["kept"] is not None]
        kept = sum(bool(stage["kept"]) for stage in harmful)
        cells = (" ".join(f"{x:.2f}" for x in finals), f"{np.mean(finals):.3f}", str(len(harmful)), str(kept))
        table.add_row(variant, *cells)
    console.print(table)
    means = {v: 100 * float(np.mean([r["final"] for r in results if r["variant"] == v])) for v in variants}
    what = "questions answered right, best stage with a designer"
    summary = compared(what, means["designer"], "%", "without", means["no-designer"], more_than=1)
    save("evolution", [summary], results=results, seconds=time.monotonic() - began)
    plot(results, arguments.epochs, OUT / "evolution.png")
    console.print(f"with designer {means['designer']:.1f} %, without {means['no-designer']:.1f} %")
    console.print(str(OUT / "evolution.png"))
    raise SystemExit(0 if means["designer"] > means["no-designer"] else 1)


if __name__ == "__main__":
    main()
