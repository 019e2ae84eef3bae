"""Draw tests of genes as volcanoes: change of expression against the adjusted p-value, a panel for each group."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures import plots
from lib.figures.words import SIGNIFICANT

NAMED = 6  # genes of a group whose names are written
LINE = 0.05  # height of a name, in panels
EXPRESSED = 0.05  # share of the cells of a side
MOST_PANELS = 64  # of a figure


def volcanoes(table: pd.DataFrame, named: pd.DataFrame) -> Figure:
    """A panel for each group.

    Parameters
    ----------
    table
        The markers: `group`, `names`, `logfoldchanges`, `pvals_adj`, `pct_nz_group`, `pct_nz_reference`.
    named
        The genes to name in each group: `group`, `names`, `gene_symbols`, `rank`.
    """
    groups = list(table["group"].unique())
    shown = groups[:MOST_PANELS]
    columns = min(len(shown), 4 if len(shown) <= 12 else 8)
    fig, axes = plots.panels(-(-len(shown) // columns), columns, (2.0, 1.8), (0.45, 0.55))
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    of_group, of_named = table.groupby("group", sort=False), dict(list(named.groupby("group", sort=False)))
    for ax, name in zip(axes.flat, shown, strict=False):
        volcano(ax, of_group.get_group(name), of_named.get(name, named[:0]))
        ax.set_title(name, loc="left", size=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("-log10 adjusted p", size=8)
    for ax in axes[-1]:
        ax.set_xlabel("log2 fold change", size=8)
    if len(groups) > len(shown):
        note = f"the first {len(shown)} of {len(groups)} groups"
        axes[0, 0].text(0, 1.2, note, transform=axes[0, 0].transAxes, size=8)
    return fig


def volcano(ax: Axes, genes: pd.DataFrame, named: pd.DataFrame) -> None:
    """Draw the genes of one group."""
    smallest = np.nextafter(0, 1)
    change = genes["logfoldchanges"].to_numpy(np.float64)
    height = -np.log10(np.maximum(genes["pvals_adj"].to_numpy(), smallest))
    expressed = (genes[["pct_nz_group", "pct_nz_reference"]].max(axis=1) >= EXPRESSED).to_numpy()
    most = max(1.0, np.abs(change[expressed]).max(initial=0))
    change = np.clip(change, -most, most)
    found = height > -np.log10(SIGNIFICANT)
    kinds = {plots.BACKGROUND: ~found, plots.LIMIT: found & (change <= 0), plots.PALETTE[0]: found & (change > 0)}
    for colour, mine in kinds.items():
        ax.plot(change[mine], height[mine], "o", ms=1.8, mew=0, color=colour)
    ax.axvline(0, color=plots.LIMIT, lw=0.5)
    top = max(1.0, 1.05 * height.max())
    at = dict(zip(genes["names"], zip(change, height, strict=True), strict=True))
    shown = [(*at[gene.names], gene.gene_symbols) for gene in named[named["rank"] <= NAMED].itertuples()]
    below = np.inf  # names stand below each other
    for x, y, symbol in sorted(shown, key=lambda point: -point[1]):
        below = min(y, below - LINE * top)
        side = "left" if x < 0 else "right"  # towards the middle
        ax.text(x - 0.03 * np.copysign(most, x), below, symbol, ha=side, va="center", size=5.5, style="italic")
    ax.set_xlim(-1.05 * most, 1.05 * most)
    ax.set_ylim(0, top)
    ax.tick_params(labelsize=7)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(plots.mpl.ticker.MaxNLocator(3))
