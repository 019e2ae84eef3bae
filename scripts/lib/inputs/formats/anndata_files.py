"""Read AnnData files, in HDF5 or zarr: counts in X, raw or a layer; CSR, CSC or dense; of any dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import pandas as pd

from lib.inputs.formats.arrays import (
    File,
    array_problem,
    chunk_bytes,
    is_array,
    is_numbers,
    is_strings,
    n_bytes,
    parts_of,
)
from lib.inputs.formats.base import NUMBERS, PEEK, Header, MatrixReader, Question, Tell, choice, is_damage, look_of
from lib.inputs.formats.zarr_files import ZarrNode
from lib.run.errors import UserError
from lib.run.imports import import_lean

MASKED = {"b": pd.arrays.BooleanArray, "f": pd.arrays.FloatingArray}
MASKED |= dict.fromkeys("iu", pd.arrays.IntegerArray)
SPARSE = ("csr_matrix", "csc_matrix")  # AnnData's encoding-type
MANY_VALUES = 100  # more, not all of them whole, are no names of groups
OLD = "was written by anndata before version 0.7. Write it anew, in Python: anndata.read_h5ad(OLD).write_h5ad(NEW)."


class AnnDataFile(MatrixReader):
    """Reader of an AnnData file: of a group of h5py or zarr, or of a `ZarrNode`, which reads no data."""

    def __init__(self, question: Question, tell: Tell, file: File) -> None:
        super().__init__(question, tell)
        self.file, self.n_names = file, dict[str, int]()
        obs, var = file.find("obs"), file.find("var")
        if lacks := " and ".join(name for name, table in (("obs", obs), ("var", var)) if table is None):
            raise UserError(f"{self.path} is not an AnnData file: it has no {lacks}. Does its suffix tell its format?")
        old = [element.attrs for name in ("X", "raw/X") if (element := file.find(name)) is not None]
        if (
            is_array(obs)
            or is_array(var)
            or file.find("raw.X") is not None
            or any("h5sparse_format" in attrs for attrs in old)
        ):
            raise UserError(f"{self.path} {OLD}")
        wanted = question.counts if question.counts is not None else "X"
        layers = file.find("layers")
        found = {"X": "X", "raw": "raw/X"}
        if layers is not None and not is_array(layers):
            found |= {f"layers/{name}": f"layers/{name}" for name in layers}
        looks = {place: self._look(element) for place, element in found.items()}
        self.places = {place: look for place, look in looks.items() if look is not None}
        if wanted in found and wanted not in self.places and file.find(found[wanted]) is not None:
            self._refuse_matrix(found[wanted])
        self.where = choice(self.path, "counts", question.counts, list(self.places))
        self.var_name = "raw/var" if self.where == "raw" else "var"
        self.obs_group, self.var_group = obs, file.group(self.var_name)
        self.check_columns(_columns(obs))
        element = found[self.where]
        self.sparse, self.scattered = self._is_sparse(element), _encoding(file.find(element)) == "csc_matrix"
        named = self._n_names("obs"), self._n_names(self.var_name)
        names = f"obs has {named[0]} names and {self.var_name} {named[1]}"
        self.take(element, named, names, data=not isinstance(obs, ZarrNode))

    def _look(self, element: str) -> str | None:
        """What an element looks like by its first values, "" if these are not read; None if it is no matrix."""
        name = f"{element}/data" if self._is_sparse(element) else element
        matrix = self.file.find(name)
        odd = matrix is None or array_problem(matrix, 1 + (name == element), NUMBERS)
        if odd or not self.file.has_room(chunk_bytes(matrix)):
            return None
        if isinstance(matrix, ZarrNode):
            return ""
        if name == element:
            return look_of(self.file.read(name, matrix, slice(1), slice(PEEK)).ravel())
        return look_of(self.file.read(name, matrix, slice(PEEK)))

    def _is_sparse(self, element: str) -> bool:
        found = self.file.find(element)
        return found is not None and not is_array(found) and _encoding(found) in SPARSE

    def _refuse_matrix(self, element: str) -> None:
        """Refuse an element that is no matrix."""
        if self._is_sparse(element):
            self.file.array(f"{element}/data", 1, NUMBERS)
        elif is_array(self.file.find(element)):
            self.file.array(element, 2, NUMBERS)
        kind = _encoding(self.file.find(element)) or "none"
        raise UserError(
            f"{self.path} is not laid out as its format is: {element} is neither an array nor a sparse matrix of "
            f"AnnData (its attribute encoding-type is {kind}, not {' or '.join(SPARSE)})."
        )

    def _names(self, table: str) -> Any:
        """The names of a table: an array, categories, or (anndata 0.13) values and a mask."""
        index = self.file.group(table).attrs.get("_index")
        if index is None:
            raise UserError(f"{self.path} is not laid out as its format is: {table} has no attribute _index.")
        name = f"{table}/{_text(index)}"
        found = self.file.find(name)
        inside = [] if found is None or is_array(found) else [part for part in ("codes", "values") if part in found]
        return f"{name}/{inside[0]}" if inside else name

    def _n_names(self, table: str) -> int:
        if table not in self.n_names:
            name = self._names(table)
            array = self.file.array(name, 1)
            self.file.check_room(name, n_bytes(array))
            self.file.check_written(name, array)
            self.n_names[table] = int(array.shape[0])
        return self.n_names[table]

    def _read_names(self, table: str) -> pd.Index:
        """The names of a table's rows."""
        name = self._names(table)
        values = self.file.array(name, 1)
        if name.endswith("/codes"):
            categories = name.removesuffix("codes") + "categories"
            names = self.file.strings(categories, self.file.array(categories, 1))
            codes = self.file.whole(name, values)
            if len(codes) and not 0 <= codes.min() <= codes.max() < len(names):
                raise UserError(f"{self.path}: {name} has a code beyond its {len(names)} categories: write it anew.")
            return pd.Index(names[codes], dtype=object)
        return pd.Index(self.file.strings(name, values), dtype=object)

    def column_problem(self, name: str, numeric: bool, complete: bool) -> str | None:
        """The problem of a column of obs: it is no column, or (of zarr not checked) its values are unfit."""
        column = self.file.find(f"obs/{name}")
        if column is None:
            return None
        kind, single = _encoding(column), is_array(column)
        if len(column.shape or ()) != 1 if single else not any(part in column for part in ("categories", "values")):
            return "is no column of single values: name another"
        values = column if single else column["categories" if kind == "categorical" else "values"]
        values = values if is_array(values) else values["values"]  # categories with a mask
        if numeric and np.dtype(values.dtype).kind not in NUMBERS and "categories" not in column.attrs:
            return "is text, not numeric: name another, or make it numbers"
        n, rows = self._n_names("obs"), column if single else column["codes" if kind == "categorical" else "values"]
        if (rows if is_array(rows) else rows["values"]).shape != (n,):
            return f"does not have a value for each of the {n} cells: write it anew, or name another"
        if isinstance(column, ZarrNode):
            return None
        if kind == "categorical":
            missing = column["codes"][...] < 0
        elif single and np.dtype(column.dtype).kind in NUMBERS:
            numbers = column[...]
            missing = ~np.isfinite(numbers) if numeric else np.isnan(numbers)
            if problem := self._numbers_problem(numbers[~missing], numeric):
                return problem
        elif not single and "mask" in column:
            missing = column["mask"][...]
        else:
            return None
        if missing.size and missing.all():
            return "has no value: each cell's is missing"
        if (complete or numeric) and missing.any():
            what = "missing or infinite" if numeric else "missing"
            return f"is {what} for {int(missing.sum())} of {missing.size} cells. Fill it, or remove these cells"
        return None

    def _numbers_problem(self, numbers: np.ndarray, numeric: bool) -> str | None:
        """Why the values of a column cannot be regressed out (`numeric`), or be groups."""
        if numeric and self.question.alone and len(numbers) and (numbers == numbers[0]).all():
            return f"has the value {numbers[0]} in all cells: there is nothing to regress out. Name another"
        if not numeric and (numbers != np.floor(numbers)).any() and (n := len(np.unique(numbers))) > MANY_VALUES:
            return f"has {n} different values, not all of them whole: it is continuous. Name a column of groups"
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
        return replace(super().header(), batches=self._batches(), groups=self._groups())

    def _batches(self) -> tuple[int, int] | None:
        """The number of batches and the cells of the largest; None if the file has no such categorical column."""
        sizes = self._cells_by(self.question.batch_key)
        return None if sizes is None else (int((sizes > 0).sum()), int(sizes.max(initial=0)))

    def _groups(self) -> dict[str, int] | None:
        """The cells of each group of the question's grouping; None if the file has no such categories of text."""
        name = self.question.grouping
        sizes = self._cells_by(name) if name else None
        names = None if sizes is None else self.file.find(f"obs/{name}/categories")
        if names is None or not is_array(names) or len(names.shape) != 1 or names.shape[0] < len(sizes):
            return None
        names = names[...][: len(sizes)].tolist()
        names = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in names]
        if not all(isinstance(text, str) for text in names):
            return None
        return {text: int(n) for text, n in zip(names, sizes, strict=True) if n}

    def _cells_by(self, name: str) -> np.ndarray | None:
        """The cells of each category of a column; None if it is no categorical column of the file."""
        codes = self.file.find(f"obs/{name}/codes")
        if name in ("sample", *self.question.sheet) or codes is None or codes.shape != self.shape[:1]:
            return None
        codes = codes[...]
        return np.bincount(codes[codes >= 0])

    def load(self) -> None:
        """Read the tables of cells and genes; the genes of raw take var's symbols if they have none."""
        from lib.inputs.formats import genes

        self.obs, var = self._frame("obs"), self._frame(self.var_name)
        if self.where == "raw" and not any(name in var for name in genes.SYMBOL_COLUMNS):
            var = genes.with_symbols(var, self._frame("var"))
        if "feature_types" in var:
            self.columns = genes.gene_features(self.path, var["feature_types"].astype(object).to_numpy())
            var = var[self.columns]
        self.gene_symbols, self.gene_ids = genes.names_in(self.path, var)
        self.flags = genes.flags_in(var)

    def _frame(self, table: str) -> pd.DataFrame:
        """A table of AnnData, without columns that hold no single value per row; a notice names these.

        Raises
        ------
        UserError
            If the column of genes' names is such, or a column is damaged.
        """
        from lib.inputs.formats import genes
        from lib.run.stage import log, notice

        index, columns, odd = self._read_names(table), {}, []
        for name in dict.fromkeys(_columns(self.file.group(table))):
            try:
                columns[name] = pd.Series(self._column(table, name, len(index)))
            except Exception as error:  # AnnData's readers may raise any
                needed = table != "obs" and name in (*genes.SYMBOL_COLUMNS, *genes.ID_COLUMNS, "feature_types")
                if is_damage(error) or (needed and isinstance(error, UserError)):
                    raise
                if needed:
                    raise UserError(f"{self.path}: {table}/{name} cannot be read: {error}. Write it anew.") from None
                log.info("%s/%s is left out: %s", table, name, error)
                odd.append(name)
        if odd:
            said = ", ".join(odd)
            notice("%s: left out of /%s: %s, which hold no single values per row", self.path, table, said)
        return pd.DataFrame(columns, index=range(len(index))).set_axis(index, axis=0)

    def _column(self, table: str, name: str, n: int) -> Any:
        """A column of a table, with n values."""
        where = f"{table}/{name}"
        element = self.file.find(where)
        if element is None:
            raise ValueError("it is not there")
        parts = parts_of(element)
        if not self.file.has_room(sum(map(n_bytes, parts))) or (is_array(element) and element.shape != (n,)):
            raise ValueError(f"it does not have {n} single values")
        for array in parts:
            if problem := array_problem(array, len(array.shape)):
                raise ValueError(problem)
        if is_numbers(element) and "categories" not in element.attrs:
            return self.file.whole(where, element)
        for array in parts:
            self.file.check_inflating(where, array)
        if np.dtype(getattr(element, "dtype", int)).kind in "Vc":
            raise ValueError("it holds no single values")
        # Nearly all columns are plain; AnnData takes seconds to import
        if _is_plain_categorical(element):
            return self._categorical(where, element)
        if _is_plain(element) and "categories" not in element.attrs:
            return self._plain(where, element)
        values = import_lean("anndata.io").read_elem(element)
        if "categories" in element.attrs:  # as anndata 0.7 writes them
            categories = import_lean("anndata.io").read_elem(self.file.group(table)[f"__categories/{name}"])
            values = pd.Categorical.from_codes(values, categories)
        if np.ndim(values) != 1 or len(values) != n:
            raise ValueError("no single values")
        return values

    def _categorical(self, where: str, element: h5py.Group) -> pd.Categorical:
        """Codes and categories of HDF5, as AnnData's reader gives them."""
        categories = self._plain(f"{where}/categories", element["categories"])
        codes = self.file.whole(f"{where}/codes", element["codes"])
        return pd.Categorical.from_codes(codes, categories, ordered=bool(element.attrs.get("ordered", False)))

    def _plain(self, where: str, element: Any) -> Any:
        """Numbers or strings of HDF5, as AnnData's reader gives them; masked strings are None."""
        if isinstance(element, h5py.Dataset):
            return (self.file.strings if is_strings(element) else self.file.whole)(where, element)
        values = self._plain(f"{where}/values", element["values"])
        mask = self.file.whole(f"{where}/mask", element["mask"])
        if values.dtype.kind != "O":
            return MASKED[values.dtype.kind](values, mask)
        values[mask] = None
        return values


def _is_plain(element: Any) -> bool:
    """Whether an element are numbers or strings in HDF5, or such values and a mask."""
    if isinstance(element, h5py.Dataset):
        return element.ndim == 1 and (is_numbers(element) or is_strings(element))
    if not isinstance(element, h5py.Group) or not _encoding(element).startswith("nullable-"):
        return False
    values, mask = (element.get(name) for name in ("values", "mask"))
    alike = isinstance(values, h5py.Dataset) and isinstance(mask, h5py.Dataset) and values.shape == mask.shape
    return alike and _is_plain(values) and mask.dtype.kind == "b"


def _is_plain_categorical(element: Any) -> bool:
    """Whether an element is a categorical in HDF5, of plain categories."""
    if not isinstance(element, h5py.Group) or _encoding(element) != "categorical":
        return False
    codes = element.get("codes")
    return is_numbers(codes) and codes.ndim == 1 and _is_plain(element.get("categories"))


def _columns(table: Any) -> list[str]:
    """The names of a table's columns, in their order."""
    index, told = _text(table.attrs.get("_index", "")), table.attrs.get("column-order")
    names = list(table) if told is None else [_text(name) for name in np.atleast_1d(told)]
    return [name for name in names if name not in (index, "__categories")]


def _encoding(element: Any) -> str:
    """AnnData's encoding-type of an element."""
    return _text(element.attrs.get("encoding-type", ""))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
