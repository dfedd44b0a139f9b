"""The library: the commands as Python functions.

A call may change the process while it runs (:mod:`memskill_cli.utils.process`). When it has ended, logging, environment
variables, torch, litellm and threads are as before. An ``…_async`` function runs in a new thread with its own event
loop, so it does not block the caller's loop. If it is cancelled, it waits for the replies in flight and keeps them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from memskill_cli.app.calls import Callback, Work, in_this_thread, in_thread

if TYPE_CHECKING:
    from memskill_cli.app.prepare import Listeners
    from memskill_cli.app.runtime import ProviderAccess
    from memskill_cli.datasets.manifest import DatasetManifest
    from memskill_cli.runs.run_dir import RunDir

T = TypeVar("T")
PathLike = str | os.PathLike[str]
Notice = Callable[[str], None]
Row = dict[str, Any]


class Options(TypedDict, total=False):
    """Options of :func:`train` and :func:`evaluate`, as on the command line; ``memskill train --help`` explains them.

    None means that an option is not given. The only environment variables that are read are MEMSKILL_CACHE_DIR and
    those for API keys.
    """

    runs_dir: PathLike
    data_dir: PathLike
    cache_dir: PathLike | None
    plugins: Sequence[PathLike]
    """Python files that add datasets, methods and rewards."""
    preset: str
    config: PathLike | None
    settings: Mapping[str, Any]
    """Any setting by its name: ``{"ppo.learning_rate": 3e-4}``."""
    model: str | None
    judge_model: str | None
    designer_model: str | None
    api_base: str | None
    api_key: str | Sequence[str] | None
    """One key, or several that are used in turn."""
    keys: PathLike | None
    """A TOML file of keys."""
    state_encoder: str | None
    encoder: str | None
    """The same as ``state_encoder``, as on the command line."""
    retriever: str | None
    span_mode: str | None
    chunk_size: int | None
    chunk_overlap: int | None
    num_skills: int | None
    top_k: int | None
    """The same as ``num_skills``, as on the command line."""
    num_memories: int | None
    mem_top_k: int | None
    retrieval: str | None
    """The same as ``num_memories``, as on the command line."""
    judge: bool | None
    seed: int | None
    concurrency: int | None
    max_cost: float | None
    engine: str | None
    ray_address: str | None
    notice: Notice | None
    """Called with each notice and warning that the command line would show."""


class TrainOptions(Options, total=False):
    """Options of :func:`train` besides :class:`Options`."""

    resume: bool
    override: bool
    """Resume a run even if settings differ."""
    init_from: str | None
    init_skills: PathLike | None
    outer_epochs: int | None
    inner_epochs: int | None
    batch_size: int | None
    reward: str | None
    evolve: bool | None
    tracker: str | None
    on_epoch: Callable[[Row], None] | None
    """Called after each inner epoch with its line of ``metrics.jsonl``."""


class EvalOptions(Options, total=False):
    """Options of :func:`evaluate` besides :class:`Options`."""

    split: str | None
    variant: str
    include_abstention: bool
    limit: int
    checkpoint: PathLike
    init_skills: PathLike | None


class PrepareArguments(TypedDict, total=False):
    """Options of :func:`prepare`, as on the command line; ``memskill prepare --help`` explains them."""

    source: PathLike | None
    sample: bool
    variant: Sequence[str]
    split: Sequence[str]
    limit: int
    force: bool
    format: str
    questions: PathLike | None
    roles: Sequence[str]
    split_by: str
    redact: bool
    data_dir: PathLike
    plugins: Sequence[PathLike]
    notice: Notice | None


def prepare(dataset: str, **options: Unpack[PrepareArguments]) -> DatasetManifest:
    """Prepare a dataset in ``data_dir`` and return its manifest. If it is already prepared, nothing is written.

    With a name that is no benchmark's, ``source`` are conversations of your own (docs/own-data.md).

    Raises DataError for a damaged file, or if the dataset is already prepared from another source; DownloadError;
    UsageError.
    """
    return in_this_thread("prepare", _preparation(dataset, options), options.get("notice"))


async def prepare_async(dataset: str, **options: Unpack[PrepareArguments]) -> DatasetManifest:
    """Like :func:`prepare`. ``notice`` is called in the caller's event loop."""
    return await in_thread(_preparation(dataset, options), options.get("notice"))


def train(dataset: str | None = None, *, run: str | None = None, **options: Unpack[TrainOptions]) -> RunDir:
    """Train a new run, or resume one with ``resume=True``, and return it. ``dataset`` is ``locomo`` by default.

    Raises RunError, DataError, ModelError and other errors of :mod:`memskill_cli.errors`; BudgetExceededError when
    ``max_cost`` is reached. The run can be resumed after each of them.
    """
    return in_this_thread("train", _training(dataset, run, options), options.get("notice"), options.get("on_epoch"))


async def train_async(dataset: str | None = None, *, run: str | None = None, **options: Unpack[TrainOptions]) -> RunDir:
    """Like :func:`train`. ``notice`` and ``on_epoch`` are called in the caller's event loop."""
    return await in_thread(_training(dataset, run, options), options.get("notice"), options.get("on_epoch"))


def evaluate(
    dataset: str | None = None,
    *,
    run: str | None = None,
    methods: Sequence[str] = ("memskill",),
    **options: Unpack[EvalOptions],
) -> list[Row]:
    """Evaluate a run (by default the newest) and return the summary of each split and method, as in ``summary.json``.

    ``dataset`` is the run's dataset by default. A repeated call continues where the last one stopped, and asks failed
    queries again (``summary["errors"]`` counts them).
    """
    return in_this_thread("evaluate", _evaluation(dataset, run, methods, options), options.get("notice"))


async def evaluate_async(
    dataset: str | None = None,
    *,
    run: str | None = None,
    methods: Sequence[str] = ("memskill",),
    **options: Unpack[EvalOptions],
) -> list[Row]:
    """Like :func:`evaluate`. ``notice`` is called in the caller's event loop."""
    return await in_thread(_evaluation(dataset, run, methods, options), options.get("notice"))


def _preparation(dataset: str, options: PrepareArguments) -> Work[DatasetManifest]:
    _check_names("prepare", options, PrepareArguments)

    def work(notice: Notice, _: Callback) -> Coroutine[Any, Any, DatasetManifest]:
        from memskill_cli.app import prepare as app
        from memskill_cli.datasets.own.options import AUTO, DEFAULT_ROLES, ReadOptions

        _load_plugins(options.get("plugins"), notice)
        wanted = app.prepare_options(
            dataset, options.get("split", ()), options.get("variant", ()), options.get("limit", 0)
        )
        source, questions = options.get("source"), options.get("questions")
        own = ReadOptions(
            options.get("format", AUTO),
            None if questions is None else Path(questions).expanduser().absolute(),
            tuple(options.get("roles", DEFAULT_ROLES)),
            options.get("split_by", ""),
            options.get("redact", False),
        )
        result = app.prepare(
            dataset,
            data_dir=Path(options.get("data_dir", "data")),
            source=None if source is None else str(source),
            sample=options.get("sample", False),
            force=options.get("force", False),
            ask=wanted,
            own=own,
        )
        for note in result.manifest.notes:
            notice(note)
        return _return(result.manifest)

    return work


def _training(dataset: str | None, run: str | None, options: TrainOptions) -> Work[RunDir]:
    _check_names("train", options, TrainOptions)

    def work(notice: Notice, on_epoch: Callback) -> Coroutine[Any, Any, RunDir]:
        from memskill_cli.app.train import TrainProgress
        from memskill_cli.app.train_start import TrainRequest, open_training, train_session
        from memskill_cli.training.trainer import TrainCallbacks

        _load_plugins(options.get("plugins"), notice)
        skills = options.get("init_skills")
        request = TrainRequest(
            *_common(options, dataset, notice),
            dataset=dataset,
            run=run,
            resume=options.get("resume", False),
            override=options.get("override", False),
            init_from=options.get("init_from"),
            init_skills=None if skills is None else Path(skills),
        )
        session = open_training(request, _listeners(notice))
        progress = TrainProgress(lambda spans, log: TrainCallbacks(on_epoch=on_epoch, notice=log), notice)
        return train_session(session, request, progress)

    return work


def _evaluation(dataset: str | None, run: str | None, methods: Sequence[str], options: EvalOptions) -> Work[list[Row]]:
    _check_names("evaluate", options, EvalOptions)

    def work(notice: Notice, _: Callback) -> Coroutine[Any, Any, list[Row]]:
        from memskill_cli.app.eval_start import EvalRequest, evaluate_session, open_evaluation
        from memskill_cli.app.evaluate import EvalProgress
        from memskill_cli.evaluation.runner import EvalCallbacks

        _load_plugins(options.get("plugins"), notice)
        skills = options.get("init_skills")
        request = EvalRequest(
            *_common(options, dataset, notice),
            methods=(methods,) if isinstance(methods, str) else tuple(methods),
            run=run,
            split=options.get("split"),
            variant=options.get("variant", ""),
            include_abstention=options.get("include_abstention", False),
            limit=options.get("limit", 0),
            checkpoint=str(options.get("checkpoint", "best")),
            init_skills=None if skills is None else str(skills),
        )
        session = open_evaluation(request, _listeners(notice))
        return evaluate_session(session, request, EvalProgress(lambda title, queries: EvalCallbacks(), notice))

    return work


async def _return(value: T) -> T:
    return value


def _check_names(function: str, options: Mapping[str, Any], known: type) -> None:
    for name in options.keys() - known.__annotations__.keys() - Options.__annotations__.keys():
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; settings go into settings={{…}}")


def _common(options: Options, dataset: str | None, notice: Notice) -> tuple[dict[str, Any], Path, Path, ProviderAccess]:
    """The first fields of every request: options, folder of runs, folder of data, keys and cache."""
    config = options.get("config")
    given = {**options, "dataset": dataset, "config": None if config is None else Path(config)}
    folders = Path(options.get("runs_dir", "runs")), Path(options.get("data_dir", "data"))
    return given, *folders, _access(options, notice)


def _access(options: Options, notice: Notice) -> ProviderAccess:
    from memskill_cli.app.runtime import ProviderAccess
    from memskill_cli.llm.keys import key_file_warning

    given, keys, cache = options.get("api_key"), options.get("keys"), options.get("cache_dir")
    if keys is not None and (warning := key_file_warning(Path(keys))):
        notice(warning)
    return ProviderAccess(
        (given,) if isinstance(given, str) else tuple(given or ()),
        None if keys is None else Path(keys),
        None if cache is None else Path(cache),
    )


def _listeners(notice: Notice) -> Listeners:
    from memskill_cli.app.prepare import Listeners
    from memskill_cli.datasets.prepare import silent

    return Listeners(notice, notice, lambda: nullcontext(silent))


def _load_plugins(files: Sequence[PathLike] | None, notice: Notice) -> None:
    from memskill_cli.utils.registry import load_plugins

    load_plugins([Path(file) for file in files or ()], notice)
