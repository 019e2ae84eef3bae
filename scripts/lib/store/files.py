"""Artifacts on disk: written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
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

# HDF5's formats of version 1.8, which every HDF5 since reads: h5py's "latest" is what HDF5 2 alone reads. Unlike the
# oldest ones they hold attributes above 64 kB, such as the names of thousands of columns.
LIBVER = ("v108", "v108")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which takes its name if the block succeeds.

    Whoever reads `path` sees the old file, or none, or the complete new one. A failed block
    leaves nothing behind; what a killed one leaves is named `.{name}.partial`, which no rule reads.
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


@counted("write")
def write_table(table: pd.DataFrame, path: str | Path, scope: str | None = None) -> None:
    """Write a table as parquet (zstd); equal tables give equal bytes.

    A table with a row a cell is marked with its cells, which are a sample's or the cohort's (`scope`;
    lib.store.identity).
    """
    import pyarrow as pa
    from pyarrow.parquet import write_table as write_parquet

    stored = pa.Table.from_pandas(table)
    if scope is not None:
        mark = {identity.KEY: identity.mark_of_names(table.index, scope)}
        stored = stored.replace_schema_metadata({**stored.schema.metadata, **mark})
    with replacing(path) as partial:
        write_parquet(stored, partial, compression="zstd")


@counted("read")
def read_table(path: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a parquet table, whole or some of its columns (the index always comes along).

    Raises
    ------
    UserError
        If a column is not there.
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
    return pd.read_parquet(path, columns=columns)


def column_names(path: str | Path) -> list[str]:
    """The columns of a parquet table, its index among them."""
    from pyarrow.parquet import read_schema

    return read_schema(path).names


@counted("write")
def write_arrays(path: str | Path, arrays: Mapping[str, Any], like: str | Path | None = None, **attrs: Any) -> None:
    """Write named arrays, and scalar attributes, into one HDF5 file; equal input gives equal bytes.

    Arrays with a row a cell are marked as those of the artifact `like`, whose cells they have (lib.store.identity).
    """
    if like is not None and (mark := identity.read_mark(like)):
        attrs = {**attrs, identity.KEY: mark}
    with replacing(path) as partial, h5py.File(partial, "w", libver=LIBVER) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=np.asarray(array), track_times=False)
        file.attrs.update(attrs)


@counted("read")
def read_arrays(path: str | Path, *names: str) -> dict[str, np.ndarray]:
    """Read the named arrays (default: all) of a file that `write_arrays` wrote."""
    with h5py.File(path, "r", locking=False) as file:
        return {name: file[name][...] for name in names or file}


def read_attrs(path: str | Path) -> dict[str, Any]:
    """Read the attributes of a file that `write_arrays` wrote."""
    with h5py.File(path, "r", locking=False) as file:
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}
