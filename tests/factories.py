"""Builds the parts that many tests need: a client of language models, its keys and ledger, what an episode shares.

Tests build these parts only here, so a changed constructor is a change in one place (tests/test_factories.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memskill_cli.config import Config, LimitsConfig, ModelsConfig
from memskill_cli.llm.cache import ResponseCache
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.keys import KeyRing
from memskill_cli.llm.ledger import Ledger
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.encoders import CachedEncoder
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.types import ROLES

PRICES = {
    "openai/gpt-4o-mini": [0.15, 0.60],
    "openai/gpt-4o": [2.50, 10.0],
    "openai/text-embedding-3-small": [0.02, 0.0],
}
"""A model of a server of one's own has a price only if it is told."""


def ignore_notice(text: str) -> None:
    """Takes a notice that the test does not look at."""


def key_ring(keys: Sequence[str] = (), file: Path | None = None, environ: Mapping[str, str] | None = None) -> KeyRing:
    """Keys of flags and of a keys file. The environment of the tests is not looked at, unless given."""
    return KeyRing.collect(keys, file, {} if environ is None else environ)


def make_ledger(path: Path | None = None, *, scope: str = "test", max_cost: float = 0.0, owner: str = "") -> Ledger:
    """A ledger without a file and without a budget, unless given."""
    return Ledger(path, scope=scope, max_cost=max_cost, owner=owner)


def models_config(url: str, model: str = "", base: ModelsConfig | None = None, **settings: Any) -> ModelsConfig:
    """Settings of models at the server ``url``.

    Without ``base`` all roles use one model (``m`` unless given) and calls are not retried. With ``base`` the rest,
    and the models' names unless ``model`` is given, are those of ``base``.
    """
    settings.setdefault("prices", PRICES)
    name = model or ("" if base else "m")
    names = dict.fromkeys(ROLES, name) if name else {}
    return dataclasses.replace(base or ModelsConfig(retries=0), api_base=url, **{**names, **settings})


def llm_client(
    url: str,
    *,
    limits: LimitsConfig | None = None,
    keys: Sequence[str] | KeyRing = (),
    ledger: Ledger | None = None,
    cache: ResponseCache | None = None,
    notice: Callable[[str], None] = ignore_notice,
    **settings: Any,
) -> LLMClient:
    """A client of the server ``url``, for the test to close; ``settings`` are those of :func:`models_config`."""
    return LLMClient(
        models_config(url, **settings),
        limits or LimitsConfig(),
        keys=keys if isinstance(keys, KeyRing) else key_ring(keys),
        ledger=ledger or make_ledger(),
        cache=cache,
        notice=notice,
    )


def rollout_context(
    llm: Any, encoders: CachedEncoder | EncoderPair, config: Config | None = None, **fields: Any
) -> RolloutContext:
    """What the episodes of a test share, with the settings of ``config``; ``fields`` replaces single ones.

    One encoder is used for both sides. ``llm`` may be a stand-in of a client.
    """
    config = config or Config(dataset="locomo")
    pair = encoders if isinstance(encoders, EncoderPair) else EncoderPair(encoders, encoders)
    chosen = {"memory": config.memory, "reward": config.reward, "dataset": config.dataset, **fields}
    return RolloutContext(llm, pair, **chosen)
