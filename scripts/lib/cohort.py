"""All samples as one matrix: the kept cells x the kept genes, streamed sample after sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from . import device as devices
from .counts import Counts, Stores
from .files import read_table
from .shards import rows_of


class Cohort(Stores):
    """The kept cells of all samples x the kept genes of the cohort, as a stream of counts.

    Parameters
    ----------
    counts
        The samples' counts stores.
    cells
        The samples' `cells.parquet`, in the same order.
    genes
        The cohort's `genes.parquet`.
    gene_key
        Column of the stores' `var` that matches the genes table: gene_symbols or gene_ids.
    device
        Where chunks are wanted.
    subset
        Boolean mask over the kept genes: stream these only.
    shard
        Stream these cells only ("2-of-3"; `lib.shards`); all by default.

    Attributes
    ----------
    n_obs, n_vars
        Shape of the stream.
    rows
        Where its cells stand among all kept cells.
    genes
        The kept genes' table, in the order of the stream's columns.
    """

    def __init__(
        self,
        counts: Sequence[str | Path],
        cells: Sequence[str | Path],
        genes: str | Path,
        gene_key: str,
        device: devices.Device | None = None,
        subset: np.ndarray | None = None,
        shard: str | None = None,
    ) -> None:
        self.genes = kept_genes(genes)
        if subset is not None:
            self.genes = self.genes[subset]
        kept = [read_table(path, columns=["kept"])["kept"].to_numpy() for path in cells]
        starts = np.cumsum([0, *(mask.sum() for mask in kept)])
        self.rows = slice(0, int(starts[-1])) if shard is None else rows_of(shard, int(starts[-1]))
        mine = [of_rows(mask, self.rows, first) for mask, first in zip(kept, starts[:-1], strict=True)]
        used = [i for i, mask in enumerate(mine) if shard is None or mask.any()]
        self.cells = [cells[i] for i in used]
        self._first = self.rows.start - int(starts[used[0]])  # kept cells before the stream's, in these tables
        stores = []
        for i in used:
            columns = gene_columns(Counts(counts[i]), self.genes.index, gene_key)
            stores.append(Counts(counts[i], device, mine[i], columns, len(self.genes)))
        super().__init__(stores)

    def obs(self, columns: list[str] | None = None) -> pd.DataFrame:
        """The stream's cells' table, in its order: all of `cells.parquet`, or some columns of it."""
        table = kept_cells(self.cells, columns)
        mine = slice(self._first, self._first + self.n_obs)
        return table if len(table) == self.n_obs else table.iloc[mine].copy()


def kept_genes(genes: str | Path) -> pd.DataFrame:
    """The kept genes' table."""
    table = read_table(genes)
    return table[table["kept"]]


def of_rows(kept: np.ndarray, rows: slice, first: int) -> np.ndarray:
    """The cells of a mask that stand within `rows`, where the first of them is number `first`."""
    place = first + np.cumsum(kept) - 1
    return kept & (place >= rows.start) & (place < rows.stop)


def kept_cells(cells: Sequence[str | Path], columns: list[str] | None = None) -> pd.DataFrame:
    """The kept cells of several `cells.parquet`, one after the other; categories are united."""
    tables = []
    for path in cells:
        table = read_table(path, columns=None if columns is None else ["kept", *columns])
        tables.append(table[table["kept"]].drop(columns=["kept"]))
    if columns is None:
        tables = [table.drop(columns=["reason"]) for table in tables]
    tables = [table for table in tables if len(table)] or tables[:1]  # an empty one's columns have no say
    joined = pd.concat(tables)
    for name in joined.columns:
        if any(isinstance(t.dtypes.get(name), pd.CategoricalDtype) for t in tables):
            joined[name] = joined[name].astype(str).where(joined[name].notna()).astype("category")
    return joined


def gene_columns(store: Counts, genes: pd.Index, gene_key: str) -> np.ndarray:
    """For each gene of a store its position in `genes`, -1 where it is not there; int32."""
    return genes.get_indexer(gene_keys(store, gene_key)).astype(np.int32)


def gene_keys(store: Counts, gene_key: str) -> np.ndarray:
    """What a store's genes are joined on: unique symbols (its var_names) or ids."""
    return store.names("var", "_index" if gene_key == "gene_symbols" else gene_key)
