"""Read the tables that a run gives to its users."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
from lib.methods.markers import FLOATS
from pyarrow import csv


def read_markers(path: str | Path) -> pd.DataFrame:
    """Read a table that `write_markers` wrote; `group` and the genes' names are strings."""
    types = {"group": pa.string(), "names": pa.string(), "gene_symbols": pa.string()}
    types |= {name: pa.from_numpy_dtype(dtype) for name, dtype in FLOATS.items()}
    return csv.read_csv(
        path, parse_options=csv.ParseOptions(delimiter="\t"), convert_options=csv.ConvertOptions(column_types=types)
    ).to_pandas()
