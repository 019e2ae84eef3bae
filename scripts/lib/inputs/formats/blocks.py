"""Read matrices on disk in blocks of about `BLOCK` non-zeros, as checked counts in the order of cells.

A block is (first row, CSR matrix). Matrices stored by columns (CSC) or unsorted (an `.mtx` may be) are sorted by row
through a scratch file.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from lib.inputs.formats.base import LARGEST, Blocks, MatrixReader, Reader, as_counts, positions
from lib.run import device as devices
from lib.run.errors import UserError
from lib.run.resources import BLOCKS
from lib.run.stage import log
from lib.store.compressed import n_threads, pool
from lib.store.csr import rows_of_nonzeros, select_genes

T, R = TypeVar("T"), TypeVar("R")

BLOCK = 4_000_000  # non-zeros read at a time
DENSE_BLOCK = 1 << 26  # bytes of a dense matrix read at a time
RECORD = np.dtype([("row", np.int32), ("column", np.int32), ("count", np.uint32)])  # of the scratch file


class NotSortedError(Exception):
    """The file turned out not to be sorted by cell: the next call of `Reader.chunks` sorts it."""


# Checked counts in the order of cells


def checked(reader: Reader) -> Iterator[csr_matrix]:
    """A reader's blocks as chunks: see `Reader.chunks`."""
    counts = in_order(lambda block: _counts(reader, *block), reader.blocks())
    if reader.scattered:
        turned = by_rows(counts, reader.n_obs, reader.n_vars, reader.nnz, reader.scratch)
        counts = (_fitting(reader, start, X) for start, X in turned)
    yield from counts


def in_order(function: Callable[[T], R], items: Iterator[T]) -> Iterator[R]:
    """The function's value of each item; threads compute it of a few items while the next one is made."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool().submit(function, item))
        if len(waiting) >= min(BLOCKS, n_threads()):
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


def by_rows(blocks: Iterator[csr_matrix], n_obs: int, n_vars: int, nnz: int, scratch: Path | None) -> Blocks:
    """Sum blocks that hold parts of all rows, and yield one row range (first row, uint64 matrix) after the other.

    The non-zeros of each block are written to a scratch file, sorted by row; a row range is then read from one
    contiguous part per block. The file has no name, so the system removes it in any case.

    Parameters
    ----------
    blocks
        CSR matrices of uint32, each n_obs x n_vars.
    nnz
        Non-zeros of all blocks; a row range gets `BLOCK` / 2 of them on average.
    scratch
        Folder of the scratch file, which takes `RECORD.itemsize` bytes per non-zero.
    """
    step = max(1, n_obs * (BLOCK // 2) // max(nnz, 1))
    edges = np.append(np.arange(0, n_obs, step), n_obs)
    stretches: list[np.ndarray] = []
    with tempfile.TemporaryFile(dir=scratch) as file:
        for X in blocks:
            records = np.empty(X.nnz, RECORD)
            records["row"], records["column"] = rows_of_nonzeros(X, devices.resolve("cpu")), X.indices
            records["count"] = X.data
            stretches.append(file.tell() + X.indptr[edges].astype(np.int64) * RECORD.itemsize)
            file.write(records.view(np.uint8))
        log.info("scratch file of %d MB, to sort the counts by cell", file.tell() >> 20)
        for i, (first, last) in enumerate(pairwise(edges)):
            pieces = [b""]
            for stretch in stretches:
                file.seek(stretch[i])
                pieces.append(file.read(stretch[i + 1] - stretch[i]))
            records = np.frombuffer(b"".join(pieces), RECORD)
            rows, columns = records["row"] - np.int32(first), records["column"]
            counts = records["count"].astype(np.uint64)
            yield int(first), csr_matrix((counts, (rows, columns)), shape=(last - first, n_vars))


def _counts(reader: Reader, start: int, X: csr_matrix) -> csr_matrix:
    """The chosen genes of a block as canonical counts."""
    if reader.columns is not None and not reader.columns.all():
        new = np.where(reader.columns, np.cumsum(reader.columns) - 1, -1).astype(np.int32)
        X = select_genes(X, new, reader.n_vars, devices.resolve("cpu"))
    counts = as_counts(X.data)
    if counts is None:
        refuse_value(reader, start, X, first_bad(X.data))
    X = csr_matrix((counts, X.indices, X.indptr), shape=X.shape)
    if not X.has_canonical_format:
        X.data = X.data.astype(np.uint64)  # the sum of duplicates may exceed 32 bits
        X.sum_duplicates()
        X = _fitting(reader, start, X)
    if not X.data.all():
        X.eliminate_zeros()
    return X


def _fitting(reader: Reader, start: int, X: csr_matrix) -> csr_matrix:
    """A block of uint64 sums as uint32; refuses sums that do not fit."""
    if X.nnz and X.data.max() > LARGEST:
        refuse_value(reader, start, X, int(np.argmax(X.data > LARGEST)))
    return csr_matrix((X.data.astype(np.uint32), X.indices, X.indptr), shape=X.shape)


def refuse_value(reader: Reader, start: int, X: csr_matrix, at: int) -> NoReturn:
    """Raise an error that names the first value of a block that is no count, and what to do."""
    value, row = X.data[at], start + int(np.searchsorted(X.indptr, at, "right")) - 1
    gene, cell = reader.gene_symbols[X.indices[at]], reader.obs.index[row]
    logged = X.data.dtype.kind == "f" and not value.is_integer() and X.data.min() >= 0 and X.data.max() < 20
    what = " The values look log-normalised; Somersault starts from raw counts." if logged else ""
    others = ", ".join(f"{place} ({look})" for place, look in reader.places.items() if place != reader.where)
    advice = "The file has no other matrix (a layer, raw): give a file with raw counts."
    if others:
        advice = (
            f"The file also has {others}: name the one with the raw counts as `counts`, in the config "
            "(key `ingest: counts`) or in a column `counts` of the sample sheet."
        )
    raise UserError(
        f"{reader.path}: {reader.where} does not hold raw counts: the value of gene {gene} in cell {cell} is {value}, "
        f"not a whole number from 0 to {LARGEST}.{what} {advice}"
    )


def first_bad(values: np.ndarray) -> int:
    """Position of the first value that `as_counts` refuses."""
    if values.dtype.kind not in "biuf":
        return 0
    wide = values.astype(np.float64)
    good = (wide >= 0) & (wide <= LARGEST) & (np.floor(wide) == wide)
    return int(np.flatnonzero(~good)[0])


# Matrices on disk


def csr_blocks(reader: MatrixReader) -> Blocks:
    """Blocks of rows of a CSR matrix; of a CSC matrix blocks of columns, with all rows."""
    indptr, first, n, n_minor = reader.indptr, 0, len(reader.indptr) - 1, reader.shape[not reader.scattered]
    data, indices = (f"{reader.element}/{name}" for name in ("data", "indices"))
    while first < n:
        last = max(first + 1, int(np.searchsorted(indptr, indptr[first] + BLOCK, "right")) - 1)
        start, stop = int(indptr[first]), int(indptr[last])
        values = _native(reader.file.read(data, reader.matrix["data"], slice(start, stop)))
        minor = reader.file.read(indices, reader.matrix["indices"], slice(start, stop))
        minor = positions(reader.path, indices, minor, n_minor - 1, np.int32)
        own = (indptr[first : last + 1] - start).astype(np.int32)
        X = csr_matrix((values, minor, own), shape=(last - first, n_minor))
        yield turned(X, first, n) if reader.scattered else (first, X)
        first = last


def dense_blocks(reader: MatrixReader) -> Blocks:
    """Blocks of rows of a dense matrix, which may be stored transposed."""
    array, (n_obs, n_vars) = reader.matrix, reader.shape
    step = max(1, DENSE_BLOCK // max(1, n_vars * array.dtype.itemsize))
    if array.chunks and step > (chunk := array.chunks[int(reader.transposed)]):
        step -= step % chunk
    for first in range(0, n_obs, step):
        rows = slice(first, first + step)
        if reader.transposed:
            block = reader.file.read(reader.element, array, slice(None), rows).T
        else:
            block = reader.file.read(reader.element, array, rows)
        yield first, csr_matrix(_native(block))


def turned(X: csr_matrix, first: int, n_vars: int) -> tuple[int, csr_matrix]:
    """Transpose a block of genes x cells that begins at gene `first`: a block of all cells x all genes."""
    rows = csc_matrix((X.data, X.indices, X.indptr), shape=X.shape[::-1]).tocsr()
    return 0, csr_matrix((rows.data, rows.indices + np.int32(first), rows.indptr), shape=(X.shape[1], n_vars))


def _native(values: np.ndarray) -> np.ndarray:
    """Values in a dtype that SciPy's sparse matrices accept: in native byte order, not float16."""
    dtype = np.dtype(np.float32) if values.dtype.kind == "f" and values.dtype.itemsize == 2 else values.dtype
    return values.astype(dtype.newbyteorder("="), copy=False)
