"""Mark artifacts with the names and the order of their cells, so that no values are joined to the wrong cells.

Every artifact with one row per cell carries a mark made of its cells' names. `stage.run` compares the marks of a job's
inputs before it computes. A mark is `{scope} {cells} {bytes} {hash}`. The scope is `sample` (all cells of a sample's
file) or `cohort` (the cohort's cells). The hash is a polynomial of the names' bytes modulo 2^64, so the mark of
consecutive parts can be computed from their marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.run.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

KEY = "somersault-cells"  # the HDF5 attribute, or key of parquet's metadata, with the mark
GENES_KEY = "somersault-genes"  # the HDF5 attribute of a counts store with the mark of its genes
GROUPS = "results/cohort/sub/"  # holds a folder of artifacts for each group of cells
BASE = 0x9E3779B97F4A7C15  # of the polynomial; odd
MODULUS = 1 << 64
BLOCK = 1 << 16  # bytes hashed at a time


def mark_of_names(names: Sequence[str] | pd.Index, scope: str) -> str:
    """The mark of cells with these names, in this order; `scope` is sample or cohort."""
    names = np.asarray(names, dtype=object)  # pandas 3 stores strings in Arrow, where single access is slow
    text = np.frombuffer("".join(f"{name}\n" for name in names).encode(), np.uint8)
    weights = np.multiply.accumulate(np.r_[np.uint64(1), np.full(BLOCK - 1, BASE, np.uint64)])[::-1]
    found = 0
    for start in range(0, len(text), BLOCK):
        block = text[start : start + BLOCK]
        of_block = int((block * weights[-len(block) :]).sum(dtype=np.uint64))
        found = (found * pow(BASE, len(block), MODULUS) + of_block) % MODULUS
    return f"{scope} {len(names)} {len(text)} {found:016x}"


def mark_of_genes(columns: Iterable[Iterable[str]]) -> str:
    """The mark of genes with these names, symbols and ids: equal for equal columns alone."""
    return blake2b("\0".join(chain.from_iterable(columns)).encode(), digest_size=16).hexdigest()


def mark_of_parts(marks: Sequence[str]) -> str:
    """The mark of the concatenated cells of several artifacts."""
    n, size, found = 0, 0, 0
    for mark in marks:
        scope, n_part, size_part, of_part = mark.split()
        found = (found * pow(BASE, int(size_part), MODULUS) + int(of_part, 16)) % MODULUS
        n, size = n + int(n_part), size + int(size_part)
    return f"{scope} {n} {size} {found:016x}"


def read_mark(path: str | Path) -> str | None:
    """The mark of an artifact; None if the file has none or is no artifact."""
    return read_label(path, KEY)


def read_label(path: str | Path, key: str) -> str | None:
    """The value of `key` in the metadata of a parquet file or the attributes of an HDF5 file; None if there is none."""
    try:
        if str(path).endswith(".parquet"):
            from pyarrow.parquet import read_schema

            return (read_schema(path).metadata or {}).get(key.encode(), b"").decode() or None
        if str(path).endswith((".h5", ".h5ad")):
            import h5py

            with h5py.File(path, "r", locking=False) as file:
                return file.attrs.get(key)
    except (OSError, ValueError):  # such as a user's file, which its reader will refuse
        pass
    return None


def check_inputs(inputs: Mapping[str, Any]) -> None:
    """Refuse a job whose inputs are not of the same cells in the same order.

    Parameters
    ----------
    inputs
        The job's input files by name: one path or several. Inputs of several samples must agree sample by sample.
        Inputs of the cohort must agree as a whole; several files may be its consecutive parts. Those of a group of
        its cells (`subclusters`) must agree with each other.

    Raises
    ------
    UserError
        If files differ; the message names them and says what to do.
    """
    samples: dict[int, tuple[str, str]] = {}
    cohorts: dict[str, tuple[str, str]] = {}  # the whole one (""), and the groups of its cells
    for files in inputs.values():
        files = [files] if isinstance(files, str | Path) else list(files)
        marked = {file: mark for file in files if (mark := read_mark(file))}
        if not marked:
            continue
        if next(iter(marked.values())).startswith("sample"):
            for i, (file, mark) in enumerate(marked.items()):
                if samples.setdefault(i, (file, mark))[1] != mark:
                    _differ(samples[i][0], file)
            continue
        for group in dict.fromkeys(map(_group_of, marked)):
            mine = {file: mark for file, mark in marked.items() if _group_of(file) == group}
            marks = list(mine.values())
            found = marks[0] if len(set(marks)) == 1 else mark_of_parts(marks)  # each of all cells, or parts
            first, known = cohorts.setdefault(group, (next(iter(mine)), found))
            if known != found:
                _differ(first, next(file for file, mark in mine.items() if mark != known))


def _group_of(path: str | Path) -> str:
    """The folder of the group of cells that an artifact is of; "" if it is of the whole cohort."""
    folder = re.match(f".*{GROUPS}[^/]+/", str(path))
    return folder[0] if folder else ""


def _differ(one: str | Path, other: str | Path) -> None:
    newer, older = sorted((Path(one), Path(other)), key=lambda path: path.stat().st_mtime, reverse=True)
    raise UserError(
        f"{newer} and {older} are not of the same cells in the same order: the second is of an earlier run. Make it "
        f"anew: delete it, and run snakemake again."
    )
