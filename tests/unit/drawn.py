"""What a figure draws: its texts, with their boxes in pixels, and its colour bars."""

from __future__ import annotations

from itertools import combinations

from lib.figures import plots
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

TOUCH = 1.0  # pixels by which the boxes of two texts may overlap: beyond the letters they have a margin


def texts(fig: Figure) -> list[Text]:
    """The texts that are drawn: those of ticks only within their axis."""
    FigureCanvasAgg(fig).draw()
    found = []
    axes = fig.findobj(Axes)
    ticks = {id(label): False for ax in axes for axis in (ax.xaxis, ax.yaxis) for label in labels_of(axis, all_of=True)}
    for ax in axes:
        if ax.axison and ax.get_visible():
            ticks |= {id(label): True for axis in (ax.xaxis, ax.yaxis) for label in labels_of(axis)}
    for text in fig.findobj(Text):
        if text.get_visible() and text.get_text().strip() and ticks.get(id(text), True):
            found.append(text)
    return found


def labels_of(axis: Axis, all_of: bool = False) -> list[Text]:
    """The labels of an axis' ticks within its view, or of all its ticks."""
    low, high = sorted(axis.get_view_interval())
    every = axis.get_major_ticks()
    return [label for tick in every if all_of or low <= tick.get_loc() <= high for label in (tick.label1, tick.label2)]


def overlaps(fig: Figure) -> list[tuple[str, str]]:
    """The pairs of texts of which one covers a part of the other."""
    drawn = texts(fig)
    renderer = FigureCanvasAgg(fig).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in drawn]
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if overlap(one, other)]


def overlap(one, other) -> bool:
    """Whether two boxes overlap by more than TOUCH in both directions."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    up = min(one.y1, other.y1) - max(one.y0, other.y0)
    return across > TOUCH and up > TOUCH


def height(fig: Figure, tmp_path, dpi: int = 150) -> int:
    """The height of the picture in pixels."""
    from PIL import Image

    plots.save(fig, tmp_path / "figure.png", dpi)
    return Image.open(tmp_path / "figure.png").height


def bars(fig: Figure) -> list[Axes]:
    """The axes of the colour bars."""
    return [ax for ax in fig.findobj(Axes) if hasattr(ax, "_colorbar")]


def numbers(bar: Axes) -> set[str]:
    """The numbers at a colour bar."""
    return {label.get_text() for label in labels_of(bar.yaxis)} - {""}
