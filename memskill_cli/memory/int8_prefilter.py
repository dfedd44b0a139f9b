"""Rows of a large table in one byte a number, to find those that may be among the best in a quarter of the reading.

Searching a large table is reading it. So each row is kept a second time, coarsely: a scale and a byte a number. By the
inequality of Cauchy and Schwarz no cosine is further from the coarse one than a row is from what is kept of it. So rows
whose coarse cosine is more than twice that below the k-th best are none of the best k; what is left, some dozens of
10,000, is compared in full. However the rows lie, nothing is lost by it: only time.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from memskill_cli.memory.batching import cores
from memskill_cli.types import Matrix, Vector
from memskill_cli.utils import devices

WORTH_IT = 2048
"""Rows from which on the coarse look saves more than it takes."""
_SHARED_OUT = 32_768  # rows from which on all cores look (below, handing them over takes longer), and taken up at once
_MOST = 127  # a byte's largest number


class Sketch:
    """Of a matrix of at most ``capacity`` rows of ``dim`` numbers, of unit length or all zeros.

    New rows are seen when something is searched for; that one was replaced has to be told (:meth:`changed`).
    """

    def __init__(self, capacity: int, dim: int) -> None:
        self._bytes = np.zeros((capacity, dim), np.int8)
        self._scales = np.zeros(capacity, np.float32)
        self._off = 0.0  # how far any row is, at most, from what is kept of it
        self._count = 0
        self._changed: set[int] = set()

    def changed(self, row: int) -> None:
        self._changed.add(row)

    def candidates(self, matrix: Matrix, dropped: npt.NDArray[np.intp], vector: Vector, k: int) -> npt.NDArray[np.intp]:
        """Numbers, ascending, of rows of ``matrix`` (N, D), among which are the best ``k``, and all that tie with them.

        None of those that were ``dropped``, which leave at least ``k``.
        """
        self._catch_up(matrix)
        near, off = self._look(vector)
        near[dropped] = -np.inf
        place = len(near) - k
        return (near >= np.partition(near, place)[place] - 2 * off).nonzero()[0]

    def _look(self, vector: Vector) -> tuple[Vector, float]:
        """(N,) coarse cosines to ``vector``, and how far they are, at most, from what ``vecdot`` makes of the rows."""
        coarse, scale = _coarse(vector)
        fine, finer = _coarse(vector - scale * coarse)  # a second byte costs nothing: all time goes into the rows
        columns, weights = np.stack([coarse, fine], axis=1), np.array([scale, finer], np.float32)
        near = _products(self._bytes[: self._count], self._scales[: self._count], columns, weights)
        missing = float(np.linalg.norm(vector - scale * coarse - finer * fine))
        rounding = (len(vector) + 8) * float(np.finfo(np.float32).eps)  # of both sums
        return near, 1.001 * self._off + 2 * missing + rounding  # lengths are 1 to the third place

    def _catch_up(self, matrix: Matrix) -> None:
        late = [row for row in self._changed if row < self._count] + list(range(self._count, len(matrix)))
        self._count = len(matrix)
        self._changed.clear()
        for start in range(0, len(late), _SHARED_OUT):
            part = late[start : start + _SHARED_OUT]
            rows = matrix[part]
            coarse, scales = _coarse(rows)
            self._bytes[part], self._scales[part] = coarse, scales[:, 0]
            self._off = max(self._off, float(np.linalg.norm(rows - scales * coarse, axis=1).max()))


@cache
def usable() -> bool:
    """Whether this machine multiplies bytes fast (AVX-512 with VNNI, or AMX) and rightly: without VNNI, sums of bytes
    saturate."""
    torch = devices.torch_in_one_thread()
    if not hasattr(torch, "_int_mm") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    rows, columns = (np.arange(size).reshape(-1, width).astype(np.int8) for size, width in ((65_000, 100), (200, 2)))
    exact = rows.astype(np.int32) @ columns.astype(np.int32)
    return np.array_equal(torch._int_mm(torch.from_numpy(rows), torch.from_numpy(columns)).numpy(), exact)


def _coarse(rows: Matrix | Vector) -> tuple[Any, Any]:
    """Numbers from -127 to 127 in the shape of ``rows``, and their scale: one a row (N, 1), or one of a vector."""
    most = np.abs(rows).max(axis=-1, keepdims=rows.ndim > 1)
    scale = (most / _MOST).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))  # of numbers too small to be divided, too
    return np.rint(rows / scale).astype(np.int8), scale


def _products(rows: npt.NDArray[np.int8], scales: Vector, columns: npt.NDArray[np.int8], weights: Vector) -> Vector:
    """(N,): rows (N, D) by their scales with the sum of columns (D, M) by their weights.

    Sums of bytes are exact; as float32, which holds them up to D of 1,040, off by the last bit.
    """
    import torch

    def some(start: int, stop: int) -> Vector:
        sums = torch._int_mm(torch.from_numpy(rows[start:stop]), torch.from_numpy(columns)).numpy()
        return np.asarray(scales[start:stop] * (sums.astype(np.float32) @ weights), np.float32)

    if len(rows) < _SHARED_OUT:
        return some(0, len(rows))
    ends = np.linspace(0, len(rows), cores() + 1, dtype=int).tolist()
    return np.concatenate(list(_pool().map(some, ends, ends[1:])))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), "search", devices.torch_in_one_thread)  # OpenMP counts by thread
