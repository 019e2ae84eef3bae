"""Read Cell Ranger's folder: matrix.mtx, barcodes.tsv, and genes.tsv (versions 1, 2) or features.tsv (from 3 on).

Each file may be gzipped.
File names may have a prefix, and a folder may hold one such folder per genome. Source: scanpy.read_10x_mtx.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from lib.inputs.formats.base import Blocks, Header, Question, Reader, Tell, choice, damage, plain
from lib.inputs.formats.text import encoding_of, open_file
from lib.run.errors import UserError

SMALL = 8 << 20  # bytes: of smaller files of names the lines are counted for the header
NUMBERS = (b"integer", b"unsigned-integer", b"real", b"double", b"float")


class TenxFolder(Reader):
    """Reader of a 10x folder, or of the genome's folder in it."""

    def __init__(self, question: Question, tell: Tell) -> None:
        super().__init__(question, tell)
        self.check_columns()
        self.matrix, self.features, self.barcodes = tenx_files(self.path, question.genome)
        self.path, self.where = self.matrix.parent, self.matrix.name
        self.skip, self.shape, self.nnz = mtx_header(self.matrix)

    def header(self) -> Header:
        """The header, from the matrix' header, and from the lines of the files of names if these are small."""
        if all(file.stat().st_size < SMALL for file in (self.features, self.barcodes)):
            self._check_shape(_n_lines(self.features), _n_lines(self.barcodes))
        n_vars, n_obs = self.shape
        return Header(n_obs, n_vars, self.nnz)

    def load(self) -> None:
        """Read the files of names; take the features that are genes."""
        from lib.inputs.formats import genes

        table, self.obs = _names(self.features), pd.DataFrame(index=plain(_names(self.barcodes)[0]))
        if 2 in table:
            self.columns = genes.gene_features(self.features, table[2].to_numpy(object))
        ids, symbols = table[0].to_numpy(object), table[min(1, table.shape[1] - 1)].to_numpy(object)
        symbols, ids = genes.filled_names(self.features, symbols, ids)
        self._check_shape(len(ids), len(self.obs))
        chosen = slice(None) if self.columns is None else self.columns
        self.gene_symbols, self.gene_ids = symbols[chosen], ids[chosen]

    def _check_shape(self, n_genes: int, n_cells: int) -> None:
        """Tell if the matrix does not fit the files of names."""
        if self.shape == (n_genes, n_cells):
            return
        hint = " It seems to be cells x genes." if self.shape == (n_cells, n_genes) else ""
        if (n_genes - self.shape[0], n_cells - self.shape[1]) in ((1, 0), (0, 1), (1, 1)):
            hint = " Does a file of names begin with a line of headings? Remove it."
        self.tell(
            f"{self.matrix} is {self.shape[0]} x {self.shape[1]}, but there are {n_genes} genes and {n_cells} barcodes "
            f"beside it.{hint} A 10x matrix has a row per line of the genes' file and a column per barcode."
        )

    def blocks(self) -> Blocks:
        """Blocks of the lines `gene cell count`; complete cells as long as the file is sorted by cell."""
        from scipy.sparse import csr_matrix

        from lib.inputs.formats import blocks

        (n_vars, n_obs), path = self.shape, self.matrix
        types = {"gene": np.int32, "cell": np.int32, "count": np.float64}
        options = {"sep": r"\s+", "header": None, "names": list(types), "dtype": types, "index_col": False}
        begun = [np.empty(0, dtype) for dtype in types.values()]  # lines of a cell that the next block may continue
        done = seen = 0
        with open_file(path) as file:
            for _ in range(self.skip):
                file.readline()
            try:
                for lines in pd.read_csv(file, chunksize=blocks.BLOCK // 2, **options) if self.nnz else ():
                    seen += len(lines)
                    if lines["count"].hasnans:
                        why = "a line of values has fewer than three fields, or no number"
                        raise UserError(damage(path, why))
                    genes, cells, counts = (lines[name].to_numpy() for name in types)
                    genes, cells = genes - 1, cells - 1
                    for what, found, n in (("gene", genes, n_vars), ("cell", cells, n_obs)):
                        if found.min() < 0 or found.max() >= n:
                            odd = int(found[np.argmax((found < 0) | (found >= n))]) + 1
                            raise UserError(
                                f"{path}: a value is of {what} number {odd}, but they go from 1 to {n}. It may be "
                                "truncated or damaged, or count from 0: write it anew."
                            )
                    if self.scattered:
                        yield 0, csr_matrix((counts, (cells, genes)), shape=(n_obs, n_vars))
                        continue
                    genes, cells, counts = map(np.concatenate, zip(begun, (genes, cells, counts), strict=True))
                    if (np.diff(cells) < 0).any():
                        self.scattered = True
                        raise blocks.NotSortedError
                    last = int(cells[-1])
                    whole = int(np.searchsorted(cells, last))
                    begun = [genes[whole:], cells[whole:], counts[whole:]]
                    parts = counts[:whole], (cells[:whole] - done, genes[:whole])
                    yield done, csr_matrix(parts, shape=(last - done, n_vars))
                    done = last
                if not self.scattered:
                    genes, cells, counts = begun
                    yield done, csr_matrix((counts, (cells - done, genes)), shape=(n_obs - done, n_vars))
            except ValueError as error:
                raise UserError(
                    f"{path}: a line does not hold gene, cell and count as three numbers: {error}"
                ) from None
        if seen < self.nnz:
            raise UserError(damage(path, f"{seen} of {self.nnz} lines"))
        if seen > self.nnz:
            raise UserError(f"{path} has {seen} lines of values, but says in its header that there are {self.nnz}.")


def tenx_files(path: Path, genome: str | None) -> list[Path]:
    """The files of matrix, genes and barcodes of a 10x folder, or of the genome's folder in it.

    Raises
    ------
    UserError
        If it does not have exactly one of each, or has several genomes and `genome` is None.
    """
    genomes = sorted({file.parent.name for file in path.glob("*/*matrix.mtx*") if not file.name.startswith(".")})
    if genomes and not any(path.glob("*matrix.mtx*")):
        path = path / choice(path, "genome", genome, genomes)
    return [
        _one_file(path, "matrix.mtx"),
        _one_file(path, "features.tsv", "genes.tsv"),
        _one_file(path, "barcodes.tsv"),
    ]


def _one_file(folder: Path, *names: str) -> Path:
    """The only file of a folder whose name ends with one of `names`, gzipped or not."""
    ends = tuple(name + zipped for name in names for zipped in ("", ".gz"))
    found = sorted(f for f in folder.iterdir() if f.name.endswith(ends) and not f.name.startswith("."))
    if len(found) != 1:
        there = ", ".join(f.name for f in found) or f"only {', '.join(sorted(f.name for f in folder.iterdir())[:10])}"
        raise UserError(
            f"{folder} is no folder of a 10x matrix: it needs one file {' or '.join(names)} (or .gz), and has {there}."
        )
    return found[0]


def mtx_header(path: Path) -> tuple[int, tuple[int, int], int]:
    """Lines before the first value, shape and number of values of a file in Matrix Market's format.

    Raises
    ------
    UserError
        If it is no sparse matrix of numbers, or a line does not have three fields.
    """
    with open_file(path) as file:
        words = file.readline().lower().split()
        lines = 2
        while (line := file.readline()).startswith(b"%") or (line and line.isspace()):
            lines += 1
        first = file.readline()
        while first and first.isspace():
            first = file.readline()
    if words[:1] != [b"%%matrixmarket"]:
        raise UserError(f"{path} is not a matrix in Matrix Market's format: its first line is not %%MatrixMarket.")
    if words[1:] not in [[b"matrix", b"coordinate", number, b"general"] for number in NUMBERS]:
        what = b" ".join(words[1:]).decode(errors="replace")
        raise UserError(
            f"{path} is a {what} in Matrix Market's format; counts are a matrix coordinate integer general, or real: a "
            "line for each value, with gene, cell and count."
        )
    if not line:
        raise UserError(damage(path, "it ends in its header"))
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise UserError(
            f"{path}: line {lines} should hold the numbers of genes, cells and values, and is "
            f"{line.decode(errors='replace').strip()[:80]!r}."
        )
    if first and len(first.split()) != 3:
        raise UserError(
            f"{path}: the first value's line has {len(first.split())} fields, "
            f"{first.decode(errors='replace').strip()[:80]!r}; it needs three, gene, cell and count. Of matrices with "
            "several counts a line, as Velocyto's, write the one to be read into a file of its own."
        )
    n_rows, n_columns, nnz = map(int, sizes)
    return lines, (n_rows, n_columns), nnz


def _n_lines(path: Path) -> int:
    with open_file(path) as file:
        return sum(1 for line in file if not line.isspace())


def _names(path: Path) -> pd.DataFrame:
    """A file of tab-separated strings without a header; if it is not UTF-8, read as Latin-1 with a notice."""
    from lib.run.stage import notice

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
