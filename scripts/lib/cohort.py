"""All samples as one matrix: the kept cells x the kept genes, streamed sample after sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from . import device as devices
from .counts import Chunk, Counts
from .files import read_table


class Cohort:
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

    Attributes
    ----------
    n_obs, n_vars
        Shape of the stream.
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
    ) -> None:
        self.device = device or devices.cpu()
        table = read_table(genes)
        self.genes = table[table["kept"]]
        if subset is not None:
            self.genes = self.genes[subset]
        self.cells = list(cells)
        self.samples = []
        for store, path in zip(counts, cells, strict=True):
            kept = read_table(path, columns=["kept"])["kept"].to_numpy()
            columns = gene_columns(Counts(store), self.genes.index, gene_key)
            self.samples.append(Counts(store, self.device, kept, columns, len(self.genes)))
        self.n_obs = sum(sample.n_obs for sample in self.samples)
        self.n_vars = len(self.genes)

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """The cells of one sample after the other, in chunks."""
        done = 0
        for sample in self.samples:
            for chunk in sample.chunks(max_cells):
                yield Chunk(done + chunk.start, chunk.X)
            done += sample.n_obs

    def obs(self, columns: list[str] | None = None) -> pd.DataFrame:
        """The kept cells' table, in the stream's order: all of `cells.parquet`, or some columns of it."""
        return kept_cells(self.cells, columns)


def kept_cells(cells: Sequence[str | Path], columns: list[str] | None = None) -> pd.DataFrame:
    """The kept cells of several `cells.parquet`, one after the other; categories are united."""
    tables = []
    for path in cells:
        table = read_table(path, columns=None if columns is None else ["kept", *columns])
        tables.append(table[table["kept"]].drop(columns=["kept"]))
    if columns is None:
        tables = [table.drop(columns=["reason"]) for table in tables]
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
