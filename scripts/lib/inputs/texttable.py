"""Tables of counts as text: their encoding, their separator, and whether a line is a cell or a gene.

A line of names, then a line per cell (or gene) with its name and its counts. All of this is told by the first lines.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip

from lib.run.errors import UserError

csv.field_size_limit(1 << 30)  # a line without the separator is one field
PEEK_BYTES = 1 << 20  # of the lines after the first that tell what a table is
PEEK_LINES = 200
ORIENTATIONS = ("auto", "cells_by_genes", "genes_by_cells")
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", " ": "blanks"}
QUOTED = re.compile(r'"((?:[^"]|"")*)"')

# Names of cells: a barcode of nucleotides anywhere in them, an accession of a run, or a counted word
CELL = re.compile(
    r"(?:.*[^A-Za-z0-9])?[ACGTN]{8,}x?(?:[^A-Za-z].*)?|(?:SRR|ERR|DRR|GSM|SAMN)\d{4,}.*"
    r"|(?:cell|barcode|bc|spot|well|nucleus|droplet)s?[-_. ]?\d+.*",
    re.IGNORECASE,
)
# Names of genes of many organisms: ids of the databases, families that every animal has, genes that every tissue shows
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


@dataclass(frozen=True)
class Layout:
    """How a table of text lies.

    Attributes
    ----------
    separator
        What is between two fields; a blank stands for any number of them.
    skip
        Lines before the first line of counts.
    columns
        The names in the first line, above the counts.
    rows
        The names of the first lines.
    values
        The counts of the first lines, NaN where a field is no number.
    encoding
        utf-8, or latin-1 where the text is not.
    line
        Mean length of a line of counts, bytes.
    """

    separator: str
    skip: int
    columns: list[str]
    rows: list[str]
    values: np.ndarray
    encoding: str
    line: float


def open_file(path: Path) -> Any:
    """A file of bytes, inflated if its name ends on .gz."""
    return igzip.open(path) if path.suffix == ".gz" else path.open("rb")


def layout_of(path: Path) -> Layout:
    """How a table lies, from its first lines.

    Raises
    ------
    UserError
        If it is no such table: what it has instead.
    """
    with open_file(path) as file:
        comments, line = [], file.readline()
        if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
            raise UserError(f"{path} is UTF-16, as Excel's Unicode text is, or no text. Save it as UTF-8.")
        while line.startswith(b"#") or line.isspace():
            comments.append(line)
            line = file.readline()
        lines = []
        while len(lines) < PEEK_LINES and (sum(map(len, lines)) < PEEK_BYTES) and (more := file.readline()):
            lines.append(more)
    if any(b"\0" in line for line in lines):
        raise UserError(f"{path} is no text: correct its suffix, which tells its format.")
    skip, head = len(comments) + 1, line
    lines = [line for line in lines if not line.isspace()]
    encoding = encoding_of(b"".join([head, *lines]))
    texts = [line.decode(encoding).rstrip("\r\n") for line in lines]
    if not texts:
        raise UserError(f"{path} has no line of counts: give a line of names, then a line per cell.")
    separator = _separator(path, texts[0])
    names = fields(head.decode(encoding).removeprefix("\ufeff"), separator)
    n_first = len(fields(texts[0], separator))
    counts = len(numbers(split_line(head.decode(encoding), separator)[1], separator)) == len(names) - 1
    if counts and comments and len(names) == n_first:  # names behind a #
        above = fields(comments[-1].decode(encoding).lstrip("#"), separator)
        if len(above) == n_first:
            names, skip, texts, counts = above, skip - 1, [head.decode(encoding).rstrip("\r\n"), *texts], False
    if n_first < 2 or len(names) not in (n_first, n_first - 1):
        raise UserError(
            f"{path}: the first line has {len(names)} fields, the next {n_first}. Give a line of gene names, then "
            f"a line per cell with its barcode and its counts, separated by {NAMES[separator]}."
        )
    if counts and len(set(names[1:])) < len(names) - 1:
        raise UserError(f"{path}: the first line holds counts, and not the names of genes. Give it such a line.")
    split = [split_line(text, separator) for text in texts]
    columns = names[len(names) - n_first + 1 :]
    values = [numbers(rest, separator) for _, rest in split]
    rows = [name for name, _ in split]
    whole = [row if len(row) == len(columns) else np.full(len(columns), np.nan) for row in values]
    mean = sum(map(len, lines)) / len(lines)
    return Layout(separator, skip, columns, rows, np.array(whole), encoding, mean)


def orientation_of(path: Path, layout: Layout, asked: str) -> str:
    """`cells_by_genes` or `genes_by_cells`: what is asked for, where that is not `auto`.

    Raises
    ------
    UserError
        If it is auto, and the names do not look like lines of cells and columns of genes, or, where they tell nothing,
        the counts: the sums of genes differ by more than those of cells.
    """
    if asked != "auto":
        return asked
    cells = [_share(CELL, names) > 0.5 for names in (layout.rows, layout.columns)]
    genes = [
        _share(GENE, names) > 0.02 and not of_cells
        for names, of_cells in zip((layout.rows, layout.columns), cells, strict=True)
    ]
    forward, backward = cells[0] or genes[1], cells[1] or genes[0]
    if forward == backward:
        found, why = _by_sums(layout.values), "their sums vary as those of genes do"
    else:
        found, why = ("cells_by_genes" if forward else "genes_by_cells"), "their names look so"
    if found == "cells_by_genes":
        return found
    names = f"lines like {', '.join(layout.rows[:3])}; columns like {', '.join(layout.columns[:3])}"
    say = "Set `ingest: orientation` in the config, or a column `orientation` of the sample sheet, to"
    if found == "genes_by_cells":
        raise UserError(
            f"{path}: its lines look like genes, its columns like cells ({names}), as {why}. {say} genes_by_cells, and "
            "it is read so; or cells_by_genes, if its lines are cells."
        )
    raise UserError(
        f"{path}: neither names nor counts tell whether its lines are cells or genes ({names}). {say} cells_by_genes "
        "or genes_by_cells."
    )


def encoding_of(text: bytes) -> str:
    """utf-8, or latin-1 where the bytes are not."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return "utf-8" if error.end >= len(text) - 3 and error.reason == "unexpected end of data" else "latin-1"
    return "utf-8"


def fields(line: str, separator: str) -> list[str]:
    """A line's fields; quotes hold one together."""
    line = line.rstrip("\r\n")
    if separator == " ":
        return [
            QUOTED.sub(lambda m: m[1].replace('""', '"'), field) for field in re.findall(r'"(?:[^"]|"")*"|\S+', line)
        ]
    return [field.strip() for field in next(csv.reader([line.replace("\r", " ")], delimiter=separator), [])]


def split_line(line: str, separator: str) -> tuple[str, str]:
    """A line's name, and the text of its counts."""
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
    """The numbers of a line, float64; none where one of them is no number."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy before 2.4 only warns
        try:
            return np.fromstring(text, np.float64, sep=separator)
        except (ValueError, DeprecationWarning):
            return np.empty(0)


def text_lines(path: Path, layout: Layout) -> Iterator[tuple[str, str]]:
    """Each line of counts: its name, and its counts as text."""
    with open_file(path) as file:
        for number, line in enumerate(file):
            if number >= layout.skip and not line.isspace():
                yield split_line(line.decode(layout.encoding), layout.separator)


def _separator(path: Path, line: str) -> str:
    """The likeliest separator of a line of counts: the suffix' own, where the line has it."""
    own = "," if path.name.lower().removesuffix(".gz").endswith(".csv") else "\t"
    others = [separator for separator in (",", ";", "\t", " ") if separator != own]
    return next((separator for separator in (own, *others) if len(fields(line, separator)) > 1), own)


def _share(pattern: re.Pattern[str], names: Sequence[str]) -> float:
    some = names[:: len(names) // 3000 + 1]
    return float(np.mean([pattern.fullmatch(name) is not None for name in some])) if some else 0.0


def _by_sums(values: np.ndarray) -> str | None:
    """Which way round counts lie, where it is clear: genes' sums are far more uneven than cells'."""
    if min(values.shape) < 10 or not np.isfinite(values).all() or not values.any():
        return None
    uneven = [(sums.std() / sums.mean()) ** 2 for sums in (values.sum(1), values.sum(0))]
    if max(uneven) < 1 or max(uneven) < 4 * min(uneven):
        return None
    return "cells_by_genes" if uneven[1] > uneven[0] else "genes_by_cells"
