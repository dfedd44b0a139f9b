"""Embeddings from a provider's model, with the keys, retries and ledger of the LLM client."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memskill_cli.config import LimitsConfig, ModelsConfig
from memskill_cli.llm.embedding_batches import BatchSizes
from memskill_cli.llm.keys import CallRole, Deployment, KeyRing
from memskill_cli.llm.ledger import Ledger
from memskill_cli.llm.reply_shapes import ordered_rows
from memskill_cli.utils import process

if TYPE_CHECKING:
    from memskill_cli.llm.billing import BilledRouter

_DEFAULTS = ModelsConfig()
_MAX_ROUTERS = 4
_ROUTERS: dict[
    Hashable, tuple[BilledRouter, BatchSizes]
] = {}  # of the last commands of this process (more than one only in tests)


def embed_texts(
    model: str,
    texts: Sequence[str],
    *,
    keys: KeyRing,
    api_base: str,
    ledger: Ledger,
    notice: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    settings: ModelsConfig = _DEFAULTS,
    concurrency: int = LimitsConfig.concurrency,
) -> NDArray[np.float32]:
    """Embed ``texts``: shape (N, D), in the order of the texts, not normalized.

    Blocks until the server answers. The calling thread may have an event loop or not. Empty texts are sent as one
    space, since providers reject empty ones. If the server takes fewer texts in a request, or shorter ones, requests
    are divided and texts are cut (:mod:`.embedding_batches`). ``settings`` has the parameters of the role
    ``embedding``, prices, the timeout and the number of retries; ``concurrency`` is the maximum number of requests in
    flight. Raises what :meth:`LLMClient.ask` raises.
    """
    if not texts:
        return np.zeros((0, 0), np.float32)
    router = _Router(model, keys, api_base, ledger, notice, settings, concurrency)
    work = _embed(router, list(texts))
    return np.asarray(asyncio.run_coroutine_threadsafe(work, _background()).result(), np.float32)


def served_by(model: str, keys: KeyRing, api_base: str) -> str:
    """The models and servers behind ``model``, as one string. Raises what :meth:`KeyRing.deployments` raises."""
    return ",".join(sorted({f"{d.model}@{d.api_base}" for d in keys.deployments("embedding", model, api_base)}))


@functools.cache
def _background() -> asyncio.AbstractEventLoop:
    """The event loop of all embedding calls. litellm keeps connections per loop: one loop per call would leak them."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_serve, args=(loop,), name="embeddings", daemon=True)
    thread.start()
    process.change("embedding loop", lambda: functools.partial(_end, loop, thread))
    return loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    from memskill_cli.llm.transport import close_connections

    loop.run_forever()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(close_connections())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Close what :func:`_background` opened."""
    while _ROUTERS:
        _ROUTERS.popitem()[1][0].close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    _background.cache_clear()


class _Router(NamedTuple):
    """What identifies the router of a command's embedding calls."""

    model: str
    keys: KeyRing
    api_base: str
    ledger: Ledger
    notice: Callable[[str], None]
    settings: ModelsConfig
    concurrency: int

    @property
    def key(self) -> Hashable:
        return (*self[:5], repr(self.settings), self.concurrency)


async def _embed(how: _Router, texts: list[str]) -> list[list[float]]:
    router, sizes = _router(how)

    async def send(some: list[str]) -> list[list[float]]:
        call, reply = await router.call("aembedding", "embedding", sum(map(len, some)), input=some)
        how.ledger.record(call)
        return [row["embedding"] for row in ordered_rows(reply.data)]

    return await sizes.embed([text or " " for text in texts], send)


def _router(how: _Router) -> tuple[BilledRouter, BatchSizes]:
    """One router for all batches of a command: it keeps the cooldowns of keys and the last reply of each server."""
    from memskill_cli.llm.billing import BilledRouter

    if how.key not in _ROUTERS:
        while len(_ROUTERS) >= _MAX_ROUTERS:
            _ROUTERS.pop(next(iter(_ROUTERS)))[0].close()
        served = how.keys.deployments("embedding", how.model, how.api_base, how.settings)
        groups: dict[CallRole, list[Deployment]] = {"embedding": served}
        limits = LimitsConfig(concurrency=how.concurrency)
        router = BilledRouter(groups, how.settings, limits, keys=how.keys, ledger=how.ledger, notice=how.notice)
        _ROUTERS[how.key] = router, BatchSizes(how.model, how.notice)
    return _ROUTERS[how.key]
