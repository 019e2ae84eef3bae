"""Write the counts of the marker genes that the figures and the explorer show, in one pass over the counts.

The genes: of each table of markers those of its dot plot, then further ones by rank, those of all tables in turn.
"""

from lib.start import run

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from lib.methods.markers import chosen_genes, read_top
from lib.run import device as devices
from lib.run import stage
from lib.run.progress import progress
from lib.run.resources import CUPY, KB, MB, Job, Need
from lib.store.cohort import Cohort, kept_genes
from lib.store.counts import CountsWriter
from lib.store.files import read_index, replacing
from lib.store.identity import read_mark
from scipy.sparse import csr_matrix

GENES = 600  # assumed of a panel: the explorer's, and more in dot plots of many groups


def panel_genes(tops: Sequence[pd.DataFrame], n_genes: int) -> list[str]:
    """The genes of all dot plots; then, up to `n_genes` in all, the best of each group and table, rank by rank."""
    drawn = [name for top in tops for name in chosen_genes(top)["names"]]
    by_rank = pd.concat(tops).sort_values("rank", kind="stable")["names"] if tops else []
    found = dict.fromkeys(drawn)
    for name in by_rank:
        if len(found) >= n_genes:
            break
        found.setdefault(name)
    return list(found)


def needs(job: Job) -> Need:
    """What the threads inflate, of which a panel's share is kept, and the cells' names."""
    chunk = 10 * KB * job.nnz / max(1, job.n_obs)
    nnz = job.nnz * min(1, 2.5 * GENES / max(1, job.n_vars))
    tables = 30 * MB + job.places + 0.3 * KB * job.n_kept + 8 * min(nnz, 40e6)
    return Need(
        mem=job.process + chunk * job.threads + tables,
        seconds=10 + 0.1e-6 * job.nnz,
        disk=4 * nnz + 60 * job.n_kept,
        vram=job.claim(600 * MB),
        gpu_mem=job.process + CUPY + 250 * MB * job.chunk + tables,
    )


def main(snakemake: Any) -> None:
    """Read the tables of top markers and the cohort's counts, write `panel.h5ad`."""
    inputs, params = snakemake.input, snakemake.params
    genes = kept_genes(inputs.genes)
    names = panel_genes([read_top(path) for path in inputs.tops], params.n_genes)
    subset = genes.index.isin(names)
    device, files = devices.of(snakemake), (inputs.counts, inputs.cells, inputs.genes)
    cohort = Cohort(*files, params.gene_key, device, subset=subset, obs=inputs.obs)
    dtype = max((store.dtype for store in cohort.stores), key=lambda dtype: dtype.itemsize)
    with replacing(snakemake.output.panel) as partial:
        writer = CountsWriter(partial, cohort.n_vars, dtype)
        for chunk in progress(cohort.chunks(), cohort.n_obs, "panel") if cohort.n_vars else []:
            writer.append(chunk.X)
        if not cohort.n_vars:
            writer.append(csr_matrix((cohort.n_obs, 0), dtype=np.int32))
        columns = ["gene_symbols", "gene_ids"]
        order = pd.Series(range(len(names)), names, name="order")
        var = cohort.genes[columns].join(order)  # `order`: the most important first
        obs = pd.DataFrame(index=read_index(inputs.obs).to_numpy())
        writer.close(obs, var, "cohort", read_mark(inputs.obs))
    stage.log.info("%d genes, %d non-zeros", cohort.n_vars, writer.nnz)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
