"""Common parts of the figures: style, colours, panels sized in inches, points, limits, byte-identical files.

Figures are `matplotlib.figure.Figure`s, without pyplot; the user's matplotlibrc is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as Vertices
from matplotlib.transforms import Affine2D, IdentityTransform

from lib.figures.words import metric_label
from lib.store.categories import PALETTE, category_colours, name_of, natural_order
from lib.store.files import replacing

mpl.rcdefaults()
mpl.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.labelsize": 9,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "path.simplify": True,
        "agg.path.chunksize": 10_000,
    }
)

KEPT, LIMIT, BACKGROUND = "#A9B1B8", "#444444", "#DDDDDD"
MAX_DRAWN = 500_000  # points of one scatter; of more cells a random sample is drawn
FAR = 10  # panels between the data and a limit that is drawn
MANY = 20_000  # from this number on, points of a scatter are drawn as `Dots`, and more transparent
RUN = 64  # points of one colour, on average, that are drawn at once


def categories(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Codes (-1: missing), and the categories that occur, in natural order."""
    codes, found = pd.factorize(values)
    names = natural_order(found)
    places = {name: i for i, name in enumerate(names)}
    return np.array([*(places[name_of(name)] for name in found), -1])[codes], names


def reason_colours(reasons: Sequence[str]) -> dict[str, str]:
    """Grey for "" (kept), and a colour for each reason by its position in the order of the steps."""
    return category_colours(["", *reasons]) | {"": KEPT}


def panels(
    n_rows: int,
    n_cols: int,
    size: tuple[float, float],
    gap: tuple[float, float] = (0.7, 0.6),
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """A figure of equal panels, all lengths in inches.

    Parameters
    ----------
    n_rows, n_cols
        The grid.
    size
        Width and height of a panel.
    gap
        Space between panels, horizontal and vertical.
    options
        Options of `Figure.subplots`.

    Returns
    -------
    The figure and its axes, n_rows x n_cols.
    """
    (width, height), (across, down) = size, gap
    total = (n_cols * width + (n_cols - 1) * across, n_rows * height + (n_rows - 1) * down)
    fig = Figure(figsize=total)
    grid = {"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": across / width, "hspace": down / height}
    return fig, fig.subplots(n_rows, n_cols, squeeze=False, gridspec_kw=grid, **options)


def nothing(why: str) -> Figure:
    """An empty figure with the reason why nothing is drawn."""
    fig, axes = panels(1, 1, (4, 0.6))
    axes[0, 0].text(0.5, 0.5, why, ha="center", va="center")
    axes[0, 0].set_axis_off()
    return fig


def save(fig: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a PNG, cropped to its content; equal figures give equal bytes."""
    fig.set_dpi(dpi)
    # bbox_inches="tight" finds the same box, but draws everything first
    drawn = fig.get_tightbbox(FigureCanvasAgg(fig).get_renderer()).padded(0.1)
    with replacing(path) as partial:
        fig.savefig(partial, format="png", dpi=dpi, bbox_inches=drawn, metadata={"Software": None})


_tasks: Sequence[Callable[[], None]] = ()


def draw_all(tasks: Sequence[Callable[[], None]], processes: int) -> None:
    """Run tasks, each of which draws a figure, in this many forked processes; in this process if one suffices.

    Forks share this process' memory, so no data are copied. An error of a task is raised here, with its traceback. A
    process with a GPU context must not fork.
    """
    global _tasks
    if min(processes, len(tasks)) < 2:
        for task in tasks:
            task()
        return
    _tasks = tasks
    with ProcessPoolExecutor(min(processes, len(tasks)), mp_context=get_context("fork")) as pool:
        list(pool.map(_run, range(len(tasks))))


def _run(i: int) -> None:
    _tasks[i]()


def drawing_order(n: int, seed: int) -> np.ndarray:
    """At most MAX_DRAWN cells in random order, so that no group covers the others."""
    return np.random.default_rng(seed).permutation(n)[:MAX_DRAWN]


def point_style(n: int, side: float) -> dict[str, Any]:
    """Size and opacity for `n` points in a panel about `side` inches wide."""
    area = np.clip(20 * side**2 / np.sqrt(max(n, 1)), 0.3, 12)
    return {"s": area, "alpha": 0.9 if n < MANY else 0.7, "linewidths": 0, "marker": "o", "rasterized": True}


class Dots(PathCollection):
    """A scatter of many small dots of one size, each drawn at the nearest pixel.

    A PathCollection draws a path for each point, which takes three times as long; Agg draws a marker once per colour
    and copies it. The blocks of points keep their order. Within a block, of about RUN points per colour, the colours
    are drawn one after the other in a seeded random order; blocks are so small that no colour seems to lie on top.
    """

    def draw(self, renderer: Any) -> None:
        """Draw with a renderer."""
        self.set_sizes(self.get_sizes(), self.figure.dpi)
        self.update_scalarmappable()
        pixels = self.get_offset_transform().transform(np.ma.filled(self.get_offsets(), np.nan))
        pixels += (-0.5, 0.5)  # Agg draws a marker half a pixel right of and below its rounded position
        bytes_of = np.round(255 * self.get_facecolors()).astype(np.uint8)
        colours, which = np.unique(bytes_of.view(np.uint32).ravel(), return_inverse=True)
        colours = colours.view(np.uint8).reshape(-1, 4) / 255
        block = np.arange(len(pixels)) // (RUN * len(colours))
        turns = np.tile(np.arange(len(colours)), (block[-1] + 1, 1))
        turns = np.random.default_rng(0).permuted(turns, axis=1)
        run = block * len(colours) + turns[block, which]
        order = run.argsort(kind="stable")
        pixels, which, run = pixels[order], which[order], run[order]
        starts = np.flatnonzero(np.diff(run, prepend=-1))
        circle, size = self.get_paths()[0], Affine2D(self.get_transforms()[0])
        gc = renderer.new_gc()
        self._set_gc_clip(gc)
        gc.set_linewidth(0)
        for start, stop in zip(starts, [*starts[1:], len(pixels)], strict=True):
            at = Vertices(pixels[start:stop])
            renderer.draw_markers(gc, circle, size, at, IdentityTransform(), tuple(colours[which[start]]))
        gc.restore()
        self.stale = False


def dots(ax: Axes, x: np.ndarray, y: np.ndarray, colours: Any, **style: Any) -> PathCollection:
    """A scatter in the order given; `colours` holds a value or RGBA for each point, or is the name of one colour."""
    drawn = ax.scatter(x, y, c=colours, **style)
    if len(x) >= MANY and not isinstance(colours, str):
        drawn.__class__ = Dots  # differs from a PathCollection only in drawing
    return drawn


def points(ax: Axes, x: np.ndarray, y: np.ndarray, colours: np.ndarray, seed: int, **options: Any) -> PathCollection:
    """A scatter with one point per cell, in random order; `colours` holds a value or RGBA for each cell."""
    order = drawing_order(len(x), seed)
    style = point_style(len(order), inches(ax)[0])
    return dots(ax, x[order], y[order], colours[order], **{**style, **options})


def rgba(colours: Iterable[str]) -> np.ndarray:
    """Named colours as an RGBA array, colours x 4."""
    return mpl.colors.to_rgba_array(list(colours))


def draw_limits(ax: Axes, axis: str, at: Iterable[float]) -> None:
    """Draw dashed lines with their values across the panel at the limits of the metric on the `axis` "x" or "y".

    A limit that is farther away than FAR panels is left out: the panel, or the image, would be stretched to it.
    """
    ends = ax.get_xlim() if axis == "x" else ax.get_ylim()
    scale = (ax.xaxis if axis == "x" else ax.yaxis).get_transform().transform
    low, high = sorted(scale(np.array(ends, float)))
    for value in at:
        with np.errstate(all="ignore"):
            if not -FAR <= (scale(np.array([value], float))[0] - low) / (high - low) <= FAR:
                continue
        line, text = (ax.axvline, (value, 1.0)) if axis == "x" else (ax.axhline, (1.0, value))
        line(value, color=LIMIT, lw=0.9, ls=(0, (4, 2)), zorder=3)
        coords = ax.get_xaxis_transform() if axis == "x" else ax.get_yaxis_transform()
        where = {"ha": "center", "va": "bottom"} if axis == "x" else {"ha": "left", "va": "center"}
        ax.text(*text, f" {value:,g}", transform=coords, color=LIMIT, size=7, **where)


def log_axis(axis: Any) -> None:
    """Set a log scale; up to five decades with ticks such as 1,000 instead of 10^3."""
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    set_scale("log")
    log_ticks(axis, *axis.get_view_interval())


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Set the ticks of `log_axis` on an axis that is log-scaled already, from `low` to `high`."""
    decades = np.log10(high / low)
    subs = range(1, 10) if decades < 0.7 else (1, 2, 5) if decades < 1.5 else (1, 3) if decades < 2.5 else (1,)
    axis.set_major_locator(mpl.ticker.MaxNLocator(5) if decades < 0.2 else mpl.ticker.LogLocator(subs=subs))
    if decades < 5:
        thousands(axis)
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def thousands(axis: Any) -> None:
    """Set ticks such as 12,000."""
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.12g}"))


def metric_scatter(
    ax: Axes,
    cells: pd.DataFrame,
    metric: str,
    limits: Mapping[str, Sequence[float]],
    colours: np.ndarray | None,
    seed: int,
) -> Any:
    """Draw counts per cell (log) against another metric, with the limits of both, and return the artist.

    `colours` holds one RGBA per cell; None: hexagons shaded by their number of cells.
    """
    log = metric == "n_genes_by_counts"
    x, y = np.maximum(cells["total_counts"].to_numpy(), 1), cells[metric].fillna(0).to_numpy(dtype=float)
    y = np.maximum(y, 1) if log else y
    if colours is None:
        scales = {"xscale": "log", "yscale": "log" if log else "linear"}
        drawn = ax.hexbin(x, y, bins="log", gridsize=60, mincnt=1, linewidths=0, cmap="viridis", **scales)
    else:
        drawn = points(ax, x, y, colours, seed)
    log_axis(ax.xaxis)
    if log:
        log_axis(ax.yaxis)
    else:
        ax.set_ylim(bottom=0)
    draw_limits(ax, "x", limits.get("total_counts", []))
    draw_limits(ax, "y", limits.get(metric, []))
    ax.set_xlabel(metric_label("total_counts"))
    ax.set_ylabel(metric_label(metric))
    return drawn


def inches(ax: Axes) -> np.ndarray:
    """Width and height of a panel."""
    return ax.figure.get_size_inches() * (ax.get_position().width, ax.get_position().height)


def colour_bar(ax: Axes, drawn: Any, label: str, gap: float = 0.1, height: float = 1.8) -> Any:
    """A slim colour bar to the right of a panel, whose size does not change; `gap` and `height` in inches."""
    across, up = inches(ax)
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1 + gap / across, 1 - height / up, 0.13 / across, height / up)))
    bar.set_label(label, size=8)
    bar.outline.set_visible(False)
    bar.solids.set_alpha(1)
    if isinstance(drawn.norm, mpl.colors.LogNorm):
        bar.ax.minorticks_off()
        log_ticks(bar.ax.yaxis, drawn.norm.vmin, drawn.norm.vmax)
    return bar


def outside_legend(ax: Axes, colours: Mapping[str, str], max_rows: int = 20, **options: Any) -> Any:
    """A legend of dots to the right of a panel, in columns of at most `max_rows`."""
    dots = [Line2D([], [], marker="o", ls="", ms=5, color=colour, label=name) for name, colour in colours.items()]
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0, "handletextpad": 0.2}
    columns = -(-len(dots) // max_rows)
    return ax.legend(handles=dots, ncols=columns, columnspacing=1.0, labelspacing=0.35, **{**place, **options})


def batch_legend(ax: Axes, colours: Mapping[str, str]) -> None:
    """Add the legend, or a note with the number of categories if there are more than colours."""
    if len(colours) <= len(PALETTE):
        outside_legend(ax, colours)
    else:
        ax.text(1.02, 1, f"{len(colours)} categories:\ncolours repeat", va="top", transform=ax.transAxes, size=8)


def without_ticks(ax: Axes, spines: bool = False) -> None:
    """Remove ticks and frame of a panel whose coordinates have no meaning, as in UMAP."""
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(spines)
