"""Draw what clusters consist of: batches, types, quality; and how clusters split from one resolution to the next."""

from lib.start import run

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import distributions, plots
from lib.run.forked import run_all
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import as_categories, category_colours
from lib.store.cohort import with_results
from lib.store.files import column_names, read_table
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

CELL = (0.36, 0.21)  # inches of a field of a heatmap that holds its number
MAX_NUMBERS = 24  # columns with numbers in their fields at most
LINKED = 0.05  # share of a cluster's cells from which on a line leads to where they come from


def composition(clusters: pd.Series, other: pd.Series) -> pd.DataFrame:
    """The percentage of each cluster's cells in each category of `other`: clusters x categories, rows sum up to 100.

    Both in natural order; cells without a category are a column "missing" at the end.
    """
    codes, names = plots.categories(other)
    rows, clusters_found = plots.categories(clusters)
    names, codes = [*names, "missing"], np.where(codes < 0, len(names), codes)
    keys = rows[rows >= 0].astype(np.int64) * len(names) + codes[rows >= 0]
    counts = np.bincount(keys, minlength=len(clusters_found) * len(names)).reshape(-1, len(names))
    shares = pd.DataFrame(100 * counts / counts.sum(1, keepdims=True), clusters_found, names)
    return shares if counts[:, -1].any() else shares.iloc[:, :-1]


def by_likeness(shares: pd.DataFrame) -> pd.DataFrame:
    """The columns in the order of the clusters in which most of their cells are: matching types form a diagonal."""
    return shares.iloc[:, np.argsort(shares.to_numpy().argmax(0), kind="stable")]


def heatmap(shares: pd.DataFrame, sizes: Sequence[int], rows: str, columns: str) -> Figure:
    """A field for each cluster and category, shaded by the percentage of the cluster's cells.

    Parameters
    ----------
    shares
        See `composition`.
    sizes
        Cells of each cluster.
    rows, columns
        The names of the two groupings.
    """
    numbers = shares.shape[1] <= MAX_NUMBERS
    width = max(CELL[0] if numbers else 0.13, 1.2 / shares.shape[1])
    height = CELL[1] if len(shares) <= 75 else 0.13
    size = 8 if height == CELL[1] else 6
    fig, axes = plots.panels(1, 1, (width * shares.shape[1], height * len(shares)))
    ax = axes[0, 0]
    drawn = ax.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    titles = [f"{name} ({n:,})" for name, n in zip(shares.index, sizes, strict=True)]
    ax.set_yticks(range(len(shares)), plots.fitted(titles, 2.2, size), size=size)
    ax.set_xticks(range(shares.shape[1]), plots.fitted(list(shares.columns), 1.8, 7), rotation=90, size=7)
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    if numbers:
        for (row, column), share in np.ndenumerate(shares.to_numpy()):
            if share >= 0.5:
                ink = "white" if share > 60 else "black"
                ax.text(column, row, f"{share:.0f}", ha="center", va="center_baseline", size=7, color=ink)
    ax.set_ylabel(f"{plots.fitted([rows], 2, 9)[0]} (cells)")
    ax.set_title(plots.fitted([f"by {columns}"], max(3.0, width * shares.shape[1]), 9, "bold")[0], loc="left")
    plots.colour_bar(ax, drawn, "% of the cluster's cells", height=1.4)
    return fig


def tree(table: pd.DataFrame) -> Figure:
    """A row for each clustering, coarse above fine, with a dot for each cluster; lines lead to where its cells go.

    A line is thick where the cells are most of the lower cluster's. Source: clustree (Zappia & Oshlack 2018).

    Parameters
    ----------
    table
        Each cell's cluster, a column for each clustering, in the order of the rows.
    """
    found = [plots.categories(table[name]) for name in table]
    widest = max(len(names) for _, names in found)
    fig, axes = plots.panels(1, 1, (max(2.5, 0.3 * widest), max(1.0, 0.85 * (len(found) - 1))))
    ax = axes[0, 0]
    places, lines, widths = [np.linspace(0, 1, len(found[0][1]) + 2)[1:-1]], [], []
    for level, ((upper, above), (lower, below)) in enumerate(pairwise(found)):
        keys = upper.astype(np.int64) * len(below) + lower
        counts = np.bincount(keys[(upper >= 0) & (lower >= 0)], minlength=len(above) * len(below))
        shares = counts.reshape(len(above), -1) / counts.reshape(len(above), -1).sum(0)
        order = np.argsort(places[-1] @ shares, kind="stable")
        place = np.empty(len(below))
        place[order] = np.linspace(0, 1, len(below) + 2)[1:-1]
        for i, j in np.argwhere(shares >= LINKED):
            lines.append([(places[-1][i], -level), (place[j], -level - 1)])
            widths.append(0.4 + 3 * shares[i, j])
        places.append(place)
    ax.add_collection(LineCollection(lines, linewidths=widths, colors=plots.KEPT, zorder=1))
    for level, ((codes, names), place) in enumerate(zip(found, places, strict=True)):
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        area = 60 + 340 * sizes / len(table)
        colours = list(category_colours(names, "clusters").values())
        ax.scatter(place, np.full(len(names), -level), s=area, c=colours, linewidths=0, zorder=2)
        for x, name in zip(place, names, strict=True):
            ax.text(x, -level, name, ha="center", va="center_baseline", size=6.5, zorder=3)
    ax.set_xlim(0, 1)
    ax.set_ylim(-len(found) + 0.7, 0.3)
    plots.without_ticks(ax)
    ax.set_yticks(-np.arange(len(found)), list(table))
    ax.tick_params(axis="y", length=0)
    return fig


def quality(table: pd.DataFrame, clusters: pd.Series, limits: Mapping[str, Sequence[float]]) -> Figure:
    """Violins of the metrics in each cluster."""
    _, names = plots.categories(clusters)
    return distributions.violins(table, clusters, category_colours(names, "clusters"), limits)


def needs(job: Job) -> Need:
    """Tables of cells, and the images."""
    return job.drawn(110 * MB, 0.6 * KB, seconds=20)


def main(snakemake: Any) -> None:
    """Draw the composition by `params.groupings` and the quality of each of `params.clusterings`, and the trees."""
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    clusterings = pd.concat([read_table(path, named=False) for path in inputs.clusterings], axis=1)
    known = column_names(inputs.obs)
    metrics = [name for name in params.metrics if name in known]
    table = with_results(read_table(inputs.obs, [*params.groupings, *metrics], named=False), clusterings)
    metrics = [name for name in metrics if table[name].notna().any()]
    table = table.assign(**{name: as_categories(table[name]) for name in [*params.groupings, *params.clusterings]})

    def draw_composition(name: str, other: str, paths: list[str]) -> None:
        shares = composition(table[name], table[other])
        sizes = table[name].value_counts()[shares.index]
        ordered = shares if params.colours.get(other) == "batches" else by_likeness(shares)
        plots.save(heatmap(ordered, sizes.tolist(), name, other), paths)

    def draw_quality(name: str, paths: list[str]) -> None:
        plots.save(quality(table[metrics], table[name], {}), paths)

    def draw_tree(method: str, paths: list[str]) -> None:
        plots.save(tree(table[params.trees[method]]), paths)

    def each(draw: Any, given: list[tuple[str, ...]], paths: Sequence[str]) -> list[Any]:
        of_each = np.reshape(paths, (len(given), -1)).tolist() if given else []
        return [partial(draw, *one, to) for one, to in zip(given, of_each, strict=True)]

    pairs = [(name, other) for name in params.clusterings for other in params.groupings]
    tasks = each(draw_composition, pairs, output.composition)
    tasks += each(draw_quality, [(name,) for name in params.clusterings], output.quality)
    tasks += each(draw_tree, [(method,) for method in params.trees], output.get("trees", []))
    run_all(tasks, snakemake.threads)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
