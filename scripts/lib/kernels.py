"""The few GPU kernels of our own: sums over keys that come out the same every time, and the rows of a CSR matrix."""

from __future__ import annotations

from math import ceil, log2
from typing import Any

import cupy

_ADD = cupy.ElementwiseKernel(
    "K key, V value, float64 scale",
    "raw uint64 sums",
    "atomicAdd(&sums[key], (unsigned long long)llrint((double)value * scale))",
    "somersault_add",
)
_COUNT = cupy.ElementwiseKernel("K key", "raw uint64 counts", "atomicAdd(&counts[key], 1ull)", "somersault_count")
_ROWS = cupy.ElementwiseKernel(
    "raw int32 indptr, int32 n_rows",
    "int64 row",
    """
    int low = 0, high = n_rows;  // indptr[low] <= i < indptr[high]
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (indptr[middle] <= i) low = middle; else high = middle;
    }
    row = low;
    """,
    "somersault_rows",
)


def add_by_key(keys: Any, values: Any, n: int) -> Any:
    """Sum of `values` over each of the keys 0 to n - 1: float64, the same whatever the order; see `sums_by_key`."""
    sums = cupy.zeros(n, cupy.uint64)
    largest = float(cupy.abs(values).max()) if values.size else 0.0
    if not largest:
        return sums.astype(cupy.float64)
    # All values on one key still fit 63 bits
    scale = 2.0 ** (62 - ceil(log2(largest)) - ceil(log2(values.size)))
    _ADD(keys, values, scale, sums)
    return sums.view(cupy.int64) / scale


def count_keys(keys: Any, n: int) -> Any:
    """How often each of the keys 0 to n - 1 occurs, int64."""
    counts = cupy.zeros(n, cupy.uint64)
    _COUNT(keys, counts)
    return counts.view(cupy.int64)


def rows_of(indptr: Any, nnz: int) -> Any:
    """For each non-zero of a CSR matrix its row, int64; `indptr` is int32."""
    rows = cupy.empty(nnz, cupy.int64)
    if nnz:
        _ROWS(indptr, len(indptr) - 1, rows)
    return rows
