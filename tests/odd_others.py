"""Odd 10x folders, tables of text, `.loom`, `.zarr` and 10x `.h5`: see `odd_files`."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from odd_files import N_OBS, N_VARS, Cases
from odd_h5ad import BOMB, bomb, put

CASES = Cases()

# 10x folders: cases are functions of a dict of files' contents, which they change

Files = dict[str, bytes]
HEADER = b"%%MatrixMarket matrix coordinate integer general\n"


def files_of(truth: SimpleNamespace) -> Files:
    """The files of a 10x folder."""
    X = sp.coo_matrix(truth.X)
    lines = "".join(f"{c + 1} {r + 1} {v}\n" for r, c, v in zip(X.row, X.col, X.data, strict=True))
    features = zip(truth.ids, truth.symbols, strict=True)
    return {
        "matrix.mtx": HEADER + f"{N_VARS} {N_OBS} {X.nnz}\n{lines}".encode(),
        "features.tsv": "".join(f"{i}\t{symbol}\tGene Expression\n" for i, symbol in features).encode(),
        "barcodes.tsv": "".join(f"{name}\n" for name in truth.barcodes).encode(),
    }


def mtx(name: str, about: str, expected: str = "", **more: Any) -> Callable[..., Any]:
    """A decorator of the function (files, truth) that changes a right folder's files."""

    def added(change: Callable[[Files, SimpleNamespace], None]) -> None:
        def build(folder: Path, truth: SimpleNamespace) -> Path:
            files = files_of(truth)
            change(files, truth)
            for file, content in files.items():
                (folder / "tenx" / file).parent.mkdir(exist_ok=True, parents=True)
                (folder / "tenx" / file).write_bytes(content)
            return folder / "tenx"

        CASES.add(f"mtx_{name}", about, expected, **more)(build)

    return added


def matrix_is(name: str, about: str, change: Callable[[bytes], bytes], expected: str = "", **more: Any) -> None:
    """A case in which only matrix.mtx is odd."""

    @mtx(name, about, expected, **more)
    def _(files, truth):
        files["matrix.mtx"] = change(files["matrix.mtx"])


def header_is(name: str, about: str, words: str, expected: str = "", **more: Any) -> None:
    """A case in which the first line of matrix.mtx is odd."""
    matrix_is(name, about, lambda text: text.replace(HEADER[:-1], words.encode()), expected, **more)


def line_is(name: str, about: str, line: str, expected: str = "", **more: Any) -> None:
    """A case in which the tenth line of values is odd."""

    def change(text: bytes) -> bytes:
        lines = text.split(b"\n")
        lines[11] = line.encode()
        return b"\n".join(lines)

    matrix_is(name, about, change, expected, **{"late": True} | more)


def size_is(name: str, about: str, line: str, expected: str, **more: Any) -> None:
    """A case in which the line of sizes is odd."""

    def change(text: bytes) -> bytes:
        lines = text.split(b"\n")
        lines[1] = line.encode()
        return b"\n".join(lines)

    matrix_is(name, about, change, expected, **more)


MM = "%%MatrixMarket matrix coordinate"
header_is("pattern", "the matrix says only where values are", f"{MM} pattern general", "coordinate pattern general")
header_is("complex", "the matrix is complex", f"{MM} complex general", "is a matrix coordinate complex general")
header_is("symmetric", "the matrix is symmetric", f"{MM} integer symmetric", "is a matrix coordinate integer symm")
header_is("array", "the matrix is dense", "%%MatrixMarket matrix array integer general", "is a matrix array integer")
header_is("upper", "the first line is upper case", f"{MM} INTEGER GENERAL".upper())
header_is("real", "the first line says real", f"{MM} real general")
header_is("float", "the first line says float", f"{MM} float general")
header_is("blanks", "the first line has more blanks", "%%MatrixMarket  matrix\tcoordinate integer  general ")
header_is("no_first", "the first line is missing", "", "is not a matrix in Matrix Market's format")
header_is("comment", "comments and blank lines follow the first line", f"{MM} integer general\n%\n% x\n\n  \n%y")
header_is(
    "vector", "the first line says vector", "%%MatrixMarket vector coordinate integer general", "is a vector coord"
)
header_is("short", "the first line has four words", f"{MM} integer", "is a matrix coordinate integer in")
header_is("bom", "the file begins with a byte order mark", f"\ufeff{MM} integer general")
size_is(
    "more", "the line of sizes says more values", "20 30 9999", "too short for the 9999 lines of values", damaged=True
)
size_is("huge", "the line of sizes says 99999999999 values", "20 30 99999999999", "99999999999", damaged=True)
size_is("huge_digits", "a size has 5000 digits", "20 30 " + "9" * 5000, "line 2", damaged=False)
size_is(
    "huge_shape", "the line of sizes says 10^12 genes", "999999999999 30 5", "is 999999999999 x 30, but there are 20"
)
size_is("fewer", "the line of sizes says fewer values", "20 30 5", "but says in its header that there are 5", late=True)
size_is("negative", "the line of sizes is negative", "20 30 -5", "line 2 should hold the numbers of genes")
size_is("words", "the line of sizes is text", "genes cells n", "line 2 should hold the numbers of genes")
size_is("size_float", "the line of sizes has a fraction", "20.0 30 5", "line 2 should hold the numbers of genes")
size_is("two", "the line of sizes has two numbers", "20 30", "line 2 should hold the numbers of genes")
size_is("swapped", "the line of sizes is swapped", "30 20 100", "It seems to be cells x genes")
size_is(
    "zero", "the line of sizes says no values, and there are some", "20 30 0", "says in its header that there are 0"
)
size_is("unicode", "a size is a digit of another script", "20 3٠ 5", "line 2 should hold the numbers of genes")
size_is(
    "no_cells",
    "the line of sizes says no cells",
    "20 0 0",
    "has lines of values, but says in its header that there are 0",
)
line_is("line_missing", "a line of values is blank: it is one less", "", "lines", damaged=True)
line_is("gene_0", "a gene is number 0", "0 1 1", "line 12: gene number 0, but they go from 1 to 20")
line_is("gene_beyond", "a gene is beyond the last", "21 1 1", "line 12: gene number 21, but they go from 1 to 20")
line_is("cell_0", "a cell is number 0", "1 0 1", "line 12: cell number 0, but they go from 1 to 30")
line_is("cell_beyond", "a cell is beyond the last", "1 31 1", "line 12: cell number 31, but they go from 1 to 30")
line_is("gene_wraps", "a gene is number 2^32 + 1, which 32 bits cut to 1", "4294967297 1 1", "line 12")
line_is("gene_huge", "a gene is number 10^30", "1" + "0" * 30 + " 1 1", "line 12")
line_is("gene_float", "a gene is number 1.5", "1.5 1 1", "line 12")
line_is("gene_text", "a gene is a name", "ACTB 1 1", "line 12")
line_is("count_half", "a count is 3.5", "1 1 3.5", "is 3.5, not a whole number from 0 to")
line_is("count_negative", "a count is negative", "1 1 -3", "is -3.0, not a whole number from 0 to")
line_is("count_nan", "a count is nan", "1 1 nan", "line 12")
line_is("count_inf", "a count is inf", "1 1 inf", "is inf, not a whole number from 0 to")
line_is("count_1e400", "a count is 1e400", "1 1 1e400", "line 12")
line_is("count_text", "a count is text", "1 1 many", "line 12")
line_is("count_hex", "a count is hexadecimal", "1 1 0x10", "line 12")
line_is("count_na", "a count is NA", "1 1 NA", "line 12")
line_is("count_missing", "a count is missing", "1 1", "line 12")
line_is("four_fields", "a line has four fields", "1 1 1 1", "line 12")
line_is("decimal_comma", "a count has a decimal comma", "1 1 3,0", "line 12")
line_is("thousands", "a count has a separator of thousands", "1 1 1,000", "line 12")
line_is("quoted", "a line has quotes", '1 1 "1', "line 12")
line_is("comment_within", "a comment stands between the values", "% here", "line 12")
line_is("bool", "a count is True", "1 1 True", "line 12")
matrix_is("floats", "counts are written as 3.0", lambda text: _values(text, lambda line: line + b".0"))
matrix_is("exponents", "counts are written as 3e0", lambda text: _values(text, lambda line: line + b"e0"))
matrix_is(
    "plus", "numbers are written as +3", lambda text: _values(text, lambda line: b"+" + line.replace(b" ", b" +"))
)
matrix_is(
    "zeros", "numbers have leading zeros", lambda text: _values(text, lambda line: b"0" + line.replace(b" ", b" 00"))
)
matrix_is("tabs", "values are separated by tabs", lambda text: _values(text, lambda line: line.replace(b" ", b"\t")))
matrix_is("indented", "lines begin and end with blanks", lambda text: _values(text, lambda line: b"  " + line + b" \t"))
matrix_is("crlf", "lines end as on Windows", lambda text: text.replace(b"\n", b"\r\n"))
matrix_is("cr", "lines end with CR only", lambda text: text.replace(b"\n", b"\r"), "lines end with CR only")
matrix_is("unended", "the last line has no end", lambda text: text[:-1])
matrix_is("blank_lines", "blank lines stand between values", lambda text: _values(text, lambda line: line + b"\n"))
matrix_is("blank_end", "blank lines stand at the end", lambda text: text + b"\n \n\n")
matrix_is("cut", "the file ends within a line", lambda text: text[: len(text) // 2], "lines", damaged=True, late=True)
matrix_is("empty", "the file is empty", lambda text: b"", "matrix.mtx is empty", damaged=True)
matrix_is(
    "header_only", "the file ends after its first line", lambda text: HEADER, "it ends in its header", damaged=True
)
matrix_is(
    "sizes_only",
    "the file ends after its line of sizes",
    lambda text: b"\n".join(text.split(b"\n")[:2]),
    "lines",
    damaged=True,
)
matrix_is(
    "utf16", "the file is UTF-16", lambda text: text.decode().encode("utf-16"), "matrix.mtx is no text: it is UTF-16"
)
matrix_is("nul", "the file has NUL bytes", lambda text: text[:99] + b"\0\0\0" + text[102:], "line ", late=True)
matrix_is(
    "zeroed",
    "the second half is zeros, as after a crash",
    lambda text: text[: len(text) // 2] + bytes(2000),
    "line",
    late=True,
)
matrix_is(
    "html", "the file is a web page", lambda text: b"<html>\n404\n</html>\n", "is not a matrix in Matrix Market's"
)
matrix_is("gzip", "the file is gzipped, without the suffix", gzip.compress)
matrix_is(
    "gzip_cut",
    "the gzipped file is cut",
    lambda text: gzip.compress(text)[:-60],
    "matrix.mtx cannot be read",
    damaged=True,
    late=True,
)
matrix_is(
    "gzip_stub",
    "the gzipped file has only its first bytes",
    lambda text: gzip.compress(text)[:12],
    "matrix.mtx cannot be read",
    damaged=True,
)
matrix_is(
    "gzip_garbage",
    "bytes follow the gzipped file",
    lambda text: gzip.compress(text) + b"garbage" * 9,
    "matrix.mtx cannot be read",
    damaged=True,
    late=True,
)
matrix_is("gzip_zeros", "zeros follow the gzipped file, as tapes pad", lambda text: gzip.compress(text) + bytes(512))
matrix_is(
    "gzip_two", "the file is two gzipped parts", lambda text: gzip.compress(text[:300]) + gzip.compress(text[300:])
)
matrix_is(
    "gzip_twice",
    "the file is gzipped twice",
    lambda text: gzip.compress(gzip.compress(text)),
    "is no text once unpacked: it is gzipped",
)
matrix_is(
    "gzip_flipped",
    "a byte of the gzipped file is flipped",
    lambda text: _flipped(gzip.compress(text)),
    "matrix.mtx",
    damaged=True,
    late=True,
)
matrix_is(
    "gzip_crc",
    "the checksum of the gzipped file is wrong",
    lambda text: gzip.compress(text)[:-8] + bytes(8),
    "matrix.mtx cannot be read",
    damaged=True,
    late=True,
)
matrix_is(
    "gzip_bomb",
    "a comment is 800 MB of blanks, gzipped",
    lambda text: _gzipped(HEADER + b"%", b" ", b"\n" + text.split(b"\n", 1)[1]),
    "line 2 is longer",
)
matrix_is("gzip_bomb_line", "a line of values has 800 MB of blanks, gzipped", lambda text: _gzipped(text, b" ", b"\n"))
matrix_is(
    "gzip_bomb_first",
    "the first line is 800 MB long, gzipped",
    lambda text: _gzipped(b"", b"%", b"\n" + text),
    "line 1 is longer",
)
matrix_is(
    "xz",
    "the file is compressed with xz",
    lambda text: b"\xfd7zXZ\0" + bytes(99),
    "it is compressed with xz. Unpack it",
)
matrix_is("shuffled", "values are in no order", lambda text: _shuffled(text))
matrix_is("by_gene", "values are sorted by gene", lambda text: _shuffled(text, lambda line: int(line.split()[0])))


def _values(text: bytes, change: Callable[[bytes], bytes]) -> bytes:
    lines = text.split(b"\n")
    return b"\n".join([*lines[:2], *map(change, lines[2:-1]), b""])


def _shuffled(text: bytes, key: Any = hash) -> bytes:
    lines = text.split(b"\n")
    return b"\n".join([*lines[:2], *sorted(lines[2:-1], key=key), b""])


def _flipped(raw: bytes) -> bytes:
    return raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 0x10]) + raw[len(raw) // 2 + 1 :]


def _gzipped(before: bytes, fill: bytes, after: bytes, size: int = BOMB) -> bytes:
    """Gzip of several parts, with `size` bytes of `fill` within."""
    return gzip.compress(before) + gzip.compress(fill * (1 << 24)) * (size >> 24) + gzip.compress(after)


@mtx("duplicates", "each value stands twice: they add up")
def _(files, truth):
    head, sizes, lines = files["matrix.mtx"].split(b"\n", 2)
    n = int(sizes.split()[2])
    files["matrix.mtx"] = b"\n".join([head, f"20 30 {2 * n}".encode(), lines + lines])
    truth.X = truth.X * 2


def names(name: str, about: str, file: str, change: Callable[[bytes], bytes], expected: str = "", **more: Any) -> None:
    """A case in which a file of names is odd."""

    @mtx(name, about, expected, **more)
    def _(files, truth):
        files[file] = change(files[file])


B, F = "barcodes.tsv", "features.tsv"
names("barcodes_fewer", "there are fewer barcodes", B, lambda t: t[9:], "there are 20 genes and 29 barcodes beside it")
names(
    "barcodes_more",
    "there are more barcodes",
    B,
    lambda t: t + b"x\ny\n",
    "there are 20 genes and 32 barcodes beside it",
)
names("barcodes_none", "the file of barcodes is empty", B, lambda t: b"", "there are 20 genes and 0 barcodes beside it")
names(
    "barcodes_header",
    "the file of barcodes has a heading",
    B,
    lambda t: b"barcode\n" + t,
    "begin with a line of headings",
)
names("barcodes_crlf", "barcodes end as on Windows", B, lambda t: t.replace(b"\n", b"\r\n"))
names("barcodes_bom", "barcodes begin with a byte order mark", B, lambda t: b"\xef\xbb\xbf" + t)
names(
    "barcodes_utf16",
    "barcodes are UTF-16",
    B,
    lambda t: t.decode().encode("utf-16"),
    "barcodes.tsv is no text: it is UTF-16",
)
names(
    "barcodes_twice",
    "a barcode stands twice",
    B,
    lambda t: t.replace(b"CELL2-1", b"CELL1-1"),
    "1 cells have the barcode of an earlier",
    late=True,
)
names(
    "barcodes_gzip_cut",
    "gzipped barcodes are cut",
    B,
    lambda t: gzip.compress(t)[:-20],
    "barcodes.tsv cannot be read",
    damaged=True,
)
names("barcodes_bomb", "gzipped barcodes hold 800 MB", B, lambda t: _gzipped(t, b" ", b"\n"), "barcodes.tsv")
names(
    "barcodes_nul",
    "barcodes have NUL bytes",
    B,
    lambda t: t.replace(b"CELL2-1", b"CEL\0\0-1"),
    "barcodes.tsv is no text",
    late=True,
)
names("barcodes_columns", "barcodes have a second column: the first is taken", B, lambda t: t.replace(b"\n", b"\tx\n"))
names("barcodes_unended", "the last barcode has no line end", B, lambda t: t[:-1])
names("barcodes_blank", "blank lines stand at the end of the barcodes", B, lambda t: t + b"\n\n")
names("barcodes_cr", "barcodes end with CR only", B, lambda t: t.replace(b"\n", b"\r"))
names(
    "features_fewer",
    "there are fewer features",
    F,
    lambda t: t.split(b"\n", 1)[1],
    "there are 19 genes and 30 barcodes",
)
names(
    "features_more", "there are more features", F, lambda t: t + b"x\ty\tGene Expression\n", "there are 21 genes and 30"
)
names(
    "features_ragged",
    "a line has more fields than the first",
    F,
    lambda t: t.replace(b"Gene3\t", b"Gene3\tx\t"),
    "saw 4",
    late=True,
)
names("features_html", "the features are a web page", F, lambda t: b"<html>404</html>", "there are 1 genes")
names(
    "features_biotype", "the third column holds biotypes", F, lambda t: t.replace(b"Gene Expression", b"protein_coding")
)
names("features_na", "the third column holds NA", F, lambda t: t.replace(b"Gene Expression", b"NA"))
names("features_blank_type", "the third column is blank", F, lambda t: t.replace(b"Gene Expression", b""))
names("features_4", "there are six columns, as of multiome", F, lambda t: t.replace(b"\n", b"\tchr1\t1\t2\n"))
names("features_2", "there are two columns", F, lambda t: t.replace(b"\tGene Expression", b""))
names(
    "features_antibody",
    "all features are antibodies",
    F,
    lambda t: t.replace(b"Gene Expression", b"Antibody Capture"),
    "has no features of type Gene Expression",
    late=True,
)
names(
    "features_cut_gzip",
    "gzipped features are cut",
    F,
    lambda t: gzip.compress(t)[:-20],
    "features.tsv cannot be read",
    damaged=True,
)


@mtx("features_1", "there is one column")
def _(files, truth):
    files[F] = "".join(f"{name}\n" for name in truth.ids).encode()
    truth.symbols = truth.ids


@mtx(
    "features_quoted", "symbols are quoted, with commas and tabs within: tabs separate all the same", "saw 4", late=True
)
def _(files, truth):
    files[F] = files[F].replace(b"Gene3\t", b'"Ge\tne,3"\t')


@mtx("features_quotes", "symbols have quotes and commas")
def _(files, truth):
    truth.symbols[3], truth.symbols[4] = '"Gene,3"', "5'\"NT"
    files.update(files_of(truth))


@mtx("features_latin1", "a symbol is Latin-1")
def _(files, truth):
    truth.symbols[3] = "Geneµ"
    files[F] = files_of(truth)[F].decode().encode("latin-1")


@mtx("features_empty", "a symbol is empty: the id stands for it")
def _(files, truth):
    truth.symbols[3] = ""
    files.update(files_of(truth))
    truth.symbols[3] = truth.ids[3]


@mtx("features_comma", "the features are separated by commas", "its fields are separated by commas", late=True)
def _(files, truth):
    files[F] = files[F].replace(b"\t", b",")


@mtx("features_some", "three features are antibodies: they are left out")
def _(files, truth):
    lines = files[F].split(b"\n")
    files[F] = b"\n".join([*(x.replace(b"Gene Expression", b"Antibody Capture") for x in lines[:3]), *lines[3:]])
    truth.X, truth.ids, truth.symbols, truth.sized = truth.X[:, 3:], truth.ids[3:], truth.symbols[3:], False


@mtx("features_nan", "symbols are nan, NA, TRUE, 1e5 and 007")
def _(files, truth):
    truth.symbols[:5] = ["nan", "NA", "TRUE", "1e5", "007"]
    files.update(files_of(truth))


@mtx("both_genes", "there are genes.tsv and features.tsv", "needs one file features.tsv or genes.tsv")
def _(files, truth):
    files["genes.tsv"] = files[F]


@mtx("prefix", "files have a prefix")
def _(files, truth):
    for name in list(files):
        files[f"GSM1_P1_{name}"] = files.pop(name)


@mtx("prefixes", "files of two samples are in the folder", "needs one file matrix.mtx")
def _(files, truth):
    for name in list(files):
        files[f"S1_{name}"] = files[f"S2_{name}"] = files[name]
        del files[name]


@mtx("zipped_and_not", "a file is there twice, gzipped and not", "needs one file matrix.mtx")
def _(files, truth):
    files["matrix.mtx.gz"] = gzip.compress(files["matrix.mtx"])


@mtx("hidden", "there are macOS' hidden files too")
def _(files, truth):
    files["._matrix.mtx"] = files[".DS_Store"] = files["._barcodes.tsv.gz"] = b"\0\5\x16\7"


@mtx("no_barcodes", "there are no barcodes", "needs one file barcodes.tsv")
def _(files, truth):
    del files[B]


@mtx("genome", "the files are in a folder of a genome")
def _(files, truth):
    for name in list(files):
        files[f"hg19/{name}"] = files.pop(name)


@mtx("genomes", "there are folders of two genomes", "has more than one genome; it has hg19, mm10")
def _(files, truth):
    for name in list(files):
        files[f"hg19/{name}"] = files[f"mm10/{name}"] = files[name]
        del files[name]


def folder_is(name: str, about: str, expected: str = "", **more: Any) -> Callable[..., Any]:
    """A decorator of the function (folder, truth) that changes a right folder."""

    def added(change: Callable[[Path, SimpleNamespace], Path | None]) -> None:
        def build(folder: Path, truth: SimpleNamespace) -> Path:
            tenx = folder / "tenx"
            tenx.mkdir()
            for file, content in files_of(truth).items():
                (tenx / file).write_bytes(content)
            return change(tenx, truth) or tenx

        CASES.add(f"mtx_{name}", about, expected, **more)(build)

    return added


@folder_is("folder_empty", "the folder is empty", "needs one file matrix.mtx (or .gz), and has only")
def _(folder, truth):
    shutil.rmtree(folder)
    folder.mkdir()


@folder_is("matrix_folder", "matrix.mtx is a folder", "matrix.mtx is no file")
def _(folder, truth):
    (folder / "matrix.mtx").unlink()
    (folder / "matrix.mtx").mkdir()


@folder_is("matrix_fifo", "matrix.mtx is a pipe, which would wait for ever", "matrix.mtx is no file")
def _(folder, truth):
    (folder / "matrix.mtx").unlink()
    os.mkfifo(folder / "matrix.mtx")


@folder_is("matrix_itself", "the path is that of matrix.mtx", "has no format known here")
def _(folder, truth):
    return folder / "matrix.mtx"


@folder_is("matrix_dangling", "matrix.mtx is a symbolic link to nothing", "matrix.mtx")
def _(folder, truth):
    (folder / "matrix.mtx").unlink()
    (folder / "matrix.mtx").symlink_to("gone")


@folder_is("symlinks", "the files are symbolic links to files elsewhere")
def _(folder, truth):
    for file in list(folder.iterdir()):
        file.rename(folder.parent / f"{file.name}.bin")
        file.symlink_to(folder.parent / f"{file.name}.bin")


# Tables of text


def text_of(truth: SimpleNamespace, **how: Any) -> str:
    """The truth as CSV."""
    return pd.DataFrame(truth.X, truth.barcodes, truth.symbols).to_csv(**how)


def csv(name: str, about: str, expected: str = "", file: str = "a.csv", **more: Any) -> Callable[..., Any]:
    """A decorator of the function (text, truth) that gives the bytes of the file."""

    def added(change: Callable[[str, SimpleNamespace], bytes | str]) -> None:
        def build(folder: Path, truth: SimpleNamespace) -> Path:
            found = change(text_of(truth), truth)
            first = dict(zip(truth.symbols[::-1], range(N_VARS)[::-1], strict=False))
            truth.ids = [x if first.get(x, i) == i else f"{x}-1" for i, x in enumerate(truth.symbols)]
            truth.sized = False
            (folder / file).write_bytes(found.encode() if isinstance(found, str) else found)
            return folder / file

        CASES.add(f"text_{name}", about, expected, **more)(build)

    return added


def text_is(name: str, about: str, change: Callable[[str], bytes | str], expected: str = "", **more: Any) -> None:
    """A case of another text."""
    csv(name, about, expected, **more)(lambda text, truth: change(text))


def cell_is(name: str, about: str, value: str, expected: str = "", **more: Any) -> None:
    """A case in which the count of cell 8 and gene 3 is another text."""

    def change(text: str) -> str:
        lines = text.split("\n")
        values = lines[9].split(",")
        values[4] = value
        lines[9] = ",".join(values)
        return "\n".join(lines)

    text_is(name, about, change, expected, **{"late": True} | more)


NO_NUMBERS = "line 10, of cell CELL8-1, does not hold 20 numbers"
text_is("right", "a table", lambda t: t)
text_is("bom", "the table begins with a byte order mark", lambda t: "\ufeff" + t)
text_is("utf16", "the table is UTF-16", lambda t: t.encode("utf-16"), "is UTF-16")
text_is("utf16_be", "the table is UTF-16 without a mark", lambda t: t.encode("utf-16-be"), "is UTF-16")
text_is("utf32", "the table is UTF-32", lambda t: t.encode("utf-32"), "UTF-")
text_is("empty", "the file is empty", lambda t: "", "a.csv is empty", damaged=True)
text_is("blank", "the file holds blank lines only", lambda t: "\n\n \n", "has no line of counts")
text_is("comments", "the file holds comments only", lambda t: "# a\n# b\n", "has no line of counts")
text_is("header", "there is only the line of names", lambda t: t.split("\n")[0] + "\n", "has no line of counts")
text_is(
    "header_unended",
    "there is only the line of names, without an end",
    lambda t: t.split("\n")[0],
    "has no line of cou",
)
text_is("ragged_short", "a line is too short", lambda t: t.replace("CELL8-1,", "CELL8-1", 1), "line 10", late=True)
text_is("ragged_long", "a line is too long", lambda t: t.replace("CELL8-1,", "CELL8-1,0,", 1), NO_NUMBERS, late=True)
text_is("cut", "the table ends within a line", lambda t: t[: len(t) // 2 + 9], "line ", late=True)
text_is(
    "cut_name", "the table ends within the name of a cell", lambda t: t[: t.index("CELL20") + 3], "line 22", late=True
)
text_is("quote_open", "a quote swallows lines", lambda t: t.replace("CELL8-1", '"CELL8-1', 1), "line 10", late=True)
text_is(
    "quote_lines",
    "a quoted name has a line break",
    lambda t: t.replace("CELL8-1", '"CELL8\n-1"', 1),
    "line 10",
    late=True,
)
text_is("semicolons", "separators are semicolons", lambda t: t.replace(",", ";"))
text_is(
    "semicolons_decimal",
    "separators are semicolons, counts have a decimal comma",
    lambda t: _decimal(t),
    "the first line has 1 fields",
)
text_is("pipes", "separators are |", lambda t: t.replace(",", "|"), "separated by")
text_is("blank_lines", "blank lines stand between lines", lambda t: t.replace("\n", "\n\n"))
text_is("cr", "lines end with CR only", lambda t: t.replace("\n", "\r"), "end with CR only")
text_is("crlf", "lines end as on Windows", lambda t: t.replace("\n", "\r\n"))
text_is("unended", "the last line has no end", lambda t: t[:-1])
text_is("nul", "the table has NUL bytes", lambda t: t.replace("CELL8-1", "CELL\0-1"), "is no text")
text_is("zeroed", "the second half is zeros, as after a crash", lambda t: t[: len(t) // 2] + "\0" * 999, "is no text")
text_is("gzip", "the table is gzipped, without the suffix", lambda t: gzip.compress(t.encode()))
text_is("gzip_not", "the suffix says gzipped, and the table is not", lambda t: t, file="a.csv.gz")
text_is(
    "gzip_cut",
    "the gzipped table is cut",
    lambda t: gzip.compress(t.encode())[:-20],
    "a.csv cannot be read",
    damaged=True,
)
text_is(
    "gzip_twice",
    "the table is gzipped twice",
    lambda t: gzip.compress(gzip.compress(t.encode())),
    "is no text once unpacked: it is gzipped",
)
text_is(
    "gzip_two",
    "the table is two gzipped parts",
    lambda t: gzip.compress(t[:500].encode()) + gzip.compress(t[500:].encode()),
)
text_is(
    "gzip_bomb",
    "the first line is 800 MB of blanks, gzipped",
    lambda t: _gzipped(b"", b" ", t.encode()),
    "line 1 is longer",
)
text_is(
    "gzip_bomb_line",
    "a later line is 800 MB of zeros, gzipped",
    lambda t: _gzipped(t.encode() + b"x,", b"0", b"\n"),
    "is longer",
    late=True,
)
text_is(
    "gzip_bomb_lines",
    "800 MB of line breaks follow, gzipped",
    lambda t: _gzipped(t.encode(), b"\n", b""),
    "are blank",
    late=True,
)
text_is(
    "zip",
    "the table is an Excel workbook",
    lambda t: b"PK\x03\x04" + bytes(99),
    "a.csv is no text: it is a zip archive",
)
text_is("xls", "the table is an old Excel workbook", lambda t: b"\xd0\xcf\x11\xe0" + bytes(99), "is no text")
text_is(
    "html",
    "the table is a web page",
    lambda t: "<!DOCTYPE html>\n<html>\n<p>404, Not Found</p></html>\n",
    "the first line has 1 fields",
)
text_is("json", "the table is JSON", lambda t: '{"a": [1, 2],\n"b": [3, 4]}\n', "first line")
text_is("transposed", "lines are genes, and it is not said", lambda t: _turned(t), "its lines look like genes")
text_is("by_genes", "lines are genes, as is said", lambda t: _turned(t), options={"orientation": "genes_by_cells"})
text_is("tabs_csv", "separators are tabs, the suffix csv", lambda t: t.replace(",", "\t"))
text_is("tsv_commas", "separators are commas, the suffix tsv", lambda t: t, file="a.tsv")
text_is(
    "txt_blanks",
    "separators are several blanks",
    lambda t: t.replace("\n,", "\n").lstrip(",").replace(",", "   "),
    file="a.txt",
)
text_is("blanks_around", "blanks stand around counts", lambda t: t.replace(",", " , "))
text_is(
    "last_separator",
    "each line ends with a separator",
    lambda t: t.replace("\n", ",\n"),
    "1 genes have neither a symbol nor an id",
    late=True,
)
text_is("no_names", "there is no line of names", lambda t: t.split("\n", 1)[1], "the first line holds counts")
text_is(
    "no_barcodes",
    "there are no barcodes: the first gene's counts are taken for them",
    lambda t: "\n".join(x.partition(",")[2] for x in t.split("\n")),
    "have the barcode of an earlier cell",
    late=True,
)
text_is(
    "quoted",
    "all is quoted",
    lambda t: "\n".join(",".join(f'"{x}"' for x in line.split(",")) for line in t.strip().split("\n")),
)
text_is("form_feed", "a name has a form feed and a vertical tab", lambda t: t.replace("CELL8-1", "CELL8-1\x0c\x0b", 1))
cell_is("negative", "a count is negative", "-1", "gene Gene3 in cell CELL8-1 is -1.0, not a whole number")
cell_is("half", "a count is 0.5", "0.5", "gene Gene3 in cell CELL8-1 is 0.5, not a whole number")
cell_is("nan", "a count is nan", "nan", "gene Gene3 in cell CELL8-1 is nan, not a whole number")
cell_is("inf", "a count is inf", "inf", "gene Gene3 in cell CELL8-1 is inf, not a whole number")
cell_is("na", "a count is NA", "NA", NO_NUMBERS)
cell_is("text", "a count is text", "many", NO_NUMBERS)
cell_is("empty_cell", "a count is empty", "", NO_NUMBERS)
cell_is("hex", "a count is hexadecimal", "0x10", NO_NUMBERS)
cell_is("thousands", "a count has a separator of thousands", "1'000", NO_NUMBERS)
cell_is("thousands_quoted", "a count is quoted, with a comma of thousands", '"1,000"', "line 10")
cell_is("error", "a count is Excel's error", "#REF!", NO_NUMBERS)
cell_is("formula", "a count is a formula", "=1+1", NO_NUMBERS)
cell_is("date", "a count is a date", "2026-01-01", NO_NUMBERS)
cell_is("two", "a count is two numbers", "1 2", NO_NUMBERS)
cell_is("1e400", "a count is 1e400", "1e400", "is inf, not a whole number")
cell_is("complex", "a count is complex", "1+2j", NO_NUMBERS)
cell_is("underscore", "a count has an underscore, as Python writes it", "1_000", NO_NUMBERS)
cell_is("arabic", "a count is a digit of another script", "٣", NO_NUMBERS)


def _decimal(text: str) -> str:
    lines = text.replace(",", ";").split("\n")
    return "\n".join([lines[0], *(x.replace(";0", ";0,0").replace(";1", ";1,0") for x in lines[1:])])


def _turned(text: str) -> str:
    return pd.read_csv(io.StringIO(text), index_col=0).T.to_csv()


@csv("latin1", "a gene's name is Latin-1")
def _(text, truth):
    truth.symbols[3] = "Geneµ"
    return text_of(truth).encode("latin-1")


@csv("genes_twice", "a gene stands twice: it is numbered")
def _(text, truth):
    truth.symbols[3] = "Gene2"
    return text_of(truth)


@csv("cells_twice", "a cell stands twice", "1 cells have the barcode of an earlier cell", late=True)
def _(text, truth):
    truth.barcodes[3] = truth.barcodes[2]
    return text_of(truth)


@csv("gene_nameless", "a gene has no name", "1 genes have neither a symbol nor an id", late=True)
def _(text, truth):
    truth.symbols[3] = ""
    return text_of(truth)


@csv("cell_nameless", "a cell has no name")
def _(text, truth):
    truth.barcodes[3] = ""
    return text_of(truth)


@csv("one_gene", "a table of one gene", "neither names nor counts tell")
def _(text, truth):
    truth.symbols[0] = "x"
    truth.barcodes = np.array([f"y{i}" for i in range(N_OBS)], object)
    return pd.DataFrame(truth.X[:, :1], truth.barcodes, truth.symbols[:1]).to_csv()


@csv("float_counts", "counts are written as 3.0")
def _(text, truth):
    return pd.DataFrame(truth.X.astype(float), truth.barcodes, truth.symbols).to_csv()


@csv("exponents", "counts are written as 3.0e+00")
def _(text, truth):
    return pd.DataFrame(truth.X.astype(float), truth.barcodes, truth.symbols).to_csv(float_format="%e")


@csv("long_name", "a cell's name has 200,000 characters")
def _(text, truth):
    truth.barcodes[3] = "x" * 200_000
    return text_of(truth)


@csv("metadata", "the last column is text", "does not hold 21 numbers", late=True)
def _(text, truth):
    return pd.DataFrame(truth.X, truth.barcodes, truth.symbols).assign(type="T").to_csv()


@csv("r_quoted_commas", "gene names are quoted, with commas within")
def _(text, truth):
    truth.symbols[3] = "HLA-A,B"
    return text_of(truth, quoting=2)


@csv("all_zero", "all counts are zero", "all counts in the table are zero", late=True)
def _(text, truth):
    truth.X[:] = 0
    return text_of(truth)


def path_is(name: str, about: str, expected: str, file: str = "a.csv", **more: Any) -> Callable[..., Any]:
    """A decorator of the function (path) that makes something of this path."""

    def added(make: Callable[[Path], Any]) -> None:
        def build(folder: Path, truth: SimpleNamespace) -> Path:
            make(folder / file)
            return folder / file

        CASES.add(f"text_{name}", about, expected, **more)(build)

    return added


path_is("folder", "a.csv is an empty folder", "a.csv is a folder")(Path.mkdir)
path_is("fifo", "a.csv is a pipe, which would wait for ever", "a.csv is no file")(os.mkfifo)
path_is("device", "a.csv is a link to a device without an end", "a.csv is no file")(
    lambda path: path.symlink_to("/dev/zero")
)
path_is("gone", "a.csv is not there", "a.csv does not exist")(lambda path: None)
path_is("rds", "the file is R's", "has no format known here", file="a.rds")(lambda path: path.write_bytes(b"x"))
path_is("h5ad_gz", "the file is a gzipped h5ad by its suffix", "a.h5ad.gz has no format known here", file="a.h5ad.gz")(
    lambda path: path.write_bytes(b"x")
)
path_is("tar", "the file is a tar archive", "has no format known here", file="a.tar.gz")(
    lambda path: path.write_bytes(b"x")
)


# Loom


def loom(name: str, about: str, expected: str = "", **more: Any) -> Callable[..., Any]:
    """A decorator of the function (file, truth) that changes a right loom."""

    def added(change: Callable[[h5py.File, SimpleNamespace], None]) -> None:
        def build(folder: Path, truth: SimpleNamespace) -> Path:
            with h5py.File(folder / "a.loom", "w") as file:
                file["matrix"] = truth.X.T.astype(np.float32)
                file["row_attrs/Gene"], file["row_attrs/Accession"] = truth.symbols, truth.ids
                file["col_attrs/CellID"], file["col_attrs/depth"] = truth.barcodes, truth.X.sum(1)
                change(file, truth)
            return folder / "a.loom"

        CASES.add(f"loom_{name}", about, expected, **more)(build)

    return added


@loom("no_cols", "there are no attributes of cells", "it has no col_attrs")
def _(file, truth):
    del file["col_attrs"]


@loom("no_rows", "there are no attributes of genes", "it has no row_attrs")
def _(file, truth):
    del file["row_attrs"]


@loom("no_matrix", "there is no matrix", "it has no matrix")
def _(file, truth):
    del file["matrix"]


@loom("no_names", "no attribute names the cells", "/col_attrs has none of CellID")
def _(file, truth):
    del file["col_attrs/CellID"]


@loom(
    "attr_short",
    "an attribute of cells is too short",
    "col_attrs/depth has 29 values, and col_attrs/CellID 30",
    damaged=True,
)
def _(file, truth):
    put(file, "col_attrs/depth", np.zeros(29))


@loom(
    "swapped",
    "the matrix is cells x genes",
    "X is 20 x 30 (cells x genes), but col_attrs have 30 values and row_attrs 20",
)
def _(file, truth):
    put(file, "matrix", truth.X)


@loom("text", "the matrix is text", "matrix is no array of numbers, but of text")
def _(file, truth):
    put(file, "matrix", truth.X.T.astype("S5"))


@loom("3d", "the matrix has three dimensions", "matrix has 3 dimensions, not 2")
def _(file, truth):
    put(file, "matrix", truth.X.T[..., None])


@loom("group", "the matrix is a group", "matrix is no array")
def _(file, truth):
    del file["matrix"]
    file["matrix/data"] = truth.X


@loom("half", "the matrix holds a fraction", "gene Gene3 in cell CELL8-1 is 0.5, not a whole", late=True)
def _(file, truth):
    file["matrix"][3, 8] = 0.5


@loom("layer", "the counts are in a layer", options={"counts": "layers/spliced"})
def _(file, truth):
    file["layers/spliced"] = truth.X.T
    file["matrix"][...] = 0.5


@loom(
    "layer_missing",
    "there is no such layer",
    "has no counts layers/spliced; it has X",
    options={"counts": "layers/spliced"},
)
def _(file, truth):
    pass


@loom(
    "layer_shape",
    "the layer has another shape",
    "layers/n is 3 x 20 (cells x genes), but",
    options={"counts": "layers/n"},
)
def _(file, truth):
    file["layers/n"] = truth.X.T[:, :3]


@loom("layer_group", "a layer is a group")
def _(file, truth):
    file.create_group("layers/odd/x")


@loom("attr_2d", "an attribute of cells has two dimensions: it is left out")
def _(file, truth):
    file["col_attrs/pca"] = np.zeros((N_OBS, 3))


@loom("attr_group", "an attribute of cells is a group: it is left out")
def _(file, truth):
    file.create_group("col_attrs/more")


@loom("attr_scalar", "an attribute of cells is one number: it is left out")
def _(file, truth):
    file["col_attrs/one"] = 5


@loom("attr_compound", "an attribute of cells holds pairs: it is left out")
def _(file, truth):
    file["col_attrs/pairs"] = np.zeros(N_OBS, [("a", int), ("b", int)])


@loom("attr_complex", "an attribute of cells is complex: it is left out")
def _(file, truth):
    file["col_attrs/c"] = np.zeros(N_OBS, complex)


@loom("attr_latin1", "an attribute of cells is text that is not UTF-8: it is left out")
def _(file, truth):
    file["col_attrs/lab"] = np.array([b"caf\xe9"] * N_OBS)


@loom("names_latin1", "a gene's name is not UTF-8", "row_attrs/Gene: the name number 4 is no UTF-8", late=True)
def _(file, truth):
    put(file, "row_attrs/Gene", np.array([b"\xb5" if i == 3 else x.encode() for i, x in enumerate(truth.symbols)]))


@loom("names_numbers", "names of cells are numbers")
def _(file, truth):
    put(file, "col_attrs/CellID", np.arange(N_OBS))
    truth.barcodes = np.arange(N_OBS).astype(str)


@loom("attrs_array", "the attributes of cells are an array", "col_attrs is no group")
def _(file, truth):
    del file["col_attrs"]
    file["col_attrs"] = truth.barcodes


@loom("zero_cells", "there are no cells", "there are no cells")
def _(file, truth):
    put(file, "matrix", np.zeros((N_VARS, 0)))
    put(file, "col_attrs/CellID", truth.barcodes[:0], dtype=h5py.string_dtype())
    put(file, "col_attrs/depth", np.zeros(0))


@loom("huge", "the matrix is of a million cells and genes, and holds no data", "says that it holds")
def _(file, truth):
    n = 1_000_000
    for group in ("row_attrs", "col_attrs"):
        del file[group]
    del file["matrix"]
    file.create_dataset("matrix", (n, n), "f4", chunks=(1000, 1000))
    names = np.char.add(b"x", np.arange(n).astype("S8"))
    for name in ("row_attrs/Gene", "col_attrs/CellID"):
        file.create_dataset(name, data=names, compression="gzip")


@loom(
    "link",
    "a layer is a link to a file outside",
    "is not in this file but in ../../x.h5",
    options={"counts": "layers/n"},
)
def _(file, truth):
    file["layers/n"] = h5py.ExternalLink("../../x.h5", "x")


# 10x h5


def tenx(name: str, about: str, expected: str = "", version: int = 3, **more: Any) -> Callable[..., Any]:
    """A decorator of the function (file, truth) that changes a right 10x h5."""

    def added(change: Callable[[h5py.File, SimpleNamespace], None]) -> None:
        def build(folder: Path, truth: SimpleNamespace) -> Path:
            X = sp.csr_matrix(truth.X)
            with h5py.File(folder / "a.h5", "w") as file:
                group = file.create_group("matrix" if version == 3 else "hg19")
                for part, dtype in (("data", np.int32), ("indices", np.int64), ("indptr", np.int64)):
                    group.create_dataset(part, data=getattr(X, part).astype(dtype), compression="gzip", shuffle=True)
                group["shape"], group["barcodes"] = np.array(X.shape[::-1]), truth.barcodes.astype("S")
                if version == 3:
                    group["features/id"], group["features/name"] = truth.ids.astype("S"), truth.symbols.astype("S")
                    group["features/feature_type"] = np.array(["Gene Expression"] * N_VARS, "S")
                    group["features/genome"] = np.array(["GRCh38"] * N_VARS, "S")
                else:
                    group["genes"], group["gene_names"] = truth.ids.astype("S"), truth.symbols.astype("S")
                change(file, truth)
            return folder / "a.h5"

        CASES.add(f"tenx_{name}", about, expected, **more)(build)

    return added


def part_is(name: str, about: str, change: Callable[[np.ndarray], Any], expected: str = "", **more: Any) -> None:
    """A case in which an array of the file is another."""

    @tenx(name.replace("/", "_"), about, expected, **more)
    def _(file, truth):
        where = "matrix/" + name.split("-")[0]
        put(file, where, change(file[where][...]))


def part_gone(name: str, about: str, expected: str = "", **more: Any) -> None:
    """A case in which an element of the file is missing."""

    @tenx(f"no_{name.replace('/', '_')}", about, expected, **more)
    def _(file, truth):
        del file[f"matrix/{name}"]


part_gone("features", "there are no features", "it has no matrix/features/id")
part_gone("barcodes", "there are no barcodes", "it has no matrix/barcodes")
part_gone("data", "there is no data", "it has no matrix/data")
part_gone("indices", "there are no indices", "it has no matrix/indices")
part_gone("indptr", "there is no indptr", "it has no matrix/indptr")
part_gone("shape", "there is no shape: the names tell it")
part_gone("features/feature_type", "there are no types, as in CellBender's")
part_gone("features/genome", "there are no genomes")
part_is("features/feature_type-na", "types are NA, as in CellBender's", lambda x: np.array(["NA"] * N_VARS, "S"))
part_is(
    "features/feature_type-short",
    "there are fewer types than features",
    lambda x: x[:5],
    "features/feature_type has 5 values",
    damaged=True,
)
part_is(
    "features/name-short",
    "there are fewer names than features",
    lambda x: x[:5],
    "features/name has 5 values",
    damaged=True,
)
part_is("features/id-2d", "ids have two dimensions", lambda x: x[:, None], "features/id has 2 dimensions")
part_is(
    "barcodes-short",
    "there are fewer barcodes",
    lambda x: x[1:],
    "matrix is 30 x 20 (cells x genes), but there are 20 features and 29 barcodes",
)
part_is(
    "barcodes-latin1",
    "a barcode is not UTF-8",
    lambda x: np.r_[[b"\xe9"], x[1:]],
    "barcodes: the name number 1 is no UTF-8",
    late=True,
)
part_is(
    "shape-swapped",
    "the shape is swapped",
    lambda x: x[::-1],
    "matrix is 20 x 30 (cells x genes), but there are 20 features",
)
part_is("shape-lies", "the shape is another", lambda x: x + np.array([5, 0]), "matrix is 30 x 25 (cells x genes), but")
part_is("shape-scalar", "the shape is one number", lambda x: 5, "matrix has the shape 5")
part_is("shape-huge", "the shape is huge", lambda x: x * 2**40, "but there are 20 features")
part_is(
    "indices-wraps", "indices are 2^32 larger", lambda x: x + 2**32, "matrix/indices holds", damaged=True, late=True
)
part_is(
    "indices-negative",
    "an index is negative",
    lambda x: np.r_[-1, x[1:]],
    "matrix/indices holds -1",
    damaged=True,
    late=True,
)
part_is("indptr-falls", "indptr falls", lambda x: x[::-1], "matrix/indptr", damaged=True)
part_is("indptr-scalar", "indptr is one number", lambda x: 5, "matrix/indptr has 0 dimensions")
part_is("data-text", "values are text", lambda x: x.astype("S5"), "matrix/data is no array of numbers")
part_is("data-half", "values are fractions", lambda x: x / 2, "not a whole number from 0", late=True)
part_is("data-floats", "values are floats, all whole, as in CellBender's", lambda x: x.astype("f4"))


@tenx("names_numbers", "barcodes and ids are numbers")
def _(file, truth):
    put(file, "matrix/barcodes", np.arange(N_OBS))
    put(file, "matrix/features/id", np.arange(N_VARS))
    truth.barcodes, truth.ids = np.arange(N_OBS).astype(str), np.arange(N_VARS).astype(str)


@tenx("v2", "the file is of version 2", version=2)
def _(file, truth):
    pass


@tenx("v2_genomes", "the file has two genomes", "has more than one genome; it has hg19, mm10", version=2)
def _(file, truth):
    file.copy("hg19", "mm10")


@tenx("no_group", "there is no matrix", "is not a 10x .h5 file: it has no group `matrix`")
def _(file, truth):
    del file["matrix"]


@tenx("matrix_array", "matrix is an array", "is not a 10x .h5 file")
def _(file, truth):
    del file["matrix"]
    file["matrix"] = truth.X


@tenx("cellbender", "the file is CellBender's, with more groups and `metadata`")
def _(file, truth):
    file["metadata/learning_curve/elbo"], file["global_latents/x"] = np.zeros(5), np.zeros(5)
    file["droplet_latents/background_fraction"] = np.zeros(N_OBS)
    put(file, "matrix/features/feature_type", np.array(["NA"] * N_VARS, "S"))


@tenx("antibodies", "three features are antibodies: they are left out")
def _(file, truth):
    file["matrix/features/feature_type"][...] = [b"Antibody Captur"] * 3 + [b"Gene Expression"] * (N_VARS - 3)
    truth.X, truth.ids, truth.symbols, truth.sized = truth.X[:, 3:], truth.ids[3:], truth.symbols[3:], False


@tenx("feature_barcode_loom", "the file is a loom by its content", "is not a 10x .h5 file")
def _(file, truth):
    del file["matrix"]
    file["matrix"], file["col_attrs/CellID"], file["row_attrs/Gene"] = truth.X.T, truth.barcodes, truth.symbols


@tenx("link", "the matrix is a link to a file outside", "is not in this file but in ../../x.h5")
def _(file, truth):
    del file["matrix"]
    file["matrix"] = h5py.ExternalLink("../../x.h5", "matrix")


@tenx("huge", "the file says that it has 3 billion barcodes, and holds none", "says that it holds")
def _(file, truth):
    del file["matrix/barcodes"], file["matrix/indptr"]
    file.create_dataset("matrix/barcodes", (3_000_000_000,), "S18", chunks=(1 << 16,))
    file.create_dataset("matrix/indptr", (3_000_000_001,), "i8", chunks=(1 << 16,))


# Zarr


def zarr(name: str, about: str, expected: str = "", version: int = 2, **more: Any) -> Callable[..., Any]:
    """A decorator of the function (store, truth) that changes a right zarr."""

    def added(change: Callable[[Path, SimpleNamespace], Path | None]) -> None:
        def build(folder: Path, truth: SimpleNamespace) -> Path:
            import anndata as ad

            obs = pd.DataFrame({"age": np.arange(N_OBS)}, index=truth.barcodes)
            var = pd.DataFrame({"gene_symbols": truth.symbols}, index=truth.ids)
            with ad.settings.override(zarr_write_format=version):
                ad.AnnData(sp.csr_matrix(truth.X.astype(np.float32)), obs, var).write_zarr(folder / "a.zarr")
            return change(folder / "a.zarr", truth) or folder / "a.zarr"

        CASES.add(f"zarr{version}_{name}", about, expected, **more)(build)

    return added


def index_of(store: Path, name: str = "obs") -> Path:
    """The folder of a table's names, which anndata 0.13 keeps as values and a mask."""
    folder = store / name / "_index"
    return folder / "values" if (folder / "values").is_dir() else folder


def metadata(array: Path, **about: Any) -> None:
    """Change the metadata of an array of version 2 or 3; values may be functions of the old ones."""
    file = next(array / name for name in ("zarr.json", ".zarray", ".zgroup") if (array / name).exists())
    old = json.loads(file.read_text())
    new = {name: value(old.get(name)) if callable(value) else value for name, value in about.items()}
    file.write_text(json.dumps(old | new))
    for top in array.parents:  # what consolidated metadata say would go first
        for name in ("zarr.json", ".zmetadata"):
            if (top / name).exists() and "consolidated" in (top / name).read_text():
                _unconsolidated(top / name)


def _unconsolidated(file: Path) -> None:
    if file.name == ".zmetadata":
        file.unlink()
    else:
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if "consol" not in k}))


def is_v3(store: Path) -> bool:
    """Whether a zarr is of version 3."""
    return (store / "zarr.json").exists()


def chunk(array: Path) -> Path:
    """The first chunk of an array."""
    return array / ("c/0" if (array / "zarr.json").exists() else "0")


for VERSION in (2, 3):

    @zarr("right", "a zarr", version=VERSION)
    def _(store, truth):
        pass

    @zarr("no_chunk", "a chunk of X's values is missing", "X/data lacks", version=VERSION, damaged=True)
    def _(store, truth):
        chunk(store / "X/data").unlink()

    @zarr("no_chunk_index", "the chunk of the names is missing", "_index", version=VERSION, damaged=True)
    def _(store, truth):
        chunk(index_of(store)).unlink()

    @zarr("no_chunk_indptr", "the chunk of indptr is missing", "X/indptr lacks", version=VERSION, damaged=True)
    def _(store, truth):
        chunk(store / "X/indptr").unlink()

    @zarr("no_chunk_column", "the chunk of a column is missing: zarr fills it with zeros", version=VERSION)
    def _(store, truth):
        chunk(store / "obs/age").unlink()
        truth.obs = {"age": ["0"] * N_OBS}

    @zarr("chunk_cut", "a chunk is cut", "a.zarr cannot be read", version=VERSION, damaged=True, late=True)
    def _(store, truth):
        file = chunk(store / "X/data")
        file.write_bytes(file.read_bytes()[:-9])

    @zarr("chunk_empty", "a chunk is empty", "a.zarr cannot be read", version=VERSION, damaged=True, late=True)
    def _(store, truth):
        chunk(store / "X/indices").write_bytes(b"")

    @zarr("chunk_noise", "a chunk is random bytes", "a.zarr", version=VERSION, damaged=True, late=True)
    def _(store, truth):
        chunk(store / "X/data").write_bytes(np.random.default_rng(0).bytes(500))

    @zarr("json_broken", "the metadata of an array are cut", "X/data", version=VERSION, damaged=True)
    def _(store, truth):
        file = store / "X/data" / ("zarr.json" if is_v3(store) else ".zarray")
        file.write_text(file.read_text()[:-30])
        metadata(store / "X/indptr")

    @zarr("json_list", "the metadata of an array are a list", "X/data", version=VERSION)
    def _(store, truth):
        file = store / "X/data" / ("zarr.json" if is_v3(store) else ".zarray")
        file.write_text("[1, 2]")
        metadata(store / "X/indptr")

    @zarr("huge_index", "the names say that they are 3 billion, and hold none", "says that it holds", version=VERSION)
    def _(store, truth):
        metadata(index_of(store), shape=[3_000_000_000])

    @zarr("huge_indptr", "indptr says that it has a billion values, and holds few", "X/indptr", version=VERSION)
    def _(store, truth):
        metadata(store / "X/indptr", shape=[1_000_000_000])

    @zarr("huge_chunk", "a chunk says it has a billion values", "says that it holds||not divisible", version=VERSION)
    def _(store, truth):
        grid = {"name": "regular", "configuration": {"chunk_shape": [1_000_000_000]}}
        metadata(store / "X/data", **({"chunks": [1_000_000_000]} if not is_v3(store) else {"chunk_grid": grid}))

    @zarr("shape_negative", "the shape of an array is negative", "X/indptr", version=VERSION)
    def _(store, truth):
        metadata(store / "X/indptr", shape=[-5])

    @zarr("shape_text", "the shape of an array is text", "X/indptr", version=VERSION)
    def _(store, truth):
        metadata(store / "X/indptr", shape="many")

    @zarr("dtype_unknown", "the type of an array is unknown", "its format is", version=VERSION)
    def _(store, truth):
        metadata(store / "X/data", **({"dtype": "<q9"} if not is_v3(store) else {"data_type": "q9"}))

    @zarr("text_data", "the values of X are text by their type", "its format is", version=VERSION)
    def _(store, truth):
        metadata(
            store / "X/data",
            **({"dtype": "|S4", "fill_value": ""} if not is_v3(store) else {"data_type": "string", "fill_value": ""}),
        )

    @zarr("codec_unknown", "an array is compressed in an unknown way", "X/data", version=VERSION)
    def _(store, truth):
        metadata(
            store / "X/data",
            **({"compressor": {"id": "magic"}} if not is_v3(store) else {"codecs": [{"name": "magic"}]}),
        )

    @zarr("symlink_outside", "a chunk is a symbolic link to outside the folder", "X/data", version=VERSION)
    def _(store, truth):
        file = chunk(store / "X/data")
        file.rename(store.parents[1] / "secret")
        file.symlink_to(store.parents[1] / "secret")

    @zarr("symlink_folder", "a group is a symbolic link to outside the folder", "X is a link to", version=VERSION)
    def _(store, truth):
        shutil.move(store / "X", store.parents[1] / "secret")
        (store / "X").symlink_to(store.parents[1] / "secret")

    @zarr("symlink_store", "the store is a symbolic link", version=VERSION)
    def _(store, truth):
        store.rename(store.with_name("elsewhere"))
        store.symlink_to("elsewhere")

    @zarr("fifo", "a chunk is a pipe, which would wait for ever", "is no file", version=VERSION)
    def _(store, truth):
        file = chunk(store / "X/data")
        file.unlink()
        os.mkfifo(file)

    @zarr("wraps", "indices are 2^32 larger", "X/indices", version=VERSION, damaged=True, late=True)
    def _(store, truth):
        import zarr

        group = zarr.open_group(store, mode="a", use_consolidated=False)["X"]
        values = group["indices"][...].astype(np.int64) + 2**32
        group.create_array("indices", data=values, overwrite=True)
        metadata(store / "X/indices")

    @zarr("no_index", "obs names a column of names that is not there", "it has no obs/_index", version=VERSION)
    def _(store, truth):
        shutil.rmtree(store / "obs/_index")
        metadata(store / "X/indptr")

    @zarr("gzip_bomb", "a chunk inflates to 800 MB", "X/data", version=VERSION, late=True, damaged=True)
    def _(store, truth):
        if not is_v3(store):
            metadata(store / "X/data", compressor={"id": "gzip", "level": 9})
        else:
            little = {"name": "bytes", "configuration": {"endian": "little"}}
            metadata(store / "X/data", codecs=[little, {"name": "gzip", "configuration": {"level": 9}}])
        chunk(store / "X/data").write_bytes(_gzipped(b"", b"\0", b""))

    @zarr("blosc_lies", "a chunk says that it inflates to 800 MB", "X/data", version=VERSION, late=True, damaged=True)
    def _(store, truth):
        if not is_v3(store):
            metadata(store / "X/data", compressor={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1})
        else:
            little = {"name": "bytes", "configuration": {"endian": "little"}}
            how = {"typesize": 4, "cname": "lz4", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}
            metadata(store / "X/data", codecs=[little, {"name": "blosc", "configuration": how}])
        import numcodecs

        raw = bytearray(numcodecs.Blosc("lz4").encode(np.zeros(1000, np.uint8)))
        raw[4:8] = BOMB.to_bytes(4, "little")
        chunk(store / "X/data").write_bytes(raw)

    @zarr(
        "by_gene",
        "X is stored gene by gene, a row beyond the cells",
        "X/indices",
        version=VERSION,
        damaged=True,
        late=True,
    )
    def _(store, truth):
        import anndata as ad
        import zarr

        group = zarr.open_group(store, mode="a", use_consolidated=False)
        ad.io.write_elem(group, "X", sp.csc_matrix(truth.X))
        group["X/indices"][0] = N_OBS
        metadata(store / "X/indptr")

    @zarr("dense", "X is dense", version=VERSION)
    def _(store, truth):
        import anndata as ad
        import zarr

        ad.io.write_elem(zarr.open_group(store, mode="a", use_consolidated=False), "X", truth.X)
        metadata(store / "obs/age")

    @zarr("not_anndata", "there is no var", "is not an AnnData file", version=VERSION)
    def _(store, truth):
        shutil.rmtree(store / "var")
        metadata(store / "X/indptr")


@zarr("consolidated_lies", "consolidated metadata say another shape: they are not read")
def _(store, truth):
    file = store / ".zmetadata"
    about = json.loads(file.read_text())
    about["metadata"]["X/indptr/.zarray"]["shape"] = [10**9]
    file.write_text(json.dumps(about))


@zarr("consolidated_lies", "consolidated metadata say another shape: they are not read", version=3)
def _(store, truth):
    file = store / "zarr.json"
    about = json.loads(file.read_text())
    about["consolidated_metadata"]["metadata"]["X/indptr"]["shape"] = [10**9]
    file.write_text(json.dumps(about))


@zarr("pickle", "text is stored as Python's pickles, which run code", "which run code as they are read")
def _(store, truth):
    import pickle

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(store.parents[1] / "run by a pickle"),)

    array = store / "var/gene_symbols"
    array = array / "values" if (array / "values").is_dir() else array
    metadata(array, filters=[{"id": "pickle", "protocol": 4}], compressor=None)
    chunk(array).write_bytes(pickle.dumps(Hostile()))


@zarr("zip", "the store is a zip archive", "is a zip archive")
def _(store, truth):
    packed = shutil.make_archive(str(store.with_name("packed")), "zip", store)
    shutil.rmtree(store)
    Path(packed).rename(store)
    return store


@zarr("empty", "the folder is empty", "a.zarr is no zarr")
def _(store, truth):
    shutil.rmtree(store)
    store.mkdir()


@zarr("array", "the root is an array", "a.zarr is no group")
def _(store, truth):
    file = store / ".zgroup"
    file.rename(store / ".zarray")
    (store / ".zarray").write_text((store / "X/indptr/.zarray").read_text())


@zarr(
    "checksum",
    "a chunk does not have the checksum that it says",
    "a.zarr cannot be read",
    version=3,
    damaged=True,
    late=True,
)
def _(store, truth):
    import zarr

    group = zarr.open_group(store, mode="a", use_consolidated=False)["X"]
    group.create_array("data", data=group["data"][...], overwrite=True, compressors=[zarr.codecs.Crc32cCodec()])
    metadata(store / "X/data")
    file = chunk(store / "X/data")
    raw = bytearray(file.read_bytes())
    raw[5] ^= 1
    file.write_bytes(raw)


@zarr("sharded", "X is stored in shards", version=3)
def _(store, truth):
    import zarr

    group = zarr.open_group(store, mode="a", use_consolidated=False)["X"]
    values = np.pad(group["data"][...], (0, 0))
    n = len(values) // 10 * 10
    group.create_array("data", data=values, overwrite=True, chunks=(10,), shards=(max(n, 10),))
    metadata(store / "X/data")


@zarr("fill", "the fill value is one, and a chunk of dense X is missing: zarr fills it with ones")
def _(store, truth):
    import anndata as ad
    import zarr

    group = zarr.open_group(store, mode="a", use_consolidated=False)
    ad.io.write_elem(group, "X", truth.X, dataset_kwargs={"chunks": (10, N_VARS)})
    metadata(store / "X", fill_value=1)
    (store / "X/1.0").unlink()
    truth.X[10:20] = 1


@zarr("names_bomb", "names are 800 MB of zeros, gzipped", "_index", late=True, damaged=True)
def _(store, truth):
    metadata(index_of(store), compressor={"id": "zlib", "level": 9})
    chunk(index_of(store)).write_bytes(bomb(BOMB))
