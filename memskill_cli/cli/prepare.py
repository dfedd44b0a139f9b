"""``memskill prepare``: get a benchmark ready."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from memskill_cli.cli.console import Advance, Console, Debug, Json, Quiet, console, escape_markup
from memskill_cli.cli.options import DataDir, Dataset, Plugin, option
from memskill_cli.utils.registry import load_plugins

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from memskill_cli.app.prepare import Listeners
    from memskill_cli.datasets.manifest import DatasetManifest
    from memskill_cli.datasets.prepare import Phase, PrepareProgress, PrepareResult

FILE = "What to prepare from"
Source = Annotated[
    str | None,
    option("--source", panel=FILE, help="A file or folder that you have, or a URL, in place of the official one."),
]
Sample = Annotated[bool, option("--sample", panel=FILE, help="The small sample that ships with memskill.")]
Variant = Annotated[
    list[str] | None,
    option("--variant", panel=FILE, help="hotpotqa: 50, 100, 200 (documents; all three by default) or train."),
]
Split = Annotated[
    list[str] | None,
    option("--split", panel=FILE, help="alfworld: only these splits, repeatable. longmemeval: which one a file is."),
]
Limit = Annotated[int, option("--limit", panel=FILE, help="hotpotqa, alfworld: traces of a split at most.")]
Force = Annotated[bool, option("--force", panel=FILE, help="Prepare anew, replacing what is there.")]


def prepare(
    dataset: Dataset,
    source: Source = None,
    sample: Sample = False,
    variant: Variant = None,
    split: Split = None,
    limit: Limit = 0,
    force: Force = False,
    data_dir: DataDir = Path("data"),
    plugin: Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Get a benchmark ready: fetch it, check it, normalise it to conversations and questions.

    Done already: says so and does nothing.
    """
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        from memskill_cli.app.prepare import prepare, prepare_options

        ask = prepare_options(dataset, split or (), variant or (), limit)
        with _progress_bars(out) as report:
            result = prepare(
                dataset, data_dir=data_dir, source=source, sample=sample, force=force, ask=ask, report=report
            )
        _show(out, result)
        out.next_command(_next(result, dataset, data_dir))


def _next(result: PrepareResult, dataset: str, data_dir: Path) -> str:
    """The command that usually follows: training, or evaluating where a benchmark is for that only."""
    from memskill_cli.datasets.base import prepare_command, source_flags
    from memskill_cli.datasets.registry import get

    manifest = result.manifest
    flags = [] if data_dir == Path("data") else ["--data-dir", str(data_dir)]
    flags += ["--preset", "demo"] if manifest.source.startswith("sample:") else []
    if get(dataset).trains and "train" not in manifest.splits:
        return prepare_command(dataset, data_dir, *source_flags(manifest.source), "--split", "train")
    if get(dataset).trains:
        return shlex.join(["memskill", "train", "--dataset", dataset, *flags])
    if not any(split.startswith("test") for split in manifest.splits):
        flags = ["--split", next(iter(manifest.splits)), *flags]
    return shlex.join(["memskill", "eval", "--dataset", dataset, *flags])


def listeners(out: Console) -> Listeners:
    """Notices, warnings and progress bars of a command that prepares data if need be."""
    from memskill_cli.app.prepare import Listeners

    return Listeners(out.notice, out.warn, lambda: _progress_bars(out))


@contextmanager
def _progress_bars(out: Console) -> Iterator[PrepareProgress]:
    with ExitStack() as stack:
        yield _ProgressBars(out, stack)


TITLES: dict[str, tuple[str, str]] = {"download": ("downloading", "bytes"), "normalise": ("normalising", "traces")}


class _ProgressBars:
    """Progress of ``prepare`` as one bar a phase."""

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
            f"{manifest.dataset} is prepared already in {result.path}, from {manifest.source}; --force does it anew"
        )
    facts: dict[str, Any] = manifest.to_dict() | {"already": result.already, "path": str(result.path)}
    out.result(facts, *_tables(manifest))
    for note in manifest.notes:
        out.notice(note)
    if manifest.shared_traces:
        out.warn("train, val and test hold the same conversations: too few to split")


def _tables(manifest: DatasetManifest) -> tuple[RenderableType, ...]:
    from rich.text import Text

    title = f"{manifest.dataset}: {manifest.traces} traces, {manifest.queries} queries, from {manifest.source}"
    sizes = [(split, str(size.traces), str(size.queries)) for split, size in manifest.splits.items()]
    categories = [(escape_markup(category), str(count)) for category, count in manifest.categories.items()]
    return (
        Text(title, overflow="fold"),
        _table(("split", "traces", "queries"), sizes),
        _table(("category", "queries"), categories),
    )


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table whose first column is a name and whose others are numbers."""
    from rich.table import Table

    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    return table
