"""Find the cells that pass the limits of the config's `cells` section, and the first limit that others fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lib.run.errors import UserError

# Metrics that a sample may lack: of families without genes there, and of more top genes than a panel has
PERHAPS = ("pct_counts_", "total_counts_", "log1p_total_counts_")


def failing(
    qc: pd.DataFrame, cells: Mapping[str, Any], groups: np.ndarray | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Each limit of the config with the cells that fail it, in the order of application.

    Parameters
    ----------
    qc
        Metrics per cell, with scanpy's column names.
    cells
        The config's section: min_genes, max_genes, min_counts, max_counts (kept: strictly between),
        max_pct_counts (family -> kept: strictly below), mad and mad_metrics.
    groups
        Per cell the group for median and median absolute deviation; by default all cells are one group.

    Yields
    ------
    Name of the limit (min_genes, max_pct_counts_MT, mad_log1p_total_counts ...) and a boolean mask of the cells that
    fail it; no cell fails the limit of a gene family without genes here.
    """
    no_cell = np.zeros(len(qc), bool)
    for quantity, column in (("genes", "n_genes_by_counts"), ("counts", "total_counts")):
        values = qc[column].to_numpy()
        if cells.get(f"min_{quantity}") is not None:
            yield f"min_{quantity}", ~(values > cells[f"min_{quantity}"])
        if cells.get(f"max_{quantity}") is not None:
            yield f"max_{quantity}", ~(values < cells[f"max_{quantity}"])
    for family, limit in (cells.get("max_pct_counts") or {}).items():
        if limit is not None:
            values = _metric(qc, f"pct_counts_{family}")
            yield f"max_pct_counts_{family}", no_cell if values is None else ~(values.to_numpy() < limit)
    if cells.get("mad") is not None:
        groups = np.zeros(len(qc)) if groups is None else groups
        for metric in cells["mad_metrics"]:
            values, upper_only = _metric(qc, metric), metric.startswith("pct_counts_")
            outlier = no_cell if values is None else is_outlier(values, groups, cells["mad"], upper_only)
            yield f"mad_{metric}", outlier


def is_outlier(values: pd.Series, groups: np.ndarray, n_mads: float, upper_only: bool) -> np.ndarray:
    """Whether a value lies more than `n_mads` median absolute deviations from its group's median.

    With `upper_only`, for percentages, only values above the median are outliers. Source: Heumos et al. 2023, Best
    practices for single-cell analysis across modalities.
    """
    deviation = values - values.groupby(groups).transform("median")
    mad = deviation.abs().groupby(groups).transform("median")
    return ((deviation if upper_only else deviation.abs()) > n_mads * mad).to_numpy()


def threshold_reasons(qc: pd.DataFrame, cells: Mapping[str, Any], groups: np.ndarray | None = None) -> pd.Series:
    """The first limit that each cell fails, "" if it passes all; see `failing`."""
    reasons = np.full(len(qc), "", dtype=object)
    for name, mask in failing(qc, cells, groups):
        reasons[mask & (reasons == "")] = name
    return pd.Series(reasons, qc.index, dtype=object, name="reason")


def _metric(qc: pd.DataFrame, name: str) -> pd.Series | None:
    if name not in qc and name.startswith(PERHAPS):
        return None
    if name not in qc:
        raise UserError(f"cells: mad_metrics: there is no metric {name!r}; there are {', '.join(qc.columns)}")
    return qc[name]
