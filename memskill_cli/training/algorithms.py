"""Which algorithm updates the controller: ``train.algorithm``, an extension point (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memskill_cli.config import TrainConfig
from memskill_cli.config.extension_points import ALGORITHMS
from memskill_cli.errors import UsageError
from memskill_cli.training.ppo import PolicyUpdate, PPOStats
from memskill_cli.types import Episode

Algorithm = Callable[[Sequence[Episode], PolicyUpdate], PPOStats]
"""Updates the controller in place from the episodes of one inner epoch. The metrics include the returned values.

Every parameter of the controller must have a gradient, which may be zero, when ``optimizer.step()`` is called, because
a checkpoint contains the optimizer state of every parameter.

An algorithm that compares episodes of one trace has the attribute ``grouped = True``. Then every ``policy.group_size``
successive episodes read the same trace.
"""

register_algorithm = ALGORITHMS.named
"""``@register_algorithm("name")`` makes an :data:`Algorithm` available as ``train.algorithm = "name"``."""


def algorithm(name: str) -> Algorithm:
    """The algorithm called ``name``. UsageError if there is none."""
    found: Algorithm = ALGORITHMS.get(name)
    return found


def group_size(settings: TrainConfig) -> int:
    """How many episodes of a batch read the same trace: ``train.group_size`` if the algorithm is ``grouped``, else 1.

    UsageError if a batch is no whole number of groups.
    """
    if not getattr(algorithm(settings.algorithm), "grouped", False):
        return 1
    size, batch = settings.group_size, settings.batch_size
    if batch % size:
        fitting = -(-batch // size) * size
        raise UsageError(
            f"train.batch_size {batch} is not a multiple of train.group_size {size}, which {settings.algorithm} needs",
            hint=f"--batch-size {fitting}, or --set train.group_size=N for another size of the groups",
        )
    return size
