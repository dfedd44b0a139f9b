"""How many calls, tokens and dollars a training and an evaluation take, before anything is called.

Calls follow from the settings and the sizes of the traces. Tokens follow from the prompts; what models write is assumed
(:data:`REPLY_TOKENS`, :data:`MEMORY_TOKENS`). Replies from the cache, second attempts and early stops are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from memskill_cli.agent.prompts import template
from memskill_cli.config import EMBEDDED, Config
from memskill_cli.config.settings import EvalConfig, TrainConfig
from memskill_cli.datasets.registry import get
from memskill_cli.llm.prices import token_prices
from memskill_cli.rollout.rewards import reward_of
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.types import ROLES, Role
from memskill_cli.utils.tokens import count_tokens

REPLY_TOKENS: Mapping[Role, int] = {"executor": 120, "answer": 15, "judge": 80, "designer": 900}
"""Assumed tokens of a reply, without reasoning."""
MEMORY_TOKENS = 25
"""Assumed tokens of a memory in the executor's prompt."""
CASE_TOKENS = 400
"""Assumed tokens of a hard case in the designer's prompt."""
QUESTION_TOKENS = 20
SECONDS_A_CALL = 2.0
"""Assumed seconds of a call, for the time at a given concurrency."""
EMBEDDED_SPEED = 80.0, 10.0
"""Tokens of prompts and of replies that the embedded model handles in a second on two cores, one call at a time."""


@dataclass(frozen=True)
class TraceSize:
    """A trace: the tokens and the turns of each session, and the number of questions about it, by category."""

    session_tokens: Sequence[float]
    session_turns: Sequence[int]
    questions: Mapping[str, int]

    @property
    def scored(self) -> int:
        return sum(self.questions.values())


@dataclass
class Estimate:
    """Sums over the calls of a training or an evaluation. ``usd`` is None if a model's price is not known."""

    spans: float = 0.0
    calls: dict[Role, float] = field(default_factory=lambda: dict.fromkeys(ROLES, 0.0))
    prompt_tokens: dict[Role, float] = field(default_factory=lambda: dict.fromkeys(ROLES, 0.0))

    def add(self, role: Role, calls: float, prompt_tokens: float) -> None:
        """Count ``calls`` with prompts of ``prompt_tokens`` each."""
        self.calls[role] += calls
        self.prompt_tokens[role] += calls * prompt_tokens

    def to_dict(self, settings: Config) -> dict[str, Any]:
        """Whole numbers for people and for ``--json``."""
        total = sum(self.calls.values())
        return {
            "spans": round(self.spans),
            "calls": round(total),
            "calls_by_role": {role: round(calls) for role, calls in self.calls.items() if calls},
            "prompt_tokens": round(sum(self.prompt_tokens.values())),
            "completion_tokens": round(sum(self.calls[role] * REPLY_TOKENS[role] for role in ROLES)),
            "usd": self._usd(settings),
            "minutes": round(self._seconds(settings) / 60, 1),
        }

    def _seconds(self, settings: Config) -> float:
        """Calls of the embedded model one after the other, others at the concurrency of the settings."""
        seconds = 0.0
        for role, calls in self.calls.items():
            if _is_embedded(getattr(settings.models, role)):
                prompts, replies = EMBEDDED_SPEED
                seconds += self.prompt_tokens[role] / prompts + calls * REPLY_TOKENS[role] / replies
            else:
                seconds += calls * SECONDS_A_CALL / settings.limits.concurrency
        return seconds

    def _usd(self, settings: Config) -> float | None:
        usd = 0.0
        for role in ROLES:
            if not self.calls[role]:
                continue
            model = getattr(settings.models, role)
            prices = (0.0, 0.0) if _is_embedded(model) else token_prices(model, settings.models)
            if prices is None:
                return None
            usd += self.prompt_tokens[role] * prices[0] + self.calls[role] * REPLY_TOKENS[role] * prices[1]
        return round(usd, 4)


def _is_embedded(model: str) -> bool:
    return model.split(":")[0] == EMBEDDED


def estimate_training(settings: Config, train: Sequence[TraceSize], val: Sequence[TraceSize]) -> Estimate:
    """The whole training. Each training trace is read equally often; a trace costs what an average one costs."""
    found, how = Estimate(), settings.train
    if not train:
        return found
    episodes = how.outer_epochs * how.inner_epochs * how.batch_size
    asked = [
        max(len(one.questions), math.ceil(Fraction(str(settings.reward.query_ratio)) * one.scored)) for one in train
    ]
    judged = reward_of(settings.reward).needs_judge
    _add_reading(found, settings, how, train, episodes / len(train))
    _add_answers(found, settings, sum(asked) * episodes / len(train), judged)
    if how.evolve:
        cycles = min(settings.designer.max_cycles, how.outer_epochs // settings.designer.every)
        _add_designer(found, settings, cycles)
        if settings.designer.gate == "val" and val:
            rounds = 1 + cycles  # the first bank, then each change
            _add_reading(found, settings, settings.eval, val, rounds)
            most = settings.designer.gate_queries or math.inf
            _add_answers(found, settings, rounds * min(most, sum(one.scored for one in val)), judged)
    return found


def estimate_evaluation(settings: Config, traces: Sequence[TraceSize]) -> Estimate:
    """An evaluation of these traces with the method ``memskill``."""
    found = Estimate()
    _add_reading(found, settings, settings.eval, [one for one in traces if one.scored], 1)
    _add_answers(found, settings, sum(one.scored for one in traces), settings.eval.judge)
    return found


def _add_reading(
    found: Estimate, settings: Config, how: TrainConfig | EvalConfig, traces: Iterable[TraceSize], times: float
) -> None:
    """Each trace is read ``times`` times: one executor call a span."""
    skills = seed_bank(settings.controller.include_noop).skills
    length = sum(count_tokens(skill.body) for skill in skills) / len(skills)
    prompt = count_tokens(template("executor")) + length * min(how.num_skills, len(skills))
    for trace in traces:
        spans, tokens = _spans(trace, how)
        memories = min(settings.memory.num_memories, spans) * MEMORY_TOKENS
        found.spans += times * spans
        found.add("executor", times * spans, prompt + memories + tokens / max(1, spans))


def _spans(trace: TraceSize, how: TrainConfig | EvalConfig) -> tuple[int, float]:
    """The number of spans that are read of a trace, and their tokens."""
    spans, tokens = 0, 0.0
    for length, turns in zip(trace.session_tokens, trace.session_turns, strict=True):
        number, read = 1, length
        if how.span_mode == "turn":
            number = turns
        elif how.span_mode == "turn-pair":
            number = -(-turns // 2)
        elif how.span_mode == "fixed-length" and length > how.chunk_size:
            number = 1 + math.ceil((length - how.chunk_size) / (how.chunk_size - how.chunk_overlap))
            read += (number - 1) * how.chunk_overlap
        spans, tokens = spans + number, tokens + read
    kept = min(spans, how.max_spans) if how.max_spans else spans
    return kept, tokens * kept / spans if spans else 0.0


def _add_answers(found: Estimate, settings: Config, number: float, judged: bool) -> None:
    prompt = get(settings.dataset).answer_prompt
    context = settings.memory.context_tokens or settings.memory.num_memories * MEMORY_TOKENS
    found.add("answer", number, count_tokens(template(prompt)) + context + QUESTION_TOKENS)
    if judged:
        found.add("judge", number, count_tokens(template("judge")) + QUESTION_TOKENS + REPLY_TOKENS["answer"])


def _add_designer(found: Estimate, settings: Config, cycles: int) -> None:
    how = settings.designer
    cases = how.max_cases * CASE_TOKENS
    found.add("designer", cycles * how.reflection_rounds, count_tokens(template("designer_analyse")) + cases)
    found.add("designer", cycles, count_tokens(template("designer_refine")) + REPLY_TOKENS["designer"])
