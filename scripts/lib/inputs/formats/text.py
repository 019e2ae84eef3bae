"""Read tables of counts as text: a line of gene names, then a line per cell with barcode and counts; or genes x cells.

The first lines tell the encoding, the separator, and whether a line is a cell or a gene.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from isal import igzip

from lib.inputs.formats.base import (
    BEGINNINGS,
    DAMAGED,
    Blocks,
    DamagedError,
    Header,
    Question,
    Reader,
    Tell,
    check_regular,
    plain,
)
from lib.run.errors import UserError

csv.field_size_limit(1 << 30)  # a line without separators is one field
LONGEST = 1 << 26  # bytes of a line, besides those of its file
BLANK, MOST = 1_000_000, 4  # blank lines between two others; bytes of names for each of `LONGEST`
PEEK_BYTES = 1 << 20  # bytes of lines after the first that are read to guess the layout
PEEK_LINES = 200
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", " ": "blanks"}
QUOTED = re.compile(r'"((?:[^"]|"")*)"')

# Names of cells: a barcode of nucleotides anywhere in them, an accession of a run, or a counted word
CELL = re.compile(
    r"(?:.*[^A-Za-z0-9])?[ACGTN]{8,}x?(?:[^A-Za-z].*)?|(?:SRR|ERR|DRR|GSM|SAMN)\d{4,}.*"
    r"|(?:cell|barcode|bc|spot|well|nucleus|droplet)s?[-_. ]?\d+.*",
    re.IGNORECASE,
)
# Names of genes of many organisms: ids of databases, families of all animals, genes seen in all tissues
GENE = re.compile(
    r"ENS[A-Z]{0,6}G\d{6,}.*|FBgn\d{7}|WBGene\d{8}|AT[1-5MC]G\d{5}.*|Y[A-P][LR]\d{3}[WC](?:-[A-Z])?|LOC\d+|LINC\d+"
    r"|Gm\d{3,}|\d{7}[A-Z]\d\dRik|(?:RP\d+-|A[CLPF]\d{6}\.).+|[NX][MR]_\d+.*|Os\d\dg\d{7}.*|Solyc\d+g\d+.*|Zm\d+d\d+"
    r"|ZDB-GENE-.+|MGI:\d+|HGNC:\d+|SP[ABC]+\d+[.\dc]*|genes?[-_. ]?\d+"
    r"|MT[-:.].+|M?RP[LS]\d+[A-Z]?\d?(?:-PS\d+)?|(?:CO[123]|ND[1-6]|CYTB|ATP[68])"
    r"|ACT[BG]\d?|ACT5C|GAPDH\w?|B2M\w?|MALAT1|EEF1A1\w*|TMSB\d+X?|FT[HL]1?[AB]?|PTPRC|CD\d{1,3}[A-Z]{0,2}|MS4A\d+"
    r"|LYZ\d?|NKG7|GNLY|GZM[A-Z]|EPCAM|KRT\d+|VIM|COL\d+A\d+|PECAM1|HB[ABG]\d?(?:-.+)?|UB[BC]|TUB[AB]\w+|HSP\w+"
    r"|PPI[AB]|PGK1|LDH[AB]|ALDOA|ENO1|TPT1|NPM1|YBX1|JUN[BD]?|FOSB?|EGR\d|S100A\d+|APOE|MKI67|TOP2A|PCNA|SOX\d+|IL\d+R?",
    re.IGNORECASE,
)


class TextTable(Reader):
    """Reader of a table of text; the first lines tell its layout.

    Attributes
    ----------
    separator
        The separator of fields; a blank stands for any number of blanks.
    skip
        Lines before the first line of counts.
    above, beside
        The names in the header line above the counts, and the names of the first lines of counts.
    values
        The counts of the first lines, NaN if a field is no number.
    encoding
        utf-8, or latin-1 if the text is not UTF-8.
    mean_line
        Mean length of a line of counts, in bytes.
    """

    def __init__(self, question: Question, tell: Tell) -> None:
        super().__init__(question, tell)
        self.check_columns()
        self.where, path = "the table", self.path
        with open_file(path) as file:
            comments, line = [], file.readline()
            if b"\0" in line and line.count(b"\0") >= len(line) // 3:
                raise UserError(f"{path} is UTF-16 or UTF-32, as Excel's Unicode text is. Save it as UTF-8.")
            while line.startswith(b"#") or line.isspace():
                comments.append(line)
                line = file.readline()
                if len(comments) > BLANK:
                    raise UserError(f"{path} has more than {BLANK:,} lines of comments, or blank ones. Remove them.")
            if b"\r" in line.strip(b"\r\n"):
                raise UserError(f"{path}: its lines end with CR only, as on old Macs. Save it with line ends of Unix.")
            lines = []
            while len(lines) < PEEK_LINES and (sum(map(len, lines)) < PEEK_BYTES) and (more := file.readline()):
                lines.append(more)
        if any(b"\0" in text for text in (line, *lines)):
            raise UserError(f"{path} is no text, as it has bytes of zero: correct its suffix, which tells its format.")
        self.skip, lines = len(comments) + 1, [line for line in lines if not line.isspace()]
        self.encoding = encoding_of(b"".join([line, *lines]))
        head, *texts = (text.decode(self.encoding).rstrip("\r\n") for text in (line, *lines))
        if not texts:
            raise UserError(f"{path} has no line of counts: give a line of names, then a line per cell.")
        self.separator = separator = _separator(path, texts[0])
        names = fields(head.removeprefix("\ufeff"), separator)
        n_first = len(fields(texts[0], separator))
        counts = len(numbers(split_line(head, separator)[1], separator)) == len(names) - 1
        if counts and comments and len(names) == n_first:  # names after a #
            above = fields(comments[-1].decode(self.encoding).lstrip("#"), separator)
            if len(above) == n_first:
                names, self.skip, texts, counts = above, self.skip - 1, [head, *texts], False
        if n_first < 2 or len(names) not in (n_first, n_first - 1):
            raise UserError(
                f"{path}: the first line has {len(names)} fields, the next {n_first}. Give a line of gene names, then "
                f"a line per cell with its barcode and its counts, separated by {NAMES[separator]}."
            )
        if counts and len(set(names[1:])) < len(names) - 1:
            raise UserError(f"{path}: the first line holds counts, and not the names of genes. Give it such a line.")
        self.above = names[len(names) - n_first + 1 :]
        split = [split_line(text, separator) for text in texts]
        self.beside = [name for name, _ in split]
        values, n = [numbers(rest, separator) for _, rest in split], len(self.above)
        self.values = np.array([row if len(row) == n else np.full(n, np.nan) for row in values])
        self.mean_line = sum(map(len, lines)) / len(lines)
        self.scattered = self._by_genes()

    def _by_genes(self) -> bool:
        """Whether lines are genes: by the question, else by the names, else by the counts, as sums of genes vary more
        than sums of cells. Unless the question says so, lines that look like genes are a problem."""
        asked, path = self.question.orientation, self.path
        if asked != "auto":
            return asked == "genes_by_cells"
        both = (self.beside, self.above)
        cells = [_share(CELL, names) > 0.5 for names in both]
        genes = [_share(GENE, names) > 0.02 and not of_cells for names, of_cells in zip(both, cells, strict=True)]
        forward, backward = cells[0] or genes[1], cells[1] or genes[0]
        if forward == backward:
            found, why = _by_sums(self.values), "their sums vary as those of genes do"
        else:
            found, why = ("cells_by_genes" if forward else "genes_by_cells"), "their names look so"
        names = f"lines like {', '.join(self.beside[:3])}; columns like {', '.join(self.above[:3])}"
        say = "Set `ingest: orientation` in the config, or a column `orientation` of the sample sheet, to"
        if found == "genes_by_cells":
            self.tell(
                f"{path}: its lines look like genes, its columns like cells ({names}), as {why}. {say} genes_by_cells, "
                "and it is read so; or cells_by_genes, if its lines are cells."
            )
        elif found is None:
            self.tell(
                f"{path}: neither names nor counts tell whether its lines are cells or genes ({names}). {say} "
                "cells_by_genes or genes_by_cells."
            )
        return False

    def header(self) -> Header:
        """The header, estimated from the length of the first lines and their share of non-zeros."""
        size = self.path.stat().st_size
        if is_gzipped(self.path):  # inflated bytes, estimated from the beginning
            with self.path.open("rb") as file, igzip.open(file) as text:
                inflated = len(text.read(PEEK_BYTES))
                size *= inflated / max(1, min(size, file.tell()))
        head = sum(len(name) + 1 for name in self.above)
        shape = max(1, round((size - head) / self.mean_line)), len(self.above)
        nnz = int(np.mean(self.values != 0) * shape[0] * shape[1])
        return Header(*(shape[::-1] if self.scattered else shape), nnz, turned=self.scattered)

    def load(self) -> None:
        """Read the names of all lines."""
        from lib.inputs.formats.genes import filled_names
        from lib.run.stage import notice

        try:
            beside = plain(name for _, name, _ in self._lines())
        except UnicodeDecodeError:  # in a line after the first ones
            self.encoding = "latin-1"
            beside = plain(name for _, name, _ in self._lines())
        if self.encoding != "utf-8":
            notice("%s is not UTF-8: its names are read as Latin-1", self.path)
        names = plain(self.above), beside
        genes, barcodes = names[::-1] if self.scattered else names
        self.gene_symbols = self.gene_ids = filled_names(self.path, genes.to_numpy(), genes.to_numpy())[0]
        self.obs = pd.DataFrame(index=barcodes)
        self.nnz = self.n_obs * self.n_vars

    def _lines(self) -> Iterator[tuple[int, str, str]]:
        """Number, name and counts, as text, of each line of counts."""
        with open_file(self.path) as file:
            for number, line in enumerate(file, 1):
                if number > self.skip and not line.isspace():
                    if b"\0" in line:
                        raise DamagedError(self.path, f"line {number} has bytes of zero")
                    name, text = split_line(line.decode(self.encoding), self.separator)
                    if name.startswith('"') and self.separator != " ":
                        raise UserError(
                            f"{self.path}: line {number} begins with a quote that it does not end: {name[:80]}"
                        )
                    yield number, name, text

    def blocks(self) -> Blocks:
        """Blocks of complete lines; if lines are genes, a block holds the counts of some genes in all cells."""
        from scipy.sparse import csr_matrix

        from lib.inputs.formats import blocks

        n_columns, done = len(self.above), 0
        step = max(1, blocks.BLOCK // max(1, n_columns))
        rows: list[np.ndarray] = []

        def block() -> tuple[int, csr_matrix]:
            X = csr_matrix(np.stack(rows))
            return blocks.turned(X, done, self.n_vars) if self.scattered else (done, X)

        for number, name, text in self._lines():
            row = numbers(text, self.separator)
            if len(row) != n_columns:
                what, other = ("gene", "cell") if self.scattered else ("cell", "gene")
                shown = name if len(name) < 80 else f"{name[:80]}..."
                raise UserError(
                    f"{self.path}: line {number}, of {what} {shown}, does not hold {n_columns} numbers, one for each "
                    f"{other}, separated as the names in the first line. Correct it."
                )
            rows.append(row)
            if len(rows) == step:
                yield block()
                done, rows = done + len(rows), []
        if rows:
            yield block()


class TextFile:
    """The lines of a file, which may be gzipped whatever its name says; its errors name it."""

    def __init__(self, path: Path) -> None:
        check_regular(path)
        self.path, self.file = path, igzip.open(path) if is_gzipped(path) else path.open("rb")
        self.longest, self.number = LONGEST + path.stat().st_size, 0

    def __enter__(self) -> TextFile:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.file.close()

    def readline(self) -> bytes:
        """The next line, empty at the end; one that is far longer than the file is refused."""
        with self._named():
            line = self.file.readline(self.longest)
        self.number += 1
        if len(line) == self.longest:
            raise UserError(f"{self.path}: line {self.number} is longer than {len(line) >> 20} MB: this is no table.")
        return line

    def __iter__(self) -> Iterator[bytes]:
        """The lines from the next one on."""
        blank = 0
        while line := self.readline():
            blank = blank + 1 if line.isspace() else 0
            if blank > BLANK:
                raise UserError(f"{self.path}: line {self.number} and the {BLANK:,} before it are blank. Remove them.")
            yield line

    def read(self, size: int = -1) -> bytes:
        """Bytes from the next one on; all is refused if it is far longer than the file."""
        with self._named():
            found = self.file.read(size if size >= 0 else MOST * self.longest)
        if size < 0 and len(found) == MOST * self.longest:
            raise UserError(f"{self.path} inflates to more than {len(found) >> 20} MB: these are no names.")
        return found

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except DAMAGED as error:
            raise DamagedError(self.path, error) from None


def open_file(path: Path) -> TextFile:
    """Open a file of lines, inflated if it is gzipped.

    Raises
    ------
    UserError
        If it is no file, or empty, or compressed or encoded in another way.
    """
    file = TextFile(path)
    with TextFile(path) as beginning:
        head = beginning.read(8)
    if known := next((what for start, what in BEGINNINGS.items() if head.startswith(start)), None):
        raise UserError(f"{path} is no text{' once unpacked' * is_gzipped(path)}: {known}.")
    return file


def is_gzipped(path: Path) -> bool:
    """Whether a file is gzipped, by its first bytes, as suffixes may be wrong."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def encoding_of(text: bytes) -> str:
    """utf-8, or latin-1 if the bytes are not UTF-8."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return "utf-8" if error.end >= len(text) - 3 and error.reason == "unexpected end of data" else "latin-1"
    return "utf-8"


def fields(line: str, separator: str) -> list[str]:
    """The fields of a line; quotes may enclose separators."""
    line = line.rstrip("\r\n")
    if separator == " ":
        return [
            QUOTED.sub(lambda m: m[1].replace('""', '"'), field) for field in re.findall(r'"(?:[^"]|"")*"|\S+', line)
        ]
    return [field.strip() for field in next(csv.reader([line.replace("\r", " ")], delimiter=separator), [])]


def split_line(line: str, separator: str) -> tuple[str, str]:
    """The name of a line, and its counts as text."""
    line = line.strip("\r\n" if separator == "\t" else "\r\n ")
    if found := QUOTED.match(line):
        name, rest = found[1].replace('""', '"'), line[found.end() :].lstrip(" ")
        rest = rest.removeprefix(separator)
    elif separator == " ":
        name, _, rest = re.sub(r"\s+", " ", line).partition(" ")
    else:
        name, _, rest = line.partition(separator)
    return name.strip(), rest.replace('"', "")


def numbers(text: str, separator: str) -> np.ndarray:
    """The numbers of a line, float64; empty if one of them is no number."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy before 2.4 only warns
        try:
            return np.fromstring(text, np.float64, sep=separator)
        except (ValueError, DeprecationWarning):
            return np.empty(0)


def _separator(path: Path, line: str) -> str:
    """The most likely separator of a line of counts: the suffix' separator if the line contains it."""
    own = "," if path.name.lower().removesuffix(".gz").endswith(".csv") else "\t"
    others = [separator for separator in (",", ";", "\t", " ") if separator != own]
    return next((separator for separator in (own, *others) if len(fields(line, separator)) > 1), own)


def _share(pattern: re.Pattern[str], names: Sequence[str]) -> float:
    some = names[:: len(names) // 3000 + 1]
    return float(np.mean([pattern.fullmatch(name) is not None for name in some])) if some else 0.0


def _by_sums(values: np.ndarray) -> str | None:
    """The orientation of the counts, if it is clear: sums of genes vary far more than sums of cells."""
    if min(values.shape) < 10 or not np.isfinite(values).all() or not values.any():
        return None
    uneven = [(sums.std() / sums.mean()) ** 2 for sums in (values.sum(1), values.sum(0))]
    if max(uneven) < 1 or max(uneven) < 4 * min(uneven):
        return None
    return "cells_by_genes" if uneven[1] > uneven[0] else "genes_by_cells"
