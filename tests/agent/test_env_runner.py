"""Acting: what the model is shown, how its replies are understood, and what is played. The model is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.agent.env_runner import (
    MAX_CHARS,
    chars_that_fit,
    command_messages,
    parse_command,
    play_episode,
    summarise_episode,
)
from memskill_cli.config import EnvConfig
from memskill_cli.envs.env_pool import Observation
from memskill_cli.errors import ModelError
from memskill_cli.testing import rules
from memskill_cli.testing.replies import Script
from memskill_cli.testing.server import Fault, MockLLMServer, Request
from memskill_cli.types import EnvStep, EnvTrajectory, MemoryItem, Retrieved

from ..factories import llm_client

COMMANDS = ("go to desk 1", "go to desk 12", "inventory", "look", "open drawer 1", "take mug 1 from desk 1")


def retrieved(*texts: str) -> list[Retrieved]:
    return [Retrieved(MemoryItem(str(i), text, ()), 0.5) for i, text in enumerate(texts)]


class Corridor:
    """A game: rooms in a row, won in the last; ``say`` is what it says after each command."""

    def __init__(self, length: int = 3, say: str = "You see a door.") -> None:
        self.length, self.say, self.place = length, say, 0
        self.played: list[str] = []
        self.observation = Observation("You are in room 0.", self._commands, "You carry nothing.", False, False)

    @property
    def _commands(self) -> tuple[str, ...]:
        return (f"go to room {self.place + 1}", "inventory", "look")

    async def play(self, command: str) -> Observation:
        self.played.append(command)
        self.place += command.startswith("go to")
        won = self.place == self.length
        said = f"{self.say} ({len(self.played)})"
        self.observation = Observation(said, self._commands, f"You carry {self.place} keys.", won, won)
        return self.observation


def play(game: Corridor, reply: Script, steps: int = 50, **more: Any) -> tuple[EnvTrajectory, list[Request]]:
    async def run(url: str) -> EnvTrajectory:
        llm = llm_client(url)
        try:
            acting = EnvConfig(steps=steps)
            return await play_episode(llm, game, "reach the end", retrieved("Rooms follow each other."), acting, **more)
        finally:
            await llm.aclose()

    with MockLLMServer({"answer": reply}) as server:
        return asyncio.run(run(server.url)), server.requests


def first_command(request: Request) -> str:
    return rules.part(request, "commands").splitlines()[0]


@pytest.mark.parametrize(
    ("reply", "meant"),
    [
        ("go to desk 1", "go to desk 1"),
        ("  Go To  Desk 1.\n", "go to desk 1"),
        ("`take mug 1 from desk 1`", "take mug 1 from desk 1"),
        ("LOOK", "look"),
        ("Action: open drawer 1", "open drawer 1"),
        ("> open drawer 1", "open drawer 1"),
        ("I need the mug, which is on desk 12.\nAction: go to desk 12", "go to desk 12"),
        ("I could open drawer 1 first.\n\nlook", "look"),
        ("go to desk 12", "go to desk 12"),
        ("Next I will go to desk 1, I think.", "go to desk 1"),
        ("First go to desk 1, then take mug 1 from desk 1.", "take mug 1 from desk 1"),
        ("Rather than open drawer 1 I go to desk 12 now", "go to desk 12"),
        ("I will look around for the mug.", None),
        ("go to desk 123", None),
        ("put mug 1 on desk 1", None),
        ("go to", None),
        ("", None),
    ],
)
def test_a_reply_means_an_admissible_command_or_none(reply: str, meant: str | None) -> None:
    assert parse_command(reply, COMMANDS) == meant


@settings(deadline=None)
@given(st.text())
def test_whatever_is_said_only_what_is_possible_is_played(reply: str) -> None:
    assert parse_command(reply, COMMANDS) in {None, *COMMANDS}


def test_of_commands_equally_long_the_last_is_meant() -> None:
    commands = ("go to desk 1", "go to desk 2")
    assert parse_command("not go to desk 2 but go to desk 1 please", commands) == "go to desk 1"


def test_it_plays_until_the_goal_is_reached() -> None:
    game = Corridor(3)
    played, requests = play(game, first_command)
    assert played.won
    assert played.opening == "You are in room 0."
    assert [move.command for move in played.steps] == game.played == ["go to room 1", "go to room 2", "go to room 3"]
    assert played.steps[-1].observation == "You see a door. (3)"
    assert (played.invalid, len(requests)) == (0, 3)


def test_the_model_sees_memory_goal_history_inventory_and_commands() -> None:
    _, requests = play(Corridor(3), first_command)
    last = requests[-1]
    assert rules.part(last, "memories") == "[0] Rooms follow each other."
    assert rules.part(last, "goal") == "reach the end"
    assert rules.part(last, "inventory") == "You carry 2 keys."
    assert rules.part(last, "commands").splitlines() == ["go to room 3", "inventory", "look"]
    said = "You are in room 0.\n> go to room 1\nYou see a door. (1)\n> go to room 2\nYou see a door. (2)"
    assert rules.part(last, "history") == said
    assert last.role == "answer"


def test_the_limit_ends_a_game() -> None:
    game = Corridor(3)
    played, requests = play(game, "inventory", steps=5)
    assert not played.won
    assert game.played == ["inventory"] * 5
    assert len(requests) == 5


def test_a_reply_that_is_no_command_is_counted_and_look_is_played() -> None:
    game = Corridor(2)
    played, _ = play(game, ["dance", "go to room 1", "go to room 99", "go to room 2"])
    assert game.played == ["look", "go to room 1", "look", "go to room 2"]
    assert [move.valid for move in played.steps] == [False, True, False, True]
    assert (played.invalid, played.won) == (2, True)


def test_a_call_that_fails_for_good_ends_it() -> None:
    with pytest.raises(ModelError):
        play(Corridor(3), ["go to room 1", Fault.server_error()])


def shown(moves: list[EnvStep], max_chars: int, *memories: str) -> dict[str, str]:
    observation = Observation("", COMMANDS, "nothing", False, False)
    text = command_messages("a goal", "An opening.", retrieved(*memories), moves, observation, max_chars)[1]["content"]
    return {tag: text.partition(f"<{tag}>\n")[2].partition(f"\n</{tag}>")[0] for tag in ("memories", "history")}


def test_the_oldest_observations_go_first() -> None:
    moves = [EnvStep(f"open drawer {i}", "x" * 300, True) for i in range(20)]
    whole = shown(moves, MAX_CHARS)["history"]
    assert whole.count("x" * 300) == 20
    some = shown(moves, 2500)["history"]
    kept = some.count("x" * 300)
    assert 0 < kept < 20
    assert len(some) <= 2500
    assert f"first {20 - kept} commands is left out" in some
    assert some.startswith("An opening.")
    assert all(f"> open drawer {i}" in some for i in range(20)), (
        "what was done is remembered longer than what came of it"
    )
    assert some.endswith("x" * 300), "the newest is kept"
    few = shown(moves, 400)["history"]
    assert len(few) <= 400
    assert few.endswith("> open drawer 19")


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), max_size=12), st.lists(st.integers(0, 900), max_size=6), st.integers(600, 3000))
def test_a_prompt_keeps_its_bound(observations: list[int], memories: list[int], max_chars: int) -> None:
    moves = [EnvStep("open drawer 1", "x" * length, True) for length in observations]
    parts = shown(moves, max_chars, *("m" * length for length in memories))
    assert len(parts["memories"]) <= max_chars // 2 + 60
    assert sum(map(len, parts.values())) <= max_chars + 60


def test_memories_that_do_not_fit_are_left_out_from_the_end() -> None:
    text = shown([], 1000, "a" * 200, "b" * 200, "c" * 200)["memories"]
    assert "aaa" in text
    assert "bbb" in text
    assert "ccc" not in text
    assert "1 more are left out" in text
    assert shown([], 1000, "a" * 2000)["memories"].count("a") > 400, "the nearest is cut rather than dropped"


def test_a_window_leaves_room_for_the_reply() -> None:
    assert chars_that_fit(None, 512) == MAX_CHARS
    assert chars_that_fit(1_000_000, 512) == MAX_CHARS
    assert 2 * (8192 - 512) <= chars_that_fit(8192, 512) <= 3 * (8192 - 512), "two to three characters are a token"
    assert chars_that_fit(4096, 512) < chars_that_fit(8192, 512) < chars_that_fit(8192, 32)
    assert chars_that_fit(500, 512) == 0


def _moves(*commands: str, say: Callable[[str], str] = lambda command: f"Did {command}.") -> tuple[EnvStep, ...]:
    return tuple(EnvStep(command, say(command), command != "look") for command in commands)


def test_how_it_went_in_a_few_words() -> None:
    told = summarise_episode(EnvTrajectory("", _moves("go to desk 1", "look", "look", "open drawer 1"), False))
    assert told == (
        "did not reach the goal in 4 commands, 2 of them no valid command. "
        "Commands: go to desk 1; (no command) (×2); open drawer 1. At the end: Did open drawer 1."
    )
    assert summarise_episode(EnvTrajectory("", _moves("use lamp 1"), True)).startswith(
        "reached the goal in 1 commands."
    )


@settings(deadline=None)
@given(st.lists(st.sampled_from(["go to desk 1", "look", "take mug 1 from desk 1", "x" * 200])))
def test_however_long_the_report_is_short(commands: list[str]) -> None:
    assert len(summarise_episode(EnvTrajectory("", _moves(*commands), False))) <= 540
