"""Compute quality metrics per cell and per gene, in one pass over a sample's counts.

For cell i with counts x_ij: total_counts = sum_j x_ij, n_genes_by_counts = |{j: x_ij > 0}|, for each gene family F
pct_counts_F = 100 * sum_{j in F} x_ij / total_counts, and pct_counts_in_top_N_genes = 100 * (sum of the N largest
x_ij) / total_counts. Source: scanpy.pp.calculate_qc_metrics; the sums are exact integers.
"""

from lib.start import run

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from lib.inputs.genelists import GeneNames, gene_families
from lib.methods.tolerances import Tolerance
from lib.run import device as devices
from lib.run import stage
from lib.run.progress import progress
from lib.run.resources import KB, MB, Job, Need
from lib.store.counts import Counts
from lib.store.csr import column_counts, column_sums, row_sums, rows_of_nonzeros
from lib.store.files import write_table
from lib.store.stream import Stream, halving

# How far results may lie from those of a sample of cells (`trust_stages`)
TOLERANCES = {
    "metrics": Tolerance(1e-9, "sums are exact integers, a percentage is one division"),
}


def cell_metrics(
    X: Any, families: dict[str, Any], percent_top: Sequence[int], device: devices.Device
) -> dict[str, Any]:
    """The metrics of a chunk's cells.

    Parameters
    ----------
    X
        cells x genes, CSR counts.
    families
        Gene family -> boolean mask over the genes.
    percent_top
        The N of pct_counts_in_top_N_genes.

    Returns
    -------
    Arrays with one value per cell: integers for sums, float64 for percentages (NaN for a cell without counts).
    """
    xp = device.xp
    total = row_sums(X, device)
    metrics = {"total_counts": total, "n_genes_by_counts": X.indptr[1:] - X.indptr[:-1]}
    whole = xp.where(total > 0, total, np.nan)
    for top, largest in zip(percent_top, sums_of_largest(X, percent_top, device), strict=True):
        metrics[f"pct_counts_in_top_{top}_genes"] = 100 * largest / whole
    for name, mask in families.items():
        in_family = xp.asarray(mask).astype(X.data.dtype)[X.indices] * X.data
        metrics[f"total_counts_{name}"] = row_sums(X, device, in_family)
        metrics[f"pct_counts_{name}"] = 100 * metrics[f"total_counts_{name}"] / whole
    return metrics


def sums_of_largest(X: Any, tops: Sequence[int], device: devices.Device) -> list[Any]:
    """For each N of `tops` the sum of each row's N largest counts (of all, if the row has fewer), int64."""
    xp = device.xp
    starts, ends = X.indptr[:-1].astype(np.int64), X.indptr[1:].astype(np.int64)
    if not X.nnz:
        return [xp.zeros(X.shape[0], np.int64) for _ in tops]
    # One sort for all rows, by row, then by falling count; if 32 bits suffice, it is more than twice as fast
    largest = int(X.data.max())
    dtype = np.uint32 if X.shape[0] * (largest + 1) < 1 << 32 else np.int64
    keys = rows_of_nonzeros(X, device).astype(dtype) * dtype(largest + 1) + (largest - X.data).astype(dtype)
    keys.sort()
    falling = dtype(largest) - keys % dtype(largest + 1)
    running = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(falling, dtype=np.int64)])
    return [running[xp.minimum(starts + top, ends)] - running[starts] for top in tops]


def gene_metrics(totals: np.ndarray, n_cells: np.ndarray, n_obs: int) -> pd.DataFrame:
    """scanpy's metrics per gene, from each gene's total count and number of cells, among `n_obs` cells."""
    means = totals / n_obs
    return pd.DataFrame(
        {
            "n_cells_by_counts": n_cells,
            "mean_counts": means,
            "log1p_mean_counts": np.log1p(means),
            "pct_dropout_by_counts": 100 * (1 - n_cells / n_obs),
            "total_counts": totals,
            "log1p_total_counts": np.log1p(totals),
        }
    )


@halving
def qc_metrics(
    counts: Stream, families: dict[str, np.ndarray], percent_top: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics per cell and per gene, with scanpy's column names, in one pass.

    Parameters
    ----------
    counts
        cells x genes.
    families
        Gene family -> boolean mask over the genes.
    percent_top
        The N of pct_counts_in_top_N_genes.
    """
    xp, device = counts.device.xp, counts.device
    per_cell: list[np.ndarray] = []
    totals, n_cells = xp.zeros(counts.n_vars, np.int64), xp.zeros(counts.n_vars, np.int64)
    for chunk in progress(counts.chunks(), counts.n_obs, "metrics"):
        metrics = cell_metrics(chunk.X, families, percent_top, device)
        # Together, as jobs that share a card wait for each other at every copy; integers below 2^53 stay exact
        per_cell.append(device.to_host(xp.stack([values.astype(np.float64) for values in metrics.values()])))
        totals += column_sums(chunk.X, chunk.X.data, device).astype(np.int64)
        n_cells += column_counts(chunk.X, device)
    rows = zip(metrics.items(), np.concatenate(per_cell, axis=1), strict=True)
    obs = pd.DataFrame({name: row.astype(of_chunk.dtype) for (name, of_chunk), row in rows})
    for name in [name for name in obs if name.startswith(("total_counts", "n_genes"))]:
        obs.insert(obs.columns.get_loc(name) + 1, f"log1p_{name}", np.log1p(obs[name]))
    return obs, gene_metrics(device.to_host(totals), device.to_host(n_cells), counts.n_obs)


def needs(job: Job) -> Need:
    """The sorted counts of the cells of one chunk; a row of metrics per cell."""
    memory = job.pass_memory(320 * MB, 1.2 * KB * job.n_obs, gpu_chunk=220 * MB)
    disk = 100 * job.n_obs + 40 * job.n_vars
    return Need(**memory, seconds=5 + 0.2e-6 * job.nnz, disk=disk, vram=job.claim(800 * MB))


def main(snakemake: Any) -> None:
    """Read a sample's counts, write `qc.parquet` and `qc_genes.parquet`."""
    counts = Counts(snakemake.input.counts, devices.of(snakemake))
    families = gene_families(snakemake.params.gene_families, GeneNames.of(counts))
    tops = [top for top in snakemake.params.percent_top if top <= counts.n_vars]
    obs, var = qc_metrics(counts, families, tops)
    obs.index = pd.Index(counts.names("obs"))
    var.index = pd.Index(counts.names("var"))
    for name, mask in families.items():
        var[name] = mask
    stage.log.info("%d cells, %d genes, %d counts", counts.n_obs, counts.n_vars, var["total_counts"].sum())
    stage.log.info("medians per cell: %s", obs.median().round(2).to_dict())
    write_table(obs, snakemake.output.cells, "sample")
    write_table(var, snakemake.output.genes)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
