"""Algebra of CSR matrices of counts, on either device."""

from __future__ import annotations

from typing import Any

import numpy as np

from lib.run import device as devices


def on_host(array: Any) -> np.ndarray:
    """An array of any device as a NumPy array."""
    return array.get() if hasattr(array, "get") else array


def select_rows(X: Any, keep: np.ndarray, device: devices.Device) -> Any:
    """The rows of a CSR matrix that a boolean mask (on the host) keeps, in order."""
    if keep.all():
        return X
    if not device.is_gpu:
        return X[np.flatnonzero(keep)]
    xp = device.xp
    lengths = (X.indptr[1:] - X.indptr[:-1])[xp.asarray(keep)]
    indptr = xp.concatenate([xp.zeros(1, np.int32), xp.cumsum(lengths, dtype=np.int32)])
    kept = xp.asarray(keep)[rows_of_nonzeros(X, device)]
    shape = (int(keep.sum()), X.shape[1])
    return device.sparse.csr_matrix((X.data[kept], X.indices[kept], indptr), shape=shape)


def select_genes(X: Any, genes: np.ndarray, n_vars: int, device: devices.Device) -> Any:
    """Map the columns of a CSR matrix.

    Parameters
    ----------
    X
        cells x genes, CSR.
    genes
        The new column of each column of `X`, -1 to drop it; int32.
    n_vars
        Number of new columns.
    """
    if device.is_gpu:
        from lib.store.kernels import move_columns

        parts = move_columns(X, device.xp.asarray(genes))
    else:
        columns = genes[X.indices]
        keep = np.flatnonzero(columns >= 0)
        parts = X.data[keep], columns[keep], np.searchsorted(keep, X.indptr).astype(np.int32)
    out = device.sparse.csr_matrix(parts, shape=(X.shape[0], n_vars))
    sort_columns(out, genes)
    return out


def sort_columns(X: Any, genes: np.ndarray) -> None:
    """Sort the columns within each row of a CSR matrix, if `genes` (see `select_genes`) changed their order."""
    kept = genes[genes >= 0]
    if (kept[1:] < kept[:-1]).any():
        X.sort_indices()


def row_sums(X: Any, device: devices.Device, values: Any = None) -> Any:
    """Exact sum of `values` over each row of a CSR matrix, int64; one integer per non-zero (default: its counts)."""
    xp, values = device.xp, X.data if values is None else values
    if not device.is_gpu:
        sums, full = np.zeros(X.shape[0], np.int64), np.flatnonzero(X.indptr[1:] > X.indptr[:-1])
        if len(full):  # an empty row would get a value of the next one
            exact = np.float64 if values.dtype.kind == "f" else np.int64
            sums[full] = np.add.reduceat(values, X.indptr[full], dtype=exact)
        return sums
    running = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(values, dtype=np.int64)])
    return running[X.indptr[1:]] - running[X.indptr[:-1]]


def column_sums(X: Any, values: Any, device: devices.Device) -> Any:
    """Sum of `values`, one per non-zero of `X`, over each column; float64, exact for integers below 2^53."""
    return sums_by_key(X.indices, values, X.shape[1], device)


def column_counts(X: Any, device: devices.Device) -> Any:
    """Number of non-zeros in each column, int64."""
    return counts_by_key(X.indices, X.shape[1], device)


def counts_by_key(keys: Any, n: int, device: devices.Device) -> Any:
    """Number of occurrences of each of the keys 0 to n - 1, int64."""
    if not device.is_gpu:
        return np.bincount(keys, minlength=n)
    from lib.store.kernels import count_keys

    return count_keys(keys, n)


def sums_by_key(keys: Any, values: Any, n: int, device: devices.Device) -> Any:
    """Sum of `values` over each key: n sums, float64, exact for integers below 2^53.

    The threads of a GPU add in no fixed order. For equal sums from equal input, integers are added: multiples of a
    power of two that is smaller than the largest value by a factor of 2^36 or more. The error is far below float32's.

    Parameters
    ----------
    keys
        Integers from 0 to n - 1, one per value.
    """
    if not device.is_gpu:
        return np.bincount(keys, weights=values, minlength=n)
    from lib.store.kernels import add_by_key

    return add_by_key(keys, values, n)


def dense(X: Any, device: devices.Device) -> Any:
    """A CSR matrix without duplicates as a dense array of its dtype."""
    if not device.is_gpu:
        return X.toarray()
    out = device.xp.zeros(X.shape, X.dtype)
    out.ravel()[rows_of_nonzeros(X, device) * X.shape[1] + X.indices] = X.data
    return out


def rows_of_nonzeros(X: Any, device: devices.Device) -> Any:
    """The row of each non-zero of a CSR matrix, int64."""
    if not device.is_gpu:
        return np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    from lib.store.kernels import rows_of_nonzeros

    return rows_of_nonzeros(X.indptr, X.nnz)
