"""Requests for embeddings of a size that the server takes.

Servers have different limits on the texts of a request (10, 32, 64, 2048), on its tokens, and on the tokens of a text.
They say so with a 400 or 413. Then a request is divided, and the size that was accepted is remembered.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from memskill_cli.errors import RejectedPromptError, RejectedRequestError

Send = Callable[[list[str]], Awaitable[list[list[float]]]]
"""Embeds texts with one request. Raises RejectedPromptError or RejectedRequestError if the server refuses it."""
_FIRST_SIZE = 64
_MIN_CHARS = 64
_STATED = re.compile(
    r"(?:larger than|more than|at most|maximum[^.\d]{0,40}|max(?:imum)?[ _]?(?:batch)?[ _]?size[^.\d]{0,20}"
    r"|limit[^.\d]{0,20}|up to|less than or equal to|<=)\s*(\d{1,5})\b",
    re.IGNORECASE,
)
_ABOUT_NUMBER = re.compile(
    r"batch|inputs?\b|items|texts|array|must be a string|number of|entity too large|payload", re.IGNORECASE
)


class BatchSizes:
    """The limits of one server, as far as they are known. ``notice`` is told once that texts are cut."""

    def __init__(self, model: str, notice: Callable[[str], None]) -> None:
        self._model, self._notice = model, notice
        self.size = _FIRST_SIZE
        """Number of texts in a request."""
        self.max_chars: int | None = None
        """Characters of a text; None: no limit is known."""
        self.cut = 0
        """Number of texts that were cut."""

    async def embed(self, texts: list[str], send: Send) -> list[list[float]]:
        """The vectors of ``texts`` in their order. Requests are sent concurrently."""
        batches = [texts[start : start + self.size] for start in range(0, len(texts), self.size)]
        tasks = [asyncio.create_task(self._batch(batch, send)) for batch in batches]
        try:
            return [row for rows in await asyncio.gather(*tasks) for row in rows]
        finally:
            for task in tasks:
                task.cancel()

    async def _batch(self, texts: list[str], send: Send) -> list[list[float]]:
        if len(texts) > self.size:  # another request was refused since this one was made
            return await self.embed(texts, send)
        try:
            return await send([self._fitting(text) for text in texts])
        except (RejectedPromptError, RejectedRequestError) as error:
            refusal = error  # handled below: the error of a request that is made here would be chained to this one
        if len(texts) == 1:
            return await self._cut(texts[0], send, refusal)
        self._reduce(len(texts), refusal)
        return [row for start in _halves(texts, self.size) for row in await self._batch(start, send)]

    def _reduce(self, sent: int, error: RejectedPromptError | RejectedRequestError) -> None:
        """Remember a smaller size, if the refusal is about the number of texts and not about a long one."""
        if not _ABOUT_NUMBER.search(error.message):
            return
        stated = [int(number) for number in _STATED.findall(error.message) if 0 < int(number) < sent]
        self.size = min(self.size, max(stated, default=max(1, sent // 2)))

    def _fitting(self, text: str) -> str:
        return text if self.max_chars is None else text[: self.max_chars]

    async def _cut(self, text: str, send: Send, error: RejectedPromptError | RejectedRequestError) -> list[list[float]]:
        """The vector of the beginning of a text that is too long for the model. Other refusals are raised."""
        sent = len(self._fitting(text))
        if not isinstance(error, RejectedPromptError) or not error.too_long or sent <= _MIN_CHARS:
            raise error
        self.max_chars = min(self.max_chars or sent, sent * 3 // 4)
        rows = await self._batch([text], send)
        self.cut += len(text) > self.max_chars
        if self.cut == 1:
            self._notice(
                f"{self._model} takes about {self.max_chars} characters: longer texts are cut to their beginning"
            )
        return rows


def _halves(texts: list[str], size: int) -> list[list[str]]:
    step = min(size, max(1, -(-len(texts) // 2)))
    return [texts[start : start + step] for start in range(0, len(texts), step)]
