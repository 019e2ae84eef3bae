"""The counts store: one HDF5 file in AnnData's layout, written once and streamed ever after.

`anndata.read_h5ad` reads it like any other file. What makes it fast to stream: the non-zeros lie in
HDF5 chunks of `CHUNK` elements, uint16 where they fit, shuffled and deflated; the chunks are read raw and
inflated by several threads, ahead of the consumer. Formats and codecs measured: `scripts/README.md`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import pandas as pd
from isal import isal_zlib

from . import device as devices

CHUNK = 1 << 18  # elements of an HDF5 chunk
ROWS_NNZ = 6_000_000  # non-zeros of a row chunk: what one step of a stream holds
READ_AHEAD = 2  # row chunks decoded ahead of the consumer


@dataclass(frozen=True)
class Chunk:
    """Consecutive cells of a stream: `X` holds cells `start` to `start + X.shape[0]`, CSR, on the stream's device."""

    start: int
    X: Any

    @property
    def rows(self) -> slice:
        """Where these cells stand among all cells of the stream."""
        return slice(self.start, self.start + self.X.shape[0])


class Stream(Protocol):
    """Counts as a re-iterable sequence of row chunks: what the stages' functions take."""

    n_obs: int
    n_vars: int
    device: devices.Device

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """All cells in order, as chunks of at most `max_cells` cells."""


class InMemory:
    """A matrix in memory as a stream, for small batches and for tests."""

    def __init__(self, X: Any, device: devices.Device | None = None, max_cells: int = 1000) -> None:
        self.device = device or devices.resolve("cpu")
        self.X = self.device.sparse.csr_matrix(X)
        self.n_obs, self.n_vars = self.X.shape
        self.max_cells = max_cells

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """The matrix by slices of rows."""
        step = min(self.max_cells, max_cells or self.max_cells)
        for start in range(0, self.n_obs, step):
            yield Chunk(start, self.X[start : start + step])


class CountsWriter:
    """Writes a counts store in a stream of CSR chunks; memory is bounded by the chunk and `indptr`.

    Parameters
    ----------
    path
        File to create.
    n_vars
        Genes.
    dtype
        Type of the counts on disk: uint16 unless a count needs uint32.
    """

    def __init__(self, path: str | Path, n_vars: int, dtype: Any = np.uint16) -> None:
        self.file = h5py.File(path, "w", libver="latest")
        self.n_vars = n_vars
        self.indptr: list[np.ndarray] = [np.zeros(1, np.int64)]
        self.nnz = 0
        group = self.file.create_group("X")
        index_dtype = np.uint16 if n_vars <= 1 << 16 else np.int32
        self.arrays = {
            "data": CompressedArray(group, "data", dtype),
            "indices": CompressedArray(group, "indices", index_dtype),
        }

    def append(self, X: Any) -> None:
        """Add the rows of a CSR matrix with sorted indices.

        Raises
        ------
        OverflowError
            If a count does not fit the store's dtype.
        """
        dtype = self.arrays["data"].dtype
        if X.nnz and X.data.max() > np.iinfo(dtype).max:
            raise OverflowError(f"a count of {X.data.max()} does not fit {np.dtype(dtype).name}")
        self.arrays["data"].append(X.data)
        self.arrays["indices"].append(X.indices)
        self.indptr.append(X.indptr[1:].astype(np.int64) + self.nnz)
        self.nnz += int(X.indptr[-1])

    def close(self, obs: pd.DataFrame, var: pd.DataFrame, **elements: Any) -> None:
        """Write what is left of the arrays, then obs, var and any further element of an AnnData (`uns=...`)."""
        from anndata.io import write_elem

        obs, var = plain_strings(obs), plain_strings(var)
        for array in self.arrays.values():
            array.close()
        indptr = np.concatenate(self.indptr)
        group = self.file["X"]
        group.create_dataset("indptr", data=indptr, compression="gzip", shuffle=True)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([len(indptr) - 1, self.n_vars])
        self.file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name, element in {"obs": obs, "var": var, **elements}.items():
            write_elem(self.file, name, element)
        self.file.close()

    def abort(self) -> None:
        """Close the file as it is, after an error."""
        self.file.close()


class CompressedArray:
    """A growing 1-D HDF5 dataset (shuffle + deflate) whose chunks are compressed by threads and written raw."""

    def __init__(self, group: h5py.Group, name: str, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self.dataset = group.create_dataset(
            name,
            (0,),
            self.dtype,
            maxshape=(None,),
            chunks=(CHUNK,),
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        self.pending: list[np.ndarray] = []
        self.n_pending = 0
        self.n = 0

    def append(self, values: np.ndarray) -> None:
        """Add values, of any dtype that casts to the array's."""
        self.pending.append(values.astype(self.dtype))
        self.n_pending += len(values)
        if self.n_pending >= 8 * CHUNK:
            self._flush(self.n_pending // CHUNK * CHUNK)

    def close(self) -> None:
        """Write the last, partly filled chunk."""
        self._flush(self.n_pending)

    def _flush(self, n: int) -> None:
        values = np.concatenate(self.pending) if self.pending else np.empty(0, self.dtype)
        self.pending, self.n_pending = [values[n:]], len(values) - n
        values = values[:n]
        self.dataset.resize((self.n + n,))
        starts = range(0, n, CHUNK)
        for start, deflated in zip(starts, pool().map(lambda s: _deflate(values[s : s + CHUNK]), starts), strict=True):
            self.dataset.id.write_direct_chunk((self.n + start,), deflated)
        self.n += n


class Counts:
    """A counts store opened for streaming.

    Parameters
    ----------
    path
        Store to read.
    device
        Where chunks are wanted; the CPU by default.
    cells
        Boolean mask of the cells to stream; all by default.
    genes
        For each gene of the store its column in the stream, -1 to leave it out; all by default.
        Any order: columns come out sorted within each cell.
    n_vars
        Columns of the stream when `genes` is given.

    Attributes
    ----------
    n_obs, n_vars
        Shape of the stream.
    nnz, dtype
        Non-zeros of the store and their type on disk.
    """

    def __init__(
        self,
        path: str | Path,
        device: devices.Device | None = None,
        cells: np.ndarray | None = None,
        genes: np.ndarray | None = None,
        n_vars: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.device = device or devices.resolve("cpu")
        with h5py.File(path, "r", locking=False) as file:
            self.indptr = file["X/indptr"][...]
            n_obs, store_vars = (int(n) for n in file["X"].attrs["shape"])
            self.dtype = file["X/data"].dtype
        self.nnz = int(self.indptr[-1])
        self.cells = np.ones(n_obs, bool) if cells is None else np.asarray(cells, bool)
        self.genes = None if genes is None else np.asarray(genes, np.int32)
        self.n_obs = int(self.cells.sum())
        self.n_vars = store_vars if n_vars is None else n_vars

    def names(self, axis: str, column: str = "_index") -> np.ndarray:
        """A column of strings of `obs` or `var`, by default the index."""
        with h5py.File(self.path, "r", locking=False) as file:
            column = file[axis].attrs["_index"] if column == "_index" else column
            return _values(file[axis][column])

    def column(self, name: str) -> np.ndarray:
        """A column of `obs`: strings or numbers; of a categorical one its cells' categories ("" where missing)."""
        with h5py.File(self.path, "r", locking=False) as file:
            column = file["obs"][name]
            if "categories" not in column:
                return _values(column)
            categories, codes = _values(column["categories"]), column["codes"][...]
        if (codes < 0).any():
            categories = np.append(categories.astype(object), "")
        return categories[codes]

    def chunks(self, max_cells: int | None = None, max_nnz: int = ROWS_NNZ) -> Iterator[Chunk]:
        """The chosen cells in order, in chunks of at most `max_cells` cells and some `max_nnz` non-zeros."""
        with h5py.File(self.path, "r", locking=False) as file:
            arrays = [file["X/data"], file["X/indices"]]
            waiting: deque[tuple[int, int, list[Future]]] = deque()
            done = 0
            for first, last in [*self._row_ranges(max_cells, max_nnz), (None, None)]:
                if first is not None:
                    if not self.cells[first:last].any():
                        continue
                    span = self.indptr[first], self.indptr[last]
                    waiting.append((first, last, [_read_span(array, *span) for array in arrays]))
                while waiting and (first is None or len(waiting) > READ_AHEAD):
                    X = self._matrix(*waiting.popleft())
                    if X.shape[0]:
                        yield Chunk(done, X)
                        done += X.shape[0]

    def _row_ranges(self, max_cells: int | None, max_nnz: int) -> Iterator[tuple[int, int]]:
        """Row ranges of the store, each within both limits (one row may exceed `max_nnz`)."""
        first, n = 0, len(self.indptr) - 1
        while first < n:
            last = int(np.searchsorted(self.indptr, self.indptr[first] + max_nnz, "right")) - 1
            last = max(first + 1, min(last, n, first + (max_cells or n)))
            yield first, last
            first = last

    def _matrix(self, first: int, last: int, pieces: list[list[Future]]) -> Any:
        data, indices = (np.concatenate([p.result() for p in piece]) if piece else np.empty(0) for piece in pieces)
        xp, csr = self.device.xp, self.device.sparse.csr_matrix
        data, indices = xp.asarray(data), xp.asarray(indices).astype(np.int32)
        indptr = xp.asarray(self.indptr[first : last + 1] - self.indptr[first]).astype(np.int32)
        shape = (last - first, len(self.genes) if self.genes is not None else self.n_vars)
        X = csr((data, indices, indptr), shape=shape)
        keep = self.cells[first:last]
        if not keep.all():
            X = X[np.flatnonzero(keep)]
        return X if self.genes is None else select_genes(X, self.genes, self.n_vars, self.device)


def plain_strings(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its strings as objects: what every version of AnnData writes, and reads, alike."""
    table = table.set_axis(table.index.astype(object), axis=0)
    for name, column in table.items():
        if isinstance(column.dtype, pd.StringDtype):
            table[name] = column.astype(object)
        elif isinstance(column.dtype, pd.CategoricalDtype) and isinstance(column.cat.categories.dtype, pd.StringDtype):
            table[name] = column.cat.rename_categories(column.cat.categories.astype(object))
    return table


def _values(dataset: h5py.Dataset) -> np.ndarray:
    return dataset.asstr()[...] if h5py.check_string_dtype(dataset.dtype) else dataset[...]


def select_genes(X: Any, genes: np.ndarray, n_vars: int, device: devices.Device) -> Any:
    """Map the columns of a CSR matrix.

    Parameters
    ----------
    X
        cells x genes, CSR.
    genes
        For each column of `X` its new column, -1 to drop it; int32.
    n_vars
        Number of new columns.
    """
    xp = device.xp
    genes = xp.asarray(genes)
    columns = genes[X.indices]
    keep = columns >= 0
    before = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(keep, dtype=np.int64)])
    indptr = before[X.indptr].astype(np.int32)
    out = device.sparse.csr_matrix((X.data[keep], columns[keep], indptr), shape=(X.shape[0], n_vars))
    kept = genes[genes >= 0]
    if bool((kept[1:] < kept[:-1]).any()):
        out.sort_indices()
    return out


def row_sums(X: Any, device: devices.Device, values: Any = None) -> Any:
    """Sum over each row of a CSR matrix of `values`, one integer per non-zero (default: its counts), exact, int64."""
    xp = device.xp
    values = X.data if values is None else values
    running = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(values, dtype=np.int64)])
    return running[X.indptr[1:]] - running[X.indptr[:-1]]


def column_sums(X: Any, values: Any, device: devices.Device) -> Any:
    """Sum of `values`, one per non-zero of `X`, over each column: float64, exact for integers below 2^53."""
    return device.xp.bincount(X.indices, weights=values, minlength=X.shape[1])


def rows_of_nonzeros(X: Any, device: devices.Device) -> Any:
    """For each non-zero of a CSR matrix its row, int64."""
    xp = device.xp
    if xp is np:
        return np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    return xp.searchsorted(X.indptr[1:], xp.arange(X.nnz), side="right")  # CuPy repeats by host lists only


_POOL: ThreadPoolExecutor | None = None


def set_threads(n: int) -> None:
    """Threads that compress and decompress; by default as many as there are cores."""
    global _POOL
    _POOL = ThreadPoolExecutor(n)


def pool() -> ThreadPoolExecutor:
    """The threads that compress and decompress. A task of theirs must not wait for another."""
    if _POOL is None:
        set_threads(os.cpu_count() or 1)
    return _POOL


def _read_span(array: h5py.Dataset, start: int, stop: int) -> list[Future]:
    """Elements `start` to `stop` of a compressed array, as futures of consecutive pieces."""
    pieces = []
    for at in range(start // CHUNK * CHUNK, stop, CHUNK):
        pieces.append(pool().submit(_inflate, array, at, max(start - at, 0), min(stop - at, CHUNK)))
    return pieces


def _deflate(values: np.ndarray) -> bytes:
    padded = np.zeros(CHUNK, values.dtype)
    padded[: len(values)] = values
    shuffled = padded.view(np.uint8).reshape(CHUNK, -1).T
    return isal_zlib.compress(shuffled.tobytes(), 1)


def _inflate(array: h5py.Dataset, at: int, low: int, high: int) -> np.ndarray:
    _, deflated = array.id.read_direct_chunk((at,))
    size = array.dtype.itemsize
    shuffled = np.frombuffer(isal_zlib.decompress(deflated, bufsize=CHUNK * size), np.uint8).reshape(size, CHUNK)
    values = np.empty((high - low, size), np.uint8)
    for byte in range(size):
        values[:, byte] = shuffled[byte, low:high]
    return values.view(array.dtype).ravel()
