"""Draw what samples consist of: stacked bars of the groups' shares, and for each contrast the shares by level."""

from lib.start import run

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import plots
from lib.inputs.contrasts import levels_of
from lib.report import differences as told
from lib.report.parts import Finished, Part
from lib.run.resources import MB, PYTHON, Job, Need
from lib.store.categories import category_colours, natural_order
from lib.store.files import read_table
from matplotlib.figure import Figure

ROW = 0.2  # inches of a sample
MOST_PANELS = 36


def in_order(table: pd.DataFrame, contrasts: list[Mapping[str, Any]]) -> tuple[pd.DataFrame, pd.Series]:
    """The shares, samples x groups, sorted by the levels of the first contrast; and each sample's level ("": none)."""
    shares = table.pivot_table(index="sample", columns="group", values="share", observed=False, sort=False)
    levels = pd.Series("", shares.index)
    if contrasts:
        of_sample = table.drop_duplicates("sample").set_index("sample")
        levels = levels_of(of_sample, contrasts[0])[shares.index].fillna("")
    first = [contrasts[0]["reference"], contrasts[0]["level"]] if contrasts else []
    others = [name for name in natural_order(levels.unique()) if name not in first]
    order = {name: i for i, name in enumerate([*first, *others])}
    names = sorted(shares.index, key=lambda name: order.get(levels[name], 0))  # stable: natural within a level
    return shares.loc[names], levels[names]


def bars(shares: pd.DataFrame, levels: pd.Series, n_cells: pd.Series, family: str) -> Figure:
    """A stacked bar for each sample, with space between levels."""
    new = np.r_[False, levels.to_numpy()[1:] != levels.to_numpy()[:-1]]  # the first sample of a further level
    y = np.arange(len(shares)) + 1.0 * new.cumsum()
    row = ROW if len(shares) <= 100 else 0.1
    fig, axes = plots.panels(1, 1, (4.5, max(0.8, row * (y[-1] + 1))))
    ax, left = axes[0, 0], np.zeros(len(shares))
    colours = category_colours(list(shares.columns), family)
    for name, values in shares.items():
        ax.barh(y, 100 * values, 0.8, left=left, color=colours[name], linewidth=0)
        left += 100 * values.to_numpy()
    size = 8 if row == ROW else 5
    names = plots.counted(list(shares.index), [f" ({n_cells[name]:,})" for name in shares.index], 2.2, size)
    ax.set_yticks(y, names, size=size)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 100)
    ax.set_ylim(y[-1] + 0.6, -0.6 - 0.8 * bool(levels.iloc[0]))
    for start in [0, *np.flatnonzero(new)]:
        if levels.iloc[start]:
            ax.text(0, y[start] - 0.55, plots.fitted([levels.iloc[start]], 4, 8, "bold")[0], size=8, weight="bold")
    ax.set_xlabel("% of the sample's cells (cells)", size=8)
    plots.batch_legend(ax, colours)
    return fig


def dots(shares: pd.DataFrame, levels: pd.Series, tests: pd.DataFrame, contrast: Mapping[str, Any]) -> Figure:
    """A panel for each group, the smallest p-values first: the share in each sample, level beside level."""
    if tests.empty:
        return plots.nothing(f"{contrast['name']}: too few samples to test shares.")
    shown = tests.head(MOST_PANELS)
    columns = min(6, len(shown))
    fig, axes = plots.panels(-(-len(shown) // columns), columns, (1.1, 1.3), (0.55, 0.65))
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    sides = {contrast["reference"]: plots.LIMIT, contrast["level"]: plots.PALETTE[0]}
    for ax, test in zip(axes.flat, shown.itertuples(), strict=False):
        for at, (level, colour) in enumerate(sides.items()):
            values = 100 * shares.loc[(levels == level).to_numpy(), test.group].to_numpy()
            x = at + 0.3 * (np.linspace(-0.5, 0.5, len(values)) if len(values) > 1 else np.zeros(1))
            ax.plot(x, np.sort(values), "o", color=colour, ms=3.5, mew=0)
            ax.plot([at - 0.28, at + 0.28], [values.mean()] * 2, color=colour, lw=1)
        ax.set_xlim(-0.6, 1.6)
        ax.set_ylim(bottom=0)
        ax.set_xticks([0, 1], plots.fitted(list(sides), 0.45, 7), size=7)
        ax.yaxis.set_major_locator(plots.mpl.ticker.MaxNLocator(3))
        ax.tick_params(axis="y", labelsize=7)
        ax.set_title(f"{plots.fitted([test.group], 1.1, 8)[0]}\nadj. p {test.pvals_adj:.2g}", loc="left", size=7)
    for ax in axes[:, 0]:
        ax.set_ylabel("% of cells", size=7)
    return fig


def needs(job: Job) -> Need:
    """A table of samples and groups, and an image for each contrast."""
    return Need(PYTHON + 130 * MB + 0.3 * MB * job.n_samples, 30 + 0.1 * job.n_samples, 10 * MB)


def tells(run: Finished) -> Iterator[Part]:
    """The numbers of the figures."""
    if run.of("figures_composition"):
        yield from told.of_shares(run)


def main(snakemake: Any) -> None:
    """Draw the composition of the samples by each grouping."""
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    n, levels_files = params.formats, iter(output.levels)
    given = zip(inputs.tables, inputs.tests, params.contrasts, params.families, strict=True)
    for i, (path, of_tests, contrasts, family) in enumerate(given):
        table, tests = read_table(path), read_table(of_tests)
        shares, levels = in_order(table, contrasts)
        n_cells = table.groupby("sample")["n_cells"].sum()
        plots.save(bars(shares, levels, n_cells, family), output.bars[i * n : (i + 1) * n])
        of_sample = table.drop_duplicates("sample").set_index("sample").loc[shares.index]
        for contrast in contrasts:
            mine = tests[tests["contrast"] == contrast["name"]]
            drawn = dots(shares, levels_of(of_sample, contrast), mine, contrast)
            plots.save(drawn, [next(levels_files) for _ in range(n)])


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
