"""The kept cells x the highly variable genes: the only second copy of counts, about a tenth of the first.

In the same pass each cell's counts in all kept genes are summed: what scanpy.pp.normalize_total divides by.
"""

from typing import Any

import numpy as np
from lib import device as devices
from lib import stage
from lib.cohort import Cohort
from lib.counts import CountsWriter, Stream, row_sums, select_genes
from lib.files import read_table, replacing, write_table


def write_features(counts: Stream, selected: np.ndarray, writer: CountsWriter) -> np.ndarray:
    """Stream the selected genes' counts into `writer`; returns each cell's counts in all genes, int64."""
    device = counts.device
    columns = np.where(selected, np.cumsum(selected) - 1, -1).astype(np.int32)
    totals = []
    for chunk in stage.progress(counts.chunks(), counts.n_obs, "features"):
        totals.append(device.to_host(row_sums(chunk.X, device)))
        writer.append(select_genes(chunk.X, columns, int(selected.sum()), device))
    return np.concatenate(totals)


def main(snakemake: Any) -> None:
    """Read the cohort's counts, write `features.h5ad` and `obs.parquet`."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    cohort = Cohort(files.counts, files.cells, files.genes, params.gene_key, device)
    selected = read_table(files.hvg, ["highly_variable"]).loc[cohort.genes.index, "highly_variable"].to_numpy()
    obs = cohort.obs()
    dtype = max((sample.dtype for sample in cohort.samples), key=lambda dtype: dtype.itemsize)
    with replacing(snakemake.output.features) as partial:
        writer = CountsWriter(partial, int(selected.sum()), dtype)
        obs["kept_counts"] = write_features(cohort, selected, writer)
        writer.close(obs, cohort.genes[selected])
    write_table(obs, snakemake.output.obs)
    stage.log.info("%d cells x %d genes, %d non-zeros", cohort.n_obs, selected.sum(), writer.nnz)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
