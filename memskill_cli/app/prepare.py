"""Getting a benchmark ready, for a command that is about that and for one that needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from memskill_cli.datasets.base import PrepareOptions
from memskill_cli.datasets.prepare import PrepareProgress, prepare
from memskill_cli.datasets.registry import get
from memskill_cli.errors import DataError, UsageError


@dataclass(frozen=True)
class Listeners:
    """Who is told what while a command gets ready: notices, warnings, and the progress of preparing data."""

    notice: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Callable[[], AbstractContextManager[PrepareProgress]]


def prepare_options(dataset: str, splits: Sequence[str], variants: Sequence[str], limit: int) -> PrepareOptions:
    """What is asked for; a variant is another name for a split. UsageError for what makes no sense."""
    if variants and not get(dataset).variants:
        raise UsageError(f"{dataset} has no variants; --variant is for hotpotqa")
    if limit < 0:
        raise UsageError(f"--limit {limit}: it is a number of traces")
    of_variants = [variant if variant == "train" else f"test-{variant}" for variant in variants]
    return PrepareOptions(tuple(dict.fromkeys([*splits, *of_variants])), limit)


def ensure_prepared(dataset: str, data_dir: Path, listeners: Listeners) -> None:
    """Prepare ``dataset`` from its official place unless something is prepared, for a command that needs it.

    Raises DataError with the exact commands to type when it cannot be had.
    """
    if (data_dir / get(dataset).name / "manifest.json").exists():
        return
    listeners.notice(f"{dataset} is not prepared in {data_dir}: preparing it first")
    try:
        with listeners.progress() as report:
            result = prepare(dataset, data_dir=data_dir, report=report)
    except DataError as error:
        where = "" if data_dir == Path("data") else f" --data-dir {data_dir}"
        raise DataError(
            f"{dataset} is not prepared, and could not be: {error.message}",
            hint=f"memskill prepare --dataset {dataset} --source FILE{where}   (or --sample for the small one)",
        ) from None
    for note in result.manifest.notes:
        listeners.notice(note)
