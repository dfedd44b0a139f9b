"""Does the controller learn? Trained choice of skills against random choice and against the best fixed choice.

The world is small and strict. A diary tells news, corrections, cancellations and rumours about what people do, each in
its own wording. Behind a real HTTP server sits a literal executor: it does exactly what the one chosen skill is for,
right or wrong. News wants INSERT, a correction UPDATE, a cancellation DELETE, and a rumour is to be left alone (NOOP);
a memory that contradicts another makes the answer to its question wrong. So no fixed choice is right for more than a
part of the questions, chance is no better, and only a choice that depends on the span can answer them all.

Everything but the model is the product's own: trainer, PPO, rollout, gateway, memory. Each seed trains on its own
diaries and is measured, greedily, on diaries it has never read. Run: ``python benchmarks/learning.py [--quick]``.

``--compare`` compares the algorithms and credit assignments of :data:`ARMS` in the same world: reward in training after
n calls of the model, and questions answered right on unread diaries at the end, over seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import OUT, Measure, compared, markdown, save

from memskill_cli.agent.controller import SelectSkills, select_skills
from memskill_cli.app.runtime import ProviderAccess, Runtime, open_runtime
from memskill_cli.config import Config, load
from memskill_cli.datasets.spans import split_spans
from memskill_cli.rollout.episode import run_episode
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.training.episode_sampler import QASampler
from memskill_cli.training.trainer import TrainCallbacks, Trainer
from memskill_cli.types import Action, Query, Session, SkillSelection, Trace, Turn
from memskill_cli.utils.files import read_jsonl

PEOPLE = ["Ada", "Bruno", "Chen", "Dora", "Emil", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Leon"]
TOPICS = ["job", "pet", "sport", "drink"]
VALUES = {
    "job": ["baker", "nurse", "pilot", "judge", "tailor", "miner"],
    "pet": ["cat", "parrot", "horse", "turtle", "rabbit", "goat"],
    "sport": ["chess", "rowing", "judo", "tennis", "golf", "fencing"],
    "drink": ["tea", "cocoa", "juice", "milk", "cider", "water"],
}
WORDING = {
    Action.INSERT: "News of the day, just heard for the first time: the {topic} of {who} is {value}.",
    Action.UPDATE: "Correction, things have changed since: the {topic} of {who} has turned into {value}.",
    Action.DELETE: "Cancelled and over, please forget it: the {topic} of {who} was {value}.",
    Action.NOOP: "Only an idle rumour, nobody believes it: the {topic} of {who} might be {value}.",
}
ARMS = {
    "ppo, final-decay": ("train.algorithm=ppo", "reward.credit=final-decay"),
    "ppo, evidence": ("train.algorithm=ppo", "reward.credit=evidence"),
    "grpo, evidence": ("train.algorithm=grpo", "reward.credit=evidence"),
}
COMPARED = ("memory.num_memories=2",)
"""Settings of all arms. With 20, every memory of a diary is retrieved for each of its questions, and then the evidence
for one question says nothing about single steps."""
FACT = re.compile(r"the (?P<topic>\w+) of (?P<who>\w+) (?:is|has turned into|was|might be) (?P<value>\w+)")


def diary(number: int, seed: int) -> Trace:
    """Four facts, one of each fate: left as it is, corrected, cancelled, followed by a rumour."""
    rng = random.Random(f"{seed}-{number}")
    subjects = rng.sample([(who, topic) for who in PEOPLE for topic in TOPICS], 4)
    lines, later, queries = [], [], []
    fates = (None, Action.UPDATE, Action.DELETE, Action.NOOP)
    for place, (who, topic) in enumerate(subjects):
        first, second = rng.sample(VALUES[topic], 2)
        fate = fates[place]
        lines.append(WORDING[Action.INSERT].format(who=who, topic=topic, value=first))
        if fate is not None:
            later.append(WORDING[fate].format(who=who, topic=topic, value=first if fate is Action.DELETE else second))
        truth = {Action.UPDATE: second, Action.DELETE: "nothing"}.get(fate, first) if fate else first
        question = f"What is the {topic} of {who} now?"
        queries.append(Query(f"{number}:{place}", f"diary-{seed}-{number}", str(fate), question, (truth,)))
    rng.shuffle(later)
    turns = tuple(Turn("Diary", text) for text in lines + later)
    return Trace(f"diary-{seed}-{number}", "learning", "train", (Session("1", "", turns),), tuple(queries))


def literal_model(request: Request) -> str:
    """The scripted model: an executor that does what its skill says, and an answerer that trusts its memories."""
    text = request.messages[-1]["content"]
    memories = re.findall(r"^\[(\d+)\] (\w+) (\w+) (\w+)$", text, flags=re.MULTILINE)
    if request.role == "answer":
        topic, who = re.search(r"the (\w+) of (\w+) now", text).groups()
        values = {value for _, w, t, value in memories if (w, t) == (who, topic)}
        return values.pop() if len(values) == 1 else "nothing" if not values else "unsure"
    told = FACT.search(text.partition("<span>")[2])
    who, topic, value = told["who"], told["topic"], told["value"]
    known = next((index for index, w, t, _ in memories if (w, t) == (who, topic)), None)
    allowed = Action(re.search(r"^Action type: (\w+)", text, flags=re.MULTILINE)[1].lower())
    if allowed is Action.INSERT:
        return f"ACTION: INSERT\nMEMORY: {who} {topic} {value}"
    if allowed is Action.UPDATE and known is not None:
        return f"ACTION: UPDATE\nINDEX: {known}\nMEMORY: {who} {topic} {value}"
    if allowed is Action.DELETE and known is not None:
        return f"ACTION: DELETE\nINDEX: {known}"
    return "ACTION: NOOP"


def settings_for(seed: int, url: str, epochs: int, more: Sequence[str] = ()) -> Config:
    return load(
        sets=[
            "models.executor=openai/literal-executor",
            "models.answer=openai/literal-answer",
            f"models.api_base={url}",
            "encoders.state=hashing",
            "encoders.retrieval=hashing",
            "memory.sources=false",  # the literal models understand written memories only
            "memory.retriever=dense",
            "memory.protect=false",  # a wrong action must have its effect
            "train.span_mode=turn",
            "train.num_skills=1",
            "train.outer_epochs=1",
            f"train.inner_epochs={epochs}",
            "train.batch_size=16",
            "ppo.learning_rate=1e-3",  # the paper's 1e-4 is for thousands of updates
            "controller.include_noop=true",
            f"seed={seed}",
            "limits.concurrency=32",
            *more,
        ]
    )


@asynccontextmanager
async def opened(settings: Config, folder: Path, scope: str) -> AsyncIterator[Runtime]:
    access = ProviderAccess(api_keys=["learning"], cache_dir=folder / "cache")
    async with open_runtime(settings, access, folder / "usage.jsonl", scope, lambda text: None) as found:
        yield found


async def mean_reward(found: Runtime, traces: list[Trace], bank: SkillBank, policy: SelectSkills) -> float:
    """Mean share of right answers over ``traces``."""
    episodes = (run_episode(found.context, split_spans(t, "turn"), t.queries, bank, policy) for t in traces)
    return float(np.mean([episode.reward for episode in await asyncio.gather(*episodes)]))


def fixed(index: int) -> SelectSkills:
    return lambda state: SkillSelection((index,), 0.0, 0.0)


def chance(bank: SkillBank, seed: int) -> SelectSkills:
    rng = random.Random(seed)
    return lambda state: SkillSelection((rng.randrange(len(bank)),), 0.0, 0.0)


async def train(found: Runtime, settings: Config, run: RunDir, bank: SkillBank) -> tuple[SelectSkills, list[dict]]:
    """Train on 48 diaries; the greedy policy and the metrics of all inner epochs."""
    sampler = QASampler(settings, [diary(number, settings.seed) for number in range(48)])
    trainer = Trainer(run, settings, found.context, found.ledger, sampler, bank, None, TrainCallbacks())
    await trainer.train()
    skills_SD = torch.from_numpy(await found.context.encoders.state.aencode([s.description for s in bank.skills]))
    return partial(select_skills, trainer.controller, skills_SD=skills_SD, k=1), list(read_jsonl(run.metrics))


def unread_diaries(seed: int) -> list[Trace]:
    return [diary(number, seed) for number in range(100, 132)]


async def one_arm(name: str, seed: int, url: str, epochs: int, report: Callable[[str], None]) -> dict[str, object]:
    """Train once with an arm's settings, in a folder and with a cache of its own."""
    with tempfile.TemporaryDirectory() as folder_name:
        folder, bank = Path(folder_name), seed_bank(noop=True)
        settings = settings_for(seed, url, epochs, [*COMPARED, *ARMS[name]])
        run = RunDir.create(folder / "runs", f"seed-{seed}", settings, "learning")
        async with opened(settings, folder, "train") as found:
            policy, rows = await train(found, settings, run, bank)
            right = await mean_reward(found, unread_diaries(seed), bank, policy)
    calls = np.cumsum([row["llm_calls"] for row in rows]).tolist()  # with those that the cache answered
    report(f"{name}, seed {seed}: {right:.3f} after {calls[-1]} calls")
    curve = [row["episode_reward_mean"] for row in rows]
    return {"arm": name, "seed": seed, "calls": calls, "curve": curve, "trained": right}


def reward_after(result: dict, share: float) -> float:
    """The mean training reward of the last eighth of the inner epochs, at this share of all calls."""
    until = max(1, round(share * len(result["curve"])))
    return float(np.mean(result["curve"][max(0, until - max(1, len(result["curve"]) // 8)) : until]))


def comparison(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    """The table of ``--compare``: columns and rows. Means over the seeds, and their range for the trained policy."""
    calls, shares = results[0]["calls"][-1], (0.25, 0.5, 1.0)
    columns = [
        "algorithm, credit",
        *(f"reward after {round(share * calls):,} calls" for share in shares),
        "unread",
        "range",
    ]
    rows = []
    for name in ARMS:
        own = [result for result in results if result["arm"] == name]
        right = [result["trained"] for result in own]
        rewards = [f"{np.mean([reward_after(result, share) for result in own]):.3f}" for share in shares]
        rows.append([name, *rewards, f"{np.mean(right):.3f}", f"{min(right):.3f} to {max(right):.3f}"])
    return columns, rows


async def one_seed(seed: int, url: str, epochs: int, report: Callable[[str], None]) -> dict[str, object]:
    """Train once; the curve, and what trained, random and each fixed choice earn on unread diaries."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = settings_for(seed, url, epochs)
        run = RunDir.create(folder / "runs", f"seed-{seed}", settings, "learning")
        unread, bank = unread_diaries(seed), seed_bank(noop=True)
        async with opened(settings, folder, "train") as found:
            trained, rows = await train(found, settings, run, bank)
            result = {
                "seed": seed,
                "curve": [row["episode_reward_mean"] for row in rows],
                "trained": await mean_reward(found, unread, bank, trained),
                "random": await mean_reward(found, unread, bank, chance(bank, seed)),
                "fixed": {s.name: await mean_reward(found, unread, bank, fixed(i)) for i, s in enumerate(bank.skills)},
                "calls": found.ledger.usage().calls,
            }
    report(
        f"seed {seed}: trained {result['trained']:.3f}, random {result['random']:.3f}, "
        f"best fixed {max(result['fixed'].values()):.3f}"
    )
    return result


def summary_of(results: list[dict]) -> list[Measure]:
    """Means over the seeds."""
    right = 100 * float(np.mean([result["trained"] for result in results]))
    fixed = 100 * float(np.mean([max(result["fixed"].values()) for result in results]))
    chance_mean = 100 * float(np.mean([result["random"] for result in results]))
    what = "questions answered right, trained choice of skills"
    others = {"best fixed skill": fixed, "random skill": chance_mean}
    return [compared(what, right, "%", name, other, more_than=1) for name, other in others.items()]


def plot(results: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    curves = np.array([result["curve"] for result in results])
    axes.plot(curves.T, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(curves.mean(0), color="tab:blue", linewidth=2, label="controller while training (mean of seeds)")
    best = np.mean([max(result["fixed"].values()) for result in results])
    chance_mean = np.mean([result["random"] for result in results])
    axes.axhline(np.mean([r["trained"] for r in results]), color="tab:green", label="trained, greedy, unread diaries")
    axes.axhline(best, color="tab:orange", linestyle="--", label="best fixed skill")
    axes.axhline(chance_mean, color="tab:grey", linestyle=":", label="random skill")
    axes.set(xlabel="inner epoch", ylabel="share of questions answered right", ylim=(0, 1.02))
    axes.set_title("Which skill for which span is learned, not given")
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=140)


def compare(seeds: int, epochs: int) -> None:
    """Train every arm with every seed, print the table, and save it with all curves."""
    began, results = time.monotonic(), list[dict]()
    with MockLLMServer(literal_model) as server:
        for seed in range(seeds):
            results += [asyncio.run(one_arm(name, seed, server.url, epochs, print)) for name in ARMS]
    columns, rows = comparison(results)
    print(markdown(columns, rows))
    save("learning-compare", [], epochs=epochs, seeds=seeds, results=results, seconds=time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, fewer epochs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--compare", action="store_true", help="compare algorithms and credit assignments")
    arguments = parser.parse_args()
    seeds, epochs = (1, 40) if arguments.quick else (arguments.seeds, arguments.epochs)
    if arguments.compare:
        compare(seeds, epochs)
        return

    from rich.console import Console
    from rich.table import Table

    console, began = Console(), time.monotonic()
    with MockLLMServer(literal_model) as server:
        results = [asyncio.run(one_seed(seed, server.url, epochs, console.print)) for seed in range(seeds)]
    table = Table(title="share of questions answered right on unread diaries", title_justify="left")
    for name in ("seed", "trained", "best fixed", "random", "calls"):
        table.add_column(name, justify="right")
    for result in results:
        best, which = max((value, name) for name, value in result["fixed"].items())
        scores = (f"{result['trained']:.3f}", f"{best:.3f} ({which})", f"{result['random']:.3f}")
        table.add_row(str(result["seed"]), *scores, str(result["calls"]))
    console.print(table)
    save("learning", summary_of(results), epochs=epochs, results=results, seconds=time.monotonic() - began)
    plot(results, OUT / "learning.png")
    won = sum(result["trained"] > max(result["fixed"].values()) for result in results)
    console.print(f"trained above the best fixed skill in {won} of {len(results)} seeds; {OUT / 'learning.png'}")
    raise SystemExit(0 if won == len(results) else 1)


if __name__ == "__main__":
    main()
