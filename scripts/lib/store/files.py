"""Read artifacts, and write them completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from lib.run.clock import counted
from lib.run.errors import UserError
from lib.store import identity

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from scipy.sparse import csr_matrix

# HDF5's file format of version 1.8, which all later versions read; only HDF5 2 reads h5py's "latest". Unlike the oldest
# format it holds attributes above 64 kB, such as the names of thousands of columns.
LIBVER = ("v108", "v108")
SLOTS = "somersault-slots"  # the HDF5 attribute, or key of parquet's metadata, with the slots that a file fills


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` if the block succeeds.

    Readers of `path` see the old file, no file, or the complete new file. A failed block leaves nothing behind; a
    killed one leaves `.{name}.partial`, which no rule reads.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_tsv(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table for readers, without its index, floats with six significant digits."""
    with replacing(path) as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g")


@counted("write")
def write_table(
    table: pd.DataFrame,
    path: str | Path,
    scope: str | None = None,
    slot: str | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Write a table as parquet (zstd); equal tables give equal bytes.

    Parameters
    ----------
    scope
        For a table with one row per cell: sample or cohort. The table gets the mark of its cells (`identity`).
    slot, uns
        The slot of the atlas that it fills, and its entries for uns (`slots`).
    """
    import pyarrow as pa
    from pyarrow.parquet import write_table as write_parquet

    stored = pa.Table.from_pandas(table)
    labels = {identity.KEY: identity.mark_of_names(table.index, scope)} if scope else {}
    labels |= _label_of({"": slot} if slot else {}, uns)
    stored = stored.replace_schema_metadata({**stored.schema.metadata, **labels})
    # Names of rows, and most floats, are all different: a dictionary of them is in vain
    index = stored.schema.pandas_metadata["index_columns"]
    repeated = [f.name for f in stored.schema if f.name not in index and not pa.types.is_floating(f.type)]
    with replacing(path) as partial:
        write_parquet(stored, partial, compression="zstd", use_dictionary=repeated)


@counted("read")
def read_table(path: str | Path, columns: list[str] | None = None, named: bool = True) -> pd.DataFrame:
    """Read a parquet table, whole or some of its columns.

    Parameters
    ----------
    named
        With its index, which takes longer than many columns if it is of texts; else the rows are numbered.

    Raises
    ------
    UserError
        If a column is missing.
    """
    import pandas as pd

    if columns is not None:
        known = column_names(path)
        if missing := [name for name in columns if name not in known]:
            raise UserError(
                f"{path} has no column {', '.join(missing)}; there are {', '.join(known)}. Correct the config key that "
                "names it (batch_key, label_key, a list of keys or groupings)."
            )
        columns = list(dict.fromkeys(columns))
    if named:
        return pd.read_parquet(path, columns=columns)
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        index = file.schema_arrow.pandas_metadata["index_columns"]
        values = [name for name in file.schema_arrow.names if name not in index]
        return file.read(values if columns is None else columns).to_pandas()


@counted("read")
def read_column(path: str | Path, name: str) -> np.ndarray:
    """A column of numbers or booleans of a parquet table, without the index, whose texts take most of the time."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        return file.read([name], use_threads=False)[name].to_numpy()


@counted("read")
def read_index(path: str | Path) -> pa.ChunkedArray:
    """The index of a parquet table, as texts in Arrow, which compares a million in no time."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        (name,) = file.schema_arrow.pandas_metadata["index_columns"]
        return file.read([name], use_threads=False)[name].cast(pa.large_string())


def are_in(names: Iterable[pa.ChunkedArray], others: pa.ChunkedArray) -> np.ndarray:
    """Whether each of some tables' names (`read_index`), one after the other, is among others; bool."""
    import pyarrow as pa
    import pyarrow.compute as pc

    every = pa.chunked_array([chunk for of_table in names for chunk in of_table.chunks], others.type)
    return pc.is_in(every, value_set=others).to_numpy()


def column_names(path: str | Path) -> list[str]:
    """The columns of a parquet table, its index included."""
    from pyarrow.parquet import read_schema

    return read_schema(path).names


@counted("write")
def write_arrays(
    path: str | Path,
    arrays: Mapping[str, Any],
    like: str | Path | None = None,
    slots: Mapping[str, str] | None = None,
    uns: Mapping[str, Any] | None = None,
    **attrs: Any,
) -> None:
    """Write named arrays, and scalar attributes, into one HDF5 file; equal input gives equal bytes.

    Parameters
    ----------
    like
        For arrays with one row per cell: an artifact with the same cells, whose mark the file gets (`identity`).
    slots, uns
        Array -> the slot of the atlas that it fills, and the file's entries for uns (`slots`).
    """
    if like is not None and (mark := identity.read_mark(like)):
        attrs = {**attrs, identity.KEY: mark}
    attrs |= _label_of(slots or {}, uns)
    with replacing(path) as partial, h5py.File(partial, "w", libver=LIBVER) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=np.asarray(array), track_times=False)
        file.attrs.update(attrs)


@counted("read")
def read_arrays(path: str | Path, *names: str) -> dict[str, np.ndarray]:
    """Read the named arrays (default: all) of a file that `write_arrays` wrote."""
    with h5py.File(path, "r", locking=False) as file:
        return {name: file[name][...] for name in names or file}


def read_csr(path: str | Path, name: str) -> csr_matrix:
    """Read a square CSR matrix from `data`, `indices` and `indptr`, which `write_arrays` wrote under this name."""
    from scipy.sparse import csr_matrix

    parts = list(read_arrays(path, *(f"{name}/{field}" for field in ("data", "indices", "indptr"))).values())
    n_obs = len(parts[2]) - 1
    return csr_matrix(tuple(parts), shape=(n_obs, n_obs))


def read_attrs(path: str | Path) -> dict[str, Any]:
    """Read the attributes of a file that `write_arrays` wrote."""
    with h5py.File(path, "r", locking=False) as file:
        found = {name: value for name, value in file.attrs.items() if name not in (identity.KEY, SLOTS)}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in found.items()}


def _label_of(slots: Mapping[str, str], uns: Mapping[str, Any] | None) -> dict[str, str]:
    """The metadata of a file with these slots; empty if it has none."""
    return {SLOTS: json.dumps({"slots": dict(slots), "uns": uns or {}})} if slots else {}
