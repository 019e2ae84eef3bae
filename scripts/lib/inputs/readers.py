"""Readers of raw counts: any format that scanpy's users have, as one stream of rows in bounded memory.

`open_counts` gives a `Reader` for a 10x folder, a 10x `.h5`, an `.h5ad`, a `.zarr`, a `.loom` or a table of text. Its
chunks hold some `BLOCK` non-zeros, checked to be counts. What lies by columns on disk (CSC), or in no order (an `.mtx`
may), is turned into rows through a scratch file.
"""

from __future__ import annotations

import csv
import errno
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import deflate
import h5py
import numpy as np
import pandas as pd
from isal import isal_zlib
from scipy.sparse import csc_matrix, csr_matrix

from lib.inputs.headers import (
    LARGEST,
    SPARSE,
    as_counts,
    check_anndata,
    check_mtx_shape,
    choice,
    damaged,
    format_of,
    loom_matrices,
    matrices_of,
    mtx_header,
    places_of,
    tenx_files,
    tenx_group,
    unreadable,
)
from lib.inputs.texttable import Layout, encoding_of, layout_of, numbers, open_file, orientation_of, text_lines
from lib.run import device as devices
from lib.run.errors import UserError
from lib.run.imports import import_lean
from lib.run.stage import log, notice
from lib.store.compressed import pool
from lib.store.csr import rows_of_nonzeros, select_genes

if TYPE_CHECKING:
    import zarr

    Array = h5py.Dataset | zarr.Array
    Group = h5py.Group | zarr.Group

# What reading a damaged file raises
DAMAGED = (OSError, EOFError, deflate.DeflateError, isal_zlib.error, pd.errors.ParserError)
BLOCK = 4_000_000  # non-zeros that are read at a time
DENSE_BLOCK = 1 << 26  # bytes of a dense matrix that are read at a time
RECORD = np.dtype([("row", np.int32), ("column", np.int32), ("count", np.uint32)])  # of the scratch file

GENES = "gene expression"  # 10x's feature type, in small letters
NO_TYPE = ("", "na", "nan", "none", "unknown")
OTHER_TYPES = ("antibody", "crispr", "multiplexing", "peak", "custom", "antigen", "vdj")  # how 10x's other types begin
SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "gene_names", "gene_name", "feature_name", "symbol", "Symbol")
LOOM_CELLS = ("CellID", "obs_names", "barcode", "barcodes", "cell_names", "cell_id", "cell_ids", "Barcode")
LOOM_GENES = ("Gene", "var_names", "gene_name", "gene_names", "gene_symbols", "Symbol", "target_name", "Accession")
LOOM_GENES += ("gene_id", "gene_ids", "Name")
ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_ids", "ensembl_id", "ensembl", "feature_id", "Accession")

Blocks = Callable[[], Iterator[tuple[int, csr_matrix]]]


class NotSortedError(Exception):
    """The file turned out not to be in the order of its cells: `Reader.chunks`, called again, will mend it."""


@dataclass
class Reader:
    """One file's raw counts, cells x genes.

    Attributes
    ----------
    path
        The file or folder.
    where
        Where in the file the counts are: X, raw, layers/NAME, matrix.
    obs
        The file's table of cells; its index holds the barcodes, as in the file.
    gene_symbols, gene_ids
        Per gene, as in the file, strings; where one of them is empty or absent, the other.
    nnz
        Non-zeros of the file where it says so, else an estimate from above.
    blocks
        The matrix as on disk: gives (first row, CSR) over all the file's columns.
    scattered
        Whether the blocks hold parts of all rows, rather than the file's rows one after the other.
    columns
        Mask of the file's columns to take.
    places
        Where else the file may keep counts, each with what it looks like.
    scratch
        Folder of the scratch file.
    flags
        The file's own boolean columns of its table of genes.
    """

    path: Path
    where: str
    obs: pd.DataFrame
    gene_symbols: np.ndarray
    gene_ids: np.ndarray
    nnz: int
    blocks: Blocks
    scattered: bool = False
    columns: np.ndarray | None = None
    places: dict[str, str] = field(default_factory=dict)
    scratch: Path | None = None
    flags: pd.DataFrame | None = None

    @property
    def n_obs(self) -> int:
        """Cells."""
        return len(self.obs)

    @property
    def n_vars(self) -> int:
        """Genes."""
        return len(self.gene_symbols)

    def chunks(self) -> Iterator[csr_matrix]:
        """All cells in order, as CSR matrices of uint32 with sorted indices, without duplicates and explicit zeros.

        Raises
        ------
        UserError
            If a value, or the sum of what stands for one cell and gene, is not a count (which cell, gene and value), or
            the file is damaged.
        NotSortedError
            If the file is not sorted by cell, although it began so.
        """
        blocks = (self._counts(start, X) for start, X in self.blocks())
        if self.scattered:
            parts = by_rows(blocks, self.n_obs, self.n_vars, self.nnz, self.scratch)
            blocks = (self._fitting(start, X) for start, X in parts)
        try:
            yield from blocks
        except DAMAGED as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise UserError(unreadable(self.path, error)) from None

    def _counts(self, start: int, X: csr_matrix) -> csr_matrix:
        """A block's chosen genes as canonical counts."""
        if X.nnz and (X.indices.min() < 0 or X.indices.max() >= X.shape[1]):
            damaged(self.path, f"{self.where}: a column index is not below {X.shape[1]}")
        if self.columns is not None and not self.columns.all():
            new = np.where(self.columns, np.cumsum(self.columns) - 1, -1).astype(np.int32)
            X = select_genes(X, new, self.n_vars, devices.resolve("cpu"))
        counts = as_counts(X.data)
        if counts is None:
            self._refuse(start, X, first_bad(X.data))
        X = csr_matrix((counts, X.indices, X.indptr), shape=X.shape)
        if not X.has_canonical_format:
            X.data = X.data.astype(np.uint64)  # the sum of duplicates may exceed 32 bits
            X.sum_duplicates()
            X = self._fitting(start, X)
        if not X.data.all():
            X.eliminate_zeros()
        return X

    def _fitting(self, start: int, X: csr_matrix) -> csr_matrix:
        """A block of sums, uint64, as uint32."""
        if X.nnz and X.data.max() > LARGEST:
            self._refuse(start, X, int(np.argmax(X.data > LARGEST)))
        return csr_matrix((X.data.astype(np.uint32), X.indices, X.indptr), shape=X.shape)

    def _refuse(self, start: int, X: csr_matrix, at: int) -> NoReturn:
        """Say which value of a block is the first that is no count, and what to do."""
        value, row = X.data[at], start + int(np.searchsorted(X.indptr, at, "right")) - 1
        gene, cell = self.gene_symbols[X.indices[at]], self.obs.index[row]
        logged = X.data.dtype.kind == "f" and not value.is_integer() and X.data.min() >= 0 and X.data.max() < 20
        what = " The values look log-normalised; Somersault starts from raw counts." if logged else ""
        raise UserError(
            f"{self.path}: {self.where} does not hold raw counts: the value of gene {gene} in cell {cell} is {value}, "
            f"not a whole number from 0 to {LARGEST}.{what} {self._elsewhere()}"
        )

    def _elsewhere(self) -> str:
        others = [f"{place} ({look})" for place, look in self.places.items() if place != self.where]
        if not others:
            return "The file has no other matrix (a layer, raw): give a file with raw counts."
        return (
            f"The file also has {', '.join(others)}: name the one with the raw counts as `counts`, in the config "
            "(key `ingest: counts`) or in a column `counts` of the sample sheet."
        )


def first_bad(values: np.ndarray) -> int:
    """Position of the first value that `as_counts` refuses."""
    if values.dtype.kind not in "biuf":
        return 0
    wide = values.astype(np.float64)
    good = (wide >= 0) & (wide <= LARGEST) & (np.floor(wide) == wide)
    return int(np.flatnonzero(~good)[0])


def by_rows(
    blocks: Iterator[csr_matrix], n_obs: int, n_vars: int, nnz: int, scratch: Path | None
) -> Iterator[tuple[int, csr_matrix]]:
    """Blocks that each hold parts of all rows, summed and given back as one row range (its first row, uint64) after the
    other.

    Each block's non-zeros go by rows into one scratch file; a row range then is collected from one stretch
    per block. The file has no name, so that nothing of it stays behind.

    Parameters
    ----------
    blocks
        CSR matrices of uint32, each n_obs x n_vars.
    nnz
        Non-zeros over all blocks: row ranges get `BLOCK` / 2 of them on average.
    scratch
        Folder of the scratch file: `RECORD.itemsize` bytes per non-zero.
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
        log.info("%d MB of scratch file, to put the counts in the order of cells", file.tell() >> 20)
        for i, (first, last) in enumerate(pairwise(edges)):
            pieces = [b""]
            for stretch in stretches:
                file.seek(stretch[i])
                pieces.append(file.read(stretch[i + 1] - stretch[i]))
            records = np.frombuffer(b"".join(pieces), RECORD)
            rows, columns = records["row"] - np.int32(first), records["column"]
            counts = records["count"].astype(np.uint64)
            yield int(first), csr_matrix((counts, (rows, columns)), shape=(last - first, n_vars))


# The formats


@contextmanager
def open_counts(
    path: str | Path,
    counts: str = "X",
    genome: str | None = None,
    scratch: str | Path | None = None,
    orientation: str = "auto",
) -> Iterator[Reader]:
    """Open a file's raw counts, to be closed at the end of the block. Nothing is ever written to `path`.

    Parameters
    ----------
    path
        A 10x folder, a 10x `.h5`, an `.h5ad`, a `.zarr`, a `.loom`, or a `.csv`, `.tsv` or `.txt` (also .gz).
    counts
        Where an `.h5ad`, a `.zarr` or a `.loom` keeps them: X | raw | layers/NAME. Other formats have one matrix only.
    genome
        Which genome of a 10x file to take.
    scratch
        Folder for a scratch file, where one is needed.
    orientation
        Of a table of text: cells_by_genes | genes_by_cells | auto: the first, refused where it looks otherwise.

    Raises
    ------
    UserError
        If the file does not exist, has no format known here, is damaged, or has no such counts or genome.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist. Correct its path in the sample sheet.")
    with ExitStack() as stack:
        try:
            reader = _reader(path, counts, genome, orientation, stack)
        except (*DAMAGED, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            log.info("reading %s", path, exc_info=True)
            raise UserError(unreadable(path, error)) from None
        reader.scratch = None if scratch is None else Path(scratch)
        yield reader


def _reader(path: Path, counts: str, genome: str | None, orientation: str, stack: ExitStack) -> Reader:
    """The reader for a file's format: its suffix says which."""
    form = format_of(path)
    if form == "zarr":
        import zarr

        return read_anndata(path, zarr.open_group(path, mode="r"), counts)
    if form == "10x folder":
        return read_10x_folder(path, genome)
    if form == "text":
        return read_text(path, orientation)
    file = stack.enter_context(h5py.File(path, "r", locking=False))
    if form == "loom":
        return read_loom(path, file, counts)
    if form == "h5ad" or {"obs", "var"} <= set(file):
        return read_anndata(path, file, counts)
    return read_10x_h5(path, file, genome)


def read_10x_h5(path: Path, file: h5py.File, genome: str | None) -> Reader:
    """Cell Ranger's `.h5`: version 3's group `matrix`, or version 2's group per genome. Source: scanpy.read_10x_h5.

    CellBender's, which may lack the features' types and genomes, or have "NA" for all.
    """
    group = tenx_group(path, file, genome)
    if "features" in group:
        features = group["features"]
        fields = {
            name: _strings(features[name]) for name in ("name", "id", "feature_type", "genome") if name in features
        }
    else:
        fields = {
            new: _strings(group[old]) for old, new in {"gene_names": "name", "genes": "id"}.items() if old in group
        }
    symbols, ids = named(path, fields.get("name", fields.get("id")), fields.get("id", fields.get("name")))
    columns = _gene_features(path, fields.get("feature_type", np.full(len(ids), "")))
    if genome is not None and "features" in group:
        genomes = fields.get("genome", np.full(len(ids), ""))
        columns &= genomes == choice(path, "genome", genome, list(pd.unique(genomes[columns])))
    obs = pd.DataFrame(index=_strings(group["barcodes"]))
    # The columns of genes x cells are the rows of cells x genes
    indptr = _indptr(path, group, len(obs))
    blocks = partial(_csr_blocks, group["data"], group["indices"], indptr, len(ids))
    return Reader(path, "matrix", obs, symbols[columns], ids[columns], int(indptr[-1]), blocks, columns=columns)


def read_anndata(path: Path, root: Group, counts: str) -> Reader:
    """An AnnData on disk, in HDF5 or zarr: the counts in X, raw or a layer; CSR, CSC or dense; of any dtype."""
    check_anndata(path, root)
    matrices = matrices_of(root)
    places = places_of(matrices)
    matrix = matrices[choice(path, "counts", counts, list(places))]
    obs, var = _frame(path, root["obs"]), _frame(path, root["raw/var" if counts == "raw" else "var"])
    obs.index = _plain(obs.index)
    if counts == "raw" and not any(name in var for name in SYMBOL_COLUMNS):
        var = _with_symbols(var, _frame(path, root["var"]))
    columns = np.ones(len(var), bool)
    if "feature_types" in var:
        columns = _gene_features(path, var["feature_types"].astype(object).to_numpy())
    symbols, ids = named(path, *_gene_names(var[columns]))
    if matrix.attrs.get("encoding-type") not in SPARSE:
        nnz, scattered, blocks = matrix.shape[0] * matrix.shape[1], False, partial(_dense_blocks, matrix)
        _same_shape(path, counts, matrix.shape, (len(obs), len(var)))
    else:
        scattered = matrix.attrs["encoding-type"] == "csc_matrix"
        indptr = _indptr(path, matrix, len(var) if scattered else len(obs))
        nnz, rows = int(indptr[-1]), _csc_blocks if scattered else _csr_blocks
        blocks = partial(rows, matrix["data"], matrix["indices"], indptr, len(obs) if scattered else len(var))
    flags = _flags(var[columns])
    return Reader(path, counts, obs, symbols, ids, nnz, blocks, scattered, columns, places, flags=flags)


def read_loom(path: Path, file: h5py.File, counts: str) -> Reader:
    """A `.loom`: `matrix` is genes x cells and dense, as are its layers. Names as those who write them have them."""
    matrices = loom_matrices(file)
    places = places_of(matrices)
    matrix = matrices[choice(path, "counts", counts, list(places))]
    obs = _loom_table(path, file["col_attrs"], LOOM_CELLS)
    var = _loom_table(path, file["row_attrs"], LOOM_GENES)
    symbols, ids = named(path, *_gene_names(var))
    _same_shape(path, counts, matrix.shape, (len(symbols), len(obs)))
    blocks = partial(_dense_blocks, matrix, transposed=True)
    return Reader(path, counts, obs, symbols, ids, matrix.size, blocks, places=places, flags=_flags(var))


def read_10x_folder(path: Path, genome: str | None) -> Reader:
    """Cell Ranger's folder: matrix.mtx, barcodes.tsv, and genes.tsv (1, 2) or features.tsv (3 on); each may be gzipped.

    File names may have a prefix, and a folder may hold one such folder per genome. Source: scanpy.read_10x_mtx.
    """
    matrix, features, barcodes = tenx_files(path, genome)
    genes, obs = _lines(features), pd.DataFrame(index=_plain(_lines(barcodes)[0]))
    columns = _gene_features(features, genes[2].to_numpy(object)) if 2 in genes else np.ones(len(genes), bool)
    ids, symbols = genes[0].to_numpy(object), genes[min(1, genes.shape[1] - 1)].to_numpy(object)
    symbols, ids = named(features, symbols, ids)
    header, shape, nnz = mtx_header(matrix)
    check_mtx_shape(matrix, shape, len(genes), len(obs))
    reader = Reader(matrix.parent, matrix.name, obs, symbols[columns], ids[columns], nnz, iter, columns=columns)
    reader.blocks = partial(_mtx_blocks, reader, matrix, header, len(genes))
    return reader


def read_text(path: Path, orientation: str) -> Reader:
    """Text: a line of gene names, then per cell its barcode and its counts, as scanpy.read_csv; or genes x cells."""
    layout = layout_of(path)
    by_genes = orientation_of(path, layout, orientation) == "genes_by_cells"
    if layout.encoding != "utf-8":
        notice("%s is not UTF-8: its names are read as Latin-1", path)
    above, beside = _plain(layout.columns), _plain(name for name, _ in text_lines(path, layout))
    genes, barcodes = (beside, above) if by_genes else (above, beside)
    genes = named(path, genes.to_numpy(), genes.to_numpy())[0]
    blocks = partial(_text_blocks, path, layout, len(beside), by_genes)
    nnz = len(barcodes) * len(genes)
    return Reader(path, "the table", pd.DataFrame(index=barcodes), genes, genes, nnz, blocks, scattered=by_genes)


# Matrices on disk, as blocks


def _csr_blocks(data: Array, indices: Array, indptr: np.ndarray, n_vars: int) -> Iterator[tuple[int, csr_matrix]]:
    first, n_obs = 0, len(indptr) - 1
    while first < n_obs:
        last = max(first + 1, int(np.searchsorted(indptr, indptr[first] + BLOCK, "right")) - 1)
        start, stop = int(indptr[first]), int(indptr[last])
        values, columns = _native(_read(data, start, stop)), _read(indices, start, stop).astype(np.int32, copy=False)
        own = (indptr[first : last + 1] - start).astype(np.int32)
        yield first, csr_matrix((values, columns, own), shape=(last - first, n_vars))
        first = last


def _csc_blocks(data: Array, indices: Array, indptr: np.ndarray, n_obs: int) -> Iterator[tuple[int, csr_matrix]]:
    """Each block holds some of the columns, of all rows."""
    n_vars = len(indptr) - 1
    for first, X in _csr_blocks(data, indices, indptr, n_obs):
        rows = csc_matrix((X.data, X.indices, X.indptr), shape=X.shape[::-1]).tocsr()
        yield 0, csr_matrix((rows.data, rows.indices + np.int32(first), rows.indptr), shape=(n_obs, n_vars))


def _dense_blocks(array: Array, transposed: bool = False) -> Iterator[tuple[int, csr_matrix]]:
    n_obs, n_vars = array.shape[::-1] if transposed else array.shape
    step = max(1, DENSE_BLOCK // max(1, n_vars * array.dtype.itemsize))
    if array.chunks and step > (chunk := array.chunks[int(transposed)]):
        step -= step % chunk
    for first in range(0, n_obs, step):
        block = array[:, first : first + step].T if transposed else array[first : first + step]
        yield first, csr_matrix(_native(block))


def _mtx_blocks(reader: Reader, path: Path, header: int, n_vars: int) -> Iterator[tuple[int, csr_matrix]]:
    """Blocks of the lines `gene cell count`: whole cells, as long as the file is sorted by cell."""
    types = {"gene": np.int32, "cell": np.int32, "count": np.float64}
    options = {"sep": r"\s+", "header": None, "names": list(types), "dtype": types, "index_col": False}
    begun = [np.empty(0, dtype) for dtype in types.values()]  # the lines of a cell that may go on in the next block
    done = seen = 0
    with open_file(path) as file:
        for _ in range(header):
            file.readline()
        try:
            for lines in pd.read_csv(file, chunksize=BLOCK // 2, **options) if reader.nnz else ():
                seen += len(lines)
                if lines["count"].hasnans:
                    damaged(path, "a line of values has fewer than three fields, or no number")
                genes, cells, counts = (
                    lines["gene"].to_numpy() - 1,
                    lines["cell"].to_numpy() - 1,
                    lines["count"].to_numpy(),
                )
                for what, found, n in (("gene", genes, n_vars), ("cell", cells, reader.n_obs)):
                    if found.min() < 0 or found.max() >= n:
                        odd = int(found[np.argmax((found < 0) | (found >= n))]) + 1
                        raise UserError(
                            f"{path}: a value is of {what} number {odd}, but they go from 1 to {n}. It may be "
                            "truncated or damaged, or count from 0: write it anew."
                        )
                if reader.scattered:
                    yield 0, csr_matrix((counts, (cells, genes)), shape=(reader.n_obs, n_vars))
                    continue
                genes, cells, counts = map(np.concatenate, zip(begun, (genes, cells, counts), strict=True))
                if (np.diff(cells) < 0).any():
                    reader.scattered = True
                    raise NotSortedError
                last = int(cells[-1])
                whole = int(np.searchsorted(cells, last))
                begun = [genes[whole:], cells[whole:], counts[whole:]]
                parts = counts[:whole], (cells[:whole] - done, genes[:whole])
                yield done, csr_matrix(parts, shape=(last - done, n_vars))
                done = last
            if not reader.scattered:
                genes, cells, counts = begun
                yield done, csr_matrix((counts, (cells - done, genes)), shape=(reader.n_obs - done, n_vars))
        except ValueError as error:
            raise UserError(f"{path}: a line does not hold gene, cell and count as three numbers: {error}") from None
    if seen < reader.nnz:
        damaged(path, f"{seen} of {reader.nnz} lines")
    if seen > reader.nnz:
        raise UserError(f"{path} has {seen} lines of values, but says in its header that there are {reader.nnz}.")


def _text_blocks(path: Path, layout: Layout, n_rows: int, by_genes: bool) -> Iterator[tuple[int, csr_matrix]]:
    """Blocks of whole lines; of lines that are genes each holds all cells' counts of some genes."""
    n_columns = len(layout.columns)
    step = max(1, BLOCK // max(1, n_columns))
    rows: list[np.ndarray] = []
    done = 0

    def block() -> tuple[int, csr_matrix]:
        X = csr_matrix(np.stack(rows))
        if not by_genes:
            return done, X
        X = csc_matrix((X.data, X.indices, X.indptr), shape=X.shape[::-1]).tocsr()
        return 0, csr_matrix((X.data, X.indices + np.int32(done), X.indptr), shape=(n_columns, n_rows))

    for name, text in text_lines(path, layout):
        row = numbers(text, layout.separator)
        if len(row) != n_columns:
            what, other = ("gene", "cell") if by_genes else ("cell", "gene")
            raise UserError(
                f"{path}: the line of {what} {name} does not hold {n_columns} numbers, one for each {other}, separated "
                "as the names in the first line. Correct it."
            )
        rows.append(row)
        if len(rows) == step:
            yield block()
            done, rows = done + len(rows), []
    if rows:
        yield block()


# Pieces of files


def _read(array: Array, start: int, stop: int) -> np.ndarray:
    """Elements of a 1-D array. A deflated HDF5 dataset's chunks are read raw and inflated by several threads."""
    shuffled = _deflated(array)
    if shuffled is None:
        return array[start:stop]
    out = np.empty(stop - start, array.dtype)
    size, length = array.dtype.itemsize, array.chunks[0]

    def inflate(at: int) -> None:
        skipped, raw = array.id.read_direct_chunk((at,))
        low, high = max(start, at), min(stop, at + length)
        if skipped:
            out[low - start : high - start] = array[low:high]
            return
        values = np.frombuffer(deflate.zlib_decompress(raw, length * size), np.uint8)
        if shuffled:
            values = (
                np.ascontiguousarray(values.reshape(size, length)[:, low - at : high - at].T).view(array.dtype).ravel()
            )
        else:
            values = values.view(array.dtype)[low - at : high - at]
        out[low - start : high - start] = values

    list(pool().map(inflate, range(start // length * length, stop, length)))
    return out


def _native(values: np.ndarray) -> np.ndarray:
    """Values in a type that SciPy's sparse matrices take: of this machine's byte order, and not float16."""
    dtype = np.dtype(np.float32) if values.dtype.kind == "f" and values.dtype.itemsize == 2 else values.dtype
    return values.astype(dtype.newbyteorder("="), copy=False)


def _deflated(array: Array) -> bool | None:
    """Whether a dataset is shuffled before it is deflated; None if it is stored in another way."""
    if not isinstance(array, h5py.Dataset) or array.chunks is None:
        return None
    filters = array.id.get_create_plist()
    codes = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
    if codes == [h5py.h5z.FILTER_DEFLATE]:
        return False
    return True if codes == [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE] else None


def _indptr(path: Path, group: Group, n: int) -> np.ndarray:
    """The `indptr` of a sparse matrix with `n` rows (CSR) or columns (CSC), int64, checked against its other arrays."""
    indptr = group["indptr"][...].astype(np.int64)
    nnz = {group[name].shape[0] for name in ("data", "indices")}
    if len(indptr) != n + 1 or indptr[0] != 0 or {int(indptr[-1])} != nnz or (np.diff(indptr) < 0).any():
        damaged(path, "indptr does not fit the matrix")
    return indptr


def _same_shape(path: Path, where: str, shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    if tuple(shape) != expected:
        damaged(path, f"{where} is {tuple(shape)}, but its names are {expected}")


def _gene_features(path: Path, types: np.ndarray) -> np.ndarray:
    """Mask of the features that are genes: all but those whose type is known to be another; these are logged.

    By 10x's feature types. Where none is a gene's, all are taken but what 10x has for antibodies, guides, peaks.
    """
    small = np.array(["" if pd.isna(value) else str(value).strip().lower() for value in types], dtype=object)
    known = pd.Series(~np.isin(small, NO_TYPE))
    if (small == GENES).any():
        genes = (small == GENES) | ~known.to_numpy()
    else:
        genes = np.array([not value.startswith(OTHER_TYPES) for value in small], bool)
    if len(genes) and not genes.any():
        raise UserError(f"{path} has no features of type Gene Expression, but {', '.join(map(str, pd.unique(types)))}.")
    for name, n in pd.Series(types[~genes]).value_counts().items():
        log.info("left out: %d features of type %s", n, name)
    return genes


def named(path: Path, symbols: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and ids, each in place of the other where that is empty.

    Raises
    ------
    UserError
        If a gene has neither.
    """
    symbols, ids = symbols.astype(object), ids.astype(object)
    no_symbol, no_id = (np.array([not name.strip() for name in names], bool) for names in (symbols, ids))
    if (nameless := no_symbol & no_id).any():
        raise UserError(
            f"{path}: {nameless.sum()} genes have neither a symbol nor an id, the first is number "
            f"{int(np.argmax(nameless)) + 1}. Name them, or leave them out."
        )
    return np.where(no_symbol, ids, symbols), np.where(no_id, symbols, ids)


def _with_symbols(raw: pd.DataFrame, var: pd.DataFrame) -> pd.DataFrame:
    """The genes' table of `raw`, with the columns of symbols and flags that only `var` has, joined on the index."""
    names = [name for name in var if name in SYMBOL_COLUMNS or _is_flag(var[name])]
    names = [name for name in names if name not in raw]
    if not names or var.index.has_duplicates or not raw.index.isin(var.index).any():
        return raw
    log.info("raw has no %s: of var", ", ".join(map(str, names)))
    found = var[names].reindex(raw.index)
    for name in names:
        if _is_flag(var[name]):
            found[name] = found[name].astype(object).where(found[name].notna(), False).astype(bool)
    return raw.join(found) if raw.index.is_unique else raw


def _is_flag(values: pd.Series) -> bool:
    return pd.api.types.is_bool_dtype(values.dtype) and not values.isna().any()


def _flags(var: pd.DataFrame) -> pd.DataFrame:
    """The boolean columns of a table of genes."""
    flags = {str(name): var[name].to_numpy(bool) for name in var if _is_flag(var[name])}
    return pd.DataFrame(flags, index=range(len(var)))


def _frame(path: Path, group: Group) -> pd.DataFrame:
    """A table of AnnData; columns that are no single values per row are left out, and said so."""
    read_elem = import_lean("anndata.io").read_elem
    try:
        return read_elem(group)
    except DAMAGED:
        raise
    except Exception as error:  # of AnnData's readers, any
        log.info("column by column, for %s", error)
    index = pd.Index(np.asarray(read_elem(group[group.attrs["_index"]])), dtype=object)
    columns, odd = {}, []
    for name in map(str, group.attrs.get("column-order", ())):
        try:
            values = read_elem(group[name])
            if "categories" in group[name].attrs:  # anndata 0.7's
                categories = read_elem(group[f"__categories/{name}"])
                values = pd.Categorical.from_codes(values, categories)
            if np.ndim(values) != 1 or len(values) != len(index):
                raise ValueError("no single values")
            columns[name] = pd.Series(values)
        except DAMAGED:
            raise
        except Exception:
            odd.append(name)
    if odd:
        notice("%s: left out of %s: %s, which hold no single values per row", path, group.name, ", ".join(odd))
    return pd.DataFrame(columns, index=range(len(index))).set_axis(index, axis=0)


def _gene_names(var: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and ids from a table of genes: columns known by name, else the index."""
    index = pd.Series(_plain(var.index), dtype=object)
    symbols = next((var[name].reset_index(drop=True) for name in SYMBOL_COLUMNS if name in var), None)
    ids = next((var[name].reset_index(drop=True) for name in ID_COLUMNS if name in var), index)
    symbols = index if symbols is None else symbols
    symbols, ids = (names.astype(object).where(names.notna(), "") for names in (symbols, ids))
    return _plain(symbols).to_numpy(), _plain(ids).to_numpy()


def _loom_table(path: Path, group: h5py.Group, names: Sequence[str]) -> pd.DataFrame:
    """A loom's attributes with one value per cell or gene, indexed by the first of `names` that there is."""
    attributes = {name: item for name, item in group.items() if item.ndim == 1}
    found = next((name for name in names if name in attributes), None)
    if found is None:
        raise UserError(f"{path}: {group.name} has none of {', '.join(names)}, to name its cells or genes.")
    if odd := ", ".join(name for name in group if name not in attributes):
        log.info("%s: left out of %s: %s, which hold no single values", path, group.name, odd)
    table = {name: item[...] if item.dtype.kind in "biuf" else _strings(item) for name, item in attributes.items()}
    return pd.DataFrame(table, index=_plain(table.pop(found)))


def _strings(dataset: h5py.Dataset) -> np.ndarray:
    return dataset.asstr()[...]


def _plain(names: Any) -> pd.Index:
    """Names as an index of Python strings, itself without a name."""
    names = names.to_numpy(object) if isinstance(names, pd.Index) else names  # which iterates faster
    return pd.Index([str(name) for name in names], dtype=object)


def _lines(path: Path) -> pd.DataFrame:
    """A file of tab-separated strings without a header; Latin-1, and said so, where it is not UTF-8."""
    with open_file(path) as file:
        text = file.read()
    if (encoding := encoding_of(text)) != "utf-8":
        notice("%s is not UTF-8: its names are read as Latin-1", path)
    options = {"sep": "\t", "header": None, "dtype": str, "na_filter": False, "quoting": csv.QUOTE_NONE}
    try:
        return pd.read_csv(io.BytesIO(text.removeprefix(b"\xef\xbb\xbf")), encoding=encoding, **options)
    except pd.errors.EmptyDataError:
        return pd.DataFrame({0: []}, dtype=object)
    except pd.errors.ParserError as error:
        raise UserError(f"{path} is no file of names, with as many tab-separated fields a line: {error}") from None
