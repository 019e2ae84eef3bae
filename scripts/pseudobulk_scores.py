"""Score gene sets in each pseudobulk, on its log-normalised counts, by the methods that score cells.

The methods and their sources are in `lib.methods.enrichment`. p-values are adjusted over the sets of a profile.
"""

from lib.start import run

from typing import Any

import numpy as np
import pandas as pd
from lib.inputs.genesets import n_sets, read_collections
from lib.methods import enrichment
from lib.methods.pseudobulk import Pseudobulk
from lib.methods.scaling import target_of
from lib.run import device as devices
from lib.run.progress import timed
from lib.run.resources import MB, PYTHON, Job, Need
from lib.store.files import write_tsv
from lib.store.stream import InMemory


def scored(bulk: Pseudobulk, params: Any) -> pd.DataFrame:
    """A line for each profile, method and set: `score`, and `padj` for methods with a test."""
    counts = bulk.counts(np.ones(len(bulk.obs), bool))
    stream, totals = InMemory(counts.astype(np.float64), devices.cpu(), 100), counts.sum(1).astype(np.float64)
    target_sum, found = target_of(totals, params.target_sum), []
    given = read_collections(params.gene_sets)
    tasks = enrichment.tasks_of(given, bulk.var, stream, totals, target_sum, params.scores, params.seed)
    for task, (scores, padj) in zip(tasks, enrichment.score_cells(stream, totals, target_sum, tasks), strict=True):
        n = len(task.weights.names)
        table = bulk.obs[["sample", "group", "n_cells"]].loc[bulk.obs.index.repeat(n)]
        table = table.assign(collection=task.collection, method=task.method, source=task.weights.names * len(bulk.obs))
        found.append(table.assign(score=scores.ravel(), padj=np.nan if padj is None else padj.ravel()))
    return pd.concat(found)


def needs(job: Job) -> Need:
    """The profiles, dense, and a line for each of them, method and set."""
    profiles = max(job.n_samples, job.n_batches) * job.n_groups
    values = profiles * n_sets(job.config["gene_sets"]) * len(job.config["scores"]["methods"])
    mem = PYTHON + 150 * MB + 24 * profiles * job.n_vars + 250 * values
    return Need(mem, 20 + 1e-6 * profiles * job.n_vars + 1e-5 * values, MB + 80 * values)


def main(snakemake: Any) -> None:
    """Read the pseudobulks of a grouping and the gene sets; write their scores."""
    files, params = snakemake.input, snakemake.params
    bulk = Pseudobulk.open(files.pseudobulk)
    with timed("scores"):
        table = scored(bulk, params)
    write_tsv(table, snakemake.output.scores)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
