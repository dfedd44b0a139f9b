"""What a command that talks to models needs, opened together and closed together."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import platformdirs

from memskill_cli.config import EMBEDDED, Config
from memskill_cli.llm.cache import ResponseCache
from memskill_cli.llm.embeddings import embed_texts
from memskill_cli.llm.gateway import Gateway
from memskill_cli.llm.keys import KeyRing
from memskill_cli.llm.ledger import Ledger
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.memory.spaces import Spaces
from memskill_cli.records import ROLES
from memskill_cli.training.rollout import World


@dataclass(frozen=True)
class Access:
    """How models are reached on this machine: keys and caches. No setting of a run; never written to one."""

    api_keys: Sequence[str] = ()
    keys_file: Path | None = None
    cache_dir: Path | None = None

    @property
    def cache(self) -> Path:
        """Replies, embeddings and model files; shared by all runs."""
        chosen = self.cache_dir or os.environ.get("MEMSKILL_CACHE_DIR") or platformdirs.user_cache_dir("memskill")
        return Path(chosen)


@dataclass(frozen=True)
class Services:
    world: World
    ledger: Ledger


@asynccontextmanager
async def services(
    settings: Config, access: Access, usage_file: Path, scope: str, notice: Callable[[str], None]
) -> AsyncIterator[Services]:
    """Gateway, encoders and ledger of one command; ``scope`` ("train", or an evaluation's id) has one budget."""
    if EMBEDDED in (getattr(settings.models, role) for role in ROLES):
        notice(
            "using the embedded model, a small one for demonstrations (Qwen2.5-Coder-1.5B); "
            "choose another with --model, for example: --model openai/gpt-4o-mini"
        )
    keys = KeyRing.collect(access.api_keys, access.keys_file)
    ledger = Ledger(usage_file, scope=scope, max_cost=settings.limits.max_cost)
    cache = ResponseCache(access.cache)
    embed = partial(embed_texts, keys=keys, api_base=settings.models.api_base, ledger=ledger)
    load = partial(load_encoder, cache_dir=access.cache, device=settings.encoders.device, embed=embed, notice=notice)
    state = load(settings.encoders.state)
    same = settings.encoders.retrieval == settings.encoders.state
    spaces = Spaces(state, state if same else load(settings.encoders.retrieval))
    gateway = Gateway(settings.models, settings.limits, keys=keys, ledger=ledger, cache=cache, notice=notice)
    try:
        yield Services(World(gateway, spaces, settings.memory, settings.reward, settings.dataset), ledger)
    finally:
        await gateway.aclose()
        cache.close()
