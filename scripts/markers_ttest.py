"""Find marker genes by Welch's t-test of each group of cells against the rest, in one pass over the counts.

Let m, v, n be the mean, the variance (divisor n - 1) and the number of cells of a gene's log-normalised values in the
group, and m', v', n' those in all other groups. Then t = (m - m') / sqrt(v/n + v'/n'), with
(v/n + v'/n')^2 / ((v/n)^2 / (n - 1) + (v'/n')^2 / (n' - 1)) degrees of freedom (Welch, 1947). The p-values are
two-sided, and adjusted within the group (Benjamini & Hochberg, 1995). Means and variances come from group x gene sums
of values and squares in float64, which shards may have computed (shard.py). Source:
scanpy.tl.rank_genes_groups(method="t-test").
"""

from lib.start import run

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lib.methods.markers import rank_genes, read_groups, write_markers
from lib.methods.scaling import log_normalize, target_of
from lib.report import markers as told_markers
from lib.report.parts import Finished, Methods, Part
from lib.run import device as devices
from lib.run.progress import progress, timed
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import Cohort, kept_genes
from lib.store.compressed import pool
from lib.store.csr import rows_of_nonzeros, sums_by_key
from lib.store.files import read_table
from lib.store.shards import Arrays, Known, Passes
from lib.store.stream import Stream, halving
from scipy.special import stdtr


@halving
def group_sums(
    counts: Stream, codes: np.ndarray, n_groups: int, totals: np.ndarray, target_sum: float
) -> tuple[np.ndarray, np.ndarray]:
    """The sums of each group's log-normalised values and of their squares: two arrays groups x genes, float64.

    Parameters
    ----------
    counts
        cells x genes.
    codes
        Per cell its group, -1: in none.
    n_groups
        Number of groups.
    totals, target_sum
        See `log_normalize`.
    """
    xp, device = counts.device.xp, counts.device
    sums, squares = xp.zeros((n_groups, counts.n_vars)), xp.zeros((n_groups, counts.n_vars))
    for chunk in progress(counts.chunks(), counts.n_obs, "group sums"):
        X = log_normalize(chunk.X, totals[chunk.rows], target_sum, device, np.float64)
        sums += group_column_sums(X, X.data, codes[chunk.rows], n_groups, device)
        squares += group_column_sums(X, X.data**2, codes[chunk.rows], n_groups, device)
    return device.to_host(sums), device.to_host(squares)


def group_column_sums(X: Any, values: Any, codes: np.ndarray, n_groups: int, device: devices.Device) -> Any:
    """Sums of `values`, one per non-zero of X, over the rows of each group: groups x genes, float64."""
    xp, n_vars = device.xp, X.shape[1]
    # Cells of no group are summed in an extra row
    starts = xp.asarray(np.where(codes >= 0, codes, n_groups).astype(np.int64) * n_vars)
    keys = starts[rows_of_nonzeros(X, device)] + X.indices
    return sums_by_key(keys, values, (n_groups + 1) * n_vars, device).reshape(-1, n_vars)[:n_groups]


def welch(sums: np.ndarray, squares: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """The test of each group against all others together.

    Parameters
    ----------
    sums, squares
        See `group_sums`.
    sizes
        Number of cells of each group; at least two groups of two.

    Returns
    -------
    `scores` (t), `logfoldchanges`, `pvals`, `pvals_adj`: each groups x genes, float64. A gene that does not vary in
    either set has score 0 and p-value 1, as in scanpy.
    """
    others = 1.0 - np.eye(len(sizes))
    n, n_rest = sizes[:, None], (others @ sizes)[:, None]
    mean, squared_error = mean_and_squared_error(sums, squares, n)
    mean_rest, squared_error_rest = mean_and_squared_error(others @ sums, others @ squares, n_rest)
    squared = squared_error + squared_error_rest
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (mean - mean_rest) / np.sqrt(squared)
        freedom = squared**2 / (squared_error**2 / (n - 1) + squared_error_rest**2 / (n_rest - 1))
    t = np.where(squared > 0, t, 0)
    freedom = np.where(squared > 0, freedom, 1)
    pvals = 2 * of_groups(stdtr, freedom, -np.abs(t))
    change = np.log2((np.expm1(mean) + 1e-9) / (np.expm1(mean_rest) + 1e-9))
    adjusted = of_groups(benjamini_hochberg, pvals)
    return {"scores": t, "logfoldchanges": change, "pvals": pvals, "pvals_adj": adjusted}


def of_groups(function: Callable[..., np.ndarray], *tables: np.ndarray) -> np.ndarray:
    """Apply the function to the rows of several groups at a time; groups x genes."""
    return np.array(list(pool().map(function, *tables))).reshape(tables[0].shape)


def mean_and_squared_error(sums: np.ndarray, squares: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means and the squared standard errors (variance / n) of `n` values, from their sums."""
    mean = sums / n
    variance = (squares - sums * mean) / (n - 1)
    # A variance below the rounding error is zero
    return mean, np.where(variance > 1e-14 * squares, variance, 0) / n


def benjamini_hochberg(pvals: np.ndarray) -> np.ndarray:
    """The p-values of a group, adjusted for their number."""
    falling = np.argsort(-pvals, kind="stable")
    bounds = pvals[falling] * (len(pvals) / np.arange(len(pvals), 0, -1))
    adjusted = np.empty_like(pvals)
    adjusted[falling] = np.minimum(np.minimum.accumulate(bounds), 1)
    return adjusted


@dataclass(frozen=True)
class Cells:
    """The input of the pass: the counts in the kept genes, and the cells' groups and totals.

    Attributes
    ----------
    counts, codes, n_groups, totals, target_sum
        See `group_sums`; for all cells, or for a shard.
    """

    counts: Stream
    codes: np.ndarray
    n_groups: int
    totals: np.ndarray
    target_sum: float


def sums_pass(cells: Cells, known: Known) -> Arrays:
    """The only pass."""
    sums, squares = group_sums(cells.counts, cells.codes, cells.n_groups, cells.totals, cells.target_sum)
    return {"sums": sums, "squares": squares}


def read(snakemake: Any, shard: str | None = None) -> Cells:
    """The cohort's counts and a grouping."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    groups = read_groups(params.grouping, files.obs, files.grouping)
    totals = read_table(files.obs, ["kept_counts"])["kept_counts"].to_numpy()
    counts = Cohort(files.counts, files.cells, files.genes, params.gene_key, device, shard=shard, obs=files.obs)
    rows, target_sum = counts.rows, target_of(totals, params.target_sum)
    return Cells(counts, groups.codes[rows], len(groups.names), totals[rows], target_sum)


PASSES = Passes({"sums": sums_pass}, read)


def needs(job: Job) -> Need:
    """Sums per group and gene, their statistics, and a table with a row for each."""
    sums = 48 * job.n_groups * job.n_vars
    if job.part:
        return replace(job.of_shard(needs, 0.3 * KB), disk=sums / 3)
    table = 120 * job.n_groups * job.n_vars
    memory = job.pass_memory(340 * MB, job.places + table + 0.8 * KB * job.n_kept)
    seconds = 10 + 0.2e-6 * job.nnz + 2e-5 * job.n_groups * job.n_vars
    need = Need(**memory, seconds=seconds, disk=40 * job.n_groups * job.n_vars, vram=job.claim(1200 * MB, sums))
    return job.reduced(need, 80 * MB + sums + table + 0.8 * KB * job.n_kept)


def tells(run: Finished) -> Iterator[Part]:
    """The tables of markers, and groups marked by ribosomal genes."""
    if not run.of("markers_ttest"):
        return
    yield from told_markers.told(run, "markers_ttest", "t-test", "t")
    yield Methods(
        "Marker genes were ranked by Welch's t-test of each group against all other cells, with p-values adjusted by "
        "Benjamini and Hochberg.",
        ["fdr"],
    )


def main(snakemake: Any) -> None:
    """Read the cohort's counts, or the results of shards, and a grouping; write the ranked genes of each group."""
    files, params = snakemake.input, snakemake.params
    groups = read_groups(params.grouping, files.obs, files.grouping)
    found = (PASSES.gathered(files.shards) or PASSES.over_all(read(snakemake)))["sums"]
    with timed("tests"):
        statistics = welch(found["sums"], found["squares"], groups.sizes)
        genes = kept_genes(files.genes)
        table = rank_genes(groups.names, statistics, genes.index.to_numpy(), genes["gene_symbols"].to_numpy())
    with timed("tables"):
        write_markers(table, snakemake.output, params.n_genes, params.grouping, "t-test")


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
