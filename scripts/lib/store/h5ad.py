"""Read and write tables in AnnData's layout without AnnData, whose import takes seconds.

The specification, for dataframe, categorical, array and string-array of version 0.2.0:
https://anndata.readthedocs.io/en/stable/fileformat-prose.html
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import pandas as pd

from lib.store.names import escape_key, unescape


def write_frame(parent: h5py.Group, name: str, table: pd.DataFrame) -> None:
    """Write a table of numbers, booleans, strings and categories that reads like one of `anndata.io.write_elem`.

    Column names that cannot be HDF5 keys, such as names with a slash, are escaped (`names.escape_key`).

    Raises
    ------
    TypeError
        If a column holds anything else.
    """
    group, index = parent.create_group(name), escape_key(str(table.index.name or "_index"))
    _mark(group, "dataframe")
    group.attrs.update({"_index": index, "column-order": [escape_key(str(column)) for column in table]})
    _write_array(group, index, table.index.to_numpy(object))
    for column, values in table.items():
        key = escape_key(str(column))
        if not isinstance(values.dtype, pd.CategoricalDtype):
            _write_array(group, key, values.to_numpy())
            continue
        categorical = group.create_group(key)
        _mark(categorical, "categorical")
        categorical.attrs["ordered"] = bool(values.cat.ordered)
        _write_array(categorical, "codes", values.cat.codes.to_numpy())
        _write_array(categorical, "categories", values.cat.categories.to_numpy())


def read_frame(group: h5py.Group) -> pd.DataFrame:
    """Read a table that `write_frame` wrote; equal to that of `anndata.io.read_elem`."""
    columns = {unescape(name): _column(group[name]) for name in group.attrs["column-order"]}
    return pd.DataFrame(columns, index=pd.Index(read_array(group[group.attrs["_index"]]), dtype=object))


def read_array(dataset: h5py.Dataset) -> np.ndarray:
    """An array of numbers, or of strings (object)."""
    return dataset.asstr()[...] if h5py.check_string_dtype(dataset.dtype) else dataset[...]


def plain_strings(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its strings as objects, which all versions of AnnData write and read in the same way."""
    table = table.set_axis(table.index.astype(object), axis=0)
    for name, column in table.items():
        if isinstance(column.dtype, pd.StringDtype):
            table[name] = column.astype(object)
        elif isinstance(column.dtype, pd.CategoricalDtype) and isinstance(column.cat.categories.dtype, pd.StringDtype):
            table[name] = column.cat.rename_categories(column.cat.categories.astype(object))
    return table


def _column(stored: h5py.Dataset | h5py.Group) -> Any:
    if isinstance(stored, h5py.Dataset):
        return read_array(stored)
    categories = read_array(stored["categories"])
    return pd.Categorical.from_codes(stored["codes"][...], categories, ordered=bool(stored.attrs["ordered"]))


def _write_array(group: h5py.Group, name: str, values: np.ndarray) -> None:
    strings = values.dtype.kind in "OUT"
    dtype = {"dtype": h5py.string_dtype()} if strings else {}
    _mark(group.create_dataset(name, data=values, **dtype), "string-array" if strings else "array")


def _mark(element: h5py.Group | h5py.Dataset, encoding: str) -> None:
    element.attrs.update({"encoding-type": encoding, "encoding-version": "0.2.0"})


def constant(value: Any, n: int) -> pd.Series:
    """A column of `n` equal values in the form of the store: None is a missing text, NaN a missing number."""
    return storable(pd.Series([value] * n, dtype=object if value is None or isinstance(value, str) else None))


def storable(values: pd.Series) -> pd.Series | None:
    """A column in the form of the store: plain numbers and booleans, strings as categories; None for other types.

    Integers and booleans with missing values become float64 with NaN.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        categories = values.cat.categories
        if is_text(categories):
            if any("\0" in str(name) for name in categories):
                return None
            return values.cat.rename_categories(pd.Index(categories.map(str), dtype=object))
        return values if pd.api.types.is_numeric_dtype(categories) else None
    if is_text(values):
        values = values.astype(object)
        if not values.map(pd.api.types.is_scalar).all():
            return None
        strings = values.map(lambda v: v.decode() if isinstance(v, bytes) else str(v), na_action="ignore")
        names = pd.Index(sorted(strings.dropna().unique()), dtype=object)
        return None if any("\0" in name for name in names) else pd.Series(pd.Categorical(strings, names))
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_complex_dtype(values):
        return None
    if pd.api.types.is_extension_array_dtype(values):
        return values.astype(np.float64 if values.hasnans else values.dtype.numpy_dtype)
    return values


def is_text(values: pd.Series | pd.Index) -> bool:
    """Whether values are strings, or Python objects that are written as strings."""
    return pd.api.types.is_object_dtype(values) or pd.api.types.is_string_dtype(values)
