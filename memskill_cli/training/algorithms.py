"""Which algorithm updates the controller: ``train.algorithm``, an extension point (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memskill_cli.config.extension_points import ALGORITHMS
from memskill_cli.training.ppo import PolicyUpdate, PPOStats
from memskill_cli.types import Episode

Algorithm = Callable[[Sequence[Episode], PolicyUpdate], PPOStats]
"""Updates the controller, in place, from the episodes of one inner epoch; what it returns is a part of the metrics.

``optimizer.step()`` must reach every parameter of the controller, if only with gradients of zero: a checkpoint holds
the optimizer's state of each.
"""

register_algorithm = ALGORITHMS.named
"""``@register_algorithm("name")`` over an :data:`Algorithm` makes it ``train.algorithm = "name"``."""


def algorithm(name: str) -> Algorithm:
    """The algorithm called ``name``. UsageError if there is none."""
    found: Algorithm = ALGORITHMS.get(name)
    return found
