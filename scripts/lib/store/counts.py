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
from lib.store import compressed, identity
from lib.store.compressed import CompressedArray, CompressedReader
from lib.store.csr import on_host, select_genes, sort_columns
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

    def close(self, obs: pd.DataFrame, var: pd.DataFrame, scope: str = "sample", mark: str | None = None) -> None:
        """Write the rest of the arrays, then obs and var.

        Parameters
        ----------
        scope, mark
            sample or cohort, and the mark of the cells (`lib.store.identity`) if it is known.
        """
        for array in self.arrays.values():
            array.close()
        indptr = np.concatenate(self.indptr)
        group = self.file["X"]
        group.create_dataset("indptr", data=indptr, compression="gzip", shuffle=True)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([len(indptr) - 1, self.n_vars])
        self.file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self.file.attrs[identity.KEY] = mark or identity.mark_of_names(obs.index, scope)
        names = [var.index, *(var[name] for name in GENES if name in var)]
        self.file.attrs[identity.GENES_KEY] = identity.mark_of_genes(names)
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
            self.mark = file.attrs.get(identity.GENES_KEY, str(path))  # stores of earlier versions have none
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
        yield from in_turn([self], max_cells, max_nnz)

    def spans(self, max_cells: int | None, max_nnz: int) -> list[slice]:
        """Ranges of rows with chosen cells, each within both limits (one row may exceed `max_nnz`)."""
        chosen, spans = np.flatnonzero(self.cells), []
        first, n = (int(chosen[0]), int(chosen[-1]) + 1) if len(chosen) else (0, 0)
        while first < n:
            last = int(np.searchsorted(self.indptr, self.indptr[first] + max_nnz, "right")) - 1
            last = max(first + 1, min(last, n, first + (max_cells or n)))
            spans.append(slice(first, last))
            first = last
        return [rows for rows in spans if self.cells[rows].any()]

    def matrix(self, data: Any, indices: Any, indptr: Any) -> Any:
        """The CSR matrix of what a reader of this store has taken."""
        if self.genes is None or not self.device.is_gpu:
            X = self.device.sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, self.n_vars))
            if self.genes is not None:
                sort_columns(X, self.genes)
            return X
        X = self.device.sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, len(self.genes)))
        return select_genes(X, self.genes, self.n_vars, self.device)


class Stores:
    """Several stores, at least one, as one stream of the same genes: the samples, or the parts of the features."""

    def __init__(self, stores: Sequence[Counts]) -> None:
        self.stores = list(stores)
        self.device, self.n_vars = self.stores[0].device, self.stores[0].n_vars
        self.n_obs = sum(store.n_obs for store in self.stores)

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """The cells of one store after the other, in chunks."""
        yield from in_turn(self.stores, max_cells)


def in_turn(stores: Sequence[Counts], max_cells: int | None = None, max_nnz: int | None = None) -> Iterator[Chunk]:
    """The chosen cells of one store after the other, in chunks: see `Counts.chunks`.

    While a chunk is computed, threads inflate the next ones, of the next store too.
    """
    device, done, waiting, opened = stores[0].device, 0, deque(), []
    max_nnz = chunk_size(max_nnz or ROWS_NNZ[device.name])
    max_cells = max_cells and chunk_size(max_cells)
    reader = _reader(device)

    def next_chunk() -> Chunk:
        nonlocal done
        source, is_last, ticket = waiting.popleft()
        with spending("read"):
            arrays = reader.take(ticket)
            if is_last:
                opened.remove(source)
                source.close()
        X = source.store.matrix(*arrays)
        done += X.shape[0]
        return Chunk(done - X.shape[0], X)

    try:
        for store in stores:
            spans = store.spans(max_cells, max_nnz)
            if spans:
                opened.append(source := Source(store))
            for i, rows in enumerate(spans, 1):
                bounds = store.indptr[rows.start : rows.stop + 1]
                waiting.append((source, i == len(spans), reader.submit(source, bounds, store.cells[rows])))
                while len(waiting) > READ_AHEAD:
                    yield next_chunk()
        while waiting:
            yield next_chunk()
    finally:
        reader.close()
        for source in opened:
            source.close()


def _reader(device: devices.Device) -> Any:
    if not device.is_gpu:
        return Reader()
    from lib.store.upload import Upload

    return Upload(READ_AHEAD + 1)


class Source:
    """A store that is being read.

    Attributes
    ----------
    readers
        Those of its counts and of its columns.
    fd
        Its file descriptor.
    genes
        The new column of each column, narrow; None if all stay as they are.
    """

    def __init__(self, store: Counts) -> None:
        self.store, self.genes = store, store.genes
        with spending("read"):
            with h5py.File(store.path, "r", locking=False) as file:
                self.readers = [CompressedReader(file[name]) for name in ("X/data", "X/indices")]
            self.fd = os.open(store.path, os.O_RDONLY)
        if self.genes is not None:  # narrow, as chunks wait in memory
            self.genes = self.genes.astype(np.uint16 if self.genes.max(initial=0) < 1 << 16 else np.int32)
            self.wanted = store.genes >= 0

    def close(self) -> None:
        """Close the file. Tasks that are still queued for a consumer that stopped fail silently."""
        os.close(self.fd)


class Reader:
    """Reads the counts and columns of spans of rows; threads inflate them, and choose rows and columns."""

    def submit(self, source: Source, bounds: np.ndarray, keep: np.ndarray) -> tuple[list[Future], np.ndarray]:
        """Have the threads read a span.

        Parameters
        ----------
        bounds
            The starts of its rows among all non-zeros, and the end of the last one.
        keep
            Mask of the chosen rows.
        """
        chunks = range(int(bounds[0]) // compressed.CHUNK * compressed.CHUNK, int(bounds[-1]), compressed.CHUNK)
        return [compressed.pool().submit(_read, source, at, bounds - at, keep) for at in chunks], keep

    def take(self, ticket: tuple[list[Future], np.ndarray]) -> tuple[np.ndarray, ...]:
        """Counts, columns and indptr (both int32) of the chosen rows of a span."""
        pieces, keep = [future.result() for future in ticket[0]], ticket[1]
        if not pieces:
            return np.empty(0), np.empty(0, np.int32), np.zeros(keep.sum() + 1, np.int32)
        data, columns = (np.concatenate([piece[i] for piece in pieces]) for i in range(2))
        indptr = sum(piece[2] for piece in pieces)
        return data, columns.astype(np.int32), indptr[np.append(True, keep)].astype(np.int32)

    def close(self) -> None:
        """Nothing to end: see `Source.close`."""


def _read(source: Source, at: int, bounds: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, ...]:
    """The chosen counts and columns of a chunk, and how many of them lie before each of the span's `bounds`."""
    (data, indices), fd, genes = source.readers, source.fd, source.genes
    bounds = np.clip(bounds, 0, compressed.CHUNK)
    if not keep[bounds[1:] > bounds[:-1]].any():  # of some cells among many, most chunks hold none
        return np.empty(0, data.dtype), np.empty(0, indices.dtype), np.zeros_like(bounds)
    span = slice(bounds[0], bounds[-1])
    columns = indices.read(fd, at, span)
    if genes is None and keep.all():
        return data.read(fd, at, span), columns, bounds - bounds[0]
    mask = np.repeat(keep, np.diff(bounds))
    if genes is not None:  # NumPy takes faster where it need not check
        mask &= source.wanted.take(columns, mode="clip")
    chosen = np.flatnonzero(mask)
    columns = columns[chosen] if genes is None else genes.take(columns[chosen], mode="clip")
    return data.read(fd, at, chosen + bounds[0]), columns, np.searchsorted(chosen, bounds - bounds[0])
