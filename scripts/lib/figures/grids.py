"""Many small panels with common axes in one `Axes`, whose unit is an inch: an `Axes` for each would take seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from lib.figures import plots

GAP, TITLE = 0.3, 0.42  # inches between panels, and of the title above one


@dataclass
class Scale:
    """A common axis of the panels: its ends, and whether it is logarithmic."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: np.ndarray, log: bool = False, low: float | None = None) -> Scale:
        """An axis for these values, with some space at the ends; it begins at `low` if given."""
        ends = np.array([values.min(), values.max()], float) if len(values) else np.array([1.0, 10.0])
        ends = np.log10(np.maximum(ends, 1e-9)) if log else ends
        pad = 0.04 * (ends[1] - ends[0]) or 0.5
        ends = ends + np.array([-pad, pad])
        ends = 10**ends if log else ends
        return cls(float(ends[0]) if low is None else low, float(ends[1]), log)

    def place(self, values: np.ndarray | float) -> np.ndarray:
        """Where values lie, from 0 to 1."""
        of = np.log10 if self.log else np.asarray
        with np.errstate(all="ignore"):
            return (of(np.asarray(values, float)) - of(self.low)) / (of(self.high) - of(self.low))

    def ticks(self) -> np.ndarray:
        """Values for ticks, a few."""
        if self.log:
            low, high = np.log10([self.low, self.high])
            steps = (1, 3) if high - low < 2.5 else (1,)
            found = np.array([n * 10.0**e for e in range(int(np.floor(low)), int(high) + 1) for n in steps])
        else:
            found = plots.mpl.ticker.MaxNLocator(4).tick_values(self.low, self.high)
        return found[(found >= self.low) & (found <= self.high * (1 + 1e-9))]


@dataclass
class Grid:
    """Panels of one size with titles.

    Attributes
    ----------
    titles
        Of the panels.
    size
        Width and height of a panel in inches.
    x, y
        The axes.
    """

    titles: Sequence[str]
    size: tuple[float, float]
    x: Scale
    y: Scale
    fig: Figure = field(init=False)
    ax: Axes = field(init=False)

    def __post_init__(self) -> None:
        """Make the figure, and find the corners of the panels."""
        n = len(self.titles)
        self.columns = max(1, min(n, max(3, min(6, int(np.ceil(np.sqrt(1.5 * n)))))))
        self.rows = -(-n // self.columns)
        wide, high = self.size[0] + GAP, self.size[1] + TITLE
        self.fig, axes = plots.panels(1, 1, (self.columns * wide, self.rows * high))
        self.ax = axes[0, 0]
        self.ax.set_axis_off()
        self.ax.set_xlim(0, self.columns * wide)
        self.ax.set_ylim(-self.rows * high, 0)
        i = np.arange(n)
        self.corners = np.column_stack([(i % self.columns) * wide, -(i // self.columns + 1) * high])

    def at(self, i: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Points of panel i, points x 2, in inches; NaN beyond the axes."""
        places = np.column_stack([self.x.place(x), self.y.place(y)])
        places[((places < 0) | (places > 1)).any(1)] = np.nan
        return self.corners[i] + places * self.size

    def frame(self, x_label: str, y_label: str) -> None:
        """Draw axes, titles and labels."""
        wide, high = self.size
        lines = [[(cx, cy + high), (cx, cy), (cx + wide, cy)] for cx, cy in self.corners]
        text = {"size": 7, "color": "black"}
        last = max(0, len(self.titles) - self.columns)
        for i, (cx, cy) in enumerate(self.corners):
            for tick in self.x.ticks():
                at = cx + wide * self.x.place(tick)
                lines.append([(at, cy), (at, cy - 0.03)])
                if i >= last:
                    self.ax.text(at, cy - 0.05, _number(tick), ha="center", va="top", **text)
            for tick in self.y.ticks():
                at = cy + high * self.y.place(tick)
                lines.append([(cx, at), (cx - 0.03, at)])
                if i % self.columns == 0:
                    self.ax.text(cx - 0.05, at, _number(tick), ha="right", va="center", **text)
        self.ax.add_collection(LineCollection(lines, colors="black", linewidths=0.7, clip_on=False))
        for (cx, cy), title in zip(self.corners, self.titles, strict=True):
            self.ax.text(cx, cy + high + 0.18, title, size=8, va="bottom")
        middle = self.columns * (wide + GAP) / 2
        self.ax.text(middle, self.corners[-1, 1] - 0.22, x_label, ha="center", va="top", size=9)
        self.ax.text(-0.5, -self.rows * (high + TITLE) / 2, y_label, ha="right", va="center", size=9, rotation=90)

    def limits(self, i: int, axis: str, values: Iterable[float]) -> None:
        """Draw dashed lines with their values across panel i; those beyond the axes are left out."""
        (cx, cy), (wide, high) = self.corners[i], self.size
        scale, taken = (self.x if axis == "x" else self.y), -np.inf
        for value in sorted(values):
            place = float(scale.place(value))
            if not 0 <= place <= 1:
                continue
            text = f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
            at = cx + wide * place if axis == "x" else cy + high * place
            line = [(at, at), (cy, cy + high)] if axis == "x" else [(cx, cx + wide), (at, at)]
            self.ax.plot(*line, color=plots.LIMIT, lw=0.8, ls=(0, (4, 2)))
            half = plots.text_width(text, 6.5) / 2 + 0.02 if axis == "x" else 0.06
            if at - half < taken:
                continue
            taken = at + half
            where = (at, cy + high + 0.02) if axis == "x" else (cx + wide + 0.02, at)
            style = {"ha": "center", "va": "bottom"} if axis == "x" else {"ha": "left", "va": "center"}
            self.ax.text(*where, text, size=6.5, color=plots.LIMIT, **style)


def _number(value: float) -> str:
    return f"{value:,.6g}"
