"""Write small tables for readers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lib.store.files import replacing


def write_tsv(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table without its index, floats with six significant digits."""
    with replacing(path) as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g")
