"""Draw cells in two dimensions, coloured by category or by a number, in one panel or in tiles.

Points are drawn in a seeded random order, so that the order of the file does not decide which category covers another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure

from lib.figures import plots, words

SIDE = 5.0  # inches of a panel
LOG = ("total_counts", "n_genes_by_counts")
MAX_TILES = 200
MAX_IN_TILES = 200_000  # cells of all that tiles show, drawn at random
NAMED = 60  # categories whose names are written onto the cells at most
EXPRESSION = LinearSegmentedColormap.from_list("expression", ["#DDDDDD", "#FDC488", "#E0534A", "#7A0177", "#2D004B"])


def by_category(
    X: np.ndarray, values: pd.Series, axes_names: Sequence[str], seed: int, named: bool, family: str = "types"
) -> Figure:
    """Cells coloured by category, with a legend that has the number of cells.

    If there are more categories than colours, each gets a tile: its cells over all cells in grey.

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
        Whether to write the names onto the cells too.
    family
        Of the colours.
    """
    codes, names = plots.categories(values)
    if len(names) < 2 and (codes >= 0).all():
        return plots.nothing(f"{values.name}: all cells are of one category, {' '.join(names)}.")
    if len(names) > len(plots.PALETTE):
        return category_tiles(X, codes, names, axes_names, seed)
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    colours = [*plots.category_colours(names, family).values(), plots.BACKGROUND]
    fig, ax = embedding_panel(axes_names, str(values.name))
    plots.points(ax, *X.T, plots.rgba(colours)[codes], seed)
    legend = {f"{name} ({n:,})": colour for name, n, colour in zip(names, sizes, colours, strict=False)}
    if (codes < 0).any():
        legend[f"missing ({(codes < 0).sum():,})"] = plots.BACKGROUND
    plots.outside_legend(ax, legend)
    if named:
        order = np.argsort(-sizes, kind="stable")[:NAMED]
        starts = np.append((codes < 0).sum(), sizes).cumsum()
        sorted_cells = np.argsort(codes, kind="stable")
        at = np.array([central_cell(X[sorted_cells[starts[code] : starts[code + 1]]]) for code in order])
        plots.name_places(ax, at, [names[code] for code in order], size=8 if len(names) <= 25 else 7)
    return fig


def central_cell(X: np.ndarray) -> np.ndarray:
    """The cell nearest to the median: a place for a name that always lies on the category."""
    return X[((X - np.median(X, axis=0)) ** 2).sum(1).argmin()]


def by_value(ax: Axes, X: np.ndarray, values: pd.Series, seed: int, height: float = 1.8) -> Any:
    """Cells shaded by a number, counts on a log scale, between the 0.5th and the 99.5th percentile; others are grey.

    Stabilities, which are shares, are shaded from 0 to 1.

    `height` is that of the colour bar, in inches. Returns the shaded points; None if no cell has a number.
    """
    numbers = values.to_numpy(dtype=float)
    known = np.isfinite(numbers)
    if not known.all():
        plots.points(ax, *X[~known].T, plots.rgba([plots.BACKGROUND] * (~known).sum()), seed)
    if not known.any():
        return None
    log = values.name in LOG
    shown = np.maximum(numbers[known], 1) if log else numbers[known]
    low, high = (0, 1) if str(values.name).startswith(words.STABILITY) else np.percentile(shown, [0.5, 99.5])
    norm = (LogNorm if log else Normalize)(low, max(low, high))
    drawn = plots.points(ax, *X[known].T, shown, seed, norm=norm, cmap="viridis")
    plots.colour_bar(ax, drawn, words.metric_label(str(values.name)), height=height)
    return drawn


def value_panels(X: np.ndarray, table: pd.DataFrame, axes_names: Sequence[str], seed: int) -> Figure:
    """A panel for each column of numbers; a column without a number is named in place of its panel."""
    columns = min(3, max(1, table.shape[1]))
    fig, axes = plots.panels(-(-table.shape[1] // columns), columns, (3.0, 3.0), (1.0, 0.45))
    for ax in axes.flat:
        plots.without_ticks(ax)
    for ax, name in zip(axes.flat, table, strict=False):
        ax.set_title(words.metric_label(name), loc="left")
        if by_value(ax, X, table[name], seed, height=1.4) is None:
            ax.text(0.5, 0.5, "no cell has a value", ha="center", transform=ax.transAxes)
    axes[-1, 0].set_xlabel(axes_names[0], loc="left")
    axes[-1, 0].set_ylabel(axes_names[1], loc="bottom")
    return fig


def category_tiles(
    X: np.ndarray,
    codes: np.ndarray,
    names: Sequence[str],
    axes_names: Sequence[str],
    seed: int,
    density: np.ndarray | None = None,
) -> Figure:
    """A tile for each category: its cells, in blue or shaded by their density; the MAX_TILES largest of more."""
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    shown = np.sort(np.argsort(-sizes, kind="stable")[:MAX_TILES])
    order = plots.drawing_order(len(X), seed)
    if density is not None:
        order = order[density[order].argsort(kind="stable")]
    order = order[codes[order] >= 0]
    cells_of = dict(enumerate(np.split(order[codes[order].argsort(kind="stable")], np.cumsum(sizes)[:-1])))
    titles = [names[code] for code in shown], [f" ({sizes[code]:,})" for code in shown]
    drawn = [(cells_of[code], plots.PALETTE[0] if density is None else density[cells_of[code]]) for code in shown]
    label = "density within the category" if density is not None else None
    left_out = f"{len(names) - len(shown)} smaller categories are not drawn" if len(shown) < len(names) else ""
    return tiles(X, titles, drawn, axes_names, label, "plasma", left_out)


def tiles(
    X: np.ndarray,
    titles: tuple[Sequence[str], Sequence[str]],
    drawn: Iterable[tuple[np.ndarray, Any]],
    axes_names: Sequence[str],
    label: str | None,
    cmap: Any,
    note: str = "",
) -> Figure:
    """Small panels of some cells, over all cells in grey.

    The tiles share one `Axes`, in which a tile is one unit wide: two hundred `Axes` would take half a minute.

    Parameters
    ----------
    X
        cells x 2.
    titles
        Of the tiles: names, which are cut where they are too long, and what follows them.
    drawn
        Per tile: the positions of its cells in the order drawn, and their values between 0 and 1, or one colour.
    axes_names
        Names of the two dimensions.
    label
        Of the colour bar; None: without one.
    cmap
        Colour map of the values.
    note
        A remark below the tiles.
    """
    n = len(titles[0])
    columns = max(1, min(n, int(np.ceil(np.sqrt(1.6 * n)))))
    rows = max(1, -(-n // columns))
    side = float(np.clip(14 / columns, 0.75, 2.6))
    size = 8 if side > 1.5 else 6
    title = 1.6 * size / 72 / side  # height of a tile's title, in tiles
    unit = 0.03 + 0.94 * (X - X.min(0)) / np.maximum(np.ptp(X, axis=0), 1e-9)
    fig, axes = plots.panels(1, 1, (columns * side, rows * (1 + title) * side))
    ax = axes[0, 0]
    plots.without_ticks(ax)
    ground = np.where(np.histogram2d(unit[:, 1], unit[:, 0], bins=150, range=[[0, 1], [0, 1]])[0] > 0, 1.0, np.nan)
    ax.set_xlim(0, columns)
    ax.set_ylim(-rows * (1 + title), 0)
    shaded = None
    names = plots.counted(*titles, 0.94 * side, size)
    for i, (name, (cells, values)) in enumerate(zip(names, drawn, strict=True)):
        x, y = i % columns, -(i // columns + 1) * (1 + title)
        place = {"extent": (x, x + 1, y, y + 1), "origin": "lower", "interpolation": "nearest", "aspect": "auto"}
        ax.imshow(ground, cmap="Greys", vmin=0, vmax=6, **place)
        ax.text(x + 0.5, y + 1 + 0.2 * title, name, ha="center", va="bottom", size=size)
        at = unit[cells] + (x, y)
        style = plots.point_style(min(len(cells), MAX_IN_TILES), side)
        if isinstance(values, str):
            plots.dots(ax, *at.T, values, **style)
        elif len(cells):
            shaded = plots.dots(ax, *at.T, values, cmap=cmap, vmin=0, vmax=1, **style)
    if label and shaded is not None:
        plots.colour_bar(ax, shaded, label, height=min(1.8, rows * side))
    ax.set_xlim(0, columns)
    ax.set_ylim(-rows * (1 + title), 0)
    ax.set_xlabel(axes_names[0], size=7, loc="left")
    ax.set_ylabel(axes_names[1], size=7, loc="bottom")
    if note:
        ax.set_xlabel(f"{axes_names[0]}; {note}", size=7, loc="left")
    return fig


def embedding_panel(axes_names: Sequence[str], title: str) -> tuple[Figure, Axes]:
    """A square panel without ticks, as its units have no meaning."""
    fig, axes = plots.panels(1, 1, (SIDE, SIDE))
    plots.without_ticks(axes[0, 0])
    axes[0, 0].set_xlabel(axes_names[0], loc="left")
    axes[0, 0].set_ylabel(axes_names[1], loc="bottom")
    axes[0, 0].set_title(plots.fitted([title], SIDE, 9, "bold")[0], loc="left")
    return fig, axes[0, 0]
