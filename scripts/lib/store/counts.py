"""The counts store: one HDF5 file in AnnData's layout, written once and streamed from then on.

`anndata.read_h5ad` reads it like any other file. Streaming is fast because the non-zeros lie in compressed chunks
(`lib.store.compressed`), as uint16 if they fit, and threads inflate them ahead of the consumer. For a GPU they inflate
them into pinned buffers, which are copied while the GPU computes (`lib.store.upload`). `scripts/README.md` has the
measurements of formats and codecs.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from copy import copy
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from lib.run import device as devices
from lib.run.clock import counted, spending
from lib.store import identity
from lib.store.compressed import CompressedArray, CompressedReader
from lib.store.csr import on_host, select_genes
from lib.store.files import LIBVER
from lib.store.h5ad import read_array, read_frame, write_frame
from lib.store.names import escape_key
from lib.store.stream import ROWS_NNZ, Chunk, chunk_size

READ_AHEAD = 2  # row chunks decoded ahead of the consumer
GENES = ("gene_symbols", "gene_ids")  # columns of var, beside its index


class CountsWriter:
    """Writes a counts store from CSR chunks; memory is bounded by the chunk and `indptr`.

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
        """Add the rows of a CSR matrix with sorted indices, on any device.

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
            # The threads that deflate also cast; arrays of a GPU are cast there, so that fewer bytes are copied
            array.append(values if isinstance(values, np.ndarray) else on_host(values.astype(dtypes[name])))
        indptr = on_host(X.indptr).astype(np.int64)
        self.indptr.append(indptr[1:] + self.nnz)
        self.nnz += int(indptr[-1])

    def close(self, obs: pd.DataFrame, var: pd.DataFrame, scope: str = "sample") -> None:
        """Write the rest of the arrays, then obs and var; `scope` is sample or cohort (`lib.store.identity`)."""
        for array in self.arrays.values():
            array.close()
        indptr = np.concatenate(self.indptr)
        group = self.file["X"]
        group.create_dataset("indptr", data=indptr, compression="gzip", shuffle=True)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([len(indptr) - 1, self.n_vars])
        self.file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self.file.attrs[identity.KEY] = identity.mark_of_names(obs.index, scope)
        names = [var.index, *(var[name] for name in GENES if name in var)]
        self.file.attrs[identity.GENES] = identity.mark_of_genes(names)
        for name, table in {"obs": obs, "var": var}.items():
            write_frame(self.file, name, table)
        self.file.close()

    def abort(self) -> None:
        """Close the unfinished file after an error."""
        self.file.close()


class Counts:
    """A counts store opened for streaming.

    Parameters
    ----------
    path
        Store to read.
    device
        The device of the chunks; the CPU by default.
    cells
        Boolean mask of the cells to stream; all by default.
    genes
        The column of each gene of the store in the stream, -1 to leave it out; all by default.
        The order is free: columns are sorted within each cell of a chunk.
    n_vars
        Columns of the stream when `genes` is given.

    Attributes
    ----------
    n_obs, n_vars
        Shape of the stream.
    nnz, dtype
        Non-zeros of the store and their type on disk.
    mark
        Equal for stores of the same genes in the same order.
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
            self.mark = file.attrs.get(identity.GENES, str(path))  # stores of earlier versions have none
        self.nnz = int(self.indptr[-1])
        self.cells, self.genes, self.n_obs, self.n_vars = np.ones(n_obs, bool), None, n_obs, store_vars
        self._choose(cells, genes, n_vars)

    def _choose(self, cells: np.ndarray | None, genes: np.ndarray | None, n_vars: int | None) -> None:
        if cells is not None:
            self.cells = np.asarray(cells, bool)
            self.n_obs = int(self.cells.sum())
        if genes is not None:
            self.genes = np.asarray(genes, np.int32)
        if n_vars is not None:
            self.n_vars = n_vars

    def part(
        self, cells: np.ndarray | None = None, genes: np.ndarray | None = None, n_vars: int | None = None
    ) -> Counts:
        """The store with other cells or genes to stream, without opening it anew."""
        part = copy(self)
        part._choose(cells, genes, n_vars)
        return part

    @counted("read")
    def names(self, axis: str, column: str = "_index") -> np.ndarray:
        """A column of strings of `obs` or `var`, by default the index."""
        with h5py.File(self.path, "r", locking=False) as file:
            column = file[axis].attrs["_index"] if column == "_index" else column
            return read_array(file[axis][escape_key(column)])

    @counted("read")
    def flags(self) -> dict[str, np.ndarray]:
        """The boolean columns of `var`."""
        with h5py.File(self.path, "r", locking=False) as file:
            columns = {name: column for name, column in file["var"].items() if isinstance(column, h5py.Dataset)}
            return {name: column[...] for name, column in columns.items() if column.dtype == bool}

    @counted("read")
    def column(self, name: str) -> np.ndarray:
        """A column of `obs`: strings or numbers; categories as strings, "" if missing."""
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
        """The table of cells."""
        with h5py.File(self.path, "r", locking=False) as file:
            return read_frame(file["obs"])

    @counted("read")
    def var(self) -> pd.DataFrame:
        """The table of genes."""
        with h5py.File(self.path, "r", locking=False) as file:
            return read_frame(file["var"])

    def chunks(self, max_cells: int | None = None, max_nnz: int | None = None) -> Iterator[Chunk]:
        """The chosen cells in order, in chunks of at most `max_cells` cells and about `max_nnz` non-zeros."""
        max_nnz = chunk_size(max_nnz or ROWS_NNZ[self.device.name])
        max_cells = max_cells and chunk_size(max_cells)
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
    from lib.store.upload import Upload

    return Upload(path, readers, largest, READ_AHEAD + 1)


class _Fetch:
    """Reads spans of the non-zeros' counts and columns, which threads inflate."""

    def __init__(self, path: Path, readers: Sequence[CompressedReader]) -> None:
        self.fd, self.readers = os.open(path, os.O_RDONLY), readers

    def submit(self, start: int, stop: int) -> list[list[Future]]:
        """Have the threads inflate a span."""
        return [reader.read(self.fd, start, stop) for reader in self.readers]

    def take(self, ticket: list[list[Future]], indptr: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, ...]:
        """Counts, columns and indptr (both int32) of the rows to keep; `indptr` has the bounds of the span's rows."""
        data, indices = (np.concatenate([p.result() for p in pieces]) if pieces else np.empty(0) for pieces in ticket)
        indices, indptr = indices.astype(np.int32), indptr.astype(np.int32)
        if keep.all():
            return data, indices, indptr
        from scipy.sparse import csr_matrix

        X = csr_matrix((data, indices, indptr), shape=(len(keep), np.iinfo(np.int32).max))[np.flatnonzero(keep)]
        return X.data, X.indices, X.indptr

    def close(self) -> None:
        """Close the file. Tasks that are still queued for a consumer that stopped fail silently."""
        os.close(self.fd)
