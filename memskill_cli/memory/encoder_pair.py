"""The two embedding spaces a memory item lives in, which may be one model, and that of skill descriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from memskill_cli.memory.encoders import CachedEncoder
from memskill_cli.types import Matrix


class Spaces(NamedTuple):
    """``state`` embeds what the controller sees; ``retrieval`` finds memories for queries.

    ``skill`` embeds skill descriptions, where that is another encoder than ``state``.
    """

    state: CachedEncoder
    retrieval: CachedEncoder
    skill: CachedEncoder | None = None

    @property
    def of_skills(self) -> CachedEncoder:
        """What embeds skill descriptions for the controller."""
        return self.skill or self.state

    async def embed(self, texts: Sequence[str]) -> tuple[Matrix, Matrix]:
        """Texts of memories in both spaces: two matrices of shape (N, D_state) and (N, D_retrieval)."""
        if self.retrieval is self.state:
            rows = await self.state.aencode(texts)
            return rows, rows
        state, retrieval = await asyncio.gather(self.state.aencode(texts), self.retrieval.aencode(texts))
        return state, retrieval
