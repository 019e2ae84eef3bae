"""Our own GPU kernels: deterministic sums over keys, rows and columns of CSR matrices, scaled rows."""

from __future__ import annotations

from functools import cache
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

# One warp per row; `columns` maps columns to new ones, -1: dropped
_ROW = """
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= n_rows) return;
"""
_COUNT_KEPT = cupy.RawKernel(
    """
extern "C" __global__
void somersault_count_kept(const int* indptr, const int* indices, const int* columns, int n_rows, int* lengths) {
    ROW
    int kept = 0;
    for (int at = indptr[row] + lane; at < indptr[row + 1]; at += 32) kept += columns[indices[at]] >= 0;
    for (int step = 16; step; step /= 2) kept += __shfl_down_sync(0xffffffff, kept, step);
    if (!lane) lengths[row] = kept;
}
""".replace("ROW", _ROW),
    "somersault_count_kept",
)
_MOVE_KEPT = """
extern "C" __global__
void somersault_move_kept(const VALUE* data, const int* indices, const int* indptr, const int* columns, int n_rows,
                          const int* new_indptr, VALUE* new_data, int* new_indices) {
    ROW
    int to = new_indptr[row], end = indptr[row + 1];
    for (int first = indptr[row]; first < end; first += 32) {
        int at = first + lane, column = at < end ? columns[indices[at]] : -1;
        unsigned int kept = __ballot_sync(0xffffffff, column >= 0);
        int place = to + __popc(kept & ((1u << lane) - 1));
        if (column >= 0) {
            new_data[place] = data[at];
            new_indices[place] = column;
        }
        to += __popc(kept);
    }
}
""".replace("ROW", _ROW)
# One block per row: first what zeros become, then the non-zeros
_SCALED = """
extern "C" __global__
void somersault_scaled(const VALUE* data, const int* indices, const int* indptr, const double* factors,
                       const float* design, const float* coefficients, int n_keys, const float* std, float limit,
                       int n_vars, float* rows) {
    float* mine = rows + (long long)blockIdx.x * n_vars;
    const float* known = design + (long long)blockIdx.x * n_keys;
    for (int j = threadIdx.x; j < n_vars; j += blockDim.x) {
        float expected = 0;
        for (int key = 0; key < n_keys; ++key) expected += known[key] * coefficients[(long long)key * n_vars + j];
        mine[j] = fminf(fmaxf((0 - expected) / std[j], -limit), limit);
    }
    __syncthreads();
    for (int at = indptr[blockIdx.x] + threadIdx.x; at < indptr[blockIdx.x + 1]; at += blockDim.x) {
        int j = indices[at];
        float expected = 0, value = (float)log1p((double)data[at] * factors[blockIdx.x]);
        for (int key = 0; key < n_keys; ++key) expected += known[key] * coefficients[(long long)key * n_vars + j];
        mine[j] = fminf(fmaxf((value - expected) / std[j], -limit), limit);
    }
}
"""
_BLOCK = 256  # threads


@cache
def _move_kept(value: str) -> Any:
    return cupy.RawKernel(_MOVE_KEPT.replace("VALUE", value), "somersault_move_kept")


@cache
def _scaled(value: str) -> Any:
    return cupy.RawKernel(_SCALED.replace("VALUE", value), "somersault_scaled")


def scaled_rows(X: Any, factors: Any, design: Any, coefficients: Any, std: Any, limit: float) -> Any:
    """(log(1 + X * factors) - design @ coefficients) / std, clipped to +-limit; cells x genes, float32.

    Parameters
    ----------
    X
        CSR of float32 or float64, without duplicates.
    factors
        One per row, float64.
    design, coefficients, std
        rows x keys, keys x genes, genes; float32, in C order.
    """
    rows = cupy.empty(X.shape, cupy.float32)
    given = (factors, design, coefficients, cupy.int32(design.shape[1]), std, cupy.float32(limit))
    if rows.size:
        kernel = _scaled("float" if X.data.dtype == cupy.float32 else "double")
        kernel((X.shape[0],), (_BLOCK,), (X.data, X.indices, X.indptr, *given, cupy.int32(X.shape[1]), rows))
    return rows


def move_columns(X: Any, columns: Any) -> tuple[Any, Any, Any]:
    """The non-zeros of a CSR matrix in new columns, in their order.

    Parameters
    ----------
    X
        CSR of float32 or float64; fewer than 2^31 non-zeros.
    columns
        The new column of each column of `X`, -1: dropped; int32, on the device.

    Returns
    -------
    Data, indices (int32) and indptr (int32) of the new matrix.
    """
    n_rows = X.shape[0]
    indptr = cupy.zeros(n_rows + 1, cupy.int32)
    if not X.nnz:
        return X.data, X.indices, indptr
    grid = ((n_rows * 32 - 1) // _BLOCK + 1,)
    lengths = cupy.empty(n_rows, cupy.int32)
    _COUNT_KEPT(grid, (_BLOCK,), (X.indptr, X.indices, columns, cupy.int32(n_rows), lengths))
    indptr[1:] = cupy.cumsum(lengths, dtype=cupy.int32)
    nnz = int(indptr[-1])
    data, indices = cupy.empty(nnz, X.data.dtype), cupy.empty(nnz, cupy.int32)
    move = _move_kept("float" if X.data.dtype == cupy.float32 else "double")
    move(grid, (_BLOCK,), (X.data, X.indices, X.indptr, columns, cupy.int32(n_rows), indptr, data, indices))
    return data, indices, indptr


def add_by_key(keys: Any, values: Any, n: int) -> Any:
    """Sum of `values` over each of the keys 0 to n - 1; float64, the same in every order; see `csr.sums_by_key`."""
    sums = cupy.zeros(n, cupy.uint64)
    if not values.size:
        return sums.astype(cupy.float64)
    # Even the sum of all values on one key fits 63 bits. The largest stays on the card, so that nothing waits for it
    _, exponent = cupy.frexp(cupy.abs(values).max().astype(cupy.float64))
    scale = cupy.ldexp(1.0, 62 - ceil(log2(values.size)) - exponent)
    _ADD(keys, values, scale, sums)
    return sums.view(cupy.int64) / scale


def count_keys(keys: Any, n: int) -> Any:
    """The number of occurrences of each of the keys 0 to n - 1, int64."""
    counts = cupy.zeros(n, cupy.uint64)
    _COUNT(keys, counts)
    return counts.view(cupy.int64)


def rows_of_nonzeros(indptr: Any, nnz: int) -> Any:
    """The row of each non-zero of a CSR matrix, int64; `indptr` is int32."""
    rows = cupy.empty(nnz, cupy.int64)
    if nnz:
        _ROWS(indptr, len(indptr) - 1, rows)
    return rows
