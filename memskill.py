"""Lets ``import memskill`` work: it has the same names as :mod:`memskill_cli`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import memskill_cli
from memskill_cli import __all__ as __all__
from memskill_cli import __version__ as __version__

if TYPE_CHECKING:
    from memskill_cli import *  # noqa: F403 - type checkers see the same names
else:

    def __getattr__(name: str) -> Any:
        return getattr(memskill_cli, name)


def __dir__() -> list[str]:
    return dir(memskill_cli)
