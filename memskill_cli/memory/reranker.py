"""A cross-encoder that ranks again what was found for a question: it reads question and text together.

Slower and usually better than a comparison of embeddings, so it is given only the best candidates.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from memskill_cli.memory.encoder_models import report_load_errors
from memskill_cli.types import Query, Retrieved, RetrieveFn
from memskill_cli.utils import devices

CANDIDATES = 50
"""The number of items that are ranked again."""


class CrossEncoderReranker:
    """A sentence-transformers ``CrossEncoder``: a model's name on the Hub, or a folder. Thread-safe.

    Raises EncoderError if the model cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        with report_load_errors(model):
            devices.torch_in_one_thread()
            from sentence_transformers import CrossEncoder

            device = devices.resolve_device("auto", "memory.reranker")
            self._model = CrossEncoder(model, device=device, local_files_only=Path(model).is_dir())
        self._lock = threading.Lock()  # its tokenizer is not thread-safe

    def rank(self, question: str, found: Sequence[Retrieved]) -> list[Retrieved]:
        """``found`` with the model's scores, best first; ties keep their order."""
        if not found:
            return []
        with self._lock:
            scores = self._model.predict([(question, one.item.described) for one in found], show_progress_bar=False)
        rated = [Retrieved(one.item, float(score)) for one, score in zip(found, scores, strict=True)]
        return sorted(rated, key=lambda one: -one.score)


load_reranker = cache(CrossEncoderReranker)
"""The reranker of this name. It is loaded once in a process."""


def reranked(find: RetrieveFn, model: str, k: int) -> RetrieveFn:
    """A function that ranks again what ``find`` finds for a query, and returns the ``k`` best."""

    async def retrieve(query: Query) -> list[Retrieved]:
        found = list(await find(query))
        reranker = await asyncio.to_thread(load_reranker, model)
        return (await asyncio.to_thread(reranker.rank, query.question, found))[:k]

    return retrieve
