"""How an expert plays a game, taken down as the game told it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from memskill_cli.envs.env_pool import GamePool, PooledGame
from memskill_cli.errors import GameError

PLAN_SECONDS = 300.0
"""How long the planner may search: seconds for most games, minutes for some with two objects."""


class Trajectory(NamedTuple):
    """A game played to success. ``moves`` are (command, what the game said)."""

    opening: str
    moves: tuple[tuple[str, str], ...]


async def expert(pool: GamePool, game_id: str) -> Trajectory:
    """``game_id`` played to success: by the walkthrough stored with it, or by the planner where none wins.

    GameError if neither does, or if the game dies, hangs or is broken.
    """
    async with pool.game(game_id) as game:
        stored = await game.walkthrough()
        if found := await _replay(game, stored):
            return found
    async with pool.game(game_id) as game:
        if found := await _replay(game, await game.plan(PLAN_SECONDS)):
            return found
    what = "its walkthrough does not win, and the planner finds no way" if stored else "the planner finds no way to win"
    raise GameError(f"{game_id}: {what}", kind="broken")


async def _replay(game: PooledGame, commands: Sequence[str]) -> Trajectory | None:
    """What happened up to the command that won; None if none of them did."""
    opening = game.scene.observation
    moves = []
    for command in commands:
        scene = await game.play(command)
        moves.append((command, scene.observation))
        if scene.won:
            return Trajectory(opening, tuple(moves))
    return None
