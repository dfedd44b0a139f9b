"""``memskill prepare``: download, check and convert a dataset."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli import prepare_own as own
from memskill_cli.cli.console import Advance, Console, Debug, Json, Quiet, console, escape_markup
from memskill_cli.cli.options import WHERE, CacheDir, DataDir, Plugin, RunsDir, option
from memskill_cli.cli.resume_command import repeated
from memskill_cli.errors import UsageError
from memskill_cli.utils.registry import load_plugins

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from memskill_cli.app.prepare import Listeners
    from memskill_cli.datasets.manifest import DatasetManifest
    from memskill_cli.datasets.own.options import ReadOptions
    from memskill_cli.datasets.prepare import Phase, PrepareProgress, PrepareResult

FILE = "What to prepare"
Source = Annotated[
    str | None,
    option("--source", panel=FILE, help="A file, a folder or a URL to read instead of the official source."),
]
Sample = Annotated[bool, option("--sample", panel=FILE, help="Use the small sample that is part of memskill.")]
Variant = Annotated[
    list[str] | None,
    option("--variant", panel=FILE, help="hotpotqa: 50, 100 or 200 documents (default: all three), or train."),
]
Split = Annotated[
    list[str] | None,
    option("--split", panel=FILE, help="alfworld: only this split; repeatable. longmemeval: the split in the file."),
]
Limit = Annotated[int, option("--limit", panel=FILE, help="hotpotqa, alfworld: at most N traces of a split (0: all).")]
Force = Annotated[bool, option("--force", panel=FILE, help="Prepare again and replace the existing data.")]
DatasetOrOwn = Annotated[
    str | None,
    option(
        "--dataset",
        "-d",
        panel=WHERE,
        help="locomo, longmemeval, hotpotqa, alfworld, one of a plug-in, or any name for conversations of your own.",
    ),
]


def prepare(
    ctx: typer.Context,
    dataset: DatasetOrOwn = None,
    source: Source = None,
    sample: Sample = False,
    variant: Variant = None,
    split: Split = None,
    limit: Limit = 0,
    force: Force = False,
    format: own.Format = "auto",
    questions: own.Questions = None,
    roles: own.Roles = None,
    split_by: own.SplitBy = "",
    redact: own.Redact = False,
    check: own.Check = False,
    write_questions: own.WriteQuestions = 0,
    remove: own.Remove = None,
    model: o.Model = None,
    designer_model: o.DesignerModel = None,
    api_base: o.ApiBase = None,
    api_key: o.ApiKey = None,
    keys: o.Keys = None,
    concurrency: o.Concurrency = None,
    max_cost: o.MaxCost = None,
    seed: o.Seed = None,
    set_: o.Set = None,
    data_dir: DataDir = Path("data"),
    runs_dir: RunsDir = Path("runs"),
    cache_dir: CacheDir = None,
    plugin: Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prepare a dataset: download a benchmark or read your own conversations, check them, and convert them to
    conversations and questions.

    If the dataset is already prepared, nothing is done.

    Conversations of your own: any name that is no benchmark's, with --source FILE or FOLDER (docs/own-data.md).
    """
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        if remove is not None:
            own.remove_dataset(out, remove, data_dir, runs_dir, cache_dir)
            return
        if dataset is None:
            raise UsageError(
                "--dataset is missing",
                hint="for example: memskill prepare --dataset locomo (see memskill prepare --help)",
            )
        read = own.read_options(format, questions, roles, split_by, redact)
        if check:
            with _progress_bars(out) as report:
                own.check_dataset(out, dataset, source, sample, read, model, data_dir, report)
            return
        if write_questions:
            own.check_writing(dataset, data_dir, write_questions, force)
        _prepare(out, ctx, dataset, source, sample, force, variant, split, limit, read, data_dir)


def _prepare(
    out: Console,
    ctx: typer.Context,
    dataset: str,
    source: str | None,
    sample: bool,
    force: bool,
    variant: list[str] | None,
    split: list[str] | None,
    limit: int,
    read: ReadOptions,
    data_dir: Path,
) -> None:
    from memskill_cli.app.prepare import prepare, prepare_options

    ask = prepare_options(dataset, split or (), variant or (), limit)
    with _progress_bars(out) as report:
        result = prepare(
            dataset, data_dir=data_dir, source=source, sample=sample, force=force, ask=ask, own=read, report=report
        )
    if ctx.params["write_questions"]:
        own.write_questions(out, ctx, dataset, data_dir, result.manifest)
        return
    _show(out, result)
    out.next_command(_next(result, dataset, data_dir, repeated(ctx, "plugin")))


def _next(result: PrepareResult, dataset: str, data_dir: Path, plugins: Sequence[str]) -> str:
    """The command that usually follows: ``train``, or ``eval`` for a dataset that is not trained on.

    ``plugins`` are the ``--plugin`` options to repeat.
    """
    from memskill_cli.datasets.base import prepare_command, source_flags
    from memskill_cli.datasets.registry import get

    manifest = result.manifest
    flags = [] if data_dir == Path("data") else ["--data-dir", str(data_dir)]
    flags += ["--preset", "demo"] if manifest.source.startswith("sample:") else []
    if manifest.reading and "train" not in manifest.splits:
        again = [*source_flags(manifest.source), *manifest.reading.get("flags", [])]
        missing = [] if "--questions" in again else ["--questions", "FILE"]
        return prepare_command(dataset, data_dir, *again, *missing, "--force")
    if get(dataset).trains and "train" not in manifest.splits:
        return prepare_command(dataset, data_dir, *source_flags(manifest.source), "--split", "train")
    if get(dataset).trains:
        return shlex.join(["memskill", "train", "--dataset", dataset, *flags, *plugins])
    if not any(split.startswith("test") for split in manifest.splits):
        flags = ["--split", next(iter(manifest.splits)), *flags]
    return shlex.join(["memskill", "eval", "--dataset", dataset, *flags, *plugins])


def listeners(out: Console) -> Listeners:
    """Notices, warnings and progress bars of a command that prepares data if they are not prepared."""
    from memskill_cli.app.prepare import Listeners

    return Listeners(out.notice, out.warn, lambda: _progress_bars(out))


@contextmanager
def _progress_bars(out: Console) -> Iterator[PrepareProgress]:
    with ExitStack() as stack:
        yield _ProgressBars(out, stack)


TITLES: dict[str, tuple[str, str]] = {
    "download": ("downloading", "bytes"),
    "read": ("reading", "sessions"),
    "normalise": ("normalising", "traces"),
}


class _ProgressBars:
    """The progress of ``prepare``, with one bar for each phase."""

    def __init__(self, out: Console, stack: ExitStack) -> None:
        self._out, self._stack = out, stack
        self._phase: Phase | None = None
        self._advance: Advance = lambda n=1, note="", total=None: None
        self._done = 0

    def __call__(self, phase: Phase, done: int, total: int | None) -> None:
        if phase != self._phase:
            self._stack.close()
            title, unit = TITLES[phase]
            self._advance = self._stack.enter_context(self._out.progress(title, total, unit))
            self._phase, self._done = phase, 0
        self._advance(done - self._done, total=total)
        self._done = done


def _show(out: Console, result: PrepareResult) -> None:
    manifest = result.manifest
    if result.already:
        out.notice(
            f"{manifest.dataset} is already prepared in {result.path}, from {manifest.source}; "
            "use --force to prepare it again"
        )
    facts: dict[str, Any] = manifest.to_dict() | {"already": result.already, "path": str(result.path)}
    out.result(facts, *_tables(manifest))
    for note in manifest.notes:
        out.notice(note)
    if manifest.shared_traces and manifest.reading:
        out.warn("some conversations are in several splits: scores on a split say nothing about new conversations")
    elif manifest.shared_traces:
        out.warn("train, val and test contain the same conversations, because there are too few to split")


def _tables(manifest: DatasetManifest) -> tuple[RenderableType, ...]:
    from rich.text import Text

    title = f"{manifest.dataset}: {manifest.traces} traces, {manifest.queries} queries, from {manifest.source}"
    sizes = [(split, str(size.traces), str(size.queries)) for split, size in manifest.splits.items()]
    categories = [(escape_markup(category), str(count)) for category, count in manifest.categories.items()]
    return (
        Text(title, overflow="fold"),
        _table(("split", "traces", "queries"), sizes),
        *([_table(("category", "queries"), categories)] if categories else []),
    )


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table with names in the first column and numbers in the others."""
    from rich.table import Table

    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    return table
