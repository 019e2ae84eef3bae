"""What the header of a sample's file tells, without the counts themselves: its size, and what is wrong with it.

Names of elements, shapes, and where the file has it the `indptr`, which tells each cell's non-zeros; of obs no more
than the columns that the config names. What `lib.inputs.readers` refuses for its layout is found here, before anything
runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lib.inputs import texttable
from lib.inputs.sheet import stored_names
from lib.run.errors import UserError

LARGEST = np.iinfo(np.int32).max  # of a count: what every library's integers hold
PEEK = 1000  # values that tell whether a matrix looks like counts
PEEK_ROWS = 100  # rows of a dense matrix that tell its share of non-zeros
SMALL = 8 << 20  # bytes of a file of names whose lines are counted
SPARSE = ("csr_matrix", "csc_matrix")  # AnnData's encoding-type
FORMATS = (
    "a 10x folder (give the folder, not its matrix.mtx), a 10x .h5, .h5ad, .zarr, .loom, and .csv, .tsv or .txt, or "
    "these three with .gz"
)
OLD = "was written by anndata before version 0.7. Write it anew, in Python: anndata.read_h5ad(OLD).write_h5ad(NEW)."
NO_CELLS = "there are no cells. Remove the sample from the sheet, or correct its path."
DAMAGED = "It may be truncated or damaged: copy or download it again."

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """What of the config and the sheet decides how large a sample is, and what is wrong with it.

    Attributes
    ----------
    path, counts, genome, orientation
        The file, and what to take from it.
    batch_key, min_genes
        What batches are, and the fewest non-zeros of a kept cell.
    wanted
        Columns of obs that must come from the file: name, config key, whether it must be numeric.
    sheet
        Columns of obs that come from the sheet.
    keep
        Columns that the config takes from the file, although they are named as what stages write.
    """

    path: str
    counts: str
    genome: str | None
    batch_key: str
    min_genes: float
    orientation: str = "auto"
    wanted: tuple[tuple[str, str, bool], ...] = ()
    sheet: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """A file's cells, genes and non-zeros (estimated where it does not tell), non-zeros of each cell where it does,
    (batches, cells of the largest), and whether it lies by genes."""

    n_obs: int
    n_vars: int
    nnz: int
    per_cell: np.ndarray | None = None
    batches: tuple[int, int] | None = None
    turned: bool = False


def format_of(path: Path) -> str:
    """10x folder, zarr, text, h5ad, h5 or loom, by a path's suffix.

    Raises
    ------
    UserError
        If it is none of them.
    """
    if path.is_dir():
        return "zarr" if any((path / name).exists() for name in ("zarr.json", ".zgroup")) else "10x folder"
    name = path.name.lower()
    suffix = name.removesuffix(".gz").rpartition(".")[2]
    if suffix in ("csv", "tsv", "txt"):
        return "text"
    if suffix in ("h5ad", "h5", "hdf5", "loom") and not name.endswith(".gz"):
        return "h5" if suffix == "hdf5" else suffix
    raise UserError(f"{path} has no format known here. Formats: {FORMATS}.")


def header_of(question: Question, tell: Tell) -> Header:
    """A file's header.

    Parameters
    ----------
    tell
        Takes what is wrong with the file, a sentence each.

    Raises
    ------
    UserError, OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError
        If it cannot be read.
    """
    path = Path(question.path)
    form = format_of(path)
    if form == "10x folder":
        return _of_10x_folder(path, question, tell)
    if form == "text":
        return _of_text(path, question, tell)
    if form == "zarr":
        return _of_anndata(path, ZarrNode(path), question, tell)
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        if form == "loom":
            return _of_loom(path, file, question, tell)
        if form == "h5ad" or {"obs", "var"} <= set(file):
            return _of_anndata(path, file, question, tell)
        return _of_10x_h5(path, file, question, tell)


def unreadable(path: Path, error: BaseException) -> str:
    """What an error says of a file: that it is truncated or damaged only where it is."""
    text = str(error).strip("'\"") or type(error).__name__
    if isinstance(error, PermissionError):
        return f"{path} cannot be read: permission denied. Make it readable."
    if isinstance(error, UnicodeDecodeError):
        return f"{path} cannot be read: it has text that is not UTF-8 ({text}). Save it as UTF-8."
    if isinstance(error, OSError):
        if "required filter" in text or "can't open directory" in text or "plugin" in text:
            return (
                f"{path} cannot be read: it is compressed in a way that needs a plugin ({text}). Write it anew, in "
                "Python: import hdf5plugin; anndata.read_h5ad(OLD).write_h5ad(NEW, compression='gzip')."
            )
        if "already open for write" in text or "unable to lock" in text:
            return f"{path} cannot be read: another process writes it, or was killed while it did ({text})."
    if isinstance(error, KeyError):
        return f"{path} is not laid out as its format is: {text}."
    if isinstance(error, (TypeError, AttributeError, IndexError, ValueError, RuntimeError)):
        return f"{path} is not laid out as its format is ({type(error).__name__}: {text})."
    return f"{path} cannot be read: {text}. {DAMAGED}"


def damaged(path: Path, why: object) -> NoReturn:
    """Raise that a file is truncated or damaged."""
    raise UserError(f"{path} cannot be read: {why}. {DAMAGED}") from None


def version_of(path: Path, genome: str | None = None) -> list[list[Any]]:
    """What changes when what is read of a file does: name, size and time of each file; of a zarr a summary of all."""
    try:
        if not path.is_dir():
            files = [path]
        elif format_of(path) == "zarr":
            about = [file.stat() for file in path.rglob("*") if file.is_file()]
            return [["*", len(about), sum(a.st_size for a in about), max((a.st_mtime_ns for a in about), default=0)]]
        else:
            files = tenx_files(path, genome)
        return [[file.name, (about := file.stat()).st_size, about.st_mtime_ns] for file in files]
    except (OSError, UserError):
        return []


def choice(path: Path, key: str, wanted: str | None, options: Sequence[str]) -> str:
    """The value of a key of the config, where the file has it; for None the only one there is."""
    if wanted is None and len(options) == 1:
        return options[0]
    if wanted in options:
        return wanted
    problem = f"has no {key} {wanted}" if wanted is not None else f"has more than one {key}"
    raise UserError(f"{path} {problem}; it has {', '.join(options) or 'none'}. Set the config key `ingest: {key}`.")


def as_counts(values: np.ndarray) -> np.ndarray | None:
    """The values as uint32, None if one of them is not a whole number from 0 to `LARGEST`."""
    if values.dtype.kind not in "biuf":
        return None
    if not len(values):
        return values.astype(np.uint32)
    # A NaN fails both comparisons, so that the cast meets none
    if not 0 <= float(values.min()) <= float(values.max()) <= LARGEST:
        return None
    counts = values.astype(np.uint32)
    return counts if values.dtype.kind != "f" or np.array_equal(counts, values) else None


# AnnData


class ZarrNode:
    """A group or an array of a zarr on disk, version 2 or 3, by its metadata alone, as h5py shows one of HDF5."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if (path / "zarr.json").exists():
            about = json.loads((path / "zarr.json").read_text())
            self.attrs, dtype = about.get("attributes", {}), about.get("data_type")
        else:
            files = [path / name for name in (".zarray", ".zgroup", ".zattrs")]
            parts = [json.loads(file.read_text()) if file.exists() else {} for file in files]
            about, self.attrs = parts[0] | parts[1], parts[2]
            dtype = about.get("dtype")
        self.shape = tuple(about["shape"]) if "shape" in about else None
        self.dtype = _zarr_dtype(dtype)

    def __contains__(self, name: str) -> bool:
        """Whether it has this element."""
        return any((self.path / name / file).exists() for file in ("zarr.json", ".zarray", ".zgroup"))

    def get(self, name: str) -> ZarrNode | None:
        """An element, or None."""
        found = name in self
        return self[name] if found else None

    def __getitem__(self, name: str) -> ZarrNode:
        """An element."""
        if name not in self:
            raise KeyError(f"it has no {self.path.name}/{name}")
        return ZarrNode(self.path / name)

    def __iter__(self) -> Iterator[str]:
        """The names of its elements."""
        return (file.name for file in sorted(self.path.iterdir()) if file.is_dir() and file.name in self)


def _zarr_dtype(name: Any) -> np.dtype:
    try:
        return np.dtype(name if isinstance(name, str) else object)
    except TypeError:
        return np.dtype(object)


def matrices_of(root: Any) -> dict[str, Any]:
    """The elements of an AnnData that may hold counts, by the names that `ingest: counts` has for them."""
    found = {"X": root.get("X"), "raw": root.get("raw/X")}
    if "layers" in root:
        found |= {f"layers/{name}": root["layers"][name] for name in root["layers"]}
    return found


def places_of(matrices: Mapping[str, Any]) -> dict[str, str]:
    """Of a file's elements those that are matrices, each with what its first values look like."""
    looks = {}
    for place, matrix in matrices.items():
        if matrix is None:
            continue
        values = None
        if matrix.attrs.get("encoding-type") in SPARSE:
            values = None if isinstance(matrix, ZarrNode) else matrix["data"][:PEEK]
        elif len(getattr(matrix, "shape", None) or ()) != 2:
            continue
        elif not isinstance(matrix, ZarrNode):
            values = matrix[:1, :PEEK].ravel()
        known = "" if values is None else "not " if as_counts(values) is None else "whole"
        looks[place] = {"": "", "not ": "not whole numbers", "whole": "whole numbers"}[known]
    return looks


def check_anndata(path: Path, root: Any) -> None:
    """Refuse what is no AnnData, and what only old versions of it read."""
    if not {"obs", "var"} <= set(root):
        raise UserError(f"{path} is not an AnnData file: it has no obs and var. Does its suffix tell its format?")
    old = [root[name].attrs for name in ("X", "raw/X") if name in root]
    if _is_array(root["obs"]) or _is_array(root["var"]) or any("h5sparse_format" in attrs for attrs in old):
        raise UserError(f"{path} {OLD}")


def _of_anndata(path: Path, root: Any, question: Question, tell: Tell) -> Header:
    check_anndata(path, root)
    matrices = matrices_of(root)
    places = places_of(matrices)
    slot = choice(path, "counts", question.counts, list(places))
    matrix, obs = matrices[slot], root["obs"]
    var = root["raw/var"] if slot == "raw" and "raw/var" in root else root["var"]
    _check_obs(path, obs, question, tell)
    batches = _batches(obs, question)
    sparse = matrix.attrs.get("encoding-type") in SPARSE
    n_obs, n_vars = (int(n) for n in (matrix.attrs["shape"] if sparse else matrix.shape))
    named = tuple(_n_rows(table) for table in (obs, var))
    if (n_obs, n_vars) != named:
        tell(f"{path} cannot be read: {slot} is {(n_obs, n_vars)}, but its names are {named}. {DAMAGED}")
    if not n_obs:
        tell(f"{path}: {NO_CELLS}")
    # The values of other features than genes need not be counts
    if places[slot] == "not whole numbers" and "feature_types" not in var:
        others = ", ".join(f"{name} ({look})" for name, look in places.items() if name != slot)
        also = f"The file also has {others}: name the one with the raw counts in the config (`ingest: counts`) or in a "
        advice = (
            also + "column `counts` of the sheet." if others else "The file has no other matrix: give one with counts."
        )
        tell(f"{path}: {slot} does not hold raw counts: its first values are not whole numbers. {advice}")
    if isinstance(matrix, ZarrNode):
        nnz = int(matrix["data"].shape[0]) if sparse else n_obs * n_vars
        return Header(n_obs, n_vars, nnz, None, batches, matrix.attrs.get("encoding-type") == "csc_matrix")
    if not sparse:
        return Header(n_obs, n_vars, _dense_nnz(matrix), None, batches)
    turned = matrix.attrs["encoding-type"] == "csc_matrix"
    if matrix["indptr"].shape[0] != (n_vars if turned else n_obs) + 1:
        tell(f"{path} cannot be read: indptr does not fit the matrix. {DAMAGED}")
    per_cell = None if turned else np.diff(matrix["indptr"][...])
    return Header(n_obs, n_vars, int(matrix["data"].shape[0]), per_cell, batches, turned)


def _n_rows(table: Any) -> int:
    """Rows of a table of AnnData, whose index is an array, or (anndata 0.13) values and a mask."""
    index = table[table.attrs["_index"]]
    return int((index if _is_array(index) else index["values"]).shape[0])


def _check_obs(path: Path, obs: Any, question: Question, tell: Tell) -> None:
    """Tell of columns of obs that the config names whether they are there, and are what they must be."""
    index = obs.attrs.get("_index")
    columns = [_text(name) for name in obs.attrs.get("column-order", [name for name in obs if name != index])]
    for (name, key, numeric), own in _columns(path, columns, question, tell):
        if own in obs and (problem := _column_problem(obs[own], numeric, key == "batch_key")):
            tell(f"{key}: the column {name} of {path} {problem}")


def _columns(
    path: Path, columns: Sequence[str], question: Question, tell: Tell
) -> list[tuple[tuple[str, str, bool], str]]:
    """What is wanted, each with the file's own column of this name; tells of what it does not have."""
    stored = {kept: name for name, kept in stored_names(columns, question.sheet, question.keep).items()}
    there, found = ", ".join(["sample", *stored, *question.sheet]), []
    for wanted in question.wanted:
        name, key, _ = wanted
        if name in stored:
            found.append((wanted, stored[name]))
        else:
            text = f"{key}: neither {path} nor the sheet has a column {name}; there are {there}."
            tell(f"{text} Correct {key} in the config.")
    return found


def _column_problem(column: Any, numeric: bool, complete: bool) -> str | None:
    """Why a column cannot be what the config wants it for, as far as that costs little to know."""
    kind = column.attrs.get("encoding-type")
    if len(column.shape or ()) != 1 if _is_array(column) else not any(n in column for n in ("categories", "values")):
        return "is no column of single values: name another"
    values = column if _is_array(column) else column["categories" if kind == "categorical" else "values"]
    values = values if _is_array(values) else values["values"]  # categories with a mask
    if numeric and _kind(values) not in "biuf" and "categories" not in column.attrs:
        return "is text, not numeric: name another, or make it numbers"
    if isinstance(column, ZarrNode):
        return None
    if kind == "categorical":
        missing = column["codes"][...] < 0
    elif _is_array(column) and _kind(column) == "f":
        missing = np.isnan(column[...])
    elif not _is_array(column) and "mask" in column:
        missing = column["mask"][...]
    else:
        return None
    if missing.size and missing.all():
        return "has no value: each cell's is missing"
    if complete and missing.any():
        return f"is missing for {int(missing.sum())} of {missing.size} cells. Fill it, or remove these cells"
    return None


def _batches(obs: Any, question: Question) -> tuple[int, int] | None:
    """Batches of an AnnData and the cells of the largest; None where it does not have that column as categories."""
    name = question.batch_key
    if isinstance(obs, ZarrNode) or name in ("sample", *question.sheet) or name not in obs or "codes" not in obs[name]:
        return None
    codes = obs[name]["codes"][...]
    sizes = np.bincount(codes[codes >= 0])
    return int((sizes > 0).sum()), int(sizes.max(initial=0))


def _dense_nnz(matrix: Any, by_columns: bool = False) -> int:
    some = matrix[:, :PEEK_ROWS] if by_columns else matrix[:PEEK_ROWS]
    return int(np.count_nonzero(some) / max(1, some.size) * np.prod(matrix.shape, dtype=float))


def _is_array(element: Any) -> bool:
    """Whether an element of HDF5 or zarr is an array, not a group."""
    return getattr(element, "shape", None) is not None or not hasattr(element, "__contains__")


def _kind(array: Any) -> str:
    return np.dtype(array.dtype).kind


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


# Others


def _of_loom(path: Path, file: Any, question: Question, tell: Tell) -> Header:
    matrices = loom_matrices(file)
    matrix = matrices[choice(path, "counts", question.counts, list(places_of(matrices)))]
    names = [name for name, item in file["col_attrs"].items() if item.ndim == 1]
    _columns(path, names, question, tell)
    for group, n in (("row_attrs", matrix.shape[0]), ("col_attrs", matrix.shape[1])):
        lengths = {item.shape[0] for item in file.get(group, {}).values() if item.ndim}
        if lengths - {n}:
            tell(f"{path} cannot be read: {group} have {lengths - {n}} values for {n} of the matrix. {DAMAGED}")
    if not matrix.shape[1]:
        tell(f"{path}: {NO_CELLS}")
    return Header(matrix.shape[1], matrix.shape[0], _dense_nnz(matrix, by_columns=True))


def loom_matrices(file: Any) -> dict[str, Any]:
    """A loom's matrices, genes x cells, by the names that `ingest: counts` has for them."""
    return {"X": file["matrix"], **{f"layers/{name}": layer for name, layer in file.get("layers", {}).items()}}


def tenx_group(path: Path, file: Any, genome: str | None) -> Any:
    """The group of a 10x `.h5` that holds the matrix: `matrix`, or that of a genome.

    Raises
    ------
    UserError
        If there is none, or more than one and no `genome`.
    """
    if "matrix" in file:
        return file["matrix"]
    genomes = [name for name, group in file.items() if hasattr(group, "keys") and "barcodes" in group]
    if not genomes:
        raise UserError(f"{path} is not a 10x .h5 file: it has no group `matrix`, and no group of a genome.")
    return file[choice(path, "genome", genome, genomes)]


def _of_10x_h5(path: Path, file: Any, question: Question, tell: Tell) -> Header:
    group = tenx_group(path, file, question.genome)
    _columns(path, [], question, tell)
    names = next(group[name] for name in ("features/id", "features/name", "genes", "gene_names") if name in group)
    per_cell, n_vars = np.diff(group["indptr"][...]), names.shape[0]
    barcodes = group["barcodes"].shape[0] if "barcodes" in group else None
    if barcodes is None:
        tell(f"{path} is not laid out as its format is: it has no {group.name}/barcodes.")
    elif barcodes != len(per_cell):
        tell(f"{path} cannot be read: {len(per_cell)} columns, but {barcodes} barcodes. {DAMAGED}")
    if "shape" in group and int(group["shape"][0]) != n_vars:
        tell(f"{path} cannot be read: {int(group['shape'][0])} rows of {n_vars} features. {DAMAGED}")
    if not len(per_cell):
        tell(f"{path}: {NO_CELLS}")
    return Header(len(per_cell), n_vars, group["data"].shape[0], per_cell)


def tenx_files(path: Path, genome: str | None) -> list[Path]:
    """The matrix, the genes' and the barcodes' file of a 10x folder, or of the genome's folder in it.

    Raises
    ------
    UserError
        If it has not one of each, or there are several genomes and no `genome`.
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
    """The one file of a folder whose name ends like this, gzipped or not."""
    ends = tuple(name + zipped for name in names for zipped in ("", ".gz"))
    found = sorted(f for f in folder.iterdir() if f.name.endswith(ends) and not f.name.startswith("."))
    if len(found) != 1:
        there = ", ".join(f.name for f in found) or f"only {', '.join(sorted(f.name for f in folder.iterdir())[:10])}"
        raise UserError(
            f"{folder} is no folder of a 10x matrix: it needs one file {' or '.join(names)} (or .gz), and has {there}."
        )
    return found[0]


def mtx_header(path: Path) -> tuple[int, tuple[int, int], int]:
    """Of a file in Matrix Market's format the lines before the first value, the shape, the number of values.

    Raises
    ------
    UserError
        If it is no sparse matrix of numbers, or a value's line has not three fields.
    """
    with texttable.open_file(path) as file:
        words = file.readline().lower().split()
        lines = 2
        while (line := file.readline()).startswith(b"%") or (line and line.isspace()):
            lines += 1
        first = file.readline()
        while first and first.isspace():
            first = file.readline()
    numbers = (b"integer", b"unsigned-integer", b"real", b"double", b"float")
    if words[:1] != [b"%%matrixmarket"]:
        raise UserError(f"{path} is not a matrix in Matrix Market's format: its first line is not %%MatrixMarket.")
    if (
        words[1:3] != [b"matrix", b"coordinate"]
        or words[3:4] not in [[n] for n in numbers]
        or words[4:] != [b"general"]
    ):
        what = b" ".join(words[1:]).decode(errors="replace")
        raise UserError(
            f"{path} is a {what} in Matrix Market's format; counts are a matrix coordinate integer general, or real: a "
            "line for each value, with gene, cell and count."
        )
    if not line:
        damaged(path, "it ends in its header")
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


def check_mtx_shape(matrix: Path, shape: tuple[int, int], n_genes: int, n_cells: int) -> None:
    """Refuse a matrix that does not fit the names beside it."""
    if shape == (n_genes, n_cells):
        return
    hint = " It seems to be cells x genes." if shape == (n_cells, n_genes) else ""
    if (n_genes - shape[0], n_cells - shape[1]) in ((1, 0), (0, 1), (1, 1)):
        hint = " Does a file of names begin with a line of headings? Remove it."
    raise UserError(
        f"{matrix} is {shape[0]} x {shape[1]}, but there are {n_genes} genes and {n_cells} barcodes beside it."
        f"{hint} A 10x matrix has a row per line of the genes' file and a column per barcode."
    )


def _of_10x_folder(path: Path, question: Question, tell: Tell) -> Header:
    _columns(path, [], question, tell)
    matrix, *names = tenx_files(path, question.genome)
    _, shape, nnz = mtx_header(matrix)
    if all(file.stat().st_size < SMALL for file in names):
        try:
            check_mtx_shape(matrix, shape, *(_n_lines(file) for file in names))
        except UserError as error:
            tell(str(error))
    if not shape[1]:
        tell(f"{path}: {NO_CELLS}")
    return Header(shape[1], shape[0], nnz)


def _n_lines(path: Path) -> int:
    with texttable.open_file(path) as file:
        return sum(1 for line in file if not line.isspace())


def _of_text(path: Path, question: Question, tell: Tell) -> Header:
    """From its first lines: their length, and their share of non-zeros."""
    _columns(path, [], question, tell)
    layout = texttable.layout_of(path)
    way = question.orientation
    try:
        way = texttable.orientation_of(path, layout, question.orientation)
    except UserError as error:
        tell(str(error))
    size = path.stat().st_size
    if path.suffix == ".gz":  # what was inflated, of what was read for it
        with path.open("rb") as file, texttable.igzip.open(file) as text:
            inflated = len(text.read(texttable.PEEK_BYTES))
            size *= inflated / max(1, min(size, file.tell()))
    head = sum(len(name) + 1 for name in layout.columns)
    n_lines, n_columns = max(1, round((size - head) / layout.line)), len(layout.columns)
    nnz = int(np.mean(layout.values != 0) * n_lines * n_columns)
    if way == "genes_by_cells":
        return Header(n_columns, n_lines, nnz, turned=True)
    return Header(n_lines, n_columns, nnz)
