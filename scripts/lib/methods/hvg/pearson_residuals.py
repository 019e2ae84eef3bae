"""Flavour pearson_residuals: the variance of clipped Pearson residuals of a negative binomial model.

With mu = (gene's sum) * (cell's sum) / (batch's sum), the residual is (x - mu) / sqrt(mu + mu^2 / theta), clipped at
+-`clip`. Lause, Berens and Kobak 2021; scanpy.experimental.pp.highly_variable_genes, except that without `clip` each
batch is clipped at the square root of its own cells (scanpy 1.11 takes the first batch's for all).
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
    count_sums,
    differing,
    mean_and_variance,
    sorted_genes,
    sum_over_depths,
    tallied_sums,
    variance_table,
)
from lib.run import device as devices
from lib.store.shards import Arrays
from lib.store.stream import Stream


def passes(target_sum: float | None) -> Sequence[Pass]:
    """See `Flavor`."""
    return count_pass, residual_pass


def count_pass(cells: Cells, known: Sequence[Arrays]) -> Arrays:
    """The first pass: `sums` of `count_sums`, and `totals`, the counts of each cell."""
    return tallied_sums(cells, count_sums)


def residual_pass(cells: Cells, known: Sequence[Arrays]) -> Arrays:
    """The second pass: see `residual_sums`."""
    return residual_sums(cells.counts, cells.batches, known[0]["sums"][0], cells.hvg["theta"], cells.hvg["clip"])


def statistics(
    known: Sequence[Arrays],
    batches: Batches,
    hvg: Mapping[str, Any],
    eligible: np.ndarray,
    device: devices.Device,
    seed: int,
) -> Arrays:
    """See `Flavor`."""
    sums, totals, correction = known[0]["sums"], known[0]["totals"], known[1]["correction"]
    ranked = differing(sums, batches, eligible)
    mean, variance = mean_and_variance(sums.sum(1), len(batches.codes))
    chosen = batches.only(ranked)
    scores = residual_variances(
        sums[0, ranked], totals, correction[:, ranked], chosen, hvg["theta"], hvg["clip"], device
    )
    return {"ranked": ranked, "means": mean, "variances": variance, "scores": scores}


def order(statistics: Arrays, hvg: Mapping[str, Any], eligible: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """See `Flavor`."""
    table = variance_table(statistics, "residual_variances", hvg["n_top_genes"], eligible)
    n_batches = table["highly_variable_nbatches"]
    table["highly_variable_intersection"] = n_batches == len(statistics["scores"])
    return table, sorted_genes((table["highly_variable_rank"], -n_batches), eligible)


def residual_sums(
    counts: Stream, batches: Batches, sums: np.ndarray, theta: float, clip: float | None
) -> dict[str, np.ndarray]:
    """By how much the non-zeros' Pearson residuals, and their squares, differ from those of zeros.

    Parameters
    ----------
    sums
        Of the counts, over all cells: batches x genes.
    theta, clip
        See `residual_variances`.

    Returns
    -------
    `correction`, 2 x batches x genes.
    """
    xp = counts.device.xp
    tallied = Tallied(counts)
    limit_of_cell = xp.asarray(residual_limits(batches, clip)[batches.codes])
    rates = xp.asarray(sums / np.maximum(sums.sum(1, keepdims=True), 1)).ravel()

    def correction(nonzeros: Nonzeros) -> tuple[Any, Any]:
        mu = rates[nonzeros.key] * tallied.totals[nonzeros.cell]
        limit = limit_of_cell[nonzeros.cell]
        spread = xp.sqrt(mu * (1 + mu / theta))
        at_zero = mu / spread
        residual = xp.maximum(xp.minimum(nonzeros.x / spread - at_zero, limit), -limit)
        at_zero = -xp.minimum(at_zero, limit)
        return nonzeros.key, (residual - at_zero, residual * residual - at_zero * at_zero)

    return {"correction": accumulate(tallied, batches, correction, "residuals")}


def residual_limits(batches: Batches, clip: float | None) -> np.ndarray:
    """The limit of each batch's residuals, at which they are clipped."""
    return np.sqrt(batches.sizes) if clip is None else np.full(len(batches.names), float(clip))


def residual_variances(
    sums: np.ndarray,
    totals: np.ndarray,
    correction: np.ndarray,
    batches: Batches,
    theta: float,
    clip: float | None,
    device: devices.Device,
) -> np.ndarray:
    """Variance of the clipped Pearson residuals.

    Parameters
    ----------
    sums
        Of the counts: batches x genes.
    totals
        Counts of each cell.
    correction
        Of `residual_sums`.
    device
        Where residuals are summed over the depths.

    Returns
    -------
    batches x genes, float64 (divisor: the batch's cells); 0 for a gene without counts.
    """
    xp = device.xp
    total, squared = correction.copy()
    for code, limit in enumerate(residual_limits(batches, clip).tolist()):

        def square_at_zero(mu: Any, limit: float = limit) -> Any:
            return xp.minimum(mu / (1 + mu / theta), limit * limit)

        depths = totals[batches.codes == code]
        total[code] -= sum_over_depths(lambda mu: xp.sqrt(square_at_zero(mu)), sums[code], depths, device)
        squared[code] += sum_over_depths(square_at_zero, sums[code], depths, device)
    n = batches.sizes[:, None]
    return squared / n - (total / n) ** 2
