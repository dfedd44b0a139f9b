"""Datasets by name: built-in ones, those of ``--plugin`` files, and those of installed packages."""

from __future__ import annotations

from typing import TypeVar

from memskill_cli.config.datasets import DATASETS, find_dataset
from memskill_cli.datasets.base import Dataset
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


def _check(part: object, where: str) -> None:
    kind = part if isinstance(part, type) else type(part)
    if not issubclass(kind, Dataset):
        raise PluginError(
            f"{where}: {kind.__name__} is not a Dataset", hint="derive it from memskill_cli.datasets.base.Dataset"
        )
    if not getattr(part, "name", ""):
        raise PluginError(f"{where}: {kind.__name__} has no name", hint='add to the class: name = "my-dataset"')
