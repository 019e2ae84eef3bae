"""The common base of the readers: questions to a file, its header, and messages about its problems.

This module is imported when the workflow is read, so it imports neither SciPy nor HDF5, which only the counts need.
"""

from __future__ import annotations

import errno
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import deflate
import numpy as np
import pandas as pd
from isal import isal_zlib

from lib.inputs.sheet import stored_names
from lib.run.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from lib.inputs.formats.arrays import File

LARGEST = np.iinfo(np.int32).max  # the largest count: the integers of all libraries hold it
NUMBERS, WHOLE = "biuf", "iuf"  # NumPy's kinds of values, and of positions
MANY = 1 << 22  # entries of a cell or gene, should it have more than one for each gene or cell
PEEK = 1000  # values to check whether a matrix looks like counts
PEEK_ROWS = 100  # rows of a dense matrix to estimate its share of non-zeros
COMPLETE = ("batch_key", "harmony: keys")  # keys of the config whose columns must have a value for every cell
NO_CELLS = "there are no cells. Remove the sample from the sheet, or correct its path."
PLUGIN = (
    "compressed in a way that needs a plugin ({}). Write it anew, in Python: import hdf5plugin; "
    "anndata.read_h5ad(OLD).write_h5ad(NEW, compression='gzip')"
)
NO_GENES = "there are no genes. Remove the sample from the sheet, or correct its path."
# How files begin that are compressed or packed, or in another encoding
BEGINNINGS = {
    b"\x1f\x8b": "it is gzipped. Unpack it (gunzip)",
    b"PK\3\4": "it is a zip archive, as Excel workbooks are too. Unpack it, or save it as text",
    b"\xfd7zXZ": "it is compressed with xz. Unpack it",
    b"BZh": "it is compressed with bzip2. Unpack it",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd. Unpack it",
    b"\xd0\xcf\x11\xe0": "it is an Excel workbook. Save it as text",
    b"\x89HDF": "it is an HDF5 file. Correct its suffix, which tells its format",
    b"\xff\xfe": "it is UTF-16, as Excel's Unicode text is. Save it as UTF-8",
    b"\xfe\xff": "it is UTF-16, as Excel's Unicode text is. Save it as UTF-8",
}
# Errors from reading a damaged file, and from a layout that is not the format's
DAMAGED = (OSError, EOFError, deflate.DeflateError, isal_zlib.error)
UNREADABLE = (*DAMAGED, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError)

Tell = Callable[[str], None]
Blocks = Iterator[tuple[int, "csr_matrix"]]  # first row, and rows


class DamagedError(UserError):
    """A file that is truncated or damaged."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(damage(path, why))


@dataclass(frozen=True)
class Question:
    """A question to a file: the counts to take, and the settings that its size and its problems depend on.

    Attributes
    ----------
    path, counts, genome, orientation, obs_names, var_names
        The file, and the counts to take from it: see `open_counts`.
    batch_key, min_genes
        The column of the batches, and the limit of non-zeros for a kept cell.
    wanted
        Columns of obs that must come from the file: name, config key, whether it must be numeric.
    sheet
        Columns of obs that come from the sheet.
    keep
        Columns that the config takes from the file although stages may write columns of the same names.
    alone
        Whether it is the only file of the sheet.
    grouping
        The column of the groups that are clustered again; empty: none.
    """

    path: str
    counts: str
    genome: str | None
    batch_key: str = "sample"
    min_genes: float = 0
    orientation: str = "auto"
    obs_names: str | None = None
    var_names: str | None = None
    wanted: tuple[tuple[str, str, bool], ...] = ()
    sheet: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    alone: bool = False
    grouping: str = ""


@dataclass(frozen=True)
class Header:
    """A file's cells, genes and non-zeros (estimated if the file does not tell), non-zeros of each cell (if the file
    tells), (batches, cells of the largest), whether it is stored gene by gene, and the cells of each group."""

    n_obs: int
    n_vars: int
    nnz: int
    per_cell: np.ndarray | None = None
    batches: tuple[int, int] | None = None
    turned: bool = False
    groups: dict[str, int] | None = None


class Reader(ABC):
    """One file's raw counts, cells x genes. The constructor reads the file's layout, `load` reads the names.

    Attributes
    ----------
    question, path
        The question, and the file or folder.
    tell
        Called with each problem of the layout: `refuse`, or, if only the header is read, a function that collects.
    where
        The place of the counts in the file: X, raw, layers/NAME, matrix.
    places
        All places where the file may keep counts, each with what its values look like.
    scattered
        Whether the blocks hold parts of all rows, instead of complete rows in the order of the file.
    nnz
        Non-zeros of the file if it tells them, else an upper estimate.
    scratch
        Folder of the scratch file.
    obs
        The file's table of cells; its index holds the barcodes as in the file. Set by `load`, like the following.
    gene_symbols, gene_ids
        Strings per gene, as in the file; if one of them is empty or absent, the other.
    columns
        Mask of the file's columns to take; None: all.
    flags
        The boolean columns of the file's table of genes.
    """

    obs: pd.DataFrame
    gene_symbols: np.ndarray
    gene_ids: np.ndarray
    nnz: int
    where: str = "matrix"
    columns: np.ndarray | None = None
    flags: pd.DataFrame | None = None
    scratch: Path | None = None
    scattered: bool = False

    def __init__(self, question: Question, tell: Tell) -> None:
        self.question, self.tell, self.path = question, tell, Path(question.path)
        self.places: dict[str, str] = {}

    @property
    def n_obs(self) -> int:
        """Cells."""
        return len(self.obs)

    @property
    def n_vars(self) -> int:
        """Genes."""
        return len(self.gene_symbols)

    def check_columns(self, names: Sequence[str] = ()) -> None:
        """Tell which columns of obs that the config needs are missing from the file or unfit."""
        question = self.question
        stored = {kept: name for name, kept in stored_names(names, question.sheet, question.keep).items()}
        for name, key, numeric in sorted(question.wanted, key=lambda wanted: wanted[0] in stored):
            if name not in stored:
                there = ", ".join(["sample", *stored, *question.sheet])
                text = f"{key}: neither {self.path} nor the sheet has a column {name}; there are {there}."
                self.tell(f"{text} Correct {key} in the config.")
            elif problem := self.column_problem(stored[name], numeric, key in COMPLETE):
                self.tell(f"{key}: the column {name} of {self.path} {problem}")

    def chunks(self) -> Iterator[csr_matrix]:
        """All cells in order, as CSR matrices of uint32 with sorted indices, without duplicates and explicit zeros.

        Raises
        ------
        UserError
            If a value, or the sum of the entries of one cell and gene, is not a count (the message names cell, gene and
            value), or the file is damaged.
        NotSortedError
            If the file is not sorted by cell although its beginning is.
        """
        from lib.inputs.formats.blocks import checked

        try:
            yield from checked(self)
        except UNREADABLE as error:
            if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOSPC:
                raise
            raise UserError(unreadable(self.path, error)) from None

    # To be defined by the reader of a format

    @abstractmethod
    def header(self) -> Header:
        """The header, read from as little of the file as possible."""

    @abstractmethod
    def load(self) -> None:
        """Read the names of cells and genes, and the other columns of their tables."""

    @abstractmethod
    def blocks(self) -> Blocks:
        """The matrix as on disk, with all columns of the file."""

    def column_problem(self, name: str, numeric: bool, complete: bool) -> str | None:
        """Why the config cannot use a column of obs, as far as a cheap check can tell."""
        return None


class MatrixReader(Reader):
    """A reader of a matrix in HDF5 or zarr: dense (an array) or sparse (a group of data, indices and indptr).

    Attributes
    ----------
    file
        The file's elements.
    element, matrix, shape
        The matrix' path in the file, the matrix, and its numbers of cells and features.
    indptr
        Of a sparse matrix, int64.
    sparse, scattered, transposed
        Whether it is sparse; whether a sparse one is CSC; whether a dense one is stored as features x cells.
    """

    file: File
    element: str
    matrix: Any
    shape: tuple[int, int]
    indptr: np.ndarray
    sparse: bool = False
    transposed: bool = False

    def take(self, element: str, named: tuple[int, int], names: str, data: bool = True) -> None:
        """Take this matrix, which must fit its names and itself; without `data` only by its shapes.

        Parameters
        ----------
        named, names
            How many cells and features the file names, in numbers and in words.
        """
        from lib.inputs.formats.arrays import n_bytes

        file, self.element = self.file, element
        if not self.sparse:
            self.matrix = file.array(element, 2, NUMBERS)
            self.shape = tuple(self.matrix.shape[::-1] if self.transposed else self.matrix.shape)
            parts = {element: self.matrix}
        else:
            self.matrix = file.group(element)
            kinds = {"data": NUMBERS, "indices": WHOLE, "indptr": WHOLE}
            parts = {f"{element}/{name}": file.array(f"{element}/{name}", 1, kind) for name, kind in kinds.items()}
            self.shape = self._told_shape(named)
        if self.shape != named:
            hint = " They seem to be swapped: transpose the matrix." if self.shape == named[::-1] else ""
            refuse(
                f"{self.path}: {self.where} is {self.shape[0]} x {self.shape[1]} (cells x genes), but {names}.{hint}"
            )
        self.nnz = int(self.matrix["data"].shape[0]) if self.sparse else self.shape[0] * self.shape[1]
        if not self.sparse:
            file.check_room(element, n_bytes(self.matrix), dense=True)
            return
        file.check_room(f"{element}/indptr", n_bytes(parts[f"{element}/indptr"]))
        for name, array in parts.items():
            file.check_written(name, array)
        if parts[f"{element}/indices"].shape[0] != self.nnz:
            n = parts[f"{element}/indices"].shape[0]
            raise DamagedError(self.path, f"{element}/indices has {n} of {self.nnz} values")
        if data:
            name = f"{element}/indptr"
            indptr = self.indptr = positions(self.path, name, file.whole(name, parts[name]), self.nnz)
            steps, n_minor = np.diff(indptr), self.shape[not self.scattered]
            fits = len(indptr) == self.shape[self.scattered] + 1 and indptr[0] == 0 and indptr[-1] == self.nnz
            if not fits or steps.min(initial=0) < 0 or steps.max(initial=0) > max(n_minor, MANY):
                raise DamagedError(self.path, f"{name} does not fit the matrix")

    def _told_shape(self, named: tuple[int, int]) -> tuple[int, int]:
        """The shape that a sparse matrix says it has."""
        told = self.matrix.attrs.get("shape")
        if told is None:
            refuse(f"{self.path} is not laid out as its format is: {self.element} has no attribute shape.")
        values = np.asarray(told)
        if values.shape != (2,) or values.dtype.kind not in "iuf" or not np.array_equal(values, np.floor(values)):
            refuse(f"{self.path} is not laid out as its format is: {self.element} has the shape {told}.")
        return int(values[0]), int(values[1])

    def header(self) -> Header:
        """The header, from the `indptr` or the first cells."""
        if self.sparse:
            per_major = np.diff(self.indptr)
            return Header(*self.shape, self.nnz, None if self.scattered else per_major, turned=self.scattered)
        first = (slice(None), slice(PEEK_ROWS)) if self.transposed else (slice(PEEK_ROWS),)
        some = self.file.read(self.element, self.matrix, *first)
        return Header(*self.shape, int(np.count_nonzero(some) / max(1, some.size) * float(self.nnz)))

    def blocks(self) -> Blocks:
        """Blocks of rows; for a CSC matrix, blocks that hold parts of all rows."""
        from lib.inputs.formats import blocks

        return blocks.csr_blocks(self) if self.sparse else blocks.dense_blocks(self)


def refuse(problem: str) -> NoReturn:
    """Raise a reader's problem as an error."""
    raise UserError(problem) from None


def kind_of_file(path: Path) -> str:
    """What a path is that is no regular file."""
    mode = path.stat().st_mode if path.exists() else 0
    kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((kind for kind, test in kinds.items() if test(mode)), "a device" if mode else "a link to nothing")


def check_there(path: Path) -> None:
    """Refuse what does not exist; of what is no folder, see `check_regular`."""
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist. Correct its path in the sample sheet.")
    except (OSError, RuntimeError) as error:  # a loop of links
        raise UserError(f"{path} cannot be read: {error}. Correct its path in the sample sheet.") from None
    if not path.is_dir():
        check_regular(path)


def check_regular(path: Path) -> None:
    """Refuse what is no file, as a pipe would be read for ever, and an empty file."""
    if not path.is_file():
        raise UserError(f"{path} is no file but {kind_of_file(path)}. Correct its path, or put the file there.")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty. It may be truncated or damaged: copy or download it again.")


def content_of(path: Path) -> str:
    """What a file holds that is not of its format, by its first bytes, and what to do."""
    with path.open("rb") as file:
        head = file.read(40)
    known = next((what for start, what in BEGINNINGS.items() if head.startswith(start)), None)
    shown = ascii(head.decode("latin-1").strip("\0 \r\n"))
    return f"{known}." if known else f"it begins with {shown}. Correct its path or suffix, or download it again."


def damage(path: Path, why: object) -> str:
    """The message that a file is truncated or damaged."""
    return f"{path} cannot be read: {why}. It may be truncated or damaged: copy or download it again."


def is_damage(error: BaseException) -> bool:
    """Whether an error means that a file is damaged; errors of zarr's codecs have no special type."""
    return isinstance(error, (*DAMAGED, DamagedError)) or any(
        word in str(error) for word in ("decompress", "corrupt", "truncated", "checksum")
    )


def unreadable(path: Path, error: BaseException) -> str:
    """The message for an error about a file; only damage is called so."""
    text = str(error).strip("'\"") or type(error).__name__
    if isinstance(error, PermissionError):
        return f"{path} cannot be read: permission denied. Make it readable."
    if isinstance(error, MemoryError):
        return f"{path} cannot be read: it asks for more memory than there is ({text})."
    if isinstance(error, UnicodeDecodeError):
        return f"{path} cannot be read: it has text that is not UTF-8 ({text}). Save it as UTF-8."
    if isinstance(error, OSError):
        if "required filter" in text or "can't open directory" in text or "plugin" in text:
            return f"{path} cannot be read: it is {PLUGIN.format(text)}."
        if "already open for write" in text or "unable to lock" in text:
            return f"{path} cannot be read: another process writes it, or was killed while it did ({text})."
    if isinstance(error, KeyError):
        return f"{path} is not laid out as its format is: {text}."
    if not is_damage(error):
        return f"{path} is not laid out as its format is ({type(error).__name__}: {text})."
    return damage(path, text)


def choice(path: Path, key: str, wanted: str | None, options: Sequence[str]) -> str:
    """The config's value of a key if the file has it; the only option if the value is None."""
    if wanted is None and len(options) == 1:
        return options[0]
    if wanted in options:
        return wanted
    problem = f"has no {key} {wanted}" if wanted is not None else f"has more than one {key}"
    raise UserError(f"{path} {problem}; it has {', '.join(options) or 'none'}. Set the config key `ingest: {key}`.")


def positions(path: Path, name: str, values: np.ndarray, largest: int, dtype: Any = np.int64) -> np.ndarray:
    """Values as integers of `dtype`; refuses those that are not whole numbers from 0 to `largest`."""
    if len(values) and not (values.min() >= 0 and values.max() <= largest):
        odd = values[~((values >= 0) & (values <= largest))][0]
    elif values.dtype.kind == "f" and (parts := values != np.floor(values)).any():
        odd = values[parts][0]
    else:
        return values.astype(dtype, copy=False)
    raise DamagedError(path, f"{name} holds {odd}, not a whole number from 0 to {largest}")


def as_counts(values: np.ndarray) -> np.ndarray | None:
    """The values as uint32; None if one of them is not a whole number from 0 to `LARGEST`."""
    if values.dtype.kind not in "biuf":
        return None
    if not len(values):
        return values.astype(np.uint32)
    # A NaN fails the comparison, so none reaches the cast
    if not 0 <= float(values.min()) <= float(values.max()) <= LARGEST:
        return None
    counts = values.astype(np.uint32)
    return counts if values.dtype.kind != "f" or np.array_equal(counts, values) else None


def look_of(values: np.ndarray) -> str:
    """The kind of a matrix, as some of its values suggest."""
    return "not whole numbers" if as_counts(values) is None else "whole numbers"


def plain(names: Any) -> pd.Index:
    """Names as an unnamed index of Python strings."""
    names = names.to_numpy(object) if isinstance(names, pd.Index) else names  # iterates faster
    return pd.Index([str(name) for name in names], dtype=object)
