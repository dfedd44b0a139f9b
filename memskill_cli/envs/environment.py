"""Text environments by name, an extension point (docs/extending.md).

An :class:`Environment` exists in every process and has no state. Its :class:`Engine` is created only in a worker
process, so its libraries and native code have no access to API keys and memories.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple, Protocol

from memskill_cli.utils.registry import Registry

DEFAULT = "alfworld"


class Observation(NamedTuple):
    """The state of a game after a command, or at the start."""

    text: str
    commands: tuple[str, ...]
    """Every admissible command, sorted."""
    inventory: str
    won: bool
    done: bool


class Engine(Protocol):
    """Plays one task at a time, in its own process. An exception ends only the current task."""

    def start(self, task: Path) -> Observation:
        """Start the task in the file ``task``, and end the previous one."""
        ...

    def play(self, command: str) -> Observation:
        """Play ``command``. An inadmissible command changes nothing."""
        ...


class Environment(ABC):
    """One kind of tasks."""

    task_file: str = ""
    """Name of the file in a task's folder that the engine gets; "" if a task's id is the path of that file itself."""
    install: str = ""
    """The command that installs missing packages."""

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Raise DataError, with the package to install, if tasks cannot be played on this machine. Must be fast."""

    @abstractmethod
    def engine(self) -> Engine:
        """A new engine. Called only in a worker process; do heavy imports here."""


ENVIRONMENTS: Registry[Environment | type[Environment]] = Registry(
    "environment",
    "memskill.environments",
    {DEFAULT: "memskill_cli.envs.alfworld.environment:AlfworldEnvironment"},
)
register_environment = ENVIRONMENTS.named
"""``@register_environment("name")`` on an :class:`Environment` registers it for ``Dataset.environment = "name"``."""


def environment(name: str) -> Environment:
    """The environment called ``name``. Raises UsageError, with the nearest name, if there is none."""
    part = ENVIRONMENTS.get(name)
    return part() if isinstance(part, type) else part
