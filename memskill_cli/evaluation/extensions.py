"""Parts from plug-ins and installed packages in an evaluation: the settings they depend on, and their versions.

For such parts every setting counts that is not declared irrelevant. If a declaration is missing, an evaluation is
computed again without need; rows that do not fit the settings are never reused.
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
"""Settings that change no score: where and how fast a command runs. The dataset is a part of the task already."""
OF_CALLS = frozenset({"models.api_base", "models.timeout", "models.retries"})
"""Settings of the section ``models`` that change no score."""


def is_foreign(method: str) -> bool:
    """Whether a method comes from a plug-in or an installed package."""
    return bool(methods.METHODS.identity(method))


def versions(dataset: str, settings: Config, method: str) -> dict[str, str]:
    """The sha256 of the plug-in file, or the package and version, of each part that a score depends on.

    Built-in parts are left out, so that the names of their evaluations do not change.
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
