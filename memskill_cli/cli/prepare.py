"""``memskill prepare``: get a benchmark ready."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from memskill_cli.cli.console import Advance, Console, Debug, Json, Quiet, console, safe
from memskill_cli.cli.options import DataDir, Dataset, option

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from memskill_cli.datasets.base import Ask, Manifest
    from memskill_cli.datasets.prepare import Phase, PrepareResult

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
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Get a benchmark ready: fetch it, check it, normalise it to conversations and questions.

    Done already: says so and does nothing.
    """
    with console(json, quiet, debug) as out:
        from memskill_cli.datasets.prepare import prepare

        ask = _ask(dataset, split or (), variant or (), limit)
        with ExitStack() as stack:
            report = _Bars(out, stack)
            result = prepare(
                dataset, data_dir=data_dir, source=source, sample=sample, force=force, ask=ask, report=report
            )
        _show(out, result)
        out.next_command(_next(result, dataset, data_dir))


def _ask(dataset: str, splits: Sequence[str], variants: Sequence[str], limit: int) -> Ask:
    """What the flags ask for; a variant is another name for a split."""
    from memskill_cli.datasets.base import Ask
    from memskill_cli.errors import UsageError

    if variants and dataset != "hotpotqa":
        raise UsageError(f"{dataset} has no variants; --variant is for hotpotqa")
    if limit < 0:
        raise UsageError(f"--limit {limit}: it is a number of traces")
    of_variants = [variant if variant == "train" else f"test-{variant}" for variant in variants]
    return Ask(tuple(dict.fromkeys([*splits, *of_variants])), limit)


def _next(result: PrepareResult, dataset: str, data_dir: Path) -> str:
    """The command that usually follows: training, or evaluating where a benchmark is for that only."""
    from memskill_cli.datasets.base import command, get, source_flags

    manifest = result.manifest
    flags = [] if data_dir == Path("data") else ["--data-dir", str(data_dir)]
    flags += ["--preset", "demo"] if manifest.source.startswith("sample:") else []
    if get(dataset).trains and "train" not in manifest.splits:
        return command(dataset, data_dir, *source_flags(manifest.source), "--split", "train")
    if get(dataset).trains:
        return shlex.join(["memskill", "train", "--dataset", dataset, *flags])
    if not any(split.startswith("test") for split in manifest.splits):
        flags = ["--split", next(iter(manifest.splits)), *flags]
    return shlex.join(["memskill", "eval", "--dataset", dataset, *flags])


def ensure_prepared(out: Console, dataset: str, data_dir: Path) -> None:
    """Prepare ``dataset`` from its official place unless something is prepared, for a command that needs it.

    Raises DataError with the exact commands to type when it cannot be had.
    """
    from memskill_cli.datasets.base import get
    from memskill_cli.datasets.prepare import prepare
    from memskill_cli.errors import DataError

    if (data_dir / get(dataset).name / "manifest.json").exists():
        return
    out.notice(f"{dataset} is not prepared in {data_dir}: preparing it first")
    try:
        with ExitStack() as stack:
            result = prepare(dataset, data_dir=data_dir, report=_Bars(out, stack))
    except DataError as error:
        where = "" if data_dir == Path("data") else f" --data-dir {data_dir}"
        raise DataError(
            f"{dataset} is not prepared, and could not be: {error.message}",
            hint=f"memskill prepare --dataset {dataset} --source FILE{where}   (or --sample for the small one)",
        ) from None
    for note in result.manifest.notes:
        out.notice(note)


TITLES: dict[str, tuple[str, str]] = {"download": ("downloading", "bytes"), "normalise": ("normalising", "traces")}


class _Bars:
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


def _tables(manifest: Manifest) -> tuple[RenderableType, ...]:
    from rich.text import Text

    title = f"{manifest.dataset}: {manifest.traces} traces, {manifest.queries} queries, from {manifest.source}"
    sizes = [(split, str(size.traces), str(size.queries)) for split, size in manifest.splits.items()]
    categories = [(safe(category), str(count)) for category, count in manifest.categories.items()]
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
