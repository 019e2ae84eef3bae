"""Write the counts of the marker genes that the figures and the explorer show, in one pass over the counts.

The genes: of each table of markers those of its dot plot, then further ones by rank, those of all tables in turn.
"""

from lib.start import run

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from lib.methods.markers import chosen_genes, read_top
from lib.run import stage
from lib.run.progress import Pace
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import Cohort, kept_genes
from lib.store.counts import Counts, CountsWriter, Stores
from lib.store.files import read_table, replacing
from scipy.sparse import csr_matrix, vstack

PART = 10_000  # cells that one thread processes, CELLS at a time
CELLS = 2000
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


def parts_of(counts: Stores) -> Iterator[tuple[Counts, np.ndarray]]:
    """At most PART cells at a time: the store, and their rows in it."""
    for store in counts.stores:
        kept = np.flatnonzero(store.cells)
        for first in range(0, len(kept), PART):
            yield store, kept[first : first + PART]


def read_part(store: Counts, rows: np.ndarray) -> csr_matrix:
    """The counts of some rows of a store."""
    part = copy(store)
    part.cells, part.n_obs = np.zeros(len(store.cells), bool), len(rows)
    part.cells[rows] = True
    return vstack([chunk.X for chunk in part.chunks(CELLS)], format="csr")


def read_parts(counts: Stores, threads: int) -> Iterator[csr_matrix]:
    """The counts of all cells in order, in parts; each thread reads one, and few wait."""
    parts = parts_of(counts)
    pace = Pace("panel", counts.n_obs)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(read_part, *part) for part in islice(parts, 2 * threads))
        while waiting:
            X = waiting.popleft().result()
            waiting.extend(pool.submit(read_part, *part) for part in islice(parts, 1))
            yield X
            pace.step(X.shape[0])
    pace.end()


def needs(job: Job) -> Need:
    """Chunks of the counts for each thread, of which a panel's share is kept."""
    chunk = 20 * CELLS * job.nnz / max(1, job.n_obs)
    nnz = job.nnz * min(1, 2.5 * GENES / max(1, job.n_vars))
    mem = job.process + 70 * MB + chunk * job.threads + job.places + 0.3 * KB * job.n_kept + 8 * min(nnz, 40e6)
    return Need(mem, 10 + 0.1e-6 * job.nnz, 4 * nnz + 60 * job.n_kept)


def main(snakemake: Any) -> None:
    """Read the tables of top markers and the cohort's counts, write `panel.h5ad`."""
    inputs, params = snakemake.input, snakemake.params
    genes = kept_genes(inputs.genes)
    names = panel_genes([read_top(path) for path in inputs.tops], params.n_genes)
    subset = genes.index.isin(names)
    cohort = Cohort(inputs.counts, inputs.cells, inputs.genes, params.gene_key, subset=subset, obs=inputs.obs)
    dtype = max((store.dtype for store in cohort.stores), key=lambda dtype: dtype.itemsize)
    with replacing(snakemake.output.panel) as partial:
        writer = CountsWriter(partial, cohort.n_vars, dtype)
        for X in read_parts(cohort, snakemake.threads) if cohort.n_vars else []:
            writer.append(X)
        if not cohort.n_vars:
            writer.append(csr_matrix((cohort.n_obs, 0), dtype=np.int32))
        columns = ["gene_symbols", "gene_ids"]
        order = pd.Series(range(len(names)), names, name="order")
        var = cohort.genes[columns].join(order)  # `order`: the most important first
        writer.close(read_table(inputs.obs, columns=[]), var, "cohort")
    stage.log.info("%d genes, %d non-zeros", cohort.n_vars, writer.nnz)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
