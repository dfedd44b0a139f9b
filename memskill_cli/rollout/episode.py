"""One episode: build a memory from a trace, span by span, with a fixed skill bank; then answer the queries (section 3).

Evaluation uses the same code and chooses skills in other ways.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from memskill_cli.agent.controller import SelectSkills, make_state
from memskill_cli.agent.executor import Executor
from memskill_cli.datasets.registry import get
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.retrieval import index_sources, make_retriever, ranking_of
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.kinds import answer_query, prefetch_queries
from memskill_cli.rollout.rewards import episode_reward, process_reward, reward_of, score_queries, step_shares
from memskill_cli.scoring.evidence import EvidenceMap
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.skill import Skill
from memskill_cli.types import (
    Action,
    Episode,
    ExecutorResult,
    Query,
    QueryResult,
    Retrieved,
    SkillSelection,
    Span,
    Step,
    StepTrace,
    Vector,
)


def no_progress() -> None:
    """The progress callback of callers that show no progress."""


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
    """Read ``spans`` in order into ``bank``. The steps have their process reward; the episode reward is added later.

    Each span is read with the memories of the spans before it, so the calls of a trace run one after the other, unless
    several spans are read at the same time (``memory.parallel_spans``). When ``evaluating``, a chosen noop skill is not
    shown to the executor, and if no other skill was chosen the executor is not called.
    """
    executor = Executor(context.llm, context.encoders, context.memory, get(context.dataset).prompt_style)
    # The next spans are encoded while the executor model processes the current one.
    context.encoders.state.prefetch([span.text for span in spans])
    steps = []
    for first in range(0, len(spans), context.memory.parallel_spans):
        group = [
            await _observe(context, span, skills, choose, bank)
            for span in spans[first : first + context.memory.parallel_spans]
        ]
        proposals = await asyncio.gather(*(_propose(executor, looked, evaluating) for looked in group))
        for looked, proposed in zip(group, proposals, strict=True):
            before = len(bank)
            execution = await executor.apply(bank, looked.span, looked.shown, looked.skills, proposed)
            chosen = tuple((skill.name, skill.action) for skill in looked.skills)
            trace = StepTrace(looked.span.trace_id, looked.span.index, chosen, before, len(bank))
            own = process_reward({skill.action for skill in looked.skills}, execution, len(spans), context.reward)
            steps.append(Step(looked.state, looked.choice, execution, own, trace=trace))
            advance()
    return steps


class _Observed(NamedTuple):
    """A span with the memories retrieved and the skills chosen for it."""

    span: Span
    state: Vector
    shown: Sequence[Retrieved]
    choice: SkillSelection
    skills: Sequence[Skill]


async def _observe(
    context: RolloutContext, span: Span, skills: SkillBank, choose: SelectSkills, bank: MemoryBank
) -> _Observed:
    """Steps 1 to 4 of section 3: encode the span, retrieve memories, make the state, choose skills."""
    vector = (await context.encoders.state.aencode([span.text]))[0]
    shown = bank.search(ranking_of(context.memory), span.text, vector, context.memory.num_memories, "state")
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
    """Build a memory from one trace, answer ``queries``, and give each step its reward.

    The memory bank exists only during the episode. A span or query whose prompt a model refuses is left out; if all
    queries are, the episode is not ``scored``. Raises ModelError if a model call fails after all retries: an
    episode without a score must not train the controller, so the run stops and can be resumed.
    """
    scoring = reward_of(context.reward)
    read = await read_and_answer(context, spans, queries, skills, choose, advance)
    steps, answers, bank = read.steps, read.answers, read.bank
    if answers and all(answer.refused for answer in answers):
        return Episode(spans[0].trace_id, tuple(steps), tuple(answers), 0.0, memories=len(bank), scored=False)
    scored = score_queries(answers, scoring, spans)
    reward = episode_reward(scored)
    shares = step_shares(reward, steps, context.reward, scored)
    earned = tuple(
        dataclasses.replace(step, reward=share + step.process_reward) for step, share in zip(steps, shares, strict=True)
    )
    return Episode(spans[0].trace_id, earned, tuple(answers), reward, memories=len(bank))


class Reading(NamedTuple):
    """A trace that was read, and the answers to queries about it."""

    steps: Sequence[Step]
    answers: Sequence[QueryResult]
    bank: MemoryBank


async def read_and_answer(
    context: RolloutContext,
    spans: Sequence[Span],
    queries: Sequence[Query],
    skills: SkillBank,
    choose: SelectSkills,
    advance: Callable[[], None] = no_progress,
    *,
    evaluating: bool = False,
) -> Reading:
    """Build a memory from one trace (see :func:`build_memory`) and answer ``queries``, scored as the reward needs.

    Where the data name the evidence of a query, its answer says where the evidence was lost. Raises ModelError if a
    model call fails after all retries.
    """
    bank = MemoryBank(spans[0].trace_id, language=context.memory.language)
    prefetch_queries(context, queries, len(spans))
    steps = await build_memory(context, spans, skills, choose, bank, advance, evaluating=evaluating)
    sources = await index_sources(spans, context.encoders, context.memory)
    retrieve = make_retriever(bank, context.encoders, context.memory, sources)
    judged = reward_of(context.reward).needs_judge
    answers = await asyncio.gather(*(answer_query(context, retrieve, query, judged=judged) for query in queries))
    evidence = EvidenceMap(spans, bank.items, bank.deleted, sources is not None)
    return Reading(steps, [_with_failure(answer, evidence) for answer in answers], bank)


def _with_failure(answer: QueryResult, evidence: EvidenceMap) -> QueryResult:
    named = answer.query.evidence
    if not named or answer.error:
        return answer
    return dataclasses.replace(answer, failure=evidence.failure(named, answer.retrieved))
