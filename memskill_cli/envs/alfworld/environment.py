"""ALFWorld as an environment: the file of a game, and the packages that play it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from memskill_cli.envs.alfworld.game_files import GAME_FILE
from memskill_cli.envs.environment import Environment
from memskill_cli.errors import DataError

if TYPE_CHECKING:
    from memskill_cli.envs.environment import Engine


class AlfworldEnvironment(Environment):
    """ALFWorld's games, played with TextWorld."""

    task_file = GAME_FILE
    install = 'pip install "memskill[alfworld]"   (builds from source: needs a compiler and cmake, about two minutes)'

    def check(self) -> None:
        if missing := [name for name in ("alfworld", "textworld") if importlib.util.find_spec(name) is None]:
            raise DataError(f"not installed, but needed for ALFWorld: {', '.join(missing)}", hint=self.install)

    def engine(self) -> Engine:
        from memskill_cli.envs.alfworld.textworld_env import TextWorldEnv

        return TextWorldEnv()
