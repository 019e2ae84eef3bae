"""Flavour poisson_gene_selection: the probability that a gene has more zeros than Poisson counts would.

A cell lacks a gene, though a Poisson cell would have it, with the probability observed * (1 - expected), of the
fractions of cells without the gene. scvi.data.poisson_gene_selection estimates it from `n_samples` draws.
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
    accumulate,
    ranks_within,
    some_ranked,
    sorted_genes,
    sum_over_depths,
    tallied_sums,
)
from lib.run import device as devices
from lib.store.shards import Arrays
from lib.store.stream import Stream


def passes(target_sum: float | None) -> Sequence[Pass]:
    """See `Flavor`."""
    return (presence_pass,)


def presence_pass(cells: Cells, known: Sequence[Arrays]) -> Arrays:
    """The only pass: `sums` of `presence_sums`, and `totals`, the counts of each cell."""
    return tallied_sums(cells, presence_sums)


def statistics(
    known: Sequence[Arrays],
    batches: Batches,
    hvg: Mapping[str, Any],
    eligible: np.ndarray,
    device: devices.Device,
    seed: int,
) -> Arrays:
    """See `Flavor`. The draws of scvi-tools sum to one binomial; with `n_samples` None the probability is exact."""
    sums, totals = known[0]["sums"], known[0]["totals"]
    present = sums[1][:, eligible]
    ranked = some_ranked(((present > 0) & (present < batches.sizes[:, None])).any(1))
    observed, expected = zero_fractions(sums[:, ranked], totals, batches.only(ranked), device)
    enrichment = observed * (1 - expected)
    if (n_samples := hvg["n_samples"]) is not None:
        enrichment = np.random.default_rng(seed).binomial(n_samples, np.clip(enrichment, 0, 1)) / n_samples
    return {"ranked": ranked, "observed": observed, "expected": expected, "enrichment": enrichment}


def order(statistics: Arrays, hvg: Mapping[str, Any], eligible: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """See `Flavor`."""
    enrichment, n_vars = statistics["enrichment"], len(eligible)
    ranks = n_vars - 1 - ranks_within(enrichment, eligible)
    n_batches = (ranks >= n_vars - hvg["n_top_genes"]).sum(0)
    table = pd.DataFrame(
        {
            "observed_fraction_zeros": np.median(statistics["observed"], axis=0),
            "expected_fraction_zeros": np.median(statistics["expected"], axis=0),
            "prob_zero_enriched_nbatches": n_batches,
            "prob_zero_enrichment": np.median(enrichment, axis=0),
            "prob_zero_enrichment_rank": np.median(ranks, axis=0).astype(np.float64),
            "highly_variable_nbatches": n_batches,
        }
    )
    return table, sorted_genes((-table["prob_zero_enrichment_rank"], -n_batches), eligible)


def presence_sums(counts: Stream, batches: Batches) -> np.ndarray:
    """Sums of the counts, and numbers of the cells that have the gene: 2 x batches x genes, float64, exact."""

    def presence(nonzeros: Nonzeros) -> tuple[Any, Any]:
        return nonzeros.key, (nonzeros.x, (nonzeros.x > 0).astype(np.float64))

    return accumulate(counts, batches, presence, "zeros")


def zero_fractions(
    sums: np.ndarray, totals: np.ndarray, batches: Batches, device: devices.Device
) -> tuple[np.ndarray, np.ndarray]:
    """Fractions of cells without a gene, each batches x genes, float64: observed, and expected of Poisson counts with
    mean (gene's sum) * (cell's sum) / (batch's sum).

    Parameters
    ----------
    sums
        Of `presence_sums`.
    totals
        Counts of each cell.
    device
        Where the expectations are summed over the depths.
    """
    xp = device.xp
    expected = np.empty_like(sums[0])
    for code in range(len(batches.names)):
        depths = totals[batches.codes == code]
        expected[code] = sum_over_depths(lambda mu: xp.exp(-mu), sums[0, code], depths, device)
    n = batches.sizes[:, None]
    return 1 - sums[1] / n, expected / n
