"""Stream all samples as one matrix, kept cells x kept genes, sample after sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lib.run import device as devices
from lib.run.errors import UserError
from lib.run.stage import log, notice
from lib.store.categories import united
from lib.store.counts import Counts, Stores
from lib.store.files import are_in, read_column, read_index, read_table
from lib.store.shards import cells_of_shard


class Cohort(Stores):
    """The kept cells of all samples x the kept genes of the cohort, as a stream of counts; with `obs` its cells only.

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
        The device of the chunks.
    subset
        Boolean mask over the kept genes: stream these only.
    shard
        Stream these cells only ("2-of-3"; `lib.store.shards`); all by default.
    obs
        The cohort's `obs.parquet`, or one of some of its cells (a group of `subclusters`): its cells are streamed.

    Attributes
    ----------
    n_obs, n_vars
        Shape of the stream.
    rows
        The positions of its cells among all cells of the cohort.
    genes
        The kept genes' table, in the order of the stream's columns.

    Raises
    ------
    UserError
        If the samples' kept cells, in their order, are not those of `obs`.
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
        obs: str | Path | None = None,
    ) -> None:
        self.genes, self._obs = kept_genes(genes), obs
        if subset is not None:
            self.genes = self.genes[subset]
        kept = [read_column(path, "kept") for path in cells] if obs is None else in_cohort(cells, obs)
        starts = np.cumsum([0, *(mask.sum() for mask in kept)])
        self.rows = slice(0, int(starts[-1])) if shard is None else cells_of_shard(shard, int(starts[-1]))
        mine = [of_rows(mask, self.rows, first) for mask, first in zip(kept, starts[:-1], strict=True)]
        used = [i for i, mask in enumerate(mine) if shard is None or mask.any()]
        self.cells = [cells[i] for i in used]
        self._first = self.rows.start - int(starts[used[0]])  # kept cells of these tables before the stream's cells
        stores: list[Counts] = []
        columns = gene_columns(self.genes, gene_key)
        for i in used:
            store = Counts(counts[i], device)
            stores.append(store.part(mine[i], columns(store), len(self.genes)))
        super().__init__(stores)

    def obs(self, columns: list[str] | None = None) -> pd.DataFrame:
        """The table of the stream's cells, in its order: all columns of the given `obs`, or else of `cells.parquet`."""
        if self._obs is not None:
            return read_table(self._obs, columns).iloc[self.rows].copy()
        table = kept_cells(self.cells, columns)
        mine = slice(self._first, self._first + self.n_obs)
        return table if len(table) == self.n_obs else table.iloc[mine].copy()


def in_cohort(cells: Sequence[str | Path], obs: str | Path) -> list[np.ndarray]:
    """For each sample a mask of its cells that belong to the cohort; `cells` are the samples' `cells.parquet`.

    Raises
    ------
    UserError
        If these are not the cells of `obs` in their order.
    """
    import pyarrow as pa

    kept, own = [read_column(path, "kept") for path in cells], [read_index(path) for path in cells]
    names = read_index(obs)
    if sum(mask.sum() for mask in kept) > len(names):
        known = np.split(are_in(own, names), np.cumsum([len(mask) for mask in kept])[:-1])
        kept = [mask & mine for mask, mine in zip(kept, known, strict=True)]
    mine = [of_sample.filter(pa.array(mask)) for mask, of_sample in zip(kept, own, strict=True)]
    if not pa.chunked_array([chunk for part in mine for chunk in part.chunks], names.type).equals(names):
        raise UserError(
            f"the samples' kept cells are not those of {obs}, or stand in another order: it is of an earlier run. Make "
            "it anew: delete it, and run snakemake again."
        )
    return kept


def kept_genes(genes: str | Path) -> pd.DataFrame:
    """The table of the kept genes."""
    table = read_table(genes)
    return table[table["kept"]]


def of_rows(kept: np.ndarray, rows: slice, first: int) -> np.ndarray:
    """The mask reduced to kept cells within `rows`; the first kept cell has the number `first`."""
    place = first + np.cumsum(kept) - 1
    return kept & (place >= rows.start) & (place < rows.stop)


def kept_cells(cells: Sequence[str | Path], columns: list[str] | None = None, named: bool = True) -> pd.DataFrame:
    """The kept cells of several `cells.parquet`, concatenated; `named`: with their names.

    A column stays numeric if it is numeric in every sample that has values of it. It stays boolean if it is boolean in
    all samples. Otherwise it becomes categories of strings (`lib.store.categories.united`), which parquet, h5ad and
    scanpy accept.
    """
    tables = []
    for path in cells:
        table = read_table(path, None if columns is None else ["kept", *columns], named)
        tables.append(table[table["kept"]].drop(columns=["kept"]))
    if columns is None:
        tables = [table.drop(columns=["reason"]) for table in tables]
    tables = [table for table in tables if len(table)] or tables[:1]  # empty tables don't decide the columns' types
    names = dict.fromkeys(name for table in tables for name in table)
    joined = {name: joined_column(name, [table.get(name, missing(table)) for table in tables]) for name in names}
    return pd.DataFrame(joined, tables[0].index.append([table.index for table in tables[1:]]) if named else None)


def with_results(obs: pd.DataFrame, *tables: pd.DataFrame) -> pd.DataFrame:
    """The table of cells with this run's results, which replace the file's own columns of the same name."""
    results = pd.concat([pd.DataFrame(index=obs.index), *tables], axis=1)
    if len(own := obs.columns.intersection(results.columns)):
        log.info("the files' own columns %s are replaced by this run's", ", ".join(own))
    return pd.concat([obs.drop(columns=own), results], axis=1)


def missing(table: pd.DataFrame) -> pd.Series:
    """A column of missing values only."""
    return pd.Series(np.nan, table.index)


def joined_column(name: str, parts: Sequence[pd.Series]) -> np.ndarray | pd.Categorical:
    """The samples' parts of a column of obs, concatenated; see `kept_cells`."""
    kinds = {kind_of(part) for part in parts if part.notna().any()}
    if not kinds:
        return np.full(sum(map(len, parts)), np.nan)
    if kinds == {"numbers"} or (kinds == {"booleans"} and all(part.notna().all() for part in parts)):
        return np.concatenate([part.to_numpy() for part in parts])
    if len(kinds) > 1:
        notice("obs column %s holds %s: it becomes text", name, " in some samples and ".join(sorted(kinds)))
    joined = united(parts)
    if not joined.cat.ordered and any(getattr(part.dtype, "ordered", False) for part in parts):
        notice("obs column %s: the samples order its categories differently, so that it is not ordered", name)
    return joined.array


def kind_of(values: pd.Series) -> str:
    """The kind of a column's values: numbers, booleans or text; categories of any kind count as text."""
    if pd.api.types.is_bool_dtype(values.dtype):
        return "booleans"
    return "numbers" if pd.api.types.is_numeric_dtype(values.dtype) else "text"


def gene_columns(genes: pd.DataFrame, gene_key: str) -> Callable[[Counts], np.ndarray]:
    """A function that gives the position of each gene of a store in the cohort's genes table, -1 if it is missing
    there; int32. For stores of the same genes they are found once."""
    shared = named_by_id(genes.index.to_numpy(), genes["gene_symbols"].to_numpy(), genes["gene_ids"].to_numpy())
    found: dict[str, np.ndarray] = {}

    def columns(store: Counts) -> np.ndarray:
        if store.mark not in found:
            keys = gene_keys(partial(store.names, "var"), gene_key, shared)
            found[store.mark] = genes.index.get_indexer(keys).astype(np.int32)
        return found[store.mark]

    return columns


def gene_keys(column: Callable[[str], np.ndarray], gene_key: str, shared: set[str]) -> np.ndarray:
    """The join keys of a store's genes: unique symbols (its var_names) or ids; `column` gives a column of its var.

    If several genes of another sample share a symbol (`shared`), the key is `{symbol}-{id}`, as it is there.
    """
    keys = column("_index" if gene_key == "gene_symbols" else gene_key)
    if gene_key == "gene_symbols" and shared and len(alone := np.flatnonzero(np.isin(keys, list(shared)))):
        ids, keys = column("gene_ids")[alone], keys.copy()
        keys[alone] = [f"{keys[i]}-{gene_id}" for i, gene_id in zip(alone, ids, strict=True)]
    return keys


def named_by_id(names: np.ndarray, symbols: np.ndarray, ids: np.ndarray) -> set[str]:
    """The symbols that several genes share, whose genes `ingest` named `{symbol}-{id}`."""
    return {symbols[i] for i in np.flatnonzero(names != symbols) if names[i].endswith(f"-{ids[i]}")}
