"""Tests between conditions: of genes on pseudobulks, of the same genes on cells, and of the groups' shares.

- Genes that can be tested: `lib.methods.pseudobulk.expressed`.
- Pseudobulks: PyDESeq2 (Muzellec et al. 2023), DESeq2's negative binomial model with shrunken dispersions (Love et al.
  2014), Wald's test of the contrast, p-values adjusted after independent filtering; genes with an outlier (Cook's
  distance) have none. Size factors are medians of ratios; where no gene is in all samples, of positive counts.
- Cells: Welch's t-test of the log-normalised values of all cells of the two levels, for comparison alone: cells of a
  sample are not independent, and the test finds too much (Squair et al. 2021).
- Shares: y = logit((n + 0.5) / (N + 1)) of a group's n among a sample's N cells, fitted by least squares on the
  contrast's design; t with the variance moderated over the groups (Smyth 2004; propeller, Phipson et al. 2022).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import polygamma, stdtr
from scipy.stats import ttest_ind_from_stats

from lib.figures.words import SIGNIFICANT
from lib.methods.markers import benjamini_hochberg

log = logging.getLogger("somersault")

FEWEST_GENES = 10  # below, a trend of dispersions cannot be fitted
STATISTICS = {
    "baseMean": "base_mean",
    "log2FoldChange": "logfoldchanges",
    "lfcSE": "lfc_se",
    "stat": "scores",
    "pvalue": "pvals",
    "padj": "pvals_adj",
}  # PyDESeq2's names, and the names of the tables here


def deseq(counts: np.ndarray, design: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """DESeq2's test of the design's second column, gene by gene, in this thread.

    Parameters
    ----------
    counts
        samples x genes, integers.
    design
        samples x effects, of full rank (`lib.inputs.contrasts.design_of`).
    names
        The genes, distinct.

    Returns
    -------
    genes x the columns of STATISTICS, float64; p-values are NaN where PyDESeq2 has none.
    """
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats
    from threadpoolctl import threadpool_limits

    class Inference(DefaultInference):
        """PyDESeq2's, with the linear fit of all genes at once."""

        def lin_reg_mu(
            self, counts: np.ndarray, size_factors: np.ndarray, design_matrix: np.ndarray, min_mu: float
        ) -> np.ndarray:
            fit, *_ = np.linalg.lstsq(design_matrix, counts / size_factors[:, None], rcond=None)
            return np.maximum(size_factors[:, None] * (design_matrix @ fit), min_mu)

    frame = pd.DataFrame(counts, [f"s{i}" for i in range(len(counts))], list(names))
    effects = pd.DataFrame(design.to_numpy(), frame.index, [f"x{i}" for i in range(design.shape[1])])
    everywhere = (counts > 0).all(0).any()
    fits = {"quiet": True, "inference": Inference(n_cpus=1)}
    contrast = np.eye(design.shape[1])[1]
    # BLAS' threads would cost more than they spare on matrices of this size
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = DeseqDataSet(
            counts=frame,
            metadata=effects,
            design=effects,
            size_factors_fit_type="ratio" if everywhere else "poscounts",
            **fits,
        )
        fitted.deseq2()
        tested = DeseqStats(fitted, contrast=contrast, alpha=SIGNIFICANT, **fits)
        tested.summary()
    return tested.results_df.rename(columns=STATISTICS)[list(STATISTICS.values())].astype(np.float64)


def of_cells(
    mean: np.ndarray, var: np.ndarray, n_cells: np.ndarray, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Welch's t-test between the cells of two levels, from the means and variances of profiles.

    Parameters
    ----------
    mean, var
        profiles x genes; see `lib.methods.pseudobulk.layers_of`.
    n_cells
        Cells of each profile.
    level
        Mask of the profiles of the level; the others are of the reference.

    Returns
    -------
    The difference of the means, and p-values (1 where nothing varies); float64.
    """
    sides = []
    for mine in (level, ~level):
        n, m = n_cells[mine][:, None].astype(np.float64), mean[mine].astype(np.float64)
        total = n.sum()
        centre = (n * m).sum(0) / total
        squares = ((n - 1) * var[mine]).sum(0) + (n * (m - centre) ** 2).sum(0)
        sides.append((centre, np.sqrt(squares / max(total - 1, 1)), total))
    with np.errstate(invalid="ignore", divide="ignore"):
        pvals = ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False).pvalue
    return sides[0][0] - sides[1][0], np.where(np.isnan(pvals), 1, pvals)


def adjusted(pvals: np.ndarray) -> np.ndarray:
    """p-values adjusted for the number of those that are there (Benjamini & Hochberg, 1995); NaN stays NaN."""
    found, there = np.full(len(pvals), np.nan), ~np.isnan(pvals)
    found[there] = benjamini_hochberg(pvals[there])
    return found


def logit_shares(counts: np.ndarray) -> np.ndarray:
    """The logits of each group's share of a sample's cells; samples x groups, half a cell added to either side."""
    rest = counts.sum(1, keepdims=True) - counts
    return np.log((counts + 0.5) / (rest + 0.5))


def of_shares(counts: np.ndarray, design: pd.DataFrame) -> Mapping[str, np.ndarray]:
    """The moderated test of the design's second column in each group's logit of shares.

    Parameters
    ----------
    counts
        Cells, samples x groups.
    design
        samples x effects, of full rank, with fewer effects than samples.

    Returns
    -------
    `logit_change`, `scores` (t), `pvals`, `pvals_adj`; one for each group.
    """
    X, y = design.to_numpy(), logit_shares(counts)
    beta, *_ = np.linalg.lstsq(X, y, rcond=None)
    freedom = X.shape[0] - X.shape[1]
    variance = ((y - X @ beta) ** 2).sum(0) / freedom
    prior, variance_0 = prior_of(variance, freedom)
    if np.isinf(prior):
        moderated = np.full_like(variance, variance_0)
    else:
        moderated = (prior * variance_0 + freedom * variance) / (prior + freedom)
    scale = np.linalg.inv(X.T @ X)[1, 1]
    error = np.sqrt(moderated * scale)
    change = np.where(np.abs(beta[1]) > 1e-12, beta[1], 0)  # below, rounding
    t = np.divide(change, error, out=np.zeros_like(error), where=error > 0)
    total = min(prior + freedom, freedom * len(variance))  # as limma: no more than all groups have together
    pvals = 2 * stdtr(total, -np.abs(t))
    return {"logit_change": change, "scores": t, "pvals": pvals, "pvals_adj": benjamini_hochberg(pvals)}


def prior_of(variance: np.ndarray, freedom: int) -> tuple[float, float]:
    """Degrees of freedom and value of the prior of variances, by the moments of their logarithms (Smyth 2004, 6.2).

    Fewer than three variances have none: 0 degrees of freedom. Variances that differ no more than by chance have
    infinitely many.
    """
    if len(variance) < 3:
        return 0.0, 1.0
    positive = np.maximum(variance, 1e-5 * np.median(variance) or 1e-12)
    e = np.log(positive) - polygamma(0, freedom / 2) + np.log(freedom / 2)
    spread = e.var(ddof=1) - polygamma(1, freedom / 2)
    if spread <= 0:
        return np.inf, float(np.exp(e.mean()))
    half = trigamma_inverse(spread)
    return 2 * half, float(np.exp(e.mean() + polygamma(0, half) - np.log(half)))


def trigamma_inverse(x: float) -> float:
    """y with trigamma(y) = x, by Newton's method on 1 / trigamma, which is nearly a line."""
    if x > 1e7:
        return 1 / np.sqrt(x)
    y = 0.5 + 1 / x
    for _ in range(50):
        step = polygamma(1, y) * (1 - polygamma(1, y) / x) / polygamma(2, y)
        y += step
        if -step / y < 1e-8:
            break
    return float(y)
