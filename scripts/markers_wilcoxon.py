"""Find marker genes by Wilcoxon's rank-sum test of each group of cells against its reference, with ties corrected.

The log-normalised values of a gene in the n cells of the group and the m cells of its reference are ranked together,
equal values sharing their mean rank. With R the sum of the group's ranks and N = n + m,

    z = (R - n (N + 1) / 2) / sqrt(T n m (N + 1) / 12),    T = 1 - sum_ties (t^3 - t) / (N^3 - N).

The p-values are two-sided, of the normal approximation, and adjusted within the group (Benjamini & Hochberg, 1995).
Source: scanpy.tl.rank_genes_groups(method="wilcoxon", tie_correct=True, pts=True). A gene that is equal in all cells
has score 0 and p-value 1.

Zeros are one tie, so only a gene's non-zeros are sorted. The counts are read once for each block of genes, whose
non-zeros fit `BLOCK`. A non-zero is one integer of 64 bits: gene, value (float32, whose bits sort as its values) and
group. So one sort of integers orders a block. The values are computed in float64 and rounded: values that are equal in
exact arithmetic are equal here too.
"""

from lib.start import run

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lib.methods.markers import (
    Comparisons,
    GroupSums,
    benjamini_hochberg,
    descriptions,
    of_groups,
    rank_genes,
    read_groups,
    write_results,
)
from lib.methods.scaling import log_normalize, target_of
from lib.report import markers as told_markers
from lib.report.parts import Finished, Part
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.progress import progress, timed
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import Cohort
from lib.store.csr import counts_by_key, rows_of_nonzeros, sums_by_key
from lib.store.files import read_column, read_table
from lib.store.stream import Stream, halving
from scipy.special import ndtr

BLOCK = {"cpu": 60_000_000, "gpu": 240_000_000}  # non-zeros of a block of genes: 8 bytes each
PART = 8_000_000  # non-zeros that are ranked at once
MOST_GENES = (1 << 16) - 1  # of a block
MOST_GROUPS = (1 << 16) - 1


def blocks(n_cells: np.ndarray, most: int) -> Iterator[slice]:
    """Consecutive genes with at most `most` non-zeros together (one gene may have more); `n_cells` counts each gene's.

    A block has at most MOST_GENES genes.
    """
    ends, first = np.cumsum(n_cells), 0
    while first < len(n_cells):
        before = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, before + most, "right"))
        last = min(max(last, first + 1), first + MOST_GENES, len(n_cells))
        yield slice(first, last)
        first = last


@halving
def sorted_nonzeros(counts: Stream, codes: np.ndarray, totals: np.ndarray, target_sum: float, most: int) -> Any:
    """The non-zeros of the cells that are in a group, as sorted integers: gene << 48 | bits of the value << 16 | group.

    Parameters
    ----------
    counts
        cells x genes, at most MOST_GENES.
    codes
        Per cell its group, -1: in none.
    totals, target_sum
        See `log_normalize`.
    most
        No fewer than the non-zeros.

    Returns
    -------
    uint64, on the stream's device.
    """
    xp, device = counts.device.xp, counts.device
    keys, n = xp.empty(most, xp.uint64), 0
    for chunk in progress(counts.chunks(), counts.n_obs, "non-zeros"):
        X = log_normalize(chunk.X, totals[chunk.rows], target_sum, device, np.float64)
        of_cells = xp.asarray(codes[chunk.rows])[rows_of_nonzeros(X, device)]
        bits = X.data.astype(np.float32).view(np.uint32).astype(np.uint64) << np.uint64(16)
        found = X.indices.astype(np.uint64) << np.uint64(48) | bits | of_cells.astype(np.uint64)
        found = found[(of_cells >= 0) & (X.data > 0)]
        keys[n : n + len(found)] = found
        n += len(found)
    keys = keys[:n]
    keys.sort()
    return keys


def rank_sums(keys: Any, n_vars: int, sizes: np.ndarray, device: devices.Device) -> tuple[np.ndarray, np.ndarray]:
    """The sum of ranks of each group, and the correction for ties.

    Parameters
    ----------
    keys
        See `sorted_nonzeros`; genes from 0 to `n_vars` - 1. The groups of all keys are ranked together.
    sizes
        Number of cells of each group; 0 for groups that are not ranked.

    Returns
    -------
    sums
        groups x genes, float64, exact.
    ties
        Per gene T; 1 without ties.
    """
    xp, n_groups, n = device.xp, len(sizes), int(sizes.sum())
    genes = (keys >> np.uint64(48)).astype(np.int64)
    first_of_gene = xp.searchsorted(genes, xp.arange(n_vars + 1))
    nonzero = xp.diff(first_of_gene)
    zero = n - nonzero
    # Runs of equal values of a gene: their first and last places
    values = keys >> np.uint64(16)
    starts = xp.flatnonzero(xp.concatenate([xp.ones(min(1, len(keys)), bool), values[1:] != values[:-1]]))
    lengths = xp.diff(xp.concatenate([starts, xp.asarray([len(keys)])]))
    gene = genes[starts]
    twice = 2 * (zero[gene] + starts - first_of_gene[gene]) + lengths + 1  # their mean rank
    run = xp.zeros(len(keys), np.int64)
    run[starts[1:]] = 1
    twice = twice[xp.cumsum(run)]
    at = (keys & np.uint64(0xFFFF)).astype(np.int64) * n_vars + genes
    shape = n_groups, n_vars
    sums = sums_by_key(at, twice.astype(np.float64), n_groups * n_vars, device).reshape(shape) / 2
    cells = counts_by_key(at, n_groups * n_vars, device).reshape(shape)
    sums += (xp.asarray(sizes)[:, None] - cells) * ((zero + 1) / 2)
    cubes = sums_by_key(gene, lengths.astype(np.float64) ** 3 - lengths, n_vars, device)
    zeros = zero.astype(np.float64)
    ties = 1 - (cubes + zeros**3 - zeros) / max(1.0, float(n) ** 3 - n)
    return device.to_host(sums), device.to_host(ties)


def z_scores(sums: np.ndarray, ties: np.ndarray, n: np.ndarray, m: np.ndarray) -> np.ndarray:
    """z of rank sums, comparisons x genes, of n cells against m; 0 for genes that are equal in all cells."""
    n, m = n[:, None].astype(np.float64), m[:, None].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (sums - n * (n + m + 1) / 2) / np.sqrt(ties * n * m * (n + m + 1) / 12)
    return np.where(ties > 1e-15, z, 0)


@dataclass(frozen=True)
class Tests:
    """The results of a block of genes: `z`, comparisons x genes; `sums` over the groups."""

    z: np.ndarray
    sums: GroupSums


def tests_of_block(keys: Any, n_vars: int, sizes: np.ndarray, compared: Comparisons, device: devices.Device) -> Tests:
    """The z-scores of each comparison, and the sums of each group, part by part.

    Parameters
    ----------
    keys
        See `sorted_nonzeros`.
    n_vars
        Genes of the block.
    sizes
        Number of cells of each group.
    compared
        The comparisons.
    """
    xp, found = device.xp, []
    ends = device.to_host(xp.searchsorted(keys, xp.arange(1, n_vars + 1, dtype=np.uint64) << np.uint64(48)))
    for genes in blocks(np.diff(ends, prepend=0), PART):
        first, last = (int(ends[i - 1]) if i else 0 for i in (genes.start, genes.stop))
        part = keys[first:last] - (np.uint64(genes.start) << np.uint64(48))
        found.append(tests_of_part(part, genes.stop - genes.start, sizes, compared, device))
    return joined(found)


def joined(found: Sequence[Tests]) -> Tests:
    """The results of several blocks of genes."""
    sums = (np.concatenate([getattr(tests.sums, name) for tests in found], 1) for name in ("sums", "squares", "cells"))
    return Tests(np.concatenate([tests.z for tests in found], 1), GroupSums(*sums))


def tests_of_part(keys: Any, n_vars: int, sizes: np.ndarray, compared: Comparisons, device: devices.Device) -> Tests:
    """As `tests_of_block`, for keys of few enough genes."""
    xp, n_groups = device.xp, len(sizes)
    codes = (keys & np.uint64(0xFFFF)).astype(np.int64)
    at = codes * n_vars + (keys >> np.uint64(48)).astype(np.int64)
    values = (keys >> np.uint64(16)).astype(np.uint32).view(np.float32).astype(np.float64)
    shape = n_groups, n_vars
    sums = device.to_host(sums_by_key(at, values, n_groups * n_vars, device).reshape(shape))
    cells = device.to_host(counts_by_key(at, n_groups * n_vars, device).reshape(shape))
    z = np.empty((len(compared.names), n_vars))
    together = compared.members + compared.references
    for cells_of in np.unique(together, axis=0):  # groups that are ranked together: once for all comparisons with rest
        mine = np.flatnonzero((together == cells_of).all(1))
        some = sizes * cells_of.astype(np.int64)
        ranked = keys if cells_of.all() else keys[xp.asarray(cells_of > 0)[codes]]
        ranks, ties = rank_sums(ranked, n_vars, some, device)
        members = compared.members[mine]
        z[mine] = z_scores(members @ ranks, ties, members @ some, compared.references[mine] @ some)
    return Tests(z, GroupSums(sums, np.zeros_like(sums), cells))


def wilcoxon(tests: Tests, sizes: np.ndarray, compared: Comparisons) -> dict[str, np.ndarray]:
    """`scores` (z), `pvals`, `pvals_adj`, and `descriptions`: each comparisons x genes, float64."""
    pvals = 2 * of_groups(ndtr, -np.abs(tests.z))
    found = {"scores": tests.z, "pvals": pvals, "pvals_adj": of_groups(benjamini_hochberg, pvals)}
    return found | descriptions(tests.sums, sizes, compared)


def needs(job: Job) -> Need:
    """The sorted non-zeros of a block of genes, the arrays of a part, the sums of groups and genes, and their table."""
    sums, table = 64 * job.n_groups * job.n_vars, 150 * job.n_groups * job.n_vars
    block, part = min(job.nnz, BLOCK["cpu"]), min(job.nnz, PART)
    tables = job.places + sums + table + 0.8 * KB * job.n_kept
    memory = job.pass_memory(340 * MB, tables)
    reads = 1 + job.nnz // BLOCK[job.device]
    return Need(
        mem=memory["mem"] + 8 * block + 90 * part,
        gpu_mem=memory["gpu_mem"],
        seconds=10 + (0.2e-6 * reads + 0.3e-6) * job.nnz + 2e-5 * job.n_groups * job.n_vars,
        disk=50 * job.n_groups * job.n_vars,
        vram=job.claim(1300 * MB, sums + 17 * min(job.nnz, BLOCK["gpu"]) + 120 * part),
    )


def tells(run: Finished) -> Iterator[Part]:
    """The tables of the first markers, and what they are."""
    yield from told_markers.told(run, "markers_wilcoxon", "wilcoxon", "z")
    yield told_markers.of_test(run, "Wilcoxon's rank-sum test with ties corrected")


def main(snakemake: Any) -> None:
    """Read the cohort's counts, block by block of genes, and a grouping; write the ranked genes of each group."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    groups = read_groups(params.grouping, files.obs, files.grouping)
    if len(groups.names) > MOST_GROUPS:
        raise UserError(f"{params.grouping} has {len(groups.names)} groups; wilcoxon takes {MOST_GROUPS} at most")
    compared = Comparisons.of(groups.names, params.grouping, params.reference)
    totals = read_column(files.obs, "kept_counts")
    target_sum = target_of(totals, params.target_sum)
    genes = read_table(files.genes)
    genes = genes[genes["kept"]]
    n_cells, found = genes["n_cells_by_counts"].to_numpy(), []
    for some in blocks(n_cells, BLOCK[device.name]) if groups.names else []:
        subset = np.zeros(len(genes), bool)
        subset[some] = True
        counts = Cohort(files.counts, files.cells, files.genes, params.gene_key, device, subset, obs=files.obs)
        keys = sorted_nonzeros(counts, groups.codes, totals, target_sum, int(n_cells[some].sum()))
        stage.log.info("genes %d to %d: %.0f million non-zeros", some.start + 1, some.stop, len(keys) / 1e6)
        with timed("tests"):
            found.append(tests_of_block(keys, counts.n_vars, groups.sizes, compared, device))
    shape = len(compared.names), len(genes)
    tests = joined(found) if found else Tests(np.empty(shape), GroupSums(*np.empty((3, *shape))))
    with timed("tables"):
        statistics = wilcoxon(tests, groups.sizes, compared)
        table = rank_genes(compared.names, statistics, genes.index.to_numpy(), genes["gene_symbols"].to_numpy())
        write_results(table, snakemake, "wilcoxon", genes)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
