"""The encoders of the two embedding spaces of memory items, and the encoder of skill descriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from memskill_cli.memory.encoders import CachedEncoder
from memskill_cli.types import Matrix


class EncoderPair(NamedTuple):
    """``state`` embeds the controller's input; ``retrieval`` embeds memories and queries for retrieval.

    Both may be the same encoder. ``skill`` embeds skill descriptions, if it is not ``state``.
    """

    state: CachedEncoder
    retrieval: CachedEncoder
    skill: CachedEncoder | None = None

    @property
    def of_skills(self) -> CachedEncoder:
        """The encoder of skill descriptions."""
        return self.skill or self.state

    async def embed(self, texts: Sequence[str]) -> tuple[Matrix, Matrix]:
        """Embed memory texts in both spaces: (N, D_state) and (N, D_retrieval)."""
        if self.retrieval is self.state:
            rows = await self.state.aencode(texts)
            return rows, rows
        state, retrieval = await asyncio.gather(self.state.aencode(texts), self.retrieval.aencode(texts))
        return state, retrieval
