"""Play a text game: at each step the answer model chooses one admissible command.

Memories are retrieved once per task. Each prompt has the memories, the goal, the history so far, the inventory and the
admissible commands (section 2 of docs/method.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memskill_cli.agent.prompts import Message, messages, numbered
from memskill_cli.agent.reply_blocks import MAX_REPLY_CHARS
from memskill_cli.config import EnvConfig
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.client import LLMClient, Reply, Sampling
from memskill_cli.llm.grammars import command_grammar
from memskill_cli.types import EnvStep, EnvTrajectory, Retrieved

if TYPE_CHECKING:
    from memskill_cli.envs.env_pool import EnvPool, Observation, TextEnv

LOOK = "look"
"""Command that is played, and counted as invalid, if the reply is not an admissible command."""
MAX_CHARS = 60_000
"""Most characters of a prompt, about 15,000 tokens; less if the model's context window is smaller."""
CHARS_PER_TOKEN = 2.5
"""Lower bound of characters per token for game text, which has many numbers."""
_MAX_SUMMARY = 500  # characters of an episode's summary
_HISTORY_OMITTED = "(what happened is left out: there is no room)"
_WRAPPING = " \t\"'`*_.!>-•"
_LABEL = re.compile(r"\A(?:the )?(?:next )?(?:action|command)\s*:\s*", re.IGNORECASE)


@dataclass(frozen=True)
class EnvRunner:
    """What playing tasks needs: environments, settings, and the most characters of a prompt."""

    pool: EnvPool
    config: EnvConfig
    max_chars: int = MAX_CHARS


def chars_that_fit(window: int | None, reply: int) -> int:
    """Most characters of a prompt if the context ``window`` (tokens; None: unknown) also holds ``reply`` tokens."""
    return MAX_CHARS if window is None else min(MAX_CHARS, max(0, int((window - reply) * CHARS_PER_TOKEN)))


async def play_episode(
    llm: LLMClient,
    game: TextEnv,
    goal: str,
    retrieved: Sequence[Retrieved],
    config: EnvConfig,
    *,
    max_chars: int = MAX_CHARS,
) -> EnvTrajectory:
    """Play ``game`` to its end or for ``config.steps`` commands.

    Raises ModelError if a model call fails after its retries, GameError if the environment fails.
    """
    opening, steps = game.observation.text, list[EnvStep]()
    while len(steps) < config.steps and not game.observation.done:
        prompt = command_messages(
            goal, opening, retrieved, steps, game.observation, max_chars, inventory=config.inventory
        )
        command = await _command(llm, prompt, game.observation.commands, config)
        observation = await game.play(command or LOOK)
        steps.append(EnvStep(command or LOOK, observation.text, command is not None))
    return EnvTrajectory(opening, tuple(steps), game.observation.won)


async def _command(llm: LLMClient, prompt: list[Message], commands: Sequence[str], config: EnvConfig) -> str | None:
    """The model's command; None if the reply is not an admissible command, or ends inside its reasoning."""
    sampling = Sampling(config.temperature, config.top_p)
    try:
        reply: Reply[str] = await llm.ask("answer", prompt, grammar=command_grammar(commands), sampling=sampling)
    except UnreadableReplyError:
        return None
    return parse_command(reply.text, commands)


def parse_command(reply: str, commands: Sequence[str]) -> str | None:
    """The admissible command in a reply; None if there is none.

    Ignores case, quotes and extra whitespace. The first match counts: the whole reply; the last line that is a
    command, with or without ``Action:``; the longest command of several words that occurs in the reply as whole words
    (the last one of equal length). ``look`` or ``inventory`` inside prose is not taken as a command.
    """
    known = {_normalise(command): command for command in commands}
    reply = reply[:MAX_REPLY_CHARS]
    for line in (reply, *reversed(reply.splitlines())):
        if command := known.get(_normalise(line)):
            return command
    text = " ".join(reply.lower().split())
    found = [
        (len(command), match.start(), command)
        for command in known
        if " " in command
        for match in re.finditer(rf"(?<!\w){re.escape(command)}(?!\w)", text)
    ]
    return known[max(found)[2]] if found else None


def _normalise(line: str) -> str:
    """``line`` in lower case, without label, quotes, markup and extra whitespace."""
    bare = line.strip().strip(_WRAPPING)
    return " ".join(_LABEL.sub("", bare).strip(_WRAPPING).lower().split())


def command_messages(
    goal: str,
    opening: str,
    retrieved: Sequence[Retrieved],
    steps: Sequence[EnvStep],
    observation: Observation,
    max_chars: int,
    *,
    inventory: bool = True,
) -> list[Message]:
    """The prompt; constant parts come first, for prefix caching.

    Memories get at most half of ``max_chars``; the history gets what the other parts leave.
    """
    carried = observation.inventory if inventory else ""
    memories = _memories([found.item.text for found in retrieved], max_chars // 2)
    commands = "\n".join(observation.commands)
    room = max_chars - len(memories) - len(commands) - len(goal) - len(carried)
    history = next((text for text in _histories(opening, steps) if len(text) <= room), _HISTORY_OMITTED)
    return messages("act", memories=memories, goal=goal, history=history, inventory=carried, commands=commands)


def _memories(texts: Sequence[str], room: int) -> str:
    """As many memories as fit, nearest first; the nearest is truncated if it does not fit."""
    for count in range(len(texts), 1, -1):
        if len(shown := numbered(texts[:count])) <= room:
            break
    else:
        count, shown = 1, numbered(texts[:1])[:room]
    left = len(texts) - count
    return f"{shown}\n({left} more are left out: there is no room)" if left > 0 else shown


def _histories(opening: str, steps: Sequence[EnvStep]) -> Iterator[str]:
    """The history in ever shorter forms: without the oldest observations, then without the oldest commands."""
    for dropped in range(len(steps) + 1):
        lines = [f"> {step.command}" + ("" if i < dropped else f"\n{step.observation}") for i, step in enumerate(steps)]
        left_out = f"(what came of the first {dropped} commands is left out: there is no room)\n" if dropped else ""
        yield f"{opening}\n{left_out}" + "\n".join(lines)
    for dropped in range(1, len(steps)):
        lines = [f"> {step.command}" for step in steps[dropped:]]
        yield f"{opening}\n(the first {dropped} commands, and what came of all, are left out)\n" + "\n".join(lines)


def summarise_episode(trajectory: EnvTrajectory) -> str:
    """A summary for reports and for the designer: the outcome, the last commands and the last observation.

    At most about 500 characters; repetitions of a command are counted, not repeated.
    """
    outcome = "reached the goal" if trajectory.won else "did not reach the goal"
    invalid = f", {trajectory.invalid} of them no valid command" if trajectory.invalid else ""
    head = f"{outcome} in {len(trajectory.steps)} commands{invalid}."
    if not trajectory.steps:
        return head
    ending = " ".join(trajectory.steps[-1].observation.split())[:120]
    room = _MAX_SUMMARY - len(head) - len(ending)
    shown: list[str] = []
    for step in reversed(_runs(trajectory.steps)):
        room -= len(step) + 2
        if room < 0:
            shown.append("…")
            break
        shown.append(step)
    return f"{head} Commands: {'; '.join(reversed(shown))}. At the end: {ending}"


def _runs(steps: Sequence[EnvStep]) -> list[str]:
    """The commands in order, with equal consecutive commands merged: ``look (×3)``."""
    runs: list[tuple[str, int]] = []
    for step in steps:
        command = step.command if step.valid else "(no command)"
        if runs and runs[-1][0] == command:
            runs[-1] = (command, runs[-1][1] + 1)
        else:
            runs.append((command, 1))
    return [command if count == 1 else f"{command} (×{count})" for command, count in runs]
