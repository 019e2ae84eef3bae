"""How variable each gene is within each batch, by flavour, from a stream of counts.

Every statistic is a sum over cells of a function of the counts, so it is an accumulation over chunks
(`accumulate`: sums of shards of cells add up) and a reduction of sums, batches x genes. What is named `*_sums` is a
pass over all cells, or a shard of them; the other functions take what these return, on the host. Where the function is
not zero at a count of zero, its value there depends on a cell through its depth alone: it is summed over the batch's
distinct depths (`sum_over_depths`) and corrected at the non-zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lib.run import device as devices
from lib.run import stage
from lib.run.progress import progress
from lib.store.csr import row_sums, rows_of_nonzeros, sums_by_key
from lib.store.stream import Chunk, Stream, halving

PIECE = 1 << 20  # non-zeros that a CPU works on at a time: what fits its cache
OUTER = 1 << 22  # gene sums x depths evaluated at a time
WIDER = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # spans of loess that are tried where the config's has no fit
POOLED = 0.0  # in place of a span: the fit of all batches together
FEWEST = 3  # points on which scikit-misc's loess ends the process
MAD_OF_NORMAL = 0.6744897501960817  # the median absolute deviation of a standard normal distribution


@dataclass(frozen=True)
class Batches:
    """Which batch each cell of a stream is of.

    Attributes
    ----------
    codes
        Per cell its batch, from 0.
    names
        The batches' names, for messages.
    whole
        The codes of all cells, where the stream is a shard of them.
    """

    codes: np.ndarray
    names: Sequence[str]
    whole: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """Cells of each batch, over all cells."""
        codes = self.codes if self.whole is None else self.whole
        return np.bincount(codes[codes >= 0], minlength=len(self.names))

    def only(self, chosen: np.ndarray) -> Batches:
        """Those of the batches that a mask chooses; the other cells are of none, code -1."""
        places = np.where(chosen, np.cumsum(chosen) - 1, -1)
        return Batches(places[self.codes], [name for name, one in zip(self.names, chosen, strict=True) if one])

    def of_shard(self, rows: slice) -> Batches:
        """The batches of a shard's cells."""
        return replace(self, codes=self.codes[rows], whole=self.codes)


@dataclass(frozen=True)
class Nonzeros:
    """Non-zeros of a stream, on its device: the count (float64), the position of its cell, and batch * genes + gene."""

    x: Any
    cell: Any
    key: Any


class Tallied:
    """A stream that notes in `totals` (int64, on its device) the counts of each cell that goes by."""

    def __init__(self, counts: Stream) -> None:
        self.counts = counts
        self.device, self.n_obs, self.n_vars = counts.device, counts.n_obs, counts.n_vars
        self.totals = counts.device.xp.zeros(counts.n_obs, np.int64)

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """The chunks of the stream, each one's cells tallied before it comes."""
        for chunk in self.counts.chunks(max_cells):
            self.totals[chunk.rows] = row_sums(chunk.X, self.device)
            yield chunk


@halving
def accumulate(counts: Stream, batches: Batches, terms: Callable[[Nonzeros], tuple[Any, Any]], what: str) -> np.ndarray:
    """Sums over the cells of each batch of functions of the non-zeros.

    Parameters
    ----------
    counts
        cells x genes.
    terms
        Maps non-zeros to the keys of those that count and to two arrays with one value for each of them.
    what
        What the pass is called in the log.

    Returns
    -------
    2 x batches x genes, float64: exact where the terms are integers below 2^53.
    """
    xp, n_vars = counts.device.xp, counts.n_vars
    sums = xp.zeros((2, len(batches.names), n_vars))
    for chunk in progress(counts.chunks(), counts.n_obs, what):
        codes = batches.codes[chunk.rows]
        first, last = int(codes.min()), int(codes.max()) + 1
        for nonzeros in _pieces(chunk, codes, n_vars, counts.device):
            key, both = terms(nonzeros)
            for total, values in zip(sums, both, strict=True):
                added = sums_by_key(key - first * n_vars, values, (last - first) * n_vars, counts.device)
                total[first:last] += added.reshape(last - first, n_vars)
    return counts.device.to_host(sums)


def _pieces(chunk: Chunk, codes: np.ndarray, n_vars: int, device: devices.Device) -> Iterator[Nonzeros]:
    rows = rows_of_nonzeros(chunk.X, device)
    offsets = device.xp.asarray(codes.astype(np.int64) * n_vars)
    one_batch = bool((codes == codes[0]).all())
    step = chunk.X.nnz if device.is_gpu else PIECE
    for start in range(0, chunk.X.nnz, max(step, 1)):
        piece = slice(start, start + step)
        x = chunk.X.data[piece].astype(np.float64)
        offset = int(offsets[0]) if one_batch else offsets[rows[piece]]
        yield Nonzeros(x, rows[piece] + chunk.start, chunk.X.indices[piece].astype(np.int64) + offset)


def moments(sums: np.ndarray, n: Any) -> tuple[Any, Any]:
    """Mean and variance (divisor n - 1) from the sums of the values and of their squares, over `n` cells."""
    total, squared = sums
    return total / n, (squared - total * total / n) / (n - 1)


def count_sums(counts: Stream, batches: Batches) -> np.ndarray:
    """Sums of the counts and of their squares: 2 x batches x genes, float64, exact."""
    return accumulate(counts, batches, lambda nonzeros: (nonzeros.key, (nonzeros.x, nonzeros.x * nonzeros.x)), "sums")


def clipped_sums(counts: Stream, batches: Batches, sums: np.ndarray, span: float) -> dict[str, np.ndarray]:
    """What clipping takes off `count_sums`: flavours seurat_v3*.

    Per batch of n cells, a quadratic loess of log10(variance) on log10(mean) gives each gene's expected standard
    deviation s; counts are clipped at mean + s * sqrt(n). Fitted are the batches that the stream has cells of.

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
    """Variance of the counts that are standardised by a fitted deviation and clipped: flavours seurat_v3*.

    With the mean m and the deviation s of `clipped_sums`, z = (x - m) / s of the clipped counts x. Stuart et al. 2019;
    Hafemeister and Satija's vst; scanpy.pp.highly_variable_genes.

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
    mean, _ = moments(sums, n)
    total, squared = sums - excess
    return (n * mean**2 + squared - 2 * total * mean) / ((n - 1) * deviation**2)


def expected_deviations(sums: np.ndarray, batches: Batches, span: float) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation expected at each gene's mean, and the span of the loess that it follows from.

    A batch that has no fit at `span` gets the first wider one of WIDER that has, and else that of all batches together,
    at the means of its own genes (those beyond the fitted range: at its ends).

    Parameters
    ----------
    sums
        Of `count_sums`, over all cells.
    span
        Fraction of the genes in the loess window.

    Returns
    -------
    Deviations, batches x genes, 1 for a gene that does not vary, NaN in batches that have none of the cells, which are
    another shard's; spans, one a batch, POOLED for the last kind, NaN in these batches and where no gene varies.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, variance = moments(sums, batches.sizes[:, None])
    expected, spans = np.full_like(mean, np.nan), np.full(len(mean), np.nan)
    pooled = None
    for code in np.unique(batches.codes):
        expected[code], varies = 1, variance[code] > 0
        if not varies.any():
            continue
        x, y = np.log10(mean[code, varies]), np.log10(variance[code, varies])
        fit = widening_fit(x, y, span)
        if fit is None:
            pooled = pooled_fit(sums, batches, span) if pooled is None else pooled
            fit = POOLED, pooled(x)
        spans[code], expected[code, varies] = fit[0], np.sqrt(10 ** fit[1])
    return expected, spans


def widening_fit(x: np.ndarray, y: np.ndarray, span: float) -> tuple[float, np.ndarray] | None:
    """The first span, from `span` on, at which loess fits y on x, and what it makes of y; None if there is none."""
    for wide in (span, *(wide for wide in WIDER if wide > span)):
        if (model := fitted_loess(x, y, wide)) is not None:
            return wide, model.outputs.fitted_values
    return None


def fitted_loess(x: np.ndarray, y: np.ndarray, span: float) -> Any | None:
    """A quadratic loess of y on x; None where it finds no fit, or has no more than FEWEST points."""
    if len(x) <= FEWEST:
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
    """log10(variance) expected at a log10(mean), by the loess over all batches together; where that finds no fit
    either, by a line."""
    mean, variance = moments(sums.sum(1), batches.sizes.sum())
    varies = variance > 0
    x, y = np.log10(mean[varies]), np.log10(variance[varies])
    for wide in (span, *(wide for wide in WIDER if wide > span)):
        if (model := fitted_loess(x, y, wide)) is not None:
            return lambda at: model.predict(np.clip(at, x.min(), x.max())).values
    line = np.polyfit(x, y, min(1, len(np.unique(x)) - 1))
    return lambda at: np.polyval(line, np.clip(at, x.min(), x.max()))


def cell_totals(counts: Stream) -> np.ndarray:
    """Counts of each cell, int64."""
    tallied = Tallied(counts)
    for _ in progress(tallied.chunks(), counts.n_obs, "totals"):
        pass
    return counts.device.to_host(tallied.totals)


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


def dispersions(mean: np.ndarray, variance: np.ndarray, flavor: str, n_bins: int) -> dict[str, np.ndarray]:
    """Dispersion of each gene, and how it stands among genes of similar mean: flavours seurat and cell_ranger.

    The dispersion is variance / mean. seurat takes log(dispersion) and log(1 + mean), cuts the means into `n_bins` of
    equal width, and standardises by the bin's mean and standard deviation; a bin's only gene gets 1. cell_ranger cuts
    at the means' percentiles 10, 15 ... 100 and standardises by the bin's median and median absolute deviation.
    Satija et al. 2015, Zheng et al. 2017; scanpy.pp.highly_variable_genes.

    Parameters
    ----------
    mean, variance
        Of each gene's normalised values (cell_ranger: their logarithms).

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


def residual_sums(
    counts: Stream, batches: Batches, sums: np.ndarray, theta: float, clip: float | None
) -> dict[str, np.ndarray]:
    """By how much the non-zeros' Pearson residuals, and their squares, differ from those of zeros: pearson_residuals.

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
    """At what each batch's residuals are clipped."""
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
    """Variance of the clipped Pearson residuals of a negative binomial model: flavour pearson_residuals.

    With mu = (gene's sum) * (cell's sum) / (batch's sum), the residual is (x - mu) / sqrt(mu + mu^2 / theta), clipped
    at +-`clip`. Lause, Berens and Kobak 2021; scanpy.experimental.pp.highly_variable_genes, except that without `clip`
    each batch is clipped at the square root of its own cells (scanpy 1.11 takes the first batch's for all).

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


def presence_sums(counts: Stream, batches: Batches) -> np.ndarray:
    """Sums of the counts, and numbers of the cells that have the gene: 2 x batches x genes, float64, exact."""

    def presence(nonzeros: Nonzeros) -> tuple[Any, Any]:
        return nonzeros.key, (nonzeros.x, (nonzeros.x > 0).astype(np.float64))

    return accumulate(counts, batches, presence, "zeros")


def zero_fractions(
    sums: np.ndarray, totals: np.ndarray, batches: Batches, device: devices.Device
) -> tuple[np.ndarray, np.ndarray]:
    """Fractions of cells without a gene: observed, and expected of Poisson counts with mean (gene's sum) * (cell's sum)
    / (batch's sum). Each batches x genes, float64.

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


def sum_over_depths(
    function: Callable[[Any], Any], sums: np.ndarray, depths: np.ndarray, device: devices.Device
) -> np.ndarray:
    """For each gene the sum over cells of function((gene's sum) * (cell's depth) / (sum of the depths)).

    It is evaluated once for each pair of a distinct gene sum and a distinct depth, `OUTER` pairs at a time.
    """
    xp = device.xp
    sums, which = xp.unique(xp.asarray(sums), return_inverse=True)
    depths = xp.asarray(depths)
    total = float(depths.sum())
    depths, cells = xp.unique(depths, return_counts=True)
    cells = cells.astype(np.float64)
    step = max(1, OUTER // len(depths))
    parts = [
        function(sums[start : start + step, None] * (depths / total)) @ cells for start in range(0, len(sums), step)
    ]
    return device.to_host(xp.concatenate(parts)[which])
