"""One episode: read a trace span by span with the skill bank fixed, then ask its memory the queries (section 3).

Evaluation reads and asks in the same way, with another way to choose skills.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from memskill_cli.agent.answerer import make_retriever
from memskill_cli.agent.controller import SelectSkills, make_state
from memskill_cli.agent.executor import Executor
from memskill_cli.datasets.registry import get
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.kinds import answer_query, prefetch_queries
from memskill_cli.rollout.rewards import episode_reward, process_reward, reward_of, step_shares
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.skill import Skill
from memskill_cli.types import (
    Action,
    Episode,
    ExecutorResult,
    Query,
    Retrieved,
    SkillSelection,
    Span,
    Step,
    Vector,
)


def no_progress() -> None:
    """For callers who do not watch."""


async def build_memory(
    context: RolloutContext,
    spans: Sequence[Span],
    skills: SkillBank,
    choose: SelectSkills,
    bank: MemoryBank,
    advance: Callable[[], None] = no_progress,
    *,
    evaluating: bool = False,
) -> list[Step]:
    """Read ``spans`` in order into ``bank``; the steps, their episode reward still to come.

    Spans depend on each other through the memory they leave, so a trace is a chain of calls, unless several spans are
    read at the same time (``memory.parallel_spans``). When ``evaluating``, a noop skill that was chosen is not shown to
    the executor, and where nothing else was chosen there is no call.
    """
    executor = Executor(context.llm, context.encoders, context.memory, get(context.dataset).prompt_style)
    # While the executor's model reads one span, the next ones are encoded.
    context.encoders.state.prefetch([span.text for span in spans])
    steps = []
    for first in range(0, len(spans), context.memory.parallel_spans):
        group = [
            await _observe(context, span, skills, choose, bank)
            for span in spans[first : first + context.memory.parallel_spans]
        ]
        proposals = await asyncio.gather(*(_propose(executor, looked, evaluating) for looked in group))
        for looked, proposed in zip(group, proposals, strict=True):
            execution = await executor.apply(bank, looked.span, looked.shown, looked.skills, proposed)
            own = process_reward({skill.action for skill in looked.skills}, execution, len(spans), context.reward)
            steps.append(Step(looked.state, looked.choice, execution, own))
            advance()
    return steps


class _Observed(NamedTuple):
    """A span with what was retrieved and chosen for it."""

    span: Span
    state: Vector
    shown: Sequence[Retrieved]
    choice: SkillSelection
    skills: Sequence[Skill]


async def _observe(
    context: RolloutContext, span: Span, skills: SkillBank, choose: SelectSkills, bank: MemoryBank
) -> _Observed:
    """Steps 1 to 4 of section 3: retrieve, make the state, choose."""
    vector = (await context.encoders.state.aencode([span.text]))[0]
    shown = bank.retrieve(vector, context.memory.num_memories, "state")
    memories = bank.vectors([found.item.item_id for found in shown], "state")
    state = make_state(vector, memories, fuse=context.memory.pooling, tau=context.memory.tau)
    choice = choose(state)
    return _Observed(span, state, shown, choice, [skills.skills[index] for index in choice.skills])


async def _propose(executor: Executor, looked: _Observed, evaluating: bool) -> ExecutorResult:
    shown = [skill for skill in looked.skills if not (evaluating and skill.action is Action.NOOP)]
    if not shown:
        return ExecutorResult((), {}, asked=False)
    return await executor.propose(looked.span, looked.shown, shown)


async def run_episode(
    context: RolloutContext,
    spans: Sequence[Span],
    queries: Sequence[Query],
    skills: SkillBank,
    choose: SelectSkills,
    advance: Callable[[], None] = no_progress,
) -> Episode:
    """One trace read once, with the reward each step has earned.

    The memory bank lives and dies with the episode. Raises ModelError if a call fails for good: an episode whose
    score is unknown is no episode, and the run is resumed rather than taught by it.
    """
    trace_id = spans[0].trace_id
    bank = MemoryBank(trace_id)
    prefetch_queries(context, queries, len(spans))
    steps = await build_memory(context, spans, skills, choose, bank, advance)
    scoring = reward_of(context.reward)
    retrieve = make_retriever(bank, context.encoders, context.memory)
    answers = await asyncio.gather(
        *(answer_query(context, retrieve, query, judged=scoring.needs_judge) for query in queries)
    )
    reward = episode_reward(answers, scoring)
    shares = step_shares(reward, steps, context.reward)
    earned = tuple(
        dataclasses.replace(step, reward=share + step.process_reward) for step, share in zip(steps, shares, strict=True)
    )
    return Episode(trace_id, earned, tuple(answers), reward, memories=len(bank))
