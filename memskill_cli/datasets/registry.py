"""Datasets by name: ours, those of ``--plugin`` files, and those of installed packages."""

from __future__ import annotations

from typing import TypeVar

from memskill_cli.config.datasets import DATASETS, find_dataset
from memskill_cli.datasets.base import Dataset
from memskill_cli.errors import PluginError, UsageError

D = TypeVar("D", bound=Dataset | type[Dataset])


def register_dataset(dataset: D) -> D:
    """Add a dataset under its ``name``: an instance, or a class (so it is a decorator).

    PluginError if it is no dataset, has no name, or the name is taken.
    """
    _check(dataset, "register_dataset")
    DATASETS.register(dataset.name, dataset)
    return dataset


def get(name: str) -> Dataset:
    """The dataset called ``name``.

    UsageError with the nearest name if there is none; PluginError if a package gives something else.
    """
    found = find_dataset(name)
    _check(found, f"dataset {name}")
    dataset: Dataset = found
    return dataset


def find(name: str) -> Dataset | None:
    """The dataset called ``name``, None if there is none: reports are written where its plug-in is not loaded."""
    try:
        return get(name)
    except (UsageError, PluginError):
        return None


def _check(part: object, where: str) -> None:
    kind = part if isinstance(part, type) else type(part)
    if not issubclass(kind, Dataset):
        raise PluginError(
            f"{where}: {kind.__name__} is no Dataset", hint="derive it from memskill_cli.datasets.base.Dataset"
        )
    if not getattr(part, "name", ""):
        raise PluginError(f"{where}: {kind.__name__} has no name", hint='give the class a line: name = "my-dataset"')
