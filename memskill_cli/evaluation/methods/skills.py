"""Memory that the executor writes with skills: MemSkill, and three methods that select skills in a simpler way."""

from __future__ import annotations

import itertools
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

from memskill_cli.agent.controller import SelectSkills
from memskill_cli.agent.executor import executor_messages
from memskill_cli.evaluation.counts import executor_counts
from memskill_cli.evaluation.methods.base import CONTROLLER, WINDOW, Method, MethodMemory, PolicyDependency
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.retrieval import index_sources, make_ranker, make_retriever
from memskill_cli.rollout.episode import build_memory
from memskill_cli.scoring.evidence import RECALL_AT, EvidenceMap
from memskill_cli.skills.skill import Skill
from memskill_cli.types import SkillSelection, Span, Step, Trace, Vector
from memskill_cli.utils.seeding import seed_from
from memskill_cli.utils.tokens import count_tokens

SKILLS_SHARE = 0.5
"""Share of the executor's context window that :class:`AllSkills` may fill; memories, span and reply need the rest."""


class SkillMethod(Method):
    """One executor call for each span. The bank of a trace is stored when the whole trace is read, and reused later."""

    irrelevant_settings = WINDOW

    @abstractmethod
    def chooser(self, trace: Trace) -> SelectSkills:
        """The function that selects the skills for each span of ``trace``; it is called in reading order."""

    async def build_memory(self, trace: Trace, spans: Sequence[Span], advance: Callable[[], None]) -> MethodMemory:
        stored = await self.context.cache.read_bank(trace.trace_id)
        settings, encoders = self.context.settings.memory, self.context.rollout.encoders
        language = settings.language
        bank = MemoryBank.of(stored, language=language) if stored else MemoryBank(trace.trace_id, language=language)
        sources = await index_sources(spans, encoders, settings)
        steps: Sequence[Step] = ()
        counts, persist = {}, None
        if stored is None:
            skills, context = self.context.policy.bank, self.context.rollout
            steps = await build_memory(context, spans, skills, self.chooser(trace), bank, advance, evaluating=True)
            counts = {"executor": executor_counts(steps)}
            persist = partial(self._store, bank)
        else:
            for _ in spans:
                advance()
        return MethodMemory(
            make_retriever(bank, encoders, settings, sources),
            len(bank),
            counts=counts,
            evidence=EvidenceMap(spans, bank.items, bank.deleted, sources is not None),
            rank=make_ranker(bank, encoders, settings, sources, max(RECALL_AT)),
            steps=steps,
            persist=persist,
        )

    async def _store(self, bank: MemoryBank) -> None:
        await self.context.cache.write_bank(bank.bank_id, bank.stored())


class MemSkill(SkillMethod):
    """The top-K skills of the run by the controller, without sampling."""

    policy_dependency: ClassVar[PolicyDependency] = "controller"
    _choose: SelectSkills

    async def open(self) -> None:
        self._choose = await self.context.policy.chooser(self.context.settings, self.context.rollout.encoders)

    def chooser(self, trace: Trace) -> SelectSkills:
        return self._choose


class SeedSkills(MemSkill):
    """The seed skills and an untrained controller, independent of the run.

    With the published K all seed skills are chosen for every span, so the controller only decides their order.
    """

    policy_dependency: ClassVar[PolicyDependency] = "seeds"


class RandomSkills(SkillMethod):
    """K random skills of the run, drawn for each span from (seed, trace, span), so independent of concurrency."""

    policy_dependency: ClassVar[PolicyDependency] = "skills"
    irrelevant_settings = WINDOW | (CONTROLLER - {"eval.num_skills", "encoders.state"})

    def chooser(self, trace: Trace) -> SelectSkills:
        count, numbers = len(self.context.policy.bank), itertools.count()

        def draw(state: Vector) -> SkillSelection:
            seed = seed_from(self.context.settings.seed, "random-skills", trace.trace_id, next(numbers))
            k = min(self.context.settings.eval.num_skills, count)
            return SkillSelection(tuple(random.Random(seed).sample(range(count), k)), 0.0, 0.0)  # noqa: S311 - not for secrets

        return draw


class AllSkills(SkillMethod):
    """All skills of the run in each call, in name order. If the context window is too small, the last are left out."""

    policy_dependency: ClassVar[PolicyDependency] = "skills"
    irrelevant_settings = WINDOW | (CONTROLLER - {"encoders.state"})

    @cached_property
    def _fitting(self) -> int:
        """The number of skills that are shown."""
        skills, window = self.context.policy.bank.skills, self.context.rollout.llm.window("executor")
        sizes = [_prompt_tokens(skills[: i + 1]) for i in range(len(skills))]
        return sum(window is None or size <= SKILLS_SHARE * window for size in sizes)

    def chooser(self, trace: Trace) -> SelectSkills:
        choice = SkillSelection(tuple(range(self._fitting)), 0.0, 0.0)
        return lambda state: choice

    def summary_metadata(self) -> dict[str, Any]:
        return {"skills_shown": self._fitting, "skills": len(self.context.policy.bank)}


def _prompt_tokens(skills: Sequence[Skill]) -> int:
    return sum(count_tokens(m["content"]) for m in executor_messages(Span("", 0, ""), (), skills))
