"""Draw the distribution of metrics in each group of cells: violins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from lib.figures import plots, words

NAMES = 2.2  # inches of the longest name beside a row
ROW = 0.24  # inches of a row at least


def violin(values: np.ndarray, at: float, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """The outline of a horizontal violin around y = `at`, points x 2, and the quartiles; with `log`, of log10 values.

    The density is a histogram of 256 bins, smoothed by a Gaussian of Silverman's width, which is fast for a million
    cells.
    """
    values = np.log10(np.maximum(values, 1)) if log else values
    low, high = values.min(), values.max()
    quartiles = np.percentile(values, [25, 50, 75])
    width = max(0.9 * min(values.std(), (quartiles[2] - quartiles[0]) / 1.34) * len(values) ** -0.2, 1e-3)
    edges = np.linspace(low - 3 * width, high + 3 * width, 257)
    centres = (edges[1:] + edges[:-1]) / 2
    kernel = np.exp(-0.5 * ((centres - centres.mean()) / width) ** 2)
    density = np.convolve(np.histogram(values, edges)[0], kernel, mode="same")
    inside = (centres >= low) & (centres <= high)
    half, x = 0.42 * density[inside] / density.max(), centres[inside]
    outline = np.column_stack([np.append(x, x[::-1]), np.append(at + half, at - half[::-1])])
    return (np.column_stack([10 ** outline[:, 0], outline[:, 1]]), 10**quartiles) if log else (outline, quartiles)


def violins(
    values: pd.DataFrame, groups: pd.Series, colours: Mapping[str, str], limits: Mapping[str, Sequence[float]]
) -> Figure:
    """A row for each group, in the order of `colours`, and a panel for each column of `values`; counts on log axes.

    Parameters
    ----------
    values
        Metrics of the cells.
    groups
        Each cell's group; cells of other groups are left out.
    colours
        Group -> colour.
    limits
        Metric -> its limits, which are drawn.
    """
    order = list(colours)
    codes = pd.Index(order).get_indexer(groups.astype(object))
    places = np.split(np.argsort(codes, kind="stable"), np.bincount(codes + 1, minlength=len(order) + 1).cumsum())[1:-1]
    height = max(1.2, len(order) * np.clip(8 / len(order), ROW, 0.5))
    fig, axes = plots.panels(1, values.shape[1], (2.9, height), (0.45, 0))
    for ax, metric in zip(axes[0], values, strict=True):
        log = metric in ("total_counts", "n_genes_by_counts")
        of_cells = values[metric].to_numpy(dtype=float)
        drawn = {}
        for row, cells in enumerate(places):
            mine = of_cells[cells]
            if np.isfinite(mine).any():  # none is if the batch lacks the gene family
                drawn[row] = violin(np.nan_to_num(mine), row, log)
        outlines, quartiles = zip(*drawn.values(), strict=True) if drawn else ([], np.empty((0, 3)))
        inks = [colours[order[row]] for row in drawn]
        ax.add_collection(PolyCollection(outlines, facecolors=inks, linewidths=0))
        first, median, third = np.transpose(quartiles)
        bars = [[(low, row), (high, row)] for row, low, high in zip(drawn, first, third, strict=True)]
        ax.add_collection(LineCollection(bars, colors="black", linewidths=2.2, capstyle="butt"))
        ax.plot(median, list(drawn), "o", ms=3, mfc="white", mec="black", mew=0.6)
        ax.autoscale_view()
        if log:
            plots.log_axis(ax.xaxis)
        ax.set_ylim(len(order) - 0.4, -0.6)
        ax.set_yticks(range(len(order)), [])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(words.metric_label(metric))
        plots.draw_limits(ax, "x", limits.get(metric, []))
    axes[0, 0].set_yticklabels(plots.fitted(order, NAMES, 8), size=8)
    return fig
