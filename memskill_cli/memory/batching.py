"""Distributes texts over the cores of a CPU, or in batches on a GPU.

sentence-transformers only has padded batches; ``encoder_models`` explains why there are none on a CPU.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from weakref import ref

import numpy as np

from memskill_cli.errors import EncoderError
from memskill_cli.types import Matrix
from memskill_cli.utils import process

Forward = Callable[[list[int]], Matrix]
"""One forward pass of a model: indices of N texts to their rows (N, D)."""
_CHARS_PER_TOKEN = 4  # of English text
_TOKENS_PER_CORE = 256  # 50 ms with a small model; larger batches gain little and make other callers wait
_GPU_TOKENS = 65_536
_BYTES_PER_TOKEN = 131_072  # on a GPU, with reserve: a BERT-base layer needs about 60 kB


class BatchScheduler:
    """Runs the forward passes of one model on a device.

    ``batch_tokens``: maximum tokens per pass on a CPU; 0: one text per pass. On a GPU it starts from the free memory
    and is halved at each out-of-memory error.
    """

    def __init__(self, device: str, batch_tokens: int = 0) -> None:
        self._gpu = device != "cpu"
        self._batch_tokens = _gpu_tokens() if self._gpu else batch_tokens
        self._open_pool: ThreadPoolExecutor | None = None

    @property
    def batch_chars(self) -> int:
        """Best number of characters per request; on a GPU, the size of a batch."""
        return max(cpu_batch_chars(), _CHARS_PER_TOKEN * self._batch_tokens) if self._gpu else cpu_batch_chars()

    @property
    def _pool(self) -> ThreadPoolExecutor:
        """The threads. A library call ends them when it ends; the next one starts new ones."""
        if self._open_pool is None:
            self._open_pool = ThreadPoolExecutor(1 if self._gpu else cores(), thread_name_prefix="encode")
            process.change(object(), lambda: partial(_end, ref(self)))
        return self._open_pool

    def run(self, forward: Forward, lengths: Sequence[int]) -> Matrix:
        """Rows of ``forward(indices)`` for N texts with these ``lengths`` in tokens: (N, D), in the order of the texts.

        EncoderError if one text does not fit into the memory of the GPU.
        """
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        if self._gpu:
            done = list(self._in_batches(forward, order, lengths))
        else:
            passes = _split_into_passes(order, lengths, self._batch_tokens, cores())
            done, order = list(self._pool.map(forward, passes)), [index for part in passes for index in part]
        rows = np.concatenate(done)
        in_order = np.empty_like(rows)
        in_order[order] = rows
        return in_order

    def _in_batches(self, forward: Forward, order: list[int], lengths: Sequence[int]) -> Iterator[Matrix]:
        """Batches of texts of similar length, to reduce padding."""
        import torch

        while order:
            part = order[: self._size(lengths[order[0]])]
            try:
                rows = self._pool.submit(forward, part).result()
            except torch.cuda.OutOfMemoryError as error:
                if len(part) == 1:
                    raise EncoderError(
                        "the GPU's memory is too small for one text", hint="--set encoders.device=cpu"
                    ) from error
                self._batch_tokens = lengths[part[0]] * len(part) // 2
                torch.cuda.empty_cache()
            else:
                yield rows
                order = order[len(part) :]

    def _size(self, longest: int) -> int:
        return max(1, self._batch_tokens // max(1, longest))


def _end(scheduler: ref[BatchScheduler]) -> None:
    """Stop the threads now. (Otherwise they stop when the pool is garbage-collected.)"""
    if (found := scheduler()) is not None and found._open_pool is not None:
        pool, found._open_pool = found._open_pool, None
        pool.shutdown()


def _split_into_passes(
    longest_first: Sequence[int], lengths: Sequence[int], batch_tokens: int, workers: int
) -> list[list[int]]:
    """Split texts into passes of one text or of at most ``batch_tokens`` tokens, with equal work for each worker.

    Each text goes to the pass with the fewest tokens so far (Graham's rule), because the slowest worker determines the
    time. If it does not fit there, it gets a new pass.
    """
    num_passes = workers * max(1, math.ceil(sum(lengths) / (workers * max(1, batch_tokens))))
    passes: list[list[int]] = []
    sizes: list[tuple[int, int]] = []  # a heap of (tokens of a pass, its index)
    for index in longest_first:
        size = lengths[index]
        if len(passes) < num_passes or sizes[0][0] + size > batch_tokens:
            heapq.heappush(sizes, (size, len(passes)))
            passes.append([index])
        else:
            filled, smallest = sizes[0]
            heapq.heapreplace(sizes, (filled + size, smallest))
            passes[smallest].append(index)
    return passes


def cpu_batch_chars() -> int:
    """Best number of characters per request on a CPU."""
    return _CHARS_PER_TOKEN * _TOKENS_PER_CORE * cores()


def _gpu_tokens() -> int:
    import torch

    free, _ = torch.cuda.mem_get_info()
    return min(_GPU_TOKENS, free // 2 // _BYTES_PER_TOKEN)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
