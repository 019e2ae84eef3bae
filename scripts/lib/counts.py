"""The counts store: one HDF5 file in AnnData's layout, written once and streamed ever after.

`anndata.read_h5ad` reads it like any other file. What makes it fast to stream: the non-zeros lie in compressed chunks
(`lib.compressed`), uint16 where they fit, which threads inflate ahead of the consumer; for a GPU they inflate into
pinned buffers that travel while it computes (`lib.upload`). Formats and codecs measured: `scripts/README.md`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import pandas as pd

from . import device as devices
from . import identity
from .clock import counted, spending
from .compressed import CompressedArray, CompressedReader
from .files import LIBVER
from .h5ad import read_array, read_frame, write_frame
from .names import escape_key

ROWS_NNZ = {"cpu": 6_000_000, "gpu": 16_000_000}  # non-zeros of a row chunk: what one step of a stream holds
READ_AHEAD = 2  # row chunks decoded ahead of the consumer
SMALLEST = 1 / 64  # of these sizes: the least that `halve_chunks` comes to

_SHARE = 1.0  # of the sizes that chunks have in this process


def halve_chunks() -> bool:
    """Make the chunks of all streams in this process half as large; False if they are as small as they get."""
    global _SHARE
    _SHARE /= 2
    return _SHARE >= SMALLEST


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
        self.device = device or devices.cpu()
        self.X = self.device.sparse.csr_matrix(X)
        self.n_obs, self.n_vars = self.X.shape
        self.max_cells = max_cells

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """The matrix by slices of rows."""
        step = max(1, int(_SHARE * min(self.max_cells, max_cells or self.max_cells)))
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
        self.file = h5py.File(path, "w", libver=LIBVER)
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
        """Add the rows of a CSR matrix with sorted indices, of any device.

        Raises
        ------
        OverflowError
            If a count does not fit the store's dtype.
        """
        dtypes = {name: array.dtype for name, array in self.arrays.items()}
        if X.nnz and X.data.max() > np.iinfo(dtypes["data"]).max:
            raise OverflowError(f"a count of {X.data.max()} does not fit {dtypes['data'].name}")
        for name, array in self.arrays.items():
            values = getattr(X, name)
            # The threads that deflate cast, too; from a GPU the compact ones travel
            array.append(values if isinstance(values, np.ndarray) else on_host(values.astype(dtypes[name])))
        indptr = on_host(X.indptr).astype(np.int64)
        self.indptr.append(indptr[1:] + self.nnz)
        self.nnz += int(indptr[-1])

    def close(self, obs: pd.DataFrame, var: pd.DataFrame, scope: str = "sample") -> None:
        """Write what is left of the arrays, then obs and var; `scope`: whose cells they are (lib.identity)."""
        for array in self.arrays.values():
            array.close()
        indptr = np.concatenate(self.indptr)
        group = self.file["X"]
        group.create_dataset("indptr", data=indptr, compression="gzip", shuffle=True)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([len(indptr) - 1, self.n_vars])
        self.file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self.file.attrs[identity.KEY] = identity.mark_of_names(obs.index, scope)
        for name, table in {"obs": obs, "var": var}.items():
            write_frame(self.file, name, table)
        self.file.close()

    def abort(self) -> None:
        """Close the file as it is, after an error."""
        self.file.close()


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
        self.device = device or devices.cpu()
        with h5py.File(path, "r", locking=False) as file:
            self.indptr = file["X/indptr"][...]
            n_obs, store_vars = (int(n) for n in file["X"].attrs["shape"])
            self.dtype = file["X/data"].dtype
        self.nnz = int(self.indptr[-1])
        self.cells = np.ones(n_obs, bool) if cells is None else np.asarray(cells, bool)
        self.genes = None if genes is None else np.asarray(genes, np.int32)
        self.n_obs = int(self.cells.sum())
        self.n_vars = store_vars if n_vars is None else n_vars

    @counted("read")
    def names(self, axis: str, column: str = "_index") -> np.ndarray:
        """A column of strings of `obs` or `var`, by default the index."""
        with h5py.File(self.path, "r", locking=False) as file:
            column = file[axis].attrs["_index"] if column == "_index" else column
            return read_array(file[axis][escape_key(column)])

    @counted("read")
    def column(self, name: str) -> np.ndarray:
        """A column of `obs`: strings or numbers; of a categorical one its cells' categories ("" where missing)."""
        with h5py.File(self.path, "r", locking=False) as file:
            column = file["obs"][escape_key(name)]
            if "categories" not in column:
                return read_array(column)
            categories, codes = read_array(column["categories"]), column["codes"][...]
        if (codes < 0).any():
            categories = np.append(categories.astype(object), "")
        return categories[codes]

    @counted("read")
    def obs(self) -> pd.DataFrame:
        """The cells' table."""
        with h5py.File(self.path, "r", locking=False) as file:
            return read_frame(file["obs"])

    def chunks(self, max_cells: int | None = None, max_nnz: int | None = None) -> Iterator[Chunk]:
        """The chosen cells in order, in chunks of at most `max_cells` cells and some `max_nnz` non-zeros."""
        max_nnz = max(1, int(_SHARE * (max_nnz or ROWS_NNZ[self.device.name])))
        max_cells = max_cells and max(1, int(_SHARE * max_cells))
        ranges = [rows for rows in self._row_ranges(max_cells, max_nnz) if self.cells[slice(*rows)].any()]
        if not ranges:
            return
        with h5py.File(self.path, "r", locking=False) as file:
            readers = [CompressedReader(file[name]) for name in ("X/data", "X/indices")]
        largest = max(self.indptr[last] - self.indptr[first] for first, last in ranges)
        fetch = _fetcher(self.path, readers, int(largest), self.device)
        done, waiting = 0, deque()
        try:
            for rows in [*ranges, None]:
                if rows is not None:
                    span = int(self.indptr[rows[0]]), int(self.indptr[rows[1]])
                    waiting.append((rows, fetch.submit(*span)))
                while waiting and (rows is None or len(waiting) > READ_AHEAD):
                    (first, last), ticket = waiting.popleft()
                    with spending("read"):
                        indptr = self.indptr[first : last + 1] - self.indptr[first]
                        arrays = fetch.take(ticket, indptr, self.cells[first:last])
                    X = self._matrix(*arrays)
                    yield Chunk(done, X)
                    done += X.shape[0]
        finally:
            fetch.close()

    def _row_ranges(self, max_cells: int | None, max_nnz: int) -> Iterator[tuple[int, int]]:
        """Row ranges from the first chosen cell to the last, each within both limits (one row may exceed `max_nnz`)."""
        chosen = np.flatnonzero(self.cells)
        first, n = (int(chosen[0]), int(chosen[-1]) + 1) if len(chosen) else (0, 0)
        while first < n:
            last = int(np.searchsorted(self.indptr, self.indptr[first] + max_nnz, "right")) - 1
            last = max(first + 1, min(last, n, first + (max_cells or n)))
            yield first, last
            first = last

    def _matrix(self, data: Any, indices: Any, indptr: Any) -> Any:
        shape = len(indptr) - 1, len(self.genes) if self.genes is not None else self.n_vars
        X = self.device.sparse.csr_matrix((data, indices, indptr), shape=shape)
        return X if self.genes is None else select_genes(X, self.genes, self.n_vars, self.device)


class Stores:
    """Several stores, at least one, as one stream of the same genes: the samples, or the parts of the features."""

    def __init__(self, stores: Sequence[Counts]) -> None:
        self.stores = list(stores)
        self.device, self.n_vars = self.stores[0].device, self.stores[0].n_vars
        self.n_obs = sum(store.n_obs for store in self.stores)

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """The cells of one store after the other, in chunks."""
        done = 0
        for store in self.stores:
            for chunk in store.chunks(max_cells):
                yield Chunk(done + chunk.start, chunk.X)
            done += store.n_obs


def _fetcher(path: Path, readers: Sequence[CompressedReader], largest: int, device: devices.Device) -> Any:
    if not device.is_gpu:
        return _Fetch(path, readers)
    from .upload import Upload

    return Upload(path, readers, largest, READ_AHEAD + 1)


class _Fetch:
    """Spans of the non-zeros' counts and columns, inflated by threads."""

    def __init__(self, path: Path, readers: Sequence[CompressedReader]) -> None:
        self.fd, self.readers = os.open(path, os.O_RDONLY), readers

    def submit(self, start: int, stop: int) -> list[list[Future]]:
        """Have the threads inflate a span."""
        return [reader.read(self.fd, start, stop) for reader in self.readers]

    def take(self, ticket: list[list[Future]], indptr: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of the span's rows that `indptr` parts those to keep: their counts, columns and indptr, both int32."""
        data, indices = (np.concatenate([p.result() for p in pieces]) if pieces else np.empty(0) for pieces in ticket)
        indices, indptr = indices.astype(np.int32), indptr.astype(np.int32)
        if keep.all():
            return data, indices, indptr
        from scipy.sparse import csr_matrix

        X = csr_matrix((data, indices, indptr), shape=(len(keep), np.iinfo(np.int32).max))[np.flatnonzero(keep)]
        return X.data, X.indices, X.indptr

    def close(self) -> None:
        """Close the file. Threads that still inflate for a consumer who left fail, unseen."""
        os.close(self.fd)


def on_host(array: Any) -> np.ndarray:
    """An array of any device as NumPy's."""
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
        For each column of `X` its new column, -1 to drop it; int32.
    n_vars
        Number of new columns.
    """
    if device.is_gpu:
        from .kernels import move_columns

        parts = move_columns(X, device.xp.asarray(genes))
    else:
        columns = genes[X.indices]
        keep = np.flatnonzero(columns >= 0)
        parts = X.data[keep], columns[keep], np.searchsorted(keep, X.indptr).astype(np.int32)
    out = device.sparse.csr_matrix(parts, shape=(X.shape[0], n_vars))
    kept = genes[genes >= 0]
    if (kept[1:] < kept[:-1]).any():
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
    return sums_by_key(X.indices, values, X.shape[1], device)


def column_counts(X: Any, device: devices.Device) -> Any:
    """Number of non-zeros in each column, int64."""
    if not device.is_gpu:
        return np.bincount(X.indices, minlength=X.shape[1])
    from .kernels import count_keys

    return count_keys(X.indices, X.shape[1])


def sums_by_key(keys: Any, values: Any, n: int, device: devices.Device) -> Any:
    """Sum of `values` over each key: n sums, float64, exact for integers below 2^53.

    On the GPU, whose threads add in no order, integers are added: multiples of a power of two that is below the largest
    value by a factor of 2^36 or more. So equal input gives equal sums, with an error far below float32's.

    Parameters
    ----------
    keys
        Integers from 0 to n - 1, one per value.
    """
    if not device.is_gpu:
        return np.bincount(keys, weights=values, minlength=n)
    from .kernels import add_by_key

    return add_by_key(keys, values, n)


def dense(X: Any, device: devices.Device) -> Any:
    """A CSR matrix without duplicates as a dense array of its dtype."""
    if not device.is_gpu:
        return X.toarray()
    out = device.xp.zeros(X.shape, X.dtype)
    out.ravel()[rows_of_nonzeros(X, device) * X.shape[1] + X.indices] = X.data
    return out


def rows_of_nonzeros(X: Any, device: devices.Device) -> Any:
    """For each non-zero of a CSR matrix its row, int64."""
    if not device.is_gpu:
        return np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    from .kernels import rows_of

    return rows_of(X.indptr, X.nnz)
