"""Flavours seurat and cell_ranger: the dispersion of the normalised counts among genes of similar mean.

Satija et al. 2015, Zheng et al. 2017; scanpy.pp.highly_variable_genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lib.methods.hvg.shared import (
    Batches,
    Cells,
    Nonzeros,
    Pass,
    Tallied,
    accumulate,
    differing,
    mean_and_variance,
    some_ranked,
    sorted_genes,
)
from lib.methods.scaling import target_of
from lib.run import device as devices
from lib.run.progress import progress
from lib.store.shards import Arrays
from lib.store.stream import Stream

MAD_OF_NORMAL = 0.6744897501960817  # the median absolute deviation of a standard normal distribution


def passes(target_sum: float | None) -> Sequence[Pass]:
    """See `Flavor`. Without a target the cells' totals come first, of which it is the median."""
    return (totals_pass, normalized_pass) if target_sum is None else (normalized_pass,)


def totals_pass(cells: Cells, known: Sequence[Arrays]) -> Arrays:
    """`totals`: the counts of each cell."""
    return {"totals": cell_totals(cells.counts)}


def normalized_pass(cells: Cells, known: Sequence[Arrays]) -> Arrays:
    """`sums` of `normalized_sums`."""
    target_sum = target_of(known[0]["totals"], None) if cells.target_sum is None else cells.target_sum
    log1p = cells.hvg["flavor"] == "cell_ranger"
    return {"sums": normalized_sums(cells.counts, cells.batches, target_sum, log1p)}


def statistics(
    known: Sequence[Arrays],
    batches: Batches,
    hvg: Mapping[str, Any],
    eligible: np.ndarray,
    device: devices.Device,
    seed: int,
) -> Arrays:
    """See `Flavor`."""
    sums = known[-1]["sums"]
    found = batch_dispersions(sums, batches, hvg, eligible, differing(sums, batches, eligible))
    ranked = some_ranked(np.isin(np.arange(len(batches.names)), list(found)))
    return {"ranked": ranked, "of_batches": list(found.values())}


def order(statistics: Arrays, hvg: Mapping[str, Any], eligible: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """See `Flavor`."""
    of_batches = statistics["of_batches"]
    table = pd.concat(of_batches).groupby(level=0).mean()
    n_batches = sum(rows["variable"] for rows in of_batches).to_numpy().astype(np.int64)
    table = table.drop(columns="variable")
    table["highly_variable_nbatches"] = n_batches
    table["highly_variable_intersection"] = n_batches == len(of_batches)
    norm = table["dispersions_norm"].to_numpy()
    genes = sorted_genes((-norm, -n_batches), eligible)
    if hvg["n_top_genes"] is None:
        genes = genes[_within_cutoffs(table["means"].to_numpy(), norm, hvg)[genes]]
    return table, genes


def cell_totals(counts: Stream) -> np.ndarray:
    """Counts of each cell, int64."""
    tallied = Tallied(counts)
    for _ in progress(tallied.chunks(), counts.n_obs, "totals"):
        pass
    return counts.device.to_host(tallied.totals)


def batch_dispersions(
    sums: np.ndarray, batches: Batches, hvg: Mapping[str, Any], eligible: np.ndarray, differs: np.ndarray
) -> dict[int, pd.DataFrame]:
    """The genes' statistics in each batch that can rank them, by its code.

    Genes without counts in the batch have zeros in all columns and are not binned, as in scanpy.

    Parameters
    ----------
    sums
        Of `normalized_sums`.
    differs
        The batches in which cells differ.
    """
    n_vars, of_batches = sums.shape[2], {}
    for code in np.flatnonzero(differs):
        present = sums[0, code] > 0 if hvg["per_batch"] else np.ones(n_vars, bool)
        mean, variance = mean_and_variance(sums[:, code, present], batches.sizes[code])
        found = normalized_dispersions(mean, variance, hvg["flavor"], hvg.get("n_bins"))
        if not np.isfinite(found["dispersions_norm"][eligible[present]]).any():
            continue
        found["variable"] = _variable(found, eligible[present], hvg)
        rows = pd.DataFrame(0.0, index=range(n_vars), columns=list(found))
        rows.loc[present] = np.column_stack(list(found.values()))
        of_batches[int(code)] = rows
    return of_batches


def normalized_sums(counts: Stream, batches: Batches, target_sum: float, log1p: bool) -> np.ndarray:
    """Sums of the counts normalised to `target_sum` a cell, and of their squares: 2 x batches x genes, float64.

    Parameters
    ----------
    log1p
        Sum log(1 + normalised count) instead.
    """
    xp = counts.device.xp
    tallied = Tallied(counts)

    def values(nonzeros: Nonzeros) -> tuple[Any, Any]:
        normalized = nonzeros.x * (target_sum / tallied.totals[nonzeros.cell])
        normalized = xp.log1p(normalized) if log1p else normalized
        return nonzeros.key, (normalized, normalized * normalized)

    return accumulate(tallied, batches, values, "normalised sums")


def normalized_dispersions(
    mean: np.ndarray, variance: np.ndarray, flavor: str, n_bins: int | None
) -> dict[str, np.ndarray]:
    """Dispersion of each gene, as it is and standardised among genes of similar mean.

    The dispersion is variance / mean. seurat takes log(dispersion) and log(1 + mean), cuts the means into `n_bins` of
    equal width, and standardises by the bin's mean and standard deviation; a bin's only gene gets 1. cell_ranger cuts
    at the means' percentiles 10, 15 ... 100 and standardises by the bin's median and median absolute deviation.

    Parameters
    ----------
    mean, variance
        Of each gene's normalised values (cell_ranger: their logarithms).
    n_bins
        Of seurat; cell_ranger does not read it.

    Returns
    -------
    `means`, `dispersions`, `dispersions_norm`; NaN where seurat's dispersion is zero.
    """
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    if flavor == "seurat":
        with np.errstate(divide="ignore", invalid="ignore"):
            dispersion = np.where(dispersion > 0, np.log(dispersion), np.nan)
        mean = np.log1p(mean)
        bins = pd.cut(mean, n_bins, labels=False)
        grouped = pd.Series(dispersion).groupby(bins)
        centre, spread = grouped.transform("mean"), grouped.transform("std")
        alone = spread.isna()
        spread, centre = spread.where(~alone, centre), centre.where(~alone, 0)
    else:
        edges = np.unique(np.percentile(mean, np.arange(10, 105, 5)))
        bins = np.searchsorted(edges, mean)
        centre = pd.Series(dispersion).groupby(bins).transform("median")
        spread = (dispersion - centre).abs().groupby(bins).transform("median") / MAD_OF_NORMAL
    norm = (dispersion - centre) / spread
    return {"means": mean, "dispersions": dispersion, "dispersions_norm": norm.to_numpy()}


def _variable(found: Mapping[str, np.ndarray], eligible: np.ndarray, hvg: Mapping[str, Any]) -> np.ndarray:
    """Which genes count as highly variable in one batch: scanpy takes all that tie with the last."""
    norm = np.where(eligible, found["dispersions_norm"], np.nan)
    if hvg["n_top_genes"] is None:
        return eligible & _within_cutoffs(found["means"], norm, hvg)
    falling = -np.sort(-norm[~np.isnan(norm)])
    return np.nan_to_num(norm, nan=-np.inf) >= falling[: hvg["n_top_genes"]][-1]


def _within_cutoffs(means: np.ndarray, norm: np.ndarray, hvg: Mapping[str, Any]) -> np.ndarray:
    norm = np.nan_to_num(norm, posinf=np.finfo(np.float64).max)
    max_mean, max_disp = (np.inf if hvg[name] is None else hvg[name] for name in ("max_mean", "max_disp"))
    by_mean = (means > hvg["min_mean"]) & (means < max_mean)
    return by_mean & (norm > hvg["min_disp"]) & (norm < max_disp)
