"""Open and close what a command needs to call models."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from memskill_cli.agent.env_runner import EnvRunner, chars_that_fit
from memskill_cli.config import EMBEDDED, Config
from memskill_cli.datasets.prepared import load_manifest
from memskill_cli.datasets.registry import get, is_own
from memskill_cli.distributed.base import Engine, LocalEngine
from memskill_cli.llm import load_litellm
from memskill_cli.llm.cache import ResponseCache
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.embeddings import embed_texts, served_by
from memskill_cli.llm.keys import KeyRing
from memskill_cli.llm.ledger import Ledger
from memskill_cli.memory.encoder_cache import VectorCache
from memskill_cli.memory.encoder_models import Source, check_source
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.encoder_specs import is_registered, resolve_encoder
from memskill_cli.memory.encoders import CachedEncoder, load_encoder
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.runs.run_dir import created_at
from memskill_cli.types import ROLES, Matrix
from memskill_cli.utils import devices, process, signals

if TYPE_CHECKING:
    from memskill_cli.distributed.cluster import Cluster
    from memskill_cli.distributed.proxies import EnvPoolConfig


@dataclass(frozen=True)
class ProviderAccess:
    """API keys and cache folder on this machine. They are not settings, and they are never written to a run."""

    api_keys: Sequence[str] = ()
    keys_file: Path | None = None
    cache_dir: Path | None = None

    @property
    def cache(self) -> Path:
        """The folder of cached replies, embeddings and model files, which all runs share."""
        chosen = self.cache_dir or os.environ.get("MEMSKILL_CACHE_DIR") or platformdirs.user_cache_dir("memskill")
        return Path(chosen)

    def cache_for(self, dataset: str) -> Path:
        """The folder of cached replies and embeddings for a dataset: of its own for a user's own conversations, so that
        it can be erased with them."""
        return own_cache(self.cache, dataset) if is_own(dataset) else self.cache


def own_cache(cache: Path, dataset: str) -> Path:
    """The folder below ``cache`` for conversations of one's own."""
    return cache / "own" / dataset


@dataclass(frozen=True)
class Runtime:
    """What :func:`open_runtime` opens: services for episodes, the ledger of model calls, where episodes run."""

    context: RolloutContext
    ledger: Ledger
    engine: Engine


def env_root(dataset: str, data_dir: Path, split: str) -> Path | None:
    """The folder of the environments of a prepared split; None for a dataset whose queries are questions."""
    return get(dataset).env_root(load_manifest(dataset, data_dir), split)


def check_access(settings: Config, access: ProviderAccess) -> None:
    """Raise, before a run is created, the errors that its first model call would raise.

    Checks the keys file, missing keys, the names of models and encoders, a budget for a model without a known price,
    the device, and whether Ray is installed.
    """
    from memskill_cli.llm.prices import unpriced

    load_litellm()  # also reads the file .env, which may contain keys
    keys, models = KeyRing.collect(access.api_keys, access.keys_file), settings.models
    found = [d for role in ROLES for d in keys.deployments(role, getattr(models, role), models.api_base, models)]
    for spec in _encoder_specs(settings):
        resolve_encoder(spec, settings.encoders.device, never_called)
        kind, _, model = spec.partition(":")
        if kind == "litellm":
            found += keys.deployments("embedding", model, models.api_base, models)
    unpriced(found, settings.limits.max_cost)
    if settings.controller.device == "cuda":
        devices.resolve_device("cuda", "controller.device")
    if settings.engine == "ray":
        from memskill_cli.distributed.cluster import check_installed

        check_installed()


def check_encoders(settings: Config) -> None:
    """Raise EncoderError, before a run is created, if a model of its encoders cannot be downloaded.

    An evaluation does not call this: it needs no model whose vectors are all in the cache.
    """
    for spec in _encoder_specs(settings):
        for source in resolve_encoder(spec, settings.encoders.device, never_called).sources:
            check_source(source)
    if settings.memory.reranker:
        check_source(Source(settings.memory.reranker))


def _encoder_specs(settings: Config) -> list[str]:
    encoders = settings.encoders
    return sorted({encoders.state, encoders.retrieval, encoders.skill} - {""})


def never_called(model: str, texts: Sequence[str]) -> Matrix:
    """The embedding function of encoders that are only checked or named."""
    raise AssertionError("encoders are only checked here, not used")


@asynccontextmanager
async def open_runtime(
    settings: Config,
    access: ProviderAccess,
    usage_file: Path,
    scope: str,
    notice: Callable[[str], None],
    games: Path | None = None,
) -> AsyncIterator[Runtime]:
    """LLM client, encoders, ledger and engine of one command. The budget applies to ``scope``: "train", or an
    evaluation's id.

    ``games`` is the folder of the environments, for a dataset whose queries are tasks.
    """
    if EMBEDDED in (getattr(settings.models, role) for role in ROLES):
        notice(
            "using the embedded model, a small one for demonstrations (Qwen2.5-Coder-1.5B); "
            "choose another with --model, for example: --model openai/gpt-4o-mini"
        )
    from memskill_cli.llm.local_model import register  # imports litellm
    from memskill_cli.llm.transport import close_connections

    keys = KeyRing.collect(access.api_keys, access.keys_file)
    ledger = Ledger(usage_file, scope=scope, max_cost=settings.limits.max_cost, owner=created_at(usage_file.parent))
    register(notice, access.cache / "models")
    async with AsyncExitStack() as stack:
        cluster = stack.enter_context(_cluster(settings, notice))
        cache = stack.enter_context(closing(ResponseCache(access.cache_for(settings.dataset), notice=notice)))
        encoders = load_encoders(settings, access, keys, ledger, notice, stack, cluster)
        stack.push_async_callback(close_connections)
        llm = LLMClient(settings.models, settings.limits, keys=keys, ledger=ledger, cache=cache, notice=notice)
        stack.push_async_callback(lambda: signals.finish_shielded(llm.aclose()))
        stack.enter_context(signals.on_first_signal(llm.stop_sending))
        env_runner = await stack.enter_async_context(_open_env_runner(settings, llm, games, notice)) if games else None
        judge_prompt = settings.eval.judge_prompt
        context = RolloutContext(
            llm, encoders, settings.memory, settings.reward, settings.dataset, env_runner, judge_prompt
        )
        engine = await stack.enter_async_context(_open_engine(settings, context, cluster, games, notice))
        if process.owned():  # without this, each full garbage collection scans all loaded libraries, which takes 0.3 s
            gc.freeze()
        yield Runtime(context, ledger, engine)


def _cluster(settings: Config, notice: Callable[[str], None]) -> AbstractContextManager[Cluster | None]:
    """The Ray cluster that episodes run on; None if they run in this process."""
    if settings.engine == "local":
        return nullcontext()
    from memskill_cli.distributed.cluster import connected

    return connected(settings.ray, notice)


@asynccontextmanager
async def _open_engine(
    settings: Config,
    context: RolloutContext,
    cluster: Cluster | None,
    games: Path | None,
    notice: Callable[[str], None],
) -> AsyncIterator[Engine]:
    if cluster is None:
        yield LocalEngine(context)
        return
    from memskill_cli.distributed.ray import open_engine

    games_there = _env_pool_config(settings, context, games, cluster.workers)
    async with open_engine(context, games_there, cluster.workers, notice) as engine:
        yield engine


def _env_pool_config(
    settings: Config, context: RolloutContext, root: Path | None, workers: int
) -> EnvPoolConfig | None:
    """The pool of environments in each of the ``workers``. Together they have ``env.workers`` processes."""
    from memskill_cli.distributed.proxies import EnvPoolConfig

    if root is None or context.env_runner is None:
        return None
    how, each = settings.env, -(-settings.env.workers // workers)
    return EnvPoolConfig(root.resolve(), each, how, context.env_runner.max_chars, get(settings.dataset).environment)


@asynccontextmanager
async def _open_env_runner(
    settings: Config, llm: LLMClient, games: Path, notice: Callable[[str], None]
) -> AsyncIterator[EnvRunner]:
    """Start the environment processes, and stop them at the end."""
    from memskill_cli.envs.env_pool import EnvPool

    how = settings.env
    pool = EnvPool(
        games, workers=how.workers, deadline=how.step_timeout, notice=notice, name=get(settings.dataset).environment
    )
    room = chars_that_fit(llm.window("answer"), settings.models.answer_max_tokens)
    try:
        yield EnvRunner(pool, how, room)
    finally:
        await pool.aclose()


def load_encoders(
    settings: Config,
    access: ProviderAccess,
    keys: KeyRing,
    ledger: Ledger,
    notice: Callable[[str], None],
    stack: AsyncExitStack,
    cluster: Cluster | None = None,
    cache: VectorCache | None = None,
) -> EncoderPair:
    """The encoders for states, retrieval and skills. Those with the same name are one object. ``stack`` closes them.

    Vectors are kept in ``cache``, by default in the cache folder of ``access``.
    """
    base, encoders = settings.models.api_base, settings.encoders
    embed = partial(
        embed_texts,
        keys=keys,
        api_base=base,
        ledger=ledger,
        notice=notice,
        settings=settings.models,
        concurrency=settings.limits.concurrency,
    )

    def load(spec: str) -> CachedEncoder:
        kind, _, model = spec.partition(":")
        namespace = served_by(model, keys, base) if kind == "litellm" and model else ""
        remote_loader = None
        # Encoders that need keys or plug-ins run in this process. So does hashing, which is faster than a message.
        if cluster and kind not in ("litellm", "hashing") and not is_registered(spec):
            remote_loader = cluster.encoder(spec, encoders.device)
        encoder = load_encoder(
            spec,
            cache_dir=access.cache_for(settings.dataset),
            device=encoders.device,
            embed=embed,
            cache_namespace=namespace,
            notice=notice,
            remote_loader=remote_loader,
            cache=cache,
        )
        return stack.enter_context(closing(encoder))

    state = load(encoders.state)
    retrieval = state if encoders.retrieval == encoders.state else load(encoders.retrieval)
    return EncoderPair(state, retrieval, load(encoders.skill) if encoders.skill not in ("", encoders.state) else None)
