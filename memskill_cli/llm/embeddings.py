"""Embeddings from a provider's model, with the keys, retries and ledger of the LLM client."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memskill_cli.config import LimitsConfig, ModelsConfig
from memskill_cli.llm.keys import CallRole, Deployment, KeyRing
from memskill_cli.llm.ledger import Ledger
from memskill_cli.utils import process

if TYPE_CHECKING:
    from memskill_cli.llm.billing import BilledRouter

_BATCH = 64
_MAX_ROUTERS = 4
_ROUTERS: dict[Hashable, BilledRouter] = {}  # of the last commands of this process (more than one only in tests)


def embed_texts(
    model: str,
    texts: Sequence[str],
    *,
    keys: KeyRing,
    api_base: str,
    ledger: Ledger,
    notice: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> NDArray[np.float32]:
    """Embed ``texts``: shape (N, D), in the order of the texts, not normalized.

    Blocks until the server answers. The calling thread may have an event loop or not. Empty texts are sent as one
    space, since providers reject empty ones. Raises what :meth:`LLMClient.ask` raises.
    """
    if not texts:
        return np.zeros((0, 0), np.float32)
    work = _embed(model, list(texts), keys, api_base, ledger, notice)
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
        _ROUTERS.popitem()[1].close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    _background.cache_clear()


async def _embed(
    model: str, texts: list[str], keys: KeyRing, api_base: str, ledger: Ledger, notice: Callable[[str], None]
) -> list[list[float]]:
    router = _router(model, keys, api_base, ledger, notice)

    async def embed_batch(some: list[str]) -> list[list[float]]:
        call, reply = await router.call("aembedding", "embedding", sum(map(len, some)), input=some)
        ledger.record(call)
        return [row["embedding"] for row in sorted(reply.data, key=lambda row: row["index"])]

    batches = [[text or " " for text in texts[start : start + _BATCH]] for start in range(0, len(texts), _BATCH)]
    tasks = [asyncio.create_task(embed_batch(some)) for some in batches]
    try:
        return [row for rows in await asyncio.gather(*tasks) for row in rows]
    finally:
        for task in tasks:
            task.cancel()


def _router(model: str, keys: KeyRing, api_base: str, ledger: Ledger, notice: Callable[[str], None]) -> BilledRouter:
    """One router for all batches of a command: it keeps the cooldowns of keys and the last reply of each server."""
    from memskill_cli.llm.billing import BilledRouter

    name = (model, keys, api_base, ledger, notice)
    if name not in _ROUTERS:
        while len(_ROUTERS) >= _MAX_ROUTERS:
            _ROUTERS.pop(next(iter(_ROUTERS))).close()
        groups: dict[CallRole, list[Deployment]] = {"embedding": keys.deployments("embedding", model, api_base)}
        _ROUTERS[name] = BilledRouter(groups, ModelsConfig(), LimitsConfig(), keys=keys, ledger=ledger, notice=notice)
    return _ROUTERS[name]
