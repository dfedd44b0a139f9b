"""How texts are spread over the machine that encodes them: over the cores of a CPU, or in batches over a GPU.

``encoder_models`` says why a CPU gets no batches.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from memskill_cli.errors import EncoderError
from memskill_cli.types import Matrix

Forward = Callable[[list[int]], Matrix]
"""Indices of texts to their rows, in one pass of a model."""
_CHARS_A_TOKEN = 4  # of English text
_TOKENS_A_CORE = 256  # a twentieth of a second for a small model: more at once gain little, and keep others waiting
_GPU_TOKENS = 65_536
_BYTES_A_TOKEN = 131_072  # on a GPU, with room to spare: a BERT-base layer keeps about 60 kB


class Spread:
    """One model's share of a device. ``together``: how many tokens may share a pass on a CPU; 0 is one text a pass.

    On a GPU that is found by memory: it starts from what is free, and is halved whenever that was too much.
    """

    def __init__(self, device: str, together: int = 0) -> None:
        self._gpu = device != "cpu"
        self._together = _gpu_tokens() if self._gpu else together
        self._pool = ThreadPoolExecutor(1 if self._gpu else cores(), thread_name_prefix="encode")

    @property
    def at_once(self) -> int:
        """Characters best encoded together: on a GPU, what goes into one batch."""
        return max(over_cores(), _CHARS_A_TOKEN * self._together) if self._gpu else over_cores()

    def over(self, forward: Forward, lengths: Sequence[int]) -> Matrix:
        """(N, D): rows of ``forward(indices)``, put in order."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        if self._gpu:
            done = list(self._in_batches(forward, order, lengths))
        else:
            passes = _passes(order, lengths, self._together, cores())
            done, order = list(self._pool.map(forward, passes)), [index for part in passes for index in part]
        rows = np.concatenate(done)
        back = np.empty_like(rows)
        back[order] = rows
        return back

    def _in_batches(self, forward: Forward, order: list[int], lengths: Sequence[int]) -> Iterator[Matrix]:
        """Texts of like length go together, to save padding."""
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
                self._together = lengths[part[0]] * len(part) // 2
                torch.cuda.empty_cache()
            else:
                yield rows
                order = order[len(part) :]

    def _size(self, longest: int) -> int:
        return max(1, self._together // max(1, longest))


def _passes(longest_first: Sequence[int], lengths: Sequence[int], together: int, workers: int) -> list[list[int]]:
    """Texts in passes of one text or of at most ``together`` tokens; as many and as long as gives each worker as much
    as the others, or one pass more where they do not fit.

    Each text goes where there is least so far (Graham's rule), since what is waited for is the last worker.
    """
    enough = workers * max(1, math.ceil(sum(lengths) / (workers * max(1, together))))
    passes: list[list[int]] = []
    sizes: list[tuple[int, int]] = []  # a heap: the tokens of a pass, its place
    for index in longest_first:
        size = lengths[index]
        if len(passes) < enough or sizes[0][0] + size > together:
            heapq.heappush(sizes, (size, len(passes)))
            passes.append([index])
        else:
            filled, place = sizes[0]
            heapq.heapreplace(sizes, (filled + size, place))
            passes[place].append(index)
    return passes


def over_cores() -> int:
    """Characters best encoded together on a CPU."""
    return _CHARS_A_TOKEN * _TOKENS_A_CORE * cores()


def _gpu_tokens() -> int:
    import torch

    free, _ = torch.cuda.mem_get_info()
    return min(_GPU_TOKENS, free // 2 // _BYTES_A_TOKEN)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
