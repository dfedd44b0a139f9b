"""What a job elsewhere sees of the command's process: things that look like the real ones, and write letters."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from memskill_cli.agent.env_runner import Playground
from memskill_cli.config import AlfworldConfig, JudgePrompt, MemoryConfig, RewardConfig
from memskill_cli.distributed.rpc import COMMAND, Correspondent
from memskill_cli.llm.client import Gateway, Reply
from memskill_cli.memory.encoder_pair import Spaces
from memskill_cli.memory.encoders import CachedEncoder
from memskill_cli.rollout.episode import World
from memskill_cli.types import ROLES, Matrix, Role, Side


class Games(NamedTuple):
    """Where tasks are played, and how: what a :class:`~memskill_cli.agent.env_runner.Playground` is made of."""

    root: Path
    workers: int
    acting: AlfworldConfig
    max_chars: int


@dataclasses.dataclass(frozen=True)
class Charter:
    """What must be known of a world to work in it from elsewhere. No key is among it."""

    memory: MemoryConfig
    reward: RewardConfig
    dataset: str
    windows: Mapping[Role, int | None]
    one_space: bool
    """Whether both embedding spaces are one."""
    dims: Mapping[str, int]
    """Widths of the embedding spaces by name; skills are among them where they have an encoder of their own."""
    judge_prompt: JudgePrompt
    games: Games | None

    @classmethod
    def of(cls, world: World, games: Games | None) -> Charter:
        windows = {role: world.gateway.window(role) for role in ROLES}
        one_space = world.spaces.state is world.spaces.retrieval
        dims = {name: encoder.dim for name, encoder in world.spaces._asdict().items() if encoder is not None}
        return cls(world.memory, world.reward, world.dataset, windows, one_space, dims, world.judge_prompt, games)

    def world(self, mail: Correspondent) -> World:
        """The world as it is seen from the other end of ``mail``."""
        line = Line(mail)
        encoders = {name: cast(CachedEncoder, RemoteEncoder(line, name, dim)) for name, dim in self.dims.items()}
        if self.one_space:
            encoders["retrieval"] = encoders["state"]
        spaces = Spaces(**encoders)
        gateway = cast(Gateway, RemoteGateway(line, self.windows))
        playground = self._playground(line)
        return World(gateway, spaces, self.memory, self.reward, self.dataset, playground, self.judge_prompt)

    def _playground(self, line: Line) -> Playground | None:
        if self.games is None:
            return None
        from memskill_cli.envs.env_pool import GamePool

        at = self.games
        deadline, notice = at.acting.deadline, partial(line.tell, "notice")
        return Playground(
            GamePool(at.root, workers=at.workers, deadline=deadline, notice=notice), at.acting, at.max_chars
        )


def functions_of(world: World, notice: Callable[[str], None]) -> dict[str, Callable[..., Any]]:
    """What the stand-ins of ``world`` ask for."""
    functions: dict[str, Callable[..., Any]] = {"ask": world.gateway.ask, "notice": notice}
    for name, encoder in world.spaces._asdict().items():
        if encoder is not None:
            functions |= {f"{name}.aencode": encoder.aencode, f"{name}.ahead": encoder.ahead}
    return functions


class Line:
    """The way to the command's process, from the event loop that it is made in."""

    def __init__(self, mail: Correspondent) -> None:
        self._mail = mail
        self._loop = asyncio.get_running_loop()

    async def call(self, what: str, *args: Any, **kwargs: Any) -> Any:
        return await self._mail.call(COMMAND, what, *args, **kwargs)

    def tell(self, what: str, *args: Any) -> None:
        self._mail.tell(COMMAND, what, *args)

    def call_from_thread(self, what: str, *args: Any) -> Any:
        """:meth:`call` for another thread than the event loop's."""
        return asyncio.run_coroutine_threadsafe(self.call(what, *args), self._loop).result()


class RemoteGateway:
    """Of :class:`~memskill_cli.llm.client.Gateway`, what a trace needs. The calls are the command's."""

    def __init__(self, line: Line, windows: Mapping[Role, int | None]) -> None:
        self._line, self._windows = line, windows

    async def ask(self, role: Role, messages: Any, **how: Any) -> Reply[Any]:
        return cast(Reply[Any], await self._line.call("ask", role, messages, **how))

    def window(self, role: Role) -> int | None:
        return self._windows[role]


class RemoteEncoder:
    """Of :class:`~memskill_cli.memory.encoders.CachedEncoder`, what a trace needs. The command has the cache."""

    def __init__(self, line: Line, space: str, dim: int) -> None:
        self._line, self._space, self.dim = line, space, dim

    async def aencode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        return cast(Matrix, await self._line.call(f"{self._space}.aencode", list(texts), side))

    def ahead(self, texts: Sequence[str], side: Side = "context", after: int = 0) -> None:
        self._line.tell(f"{self._space}.ahead", list(texts), side, after)

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        """Not in the event loop's thread."""
        return cast(Matrix, self._line.call_from_thread(f"{self._space}.aencode", list(texts), side))


# --- desks --------------------------------------------------------------------------------------------------------


class DeskPlan(NamedTuple):
    """A desk as others know it: its class, and of each of its functions whether it is waited for."""

    kind: type
    waited: Mapping[str, bool]

    @classmethod
    def of(cls, desk: Any) -> DeskPlan:
        names = [field.name for field in dataclasses.fields(desk)]
        return cls(type(desk), {name: inspect.iscoroutinefunction(getattr(desk, name)) for name in names})

    def desk(self, line: Line, crew: str) -> Any:
        """The stand-in for the desk of ``crew``."""

        def ask(name: str, waits: bool) -> Callable[..., Any]:
            return partial(line.call if waits else line.tell, f"{crew}.{name}")

        return self.kind(**{name: ask(name, waits) for name, waits in self.waited.items()})


def desk_functions(desk: Any, crew: str) -> dict[str, Callable[..., Any]]:
    """What the stand-ins of ``desk`` ask for."""
    return {f"{crew}.{field.name}": getattr(desk, field.name) for field in dataclasses.fields(desk)}
