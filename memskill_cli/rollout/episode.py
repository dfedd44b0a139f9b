"""One episode: read a trace span by span with the skill bank fixed, then ask its memory the queries (section 3).

In ALFWorld a query is a task, and asking it is playing it.
Evaluation reads and asks in the same way, with another way to choose skills.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from memskill_cli.agent.answerer import answer, recall_from
from memskill_cli.agent.controller import ChooseSkills, make_state
from memskill_cli.agent.designer_context import Style
from memskill_cli.agent.env_runner import Playground, act, report
from memskill_cli.agent.executor import Executor
from memskill_cli.config import JudgePrompt, MemoryConfig, RewardConfig
from memskill_cli.errors import GameError, ModelError, UnreadableReplyError
from memskill_cli.llm.client import Gateway
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoder_pair import Spaces
from memskill_cli.rollout.rewards import process_reward, spread
from memskill_cli.scoring.judge import judge
from memskill_cli.scoring.prompt_selection import answer_prompt
from memskill_cli.scoring.token_f1 import score_f1
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.skill import Skill
from memskill_cli.types import (
    Action,
    Answer,
    Choice,
    Episode,
    Execution,
    Query,
    Recall,
    Retrieved,
    Span,
    Step,
    Vector,
)


def style_of(dataset: str) -> Style:
    """What a benchmark's traces are about: what was said, or how something was done."""
    return "embodied" if dataset == "alfworld" else "conversational"


UNREADABLE = "unreadable"
"""Kind of error of an answer whose reply ends inside its reasoning: the model did reply, so it is no failed call."""


def no_progress() -> None:
    """For callers who do not watch."""


@dataclass(frozen=True)
class World:
    """What every episode shares: the models, the encoders and the settings. Nothing in it changes."""

    gateway: Gateway
    spaces: Spaces
    memory: MemoryConfig
    reward: RewardConfig
    dataset: str
    playground: Playground | None = None
    """Where queries are played, of a benchmark whose queries are tasks."""
    judge_prompt: JudgePrompt = "category"


async def read(
    world: World,
    spans: Sequence[Span],
    skills: SkillBank,
    choose: ChooseSkills,
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
    executor = Executor(world.gateway, world.spaces, world.memory, style_of(world.dataset))
    world.spaces.state.ahead([span.text for span in spans])  # while a model reads one span, the next ones are encoded
    steps = []
    for first in range(0, len(spans), world.memory.parallel_spans):
        group = [
            await _look(world, span, skills, choose, bank)
            for span in spans[first : first + world.memory.parallel_spans]
        ]
        proposals = await asyncio.gather(*(_propose(executor, looked, evaluating) for looked in group))
        for looked, proposed in zip(group, proposals, strict=True):
            execution = await executor.apply(bank, looked.span, looked.shown, looked.skills, proposed)
            own = process_reward({skill.action for skill in looked.skills}, execution, len(spans), world.reward)
            steps.append(Step(looked.state, looked.choice, execution, own))
            advance()
    return steps


class _Looked(NamedTuple):
    """A span with what was retrieved and chosen for it."""

    span: Span
    state: Vector
    shown: Sequence[Retrieved]
    choice: Choice
    skills: Sequence[Skill]


async def _look(world: World, span: Span, skills: SkillBank, choose: ChooseSkills, bank: MemoryBank) -> _Looked:
    """Steps 1 to 4 of section 3: retrieve, make the state, choose."""
    vector = (await world.spaces.state.aencode([span.text]))[0]
    shown = bank.retrieve(vector, world.memory.top_k, "state")
    memories = bank.vectors([found.item.item_id for found in shown], "state")
    state = make_state(vector, memories, fuse=world.memory.fuse, tau=world.memory.tau)
    choice = choose(state)
    return _Looked(span, state, shown, choice, [skills.skills[index] for index in choice.skills])


async def _propose(executor: Executor, looked: _Looked, evaluating: bool) -> Execution:
    shown = [skill for skill in looked.skills if not (evaluating and skill.action is Action.NOOP)]
    if not shown:
        return Execution((), {}, asked=False)
    return await executor.propose(looked.span, looked.shown, shown)


def expect(world: World, queries: Sequence[Query], after: int) -> None:
    """Have questions encoded while a memory of ``after`` spans is read. (A task is asked by what it shows.)"""
    if world.playground is None:
        world.spaces.retrieval.ahead([query.question for query in queries], "query", after)


async def ask(world: World, recall: Recall, query: Query, *, judged: bool, settled: bool = True) -> Answer:
    """One query answered and scored, if ``judged`` by the judge too. Raises ModelError when a call fails for good.

    A reply that is no answer, since it ends inside its reasoning, is the answer's ``error`` and has no score; with
    ``settled`` False it is asked for anew when it was so before. A task is played instead, and never judged.
    """
    if world.playground is not None:
        return await play(world, world.playground, recall, query)
    retrieved = await recall(query)
    try:
        prediction = await answer(world.gateway, query, retrieved, answer_prompt(world.dataset), settled=settled)
    except UnreadableReplyError as error:
        return Answer(query, "", tuple(retrieved), None, error=f"{UNREADABLE}: {error.message}")
    scored = Answer(query, prediction, tuple(retrieved), score_f1(world.dataset, query, prediction))
    return await with_verdict(world, scored) if judged else scored


async def play(world: World, where: Playground, recall: Recall, task: Query) -> Answer:
    """One task played from its beginning: 1 for success and 0 for none.

    A game that breaks down is the answer's ``error`` and has no score. Raises ModelError when a call fails for good.
    """
    retrieved: Sequence[Retrieved] = ()
    try:
        async with where.games.game(task.query_id) as game:
            seen = game.scene.observation
            asked = task if where.acting.query == "goal" else dataclasses.replace(task, question=seen)
            retrieved = await recall(asked)
            played = await act(world.gateway, game, task.question, retrieved, where.acting, max_chars=where.max_chars)
    except GameError as error:
        return Answer(task, "", tuple(retrieved), None, error=f"game: {error.message}")
    return Answer(task, report(played), tuple(retrieved), float(played.won), played=played)


async def with_verdict(world: World, answer: Answer, *, settled: bool = True) -> Answer:
    """``answer`` with the judge's score.

    A verdict that stays unreadable is the answer's ``error`` and leaves ``judge`` None: never a 0; with ``settled``
    False it is asked for anew when it was unreadable before. Raises ModelError when the call fails for good.
    """
    try:
        verdict = await judge(
            world.gateway,
            world.dataset,
            answer.query,
            answer.prediction,
            prompt=world.judge_prompt,
            settled=settled,
        )
        return dataclasses.replace(answer, judge=verdict)
    except UnreadableReplyError as error:
        return dataclasses.replace(answer, error=f"judge: {error.message}")


async def run_episode(
    world: World,
    spans: Sequence[Span],
    queries: Sequence[Query],
    skills: SkillBank,
    choose: ChooseSkills,
    advance: Callable[[], None] = no_progress,
) -> Episode:
    """One trace read once, with the reward each step has earned.

    The memory bank lives and dies with the episode. Raises ModelError if a call fails for good: an episode whose
    score is unknown is no episode, and the run is resumed rather than taught by it.
    """
    trace_id = spans[0].trace_id
    bank = MemoryBank(trace_id)
    expect(world, queries, len(spans))
    steps = await read(world, spans, skills, choose, bank, advance)
    judged = world.reward.kind == "judge"
    recall = recall_from(bank, world.spaces, world.memory.top_k)
    answers = await asyncio.gather(*(ask(world, recall, query, judged=judged) for query in queries))
    reward = episode_reward(answers, world.reward.kind)
    shares = spread(reward, len(steps), world.reward)
    earned = tuple(
        dataclasses.replace(step, reward=share + step.process_reward) for step, share in zip(steps, shares, strict=True)
    )
    return Episode(trace_id, earned, tuple(answers), reward, memories=len(bank))


def episode_reward(answers: Sequence[Answer], kind: str) -> float:
    """R: the mean score of the queries that have one. Raises ModelError if none has."""
    scores = [answer.judge if kind == "judge" else answer.f1 for answer in answers]
    known = [score for score in scores if score is not None]
    if not known:
        raise ModelError(
            f"none of {len(answers)} answers could be scored: {answers[0].error if answers else 'no queries'}",
            hint="nothing is lost: the same command with --resume goes on",
        )
    return float(np.mean(known))
