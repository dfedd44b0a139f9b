"""One episode: the prompts and their order, the scores, and the rewards of steps. Without a server."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from memskill_cli.agent.controller import Controller, Exploration, select_skills
from memskill_cli.agent.env_runner import EnvRunner
from memskill_cli.config import EnvConfig, MemoryConfig, RewardConfig
from memskill_cli.datasets.registry import get
from memskill_cli.errors import GameError, ModelError, UnreadableReplyError
from memskill_cli.llm.client import Reply
from memskill_cli.llm.reasoning import ReplyText
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.rollout import episode as rollout
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.env_tasks import run_env_task
from memskill_cli.rollout.episode import run_episode
from memskill_cli.rollout.kinds import answer_query, prefetch_queries
from memskill_cli.rollout.question_answering import add_judge_score
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.training.episode_sampler import EpisodeSpec
from memskill_cli.training.train_episode import EpisodeCallbacks, PolicySnapshot, run_training_episode
from memskill_cli.types import MemoryItem, Query, QueryResult, Retrieved, SkillSelection, Source, Span, Vector

from ..factories import rollout_context

FACTS = ("Ada bakes bread.", "Bo keeps bees.", "Cy keeps boats.")
SPANS = [Span("talk", i, f"Someone says: {fact}") for i, fact in enumerate(FACTS)]
SKILLS = seed_bank()
INSERT, NOOP, UPDATE = (SKILLS.names.index(name) for name in ("insert", "noop", "update"))


def query(number: int, truth: str = "bread", **more: Any) -> Query:
    return Query(f"q{number}", "talk", "single-hop", f"What does number {number} do?", (truth,), **more)


class Models:
    """A stub of the model client. Each role's reply is a function of the last message. It records all requests."""

    def __init__(self, **replies: Callable[[str], str | Exception]) -> None:
        self.replies = {"executor": noted, "answer": lambda text: "bread", "judge": lambda text: verdict(1)} | replies
        self.asked: list[tuple[str, str, bool]] = []
        self.systems: list[str] = []
        self.under_way = self.most = 0

    async def ask(
        self, role: str, messages: Any, *, parse: Any = str, reuse_cached_error: bool = True, **more: Any
    ) -> Any:
        self.asked.append((role, messages[-1]["content"], reuse_cached_error))
        self.systems.append(messages[0]["content"])
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        reply = self.replies[role](messages[-1]["content"])
        if isinstance(reply, Exception):
            raise reply
        return Reply(parse(ReplyText(reply)), ReplyText(reply), cached=False)

    def of(self, role: str) -> list[str]:
        return [text for who, text, _ in self.asked if who == role]


def noted(text: str) -> str:
    """The executor's reply: an INSERT of the fact in the span."""
    return f"ACTION: INSERT\nMEMORY: {text.partition('Someone says: ')[2].partition('.')[0]}."


def verdict(score: float) -> str:
    return f'{{"explanation": "so", "score": {score}}}'


def always(*skills: int) -> Callable[[Vector], SkillSelection]:
    return lambda state: SkillSelection(skills, -1.5, 0.5, 0.25)


Work = Callable[[RolloutContext], Coroutine[Any, Any, Any]]


def within(models: Models, work: Work, *, dataset: str = "locomo", **more: Any) -> Any:
    """The result of ``work`` with these models and an encoder that uses no model."""
    with closing(load_encoder("hashing", cache_dir=None)) as encoder:
        return asyncio.run(work(rollout_context(models, encoder, dataset=dataset, **more)))


# --- reading -----------------------------------------------------------------------------------------------------


def reading(
    models: Models, skills: Sequence[int] = (INSERT,), spans: Sequence[Span] = SPANS, **more: Any
) -> tuple[list[Any], MemoryBank, list[int]]:
    """The steps, the memory, and the calls of the progress callback."""
    bank, told = MemoryBank("talk"), []
    evaluating = {"evaluating": True} if more.pop("evaluating", False) else {}

    async def work(context: RolloutContext) -> Any:
        return await rollout.build_memory(
            context, spans, SKILLS, always(*skills), bank, lambda: told.append(len(told) + 1), **evaluating
        )

    return within(models, work, **more), bank, told


def test_spans_are_read_in_order_each_with_the_memory_that_those_before_it_left() -> None:
    models = Models()
    steps, bank, told = reading(models)
    assert told == [1, 2, 3]
    assert len(bank) == 3
    for i, text in enumerate(models.of("executor")):
        assert [fact in text for fact in FACTS[:i]] == [True] * i
        assert f"Someone says: {FACTS[i]}" in text
    assert models.most == 1
    assert not any("trajector" in system for system in models.systems)
    assert [step.selection for step in steps] == [SkillSelection((INSERT,), -1.5, 0.5, 0.25)] * 3
    assert [[action.text for action in step.execution.applied] for step in steps] == [[fact] for fact in FACTS]
    assert [step.process_reward for step in steps] == pytest.approx([0.1 / 3] * 3)
    assert [step.reward for step in steps] == [0.0] * 3, "the episode reward is added later"


def test_the_state_is_the_span_beside_the_mean_of_the_memories_shown() -> None:
    with closing(load_encoder("hashing", cache_dir=None)) as encoder:
        spans, facts = encoder.encode([span.text for span in SPANS]), encoder.encode(list(FACTS))
    steps, _, _ = reading(Models())
    assert steps[0].state == pytest.approx(np.concatenate([spans[0], np.zeros_like(spans[0])]))
    assert steps[2].state == pytest.approx(np.concatenate([spans[2], facts[:2].mean(0)]), abs=1e-6)
    one, _, _ = reading(Models(), memory=MemoryConfig(num_memories=1))
    nearest = facts[int(np.argmax(facts[:2] @ spans[2]))]
    assert one[2].state == pytest.approx(np.concatenate([spans[2], nearest]), abs=1e-6)
    soft, _, _ = reading(Models(), memory=MemoryConfig(pooling="softmax", tau=0.05))
    weights = np.exp(facts[:2] @ spans[2] / 0.05)
    expected = np.concatenate([spans[2], weights @ facts[:2] / weights.sum()])
    assert soft[2].state == pytest.approx(expected, abs=1e-5)


def test_the_chosen_skills_are_shown_in_their_order_and_are_what_a_step_is_judged_by() -> None:
    models = Models()
    steps, _, _ = reading(models, (UPDATE, INSERT))
    text = models.of("executor")[0]
    assert 0 <= text.index("### update") < text.index("### insert")
    assert "### noop" not in text
    assert [step.process_reward for step in steps] == pytest.approx([0.1 / 3 / 2] * 3), "one of two types matches"


def test_several_spans_are_read_at_once_each_from_the_memory_before_them_all() -> None:
    models = Models()
    steps, bank, told = reading(models, memory=MemoryConfig(parallel_spans=2))
    assert models.most == 2
    assert [[fact in text.partition("Someone says")[0] for fact in FACTS] for text in models.of("executor")] == [
        [False, False, False],
        [False, False, False],
        [True, True, False],
    ]
    assert [step.execution.applied[0].text for step in steps] == list(FACTS), "applied in order"
    assert (len(bank), told) == (3, [1, 2, 3])


def test_in_an_evaluation_a_noop_is_chosen_but_not_shown_and_alone_needs_no_call() -> None:
    models = Models()
    steps, bank, _ = reading(models, (NOOP, INSERT), evaluating=True)
    assert all("### noop" not in text and "### insert" in text for text in models.of("executor"))
    assert steps[0].selection.skills == (NOOP, INSERT)
    assert len(bank) == 3
    models = Models()
    steps, bank, told = reading(models, (NOOP,), evaluating=True)
    assert (models.asked, len(bank), told) == ([], 0, [1, 2, 3])
    assert [(step.execution.asked, step.execution.applied) for step in steps] == [(False, ())] * 3
    models = Models(executor=lambda text: "ACTION: NOOP")
    steps, _, _ = reading(models, (NOOP,))
    assert len(models.of("executor")) == 3, "in training the executor is called"
    assert [step.execution.asked for step in steps] == [True] * 3


def test_an_index_means_the_memory_that_was_shown_there() -> None:
    def reply(text: str) -> str:
        return (
            noted(text) if "Ada" in text.partition("Someone says")[2] else "ACTION: UPDATE\nINDEX: 0\nMEMORY: Changed."
        )

    steps, bank, _ = reading(Models(executor=reply), (INSERT, UPDATE), memory=MemoryConfig(protect=False))
    assert [len(step.execution.applied) for step in steps] == [1, 1, 1]
    (item,) = [found.item for found in bank.retrieve(np.zeros(len(steps[0].state) // 2, np.float32), 5, "state")]
    assert item.text == "Changed."
    assert [version.text for version in item.history] == [FACTS[0], "Changed.", "Changed."]
    assert {version.provenance.trace_id for version in item.history} == {"talk"}


def test_what_traces_are_about() -> None:
    assert get("alfworld").prompt_style == "embodied"
    assert {get(name).prompt_style for name in ("locomo", "longmemeval", "hotpotqa")} == {"conversational"}


def test_the_executor_of_games_is_told_that_it_is_about_acting() -> None:
    models = Models()
    reading(models, dataset="alfworld")
    assert all("trajector" in system for system in models.systems)


# --- asking ------------------------------------------------------------------------------------------------------


async def recalled(query: Query) -> list[Retrieved]:
    return [Retrieved(MemoryItem(fact, fact, ()), 0.5) for fact in FACTS[:2]]


def asking(models: Models, asked: Query, *, judged: bool = False, **more: Any) -> QueryResult:
    reuse_cached_error = {"reuse_cached_error": False} if more.pop("anew", False) else {}

    async def work(context: RolloutContext) -> QueryResult:
        return await answer_query(context, recalled, asked, judged=judged, **reuse_cached_error)

    return within(models, work, **more)


def test_a_query_is_answered_with_the_memories_recalled_and_scored_by_f1() -> None:
    models = Models(answer=lambda text: "Fresh bread")
    found = asking(models, query(1))
    assert (found.prediction, found.judge, found.error, found.trajectory) == ("Fresh bread", None, "", None)
    assert found.f1 == pytest.approx(2 / 3)
    assert [one.item.text for one in found.retrieved] == list(FACTS[:2])
    (text,) = models.of("answer")
    assert all(fact in text for fact in FACTS[:2])
    assert "What does number 1 do?" in text
    assert not models.of("judge")


def test_each_benchmark_scores_by_its_own_rule() -> None:
    open_domain = dataclasses.replace(query(1, "bread; she says so"), category="open-domain")
    assert asking(Models(), open_domain).f1 == 1.0
    tagged = Models(answer=lambda text: "Well. <answer>bread</answer>")
    assert asking(tagged, query(1), dataset="hotpotqa", judged=True).f1 == 1.0
    assert "<answer>" in tagged.systems[0] + tagged.of("answer")[0], "the prompt asks for the tags"
    assert "Well." not in tagged.of("judge")[0], "and the text in them is judged"
    plain = Models()
    asking(plain, query(1))
    assert "<answer>" not in plain.systems[0] + plain.of("answer")[0]
    assert asking(Models(), query(1, "loaf"), dataset="longmemeval").f1 == 0.0


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_the_judge_is_asked_if_so_wanted_about_what_was_answered(score: float) -> None:
    models = Models(answer=lambda text: "cake", judge=lambda text: verdict(score))
    found = asking(models, query(1), judged=True)
    assert (found.judge, found.f1, found.error) == (score, 0.0, "")
    (text,) = models.of("judge")
    assert all(word in text for word in ("What does number 1 do?", "bread", "cake"))


def test_what_cannot_be_read_is_an_error_and_no_score() -> None:
    unread = UnreadableReplyError("it ends inside its reasoning")
    found = asking(Models(answer=lambda text: unread), query(1), judged=True)
    assert (found.query, found.prediction, found.f1, found.judge) == (query(1), "", None, None)
    assert found.error == "unreadable: it ends inside its reasoning"
    assert [one.item.text for one in found.retrieved] == list(FACTS[:2])
    found = asking(Models(judge=lambda text: unread), query(1), judged=True)
    assert (found.prediction, found.f1, found.judge) == ("bread", 1.0, None)
    assert found.error == "judge: it ends inside its reasoning"


def test_an_answer_that_could_not_be_read_before_is_asked_for_anew_only_if_so_wanted() -> None:
    models = Models()
    asking(models, query(1))
    asking(models, query(1), anew=True)
    assert [reuse_cached_error for _, _, reuse_cached_error in models.asked] == [True, False]


def test_a_verdict_that_could_not_be_read_before_is_asked_for_anew_only_if_so_wanted() -> None:
    models = Models()
    given = QueryResult(query(1), "bread", (), 1.0)
    for reuse_cached_error in ({}, {"reuse_cached_error": False}):
        found = within(models, lambda context, how=reuse_cached_error: add_judge_score(context, given, **how))
        assert found == dataclasses.replace(given, judge=1.0)
    assert [reuse_cached_error for _, _, reuse_cached_error in models.asked] == [True, False]


def test_a_categorys_own_rule_is_told_to_the_judge_unless_one_prompt_serves_all() -> None:
    asked = dataclasses.replace(query(1), category="knowledge-update")
    told = []
    for more in ({}, {"judge_prompt": "category"}, {"judge_prompt": "general"}):
        models = Models()
        asking(models, asked, judged=True, dataset="longmemeval", **more)
        told.append(models.systems[-1] + models.asked[-1][1])
    assert told[0] == told[1] != told[2]


# --- playing -----------------------------------------------------------------------------------------------------


class Games:
    """One game, in which the command "win" wins; the game "broken" fails."""

    def __init__(self) -> None:
        self.played: list[str] = []

    @asynccontextmanager
    async def open_task(self, name: str) -> AsyncIterator[Any]:
        if name == "gone":
            raise GameError("no such game", kind="broken")
        games = self

        class Game:
            observation = SimpleNamespace(text="A room.", inventory="", commands=["look", "win"], done=False, won=False)

            async def play(self, command: str) -> Any:
                games.played.append(command)
                if name == "broken":
                    raise GameError("it stopped", kind="died")
                won = command == "win"
                self.observation = SimpleNamespace(
                    **{**vars(self.observation), "text": "Seen.", "done": won, "won": won}
                )
                return self.observation

        yield Game()


def playing(models: Models, name: str = "g", **acting: Any) -> tuple[QueryResult, list[str], list[str]]:
    """The result, the commands, and the queries of the retriever."""
    games, questions = Games(), []
    task = Query(name, "games", "pick", "put an egg in the sink", ())

    async def retrieve(asked: Query) -> list[Retrieved]:
        questions.append(asked.question)
        return await recalled(asked)

    async def work(context: RolloutContext) -> QueryResult:
        return await answer_query(context, retrieve, task, judged=True)

    where = EnvRunner(games, EnvConfig(**{"steps": 3, **acting}))  # type: ignore[arg-type]
    found = within(models, work, dataset="alfworld", env_runner=where)
    assert found.query == task
    return found, games.played, questions


def test_a_task_is_played_and_worth_one_for_success() -> None:
    models = Models(answer=lambda text: "win")
    found, played, asked = playing(models)
    assert (found.f1, found.judge, found.error, played) == (1.0, None, "", ["win"])
    assert found.prediction.startswith("reached the goal in 1 commands")
    assert [one.item.text for one in found.retrieved] == list(FACTS[:2])
    assert found.trajectory is not None
    assert found.trajectory.won
    assert asked == ["put an egg in the sink"]
    assert not models.of("judge")
    (text,) = models.of("answer")
    assert "put an egg in the sink" in text
    assert FACTS[0] in text
    found, played, _ = playing(Models(answer=lambda text: "look"))
    assert (found.f1, played) == (0.0, ["look"] * 3)


def test_memory_may_be_asked_with_the_first_observation() -> None:
    models = Models(answer=lambda text: "win")
    assert playing(models, retrieval_query="observation")[2] == ["A room."]
    assert "put an egg in the sink" in models.of("answer")[0], "the model is always shown the goal"


def test_no_more_of_a_prompt_is_said_than_fits() -> None:
    games, models = Games(), Models(answer=lambda text: "look")
    where = EnvRunner(games, EnvConfig(steps=1), max_chars=30)  # type: ignore[arg-type]
    task = Query("g", "games", "pick", "go", ())
    within(
        models,
        lambda context: run_env_task(context, where, recalled, task),
        dataset="alfworld",
        env_runner=where,
    )
    assert "there is no room" in models.of("answer")[0]


def test_a_game_that_breaks_down_has_no_score() -> None:
    found, _, _ = playing(Models(answer=lambda text: "win"), "broken")
    assert (found.f1, found.trajectory, found.prediction, found.error) == (None, None, "", "game: it stopped")
    assert len(found.retrieved) == 2
    found, _, asked = playing(Models(), "gone")
    assert (found.f1, found.retrieved, found.error, asked) == (None, (), "game: no such game", [])


# --- an episode --------------------------------------------------------------------------------------------------


def episode(models: Models, queries: Sequence[Query], told: list[int] | None = None, **more: Any) -> Any:
    advance = (lambda: told.append(1)) if told is not None else rollout.no_progress
    return within(models, lambda context: run_episode(context, SPANS, queries, SKILLS, always(INSERT), advance), **more)


def test_a_step_earns_its_share_of_the_mean_score_and_its_own_reward() -> None:
    told: list[int] = []
    found = episode(Models(), [query(1), query(2, "cake"), query(3), query(4)], told)
    assert (found.trace_id, found.reward, found.memories, told) == ("talk", 0.75, 3, [1, 1, 1])
    assert [one.f1 for one in found.results] == [1.0, 0.0, 1.0, 1.0], "in the order of the queries"
    own = 0.1 / 3
    shares = [0.4 * 0.81 / 2.71, 0.4 * 0.9 / 2.71, 0.6 + 0.4 / 2.71]
    assert [step.reward for step in found.steps] == pytest.approx([0.75 * share + own for share in shares])
    assert [step.process_reward for step in found.steps] == pytest.approx([own] * 3)


def test_of_one_span_all_is_earned_by_its_step() -> None:
    async def work(context: RolloutContext) -> Any:
        return await run_episode(context, SPANS[:1], [query(1), query(2, "cake")], SKILLS, always(INSERT))

    found = within(Models(), work)
    assert found.trace_id == "talk"
    assert [step.reward for step in found.steps] == pytest.approx([0.5 + 0.1])


def test_the_memories_nearest_to_a_question_are_what_it_is_answered_with() -> None:
    models = Models()
    asked = dataclasses.replace(query(1), question="Who keeps bees?")
    found = episode(models, [asked], memory=MemoryConfig(num_memories=1))
    assert [[one.item.text for one in answer.retrieved] for answer in found.results] == [["Bo keeps bees."]]
    assert all("Bo keeps bees." in text and "Ada" not in text for text in models.of("answer"))


def test_questions_are_asked_at_the_same_time() -> None:
    models = Models()
    episode(models, [query(i) for i in range(4)])
    assert models.most == 4


def test_with_a_judge_its_verdicts_are_the_reward() -> None:
    models = Models(judge=lambda text: verdict(0.5))
    found = episode(models, [query(1), query(2)], reward=RewardConfig(kind="judge"))
    assert (found.reward, [one.judge for one in found.results], len(models.of("judge"))) == (0.5, [0.5, 0.5], 2)
    found = episode(Models(), [query(1)])
    assert found.results[0].judge is None


def test_what_has_no_score_is_in_no_mean_and_an_episode_without_any_is_none() -> None:
    def bad(number: int) -> Callable[[str], str | Exception]:
        unread = UnreadableReplyError("no verdict")
        return lambda text: unread if f"number {number} " in text or not number else verdict(1)

    judged = RewardConfig(kind="judge")
    assert episode(Models(judge=bad(1)), [query(1), query(2)], reward=judged).reward == 1.0
    with pytest.raises(ModelError, match="none of 2 answers could be scored: judge: no verdict") as error:
        episode(Models(judge=bad(0)), [query(1), query(2)], reward=judged)
    assert "--resume" in error.value.hint
    with pytest.raises(ModelError, match="none of 1 answers could be scored: judge: no verdict"):
        episode(Models(judge=bad(0)), [query(1)], reward=judged)
    with pytest.raises(ModelError, match="none of 0 answers could be scored: no queries"):
        episode(Models(), [])


def test_a_call_that_fails_for_good_ends_the_episode() -> None:
    down = ModelError("the server is gone")
    for role in ("executor", "answer", "judge"):
        with pytest.raises(ModelError, match="the server is gone"):
            episode(Models(**{role: lambda text: down}), [query(1)], reward=RewardConfig(kind="judge"))


def test_questions_and_spans_are_encoded_ahead_but_tasks_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead: list[tuple[Any, ...]] = []

    async def work(context: RolloutContext) -> None:
        monkeypatch.setattr(type(context.encoders.state), "prefetch", lambda self, *args: ahead.append(args))
        prefetch_queries(context, [query(1), query(2)], 3)
        await rollout.build_memory(context, SPANS, SKILLS, always(NOOP), MemoryBank("talk"), evaluating=True)
        where = EnvRunner(Games(), EnvConfig())  # type: ignore[arg-type]
        prefetch_queries(dataclasses.replace(context, dataset="alfworld", env_runner=where), [query(1)], 3)

    within(Models(), work)
    questions = ["What does number 1 do?", "What does number 2 do?"]
    assert ahead == [(questions, "query", 3), ([span.text for span in SPANS],)]


def test_a_lesson_is_read_with_the_controllers_choices_and_its_seed_is_all_that_is_random() -> None:
    with closing(load_encoder("hashing", cache_dir=None)) as encoder:
        skills = torch.from_numpy(encoder.encode([skill.description for skill in SKILLS.skills]))
        dim = skills.shape[1]
    controller = Controller.seeded(dim, 8, seed=0)
    new = torch.tensor([name == "update" for name in SKILLS.names])
    standing = PolicySnapshot(controller, SKILLS, skills, 2, Exploration(new, 0.9, 1.0))
    told: list[int] = []
    callbacks = EpisodeCallbacks(lambda: told.append(1))

    def episode_spec(seed: int) -> Any:
        async def work(context: RolloutContext) -> Any:
            async with standing.open(context, callbacks) as where:
                return await run_training_episode(where, callbacks, EpisodeSpec(SPANS, [query(1)]), seed)

        return within(Models(), work)

    first, again, other = episode_spec(1), episode_spec(1), episode_spec(2)
    assert told == [1] * 9
    assert [step.selection for step in first.steps] == [step.selection for step in again.steps]
    choices = [[step.selection for step in one.steps] for one in (first, other, episode_spec(3), episode_spec(4))]
    assert len({tuple(choice.skills for choice in one) for one in choices}) > 1
    generator = torch.Generator().manual_seed(1)
    for step in first.steps:
        expected = select_skills(
            controller, step.state, skills, 2, generator=generator, exploration=Exploration(new, 0.9, 1.0)
        )
        assert step.selection == expected
        assert step.selection.exploration_bonus > 0
    assert (first.results[0].prediction, first.results[0].query.query_id) == ("bread", "q1")


# --- evidence ----------------------------------------------------------------------------------------------------


def test_an_answer_says_where_its_evidence_was_lost() -> None:
    """Of three turns the second is not written down, the third is written down and not retrieved."""
    spans = [
        dataclasses.replace(span, sources=(Source(f"s:{i}", "", "Someone", span.text),)) for i, span in enumerate(SPANS)
    ]
    models = Models(executor=lambda text: "ACTION: NOOP" if "Bo keeps" in text.partition("<span>")[2] else noted(text))
    gold = {1: ("s:0",), 2: ("s:1",), 3: ("s:2",), 4: ()}
    queries = [query(number, evidence=refs) for number, refs in gold.items()]
    queries = [dataclasses.replace(one, question="Who bakes bread?") for one in queries]

    async def work(context: RolloutContext) -> Any:
        return await run_episode(context, spans, queries, SKILLS, always(INSERT, NOOP))

    how = MemoryConfig(num_memories=1, sources=False, retriever="dense")
    found = within(models, work, memory=how)
    assert [result.failure for result in found.results] == ["not_used", "not_stored", "not_retrieved", ""]
