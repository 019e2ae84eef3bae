"""Read AnnData files, in HDF5 or zarr: counts in X, raw or a layer; CSR, CSC or dense; of any dtype."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.inputs.formats.base import (
    PEEK,
    Header,
    MatrixReader,
    Question,
    Tell,
    choice,
    is_damage,
    look_of,
    plain,
)
from lib.run.errors import UserError
from lib.run.imports import import_lean

SPARSE = ("csr_matrix", "csc_matrix")  # AnnData's encoding-type
OLD = "was written by anndata before version 0.7. Write it anew, in Python: anndata.read_h5ad(OLD).write_h5ad(NEW)."


class AnnDataFile(MatrixReader):
    """Reader of an AnnData file by its root: a group of h5py or zarr, or a `ZarrNode`, which reads no data."""

    def __init__(self, question: Question, tell: Tell, root: Any) -> None:
        super().__init__(question, tell)
        if not {"obs", "var"} <= set(root):
            raise UserError(
                f"{self.path} is not an AnnData file: it has no obs and var. Does its suffix tell its format?"
            )
        old = [root[name].attrs for name in ("X", "raw/X") if name in root]
        if _is_array(root["obs"]) or _is_array(root["var"]) or any("h5sparse_format" in attrs for attrs in old):
            raise UserError(f"{self.path} {OLD}")
        found = {"X": root.get("X"), "raw": root.get("raw/X")}
        if "layers" in root:
            found |= {f"layers/{name}": root["layers"][name] for name in root["layers"]}
        self.places = {place: look for place, matrix in found.items() if (look := _look(matrix)) is not None}
        self.where = choice(self.path, "counts", question.counts, list(self.places))
        matrix = found[self.where]
        self.root, self.obs_group, self.var_group = root, root["obs"], root["raw/var" if self.where == "raw" else "var"]
        attrs = self.obs_group.attrs
        columns = attrs.get("column-order", [name for name in self.obs_group if name != attrs.get("_index")])
        self.check_columns([name.decode() if isinstance(name, bytes) else str(name) for name in columns])
        self.sparse, self.scattered = _is_sparse(matrix), matrix.attrs.get("encoding-type") == "csc_matrix"
        shape = matrix.attrs["shape"] if self.sparse else matrix.shape
        self.take(matrix, shape, data=not isinstance(matrix, ZarrNode))
        names = (_n_rows(self.obs_group), _n_rows(self.var_group))
        if self.shape != names:
            self.damaged(f"{self.where} is {self.shape}, but its names are {names}")

    def column_problem(self, name: str, numeric: bool, complete: bool) -> str | None:
        """The problem of a column of obs: it is no column, not numeric, or incomplete (not checked for a zarr)."""
        if name not in self.obs_group:
            return None
        column = self.obs_group[name]
        kind, single = column.attrs.get("encoding-type"), _is_array(column)
        if len(column.shape or ()) != 1 if single else not any(part in column for part in ("categories", "values")):
            return "is no column of single values: name another"
        values = column if single else column["categories" if kind == "categorical" else "values"]
        values = values if _is_array(values) else values["values"]  # categories with a mask
        if numeric and _kind(values) not in "biuf" and "categories" not in column.attrs:
            return "is text, not numeric: name another, or make it numbers"
        if isinstance(column, ZarrNode):
            return None
        if kind == "categorical":
            missing = column["codes"][...] < 0
        elif single and _kind(column) == "f":
            missing = np.isnan(column[...])
        elif not single and "mask" in column:
            missing = column["mask"][...]
        else:
            return None
        if missing.size and missing.all():
            return "has no value: each cell's is missing"
        if complete and missing.any():
            return f"is missing for {int(missing.sum())} of {missing.size} cells. Fill it, or remove these cells"
        return None

    def header(self) -> Header:
        """The matrix' header, for a zarr only its shape; refuses a matrix whose first values are no counts."""
        # Values of features that are no genes need not be counts
        if self.places[self.where] == "not whole numbers" and "feature_types" not in self.var_group:
            others = ", ".join(f"{name} ({look})" for name, look in self.places.items() if name != self.where)
            advice = "The file has no other matrix: give one with counts."
            if others:
                advice = (
                    f"The file also has {others}: name the one with the raw counts in the config (`ingest: counts`) or "
                    "in a column `counts` of the sheet."
                )
            self.tell(
                f"{self.path}: {self.where} does not hold raw counts: its first values are not whole numbers. {advice}"
            )
        if isinstance(self.matrix, ZarrNode):
            return Header(*self.shape, self.nnz, turned=self.scattered)
        return replace(super().header(), batches=self._batches())

    def _batches(self) -> tuple[int, int] | None:
        """The number of batches and the cells of the largest; None if the file has no such categorical column."""
        name, obs = self.question.batch_key, self.obs_group
        if name in ("sample", *self.question.sheet) or name not in obs or "codes" not in obs[name]:
            return None
        codes = obs[name]["codes"][...]
        sizes = np.bincount(codes[codes >= 0])
        return int((sizes > 0).sum()), int(sizes.max(initial=0))

    def load(self) -> None:
        """Read the tables of cells and genes; the genes of raw take var's symbols if they have none."""
        from lib.inputs.formats import genes

        self.obs, var = _frame(self.path, self.obs_group), _frame(self.path, self.var_group)
        self.obs.index = plain(self.obs.index)
        if self.where == "raw" and not any(name in var for name in genes.SYMBOL_COLUMNS):
            var = genes.with_symbols(var, _frame(self.path, self.root["var"]))
        if "feature_types" in var:
            self.columns = genes.gene_features(self.path, var["feature_types"].astype(object).to_numpy())
            var = var[self.columns]
        self.gene_symbols, self.gene_ids = genes.names_in(self.path, var)
        self.flags = genes.flags_in(var)


def zarr_root(path: Path, data: bool) -> Any:
    """The root of a zarr; only its metadata without `data`."""
    if not data:
        return ZarrNode(path)
    import zarr

    return zarr.open_group(path, mode="r")


class ZarrNode:
    """The metadata of a group or an array of a zarr on disk, version 2 or 3, with the interface of h5py."""

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
        try:
            self.dtype = np.dtype(dtype if isinstance(dtype, str) else object)
        except TypeError:
            self.dtype = np.dtype(object)

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


def _look(matrix: Any) -> str | None:
    """What an element looks like by its first values, "" if these are not read; None if it is no matrix."""
    if matrix is None or not (_is_sparse(matrix) or len(getattr(matrix, "shape", None) or ()) == 2):
        return None
    if isinstance(matrix, ZarrNode):
        return ""
    return look_of(matrix["data"][:PEEK] if _is_sparse(matrix) else matrix[:1, :PEEK].ravel())


def _is_sparse(matrix: Any) -> bool:
    return matrix.attrs.get("encoding-type") in SPARSE


def _n_rows(table: Any) -> int:
    """The number of rows of AnnData's table, whose index is an array, or (anndata 0.13) values and a mask."""
    index = table[table.attrs["_index"]]
    return int((index if _is_array(index) else index["values"]).shape[0])


def _is_array(element: Any) -> bool:
    """Whether an element of HDF5 or zarr is an array, not a group."""
    return getattr(element, "shape", None) is not None or not hasattr(element, "__contains__")


def _kind(array: Any) -> str:
    return np.dtype(array.dtype).kind


def _frame(path: Path, group: Any) -> pd.DataFrame:
    """A table of AnnData, without columns that hold no single value per row; a notice names these."""
    from lib.run.stage import log, notice

    read_elem = import_lean("anndata.io").read_elem
    try:
        return read_elem(group)
    except Exception as error:  # AnnData's readers may raise any
        if is_damage(error):
            raise
        log.info("the table is read column by column, because of: %s", error)
    index = pd.Index(np.asarray(read_elem(group[group.attrs["_index"]])), dtype=object)
    columns, odd = {}, []
    for name in map(str, group.attrs.get("column-order", ())):
        try:
            values = read_elem(group[name])
            if "categories" in group[name].attrs:  # as anndata 0.7 writes them
                categories = read_elem(group[f"__categories/{name}"])
                values = pd.Categorical.from_codes(values, categories)
            if np.ndim(values) != 1 or len(values) != len(index):
                raise ValueError("no single values")
            columns[name] = pd.Series(values)
        except Exception as error:
            if is_damage(error):
                raise
            odd.append(name)
    if odd:
        notice("%s: left out of %s: %s, which hold no single values per row", path, group.name, ", ".join(odd))
    return pd.DataFrame(columns, index=range(len(index))).set_axis(index, axis=0)
