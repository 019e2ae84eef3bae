"""The cells in two dimensions, one figure for each colouring: clusters, cell types, batches, quality, density.

Points are drawn in a seeded random order, so that no category covers another for standing first in a file. More
categories than the palette has colours are shown as small multiples, each category upon all cells in grey.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
from lib import plots, stage
from lib.files import read_table
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

SIDE = 5.0  # inches of the panel
LOG = ("total_counts", "n_genes_by_counts")


def by_category(X: np.ndarray, values: pd.Series, axes_names: Sequence[str], seed: int, named: bool) -> Figure:
    """Cells coloured by category, with a legend that counts them.

    Parameters
    ----------
    X
        cells x 2.
    values
        Each cell's category; missing ones are grey.
    axes_names
        Of the two dimensions.
    seed
        Of the drawing order.
    named
        Write the names onto the cells too, as is good for clusters.
    """
    codes, names = plots.categories(values)
    if len(names) > len(plots.PALETTE):
        return small_multiples(X, codes, names, axes_names, seed)
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    colours = [*plots.category_colours(names).values(), plots.BACKGROUND]
    fig, ax = embedding_panel(axes_names, str(values.name))
    plots.points(ax, *X.T, np.array(colours)[codes], seed)
    legend = {f"{name} ({n:,})": colour for name, n, colour in zip(names, sizes, colours, strict=False)}
    if (codes < 0).any():
        legend[f"missing ({(codes < 0).sum():,})"] = plots.BACKGROUND
    plots.outside_legend(ax, legend, max_rows=25)
    if named:
        for code, name in enumerate(names):
            x, y = central_cell(X[codes == code])
            halo = [effects.withStroke(linewidth=2.2, foreground="white")]
            ax.text(x, y, name, ha="center", va="center", size=9, weight="bold", path_effects=halo)
    return fig


def central_cell(X: np.ndarray) -> np.ndarray:
    """The cell nearest to the median: a place for a name that lies on the category whatever its shape."""
    return X[((X - np.median(X, axis=0)) ** 2).sum(1).argmin()]


def by_value(X: np.ndarray, values: pd.Series, axes_names: Sequence[str], seed: int) -> Figure:
    """Cells shaded by a number, counts on a log scale, up to the 99.5th percentile; cells without one are grey."""
    numbers = values.to_numpy(dtype=float)
    known = np.isfinite(numbers)
    fig, ax = embedding_panel(axes_names, plots.metric_label(str(values.name)))
    if not known.all():
        plots.points(ax, *X[~known].T, np.full((~known).sum(), plots.BACKGROUND), seed)
    if known.any():
        log = values.name in LOG
        low, high = np.percentile(np.maximum(numbers[known], 1) if log else numbers[known], [0.5, 99.5])
        norm = (LogNorm if log else Normalize)(low, max(high, low + 1e-9))
        shown = np.maximum(numbers[known], 1) if log else numbers[known]
        drawn = plots.points(ax, *X[known].T, shown, seed, norm=norm, cmap="viridis")
        plots.colour_bar(ax, drawn, plots.metric_label(str(values.name)))
    return fig


def small_multiples(
    X: np.ndarray,
    codes: np.ndarray,
    names: Sequence[str],
    axes_names: Sequence[str],
    seed: int,
    density: np.ndarray | None = None,
) -> Figure:
    """A panel for each category: its cells, in colour or shaded by their density, upon all cells in grey."""
    n = len(names)
    columns = min(n, int(np.ceil(np.sqrt(1.6 * n))))
    side = float(np.clip(14 / columns, 0.8, 2.6))
    fig, axes = plots.panels(-(-n // columns), columns, (side, side), (0.06, 0.2 if side < 1.5 else 0.28))
    extent = [*np.percentile(X[:, 0], [0, 100]), *np.percentile(X[:, 1], [0, 100])]
    cells = np.histogram2d(X[:, 1], X[:, 0], bins=150, range=[extent[2:], extent[:2]])[0]
    grey = {"origin": "lower", "extent": extent, "aspect": "auto", "cmap": "Greys", "vmin": 0, "vmax": 6}
    colours = plots.category_colours(names) if n <= len(plots.PALETTE) else dict.fromkeys(names, plots.PALETTE[0])
    for ax, code in zip(axes.flat, range(axes.size), strict=True):
        plots.without_ticks(ax)
        if code >= n:
            continue
        mine = codes == code
        ax.imshow(np.where(cells > 0, 1.0, np.nan), interpolation="nearest", **grey)
        if density is None:
            plots.points(ax, *X[mine].T, np.full(mine.sum(), colours[names[code]]), seed)
        else:
            order = np.flatnonzero(mine)[density[mine].argsort(kind="stable")]
            style = plots.point_style(len(order), side)
            drawn = ax.scatter(*X[order].T, c=density[order], cmap="plasma", vmin=0, vmax=1, **style)
        title = f"{names[code]} ({mine.sum():,})"
        ax.set_title(title, size=8 if side > 1.5 else 6, weight="normal", pad=2)
        ax.margins(0.02)
    axes[-1, 0].set_xlabel(axes_names[0], size=7, loc="left")
    axes[-1, 0].set_ylabel(axes_names[1], size=7, loc="bottom")
    if density is not None:
        plots.colour_bar(axes[0, -1], drawn, "density within the category", height=1.6)
    return fig


def embedding_panel(axes_names: Sequence[str], title: str) -> tuple[Figure, Axes]:
    """A square panel without ticks, whose units mean nothing."""
    fig, axes = plots.panels(1, 1, (SIDE, SIDE))
    plots.without_ticks(axes[0, 0])
    axes[0, 0].set_xlabel(axes_names[0], loc="left")
    axes[0, 0].set_ylabel(axes_names[1], loc="bottom")
    axes[0, 0].set_title(title, loc="left")
    return fig, axes[0, 0]


def figure_of(embedding: pd.DataFrame, table: pd.DataFrame, name: str, seed: int, named: bool) -> Figure:
    """The figure of a column of `table`, or, named density_{groupby}, of the density of each category's cells."""
    X, axes_names = embedding.to_numpy(dtype=np.float32), list(embedding.columns)
    if name.startswith("density_"):
        codes, names = plots.categories(table[name.removeprefix("density_")])
        return small_multiples(X, codes, names, axes_names, seed, table[f"umap_{name}"].to_numpy())
    if pd.api.types.is_float_dtype(table[name]) or name in LOG:
        return by_value(X, table[name], axes_names, seed)
    return by_category(X, table[name], axes_names, seed, named)


def main(snakemake: Any) -> None:
    """Draw an embedding in each of `params.colours`, one output each, from obs, the clusterings and the density."""
    inputs, seed = snakemake.input, snakemake.config["seed"]
    embedding, table = read_table(inputs.embedding), read_table(inputs.obs)
    clusterings = pd.concat([pd.DataFrame(index=table.index), *map(read_table, inputs.clusterings)], axis=1)
    table = pd.concat([table, clusterings, *map(read_table, inputs.density)], axis=1)
    for name, path in zip(snakemake.params.colours, snakemake.output, strict=True):
        with stage.timed(name):
            plots.save(figure_of(embedding, table, name, seed, named=name in clusterings), path)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
