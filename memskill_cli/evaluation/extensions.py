"""Parts of plug-ins and installed packages in an evaluation: what they depend on, and which versions they are of.

For such parts everything counts that is not declared irrelevant, so that a forgotten declaration costs an evaluation
made anew and never reuses rows that it should not.
"""

from __future__ import annotations

from collections.abc import Iterator

from memskill_cli.config import Config
from memskill_cli.config.datasets import DATASETS
from memskill_cli.config.extension_points import ENCODERS, RETRIEVERS
from memskill_cli.evaluation import methods
from memskill_cli.memory.encoder_specs import is_registered
from memskill_cli.utils.registry import Registry

NEVER_COUNTED = ("dataset", "preset", "engine", "tracker", "limits", "ray")
"""Settings that change no score: where and how fast a command works, and the dataset, which the task names."""
OF_CALLS = frozenset({"models.api_base", "models.timeout", "models.retries"})
"""Likewise of the section ``models``."""


def is_foreign(method: str) -> bool:
    """Whether a method is of a plug-in or of an installed package."""
    return bool(methods.METHODS.identity(method))


def versions(dataset: str, settings: Config, method: str) -> dict[str, str]:
    """The sha256 of the plug-in file, or the package and version, of each part that a score depends on.

    Nothing of parts that are built in, so that their evaluations keep their names.
    """
    return {
        part: version
        for part, registry, name in _parts(dataset, settings, method)
        if (version := registry.identity(name))
    }


def _parts(dataset: str, settings: Config, method: str) -> Iterator[tuple[str, Registry, str]]:
    ignored = methods.get(method).irrelevant_settings
    yield "dataset", DATASETS, dataset
    yield "method", methods.METHODS, method
    if "memory.retriever" not in ignored:
        yield "retriever", RETRIEVERS, settings.memory.retriever
    for space in ("state", "skill", "retrieval"):
        spec: str = getattr(settings.encoders, space)
        if f"encoders.{space}" not in ignored and is_registered(spec):
            yield f"{space} encoder", ENCODERS, spec
