"""int8 prefilter for exact top-k.

The time to search a large table is the time to read it. So each row is stored a second time, quantized to int8 with one
scale per row, which is a quarter of the bytes. By the Cauchy-Schwarz inequality, the error of an approximate cosine is
at most the distance between a row and its quantized form. So rows whose approximate cosine is more than twice this
distance below the k-th best cannot be in the top k. The remaining rows, some dozens of 10,000, are compared in float32.
The result is exact for all data; only the speed depends on the data.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from memskill_cli.memory.batching import cores
from memskill_cli.types import Matrix, Vector
from memskill_cli.utils import devices, process

MIN_ROWS = 2048
"""Smallest table for which the prefilter saves time."""
_PARALLEL_ROWS = 32_768
"""Smallest table that uses all cores: below, threads cost more than they save. Also the rows quantized at once."""
_INT8_MAX = 127  # largest int8


class Int8Index:
    """int8 copy of a matrix of at most ``capacity`` rows (D = ``dim``), which have unit length or are all zeros.

    A search adds new rows by itself. Call :meth:`mark_changed` after a row was replaced.
    """

    def __init__(self, capacity: int, dim: int) -> None:
        self._values = np.zeros((capacity, dim), np.int8)
        self._scales = np.zeros(capacity, np.float32)
        self._max_error = 0.0  # maximum distance between a row and its quantized form
        self._count = 0
        self._changed: set[int] = set()

    def mark_changed(self, row: int) -> None:
        self._changed.add(row)

    def candidates(self, matrix: Matrix, dropped: npt.NDArray[np.intp], vector: Vector, k: int) -> npt.NDArray[np.intp]:
        """Row numbers of ``matrix`` (N, D), ascending, that contain the top ``k`` for ``vector`` (D,) and all ties.

        Excludes the rows in ``dropped``. At least ``k`` other rows must be left.
        """
        self._update(matrix)
        approximate, error = self._approximate(vector)
        approximate[dropped] = -np.inf
        kth = len(approximate) - k
        return (approximate >= np.partition(approximate, kth)[kth] - 2 * error).nonzero()[0]

    def _approximate(self, vector: Vector) -> tuple[Vector, float]:
        """Approximate cosines to ``vector``, (N,), and their maximum difference from ``vecdot`` of the float32 rows."""
        high, high_scale = _quantize(vector)
        # A second int8 vector for the residual is free: reading the rows takes the time.
        low, low_scale = _quantize(vector - high_scale * high)
        columns, weights = np.stack([high, low], axis=1), np.array([high_scale, low_scale], np.float32)
        approximate = _products(self._values[: self._count], self._scales[: self._count], columns, weights)
        residual = float(np.linalg.norm(vector - high_scale * high - low_scale * low))
        rounding = (len(vector) + 8) * float(np.finfo(np.float32).eps)  # of both sums
        return approximate, 1.001 * self._max_error + 2 * residual + rounding  # lengths are 1 ± 0.001

    def _update(self, matrix: Matrix) -> None:
        outdated = [row for row in self._changed if row < self._count] + list(range(self._count, len(matrix)))
        self._count = len(matrix)
        self._changed.clear()
        for start in range(0, len(outdated), _PARALLEL_ROWS):
            part = outdated[start : start + _PARALLEL_ROWS]
            rows = matrix[part]
            values, scales = _quantize(rows)
            self._values[part], self._scales[part] = values, scales[:, 0]
            self._max_error = max(self._max_error, float(np.linalg.norm(rows - scales * values, axis=1).max()))


@cache
def is_supported() -> bool:
    """Whether int8 products are fast on this machine (AVX-512 with VNNI, or AMX) and correct: without VNNI, sums
    saturate."""
    torch = devices.torch_in_one_thread()
    if not hasattr(torch, "_int_mm") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    rows, columns = (np.arange(size).reshape(-1, width).astype(np.int8) for size, width in ((65_000, 100), (200, 2)))
    exact = rows.astype(np.int32) @ columns.astype(np.int32)
    return np.array_equal(torch._int_mm(torch.from_numpy(rows), torch.from_numpy(columns)).numpy(), exact)


def _quantize(rows: Matrix | Vector) -> tuple[Any, Any]:
    """int8 values in the shape of ``rows``, and their scales: (N, 1) for a matrix, a scalar for a vector."""
    largest = np.abs(rows).max(axis=-1, keepdims=rows.ndim > 1)
    scale = (largest / _INT8_MAX).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))  # also if the values are too small to divide
    return np.rint(rows / scale).astype(np.int8), scale


def _products(rows: npt.NDArray[np.int8], scales: Vector, columns: npt.NDArray[np.int8], weights: Vector) -> Vector:
    """(N,): the scaled rows (N, D) times the weighted sum of the columns (D, M).

    int8 sums are exact. In float32 they are exact up to D = 1,040; above, they have a rounding error of the last bit.
    """
    import torch

    def multiply(start: int, stop: int) -> Vector:
        sums = torch._int_mm(torch.from_numpy(rows[start:stop]), torch.from_numpy(columns)).numpy()
        return np.asarray(scales[start:stop] * (sums.astype(np.float32) @ weights), np.float32)

    if len(rows) < _PARALLEL_ROWS:
        return multiply(0, len(rows))
    ends = np.linspace(0, len(rows), cores() + 1, dtype=int).tolist()
    return np.concatenate(list(_pool().map(multiply, ends, ends[1:])))


@cache
def _pool() -> ThreadPoolExecutor:
    process.change("search threads", lambda: _release_pool)
    return ThreadPoolExecutor(cores(), "search", _in_one_thread)


def _in_one_thread() -> None:
    """OpenMP has a thread count per thread. (No need to restore it in threads of this pool.)"""
    import torch

    torch.set_num_threads(1)


def _release_pool() -> None:
    _pool().shutdown()
    _pool.cache_clear()
