"""Draw the cells in two dimensions, one figure per colouring: clusters, cell types, batches, quality, density.

Points are drawn in a seeded random order, so that the order of the file does not decide which category covers another.
If there are more categories than colours, small multiples are drawn: each category over all cells in grey.
"""

from lib.start import run

from collections.abc import Sequence
from functools import partial
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
from lib.figures import plots, words
from lib.run.progress import timed
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import as_categories
from lib.store.cohort import with_results
from lib.store.files import read_table
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

SIDE = 5.0  # inches of the panel
LOG = ("total_counts", "n_genes_by_counts")


def by_category(X: np.ndarray, values: pd.Series, axes_names: Sequence[str], seed: int, named: bool) -> Figure:
    """Cells coloured by category, with a legend that has the number of cells.

    Parameters
    ----------
    X
        cells x 2.
    values
        Each cell's category; missing ones are grey.
    axes_names
        Names of the two dimensions.
    seed
        Of the drawing order.
    named
        Whether to write the names onto the cells too, as is useful for clusters.
    """
    codes, names = plots.categories(values)
    if len(names) > len(plots.PALETTE):
        return small_multiples(X, codes, names, axes_names, seed)
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    colours = [*plots.category_colours(names).values(), plots.BACKGROUND]
    fig, ax = embedding_panel(axes_names, str(values.name))
    plots.points(ax, *X.T, plots.rgba(colours)[codes], seed)
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
    """The cell nearest to the median: a place for a name that always lies on the category."""
    return X[((X - np.median(X, axis=0)) ** 2).sum(1).argmin()]


def by_value(X: np.ndarray, values: pd.Series, axes_names: Sequence[str], seed: int) -> Figure:
    """Cells shaded by a number, counts on a log scale, up to the 99.5th percentile; cells without one are grey."""
    numbers = values.to_numpy(dtype=float)
    known = np.isfinite(numbers)
    fig, ax = embedding_panel(axes_names, words.metric_label(str(values.name)))
    if not known.all():
        plots.points(ax, *X[~known].T, plots.rgba([plots.BACKGROUND] * (~known).sum()), seed)
    if known.any():
        log = values.name in LOG
        low, high = np.percentile(np.maximum(numbers[known], 1) if log else numbers[known], [0.5, 99.5])
        norm = (LogNorm if log else Normalize)(low, max(high, low + 1e-9))
        shown = np.maximum(numbers[known], 1) if log else numbers[known]
        drawn = plots.points(ax, *X[known].T, shown, seed, norm=norm, cmap="viridis")
        plots.colour_bar(ax, drawn, words.metric_label(str(values.name)))
    return fig


def small_multiples(
    X: np.ndarray,
    codes: np.ndarray,
    names: Sequence[str],
    axes_names: Sequence[str],
    seed: int,
    density: np.ndarray | None = None,
) -> Figure:
    """A tile for each category: its cells, in blue or shaded by their density, over all cells in grey.

    The tiles share one `Axes`, in which a tile is one unit wide: two hundred `Axes` would take half a minute.
    """
    n = len(names)
    columns = max(1, min(n, int(np.ceil(np.sqrt(1.6 * n)))))
    rows = max(1, -(-n // columns))
    side = float(np.clip(14 / columns, 0.8, 2.6))
    title = 0.2 / side  # height of a tile's title, in tiles
    unit = 0.03 + 0.94 * (X - X.min(0)) / np.maximum(np.ptp(X, axis=0), 1e-9)
    fig, axes = plots.panels(1, 1, (columns * side, rows * (side + 0.2)))
    ax = axes[0, 0]
    plots.without_ticks(ax)
    occupied = np.histogram2d(unit[:, 1], unit[:, 0], bins=150, range=[[0, 1], [0, 1]])[0] > 0
    ground = np.where(occupied, 1.0, np.nan)
    corners = [(code % columns, -(code // columns + 1) * (1 + title)) for code in range(n)]
    for (x, y), name, size in zip(corners, names, np.bincount(codes[codes >= 0], minlength=n), strict=True):
        place = {"extent": (x, x + 1, y, y + 1), "origin": "lower", "interpolation": "nearest", "aspect": "auto"}
        ax.imshow(ground, cmap="Greys", vmin=0, vmax=6, **place)
        ax.text(x + 0.5, y + 1, f"{name} ({size:,})", ha="center", va="bottom", size=8 if side > 1.5 else 6)
    ax.set_xlim(0, columns)
    ax.set_ylim(-rows * (1 + title), 0)
    shown = plots.drawing_order(len(X), seed)
    shown = shown[codes[shown] >= 0]
    if density is not None:
        shown = shown[density[shown].argsort(kind="stable")]
    tiled = unit[shown] + np.array(corners).reshape(-1, 2)[codes[shown]]
    style = plots.point_style(int(len(shown) / max(n, 1)), side)
    if density is None:
        plots.dots(ax, *tiled.T, plots.PALETTE[0], **style)
    else:
        drawn = plots.dots(ax, *tiled.T, density[shown], cmap="plasma", vmin=0, vmax=1, **style)
        plots.colour_bar(ax, drawn, "density within the category", height=min(1.8, rows * side))
    ax.set_xlabel(axes_names[0], size=7, loc="left")
    ax.set_ylabel(axes_names[1], size=7, loc="bottom")
    return fig


def embedding_panel(axes_names: Sequence[str], title: str) -> tuple[Figure, Axes]:
    """A square panel without ticks, as its units have no meaning."""
    fig, axes = plots.panels(1, 1, (SIDE, SIDE))
    plots.without_ticks(axes[0, 0])
    axes[0, 0].set_xlabel(axes_names[0], loc="left")
    axes[0, 0].set_ylabel(axes_names[1], loc="bottom")
    axes[0, 0].set_title(title, loc="left")
    return fig, axes[0, 0]


def figure_of(embedding: pd.DataFrame, table: pd.DataFrame, name: str, seed: int, named: bool) -> Figure:
    """The figure of a column of `table`; for the name density_{groupby}, of the density of each category's cells."""
    X, axes_names = embedding.to_numpy(dtype=np.float32), list(embedding.columns)
    if name.startswith("pct_counts_") and (name not in table or table[name].isna().all()):
        return plots.nothing(f"{name}: the gene family has no gene in this cohort.")
    if name.startswith("density_"):
        codes, names = plots.categories(table[name.removeprefix("density_")])
        return small_multiples(X, codes, names, axes_names, seed, table[f"umap_{name}"].to_numpy())
    if pd.api.types.is_float_dtype(table[name]) or name in LOG:
        return by_value(X, table[name], axes_names, seed)
    return by_category(X, table[name], axes_names, seed, named)


def needs(job: Job) -> Need:
    """Tables of cells, and the images."""
    return job.drawn(110 * MB, 1.0 * KB, seconds=90)


def main(snakemake: Any) -> None:
    """Draw an embedding in each of `params.colours`, one output each, from obs, the clusterings and the density."""
    inputs, seed = snakemake.input, snakemake.params.seed
    embedding, table = read_table(inputs.embedding), read_table(inputs.obs)
    clusterings = pd.concat([pd.DataFrame(index=table.index), *map(read_table, inputs.clusterings)], axis=1)
    table = with_results(table, clusterings, *map(read_table, inputs.density))
    table = table.assign(**{name: as_categories(table[name]) for name in snakemake.params.groupings})

    def draw(name: str, path: str) -> None:
        with timed(name):
            plots.save(figure_of(embedding, table, name, seed, named=name in clusterings), path)

    tasks = [partial(draw, *pair) for pair in zip(snakemake.params.colours, snakemake.output, strict=True)]
    plots.draw_all(tasks, snakemake.threads)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
