"""Datasets by name: built-in ones, those of ``--plugin`` files, and those of installed packages."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import orjson

from memskill_cli.config.datasets import DATASETS, find_dataset
from memskill_cli.datasets.base import Dataset
from memskill_cli.datasets.own.dataset import KIND, OwnConversations
from memskill_cli.errors import PluginError, UsageError

D = TypeVar("D", bound=Dataset | type[Dataset])


def register_dataset(dataset: D) -> D:
    """Add a dataset under its ``name``: an instance, or a class (so it is a decorator).

    Raises PluginError if it is not a dataset, has no name, or its name is already in use.
    """
    _check(dataset, "register_dataset")
    DATASETS.register(dataset.name, dataset)
    return dataset


def get(name: str) -> Dataset:
    """The dataset called ``name``.

    Raises UsageError, with the nearest name, if there is none; PluginError if a package provides something else.
    """
    found = find_dataset(name)
    _check(found, f"dataset {name}")
    dataset: Dataset = found
    return dataset


def find(name: str) -> Dataset | None:
    """The dataset called ``name``; None if there is none. Reports are also written without the plug-in of a dataset."""
    try:
        return get(name)
    except (UsageError, PluginError):
        return None


def include_own(name: str) -> None:
    """Make conversations of one's own known under ``name``, unless there is another dataset of that name."""
    if name not in DATASETS.names():
        DATASETS.include(name, OwnConversations(name))


def is_own(name: str | None) -> bool:
    """Whether ``name`` is a dataset that ``prepare`` made of the user's own conversations. None is no dataset."""
    return name is not None and isinstance(find(name), OwnConversations)


def find_own(data_dir: Path) -> list[str]:
    """Make all conversations that are prepared in ``data_dir`` known, and return their names."""
    found = [folder.parent.name for folder in sorted(data_dir.glob("*/manifest.json")) if _is_own(folder)]
    for name in found:
        include_own(name)
    return found


def _is_own(manifest: Path) -> bool:
    try:
        table = orjson.loads(manifest.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False  # whoever uses the data is told what is wrong with them
    reading = table.get("reading") if isinstance(table, dict) else None
    return isinstance(reading, dict) and reading.get("kind") == KIND


def _check(part: object, where: str) -> None:
    kind = part if isinstance(part, type) else type(part)
    if not issubclass(kind, Dataset):
        raise PluginError(
            f"{where}: {kind.__name__} is not a Dataset", hint="derive it from memskill_cli.datasets.base.Dataset"
        )
    if not getattr(part, "name", ""):
        raise PluginError(f"{where}: {kind.__name__} has no name", hint='add to the class: name = "my-dataset"')
