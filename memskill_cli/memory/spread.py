"""How texts are spread over the machine that encodes them: over the cores of a CPU, or in batches over a GPU.

``encoder_models`` says why a CPU gets no batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from memskill_cli.errors import EncoderError
from memskill_cli.records import Matrix

Forward = Callable[[list[int]], Matrix]
"""Indices of texts to their rows, in one pass of a model."""
AT_ONCE = 16_000
"""Characters that a small model on two cores encodes in about a quarter of a second."""
_CHARS_A_TOKEN = 4  # of English text
_GPU_TOKENS = 65_536
_BYTES_A_TOKEN = 131_072  # on a GPU, with room to spare: a BERT-base layer keeps about 60 kB


class Spread:
    """One model's share of a device. ``together``: how many tokens may share a pass on a CPU; 0 is one text a pass.

    On a GPU that is found by memory: it starts from what is free, and is halved whenever that was too much.
    """

    def __init__(self, device: str, together: int = 0) -> None:
        self._gpu = device != "cpu"
        self._together = _gpu_tokens() if self._gpu else together
        self._pool = ThreadPoolExecutor(1 if self._gpu else _cores(), thread_name_prefix="encode")

    @property
    def at_once(self) -> int:
        """Characters best encoded together: on a GPU, what goes into one batch."""
        return max(AT_ONCE, _CHARS_A_TOKEN * self._together) if self._gpu else AT_ONCE

    def over(self, forward: Forward, lengths: Sequence[int]) -> Matrix:
        """(N, D): rows of ``forward(indices)``, put in order. Texts of like length go together, to save padding."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        passes = self._in_batches if self._gpu else self._over_cores
        rows = np.concatenate(list(passes(forward, order, lengths)))
        back = np.empty_like(rows)
        back[order] = rows
        return back

    def _over_cores(self, forward: Forward, order: list[int], lengths: Sequence[int]) -> Iterator[Matrix]:
        parts = []
        while order:
            size = self._size(lengths[order[0]])
            parts.append(order[:size])
            order = order[size:]
        return self._pool.map(forward, parts)

    def _in_batches(self, forward: Forward, order: list[int], lengths: Sequence[int]) -> Iterator[Matrix]:
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


def _gpu_tokens() -> int:
    import torch

    free, _ = torch.cuda.mem_get_info()
    return min(_GPU_TOKENS, free // 2 // _BYTES_A_TOKEN)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
