"""Flavours seurat_v3 and seurat_v3_paper: the variance of standardised clipped counts.

Per batch of n cells, a quadratic loess of log10(variance) on log10(mean) gives each gene's expected standard deviation
s. Counts x are clipped at mean + s * sqrt(n), and z = (x - mean) / s. Stuart et al. 2019; Hafemeister and Satija's vst;
scanpy.pp.highly_variable_genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from lib.methods.hvg.shared import (
    Batches,
    Cells,
    Nonzeros,
    Pass,
    accumulate,
    count_sums,
    differing,
    mean_and_variance,
    sorted_genes,
    variance_table,
)
from lib.run import device as devices
from lib.run import stage
from lib.run.forked import run_all
from lib.store.compressed import n_threads
from lib.store.shards import Arrays
from lib.store.stream import Stream

WIDER = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # spans of loess that are tried where the config's has no fit
POOLED = 0.0  # in place of a span: the fit of all batches together
FEWEST = 3  # points in the window: a quadratic has no fit on these, and without any scikit-misc ends the process
FITS = 4  # loess fits that are worth a fork
JOINS = {"deviation": np.fmax, "spans": np.fmax}  # NaN in the shards that have no cell of a batch


def passes(target_sum: float | None) -> Sequence[Pass]:
    """See `Flavor`."""
    return count_pass, clipped_pass


def count_pass(cells: Cells, known: Sequence[Arrays]) -> Arrays:
    """The first pass: `sums` of `count_sums`."""
    return {"sums": count_sums(cells.counts, cells.batches)}


def clipped_pass(cells: Cells, known: Sequence[Arrays]) -> Arrays:
    """The second pass: see `clipped_sums`."""
    return clipped_sums(cells.counts, cells.batches, known[0]["sums"], cells.hvg["span"])


def statistics(
    known: Sequence[Arrays],
    batches: Batches,
    hvg: Mapping[str, Any],
    eligible: np.ndarray,
    device: devices.Device,
    seed: int,
) -> Arrays:
    """See `Flavor`."""
    sums, clipped = known[0]["sums"], known[1]
    ranked = differing(sums, batches, eligible)
    mean, variance = mean_and_variance(sums.sum(1), len(batches.codes))
    excess, deviation = clipped["excess"][:, ranked], clipped["deviation"][ranked]
    scores = standardized_variances(sums[:, ranked], excess, deviation, batches.only(ranked))
    fits = fits_of_batches(clipped["spans"], ranked, hvg["span"])
    return {"ranked": ranked, "fits": fits, "means": mean, "variances": variance, "scores": scores}


def order(statistics: Arrays, hvg: Mapping[str, Any], eligible: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """See `Flavor`."""
    table = variance_table(statistics, "variances_norm", hvg["n_top_genes"], eligible)
    rank, n_batches = table["highly_variable_rank"], table["highly_variable_nbatches"]
    keys = (-n_batches, rank) if hvg["flavor"] == "seurat_v3" else (rank, -n_batches)
    return table, sorted_genes(keys, eligible)


def fits_of_batches(spans: np.ndarray, ranked: np.ndarray, span: float) -> dict[str, np.ndarray]:
    """Columns of the table of the batches: `fit` (own, wider, pooled: the loess that its genes' variances are compared
    with), and `span`, of an own or wider fit; "" and NaN for batches that rank nothing."""
    kinds = np.select([spans == POOLED, spans > span], ["pooled", "wider"], "own")
    spans = np.where(ranked & (spans != POOLED), spans, np.nan)
    return {"fit": np.where(ranked, kinds, ""), "span": spans}


def clipped_sums(counts: Stream, batches: Batches, sums: np.ndarray, span: float) -> dict[str, np.ndarray]:
    """By how much clipping lowers `count_sums`. The batches of which the stream has cells are fitted.

    Parameters
    ----------
    sums
        Of `count_sums`, over all cells.
    span
        Fraction of the genes in the loess window.

    Returns
    -------
    `excess`, 2 x batches x genes; `deviation`, batches x genes, and `spans`, of `expected_deviations`.
    """
    xp = counts.device.xp
    n = batches.sizes[:, None]
    deviation, spans = expected_deviations(sums, batches, span)
    clip = xp.asarray(sums[0] / n + deviation * np.sqrt(n)).ravel()

    def excess(nonzeros: Nonzeros) -> tuple[Any, Any]:
        above = xp.flatnonzero(nonzeros.x > clip[nonzeros.key])
        key, x = nonzeros.key[above], nonzeros.x[above]
        limit = clip[key]
        return key, (x - limit, x * x - limit * limit)

    return {"excess": accumulate(counts, batches, excess, "clipped sums"), "deviation": deviation, "spans": spans}


def standardized_variances(sums: np.ndarray, excess: np.ndarray, deviation: np.ndarray, batches: Batches) -> np.ndarray:
    """Variance of the clipped counts, standardised by the fitted deviation.

    Parameters
    ----------
    sums
        Of `count_sums`.
    excess, deviation
        Of `clipped_sums`.

    Returns
    -------
    batches x genes, float64.
    """
    n = batches.sizes[:, None]
    mean, _ = mean_and_variance(sums, n)
    total, squared = sums - excess
    return (n * mean**2 + squared - 2 * total * mean) / ((n - 1) * deviation**2)


def expected_deviations(sums: np.ndarray, batches: Batches, span: float) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation expected at each gene's mean, and the span of the loess that gives it.

    A batch that has no fit at `span` gets the fit of the first wider span of WIDER that has one, or else that of all
    batches together, at the means of its own genes (beyond the fitted range: at its ends).

    Parameters
    ----------
    sums
        Of `count_sums`, over all cells.
    span
        Fraction of the genes in the loess window.

    Returns
    -------
    Deviations, batches x genes: 1 for a gene that does not vary, NaN in batches of which the stream has no cell. Spans,
    one a batch: POOLED for the fit of all batches, NaN in batches without a cell and where no gene varies.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, variance = mean_and_variance(sums, batches.sizes[:, None])
    expected, spans = np.full_like(mean, np.nan), np.full(len(mean), np.nan)
    here = np.unique(batches.codes)
    expected[here] = 1
    masks = {code: varies for code in here if (varies := variance[code] > 0).any()}
    points = [np.log10([mean[code, varies], variance[code, varies]]) for code, varies in masks.items()]
    tasks = [partial(widening_fit, x, y, span) for x, y in points]
    fits = run_all(tasks, min(n_threads(), len(tasks) // FITS))
    pooled = None
    for (code, varies), (x, _), fit in zip(masks.items(), points, fits, strict=True):
        if fit is None:
            pooled = pooled_fit(sums, batches, span) if pooled is None else pooled
            fit = POOLED, pooled(x)
        spans[code], expected[code, varies] = fit[0], np.sqrt(10 ** fit[1])
    return expected, spans


def widening_fit(x: np.ndarray, y: np.ndarray, span: float) -> tuple[float, np.ndarray] | None:
    """The first span, from `span` on, at which loess fits y on x, and the fitted values; None if there is none."""
    for wide in (span, *(wide for wide in WIDER if wide > span)):
        if (model := fitted_loess(x, y, wide)) is not None:
            return wide, model.outputs.fitted_values
    return None


def fitted_loess(x: np.ndarray, y: np.ndarray, span: float) -> Any | None:
    """A quadratic loess of y on x; None where it finds no fit, or has no more than FEWEST points in its window."""
    if int(span * len(x) + 1e-5) <= FEWEST:
        return None
    from skmisc.loess import loess

    model = loess(x, y, span=span, degree=2)
    try:
        model.fit()
    except ValueError as error:
        stage.log.info("loess, span %s: %s", span, error)
        return None
    return model if np.isfinite(model.outputs.fitted_values).all() else None


def pooled_fit(sums: np.ndarray, batches: Batches, span: float) -> Callable[[np.ndarray], np.ndarray]:
    """The function from log10(mean) to the expected log10(variance): the loess of all batches together, or a line where
    loess finds no fit."""
    mean, variance = mean_and_variance(sums.sum(1), batches.sizes.sum())
    varies = variance > 0
    x, y = np.log10(mean[varies]), np.log10(variance[varies])
    for wide in (span, *(wide for wide in WIDER if wide > span)):
        if (model := fitted_loess(x, y, wide)) is not None:
            return lambda at: model.predict(np.clip(at, x.min(), x.max())).values
    line = np.polyfit(x, y, min(1, len(np.unique(x)) - 1))
    return lambda at: np.polyval(line, np.clip(at, x.min(), x.max()))
