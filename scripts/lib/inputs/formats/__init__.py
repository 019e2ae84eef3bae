"""Read headers and counts from files of all formats that scanpy's users have.

Each format is one module with one `base.Reader`: 10x folder, 10x `.h5`, `.h5ad` or `.zarr`, `.loom`, table of text.
Only the module of the file's format is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lib.inputs.formats.base import (
    NO_CELLS,
    NO_GENES,
    UNREADABLE,
    Header,
    Question,
    Reader,
    Tell,
    check_there,
    content_of,
    refuse,
    unreadable,
)
from lib.run.errors import UserError

# Format -> the keys of the config's `ingest` that its reader reads
OPTIONS = {"10x folder": ("genome",), "h5": ("genome", "counts"), "text": ("orientation",)}
OPTIONS |= {"h5ad": ("counts",), "zarr": ("counts",), "loom": ("counts", "obs_names", "var_names")}
FORMATS = (
    "a 10x folder (give the folder, not its matrix.mtx), a 10x .h5, .h5ad, .zarr, .loom, and .csv, .tsv or .txt, or "
    "these three with .gz"
)


TEXT, SUFFIXES = ("csv", "tsv", "txt"), ("csv", "tsv", "txt", "h5ad", "h5", "hdf5", "loom")


def format_of(path: Path) -> str:
    """The format by a path's suffix: 10x folder, zarr, text, h5ad, h5 or loom; the file need not exist yet.

    Raises
    ------
    UserError
        If it is none of them.
    """
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zgroup")) or suffix == "zarr":
            return "zarr"
        if suffix in SUFFIXES and not any(path.iterdir()):
            raise UserError(f"{path} is a folder, and an empty one. Correct its path in the sample sheet.")
        return "10x folder"
    name = path.name.lower()
    if suffix in TEXT:
        return "text"
    if suffix == "zarr" and path.is_file():
        raise UserError(f"{path} is no folder of zarr: {content_of(path)}")
    if suffix in SUFFIXES and not name.endswith(".gz"):
        return "h5" if suffix == "hdf5" else suffix
    raise UserError(f"{path} has no format known here. Formats: {FORMATS}.")


def options_of(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options among `given` (counts, genome, orientation ...) that the reader of the file's format reads."""
    return {name: given[name] for name in OPTIONS[format_of(path)]}


def header_of(question: Question, tell: Tell) -> Header:
    """A file's header; only the first counts are read. `tell` is called with each problem, one sentence.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    with ExitStack() as stack, _readable(question.path):
        header = _reader(question, tell, stack, data=False).header()
    if not header.n_obs:
        tell(f"{question.path}: {NO_CELLS}")
    elif not header.n_vars:
        tell(f"{question.path}: {NO_GENES}")
    return header


@contextmanager
def open_counts(
    path: str | Path,
    counts: str = "X",
    genome: str | None = None,
    scratch: str | Path | None = None,
    orientation: str = "auto",
    obs_names: str | None = None,
    var_names: str | None = None,
) -> Iterator[Reader]:
    """Open a file's raw counts, and close it at the end of the block. Nothing is ever written to `path`.

    Parameters
    ----------
    path
        A 10x folder, a 10x `.h5`, an `.h5ad`, a `.zarr`, a `.loom`, or a `.csv`, `.tsv` or `.txt` (also .gz).
    counts
        The place of the counts in an `.h5ad`, `.zarr` or `.loom`: X | raw | layers/NAME. Other formats have one matrix.
    genome
        The genome to take from a 10x file.
    scratch
        Folder for a scratch file, if one is needed.
    orientation
        Of a table of text: cells_by_genes | genes_by_cells | auto: the first, refused if the table looks otherwise.
    obs_names, var_names
        Attributes of a loom that name cells and genes.

    Raises
    ------
    UserError
        If the file does not exist, has an unknown format, is damaged, or lacks these counts or this genome.
    """
    question = Question(str(path), counts, genome, orientation=orientation, obs_names=obs_names, var_names=var_names)
    with ExitStack() as stack:
        with _readable(path):
            reader = _reader(question, refuse, stack, data=True)
            reader.load()
        reader.scratch = None if scratch is None else Path(scratch)
        yield reader


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Turn the libraries' errors about a file into messages for users."""
    try:
        yield
    except UNREADABLE as error:
        from lib.run.stage import log

        log.info("reading %s", path, exc_info=True)
        raise UserError(unreadable(Path(path), error)) from None


def _reader(question: Question, tell: Tell, stack: ExitStack, data: bool) -> Reader:
    """The reader for a file's format; without `data` it reads only the metadata of a zarr."""
    path = Path(question.path)
    form = format_of(path)
    check_there(path)
    if form == "10x folder":
        from lib.inputs.formats.tenx_folder import TenxFolder

        return TenxFolder(question, tell)
    if form == "text":
        from lib.inputs.formats.text import TextTable

        return TextTable(question, tell)
    if form == "zarr":
        from lib.inputs.formats.anndata_files import AnnDataFile
        from lib.inputs.formats.zarr_files import zarr_file

        return AnnDataFile(question, tell, zarr_file(path, data))
    import h5py

    from lib.inputs.formats.arrays import File
    from lib.inputs.formats.links import linked_files

    if not h5py.is_hdf5(path):
        raise UserError(f"{path} is no HDF5 file: {content_of(path)}")
    root = stack.enter_context(h5py.File(path, "r", locking=False))
    linked, elements = linked_files(root, path)
    file = File(path, root, sum(one.stat().st_size for one in linked), elements)
    if form == "loom":
        from lib.inputs.formats.loom import Loom

        return Loom(question, tell, file)
    if form == "h5ad" or {"obs", "var"} <= set(root):
        from lib.inputs.formats.anndata_files import AnnDataFile

        return AnnDataFile(question, tell, file)
    from lib.inputs.formats.tenx_h5 import TenxH5

    return TenxH5(question, tell, file)


def version_of_file(path: Path, genome: str | None = None) -> list[list[Any]]:
    """The version of a file's content: name, size and time of each file that is read; for a zarr a summary of all."""
    try:
        if not path.is_dir():
            files = [path]
        elif format_of(path) == "zarr":
            about = [file.stat() for file in path.rglob("*") if file.is_file()]
            return [["*", len(about), sum(a.st_size for a in about), max((a.st_mtime_ns for a in about), default=0)]]
        else:
            from lib.inputs.formats.tenx_folder import tenx_files

            files = tenx_files(path, genome)
        return [[file.name, (about := file.stat()).st_size, about.st_mtime_ns] for file in files]
    except (OSError, UserError):
        return []
