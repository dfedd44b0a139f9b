"""Prepare a dataset, for ``memskill prepare`` and for commands that need prepared data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from memskill_cli.datasets.base import PrepareOptions, prepare_command
from memskill_cli.datasets.prepare import PrepareProgress, prepare
from memskill_cli.datasets.registry import find, find_own, get
from memskill_cli.errors import DataError, UsageError


@dataclass(frozen=True)
class Listeners:
    """Callbacks while a command starts: notices, warnings, and the progress of preparing data."""

    notice: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Callable[[], AbstractContextManager[PrepareProgress]]


def prepare_options(dataset: str, splits: Sequence[str], variants: Sequence[str], limit: int) -> PrepareOptions:
    """The options of ``prepare``; a variant becomes the split of the same name. UsageError for invalid options."""
    known = find(dataset)
    if variants and not (known and known.variants):
        raise UsageError(f"{dataset} has no variants", hint=f"leave out --variant: {prepare_command(dataset)}")
    if limit < 0:
        raise UsageError(f"--limit {limit}: the number of traces must be 0 or above")
    of_variants = [variant if variant == "train" else f"test-{variant}" for variant in variants]
    return PrepareOptions(tuple(dict.fromkeys([*splits, *of_variants])), limit)


def ensure_prepared(dataset: str, data_dir: Path, listeners: Listeners) -> None:
    """Prepare ``dataset`` from its official source, unless it is already prepared.

    Raises DataError with a command to use if that fails.
    """
    find_own(data_dir)
    if (data_dir / get(dataset).name / "manifest.json").exists():
        return
    listeners.notice(f"{dataset} is not prepared in {data_dir}: preparing it first")
    try:
        with listeners.progress() as report:
            result = prepare(dataset, data_dir=data_dir, report=report)
    except DataError as error:
        raise DataError(
            f"{dataset} is not prepared, and preparing it failed: {error.message}",
            hint=f"{prepare_command(dataset, data_dir, '--source', 'FILE')}   (or --sample for the small sample)",
        ) from None
    for note in result.manifest.notes:
        listeners.notice(note)
