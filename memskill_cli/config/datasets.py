"""The registry of datasets, and the default settings of each dataset.

It is in this package, below the datasets themselves, because the settings of a command depend on its dataset. The
registry has the names of modules; a module is imported when its dataset is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from memskill_cli.config.presets import PRESETS, Settings
from memskill_cli.errors import UsageError
from memskill_cli.utils.registry import Registry

DATASETS: Registry[Any] = Registry(
    "dataset",
    "memskill.datasets",
    {
        "locomo": "memskill_cli.datasets.locomo:DATASET",
        "longmemeval": "memskill_cli.datasets.longmemeval:DATASET",
        "hotpotqa": "memskill_cli.datasets.hotpotqa:DATASET",
        "alfworld": "memskill_cli.envs.alfworld.dataset:DATASET",
    },
    own_hint="prepare your own conversations: memskill prepare --dataset NAME --source FILE (or add --plugin FILE.py)",
)
"""Each part is an instance or a subclass of :class:`memskill_cli.datasets.base.Dataset`."""


def find_dataset(name: str) -> Any:
    """The instance of the dataset called ``name``. UsageError with the nearest name if there is none."""
    part = DATASETS.get(name)
    return _instance(part) if isinstance(part, type) else part


@cache
def _instance(kind: type) -> Any:
    return kind()


def dataset_settings(name: str) -> Mapping[str, Any]:
    """The default settings of a dataset; none for an unknown name, which is an error when the data are read."""
    try:
        settings: Mapping[str, Any] = find_dataset(name).settings
    except UsageError:
        return {}
    return settings


def preset_settings(preset: str, name: str) -> Settings:
    """The settings of a preset for a dataset. ``paper`` also has the dataset's defaults, which are published values."""
    own = dataset_settings(name) if preset == "paper" else {}
    return {**PRESETS[preset], **own, **_of_preset(preset, name)}


def _of_preset(preset: str, name: str) -> Mapping[str, Any]:
    try:
        table: Mapping[str, Any] = find_dataset(name).presets.get(preset, {})
    except UsageError:
        return {}
    return table
