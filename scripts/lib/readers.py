"""Readers of raw counts: any format that scanpy's users have, as one stream of rows in bounded memory.

`open_counts` gives a `Reader` for a 10x folder, a 10x `.h5`, an `.h5ad`, a `.zarr`, a `.loom` or a table of text. Its
chunks hold some `BLOCK` non-zeros, checked to be counts. What lies by columns on disk (CSC), or in no order (an `.mtx`
may), is turned into rows through a scratch file.
"""

from __future__ import annotations

import csv
import errno
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
from isal import igzip, isal_zlib
from scipy.sparse import csc_matrix, csr_matrix

from . import device as devices
from .compressed import pool
from .counts import rows_of_nonzeros, select_genes
from .errors import UserError
from .imports import import_lean
from .stage import log

if TYPE_CHECKING:
    import zarr

    Array = h5py.Dataset | zarr.Array
    Group = h5py.Group | zarr.Group

# What reading a damaged file raises
DAMAGED = (OSError, EOFError, deflate.DeflateError, isal_zlib.error, pd.errors.ParserError)
BLOCK = 4_000_000  # non-zeros that are read at a time
DENSE_BLOCK = 1 << 26  # bytes of a dense matrix that are read at a time
LARGEST = np.iinfo(np.uint32).max
PEEK = 1000  # values that tell whether a matrix looks like counts
RECORD = np.dtype([("row", np.int32), ("column", np.int32), ("count", np.uint32)])  # of the scratch file

SPARSE = ("csr_matrix", "csc_matrix")  # AnnData's encoding-type
GENES = "Gene Expression"  # 10x's feature type
SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "gene_names", "gene_name", "feature_name", "symbol", "Symbol")
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
        Per gene, as in the file, strings; the ids are the symbols where the file has none.
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
            If a value is not a count (which cell, gene and value), or the file is damaged.
        NotSortedError
            If the file is not sorted by cell, although it began so.
        """
        blocks = (self._counts(start, X) for start, X in self.blocks())
        try:
            yield from by_rows(blocks, self.n_obs, self.n_vars, self.nnz, self.scratch) if self.scattered else blocks
        except DAMAGED as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            damaged(self.path, error)

    def _counts(self, start: int, X: csr_matrix) -> csr_matrix:
        """A block's chosen genes as canonical counts."""
        if X.nnz and (X.indices.min() < 0 or X.indices.max() >= X.shape[1]):
            damaged(self.path, f"{self.where}: a column index is not below {X.shape[1]}")
        if self.columns is not None and not self.columns.all():
            new = np.where(self.columns, np.cumsum(self.columns) - 1, -1).astype(np.int32)
            X = select_genes(X, new, self.n_vars, devices.resolve("cpu"))
        counts = as_counts(X.data)
        if counts is None:
            self._refuse(start, X)
        X = csr_matrix((counts, X.indices, X.indptr), shape=X.shape)
        X.sum_duplicates()
        if not X.data.all():
            X.eliminate_zeros()
        return X

    def _refuse(self, start: int, X: csr_matrix) -> NoReturn:
        """Say which value of a block is the first that is no count, and what to do."""
        at = first_bad(X.data)
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


def as_counts(values: np.ndarray) -> np.ndarray | None:
    """The values as uint32, None if one of them is not a whole number from 0 to 2^32 - 1."""
    if values.dtype.kind not in "biuf":
        return None
    if not len(values):
        return values.astype(np.uint32)
    # A NaN fails both comparisons, so that the cast meets none
    if not 0 <= float(values.min()) <= float(values.max()) <= LARGEST:
        return None
    counts = values.astype(np.uint32)
    return counts if values.dtype.kind != "f" or np.array_equal(counts, values) else None


def first_bad(values: np.ndarray) -> int:
    """Position of the first value that `as_counts` refuses."""
    if values.dtype.kind not in "biuf":
        return 0
    wide = values.astype(np.float64)
    good = (wide >= 0) & (wide <= LARGEST) & (np.floor(wide) == wide)
    return int(np.flatnonzero(~good)[0])


def by_rows(
    blocks: Iterator[csr_matrix], n_obs: int, n_vars: int, nnz: int, scratch: Path | None
) -> Iterator[csr_matrix]:
    """Blocks that each hold parts of all rows, summed and given back as one row range after the other.

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
            yield csr_matrix((records["count"], (rows, columns)), shape=(last - first, n_vars))


def damaged(path: Path, why: object) -> NoReturn:
    """Raise that a file cannot be read."""
    raise UserError(
        f"{path} cannot be read: {why}. It may be truncated or damaged: copy or download it again."
    ) from None


# The formats


@contextmanager
def open_counts(
    path: str | Path, counts: str = "X", genome: str | None = None, scratch: str | Path | None = None
) -> Iterator[Reader]:
    """Open a file's raw counts, to be closed at the end of the block. Nothing is ever written to `path`.

    Parameters
    ----------
    path
        A 10x folder, a 10x `.h5`, an `.h5ad`, a `.zarr`, a `.loom`, or a `.csv` or `.tsv` (cells x genes; also .gz).
    counts
        Where an `.h5ad`, a `.zarr` or a `.loom` keeps them: X | raw | layers/NAME. Other formats have one matrix only.
    genome
        Which genome of a 10x file to take.
    scratch
        Folder for a scratch file, where one is needed.

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
            reader = _reader(path, counts, genome, stack)
        except (*DAMAGED, KeyError) as error:
            damaged(path, error)
        reader.scratch = None if scratch is None else Path(scratch)
        yield reader


def _reader(path: Path, counts: str, genome: str | None, stack: ExitStack) -> Reader:
    """The reader for a file's format: its suffix says which."""
    if path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        import zarr

        return read_anndata(path, zarr.open_group(path, mode="r"), counts)
    if path.is_dir():
        return read_10x_folder(path, genome)
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix in ("csv", "tsv"):
        return read_text(path, "," if suffix == "csv" else "\t")
    if suffix not in ("h5ad", "h5", "hdf5", "loom") or path.name.endswith(".gz"):
        raise UserError(
            f"{path} has no format known here. Formats: a 10x folder (give the folder, not its matrix.mtx), a 10x .h5, "
            ".h5ad, .zarr, .loom, and .csv or .tsv, or these with .gz, of cells x genes."
        )
    file = stack.enter_context(h5py.File(path, "r", locking=False))
    if suffix == "loom":
        return read_loom(path, file, counts)
    if suffix == "h5ad" or {"obs", "var"} <= set(file):
        return read_anndata(path, file, counts)
    return read_10x_h5(path, file, genome)


def read_10x_h5(path: Path, file: h5py.File, genome: str | None) -> Reader:
    """Cell Ranger's `.h5`: version 3's group `matrix`, or version 2's group per genome. Source: scanpy.read_10x_h5."""
    if "matrix" in file:
        group, features = file["matrix"], file["matrix/features"]
        symbols, ids = _strings(features["name"]), _strings(features["id"])
        columns = _gene_features(path, _strings(features["feature_type"]))
        if genome is not None:
            genomes = _strings(features["genome"])
            columns &= genomes == _choice(path, "genome", genome, list(pd.unique(genomes[columns])))
    else:
        genomes = [name for name, group in file.items() if isinstance(group, h5py.Group) and "barcodes" in group]
        if not genomes:
            raise UserError(f"{path} is not a 10x .h5 file: it has no group `matrix`, and no group of a genome.")
        group = file[_choice(path, "genome", genome, genomes)]
        symbols, ids = _strings(group["gene_names"]), _strings(group["genes"])
        columns = np.ones(len(ids), bool)
    obs = pd.DataFrame(index=_strings(group["barcodes"]))
    # The columns of genes x cells are the rows of cells x genes
    indptr = _indptr(path, group, len(obs))
    blocks = partial(_csr_blocks, group["data"], group["indices"], indptr, len(ids))
    return Reader(path, "matrix", obs, symbols[columns], ids[columns], int(indptr[-1]), blocks, columns=columns)


def read_anndata(path: Path, root: Group, counts: str) -> Reader:
    """An AnnData on disk, in HDF5 or zarr: the counts in X, raw or a layer; CSR, CSC or dense; of any dtype."""
    if not {"obs", "var"} <= set(root):
        raise UserError(f"{path} is not an AnnData file: it has no obs and var. Does its suffix tell its format?")
    if isinstance(root["obs"], h5py.Dataset):
        raise UserError(
            f"{path} was written by anndata before version 0.7. Write it anew, in Python: "
            "anndata.read_h5ad(OLD).write_h5ad(NEW)."
        )
    read_elem = import_lean("anndata.io").read_elem
    matrices = {"X": root.get("X"), "raw": root.get("raw/X")}
    if "layers" in root:
        matrices |= {f"layers/{name}": root["layers"][name] for name in root["layers"]}
    places = _places(matrices)
    matrix = matrices[_choice(path, "counts", counts, list(places))]
    obs, var = read_elem(root["obs"]), read_elem(root["raw/var" if counts == "raw" else "var"])
    obs.index = _plain(obs.index)
    columns = np.ones(len(var), bool)
    if "feature_types" in var and (var["feature_types"] == GENES).any():
        columns = _gene_features(path, var["feature_types"].to_numpy(str))
    symbols, ids = _gene_names(var[columns])
    if matrix.attrs.get("encoding-type") not in SPARSE:
        nnz, scattered, blocks = matrix.shape[0] * matrix.shape[1], False, partial(_dense_blocks, matrix)
        _same_shape(path, counts, matrix.shape, (len(obs), len(var)))
    else:
        scattered = matrix.attrs["encoding-type"] == "csc_matrix"
        indptr = _indptr(path, matrix, len(var) if scattered else len(obs))
        nnz, rows = int(indptr[-1]), _csc_blocks if scattered else _csr_blocks
        blocks = partial(rows, matrix["data"], matrix["indices"], indptr, len(obs) if scattered else len(var))
    return Reader(path, counts, obs, symbols, ids, nnz, blocks, scattered, columns, places)


def read_loom(path: Path, file: h5py.File, counts: str) -> Reader:
    """A `.loom`: `matrix` is genes x cells and dense, as are its layers. Names as scanpy.read_loom's, or anndata's."""
    matrices = {"X": file["matrix"], **{f"layers/{name}": layer for name, layer in file.get("layers", {}).items()}}
    places = _places(matrices)
    matrix = matrices[_choice(path, "counts", counts, list(places))]
    obs = _loom_table(path, file["col_attrs"], ("CellID", "obs_names"))
    symbols, ids = _gene_names(_loom_table(path, file["row_attrs"], ("Gene", "var_names", "Accession")))
    _same_shape(path, counts, matrix.shape, (len(symbols), len(obs)))
    blocks = partial(_dense_blocks, matrix, transposed=True)
    return Reader(path, counts, obs, symbols, ids, matrix.size, blocks, places=places)


def read_10x_folder(path: Path, genome: str | None) -> Reader:
    """Cell Ranger's folder: matrix.mtx, barcodes.tsv, and genes.tsv (1, 2) or features.tsv (3 on); each may be gzipped.

    File names may have a prefix, and a folder may hold one such folder per genome. Source: scanpy.read_10x_mtx.
    """
    genomes = sorted({file.parent.name for file in path.glob("*/*matrix.mtx*")})
    if genomes and not any(path.glob("*matrix.mtx*")):
        path = path / _choice(path, "genome", genome, genomes)
    matrix = _one_file(path, "matrix.mtx")
    genes = _lines(_one_file(path, "features.tsv", "genes.tsv"))
    obs = pd.DataFrame(index=_plain(_lines(_one_file(path, "barcodes.tsv"))[0]))
    columns = _gene_features(path, genes[2].to_numpy(object)) if 2 in genes else np.ones(len(genes), bool)
    ids, symbols = genes[0].to_numpy(object), genes[min(1, genes.shape[1] - 1)].to_numpy(object)
    header, shape, nnz = _mtx_header(matrix)
    if shape != (len(genes), len(obs)):
        transposed = " It seems to be cells x genes." if shape == (len(obs), len(genes)) else ""
        raise UserError(
            f"{matrix} is {shape[0]} x {shape[1]}, but there are {len(genes)} genes and {len(obs)} barcodes beside it."
            f"{transposed} A 10x matrix has a row per line of the genes' file and a column per barcode."
        )
    reader = Reader(path, matrix.name, obs, symbols[columns], ids[columns], nnz, iter, columns=columns)
    reader.blocks = partial(_mtx_blocks, reader, matrix, header, len(genes))
    return reader


def read_text(path: Path, separator: str) -> Reader:
    """Text, cells x genes: a line of gene names, then per cell its barcode and its counts. As scanpy.read_csv."""
    with _open(path) as file:
        skip = 1
        while (line := file.readline()).startswith(b"#"):
            skip += 1
        names, first = (line.decode().rstrip("\r\n").split(separator) for line in (line, file.readline()))
    if len(first) < 2 or len(names) not in (len(first), len(first) - 1):
        raise UserError(
            f"{path}: the first line has {len(names)} fields, the next {len(first)}. Give a line of gene names, then "
            f"a line per cell with its barcode and its counts, separated by {'commas' if separator == ',' else 'tabs'}."
        )
    genes = _plain([name.strip('"') for name in names[len(names) - len(first) + 1 :]]).to_numpy()
    barcodes = _plain(cell for cell, _ in _text_lines(path, separator, skip))
    if barcodes.isin(["ACTB", "GAPDH", "Actb", "Gapdh"]).any() or barcodes.str.match("ENS[A-Z]*G0").any():
        raise UserError(f"{path}: its rows look like genes. Transpose it: a line per cell, a column per gene.")
    blocks = partial(_text_blocks, path, separator, skip, len(genes))
    return Reader(path, "the table", pd.DataFrame(index=barcodes), genes, genes, len(barcodes) * len(genes), blocks)


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
    options = {"sep": r"\s+", "header": None, "names": list(types), "dtype": types, "skiprows": header}
    begun = [np.empty(0, dtype) for dtype in types.values()]  # the lines of a cell that may go on in the next block
    done = seen = 0
    with _open(path) as file:
        try:
            for lines in pd.read_csv(file, chunksize=BLOCK // 2, **options) if reader.nnz else ():
                seen += len(lines)
                genes, cells, counts = (
                    lines["gene"].to_numpy() - 1,
                    lines["cell"].to_numpy() - 1,
                    lines["count"].to_numpy(),
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
            damaged(path, error)
    if seen != reader.nnz:
        damaged(path, f"{seen} of {reader.nnz} lines")


def _mtx_header(path: Path) -> tuple[int, tuple[int, int], int]:
    """The lines before the first value, the shape, the number of values."""
    with _open(path) as file:
        kind = file.readline().split()
        lines = 2
        while (line := file.readline()).startswith(b"%"):
            lines += 1
    if kind[:1] != [b"%%MatrixMarket"] or kind[2:] not in (
        [b"coordinate", b"integer", b"general"],
        [b"coordinate", b"real", b"general"],
    ):
        raise UserError(
            f"{path} is not a sparse matrix of numbers in Matrix Market's format: coordinate, integer or real."
        )
    if not line:
        damaged(path, "it ends in its header")
    n_rows, n_columns, nnz = map(int, line.split())
    return lines, (n_rows, n_columns), nnz


def _text_blocks(path: Path, separator: str, skip: int, n_vars: int) -> Iterator[tuple[int, csr_matrix]]:
    step = max(1, BLOCK // max(1, n_vars))
    rows: list[np.ndarray] = []
    first = 0
    for cell, text in _text_lines(path, separator, skip):
        try:
            row = np.fromstring(text, np.float64, sep=separator)
        except ValueError:
            row = np.empty(0)
        if len(row) != n_vars:
            raise UserError(
                f"{path}: the line of cell {cell} does not hold {n_vars} numbers, one for each gene, separated as the "
                "names in the first line. Correct it."
            )
        rows.append(row)
        if len(rows) == step:
            yield first, csr_matrix(np.stack(rows))
            first, rows = first + len(rows), []
    if rows:
        yield first, csr_matrix(np.stack(rows))


def _text_lines(path: Path, separator: str, skip: int) -> Iterator[tuple[str, str]]:
    """Each line after the first `skip`: the cell and its values as text."""
    with _open(path) as file:
        for number, line in enumerate(file):
            if number >= skip and not line.isspace():
                cell, _, values = line.decode().strip().partition(separator)
                yield cell.strip('"'), values


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


def _places(matrices: dict[str, Any]) -> dict[str, str]:
    """Of a file's elements those that are matrices, each with what its first values look like."""
    looks = {}
    for place, matrix in matrices.items():
        if matrix is not None and matrix.attrs.get("encoding-type") in SPARSE:
            values = matrix["data"][:PEEK]
        elif len(getattr(matrix, "shape", None) or ()) == 2:
            values = matrix[:1, :PEEK].ravel()
        else:
            continue
        looks[place] = "whole numbers" if as_counts(values) is not None else "not whole numbers"
    return looks


def _choice(path: Path, key: str, wanted: str | None, options: Sequence[str]) -> str:
    """The value of a key of the config, where the file has it; for None the only one there is."""
    if wanted is None and len(options) == 1:
        return options[0]
    if wanted in options:
        return wanted
    problem = f"has no {key} {wanted}" if wanted is not None else f"has more than one {key}"
    raise UserError(f"{path} {problem}; it has {', '.join(options) or 'none'}. Set the config key `ingest: {key}`.")


def _gene_features(path: Path, types: np.ndarray) -> np.ndarray:
    """Mask of the features that are genes, by 10x's feature types; the others are logged."""
    genes = types == GENES
    if not genes.any():
        raise UserError(f"{path} has no features of type {GENES}, but {', '.join(map(str, pd.unique(types)))}.")
    for name, n in pd.Series(types[~genes]).value_counts().items():
        log.info("left out: %d features of type %s", n, name)
    return genes


def _gene_names(var: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and ids from a table of genes: columns known by name, else the index."""
    index = pd.Series(_plain(var.index), dtype=object)
    symbols = next((var[name].reset_index(drop=True) for name in SYMBOL_COLUMNS if name in var), None)
    ids = next((var[name].reset_index(drop=True) for name in ID_COLUMNS if name in var), index)
    symbols = index if symbols is None else symbols.astype(object).where(symbols.notna(), ids)
    ids = ids.astype(object).where(ids.notna(), symbols)
    return _plain(symbols).to_numpy(), _plain(ids).to_numpy()


def _loom_table(path: Path, group: h5py.Group, names: Sequence[str]) -> pd.DataFrame:
    """A loom's attributes with one value per cell or gene, indexed by the first of `names` that there is."""
    attributes = {name: item for name, item in group.items() if item.ndim == 1}
    found = next((name for name in names if name in attributes), None)
    if found is None:
        raise UserError(f"{path}: {group.name} has none of {', '.join(names)}, to name its cells or genes.")
    table = {name: item[...] if item.dtype.kind in "biuf" else _strings(item) for name, item in attributes.items()}
    return pd.DataFrame(table, index=_plain(table.pop(found)))


def _strings(dataset: h5py.Dataset) -> np.ndarray:
    return dataset.asstr()[...]


def _plain(names: Any) -> pd.Index:
    """Names as an index of Python strings, itself without a name."""
    names = names.to_numpy(object) if isinstance(names, pd.Index) else names  # which iterates faster
    return pd.Index([str(name) for name in names], dtype=object)


def _one_file(folder: Path, *names: str) -> Path:
    """The one file of a folder whose name ends like this, gzipped or not."""
    ends = tuple(name + zipped for name in names for zipped in ("", ".gz"))
    found = sorted(f for f in folder.iterdir() if f.name.endswith(ends) and not f.name.startswith("."))
    if len(found) != 1:
        there = ", ".join(f.name for f in found) or f"only {', '.join(sorted(f.name for f in folder.iterdir())[:10])}"
        raise UserError(
            f"{folder} is no folder of a 10x matrix: it needs one file {' or '.join(names)} (or .gz), and has {there}."
        )
    return found[0]


def _lines(path: Path) -> pd.DataFrame:
    """A file of tab-separated strings without a header."""
    with _open(path) as file:
        try:
            return pd.read_csv(file, sep="\t", header=None, dtype=str, na_filter=False, quoting=csv.QUOTE_NONE)
        except pd.errors.EmptyDataError:
            return pd.DataFrame({0: []}, dtype=object)


def _open(path: Path) -> Any:
    return igzip.open(path) if path.suffix == ".gz" else path.open("rb")
