"""Which algorithm updates the controller: ``train.algorithm``, an extension point (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memskill_cli.config.extension_points import ALGORITHMS
from memskill_cli.training.ppo import PolicyUpdate, PPOStats
from memskill_cli.types import Episode

Algorithm = Callable[[Sequence[Episode], PolicyUpdate], PPOStats]
"""Updates the controller in place from the episodes of one inner epoch. The metrics include the returned values.

Every parameter of the controller must have a gradient, which may be zero, when ``optimizer.step()`` is called, because
a checkpoint contains the optimizer state of every parameter.
"""

register_algorithm = ALGORITHMS.named
"""``@register_algorithm("name")`` makes an :data:`Algorithm` available as ``train.algorithm = "name"``."""


def algorithm(name: str) -> Algorithm:
    """The algorithm called ``name``. UsageError if there is none."""
    found: Algorithm = ALGORITHMS.get(name)
    return found
