"""Find marker genes by Welch's t-test of each group of cells against its reference, in one pass over the counts.

Let m, v, n be the mean, the variance (divisor n - 1) and the number of cells of a gene's log-normalised values in the
group, and m', v', n' those in the reference, by default all other groups. Then t = (m - m') / sqrt(v/n + v'/n'), with
(v/n + v'/n')^2 / ((v/n)^2 / (n - 1) + (v'/n')^2 / (n' - 1)) degrees of freedom (Welch, 1947). The p-values are
two-sided, and adjusted within the group (Benjamini & Hochberg, 1995). Means and variances come from group x gene sums
of values and squares in float64, which shards may have computed (shard.py). Source:
scanpy.tl.rank_genes_groups(method="t-test").
"""

from lib.start import run

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lib.methods.markers import (
    Comparisons,
    GroupSums,
    benjamini_hochberg,
    descriptions,
    group_sums,
    of_groups,
    rank_genes,
    read_groups,
    write_results,
)
from lib.methods.scaling import target_of
from lib.methods.tolerances import Tolerance
from lib.report import markers as told_markers
from lib.report.parts import Finished, Part
from lib.run import device as devices
from lib.run.progress import timed
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import Cohort, kept_genes
from lib.store.files import read_column
from lib.store.shards import Arrays, Known, Passes
from lib.store.stream import Stream
from scipy.special import stdtr

# How far results may lie from those of a sample of cells (`trust_stages`)
TOLERANCES = {
    "markers": Tolerance(0.5, "a sample ranks genes of like scores otherwise", True),
}


def welch(found: GroupSums, sizes: np.ndarray, compared: Comparisons) -> dict[str, np.ndarray]:
    """The test of each comparison.

    Parameters
    ----------
    found
        See `group_sums`.
    sizes
        Number of cells of each group; at least two groups of two.
    compared
        The comparisons.

    Returns
    -------
    `scores` (t), `pvals`, `pvals_adj`, and `descriptions`: each comparisons x genes, float64. A gene that does not vary
    in either set has score 0 and p-value 1, as in scanpy.
    """
    n, n_rest = ((groups @ sizes)[:, None] for groups in (compared.members, compared.references))
    mean, squared_error = mean_and_squared_error(found.of(compared.members), n)
    mean_rest, squared_error_rest = mean_and_squared_error(found.of(compared.references), n_rest)
    squared = squared_error + squared_error_rest
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (mean - mean_rest) / np.sqrt(squared)
        freedom = squared**2 / (squared_error**2 / (n - 1) + squared_error_rest**2 / (n_rest - 1))
    t = np.where(squared > 0, t, 0)
    freedom = np.where(squared > 0, freedom, 1)
    pvals = 2 * of_groups(stdtr, freedom, -np.abs(t))
    tests = {"scores": t, "pvals": pvals, "pvals_adj": of_groups(benjamini_hochberg, pvals)}
    return tests | descriptions(found, sizes, compared)


def mean_and_squared_error(found: GroupSums, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means and the squared standard errors (variance / n) of `n` values, from their sums."""
    mean = found.sums / n
    variance = (found.squares - found.sums * mean) / (n - 1)
    # A variance below the rounding error is zero
    return mean, np.where(variance > 1e-14 * found.squares, variance, 0) / n


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
    return vars(group_sums(cells.counts, cells.codes, cells.n_groups, cells.totals, cells.target_sum))


def read(snakemake: Any, shard: str | None = None) -> Cells:
    """The cohort's counts and a grouping."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    groups = read_groups(params.grouping, files.obs, files.grouping)
    totals = read_column(files.obs, "kept_counts")
    counts = Cohort(files.counts, files.cells, files.genes, params.gene_key, device, shard=shard, obs=files.obs)
    rows, target_sum = counts.rows, target_of(totals, params.target_sum)
    return Cells(counts, groups.codes[rows], len(groups.names), totals[rows], target_sum)


PASSES = Passes({"sums": sums_pass}, read)


def needs(job: Job) -> Need:
    """Sums per group and gene, their statistics, and a table with a row for each."""
    sums = 64 * job.n_groups * job.n_vars
    if job.part:
        return replace(job.of_shard(needs, 0.3 * KB), disk=sums / 2)
    table = 150 * job.n_groups * job.n_vars
    memory = job.pass_memory(370 * MB, job.places + table + 0.8 * KB * job.n_kept, gpu_chunk=40 * MB)
    seconds = 10 + 0.1e-6 * job.nnz + 1.5e-5 * job.n_groups * job.n_vars
    need = Need(**memory, seconds=seconds, disk=50 * job.n_groups * job.n_vars, vram=job.claim(1000 * MB, sums))
    return job.reduced(need, 80 * MB + sums + table + 0.8 * KB * job.n_kept)


def tells(run: Finished) -> Iterator[Part]:
    """The tables of markers, and groups marked by ribosomal genes."""
    yield from told_markers.told(run, "markers_ttest", "t-test", "t")
    yield told_markers.of_test(run, "Welch's t-test")


def main(snakemake: Any) -> None:
    """Read the cohort's counts, or the results of shards, and a grouping; write the ranked genes of each group."""
    files, params = snakemake.input, snakemake.params
    groups = read_groups(params.grouping, files.obs, files.grouping)
    compared = Comparisons.of(groups.names, params.grouping, params.reference)
    found = (PASSES.gathered(files.shards) or PASSES.over_all(read(snakemake)))["sums"]
    with timed("tests"):
        statistics = welch(GroupSums(**found), groups.sizes, compared)
        genes = kept_genes(files.genes)
        table = rank_genes(compared.names, statistics, genes.index.to_numpy(), genes["gene_symbols"].to_numpy())
    with timed("tables"):
        write_results(table, snakemake, "t-test", genes)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
