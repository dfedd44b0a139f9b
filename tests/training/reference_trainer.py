"""A simple implementation of MemSkill's training loop, one step at a time, to compare with.

Of memskill_cli it uses only the records of traces and queries, and the functions that make seeds and draw the traces
of a batch, which are not part of the method. Sections are those of the method's description. The models are functions
of a ``World``; PPO is that of ``reference_ppo``, in float64.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch

from memskill_cli.types import Query, Trace
from memskill_cli.utils.seeding import batch_indices, seed_from

from . import reference_ppo as ppo

PAPER: dict[str, Any] = {
    "seed": 42,
    "memory.num_memories": 20,
    "memory.pooling": "mean",
    "memory.tau": 1.0,
    "reward.kind": "f1",
    "reward.final_share": 0.60,
    "reward.decay": 0.9,
    "reward.process_reward_scale": 0.10,
    "reward.process_penalty_scale": 0.05,
    "controller.new_skill_min_prob": 0.30,
    "controller.new_skill_epochs": 50,
    "ppo.gamma": 0.99,
    "ppo.gae_lambda": 0.95,
    "ppo.clip_coef": 0.2,
    "ppo.clip_vloss": False,
    "ppo.vf_coef": 0.5,
    "ppo.ent_coef": 0.01,
    "ppo.learning_rate": 1e-4,
    "ppo.minibatch_size": 32,
    "ppo.update_epochs": 4,
    "ppo.max_grad_norm": 0.5,
    "ppo.target_kl": 0.02,
    "designer.every": 1,
    "designer.judged_share": 0.25,
    "designer.f1_threshold": 0.5,
    "designer.case_max_age": 100,
    "designer.case_capacity": 2000,
    "designer.memories_per_case": 20,
    "designer.clusters": 5,
    "designer.per_cluster": 3,
    "designer.max_cases": 15,
    "designer.max_cycles": 20,
    "designer.patience": 5,
}
"""The method's constants, under the names of our settings."""
LEAST_NEW = 0.01  # probability of new skills below which the shift has its maximum
NOOP_SHARE = 0.2
ALPHA, RECENT = 0.1, 20

Action = tuple[Any, ...]
"""("insert", text), ("update", index, text), ("delete", index), ("noop",), or any other word for an unknown one."""


class World(Protocol):
    """The models and encoders. Vectors have length 1."""

    def embed_state(self, text: str) -> np.ndarray: ...
    def embed_skill(self, text: str) -> np.ndarray: ...
    def embed_memory(self, text: str) -> np.ndarray: ...
    def embed_question(self, text: str) -> np.ndarray: ...
    def execute(self, skills: list[tuple[str, str]], memories: list[str], span: str) -> list[Action] | None:
        """Actions for skills as (action, body); None is an unreadable reply."""
        ...

    def answer(self, memories: list[str], question: str) -> str: ...
    def judge(self, truth: str, prediction: str) -> float: ...
    def design(self, skills: list[str], groups: list[list[dict[str, Any]]], attempts: list[int]) -> dict[str, str]:
        """A change in the form of the designer's reply, from clusters of hard cases and stages that did not help."""
        ...


@dataclass
class Skill:
    name: str
    description: str
    body: str
    action: str
    origin: str = "seed"
    created_stage: int = 0
    modified_stage: int = 0
    uses: int = 0
    mean_reward: float = 0.0
    recent_rewards: list[float] = field(default_factory=list)
    usage_ema: float = 0.0


@dataclass
class Bank:
    skills: dict[str, Skill]
    stage: int = 0
    capacity: int = 30
    new: set[str] = field(default_factory=set)

    @property
    def ordered(self) -> list[Skill]:
        return [self.skills[name] for name in sorted(self.skills)]


@dataclass
class Memory:
    text: str
    state: np.ndarray
    retrieval: np.ndarray


@dataclass
class Step:
    state: np.ndarray
    chosen: tuple[int, ...]
    log_prob: float
    value: float
    shift: float
    done: list[Action]
    rejected: Counter[str]
    unreadable: bool
    process_reward: float
    reward: float = 0.0


@dataclass
class Episode:
    trace_id: str
    steps: list[Step]
    answers: list[dict[str, Any]]
    reward: float
    memories: int


@dataclass
class Stage:
    """A snapshot: the bank, the hard cases and the reward of a stage."""

    number: int
    bank: Bank
    pool: dict[str, dict[str, Any]]
    reward: float
    is_best: bool
    kept: bool
    parent: int | None
    done: int


# --- section 3 and 4: one step ---


def nearest(memory: list[Memory], vector: np.ndarray, k: int, space: str) -> list[Memory]:
    """The k memories with the highest cosine similarity; for equal values, the one inserted first."""
    cosines = [float(np.dot(getattr(item, space).astype(float), vector.astype(float))) for item in memory]
    best = sorted(range(len(memory)), key=lambda i: (-round(cosines[i], 9), i))[:k]
    return [memory[i] for i in best]


def state_of(span: np.ndarray, shown: list[Memory], how: str, tau: float) -> np.ndarray:
    """[ e(x) ; fuse(e(m)) ]"""
    span = span.astype(float)
    if not shown:
        return np.concatenate([span, np.zeros(len(span))])
    vectors = [item.state.astype(float) for item in shown]
    weights = [1.0 if how == "mean" else math.exp(float(np.dot(vector, span)) / tau) for vector in vectors]
    fused = sum(weight * vector for weight, vector in zip(weights, vectors, strict=True)) / sum(weights)
    return np.concatenate([span, fused])


def raise_of(p_new: float, p_min: float) -> float:
    """The shift of the new skills' logits that makes their total probability p_min."""
    if p_new >= p_min:
        return 0.0
    p_new = max(p_new, LEAST_NEW)
    return max(0.0, math.log(p_min * (1 - p_new) / (p_new * (1 - p_min))))


def choose(
    weights: ppo.Weights,
    state: np.ndarray,
    skills: np.ndarray,
    new: list[bool],
    k: int,
    p_min: float,
    left: float,
    generator: torch.Generator | None,
) -> tuple[tuple[int, ...], float, float, float]:
    """An ordered top-K with its log-probability, value and shift. ``left``: strength of exploration, from 1 to 0."""
    logits, value = ppo.forward(weights, torch.from_numpy(state), torch.from_numpy(skills))
    p_new = sum(float(p) for p, is_new in zip(ppo.probabilities(logits), new, strict=True) if is_new)
    shift = left * raise_of(p_new, p_min) if any(new) else 0.0
    logits = logits + torch.tensor([shift if is_new else 0.0 for is_new in new], dtype=logits.dtype)
    keys = logits.tolist()
    if generator is not None:
        uniform = torch.rand(len(keys), generator=generator, dtype=torch.float64).tolist()
        keys = [key - math.log(-math.log(u)) for key, u in zip(keys, uniform, strict=True)]
    chosen = tuple(sorted(range(len(keys)), key=lambda i: -keys[i])[:k])
    return chosen, float(ppo.log_prob(logits, chosen)), float(value), shift


def apply(
    actions: list[Action] | None, allowed: set[str], shown: list[Memory], memory: list[Memory], context: World
) -> tuple[list[Action], Counter[str]]:
    """Apply the valid actions to ``memory``. Returns the applied actions and the number of rejected ones by reason."""
    rejected: Counter[str] = Counter()
    good: list[Action] = []
    told = actions or []
    for action in told:
        kind = action[0]
        if kind == "noop":
            continue
        if kind not in ("insert", "update", "delete"):
            rejected["unknown_action"] += 1
        elif kind not in allowed:
            rejected["not_allowed"] += 1
        elif kind != "insert" and not 0 <= action[1] < len(shown):
            rejected["bad_index"] += 1
        elif kind != "delete" and not action[-1]:
            rejected["empty_text"] += 1
        else:
            good.append(action)
    if told and all(action[0] == "noop" for action in told):
        return [("noop",)], rejected
    deleted = {action[1] for action in good if action[0] == "delete"}
    changed: set[int] = set()
    done = []
    for action in good:
        kind = action[0]
        if kind != "insert":
            if action[1] in changed or (kind == "update" and action[1] in deleted):
                rejected["duplicate"] += 1
                continue
            changed.add(action[1])
        if kind == "insert":
            memory.append(Memory(action[1], context.embed_state(action[1]), context.embed_memory(action[1])))
        elif kind == "update":
            item = shown[action[1]]
            item.text = action[2]
            item.state, item.retrieval = context.embed_state(action[2]), context.embed_memory(action[2])
        else:
            memory[:] = [item for item in memory if item is not shown[action[1]]]
        done.append(action)
    return done, rejected


# --- section 5: reward ---


def process_reward(chosen: set[str], done: set[str], failed: bool, steps: int, setup: Mapping[str, Any]) -> float:
    q, f = setup["reward.process_reward_scale"] / steps, setup["reward.process_penalty_scale"] / steps
    if not done:
        return -f if failed else 0.0
    if chosen == done:
        return NOOP_SHARE * q if chosen == {"noop"} else q
    if chosen & done:
        overlap = q * len(chosen & done) / len(chosen | done)
        return NOOP_SHARE * overlap if chosen & done == {"noop"} else overlap
    return -q


def spread(reward: float, steps: int, setup: Mapping[str, Any]) -> list[float]:
    if steps == 1:
        return [reward]
    weights = [setup["reward.decay"] ** (steps - 1 - t) for t in range(steps)]
    share = 1 - setup["reward.final_share"]
    shares = [share * reward * weight / sum(weights) for weight in weights]
    shares[-1] += setup["reward.final_share"] * reward
    return shares


def f1(prediction: str, truth: str) -> float:
    """Token F1 of texts without punctuation, articles or words with endings."""
    common = (Counter(prediction.lower().split()) & Counter(truth.lower().split())).total()
    return 2 * common / (len(prediction.split()) + len(truth.split()))


# --- the loop ---


class Trainer:
    """A run from initial weights and an initial bank. Its lists record what happens."""

    def __init__(
        self,
        setup: Mapping[str, Any],
        context: World,
        traces: Sequence[Trace],
        bank: Bank,
        weights: ppo.Weights,
        epsilon: float = 1e-8,
    ) -> None:
        self.setup, self.context, self.traces, self.bank = {**PAPER, **setup}, context, traces, bank
        self.weights = dict(weights)
        self.config = SimpleNamespace(
            **{name.removeprefix("ppo."): value for name, value in self.setup.items() if name.startswith("ppo.")}
        )
        self.adam = ppo.Adam(self.weights, self.config.learning_rate, epsilon)
        self.done = self.window_start = 0
        self.pool: dict[str, dict[str, Any]] = {}
        self.stages: list[Stage] = []
        self.attempts: list[int] = []
        self.parent: int | None = None
        self.episodes: list[list[Episode]] = []
        self.rows: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = [self.state()]
        self.shown: list[tuple[list[list[dict[str, Any]]], list[int]]] = []

    def state(self) -> dict[str, Any]:
        """The state after an inner epoch."""
        moments = {name: (self.adam.first[name], self.adam.second[name]) for name in self.weights}
        known = {"weights": self.weights, "moments": moments, "bank": self.bank, "pool": self.pool}
        return copy.deepcopy(known)

    def train(self) -> None:
        outer_epochs, every = self.setup["train.outer_epochs"], self.setup["designer.every"]
        for first in range(0, outer_epochs, every):
            if first > 0:
                self.roll_back()
                if self.exhausted():
                    break
                self.evolve(len(self.stages))
            rewards = [
                self.inner_epoch(outer, inner)
                for outer in range(first, min(first + every, outer_epochs))
                for inner in range(self.setup["train.inner_epochs"])
            ]
            self.judge_stage(rewards)
        self.final = self.best().bank

    def inner_epoch(self, outer: int, inner: int) -> float:
        """A batch of episodes with a fixed bank, and one update. Returns the mean episode reward."""
        setup, seed = self.setup, self.setup["seed"]
        batch = batch_indices(setup["train.batch_size"], len(self.traces), self.done, seed)
        episodes = [
            self.episode(self.traces[place], torch.Generator().manual_seed(seed_from(seed, outer, inner, index)))
            for index, place in enumerate(batch)
        ]
        steps = [step for episode in episodes for step in episode.steps]
        names = [skill.name for skill in self.bank.ordered]
        stats = ppo.update(
            self.weights,
            self.adam,
            [[self.ppo_step(step) for step in episode.steps] for episode in episodes],
            torch.from_numpy(self.skill_vectors()),
            self.is_new(),
            self.config,
            torch.Generator().manual_seed(seed_from(seed, "ppo", outer, inner)),
        )
        self.count(episodes)
        if self.done + 1 - self.window_start >= setup["controller.new_skill_epochs"]:
            self.bank.new = set()
        self.remember(episodes)
        self.done += 1
        rewards = [episode.reward for episode in episodes]
        rejected = sum((step.rejected for step in steps), Counter())
        self.rows.append(
            {
                "outer": outer,
                "inner": inner,
                "stage": self.bank.stage,
                "episode_reward_mean": sum(rewards) / len(rewards),
                "episode_reward_std": math.sqrt(ppo.variance(rewards)),
                "process_reward_mean": sum(step.process_reward for step in steps) / len(steps),
                **{name: value for name, value in stats.items() if name not in ("kls", "norm")},
                "steps": len(steps),
                "skill_usage": dict(Counter(names[i] for step in steps for i in step.chosen)),
                "actions": dict(Counter(action[0] for step in steps for action in step.done)),
                "rejected_actions": rejected.total(),
                "rejected": dict(rejected),
                "unreadable_replies": sum(step.unreadable for step in steps),
                "memories_mean": sum(episode.memories for episode in episodes) / len(episodes),
            }
        )
        self.episodes.append(episodes)
        self.states.append(self.state())
        return self.rows[-1]["episode_reward_mean"]

    def skill_vectors(self) -> np.ndarray:
        return np.stack([self.context.embed_skill(skill.description).astype(float) for skill in self.bank.ordered])

    def is_new(self) -> list[bool]:
        return [skill.name in self.bank.new for skill in self.bank.ordered]

    def ppo_step(self, step: Step) -> ppo.Step:
        state = torch.from_numpy(step.state)
        return ppo.Step(state, step.chosen, step.log_prob, step.value, step.shift, step.reward)

    def episode(self, trace: Trace, generator: torch.Generator) -> Episode:
        setup, context, memory = self.setup, self.context, []
        spans = [
            f"[{session.date}]\n{turn.speaker}: {turn.text}" for session in trace.sessions for turn in session.turns
        ]
        skills = self.bank.ordered
        left = max(0.0, 1 - (self.done - self.window_start) / setup["controller.new_skill_epochs"])
        steps = []
        for span in spans:
            vector = context.embed_state(span)
            shown = nearest(memory, vector, setup["memory.num_memories"], "state")
            state = state_of(vector, shown, setup["memory.pooling"], setup["memory.tau"])
            k, p_min = min(setup["train.num_skills"], len(skills)), setup["controller.new_skill_min_prob"]
            picked = choose(self.weights, state, self.skill_vectors(), self.is_new(), k, p_min, left, generator)
            chosen = [skills[i] for i in picked[0]]
            actions = context.execute(
                [(skill.action, skill.body) for skill in chosen], [item.text for item in shown], span
            )
            allowed = {skill.action for skill in chosen}
            done, rejected = apply(actions, allowed, shown, memory, context)
            failed = actions is None or rejected.total() > 0
            own = process_reward(allowed, {action[0] for action in done}, failed, len(spans), setup)
            steps.append(Step(state, *picked, done, rejected, actions is None, own))
        answers = [self.ask(query, memory) for query in trace.queries if query.scored]
        scores = [answer["judge"] if setup["reward.kind"] == "judge" else answer["f1"] for answer in answers]
        reward = sum(scores) / len(scores)
        for step, share in zip(steps, spread(reward, len(steps), setup), strict=True):
            step.reward = share + step.process_reward
        return Episode(trace.trace_id, steps, answers, reward, len(memory))

    def ask(self, query: Query, memory: list[Memory]) -> dict[str, Any]:
        found = nearest(
            memory, self.context.embed_question(query.question), self.setup["memory.num_memories"], "retrieval"
        )
        texts = [item.text for item in found]
        prediction = self.context.answer(texts, query.question)
        judged = self.context.judge(query.gold_answers[0], prediction) if self.setup["reward.kind"] == "judge" else None
        scores = {"f1": max(f1(prediction, truth) for truth in query.gold_answers), "judge": judged}
        return {"query": query, "prediction": prediction, "retrieved": texts, **scores}

    # --- section 6: skill statistics ---

    def count(self, episodes: list[Episode]) -> None:
        """For each step that chose a skill, the skill gets the reward of the episode."""
        steps = [(step, episode.reward) for episode in episodes for step in episode.steps]
        for place, skill in enumerate(self.bank.ordered):
            earned = [reward for step, reward in steps if place in step.chosen]
            total = skill.mean_reward * skill.uses + sum(earned)
            skill.uses += len(earned)
            skill.mean_reward = total / skill.uses if skill.uses else 0.0
            skill.recent_rewards = (skill.recent_rewards + earned)[-RECENT:]
            old = (1 - ALPHA) ** len(steps)
            skill.usage_ema = len(earned) / len(steps) * (1 - old) + skill.usage_ema * old

    # --- section 7: hard cases, designer, snapshots ---

    def remember(self, episodes: list[Episode]) -> None:
        judged = self.setup["reward.kind"] == "judge"
        for answer in (answer for episode in episodes for answer in episode.answers):
            query: Query = answer["query"]
            score = answer["judge"] if judged else answer["f1"]
            before = self.pool.pop(query.query_id, None)
            if score < (1.0 if judged else self.setup["designer.f1_threshold"]):
                self.pool[query.query_id] = {
                    **{name: getattr(query, name) for name in ("query_id", "trace_id", "category", "question")},
                    "truths": list(query.gold_answers),
                    "prediction": answer["prediction"],
                    "retrieved": answer["retrieved"][: self.setup["designer.memories_per_case"]],
                    "score": score,
                    "fails": before["fails"] + 1 if before else 1,
                    "epoch": self.done,
                }
        fresh = [
            case for case in self.pool.values() if self.done - case["epoch"] <= self.setup["designer.case_max_age"]
        ]
        fresh.sort(key=lambda case: (-case["epoch"], -case["fails"], case["query_id"]))
        self.pool = {case["query_id"]: case for case in fresh[: self.setup["designer.case_capacity"]]}

    def selected(self) -> list[list[dict[str, Any]]]:
        """The cases that the designer is shown, by cluster. Equal questions are shown once."""
        different = {case["question"]: case for case in sorted(self.pool.values(), key=priority, reverse=True)}
        cases = sorted(different.values(), key=lambda case: case["query_id"])
        labels = list(range(len(cases)))
        if len(cases) > self.setup["designer.clusters"]:
            from sklearn.cluster import KMeans

            vectors = np.stack([self.context.embed_question(case["question"]) for case in cases]).astype(float)
            # The paper uses seed 42. memskill uses the seed of the run, which is 42 by default.
            means = KMeans(self.setup["designer.clusters"], random_state=self.setup["seed"], n_init=10)
            labels = means.fit_predict(vectors).tolist()
        clusters: dict[int, list[dict[str, Any]]] = {}
        for case, label in zip(cases, labels, strict=True):
            clusters.setdefault(label, []).append(case)
        chosen, rest = [], []
        for cluster in clusters.values():
            ranked = sorted(cluster, key=priority)
            chosen += ranked[: self.setup["designer.per_cluster"]]
            rest += ranked[self.setup["designer.per_cluster"] :]
        missing = self.setup["designer.max_cases"] - len(chosen)
        names = {case["query_id"] for case in chosen + sorted(rest, key=priority)[:missing]}
        return [[case for case in cluster if case["query_id"] in names] for cluster in clusters.values()]

    def evolve(self, number: int) -> None:
        """One designer cycle: the next stage's bank."""
        groups = self.selected()
        self.shown.append((copy.deepcopy(groups), list(self.attempts)))
        change = self.context.design(list(self.bank.skills), groups, self.attempts)
        self.parent = self.bank.stage
        self.bank = copy.deepcopy(self.bank)
        self.bank.stage = number
        name = change["name"]
        if change["change"] == "refine":
            skill = self.bank.skills[name]
            skill.body, skill.modified_stage = change["body"], number
        else:
            if len(self.bank.skills) == self.bank.capacity:
                used = [skill for skill in self.bank.skills.values() if skill.uses]
                worst = min(used, key=lambda skill: (skill.mean_reward, skill.usage_ema))  # equal: the rarer
                del self.bank.skills[worst.name]
            self.bank.skills[name] = Skill(
                name, change["description"], change["body"], change["action"], "designer", number, number
            )
        self.bank.new = {name}
        self.window_start = self.done

    def judge_stage(self, rewards: list[float]) -> None:
        """By the mean of the last quarter of the rewards. A stage that beats the best becomes the best."""
        tail = rewards[-math.ceil(self.setup["designer.judged_share"] * len(rewards)) :]
        reward = sum(tail) / len(tail)
        wins = not self.stages or reward > self.best().reward
        if wins:
            self.attempts = []
            for stage in self.stages:
                stage.is_best = False
        else:
            self.attempts.append(self.bank.stage)
        snapshot = copy.deepcopy((self.bank, self.pool))
        self.stages.append(Stage(self.bank.stage, *snapshot, reward, wins, wins, self.parent, self.done))

    def best(self) -> Stage:
        return next(stage for stage in self.stages if stage.is_best)

    def roll_back(self) -> None:
        """Restore bank, statistics and hard cases of the best stage. The controller is not changed."""
        if self.bank.stage != self.best().number:
            self.bank, self.pool = copy.deepcopy((self.best().bank, self.best().pool))

    def exhausted(self) -> bool:
        since = sum(stage.number > self.best().number for stage in self.stages)
        return since >= self.setup["designer.patience"] or len(self.stages) > self.setup["designer.max_cycles"]


def priority(case: dict[str, Any]) -> tuple[float, str]:
    """The highest (1 - score) log(1 + fails) first."""
    return -(1 - case["score"]) * math.log(1 + case["fails"]), case["query_id"]


def bank_row(bank: Bank) -> dict[str, Any]:
    """A bank in the form of ``skill_bank.json``."""
    rows = []
    for skill in bank.ordered:
        row = asdict(skill)
        row["stats"] = {name: row.pop(name) for name in ("uses", "mean_reward", "recent_rewards", "usage_ema")}
        rows.append(row)
    return {"stage": bank.stage, "capacity": bank.capacity, "skills": rows, "new": sorted(bank.new)}
