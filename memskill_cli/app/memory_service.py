"""Opens the memory of an agent: finds its skills, settings and encoders, and connects models while spans are read."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import tomllib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memskill_cli.app.bundles import run_of
from memskill_cli.app.options import settings_of
from memskill_cli.app.runtime import ProviderAccess, load_encoders
from memskill_cli.config import EMBEDDED, Config, for_evaluation, from_dict, to_toml
from memskill_cli.datasets.hub import HUB
from memskill_cli.errors import RunError
from memskill_cli.live.replies import SpanReplies, StoreLedger
from memskill_cli.live.service import Encoding, MemoryService
from memskill_cli.live.spans import SpanRule
from memskill_cli.live.store import Store, opened
from memskill_cli.live.users import encoder_identity, wrong_encoder
from memskill_cli.llm import import_litellm, load_litellm
from memskill_cli.llm.keys import KeyRing
from memskill_cli.memory.encoder_cache import NoCache
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.runs import bundle
from memskill_cli.runs.run_dir import RunDir, find_run
from memskill_cli.utils import devices, process, signals

if TYPE_CHECKING:
    from memskill_cli.agent.controller import SelectSkills
    from memskill_cli.evaluation.policy import EvaluatedPolicy
    from memskill_cli.live.reading import SkillReader
    from memskill_cli.skills.bank import SkillBank

SEEDS = "seeds"
Notice = Callable[[str], None]
_log = logging.getLogger("memskill")
_CHOICES = "give a run directory (its path, or its name in runs_dir), a bundle, hf://OWNER/NAME, or the word seeds"


@dataclasses.dataclass(frozen=True)
class MemoryRequest:
    """Which store to open, and how. ``options`` are those of :func:`~memskill_cli.app.options.settings_of`.

    ``skills`` is None for those with which the store was opened before (at first the seed skills).
    """

    folder: Path
    options: Mapping[str, Any]
    access: ProviderAccess
    skills: str | None = None
    runs_dir: Path = Path("runs")
    create: bool = True
    """Whether a store is made if there is none."""


class _Choice(NamedTuple):
    """The skills and settings of an open store."""

    skills: str
    run: RunDir | None
    settings: Config


@asynccontextmanager
async def open_service(
    request: MemoryRequest, notice: Notice = _log.info, warn: Notice = _log.warning
) -> AsyncIterator[MemoryService]:
    """The memory in a folder, owned by this process until the end of the block.

    Models and keys are first needed, and checked, when a span is read. ``warn`` is told once, then, if the skills are
    untrained. Raises RunLockedError with the pid if another process owns the folder; MemoryBankError if its vectors are
    of another encoder; RunError and UsageError for skills or options that are not valid.
    """
    if request.skills is not None:
        _check_skills(request.skills, request.runs_dir)  # a mistake is told before a folder is made
    async with AsyncExitStack() as stack:
        store = stack.enter_context(opened(request.folder, create=request.create))
        chosen = _choose(request, store, notice)
        ledger = StoreLedger(store, max_cost=chosen.settings.limits.max_cost)
        with process.borrowed():
            encoders = open_encoders(chosen.settings, request.access, ledger, notice, stack)
        _check_encoder(store, encoders)
        _record(store, chosen, encoders)
        models = Models(chosen, request.access, ledger, encoders, notice, warn)
        settings, train = chosen.settings.memory, chosen.settings.train
        rule = SpanRule(train.span_mode, train.chunk_size, train.chunk_overlap)
        service = MemoryService(store, encoders, settings, rule, models.reading, encoding_with(chosen.settings))
        stack.callback(service.close)
        yield service


def open_encoders(
    settings: Config, access: ProviderAccess, ledger: StoreLedger, notice: Notice, stack: AsyncExitStack
) -> EncoderPair:
    """The encoders, without a cache: vectors of memories are in the store, and a cache would outlive their erasure."""
    if any(spec.startswith("litellm:") for spec in _specs(settings)):
        import_litellm()  # reads the file .env, which may contain keys
    keys = KeyRing.collect(access.api_keys, access.keys_file)
    return load_encoders(settings, access, keys, ledger, notice, stack, cache=NoCache())


def encoding_with(settings: Config) -> Encoding:
    """A block in which texts may be encoded. Afterwards the process is as it was."""
    uses_torch = any(spec != "hashing" and not spec.startswith("litellm:") for spec in _specs(settings))

    @asynccontextmanager
    async def encoding() -> AsyncIterator[None]:
        with process.borrowed(), devices.threads_restored() if uses_torch else nullcontext():
            yield

    return encoding


def _specs(settings: Config) -> list[str]:
    encoders = settings.encoders
    return [spec for spec in (encoders.state, encoders.retrieval, encoders.skill) if spec]


class Models:
    """The language model and the skills, connected while spans are read. Otherwise the process is unchanged."""

    def __init__(
        self,
        chosen: _Choice,
        access: ProviderAccess,
        ledger: StoreLedger,
        encoders: EncoderPair,
        notice: Notice,
        warn: Notice,
    ) -> None:
        self._chosen, self._access, self._ledger, self._encoders = chosen, access, ledger, encoders
        self._notice, self._warn = notice, warn
        self._lock = asyncio.Lock()
        self._uses = 0
        self._open = AsyncExitStack()
        self._policy: tuple[SkillBank, SelectSkills] | None = None
        self._reader: SkillReader | None = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[SkillReader]:
        """A reader of spans. Blocks may overlap: the first connects the model, the last disconnects it."""
        async with self._lock:
            reader = self._reader or await self._connect()
            self._uses += 1
        try:
            yield reader
        finally:
            self._uses -= 1
            await signals.finish_shielded(self._disconnect())

    async def _connect(self) -> SkillReader:
        async with AsyncExitStack() as stack:
            stack.enter_context(process.borrowed())
            stack.enter_context(devices.threads_restored())
            await asyncio.to_thread(import_litellm)
            self._reader = await self._open_reader(stack)
            self._open = stack.pop_all()
            return self._reader

    async def _disconnect(self) -> None:
        async with self._lock:
            if not self._uses and self._reader is not None:  # another block may have begun in the meantime
                self._reader = None
                await self._open.aclose()

    async def _open_reader(self, stack: AsyncExitStack) -> SkillReader:
        load_litellm()
        from memskill_cli.llm.client import LLMClient
        from memskill_cli.llm.local_model import register
        from memskill_cli.llm.transport import close_connections

        settings, access = self._chosen.settings, self._access
        register(self._notice, access.cache / "models")
        if self._policy is None:
            found = await asyncio.to_thread(_load_policy, self._chosen, self._notice, self._warn)
            self._policy = found.bank, await found.chooser(settings, self._encoders)
        from memskill_cli.live.reading import SkillReader
        from memskill_cli.rollout.context import RolloutContext

        keys = KeyRing.collect(access.api_keys, access.keys_file)
        stack.push_async_callback(close_connections)
        llm = LLMClient(
            settings.models, settings.limits, keys=keys, ledger=self._ledger, cache=SpanReplies(), notice=self._notice
        )
        stack.push_async_callback(llm.aclose)
        stack.enter_context(signals.on_first_signal(llm.stop_sending))
        context = RolloutContext(llm, self._encoders, settings.memory, settings.reward, settings.dataset)
        return SkillReader(context, *self._policy)


def _load_policy(chosen: _Choice, notice: Notice, warn: Notice) -> EvaluatedPolicy:
    from memskill_cli.app.evaluate import find_policy
    from memskill_cli.evaluation.policy import EvaluatedPolicy

    if chosen.settings.models.executor == EMBEDDED:
        notice("memories are written by the embedded model, a small one for demonstrations; model=… chooses another")
    if chosen.run is None:
        warn("memories are written with the seed skills and an untrained controller; skills=RUN takes those of a run")
        return EvaluatedPolicy.of(None, chosen.settings)
    return find_policy(chosen.run, "best", chosen.settings, notice)


def _choose(request: MemoryRequest, store: Store, notice: Notice) -> _Choice:
    skills, recorded = request.skills or store.fact("skills") or SEEDS, store.fact("settings")
    run = _find_skills(skills, request.runs_dir, store.folder, notice)
    base = run.settings() if run else None
    if request.skills is None and recorded:
        base = from_dict(tomllib.loads(recorded), f"the settings in {store.folder}")
    settings = for_evaluation(settings_of(request.options, "train", notice, base))
    # Only the executor is asked: a key for the model of another role is not needed.
    model = settings.models.executor
    models = dataclasses.replace(settings.models, answer=model, judge=model, designer=model)
    settings = dataclasses.replace(settings, models=models, engine="local")
    return _Choice(str(run.path.resolve()) if run else SEEDS, run, settings)


def _check_skills(skills: str, runs_dir: Path) -> None:
    """Raise what :func:`_find_skills` would raise. A bundle on the Hub is not downloaded for this."""
    if skills.startswith(HUB):
        return
    if bundle.is_bundle(Path(skills).expanduser()):
        bundle.read(Path(skills).expanduser())
    else:
        _find_skills(skills, runs_dir, Path(), _log.info)


def _find_skills(skills: str, runs_dir: Path, store: Path, notice: Notice) -> RunDir | None:
    """The run of a path or a name; None for the seeds. A bundle becomes a run in the folder of the ``store``."""
    if skills == SEEDS:
        return None
    path = Path(skills).expanduser()
    if skills.startswith(HUB) or bundle.is_bundle(path):
        own = run_of(store / "skills", skills, Path("data"), notice)
        return RunDir.open(store / "skills" / str(own))
    if (path / "run.json").is_file():
        return RunDir.open(path)
    if path.name != skills:
        raise RunError(f"there is no run in {skills}", hint=_CHOICES)
    found = find_run(runs_dir, skills)
    assert found is not None  # a name was given
    return RunDir.open(found)


def _check_encoder(store: Store, encoders: EncoderPair) -> None:
    identity = encoder_identity(encoders)
    if (found := store.fact("encoder") or identity) != identity:
        raise wrong_encoder(store, found, identity)


def _record(store: Store, chosen: _Choice, encoders: EncoderPair) -> None:
    facts = {"encoder": encoder_identity(encoders), "settings": to_toml(chosen.settings), "skills": chosen.skills}
    if any(store.fact(name) != value for name, value in facts.items()):
        store.set_facts(facts)


async def reindex_store(request: MemoryRequest, progress: Callable[[int, int], None], notice: Notice) -> int:
    """Make all vectors of a store with the encoders that ``request`` names; how many memories were encoded."""
    from memskill_cli.live.reindex import reindex

    async with AsyncExitStack() as stack:
        store = stack.enter_context(opened(request.folder, create=False))
        chosen = _choose(request, store, notice)
        ledger = StoreLedger(store, max_cost=chosen.settings.limits.max_cost)
        encoders = open_encoders(chosen.settings, request.access, ledger, notice, stack)
        async with encoding_with(chosen.settings)():
            count = await reindex(store, encoders, progress)
        _record(store, chosen, encoders)
        return count
