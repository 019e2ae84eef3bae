"""The cohort's genes: which exist, which are kept.

The universe is what the samples' genes have in common (`join: inner`) or together (`join: outer`; a gene that a
sample lacks counts as zero there). A gene is kept with at least `min_counts` counts and `min_cells` cells over the
kept cells of all samples (scanpy.pp.filter_genes).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from lib import device as devices
from lib import stage
from lib.cohort import gene_columns, gene_keys
from lib.counts import Counts, Stream, column_counts, column_sums
from lib.errors import UserError
from lib.files import read_table, write_table
from lib.genelists import gene_families


def gene_universe(keys: Sequence[np.ndarray], names: Sequence[str], join: str, min_shared: float) -> pd.Index:
    """The genes that all samples share, or that any has, in the order of first appearance.

    Parameters
    ----------
    keys
        Each sample's gene keys, unique within it.
    names
        The samples' names.
    join
        inner or outer.
    min_shared
        For an inner join the smallest fraction of the smallest sample's genes that must be shared.

    Raises
    ------
    UserError
        If fewer are shared: the samples were counted against different references.
    """
    union = pd.Index(pd.unique(np.concatenate(keys)), dtype=object)
    if join == "outer":
        return union
    shared = union[np.sum([union.isin(k) for k in keys], axis=0) == len(keys)]
    smallest = min(len(k) for k in keys)
    if len(shared) < min_shared * smallest:
        with_most = keys[int(np.argmax([len(k) for k in keys]))]
        odd = int(np.argmin([np.isin(k, with_most).mean() for k in keys]))
        raise UserError(
            f"the samples share only {len(shared)} genes, the smallest has {smallest}: they look as if counted against "
            f"different references. Sample {names[odd]} (genes like {', '.join(map(str, keys[odd][:3]))}) fits the "
            f"others (like {', '.join(map(str, with_most[:3]))}) least. Recount it, or set `ingest: gene_key` to what "
            "the samples have in common, or `genes: join: outer`, or lower `genes: min_shared`."
        )
    return shared


@stage.halving
def gene_sums(counts: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Total count and number of cells with the gene, per gene of a stream; int64, exact."""
    xp, device = counts.device.xp, counts.device
    totals, n_cells = xp.zeros(counts.n_vars, np.int64), xp.zeros(counts.n_vars, np.int64)
    for chunk in stage.progress(counts.chunks(), counts.n_obs, "gene sums"):
        totals += column_sums(chunk.X, chunk.X.data, device).astype(np.int64)
        n_cells += column_counts(chunk.X, device)
    return device.to_host(totals), device.to_host(n_cells)


def main(snakemake: Any) -> None:
    """Sum every sample's genes over its kept cells; write `genes.parquet`."""
    params, device = snakemake.params, devices.of(snakemake)
    stores = [Counts(path, device) for path in snakemake.input.counts]
    keys = [gene_keys(store, params.gene_key) for store in stores]
    universe = gene_universe(keys, params.samples, params.genes["join"], params.genes["min_shared"])
    union = len(pd.unique(np.concatenate(keys)))
    stage.log.info("%d genes (%s join) of %d in all samples", len(universe), params.genes["join"], union)

    genes = pd.DataFrame(index=universe, columns=["gene_symbols", "gene_ids"], dtype=object)
    totals, n_cells, n_samples = (np.zeros(len(universe), np.int64) for _ in range(3))
    for store, path in zip(stores, snakemake.input.cells, strict=True):
        columns = gene_columns(store, universe, params.gene_key)
        at, mine = columns[columns >= 0], columns >= 0
        for name in genes:
            new = genes[name].isna().to_numpy()[at]
            genes.iloc[at[new], genes.columns.get_loc(name)] = store.names("var", name)[mine][new]
        kept = read_table(path, columns=["kept"])["kept"].to_numpy()
        sums = gene_sums(Counts(store.path, device, kept, columns, len(universe)))
        totals, n_cells = totals + sums[0], n_cells + sums[1]
        n_samples[at] += 1

    families = gene_families(params.gene_families, genes["gene_symbols"].to_numpy())
    genes = genes.assign(total_counts=totals, n_cells_by_counts=n_cells, n_samples=n_samples, **families)
    genes["kept"] = (totals >= params.genes["min_counts"]) & (n_cells >= params.genes["min_cells"])
    stage.log.info("%d of %d genes kept", genes["kept"].sum(), len(genes))
    if not genes["kept"].any():
        raise UserError("no gene is left: lower `genes: min_counts` and `genes: min_cells` in the config")
    write_table(genes, snakemake.output.genes)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
