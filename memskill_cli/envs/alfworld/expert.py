"""Record the trajectory of an expert in a game."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from memskill_cli.envs.env_pool import EnvPool, PooledEnv
from memskill_cli.errors import GameError

PLAN_SECONDS = 300.0
"""Time limit of the planner: it needs seconds for most games, minutes for some with two objects."""


class Trajectory(NamedTuple):
    """A game that was won. ``moves`` are (command, observation) pairs."""

    opening: str
    moves: tuple[tuple[str, str], ...]


async def play_expert(pool: EnvPool, game_id: str) -> Trajectory:
    """Win ``game_id`` with its stored walkthrough, or with the planner if the walkthrough does not win.

    Raises GameError if neither wins, or if the game dies, hangs or is broken.
    """
    async with pool.open_task(game_id) as game:
        stored = await game.walkthrough()
        if found := await _replay(game, stored):
            return found
    async with pool.open_task(game_id) as game:
        if found := await _replay(game, await game.plan(PLAN_SECONDS)):
            return found
    no_plan = "the planner finds no solution"
    reason = f"its walkthrough does not win, and {no_plan}" if stored else no_plan
    raise GameError(f"{game_id}: {reason}", kind="broken")


async def _replay(game: PooledEnv, commands: Sequence[str]) -> Trajectory | None:
    """Play ``commands`` until one wins; None if none does."""
    opening = game.observation.text
    moves = []
    for command in commands:
        observation = await game.play(command)
        moves.append((command, observation.text))
        if observation.won:
            return Trajectory(opening, tuple(moves))
    return None
