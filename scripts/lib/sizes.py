"""How large each sample is, from the header of its file: what the models of resources (`lib.resources`) start from.

Read before anything runs, and without the counts themselves: shapes, and where the file has
it the `indptr`, which tells each cell's non-zeros. What was read is kept in a small file, so that the jobs of a
cluster, which read the workflow again, open none of the samples' files.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import config as settings

PEEK_ROWS = 100  # rows of a dense matrix that tell its share of non-zeros
PEEK_TEXT = 1 << 20  # bytes of a table of text that tell the length of its lines
# Of a file that cannot be read, which `ingest` will refuse with the reason
BYTES_PER_NONZERO, NONZEROS_PER_CELL, N_VARS = 1.5, 1500, 40_000


@dataclass(frozen=True)
class Sizes:
    """How large a sample is.

    Attributes
    ----------
    n_obs, n_vars
        Cells and genes, of the file.
    nnz
        Non-zeros, an estimate where the matrix is dense or text.
    n_kept
        Cells that may pass: those with more than `cells: min_genes` non-zeros where the file tells them.
    n_batches, largest_batch
        Batches, and cells of the largest.
    turned
        Whether the file lies by genes, and is turned round on disk as it is read.
    """

    n_obs: int
    n_vars: int
    nnz: int
    n_kept: int
    n_batches: int = 1
    largest_batch: int = 0
    turned: bool = False


@dataclass(frozen=True)
class Question:
    """What of the config and the sheet decides how large a sample is: see `Sizes`."""

    path: str
    counts: str
    genome: str | None
    batch_key: str
    min_genes: float


def questions(sheet: pd.DataFrame, config: Mapping[str, Any]) -> dict[str, Question]:
    """What is asked of each line of the sheet."""
    asked = {}
    for sample in sheet.index:
        min_genes = settings.cell_limits(sheet, sample, config["cells"])["min_genes"] or 0
        counts, genome = settings.counts_slot(sheet, sample, config), config["ingest"]["genome"]
        asked[sample] = Question(sheet.loc[sample, "path"], counts, genome, config["batch_key"], min_genes)
    return asked


def read_sizes(asked: Mapping[str, Question], cache: Path) -> dict[str, Sizes]:
    """Each sample's sizes, from `cache` where its file is as it was, else from the file.

    Parameters
    ----------
    asked
        Per sample its file, and what to read of it.
    cache
        A JSON file, made where it does not exist, and not written where that is forbidden.
    """
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    found, answers = {}, {}
    for sample, question in asked.items():
        key = json.dumps([*asdict(question).values(), *_version(Path(question.path))])
        answers[key] = known.get(key) or asdict(sizes_of(question))
        found[sample] = Sizes(**answers[key])
    if not answers.keys() <= known.keys():
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            partial = cache.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(answers))
            partial.replace(cache)
    return found


def sizes_of(question: Question) -> Sizes:
    """The sizes of one file, from its header; from its bytes alone where it cannot be read."""
    path = Path(question.path)
    try:
        return _sizes(path, question)
    except (OSError, EOFError, KeyError, ValueError, AttributeError, IndexError):
        nnz = int(_bytes(path) / BYTES_PER_NONZERO)
        return _sized(max(1, nnz // NONZEROS_PER_CELL), N_VARS, nnz, question)


def _sizes(path: Path, question: Question) -> Sizes:
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if path.is_dir():
        zarr = any((path / name).exists() for name in ("zarr.json", ".zgroup"))
        return _of_zarr(path, question) if zarr else _of_10x_folder(path, question)
    if suffix in ("csv", "tsv"):
        return _of_text(path, "," if suffix == "csv" else "\t", question)
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        if suffix == "loom":
            matrix = file["matrix" if question.counts == "X" else question.counts]
            share = np.count_nonzero(matrix[:, :PEEK_ROWS]) / max(1, matrix[:, :PEEK_ROWS].size)
            return _sized(matrix.shape[1], matrix.shape[0], int(share * matrix.size), question)
        if suffix == "h5ad" or {"obs", "var"} <= set(file):
            return _of_anndata(file, question)
        return _of_10x_h5(file, question)


def _of_anndata(file: Any, question: Question) -> Sizes:
    matrix = file["raw/X" if question.counts == "raw" else question.counts]
    batches = _batches(file["obs"], question.batch_key)
    if "encoding-type" not in matrix.attrs or not matrix.attrs["encoding-type"].startswith("cs"):
        rows = matrix[:PEEK_ROWS]
        nnz = int(np.count_nonzero(rows) / max(1, rows.size) * matrix.size)
        return _sized(*matrix.shape, nnz, question, batches=batches)
    n_obs, n_vars = (int(n) for n in matrix.attrs["shape"])
    turned = matrix.attrs["encoding-type"] == "csc_matrix"
    per_cell = None if turned else np.diff(matrix["indptr"][...])
    return _sized(n_obs, n_vars, matrix["data"].shape[0], question, per_cell, batches, turned)


def _of_zarr(path: Path, question: Question) -> Sizes:
    """From the metadata alone: chunks are for `ingest`."""
    matrix = path / ("raw/X" if question.counts == "raw" else question.counts)
    about = _zarr_metadata(matrix)
    encoding = about["attributes"].get("encoding-type", "array")
    if not encoding.startswith("cs"):
        return _sized(*about["shape"], int(np.prod(about["shape"])), question)
    n_obs, n_vars = about["attributes"]["shape"]
    nnz = _zarr_metadata(matrix / "data")["shape"][0]
    return _sized(n_obs, n_vars, nnz, question, turned=encoding == "csc_matrix")


def _zarr_metadata(path: Path) -> dict[str, Any]:
    """`shape` (of an array) and `attributes`, of zarr 3 or 2."""
    if (path / "zarr.json").exists():
        return {"attributes": {}} | json.loads((path / "zarr.json").read_text())
    about = json.loads((path / ".zarray").read_text()) if (path / ".zarray").exists() else {}
    attributes = json.loads((path / ".zattrs").read_text()) if (path / ".zattrs").exists() else {}
    return about | {"attributes": attributes}


def _of_10x_h5(file: Any, question: Question) -> Sizes:
    if "matrix" in file:
        group, names = file["matrix"], "features/id"
    else:
        genomes = [name for name, group in file.items() if "barcodes" in group]
        group, names = file[question.genome or genomes[0]], "genes"
    per_cell = np.diff(group["indptr"][...])
    return _sized(len(per_cell), len(group[names]), group["data"].shape[0], question, per_cell)


def _of_10x_folder(path: Path, question: Question) -> Sizes:
    with _open(_matrix(path)) as file:
        line = file.readline()
        while line.startswith(b"%"):
            line = file.readline()
    n_vars, n_obs, nnz = map(int, line.split())
    return _sized(n_obs, n_vars, nnz, question)


def _of_text(path: Path, separator: str, question: Question) -> Sizes:
    """From its first lines: their length, and their share of non-zeros."""
    with _open(path) as file:
        text = file.read(PEEK_TEXT)
        read = path.stat().st_size
        if path.suffix == ".gz":  # what was inflated, of what was read for it
            read = max(1, min(read, file.fileobj.tell()))
            inflated = path.stat().st_size / read * len(text)
        else:
            inflated = read
    lines = [line for line in text.decode(errors="replace").splitlines() if not line.startswith("#")]
    rows = list(csv.reader(lines[1:PEEK_ROWS], delimiter=separator))[: max(1, len(lines) - 2)]
    values = np.array([value not in ("0", "0.0", "") for row in rows for value in row[1:]])
    n_obs = max(1, round(inflated / (sum(map(len, lines[1:])) / max(1, len(lines) - 1) + 1)))
    n_vars = len(rows[0]) - 1
    return _sized(n_obs, n_vars, int(values.mean() * n_obs * n_vars), question)


def _sized(
    n_obs: int,
    n_vars: int,
    nnz: int,
    question: Question,
    per_cell: np.ndarray | None = None,
    batches: tuple[int, int] | None = None,
    turned: bool = False,
) -> Sizes:
    if per_cell is None:  # kept cells have more than min_genes each
        n_kept = min(n_obs, int(nnz / (question.min_genes + 1)))
    else:
        n_kept = int((per_cell > question.min_genes).sum())
    n_batches, largest = batches or (1, n_obs)
    return Sizes(int(n_obs), int(n_vars), int(nnz), n_kept, n_batches, min(largest, n_obs), turned)


def _batches(obs: Any, batch_key: str) -> tuple[int, int] | None:
    """Batches of an h5ad and the cells of the largest; None where it does not have that column as categories."""
    if batch_key == "sample" or batch_key not in obs or "codes" not in obs[batch_key]:
        return None
    codes = obs[batch_key]["codes"][...]
    sizes = np.bincount(codes[codes >= 0])
    return int((sizes > 0).sum()), int(sizes.max(initial=0))


def _version(path: Path) -> list[int]:
    """What changes when the file does: time and size, of a folder those of what is read of it."""
    with contextlib.suppress(OSError, IndexError):
        about = (_matrix(path) if path.is_dir() and not (path / "obs").exists() else path).stat()
        return [about.st_mtime_ns, about.st_size]
    return []


def _matrix(folder: Path) -> Path:
    """The matrix.mtx of a 10x folder, or of the first genome's folder in it."""
    for pattern in ("*matrix.mtx*", "*/*matrix.mtx*"):
        if found := sorted(file for file in folder.glob(pattern) if not file.name.startswith(".")):
            return found[0]
    raise IndexError(f"{folder} has no matrix.mtx")


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def _open(path: Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
