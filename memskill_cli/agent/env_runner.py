"""Acting in a text game: one admissible command a step, chosen by the answering model with the memories it was given.

Memory is asked once a task; the model sees it beside the goal, the history so far, what it carries and the commands
that are possible (section 2 of the method).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memskill_cli.agent.prompts import Message, messages, numbered
from memskill_cli.agent.reply_blocks import MAX_SAID
from memskill_cli.config import AlfworldConfig
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.client import Gateway, Reply, Sampling
from memskill_cli.llm.grammars import command_grammar
from memskill_cli.types import Move, Playthrough, Retrieved

if TYPE_CHECKING:
    from memskill_cli.envs.env_pool import Game, GamePool, Scene

LOOK = "look"
"""Played, and counted as invalid, where a reply was no admissible command."""
MAX_CHARS = 60_000
"""Characters of a prompt at most, about 15,000 tokens; fewer if the model's window holds fewer."""
CHARS_PER_TOKEN = 2.5
"""Of a game's text, with its many numbers, at least so many go into a token of the window."""
_REPORT = 500  # characters of a playthrough told in words
_FORGOTTEN = "(what happened is left out: there is no room)"
_WRAPPING = " \t\"'`*_.!>-•"
_LABEL = re.compile(r"\A(?:the )?(?:next )?(?:action|command)\s*:\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Playground:
    """Where tasks are played, and how."""

    games: GamePool
    acting: AlfworldConfig
    max_chars: int = MAX_CHARS


def chars_that_fit(window: int | None, reply: int) -> int:
    """Characters of a prompt for a model whose ``window`` (None: unknown) has room for ``reply`` tokens besides."""
    return MAX_CHARS if window is None else min(MAX_CHARS, max(0, int((window - reply) * CHARS_PER_TOKEN)))


async def act(
    gateway: Gateway,
    game: Game,
    goal: str,
    retrieved: Sequence[Retrieved],
    acting: AlfworldConfig,
    *,
    max_chars: int = MAX_CHARS,
) -> Playthrough:
    """Play ``game`` to its end or for ``acting.steps`` commands.

    Raises ModelError when a call fails for good, GameError when the environment does.
    """
    opening, moves = game.scene.observation, list[Move]()
    while len(moves) < acting.steps and not game.scene.done:
        prompt = act_messages(goal, opening, retrieved, moves, game.scene, max_chars, inventory=acting.inventory)
        command = await _command(gateway, prompt, game.scene.commands, acting)
        scene = await game.play(command or LOOK)
        moves.append(Move(command or LOOK, scene.observation, command is not None))
    return Playthrough(opening, tuple(moves), game.scene.won)


async def _command(
    gateway: Gateway, prompt: list[Message], commands: Sequence[str], acting: AlfworldConfig
) -> str | None:
    """The command that the model chose; None for a reply that is none, or that ends inside its reasoning."""
    sampling = Sampling(acting.temperature, acting.top_p)
    try:
        reply: Reply[str] = await gateway.ask("answer", prompt, grammar=command_grammar(commands), sampling=sampling)
    except UnreadableReplyError:
        return None
    return understand(reply.text, commands)


def understand(reply: str, commands: Sequence[str]) -> str | None:
    """The admissible command that a reply means, None if it means none.

    In this order, ignoring case, quotes and surplus blanks: the reply is a command; its last line that is one, perhaps
    after ``Action:``; the longest command that occurs in it as whole words and is of more than one word (of several
    equally long the last). ``look`` or ``inventory`` in the middle of prose is no command.
    """
    known = {_plain(command): command for command in commands}
    said = reply[:MAX_SAID]
    for line in (said, *reversed(said.splitlines())):
        if command := known.get(_plain(line)):
            return command
    text = " ".join(said.lower().split())
    found = [
        (len(command), place.start(), command)
        for command in known
        if " " in command
        for place in re.finditer(rf"(?<!\w){re.escape(command)}(?!\w)", text)
    ]
    return known[max(found)[2]] if found else None


def _plain(line: str) -> str:
    """``line`` without what models wrap a command in."""
    bare = line.strip().strip(_WRAPPING)
    return " ".join(_LABEL.sub("", bare).strip(_WRAPPING).lower().split())


def act_messages(
    goal: str,
    opening: str,
    retrieved: Sequence[Retrieved],
    moves: Sequence[Move],
    scene: Scene,
    max_chars: int,
    *,
    inventory: bool = True,
) -> list[Message]:
    """The prompt, what repeats before what changes. Of ``max_chars`` memories get half, the rest bounds the history."""
    carried = scene.inventory if inventory else ""
    memories = _memories([found.item.text for found in retrieved], max_chars // 2)
    commands = "\n".join(scene.commands)
    room = max_chars - len(memories) - len(commands) - len(goal) - len(carried)
    history = next((text for text in _histories(opening, moves) if len(text) <= room), _FORGOTTEN)
    return messages("act", memories=memories, goal=goal, history=history, inventory=carried, commands=commands)


def _memories(texts: Sequence[str], room: int) -> str:
    """As many memories as fit, nearest first; the nearest is cut if not even that fits."""
    for count in range(len(texts), 1, -1):
        if len(shown := numbered(texts[:count])) <= room:
            break
    else:
        count, shown = 1, numbered(texts[:1])[:room]
    left = len(texts) - count
    return f"{shown}\n({left} more are left out: there is no room)" if left > 0 else shown


def _histories(opening: str, moves: Sequence[Move]) -> Iterator[str]:
    """What happened, told ever shorter: without the oldest observations, then without the oldest commands."""
    for dropped in range(len(moves) + 1):
        told = [f"> {move.command}" + ("" if i < dropped else f"\n{move.observation}") for i, move in enumerate(moves)]
        left_out = f"(what came of the first {dropped} commands is left out: there is no room)\n" if dropped else ""
        yield f"{opening}\n{left_out}" + "\n".join(told)
    for dropped in range(1, len(moves)):
        told = [f"> {move.command}" for move in moves[dropped:]]
        yield f"{opening}\n(the first {dropped} commands, and what came of all, are left out)\n" + "\n".join(told)


def report(played: Playthrough) -> str:
    """How it went, for people and for the designer: the outcome, then the last commands and what the last one led to.

    At most about 500 characters; runs of one command are told once.
    """
    outcome = "reached the goal" if played.won else "did not reach the goal"
    invalid = f", {played.invalid} of them no valid command" if played.invalid else ""
    head = f"{outcome} in {len(played.moves)} commands{invalid}."
    if not played.moves:
        return head
    ending = " ".join(played.moves[-1].observation.split())[:120]
    room = _REPORT - len(head) - len(ending)
    told: list[str] = []
    for step in reversed(_runs(played.moves)):
        room -= len(step) + 2
        if room < 0:
            told.append("…")
            break
        told.append(step)
    return f"{head} Commands: {'; '.join(reversed(told))}. At the end: {ending}"


def _runs(moves: Sequence[Move]) -> list[str]:
    runs: list[tuple[str, int]] = []
    for move in moves:
        command = move.command if move.valid else "(no command)"
        if runs and runs[-1][0] == command:
            runs[-1] = (command, runs[-1][1] + 1)
        else:
            runs.append((command, 1))
    return [command if count == 1 else f"{command} (×{count})" for command, count in runs]
