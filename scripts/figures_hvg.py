"""Draw the highly variable genes: each flavour's statistic against the mean, normalised for the selection and raw."""

from lib.start import run

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from lib.figures import plots
from lib.run.resources import MB, Job, Need
from lib.store.files import read_table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NAMED = 15  # genes named in the figure
SELECTED, OTHER = plots.PALETTE[3], "#B8BEC4"


class Column(NamedTuple):
    """A column of `hvg.parquet`, as an axis."""

    name: str
    label: str
    log: bool


MEAN = Column("means", "mean counts per cell", True)
VARIANCE = Column("variances", "variance of the counts", True)
STANDARDISED = Column("variances_norm", "standardised variance", True)
AXES = {  # flavour -> x, the statistic of the selection, the raw statistic
    "seurat_v3": (MEAN, STANDARDISED, VARIANCE),
    "seurat_v3_paper": (MEAN, STANDARDISED, VARIANCE),
    "pearson_residuals": (MEAN, Column("residual_variances", "variance of Pearson residuals", True), VARIANCE),
    "seurat": (
        Column("means", "log(1 + mean normalised counts)", False),
        Column("dispersions_norm", "normalised dispersion", False),
        Column("dispersions", "log(dispersion)", False),
    ),
    "cell_ranger": (
        Column("means", "mean of log-normalised counts", True),
        Column("dispersions_norm", "normalised dispersion", False),
        Column("dispersions", "dispersion", True),
    ),
    "poisson_gene_selection": (
        Column("expected_fraction_zeros", "cells without the gene, expected (fraction)", False),
        Column("prob_zero_enrichment", "probability of zero enrichment", False),
        Column("observed_fraction_zeros", "cells without the gene, observed (fraction)", False),
    ),
}


def hvg_scatter(hvg: pd.DataFrame, symbols: pd.Series, flavor: str) -> Figure:
    """A point per gene, selected genes in colour, the most variable ones named.

    Parameters
    ----------
    hvg
        The table of the stage `hvg`.
    symbols
        The genes' symbols, on the same index.
    flavor
        The config's `hvg: flavor`.
    """
    x, *statistics = AXES[flavor]
    fig, axes = plots.panels(1, 2, (4.3, 3.6), (0.85, 0))
    selected = hvg["highly_variable"].to_numpy()
    top = hvg.loc[selected, statistics[0].name].nlargest(NAMED).index
    for ax, y in zip(axes[0], statistics, strict=True):
        for mask, colour, name in ((~selected, OTHER, "other genes"), (selected, SELECTED, "highly variable")):
            genes = hvg.loc[mask & drawable(hvg, x) & drawable(hvg, y)]
            label = f"{name} ({mask.sum():,})"
            ax.scatter(genes[x.name], genes[y.name], s=4, c=colour, linewidths=0, alpha=0.8, label=label)
        for axis, column in ((ax.xaxis, x), (ax.yaxis, y)):
            if column.log:
                plots.log_axis(axis)
        ax.set_xlabel(x.label)
        ax.set_ylabel(y.label)
        named = hvg.loc[top][drawable(hvg.loc[top], y)]
        name_points(ax, named[x.name].to_numpy(), named[y.name].to_numpy(), symbols.loc[named.index].to_list())
    axes[0, 0].set_title("as selected on", loc="left")
    axes[0, 1].set_title("as measured", loc="left")
    axes[0, 1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=3, handletextpad=0.2)
    return fig


def drawable(hvg: pd.DataFrame, column: Column) -> np.ndarray:
    """Mask of the genes with a value that the axis can show."""
    values = hvg[column.name].to_numpy(dtype=float)
    return np.isfinite(values) & ((values > 0) | (not column.log))


def name_points(ax: Axes, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    """Write names beside points, each at the first of four places where it covers no other; or leave them out."""
    ax.autoscale_view()
    points_per_pixel = 72 / ax.figure.dpi
    at = ax.transData.transform(np.column_stack([x, y])) * points_per_pixel
    taken: list[tuple[float, float, float, float]] = [(px - 1, py - 1, px + 1, py + 1) for px, py in at]
    for (px, py), gx, gy, name in zip(at, x, y, names, strict=True):
        width, height = 4.3 * len(name), 7.5
        for dx, dy in ((4, -3), (-4 - width, -3), (-width / 2, 4), (-width / 2, -11)):
            box = (px + dx, py + dy, px + dx + width, py + dy + height)
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                ax.annotate(name, (gx, gy), (dx, dy + 1), textcoords="offset points", size=7, style="italic")
                break


def needs(job: Job) -> Need:
    """Tables of genes, and the images."""
    return job.drawn(110 * MB, 0, seconds=20)


def main(snakemake: Any) -> None:
    """Draw `hvg.png` from `hvg.parquet`, with the symbols of `genes.parquet`."""
    hvg = read_table(snakemake.input.hvg)
    symbols = read_table(snakemake.input.genes, columns=["gene_symbols"])["gene_symbols"]
    plots.save(hvg_scatter(hvg, symbols, snakemake.params.flavor), snakemake.output.hvg)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
