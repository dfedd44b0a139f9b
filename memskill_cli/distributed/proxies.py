"""Proxies for jobs in a worker: LLM client, encoders and callbacks that call the driver (``rpc``)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from memskill_cli.agent.env_runner import EnvRunner
from memskill_cli.config import EnvConfig, JudgePrompt, MemoryConfig, RewardConfig
from memskill_cli.datasets.registry import is_own
from memskill_cli.distributed.rpc import DriverClient
from memskill_cli.envs.environment import DEFAULT
from memskill_cli.llm.client import LLMClient, Reply
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.encoders import CachedEncoder
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.types import ROLES, EncoderSide, Matrix, Role
from memskill_cli.utils.registry import Plugin, loaded_plugins


class EnvPoolConfig(NamedTuple):
    """Arguments for an :class:`~memskill_cli.agent.env_runner.EnvRunner` and its pool."""

    root: Path
    workers: int
    config: EnvConfig
    max_chars: int
    environment: str = DEFAULT


@dataclasses.dataclass(frozen=True)
class WorkerConfig:
    """What a worker needs to build a :class:`RolloutContext` of proxies. It has no API keys."""

    memory: MemoryConfig
    reward: RewardConfig
    dataset: str
    windows: Mapping[Role, int | None]
    one_space: bool
    """Whether state and retrieval use one embedding space."""
    dims: Mapping[str, int]
    """Dimensions of the embedding spaces by name, with ``skills`` if they have their own encoder."""
    judge_prompt: JudgePrompt
    env_pool: EnvPoolConfig | None
    plugins: tuple[Plugin, ...] = ()
    """Plug-in files of the driver; a worker must have them at the same paths."""
    own_dataset: bool = False
    """Whether ``dataset`` is a name that a user gave to conversations of their own."""

    @classmethod
    def of(cls, context: RolloutContext, games: EnvPoolConfig | None) -> WorkerConfig:
        windows = {role: context.llm.window(role) for role in ROLES}
        one_space = context.encoders.state is context.encoders.retrieval
        dims = {name: encoder.dim for name, encoder in context.encoders._asdict().items() if encoder is not None}
        rest = context.judge_prompt, games, loaded_plugins(), is_own(context.dataset)
        return cls(context.memory, context.reward, context.dataset, windows, one_space, dims, *rest)

    def context(self, driver: DriverClient) -> RolloutContext:
        """A rollout context whose LLM client and encoders call ``driver``."""
        proxies = {name: cast(CachedEncoder, EncoderProxy(driver, name, dim)) for name, dim in self.dims.items()}
        if self.one_space:
            proxies["retrieval"] = proxies["state"]
        encoders = EncoderPair(**proxies)
        llm = cast(LLMClient, LLMClientProxy(driver, self.windows))
        env_runner = self._env_runner(driver)
        return RolloutContext(llm, encoders, self.memory, self.reward, self.dataset, env_runner, self.judge_prompt)

    def _env_runner(self, driver: DriverClient) -> EnvRunner | None:
        if self.env_pool is None:
            return None
        from memskill_cli.envs.env_pool import EnvPool

        at = self.env_pool
        deadline, notice = at.config.step_timeout, partial(driver.notify, "notice")
        return EnvRunner(
            EnvPool(at.root, workers=at.workers, deadline=deadline, notice=notice, name=at.environment),
            at.config,
            at.max_chars,
        )


def driver_functions(context: RolloutContext, notice: Callable[[str], None]) -> dict[str, Callable[..., Any]]:
    """The driver's functions that the proxies of ``context`` call, by name."""
    functions: dict[str, Callable[..., Any]] = {"ask": context.llm.ask, "notice": notice}
    for name, encoder in context.encoders._asdict().items():
        if encoder is not None:
            functions |= {f"{name}.aencode": encoder.aencode, f"{name}.prefetch": encoder.prefetch}
    return functions


class LLMClientProxy:
    """The methods of :class:`~memskill_cli.llm.client.LLMClient` that jobs use. The driver makes the calls."""

    def __init__(self, driver: DriverClient, windows: Mapping[Role, int | None]) -> None:
        self._driver, self._windows = driver, windows

    async def ask(self, role: Role, messages: Any, **options: Any) -> Reply[Any]:
        return cast(Reply[Any], await self._driver.call("ask", role, messages, **options))

    def window(self, role: Role) -> int | None:
        return self._windows[role]


class EncoderProxy:
    """The methods of :class:`~memskill_cli.memory.encoders.CachedEncoder` that jobs use. The driver has the cache."""

    def __init__(self, driver: DriverClient, space: str, dim: int) -> None:
        self._driver, self._space, self.dim = driver, space, dim

    async def aencode(self, texts: Sequence[str], side: EncoderSide = "context") -> Matrix:
        return cast(Matrix, await self._driver.call(f"{self._space}.aencode", list(texts), side))

    def prefetch(self, texts: Sequence[str], side: EncoderSide = "context", after: int = 0) -> None:
        self._driver.notify(f"{self._space}.prefetch", list(texts), side, after)

    def encode(self, texts: Sequence[str], side: EncoderSide = "context") -> Matrix:
        """Blocking; must not be called in the event loop's thread."""
        return cast(Matrix, self._driver.call_from_thread(f"{self._space}.aencode", list(texts), side))


# --- callbacks ----------------------------------------------------------------------------------------------------


class CallbackSpec(NamedTuple):
    """Description of a callbacks dataclass: its class, and for each function whether it is awaited."""

    kind: type
    awaited: Mapping[str, bool]

    @classmethod
    def of(cls, callbacks: Any) -> CallbackSpec:
        names = [field.name for field in dataclasses.fields(callbacks)]
        return cls(type(callbacks), {name: inspect.iscoroutinefunction(getattr(callbacks, name)) for name in names})

    def proxy(self, driver: DriverClient, pool: str) -> Any:
        """An instance whose functions call those of ``pool`` in the driver."""

        def remote(name: str, awaited: bool) -> Callable[..., Any]:
            return partial(driver.call if awaited else driver.notify, f"{pool}.{name}")

        return self.kind(**{name: remote(name, awaited) for name, awaited in self.awaited.items()})


def callback_functions(callbacks: Any, pool: str) -> dict[str, Callable[..., Any]]:
    """The driver's functions that the proxy of ``callbacks`` calls, by name."""
    return {f"{pool}.{field.name}": getattr(callbacks, field.name) for field in dataclasses.fields(callbacks)}
