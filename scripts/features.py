"""Write the counts of kept cells x highly variable genes: the only second copy of counts, about a tenth of the first.

The same pass sums each cell's counts in all kept genes, by which scanpy.pp.normalize_total divides. Cells without any
leave the cohort here: `obs.parquet` names the cells of all later stages. With shards, each shard writes a part of the
features, which contains the table of its cells; the parts stay, and only the table of cells is joined. The table of a
group of `subclusters` is written before its features, and is an input here.
"""

from lib.start import run

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lib.methods.tolerances import Tolerance
from lib.run import device as devices
from lib.run import stage
from lib.run.progress import progress
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import Cohort, kept_cells
from lib.store.counts import Counts, CountsWriter
from lib.store.csr import row_sums, select_genes, select_rows
from lib.store.files import read_table, replacing, write_table
from lib.store.stream import Stream

# How far results may lie from those of a sample of cells (`trust_stages`)
TOLERANCES = {
    "totals": Tolerance(0, "sums of integers are exact"),
    "normalised values": Tolerance(1e-6, "float32"),
}


def write_features(counts: Stream, selected: np.ndarray, writer: CountsWriter) -> np.ndarray:
    """Stream the selected genes' counts into `writer`; return each cell's counts in all genes, int64.

    Cells without counts are left out.
    """
    device = counts.device
    columns = np.where(selected, np.cumsum(selected) - 1, -1).astype(np.int32)
    totals = []
    for chunk in progress(counts.chunks(), counts.n_obs, "features"):
        totals.append(device.to_host(row_sums(chunk.X, device)))
        X = select_rows(chunk.X, totals[-1] > 0, device)
        writer.append(select_genes(X, columns, int(selected.sum()), device))
    return np.concatenate(totals)


def write_store(cohort: Cohort, hvg: str | Path, path: str | Path) -> pd.DataFrame:
    """Write the features of the cohort's cells, or of a shard; return the table of these cells, with `kept_counts`."""
    selected = read_table(hvg, ["highly_variable"]).loc[cohort.genes.index, "highly_variable"].to_numpy()
    obs = cohort.obs()
    dtype = max((store.dtype for store in cohort.stores), key=lambda dtype: dtype.itemsize)
    with replacing(path) as partial:
        writer = CountsWriter(partial, int(selected.sum()), dtype)
        obs["kept_counts"] = write_features(cohort, selected, writer)
        empty = obs["kept_counts"] == 0
        if empty.any():
            lost = ", ".join(f"{name} {n}" for name, n in obs.loc[empty, "sample"].value_counts().items() if n)
            stage.notice("%d cells without counts in the kept genes are left out: %s", empty.sum(), lost)
            obs = obs[~empty]
        writer.close(obs, cohort.genes[selected], "cohort")
    stage.log.info("%d cells x %d genes, %d non-zeros", len(obs), selected.sum(), writer.nnz)
    return obs


def joined_obs(cells: Sequence[str | Path], parts: Sequence[str | Path]) -> pd.DataFrame:
    """The table of the cells in the shards' parts of the features."""
    stores = [Counts(part) for part in parts]
    obs = kept_cells(cells)
    if len(obs) > sum(store.n_obs for store in stores):  # cells that a part left out
        obs = obs.loc[np.concatenate([store.names("obs") for store in stores])]
    return obs.assign(kept_counts=np.concatenate([store.column("kept_counts") for store in stores]))


def needs(job: Job) -> Need:
    """The table of kept cells, held twice when it is joined; in a shard one sample's table may be that of all cells."""
    if job.part:
        return job.of_shard(needs, 1.0 * KB)
    memory = job.pass_memory(360 * MB, job.places + 1.5 * KB * job.n_kept, gpu_chunk=250 * MB)
    disk = 2.5 * job.features_nnz + 200 * job.n_kept
    need = Need(**memory, seconds=5 + 0.1e-6 * job.nnz, disk=disk, vram=job.claim(900 * MB))
    return job.reduced(need, 30 * MB + 1.6 * KB * job.n_kept)


def main(snakemake: Any) -> None:
    """Read the cohort's counts, write the features and the table of cells; with shards only one of the two per job."""
    files, output, shard = snakemake.input, snakemake.output, snakemake.wildcards.get("scatteritem")
    given = getattr(files, "obs", None)
    if files.parts:
        obs = joined_obs(files.cells, files.parts)
    else:
        device = devices.of(snakemake)
        gene_key = snakemake.params.gene_key
        cohort = Cohort(files.counts, files.cells, files.genes, gene_key, device, shard=shard, obs=given)
        obs = write_store(cohort, files.hvg, output.features)
    if shard is None and given is None:
        write_table(obs, output.obs, "cohort")


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
