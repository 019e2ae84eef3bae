"""Common parts of the figures: style, colours, panels sized in inches, points, limits, byte-identical files.

Figures are `matplotlib.figure.Figure`s, without pyplot; the user's matplotlibrc is ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

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
        "pdf.fonttype": 42,  # text stays text
        "text.parse_math": False,  # names may hold a $
    }
)

KEPT, LIMIT, BACKGROUND = "#A9B1B8", "#444444", "#DDDDDD"
FAR = 1.5  # panels between the data and a limit that is drawn
MANY = 10_000  # from this number on, points of a scatter are drawn as `Dots`
FINE = 2  # pixels of `Dots`, per pixel of the picture and direction, before they are averaged
MAX_PIXELS = 2400  # height of a picture; a taller one is drawn at fewer dots per inch
LINE = 1.3  # height of a line of text, in heights of the letters


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


def save(fig: Figure, paths: str | Path | Sequence[str | Path], dpi: int = 150) -> None:
    """Write a figure, cropped to its content, as PNG or PDF by each path's suffix; equal figures give equal bytes."""
    fig.set_dpi(dpi)
    # bbox_inches="tight" finds the same box, but draws everything first
    drawn = fig.get_tightbbox(FigureCanvasAgg(fig).get_renderer()).padded(0.1)
    for path in [paths] if isinstance(paths, str | Path) else paths:
        with replacing(path) as partial:
            if Path(path).suffix == ".pdf":
                fig.savefig(partial, format="pdf", dpi=dpi, bbox_inches=drawn, metadata={"CreationDate": None})
                continue
            with_palette(pixels(fig, min(dpi, MAX_PIXELS / drawn.height), drawn)).save(partial, "png")


def with_palette(image: np.ndarray) -> Image.Image:
    """The picture in at most 256 colours, white among them: a file of a third of the size, which is deflated sooner."""
    found = Image.fromarray(image).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours = np.array(found.getpalette()).reshape(-1, 3)
    colours[(colours >= 252).all(1)] = 255  # the quantisation takes means
    found.putpalette(colours.ravel().tolist())
    return found


def pixels(fig: Figure, dpi: float, box: Bbox) -> np.ndarray:
    """The pixels of a part of a figure, height x width x RGB; `box` in inches."""
    raw = BytesIO()
    fig.savefig(raw, format="rgba", dpi=dpi, bbox_inches=box)
    wide, high = (int(side * dpi) for side in box.size)
    # matplotlib rounds down what arithmetic made of these sides
    sizes = [(raw.tell() // 4 // w, w) for w in (wide, wide + 1, wide - 1) if raw.tell() % (4 * w) == 0]
    size = min(sizes, key=lambda size: abs(size[0] - high))
    return np.frombuffer(raw.getbuffer(), np.uint8).reshape(*size, 4)[..., :3]


def drawing_order(n: int, seed: int) -> np.ndarray:
    """All cells in random order, so that no group covers the others."""
    return np.random.default_rng(seed).permutation(n)


def point_style(n: int, side: float) -> dict[str, Any]:
    """Size and opacity for `n` points in a panel about `side` inches wide."""
    area = np.clip(20 * side**2 / np.sqrt(max(n, 1)), 0.3, 12)
    return {"s": area, "alpha": 0.9 if n < MANY else 1, "linewidths": 0, "marker": "o", "rasterized": True}


class Dots(PathCollection):
    """A scatter of many opaque dots of one size, drawn as one image.

    A PathCollection draws a path for each point. Here a pixel gets the colour of the last point whose dot covers it:
    the positions of the points are written into an array, which is then dilated by the dot. The pixels are FINE times
    smaller than those of the picture, and averaged.
    """

    def draw(self, renderer: Any) -> None:
        """Draw with a renderer."""
        if not self.get_visible() or not len(self.get_offsets()):
            return
        self.update_scalarmappable()
        at = self.get_offset_transform().transform(np.ma.filled(self.get_offsets(), np.nan))
        inside = np.flatnonzero(((at >= self.axes.bbox.min) & (at <= self.axes.bbox.max)).all(1))
        if not len(inside):
            return
        radius = np.sqrt(self.get_sizes()[0]) / 2 * renderer.points_to_pixels(1)
        at = at[inside]
        left, bottom = np.floor(at.min(0) - radius).astype(int)
        right, top = np.ceil(at.max(0) + radius).astype(int) + 1
        width, height = FINE * (right - left), FINE * (top - bottom)
        x, y = ((at - (left, bottom)) * FINE).astype(np.int32).T
        last = np.full(height * width, -1, np.int32)
        last[y * width + x] = inside  # the last one of a pixel stays
        last = dilated(last.reshape(height, width), FINE * radius)
        colours = np.vstack([self.get_facecolors(), np.zeros(4)])
        colours[:, :3] *= colours[:, 3:]
        colours = np.round(255 * colours).astype(np.uint8).view(np.uint32)[:, 0]
        fine = colours[np.minimum(last, 0) if len(colours) == 2 else last].view(np.uint8).reshape(height, width, 4)
        parts = [fine[i::FINE, j::FINE] for i in range(FINE) for j in range(FINE)]
        image = parts[0].astype(np.uint16)
        for part in parts[1:]:
            image += part
        image = image.astype(np.float32)
        image[..., :3] *= 255 / np.maximum(image[..., 3:], 1)  # Agg multiplies by the opacity
        image[..., 3] /= FINE**2
        gc = renderer.new_gc()
        self._set_gc_clip(gc)
        renderer.draw_image(gc, left, bottom, np.round(image).astype(np.uint8))
        gc.restore()
        self.stale = False


def dilated(last: np.ndarray, radius: float) -> np.ndarray:
    """The maximum of an array of numbers within a circle around each element."""
    found, wide, half = last.copy(), last, 0
    rows = int(radius)
    for down in range(rows, -1, -1):  # from the narrow top of the circle to its middle
        reach = int(np.sqrt(max(radius**2 - down**2, 0)))
        while half < reach:
            half += 1
            wide = wide.copy() if half == 1 else wide
            np.maximum(wide[:, half:], last[:, :-half], out=wide[:, half:])
            np.maximum(wide[:, :-half], last[:, half:], out=wide[:, :-half])
        below, above = slice(down, None), slice(None, len(last) - down)
        np.maximum(found[below], wide[above], out=found[below])
        np.maximum(found[above], wide[below], out=found[above])
    return found


def dots(ax: Axes, x: np.ndarray, y: np.ndarray, colours: Any, **style: Any) -> PathCollection:
    """A scatter in the order given; `colours` holds a value or RGBA for each point, or is the name of one colour."""
    drawn = ax.scatter(x, y, c=colours, **style)
    if len(x) >= MANY:
        drawn.__class__ = Dots  # differs from a PathCollection only in drawing
    return drawn


def points(ax: Axes, x: np.ndarray, y: np.ndarray, colours: np.ndarray, seed: int, **options: Any) -> PathCollection:
    """A scatter with one point per cell, in random order; `colours` holds a value or RGBA for each cell."""
    order = drawing_order(len(x), seed)
    style = point_style(len(order), min(inches(ax)))
    return dots(ax, x[order], y[order], colours[order], **{**style, **options})


def rgba(colours: Iterable[str]) -> np.ndarray:
    """Named colours as an RGBA array, colours x 4."""
    return mpl.colors.to_rgba_array(list(colours))


def draw_limits(ax: Axes, axis: str, at: Iterable[float]) -> None:
    """Draw dashed lines with their values across the panel at the limits of the metric on the `axis` "x" or "y".

    The axis is extended to a limit, but not to more than FAR times the data's range. A value that would cover another
    one is left out.
    """
    scale = (ax.xaxis if axis == "x" else ax.yaxis).get_transform()
    set_ends = ax.set_xlim if axis == "x" else ax.set_ylim
    low, high = scale.transform(np.array(ax.get_xlim() if axis == "x" else ax.get_ylim(), float))
    drawn = sorted(float(value) for value in at)
    with np.errstate(all="ignore"):
        places = (scale.transform(np.array(drawn, float)) - low) / (high - low) if drawn else np.empty(0)
    drawn = [value for value, place in zip(drawn, places, strict=True) if 0 - FAR <= place <= 1 + FAR]
    places = places[(places >= -FAR) & (places <= 1 + FAR)]
    if not drawn:
        return
    ends = low + np.array([min(0, places.min() - 0.04), max(1, places.max() + 0.04)]) * (high - low)
    outside = places.min() < 0, places.max() > 1
    set_ends(*scale.inverted().transform(np.where(outside, ends, [low, high])))
    low, high = np.where(outside, ends, [low, high])
    side, taken = inches(ax)[0 if axis == "x" else 1], -np.inf
    for value in drawn:
        line, where = (ax.axvline, (value, 1.0)) if axis == "x" else (ax.axhline, (1.0, value))
        line(value, color=LIMIT, lw=0.9, ls=(0, (4, 2)), zorder=3)
        text = f" {value:,.5g}" if abs(value) < 1000 else f" {value:,.0f}"
        half = (text_width(text, 7) if axis == "x" else LINE * 7 / 72) / 2
        place = side * (scale.transform(np.array([value]))[0] - low) / (high - low)
        if place - half < taken:
            continue
        taken = place + half
        coords = ax.get_xaxis_transform() if axis == "x" else ax.get_yaxis_transform()
        style = {"ha": "center", "va": "bottom"} if axis == "x" else {"ha": "left", "va": "center"}
        ax.text(*where, text, transform=coords, color=LIMIT, size=7, **style)


def log_axis(axis: Any) -> None:
    """Set a log scale, with ticks such as 1,000 instead of 10^3."""
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    set_scale("log")
    log_ticks(axis, *axis.get_view_interval())


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Set the ticks of `log_axis` on an axis that is log-scaled already, from `low` to `high`."""
    decades = np.log10(high / low)
    subs = range(1, 10) if decades < 0.7 else (1, 2, 5) if decades < 1.5 else (1, 3) if decades < 2.5 else (1,)
    axis.set_major_locator(mpl.ticker.MaxNLocator(5) if decades < 0.2 else mpl.ticker.LogLocator(subs=subs))
    thousands(axis)
    axis.set_minor_locator(mpl.ticker.NullLocator())


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
    """A slim colour bar to the right of a panel, whose size does not change; `gap` and `height` in inches.

    It has two ticks at least; the ends of a range without width move apart.
    """
    norm, (across, up) = drawn.norm, inches(ax)
    log = isinstance(norm, mpl.colors.LogNorm)
    if not norm.vmax > norm.vmin:
        norm.vmax = 10 * norm.vmin if log else norm.vmin + 1
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1 + gap / across, 1 - height / up, 0.13 / across, height / up)))
    bar.set_label(label, size=8)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    if log:
        log_ticks(bar.ax.yaxis, norm.vmin, norm.vmax)
    else:
        bar.locator = mpl.ticker.MaxNLocator(4, min_n_ticks=2)
    inside = [at for at in bar.ax.yaxis.get_majorticklocs() if norm.vmin <= at <= norm.vmax]
    if len(inside) < 2:
        bar.set_ticks([norm.vmin, norm.vmax], labels=[f"{at:,.3g}" for at in (norm.vmin, norm.vmax)])
    return bar


def outside_legend(ax: Axes, colours: Mapping[str, str], gap: float = 0.1, longest: float = 3.0) -> list[Text]:
    """Dots with names to the right of a panel, in columns as high as it; `gap` and the `longest` name in inches.

    Drawn as texts: `Axes.legend` takes four times as long.
    """
    step = LINE * 8 / 72
    across, up = inches(ax)
    rows = max(1, int(up / step), int(np.sqrt(len(colours))))
    names, left, texts = fitted(list(colours), longest, 8), gap, []
    at = []
    for first in range(0, len(names), rows):
        column = names[first : first + rows]
        for row, name in enumerate(column):
            y = 1 - (row + 0.5) * step / up
            at.append((1 + (left + 0.05) / across, y))
            where = {"transform": ax.transAxes, "va": "center_baseline", "size": 8}
            texts.append(ax.text(1 + (left + 0.14) / across, y, name, **where))
        left += 0.3 + max(text_width(name, 8) for name in column)
    style = {"s": 22, "linewidths": 0, "transform": ax.transAxes, "clip_on": False}
    if at:
        ax.scatter(*np.transpose(at), c=list(colours.values()), **style)
    return texts


def batch_legend(ax: Axes, colours: Mapping[str, str]) -> None:
    """Add the legend, or a note with the number of categories if there are more than colours."""
    if len(colours) <= len(PALETTE):
        outside_legend(ax, colours)
    else:
        ax.text(1.02, 1, f"{len(colours)} categories:\ncolours repeat", va="top", transform=ax.transAxes, size=8)


@cache
def _advance(char: str, weight: str, style: str) -> float:
    """The width of a character, in heights of the font."""
    font = get_font(findfont(mpl.font_manager.FontProperties(weight=weight, style=style)))
    font.set_size(100, 72)
    try:
        return font.load_char(ord(char)).linearHoriAdvance / 65536 / 100
    except RuntimeError:  # the font lacks it
        return 1.0


def text_width(text: str, size: float, weight: str = "normal", style: str = "normal") -> float:
    """The width of a line of text in inches; `size` in points."""
    return sum(_advance(char, weight, style) for char in text) * size / 72


def fitted(names: Sequence[str], longest: float, size: float, weight: str = "normal") -> list[str]:
    """Names that fit a length in inches: cut at the end, or in the middle where the ends tell them apart."""
    plain = [" ".join(name.split()) for name in names]
    ends = [_cut(name, longest, size, weight, 1.0) for name in plain]
    if len(set(ends)) == len(set(plain)):
        return ends
    return [_cut(name, longest, size, weight, 0.5) for name in plain]


def counted(names: Sequence[str], ends: Sequence[str], longest: float, size: float) -> list[str]:
    """Names that are followed by the `ends`, such as numbers, and fit a length in inches; only the names are cut."""
    room = max(0.3, longest - max((text_width(end, size) for end in ends), default=0))
    return [name + end for name, end in zip(fitted(names, room, size), ends, strict=True)]


def _cut(name: str, longest: float, size: float, weight: str, share: float) -> str:
    """The name, or as much of its beginning (`share`) and end as fits."""
    shown, length = name, len(name)
    while text_width(shown, size, weight) > longest and length > 2:
        length = min(length - 1, int(length * longest / text_width(shown, size, weight)) + 1)
        first = max(1, round(share * length))
        shown = f"{name[:first].rstrip()}…{name[len(name) - (length - first) :].lstrip()}"
    return shown


def name_places(ax: Axes, at: np.ndarray, names: Sequence[str], size: float, longest: float = 1.2) -> list[Text]:
    """Write names onto places of a panel, pushed apart until none covers another; a line leads to a place left.

    Parameters
    ----------
    at
        names x 2, in data coordinates, the most important first: a name for which there is no room is left out.
    size
        Of the font, in points.
    longest
        The longest name in inches; longer ones are shortened.
    """
    names = fitted(names, longest, size, "bold")
    sides = inches(ax)
    anchors = ax.transAxes.inverted().transform(ax.transData.transform(at)) * sides
    boxes = np.array([(text_width(name, size, "bold") + 0.06, LINE * size / 72) for name in names]).reshape(-1, 2)
    centres = apart(anchors, boxes, sides)
    texts, lines = [], []
    taken = np.zeros((0, 4))
    for name, anchor, centre, box in zip(names, anchors, centres, boxes, strict=True):
        low, high = centre - box / 2, centre + box / 2
        if ((low < taken[:, 2:]) & (high > taken[:, :2])).all(1).any():
            continue
        taken = np.vstack([taken, [*low, *high]])
        nearest = np.clip(anchor, low, high)
        if np.hypot(*(nearest - anchor)) > 0.03:
            lines.append([anchor / sides, nearest / sides])
        texts.append(
            ax.text(
                *(centre / sides),
                name,
                transform=ax.transAxes,
                ha="center",
                va="center_baseline",
                size=size,
                weight="bold",
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.6},
            )
        )
    ax.add_collection(LineCollection(lines, colors="#333333", linewidths=0.6, transform=ax.transAxes, zorder=4))
    return texts


def apart(anchors: np.ndarray, boxes: np.ndarray, sides: np.ndarray, rounds: int = 300) -> np.ndarray:
    """Centres of boxes near their anchors, pushed apart within a panel: n x 2, all lengths in one unit.

    In each round two boxes that overlap move apart in the direction in which they overlap less.
    """
    n = len(anchors)
    centres = anchors + 1e-4 * np.column_stack([np.cos(np.arange(n)), np.sin(np.arange(n))])
    reach = (boxes[:, None] + boxes[None]) / 2 + 0.01
    for _ in range(rounds):
        centres = np.clip(centres, boxes / 2, np.maximum(sides - boxes / 2, boxes / 2))
        away = centres[:, None] - centres[None]
        over = np.where(np.eye(n, dtype=bool)[..., None], 0, reach - abs(away))
        over = np.where((over > 0).all(2, keepdims=True), over, 0)
        if not over.any():
            break
        least = over.argmin(2)[..., None] == np.arange(2)
        centres = centres + (0.5 * np.where(least, over, 0) * np.where(away >= 0, 1, -1)).sum(1)
    return centres


def without_ticks(ax: Axes, spines: bool = False) -> None:
    """Remove ticks and frame of a panel whose coordinates have no meaning, as in UMAP."""
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(spines)
