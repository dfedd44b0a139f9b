"""Whole trainings against the simple trainer of ``reference_trainer``, in a toy world with rule-made models.

All results of a run are compared after every inner epoch: choices and their probabilities, rewards, metrics, weights,
statistics, hard cases, and the designer's inputs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from memskill_cli.agent.controller import Controller, Exploration
from memskill_cli.agent.controller import select_skills as choose_skills
from memskill_cli.agent.designer import Designer
from memskill_cli.config import ADDED, RewardConfig, load
from memskill_cli.memory.encoder_cache import EncoderCache
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.encoder_specs import EncoderPlan
from memskill_cli.memory.encoders import CachedEncoder
from memskill_cli.rollout.rewards import distribute_reward, process_reward
from memskill_cli.runs import checkpoint
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.skill import Skill
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.training.episode_sampler import QASampler
from memskill_cli.training.trainer import TrainCallbacks, Trainer
from memskill_cli.types import Action, ActionStatus, Episode, ExecutorResult, MemoryAction, Query, Session, Trace, Turn
from memskill_cli.utils import files

from ..factories import llm_client, make_ledger, rollout_context
from . import reference_ppo, reference_trainer
from .reference_trainer import PAPER, Bank, bank_row
from .reference_trainer import Skill as PlainSkill

# --- the world: facts of four people, told, corrected and retracted ---

VERBS = {"tell": "insert", "correct": "update", "retract": "delete"}
TOLD = {
    "Ada": [
        "tell job night baker; tell pet old grey cat; chat",
        "tell city Rome; insist allergy birch pollen",
        "correct job pilot; retract car",
        "chat",
        "tell job night baker; tell car red sports car one; tell allergy birch pollen",
        "retract pet twice; mangle",
    ],
    "Bruno": [
        "tell job slow green grocer; tell pet dog",
        "mumble",
        "tell pet dog; tell city New York; tell car",
        "correct job clerk; tell allergy nuts; tell allergy nuts",
        "insist pet parrot",
    ],
    "Chen": ["tell job smith; tell city Oslo; tell allergy milk; tell pet fish", "correct pet gold fish; chat"],
    "Dora": ["tell job judge; tell city Lima; tell pet pony; tell allergy dust"],
}
TRUTHS = {
    "Ada": {"job": "pilot", "city": "Rome", "pet": "old grey cat", "allergy": "birch pollen"},
    "Bruno": {"job": "clerk", "city": "New York", "pet": "dog", "allergy": "nuts"},
    "Chen": {"job": "smith", "city": "Oslo", "pet": "gold fish swarm here", "allergy": "milk"},
    "Dora": {"job": "judge", "city": "Lima", "pet": "pony", "allergy": "dust"},
}
"""Only the first word of "old grey cat" is an F1 of exactly 0.5, which is no hard case."""


def trace(who: str) -> Trace:
    turns = tuple(Turn(who, text) for text in TOLD[who])
    queries = [
        Query(f"{who}-{kind}", who, "single-hop", f"What is the {kind} of {who}?", (truth,))
        for kind, truth in TRUTHS[who].items()
    ]
    if who in ("Ada", "Bruno"):  # a question of two traces that cannot be answered
        queries.append(Query(f"{who}-town", who, "single-hop", "What is the town of both?", (f"{who} town",)))
    left_out = Query(f"{who}-car", who, "adversarial", f"What is the car of {who}?", ("none",), scored=False)
    return Trace(who, "locomo", "train", (Session("s", "1 May 2025", turns),), (*queries, left_out))


TRACES = [trace(who) for who in TOLD]
KINDS = {"insert": "job city pet car", "update": "job city pet", "delete": "pet car", "noop": ""}


def skill_of(name: str, kinds: str, action: str) -> PlainSkill:
    """A skill for some kinds of facts. Its description does not name them."""
    return PlainSkill(name, f"What {name} is for", f"For {kinds or 'nothing'}.", action)


def embed(text: str, space: str, size: int) -> np.ndarray:
    """The sum of a random vector for each word, scaled to length 1."""
    words = [np.random.default_rng(zlib.crc32(f"{space} {word}".encode())) for word in re.findall(r"\w+", text)]
    total = sum((rng.normal(size=size) for rng in words), np.zeros(size))
    return (total / np.linalg.norm(total)).astype(np.float32)


class Toy:
    """The models and encoders of this world, as the reference calls them. ``first``: the designer's first change."""

    def __init__(self, first: Literal["harm", "help"]) -> None:
        self.first = first

    embed_state = staticmethod(functools.cache(lambda text: embed(text, "state", 8)))
    embed_skill = staticmethod(functools.cache(lambda text: embed(text, "skill", 5)))
    embed_memory = staticmethod(functools.cache(lambda text: embed(text, "memory", 6)))
    embed_question = staticmethod(functools.cache(lambda text: embed(text, "memory", 6) @ TURNED))

    def execute(
        self, skills: list[tuple[str, str]], memories: list[str], span: str
    ) -> list[reference_trainer.Action] | None:
        """Does exactly what the skills allow for a kind of fact; the first one decides. It also makes mistakes."""
        who, told = re.search(r"^(\w+): (.*)", span, flags=re.MULTILINE).groups()  # type: ignore[union-attr]
        actions: list[reference_trainer.Action] = []
        for statement in told.split("; "):
            verb, kind, *words = statement.split()[:2] + statement.split()[2:] if " " in statement else [statement, ""]
            bodies = [body for action, body in skills if action == VERBS.get(verb) and kind in body]
            place = next((i for i, text in enumerate(memories) if text.startswith(f"{who} {kind} ")), len(memories))
            if verb == "mumble":
                return None
            if verb == "mangle":
                actions.append(("merge",))
            elif verb == "insist":
                actions.append(("insert", f"{who} {kind} {' '.join(words)}"))
            elif bodies and verb == "retract":
                actions += [("update", place, "gone")] * (2 if words else 0)
                actions += [("delete", place)] * (2 if words else 1)
                actions.append(("noop",))
            elif bodies:
                said = words[:1] if "BLUR" in bodies[0] else sorted(words) if "SORT" in bodies[0] else words
                text = f"{who} {kind} {' '.join(said)}" if words else ""
                actions.append(("insert", text) if verb == "tell" else ("update", place, text))
        return actions or [("noop",)]

    def answer(self, memories: list[str], question: str) -> str:
        kind, who = re.search(r"the (\w+) of (\w+)", question).groups()  # type: ignore[union-attr]
        found = [text.split(maxsplit=2)[2] for text in memories if text.startswith(f"{who} {kind} ")]
        return found[0] if found else "unknown"

    def judge(self, truth: str, prediction: str) -> float:
        true, said = set(truth.split()), set(prediction.split())
        return 1.0 if true == said else 0.5 if true & said else 0.0

    def design(self, skills: list[str], groups: list[list[dict[str, Any]]], attempts: list[int]) -> dict[str, str]:
        """A harmful change first, and whenever no failed change is shown; else one that helps with most failures."""
        if (self.first == "harm") == (not attempts):
            body = f"BLUR. For {KINDS['insert']}."
            return {"change": "refine", "name": "insert", "body": body, "why": "shorter"}
        kinds = [case["question"].split()[3] for group in groups for case in group for _ in range(case["fails"])]
        wanted = {kind: kinds.count(kind) for kind in kinds if kind != "town" and f"note_{kind}" not in skills}
        kind = min(wanted, key=lambda kind: (-wanted[kind], kind))
        skill = skill_of(f"note_{kind}", f"{kind} and job, SORTED", "insert")
        return {"change": "add", **{key: getattr(skill, key) for key in ("name", "description", "body", "action")}}


TURNED = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)) * 0.15 + np.eye(6))[0].astype(np.float32)
"""Turns the vector of a text into that of the same text as a question."""


# --- the same world behind a server and in an encoder ---


def part(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", text, flags=re.DOTALL)
    return found[1] if found else ""


def written(actions: list[reference_trainer.Action] | None) -> str:
    """Actions in the form of an executor's reply."""
    if actions is None:
        return "I would rather talk."
    blocks = []
    for kind, *rest in actions:
        lines = [f"ACTION: {kind.upper()}"]
        if kind in ("update", "delete"):
            lines.append(f"INDEX: {rest[0]}")
        if kind in ("insert", "update"):
            lines.append(f"MEMORY: {rest[-1]}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def numbered(text: str) -> list[str]:
    return re.findall(r"^\[\d+\] (.*)$", text, flags=re.MULTILINE)


class Scripted:
    """Answers requests as :class:`Toy` does. ``shown``: the designer's inputs, one for each cycle."""

    def __init__(self, context: Toy) -> None:
        self.context = context
        self.shown: list[tuple[list[list[dict[str, Any]]], list[int]]] = []

    def reply(self, request: Request) -> str:
        text = request.messages[1]["content"]
        memories = numbered(part(text, "memories"))
        if request.role == "answer":
            return self.context.answer(memories, part(text, "question"))
        if request.role == "judge":
            return json.dumps(
                {"explanation": "", "score": self.context.judge(part(text, "truth"), part(text, "answer"))}
            )
        if request.role == "designer":
            return self.designed(text)
        skills = re.findall(r"^### \S+\nAction type: (\w+)\n(.*)$", part(text, "skills"), flags=re.MULTILINE)
        return written(
            self.context.execute([(action.lower(), body) for action, body in skills], memories, part(text, "span"))
        )

    def designed(self, text: str) -> str:
        if not part(text, "limit"):
            pattern = {"name": "lost", "cases": [1], "cause": "storage", "explanation": "x", "fix": "y"}
            return json.dumps({"patterns": [pattern], "recommendations": [], "summary": "lost"})
        groups = [self.cases(group) for group in re.split(r"^Group \d+$", part(text, "cases"), flags=re.MULTILINE)[1:]]
        attempts = [int(number) for number in re.findall(r"^Stage (\d+), ", part(text, "attempts"), flags=re.MULTILINE)]
        self.shown.append((groups, attempts))
        skills = re.findall(r"^- (\S+)", part(text, "skills"), flags=re.MULTILINE)
        change = self.context.design(skills, groups, attempts)
        return json.dumps({"summary": "better", "changes": [change]})

    @staticmethod
    def cases(text: str) -> list[dict[str, Any]]:
        found = re.findall(
            r"^Case \d+ \(.*failed (once|\d+ times), last score ([\d.]+)\)\n"
            r"Question: (.*)\nTruth: (.*)\nPrediction: (.*)\n.*\n((?:\[\d+\] .*\n?)*)",
            text,
            flags=re.MULTILINE,
        )
        return [
            {
                "question": question,
                "truths": [truth],
                "prediction": prediction,
                "fails": 1 if times == "once" else int(times.split()[0]),
                "score": float(score),
                "retrieved": numbered(memories),
            }
            for times, score, question, truth, prediction, memories in found
        ]


class Rows:
    """An encoder with the vectors of :class:`Toy`."""

    batch_chars = 10**6

    def __init__(self, sides: dict[str, Callable[[str], np.ndarray]]) -> None:
        self.sides, self.dim = sides, len(sides["context"]("any"))

    def encode(self, texts: Sequence[str], side: str = "context") -> np.ndarray:
        return np.stack([self.sides[side](text) for text in texts])


def encoder_of(name: str, sides: dict[str, Callable[[str], np.ndarray]]) -> CachedEncoder:
    return CachedEncoder(EncoderPlan(name, len(sides) > 1, lambda: Rows(sides)), EncoderCache(None, print))


class Recorded(Trainer):
    """Records the episodes of every inner epoch."""

    episodes: list[list[Episode]]

    async def _collect(self, *arguments: Any) -> list[Episode]:
        self.episodes.append(await super()._collect(*arguments))
        return self.episodes[-1]


def real_bank(bank: Bank) -> SkillBank:
    skills = [Skill(s.name, s.description, s.body, Action(s.action), "seed") for s in bank.skills.values()]
    return SkillBank(skills, capacity=bank.capacity, new=bank.new)


async def train(
    run: RunDir, overrides: dict[str, Any], bank: Bank, scripted: Scripted, server: MockLLMServer
) -> Recorded:
    settings = load(overrides=overrides)
    ledger = make_ledger(scope="train")
    llm = llm_client(server.url, base=settings.models, limits=settings.limits, ledger=ledger)
    toy = scripted.context
    with (
        closing(encoder_of("toy-state", {"context": toy.embed_state})) as state,
        closing(encoder_of("toy", {"context": toy.embed_memory, "query": toy.embed_question})) as retrieval,
        closing(encoder_of("toy-skill", {"context": toy.embed_skill})) as skill,
    ):
        context = rollout_context(llm, EncoderPair(state, retrieval, skill), settings)
        designer, episode_specs = Designer(llm, settings.designer), QASampler(settings, TRACES)
        trainer = Recorded(run, settings, context, ledger, episode_specs, real_bank(bank), designer, TrainCallbacks())
        trainer.episodes = []
        with torch.no_grad():
            for weight in trainer.controller.parameters():
                weight *= 3  # a policy with different probabilities for the skills
        (group,) = trainer.optimizer.param_groups
        assert (type(trainer.optimizer), group["betas"], group["eps"]) == (torch.optim.Adam, (0.9, 0.999), 1e-8)
        group["eps"] = EPSILON
        try:
            await trainer.train()
        finally:
            await llm.aclose()
    return trainer


# --- both, and their comparison ---

SMALL = {
    "train.outer_epochs": 4,
    "train.inner_epochs": 5,
    "train.batch_size": 2,
    "train.num_skills": 2,
    "ppo.learning_rate": 1e-2,
    "ppo.minibatch_size": 4,
    "controller.new_skill_epochs": 3,
    "memory.num_memories": 4,
}
OURS = {
    **ADDED,  # without later additions to the paper's method
    "train.span_mode": "turn",
    "train.keep_checkpoints": 1000,
    "controller.hidden": 6,
    "controller.device": "cpu",
    "models.retries": 0,
    **{f"models.{role}": f"openai/{role}" for role in ("executor", "answer", "judge", "designer")},
}
"""What the reference does not know of."""
EPSILON = 1e-3
"""Of Adam. At 1e-8 a gradient of 0 in exact arithmetic, which in float32 is noise, moves a weight as far as any."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """The inputs of both. ``first``: the designer's first change; ``new``: the skills that are new at the start."""

    first: Literal["harm", "help"]
    settings: dict[str, Any]
    new: tuple[str, ...] = ()
    capacity: int = 30

    def bank(self) -> Bank:
        skills = {name: skill_of(name, kinds, name) for name, kinds in KINDS.items()}
        return Bank(skills, capacity=self.capacity, new=set(self.new))

    def plain(self, weights: reference_ppo.Weights) -> reference_trainer.Trainer:
        trainer = reference_trainer.Trainer(self.settings, Toy(self.first), TRACES, self.bank(), weights, EPSILON)
        trainer.train()
        return trainer


SETUPS = {
    # Stage 1 loses and is rolled back, stage 2 wins, stage 3 loses.
    "loses then wins": Setup("harm", {**SMALL, "seed": 27}),
    # Stage 1 wins. Judge reward, softmax, one skill for each span, a full bank, a small pool, stages of three outer
    # epochs (the last has one), and all other PPO settings.
    "wins": Setup(
        "help",
        {
            **SMALL,
            "seed": 23,
            "train.outer_epochs": 7,
            "train.inner_epochs": 2,
            "train.num_skills": 1,
            "memory.num_memories": 3,
            "memory.pooling": "softmax",
            "memory.tau": 0.5,
            "reward.kind": "judge",
            "ppo.clip_vloss": True,
            "ppo.minibatch_size": 0,
            "ppo.target_kl": 0.01,
            "designer.every": 3,
            "designer.judged_share": 0.5,
            "designer.case_max_age": 1,
            "designer.case_capacity": 9,
            "designer.clusters": 3,
            "designer.per_cluster": 1,
            "designer.max_cases": 4,
        },
        new=("update",),
        capacity=4,
    ),
    # Stage 1 wins, stage 2 has the same reward, which is not better, and the run stops. The constants of the paper; K
    # is larger than the number of skills, and every batch has all traces.
    "gives up": Setup(
        "help",
        {
            "seed": 2,
            "train.outer_epochs": 4,
            "train.inner_epochs": 1,
            "train.batch_size": 4,
            "train.num_skills": 9,
            "designer.patience": 1,
        },
    ),
}


class Both:
    """A run of memskill in ``folder`` and one of the reference, with the same inputs."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        scripted = Scripted(Toy(setup.first))
        overrides = {**setup.settings, **OURS}
        self.run = RunDir.create(folder, "r", load(overrides=overrides), "data")
        with MockLLMServer(scripted.reply) as server:
            self.ours = asyncio.run(train(self.run, overrides, setup.bank(), scripted, server))
        self.shown = scripted.shown
        self.rows = list(files.read_jsonl(self.run.metrics))
        self.stages = [json.loads(file.read_text()) for file in sorted(self.run.stages.iterdir())]
        begun = self.checkpoint(0).controller
        self.plain = setup.plain({name: weight.double() for name, weight in begun.items()})

    def checkpoint(self, done: int) -> checkpoint.Checkpoint:
        return checkpoint.load(self.run.checkpoints / f"{done:06d}")

    @property
    def episodes(self) -> list[tuple[Episode, reference_trainer.Episode]]:
        """Pairs of an episode of memskill and the same episode of the reference, in order."""
        assert [len(batch) for batch in self.ours.episodes] == [len(batch) for batch in self.plain.episodes]
        pairs = zip(self.ours.episodes, self.plain.episodes, strict=True)
        return [pair for ours, plain in pairs for pair in zip(ours, plain, strict=True)]


@pytest.fixture(scope="module", params=SETUPS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("runs"), SETUPS[request.param])


def close(found: Any, expected: Any, where: str = "", within: float = 1e-4) -> None:
    """Equal; numbers nearly equal: memskill's are float32, and small differences grow with each update."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key in expected:
            close(found[key], expected[key], f"{where} {key}", within)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            close(one, other, f"{where} {place}", within)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=within, abs=within), where
    else:
        assert found == expected, where


def test_steps_are_the_same(both: Both) -> None:
    for number, (ours, plain) in enumerate(both.episodes):
        assert (ours.trace_id, ours.memories, len(ours.steps)) == (plain.trace_id, plain.memories, len(plain.steps))
        for place, (step, other) in enumerate(zip(ours.steps, plain.steps, strict=True)):
            where = f"episode {number}, step {place}"
            assert np.allclose(step.state, other.state, atol=1e-5), where
            assert step.selection.skills == other.chosen, where
            close(step.selection.log_prob, other.log_prob, where)
            close(step.selection.value, other.value, where)
            close(step.selection.exploration_bonus, other.shift, where)
            assert [plain_action(action) for action in step.execution.applied] == other.done, where
            assert step.execution.rejected == other.rejected, where
            assert step.execution.unreadable == other.unreadable, where


def plain_action(action: MemoryAction) -> reference_trainer.Action:
    fields = {Action.INSERT: ["text"], Action.UPDATE: ["index", "text"], Action.DELETE: ["index"], Action.NOOP: []}
    return (action.action.value, *(getattr(action, name) for name in fields[action.action]))


def test_rewards_are_the_same(both: Both) -> None:
    for number, (ours, plain) in enumerate(both.episodes):
        close(ours.reward, plain.reward, f"episode {number}", 1e-9)
        for place, (step, other) in enumerate(zip(ours.steps, plain.steps, strict=True)):
            close(step.process_reward, other.process_reward, f"episode {number}, step {place}", 1e-9)
            close(step.reward, other.reward, f"episode {number}, step {place}", 1e-9)


def test_answers_are_the_same(both: Both) -> None:
    for ours, plain in both.episodes:
        assert [answer.query for answer in ours.results] == [answer["query"] for answer in plain.answers]
        for answer, other in zip(ours.results, plain.answers, strict=True):
            assert answer.prediction == other["prediction"]
            assert [found.item.text for found in answer.retrieved] == other["retrieved"]
            close((answer.f1, answer.judge), (other["f1"], other["judge"]), other["query"].query_id, 1e-9)


def test_metrics_are_the_same(both: Both) -> None:
    assert len(both.rows) == len(both.plain.rows)
    for row, other in zip(both.rows, both.plain.rows, strict=True):
        close({name: row[name] for name in other}, other, f"outer {other['outer']}, inner {other['inner']}")


def test_weights_and_moments_are_the_same_after_every_inner_epoch(both: Both) -> None:
    order = [name for name, _ in Controller(2, 1, 1).named_parameters()]
    for done, state in enumerate(both.plain.states):
        ours = both.checkpoint(done)
        for name, weight in state["weights"].items():
            assert np.allclose(ours.controller[name], weight, atol=1e-4), f"{name} after {done}"
            if done:
                for moment, other in zip(("exp_avg", "exp_avg_sq"), state["moments"][name], strict=True):
                    found = ours.optimizer[f"{order.index(name)}.{moment}"]
                    assert np.allclose(found, other, atol=1e-4, rtol=1e-3), f"{moment} of {name} after {done}"


def test_banks_and_statistics_are_the_same_after_every_inner_epoch(both: Both) -> None:
    for done, state in enumerate(both.plain.states):
        close(without_format(both.checkpoint(done).bank.to_dict()), bank_row(state["bank"]), f"after {done}", 1e-9)


def without_format(bank: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in bank.items() if name != "format"}


def test_hard_cases_are_the_same_after_every_inner_epoch(both: Both) -> None:
    for done, state in enumerate(both.plain.states):
        pool = {row["query_id"]: row for row in both.checkpoint(done).state["hard_cases"]}
        close(pool, state["pool"], f"after {done}", 1e-9)
    assert {row["query_id"]: row for row in files.read_jsonl(both.run.hard_cases)} == pool


def test_stages_are_the_same(both: Both) -> None:
    assert len(both.stages) == len(both.plain.stages)
    for ours, plain in zip(both.stages, both.plain.stages, strict=True):
        assert (ours["stage"], ours["parent"], ours["checkpoint"]) == (plain.number, plain.parent, plain.done)
        assert (ours["is_best"], ours["kept"]) == (plain.is_best, plain.kept), plain.number
        close(ours["reward"], plain.reward, f"stage {plain.number}", 1e-9)
        close(without_format(ours["bank"]), bank_row(plain.bank), f"stage {plain.number}", 1e-9)


def test_the_final_bank_is_the_same(both: Both) -> None:
    found = json.loads(both.run.skill_bank.read_text())
    close(without_format(found), bank_row(both.plain.final), within=1e-9)


def test_the_designer_is_shown_the_same(both: Both) -> None:
    """The same cases in the same groups (in any order), and the same attempts."""

    def sorted_groups(groups: list[list[dict[str, Any]]]) -> list[list[str]]:
        keys = ("question", "truths", "prediction", "fails", "retrieved")
        told = [
            [str([case[key] for key in keys]) + f" {case['score']:.2f}" for case in group] for group in groups if group
        ]
        return sorted(map(sorted, told))

    assert [tried for _, tried in both.shown] == [tried for _, tried in both.plain.shown]
    for (ours, _), (plain, _) in zip(both.shown, both.plain.shown, strict=True):
        assert sorted_groups(ours) == sorted_groups(plain)


# --- these runs test the cases that they should test ---


def test_stages_win_and_lose_as_they_are_named(both: Both, request: pytest.FixtureRequest) -> None:
    kept = [stage.kept for stage in both.plain.stages]
    tried = [attempts for _, attempts in both.plain.shown]
    expected = {
        "loses then wins": ([True, False, True, False], [[], [1], []]),
        "wins": ([True, True, False], [[], []]),
        "gives up": ([True, True, False], [[], []]),
    }
    assert (kept, tried) == expected[request.node.callspec.id]
    assert both.plain.final.stage != both.plain.stages[-1].number


def test_more_skills_than_there_are_cannot_be_chosen(both: Both, request: pytest.FixtureRequest) -> None:
    chosen = {len(step.chosen) for _, episode in both.episodes for step in episode.steps}
    assert chosen == {"loses then wins": {2}, "wins": {1}, "gives up": {4, 5, 6}}[request.node.callspec.id]


def test_what_can_happen_happens(both: Both, request: pytest.FixtureRequest) -> None:
    """All reasons of rejection, unreadable replies, clipped ratios, the start and end of exploration, and so on."""
    if request.node.callspec.id == "gives up":  # too short for that
        return
    plain = both.plain
    rejected = sum((Counter(row["rejected"]) for row in plain.rows), Counter())
    assert set(rejected) >= {"not_allowed", "bad_index", "empty_text", "unknown_action", "duplicate"}
    assert {kind for row in plain.rows for kind in row["actions"]} == {"insert", "update", "delete", "noop"}
    assert sum(row["unreadable_replies"] for row in plain.rows) > 0
    assert max(row["clipfrac"] for row in plain.rows) > 0.2
    assert {len(episode.steps) for _, episode in both.episodes} == {1, 2, 5, 6}
    shifts = [step.shift for _, episode in both.episodes for step in episode.steps]
    assert min(shifts) == 0 < max(shifts)
    new = [bool(state["bank"].new) for state in plain.states]
    assert (False, True) in itertools.pairwise(new)
    assert (True, False) in itertools.pairwise(new)
    assert max(case["fails"] for state in plain.states for case in state["pool"].values()) > 2
    gone = [set(before["pool"]) - set(after["pool"]) for before, after in itertools.pairwise(plain.states)]
    assert any(gone)


# --- single functions, for which the runs have too few cases ---


def test_process_rewards_of_all_sets_of_actions() -> None:
    sets = [set(some) for size in range(5) for some in itertools.combinations(Action, size)]
    for chosen, done, failed in itertools.product(sets[1:], sets, (False, True)):
        applied = tuple(MemoryAction(action) for action in done)
        for execution in (
            ExecutorResult(applied, {ActionStatus.BAD_INDEX: 1} if failed else {}),
            ExecutorResult(applied, {}, unreadable=failed),
        ):
            ours = process_reward(chosen, execution, 7, RewardConfig())
            plain = reference_trainer.process_reward(
                {action.value for action in chosen}, {action.value for action in done}, failed, 7, PAPER
            )
            assert ours == pytest.approx(plain, abs=1e-12), (chosen, done, failed)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("reward", [0.0, 0.7, 1.0])
def test_shares_of_an_episode_reward(steps: int, reward: float) -> None:
    shares = distribute_reward(reward, steps, RewardConfig())
    assert shares == pytest.approx(reference_trainer.spread(reward, steps, PAPER), abs=1e-12)
    assert sum(shares) == pytest.approx(reward)


@pytest.mark.parametrize("seed", range(30))
def test_choices_of_certain_and_of_uncertain_controllers(seed: int) -> None:
    """Small to large weights: new skills are nearly certain to nearly impossible, where the shift is limited."""
    rng = np.random.default_rng(seed)
    controller = Controller.seeded(8, 6, seed)
    with torch.no_grad():
        for weight in controller.parameters():
            weight *= rng.choice([1, 3, 6])
    count, left = int(rng.integers(1, 8)), float(rng.choice([1.0, 0.5, 0.0]))
    skills = rng.normal(size=(count, 8)).astype(np.float32)
    state = rng.normal(size=16).astype(np.float32)
    new = [bool(is_new) for is_new in rng.integers(0, 2, size=count)]
    k = int(rng.integers(1, 9))
    for generator in (lambda: torch.Generator().manual_seed(seed), lambda: None):
        ours = choose_skills(
            controller,
            state,
            torch.from_numpy(skills),
            k,
            generator=generator(),
            exploration=Exploration(torch.tensor(new), 0.3, left),
        )
        weights = {name: weight.double() for name, weight in controller.state_dict().items()}
        args = (weights, state.astype(float), skills.astype(float), new, min(k, count), 0.3, left)
        chosen, log_prob, value, shift = reference_trainer.choose(*args, generator())
        assert ours.skills == chosen
        close((ours.log_prob, ours.value, ours.exploration_bonus), (log_prob, value, shift), within=1e-3)
