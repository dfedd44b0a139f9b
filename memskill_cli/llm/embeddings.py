"""Texts to vectors by a provider's embedding model, with the keys, the retries and the ledger of the gateway."""

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
from memskill_cli.llm.keys import Deployment, KeyRing, Purpose
from memskill_cli.llm.ledger import Ledger

if TYPE_CHECKING:
    from memskill_cli.llm.billing import MeteredRouter

_BATCH = 64
_COMMANDS = 4
_ROUTERS: dict[Hashable, MeteredRouter] = {}  # of the last few commands of this process (there is one, but in tests)


def embed_texts(
    model: str,
    texts: Sequence[str],
    *,
    keys: KeyRing,
    api_base: str,
    ledger: Ledger,
    notice: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> NDArray[np.float32]:
    """The vectors of ``texts`` as the model gives them, shape (N, D), in the order of the texts.

    Waits for the server; may be called in a thread with or without an event loop. Empty texts are sent as a blank,
    since providers refuse them. Raises what :meth:`Gateway.ask` raises.
    """
    if not texts:
        return np.zeros((0, 0), np.float32)
    work = _embed(model, list(texts), keys, api_base, ledger, notice)
    return np.asarray(asyncio.run_coroutine_threadsafe(work, _background()).result(), np.float32)


def served_by(model: str, keys: KeyRing, api_base: str) -> str:
    """Which models at which servers answer for ``model``. Raises what :meth:`KeyRing.deployments` raises."""
    return ",".join(sorted({f"{d.model}@{d.api_base}" for d in keys.deployments("embedding", model, api_base)}))


@functools.cache
def _background() -> asyncio.AbstractEventLoop:
    """The one loop of all encoding. litellm keeps connections for each loop: a new loop a call would leak them."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="embeddings", daemon=True).start()
    return loop


async def _embed(
    model: str, texts: list[str], keys: KeyRing, api_base: str, ledger: Ledger, notice: Callable[[str], None]
) -> list[list[float]]:
    router = _router(model, keys, api_base, ledger, notice)

    async def batch(some: list[str]) -> list[list[float]]:
        call, reply = await router.call("aembedding", "embedding", sum(map(len, some)), input=some)
        ledger.record(call)
        return [row["embedding"] for row in sorted(reply.data, key=lambda row: row["index"])]

    batches = [[text or " " for text in texts[at : at + _BATCH]] for at in range(0, len(texts), _BATCH)]
    tasks = [asyncio.create_task(batch(some)) for some in batches]
    try:
        return [row for rows in await asyncio.gather(*tasks) for row in rows]
    finally:
        for task in tasks:
            task.cancel()


def _router(model: str, keys: KeyRing, api_base: str, ledger: Ledger, notice: Callable[[str], None]) -> MeteredRouter:
    """One router for all batches of a command: it knows which keys rest, and that a silent server did reply before."""
    from memskill_cli.llm.billing import MeteredRouter

    name = (model, keys, api_base, ledger, notice)
    if name not in _ROUTERS:
        while len(_ROUTERS) >= _COMMANDS:
            _ROUTERS.pop(next(iter(_ROUTERS))).close()
        groups: dict[Purpose, list[Deployment]] = {"embedding": keys.deployments("embedding", model, api_base)}
        _ROUTERS[name] = MeteredRouter(groups, ModelsConfig(), LimitsConfig(), keys=keys, ledger=ledger, notice=notice)
    return _ROUTERS[name]
