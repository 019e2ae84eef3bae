"""Read Cell Ranger's folder: matrix.mtx, barcodes.tsv, and genes.tsv (versions 1, 2) or features.tsv (from 3 on).

Each file may be gzipped.
File names may have a prefix, and a folder may hold one such folder per genome. Source: scanpy.read_10x_mtx.
"""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd

from lib.inputs.formats.base import Blocks, DamagedError, Header, Question, Reader, Tell, as_counts, choice, plain
from lib.inputs.formats.text import encoding_of, is_gzipped, open_file
from lib.run.errors import UserError

SMALL = 8 << 20  # bytes: of smaller files of names the lines are counted for the header
SHORTEST, DEFLATED = 6, 1100  # bytes of a line of values; most bytes that one of a gzipped file inflates to
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
        if len(ids) and table.shape[1] == 1 and all("," in name for name in ids):
            raise UserError(f"{self.features}: its fields are separated by commas, not tabs. Write it with tabs.")
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
        types = {"gene": np.int64, "cell": np.int64, "count": np.float64}  # pandas wraps what 32 bits do not hold
        options = {"sep": r"\s+", "header": None, "names": list(types), "dtype": types, "index_col": False}
        options |= {"quoting": csv.QUOTE_NONE, "na_values": [""], "keep_default_na": False}
        begun = [np.empty(0, dtype) for dtype in (np.int32, np.int32, np.float64)]  # of a cell that may go on
        done = seen = 0
        with open_file(path) as file:
            for _ in range(self.skip):
                file.readline()
            try:
                for lines in pd.read_csv(file, chunksize=blocks.BLOCK // 2, **options) if self.nnz else ():
                    seen += len(lines)
                    genes, cells, counts = (lines[name].to_numpy() for name in types)
                    for found, n in ((genes, n_vars), (cells, n_obs)):
                        if not 1 <= found.min(initial=1) <= found.max(initial=1) <= n:
                            raise ValueError("a number of a gene or cell is not in the matrix")
                    if np.isnan(counts).any():
                        raise ValueError("a count is missing")
                    genes, cells = (found.astype(np.int32) - np.int32(1) for found in (genes, cells))
                    self._check_counts(genes, cells, counts)
                    if self.scattered:
                        yield 0, csr_matrix((counts, (cells, genes)), shape=(n_obs, n_vars))
                        continue
                    genes, cells, counts = map(np.concatenate, zip(begun, (genes, cells, counts), strict=True))
                    if (np.diff(cells) < 0).any():
                        self.scattered = True
                        raise blocks.NotSortedError
                    last = int(cells[-1]) if len(cells) else 0
                    whole = int(np.searchsorted(cells, last))
                    begun = [genes[whole:], cells[whole:], counts[whole:]]
                    parts = counts[:whole], (cells[:whole] - done, genes[:whole])
                    yield done, csr_matrix(parts, shape=(last - done, n_vars))
                    done = last
            except (ValueError, OverflowError, MemoryError) as error:
                raise UserError(self._bad_line() or f"{path} cannot be read: {error}. Write it anew.") from None
            if not self.scattered:
                genes, cells, counts = begun
                yield done, csr_matrix((counts, (cells - done, genes)), shape=(n_obs - done, n_vars))
        if seen < self.nnz:
            raise DamagedError(path, f"it has {seen} of {self.nnz} lines of values")
        if seen > self.nnz:
            raise UserError(f"{path} has {seen} lines of values, but says in its header that there are {self.nnz}.")

    def _check_counts(self, genes: np.ndarray, cells: np.ndarray, counts: np.ndarray) -> None:
        """Refuse values of genes that are no counts, before those of one cell and gene add up."""
        from scipy.sparse import csr_matrix

        from lib.inputs.formats import blocks

        if as_counts(counts) is None:
            chosen = np.ones(self.shape[0], bool) if self.columns is None else self.columns
            odd = np.flatnonzero(chosen[genes])
            if as_counts(counts[odd]) is None:
                at = odd[blocks.first_bad(counts[odd])]
                gene = int(np.cumsum(chosen)[genes[at]]) - 1
                X = csr_matrix((counts[[at]], ([0], [gene])), shape=(1, self.n_vars))
                blocks.refuse_value(self, int(cells[at]), X, 0)

    def _bad_line(self) -> str | None:
        """The message about the first line of values that does not hold a gene, a cell and a count."""
        with open_file(self.matrix) as file:
            for number, line in enumerate(file, 1):
                if number > self.skip and (why := _line_problem(line, self.shape)):
                    shown = ascii(line.decode("latin-1").strip()[:60])
                    return (
                        f"{self.matrix}: line {number}: {why}: {shown}. A line of values holds the numbers of a gene "
                        "and a cell, from 1 on, and a count. Write the file anew."
                    )
        return None


def _line_problem(line: bytes, shape: tuple[int, int]) -> str | None:
    """Why a line of values is none."""
    words = line.split()
    if not words:
        return None
    if b"\0" in line:
        return "it has bytes of zero"
    if len(words) != 3:
        return f"it has {len(words)} fields, not three"
    for what, word, n in zip(("gene", "cell"), words, shape, strict=False):
        if not word.removeprefix(b"+").isdigit():
            return f"the {what} is no whole number"
        if len(word) > 18 or not 1 <= int(word) <= n:
            zero = ". Does the file count from 0" if word == b"0" else ""
            return f"{what} number {word.decode()[:30]}, but they go from 1 to {n}{zero}"
    try:
        return None if math.isfinite(float(words[2])) and b"_" not in words[2] else "the count is no number"
    except ValueError:
        return "the count is no number"


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
        If it is no sparse matrix of numbers, or a line does not have three fields, or it is too short for its values.
    """
    with open_file(path) as file:
        start = file.readline()
        if b"\r" in start.strip():
            raise UserError(f"{path}: its lines end with CR only, as on old Macs. Write it with line ends of Unix.")
        words = start.removeprefix(b"\xef\xbb\xbf").lower().split()
        rest = iter(file)
        line = next((line for line in rest if not line.isspace() and not line.startswith(b"%")), b"")
        lines = file.number
        first = next((line for line in rest if not line.isspace()), b"")
    if words[:1] != [b"%%matrixmarket"]:
        raise UserError(f"{path} is not a matrix in Matrix Market's format: its first line is not %%MatrixMarket.")
    if words[1:] not in [[b"matrix", b"coordinate", number, b"general"] for number in NUMBERS]:
        what = b" ".join(words[1:])[:80].decode(errors="replace")
        raise UserError(
            f"{path} is a {what} in Matrix Market's format; counts are a matrix coordinate integer general, or real: a "
            "line for each value, with gene, cell and count."
        )
    if not line:
        raise DamagedError(path, "it ends in its header")
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() and len(size) < 19 for size in sizes):
        raise UserError(
            f"{path}: line {lines} should hold the numbers of genes, cells and values, and is "
            f"{line.decode(errors='replace').strip()[:80]!r}."
        )
    n_rows, n_columns, nnz = map(int, sizes)
    if first and len(first.split()) != 3:
        raise UserError(
            f"{path}: the first value's line has {len(first.split())} fields, "
            f"{first.decode(errors='replace').strip()[:80]!r}; it needs three, gene, cell and count. Of matrices with "
            "several counts a line, as Velocyto's, write the one to be read into a file of its own."
        )
    if first and not nnz:
        raise UserError(f"{path} has lines of values, but says in its header that there are 0. Write it anew.")
    if (nnz and not first) or nnz * SHORTEST > (path.stat().st_size + 1) * (DEFLATED if is_gzipped(path) else 1):
        raise DamagedError(path, f"it is too short for the {nnz} lines of values that its header says it has")
    return lines, (n_rows, n_columns), nnz


def _n_lines(path: Path) -> int:
    return sum(1 for line in _text(path).split(b"\n") if line.strip(b" "))


def _text(path: Path) -> bytes:
    """A file of names, its lines ended by line feeds."""
    if path.is_file() and not path.stat().st_size:
        return b""
    with open_file(path) as file:
        text = file.read().removeprefix(b"\xef\xbb\xbf")
    if b"\0" in text:
        raise UserError(f"{path} is no text, as it has bytes of zero. Save it as UTF-8.")
    return re.sub(rb"\r\n?", b"\n", text) if b"\r" in text else text


def _names(path: Path) -> pd.DataFrame:
    """A file of tab-separated strings without a header; if it is not UTF-8, read as Latin-1 with a notice."""
    from lib.run.stage import notice

    text = _text(path)
    if (encoding := encoding_of(text)) != "utf-8":
        notice("%s is not UTF-8: its names are read as Latin-1", path)
    options = {"sep": "\t", "header": None, "dtype": str, "na_filter": False, "quoting": csv.QUOTE_NONE}
    try:
        return pd.read_csv(io.BytesIO(text), encoding=encoding, **options)
    except pd.errors.EmptyDataError:
        return pd.DataFrame({0: []}, dtype=object)
    except pd.errors.ParserError as error:
        raise UserError(f"{path} is no file of names, with as many tab-separated fields a line: {error}") from None
