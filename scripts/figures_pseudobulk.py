"""Draw the pseudobulks: the cells of each sample in each group, and the principal components of the profiles.

The components are those of the log2 CPM of the 1,000 genes that vary most, over all profiles and within each group;
profiles of few cells are left out. `distance` of the table is a profile's distance to the median profile of its group,
over the median of these distances.
"""

from lib.start import run

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import plots
from lib.methods.pseudobulk import Pseudobulk, components
from lib.report import differences as told
from lib.report.parts import Finished, Part
from lib.run.resources import MB, PYTHON, Job, Need
from lib.store.categories import as_categories, category_colours
from lib.store.files import write_tsv
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

MOST_PANELS = 36  # groups with a panel of their own
MAX_NUMBERS = 30  # groups with numbers in their fields


def with_components(bulk: Pseudobulk) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The profiles' table with `PC1`, `PC2` and `distance` within the group, and `all_PC1`, `all_PC2`.

    And, for each group, and for all profiles together (""), the components' shares of the variance. Profiles of few
    cells, and groups of fewer than three profiles, have none.
    """
    table = bulk.obs.assign(PC1=np.nan, PC2=np.nan, distance=np.nan, all_PC1=np.nan, all_PC2=np.nan)
    many, shares = ~bulk.obs["few_cells"].to_numpy(), {}
    masks = {"": many} | {name: many & (bulk.obs["group"] == name).to_numpy() for name in bulk.groups}
    for name, rows in masks.items():
        if rows.sum() < 3:
            continue
        found, shares[name], distance = components(bulk.counts(rows))
        table.loc[rows, ["PC1", "PC2"] if name else ["all_PC1", "all_PC2"]] = found
        if name:
            table.loc[rows, "distance"] = distance / max(np.median(distance), 1e-300)
    return table, shares


def cells(table: pd.DataFrame, min_cells: int) -> Figure:
    """A field for each sample and group, shaded by the number of cells; crossed out where there are too few."""
    counts = table.pivot_table(index="sample", columns="group", values="n_cells", observed=False, aggfunc="sum")
    counts = counts.fillna(0).astype(int)
    numbers, size = counts.shape[1] <= MAX_NUMBERS, 8 if len(counts) <= 75 else 6
    width, height = (0.4 if numbers else 0.16), (0.21 if size == 8 else 0.13)
    fig, axes = plots.panels(1, 1, (max(1.2, width * counts.shape[1]), max(0.8, height * len(counts))))
    ax, norm = axes[0, 0], LogNorm(1, max(10, counts.to_numpy().max()))
    drawn = ax.imshow(np.maximum(counts, 1), cmap="Blues", norm=norm, aspect="auto", interpolation="nearest")
    ax.set_yticks(range(len(counts)), plots.fitted(list(counts.index), 2.2, size), size=size)
    ax.set_xticks(range(counts.shape[1]), plots.fitted(list(counts.columns), 1.8, 7), rotation=90, size=7)
    ax.tick_params(length=0)
    few = np.argwhere(counts.to_numpy() < min_cells)
    ax.plot(few[:, 1], few[:, 0], "x", color=plots.LIMIT, ms=4, mew=0.6)
    if numbers:
        for (row, column), n in np.ndenumerate(counts.to_numpy()):
            if n >= min_cells:
                ink = "white" if norm(n) > 0.6 else "black"
                ax.text(column, row, f"{n:,}", ha="center", va="center_baseline", size=6, color=ink)
    plots.colour_bar(ax, drawn, "cells", height=min(1.4, max(0.8, height * len(counts))))
    return fig


def scatter(ax: Axes, x: Any, y: Any, values: pd.Series, colours: dict[str, str], share: Sequence[float]) -> None:
    """One panel of components."""
    ax.scatter(x, y, s=16, c=[colours.get(value, plots.KEPT) for value in values], linewidths=0)
    plots.without_ticks(ax, spines=True)
    ax.margins(0.15)
    ax.set_xlabel(f"PC1 ({100 * share[0]:.0f} %)", size=7)
    ax.set_ylabel(f"PC2 ({100 * share[1]:.0f} %)", size=7)


def pca(table: pd.DataFrame, shares: dict[str, np.ndarray], column: str, family: str) -> Figure:
    """All profiles coloured by group, then a panel for each group, its samples coloured by `column`."""
    groups = [name for name in shares if name]
    shown = groups[:MOST_PANELS]
    if "" not in shares:
        return plots.nothing("Fewer than three profiles have enough cells.")
    columns = min(4, 1 + len(shown))
    fig, axes = plots.panels(-(-(1 + len(shown)) // columns), columns, (1.7, 1.7), (0.55, 0.6))
    for ax in axes.flat[1 + len(shown) :]:
        ax.set_axis_off()
    many = table[~table["few_cells"]]
    names = list(table["group"].cat.categories)
    of_groups = category_colours(names, family)
    scatter(axes.flat[0], many["all_PC1"], many["all_PC2"], many["group"].astype(str), of_groups, shares[""])
    axes.flat[0].set_title("all profiles, by group", loc="left", size=8)
    if column in table:
        values = as_categories(table[column])
        legend = category_colours(list(values.cat.categories))
    else:
        values, legend = pd.Series("", table.index), {}
    for ax, name in zip(axes.flat[1:], shown, strict=False):
        mine = (many["group"] == name).to_numpy()
        of_group = many[mine]
        scatter(ax, of_group["PC1"], of_group["PC2"], values[of_group.index].astype(object), legend, shares[name])
        ax.set_title(plots.fitted([name], 1.7, 8)[0], loc="left", size=8)
        for profile in of_group[of_group["distance"] > told.APART].itertuples():
            ax.text(profile.PC1, profile.PC2, f" {profile.sample}", size=6, va="center")
    if legend and len(legend) <= len(plots.PALETTE):
        plots.outside_legend(axes[0, -1], {f"{column}: {name}": colour for name, colour in legend.items()}, gap=0.15)
    if len(groups) > len(shown):
        note = f"the first {len(shown)} of {len(groups)} groups"
        axes[0, 0].text(0, 1.2, note, transform=axes[0, 0].transAxes, size=8)
    return fig


def needs(job: Job) -> Need:
    """The profiles, a group at a time and all at once, and two images."""
    profiles = max(job.n_samples, job.n_batches) * job.n_groups
    return Need(PYTHON + 120 * MB + 12 * profiles * job.n_vars, 20 + 1e-6 * profiles * job.n_vars, 10 * MB)


def tells(run: Finished) -> Iterator[Part]:
    """The table of profiles, and samples that stand apart."""
    for job in run.of("figures_pseudobulk"):
        yield from told.of_profiles(run, job)


def main(snakemake: Any) -> None:
    """Draw the pseudobulks of a grouping, and write their table."""
    params, output = snakemake.params, snakemake.output
    bulk = Pseudobulk.open(snakemake.input.pseudobulk)
    table, shares = with_components(bulk)
    write_tsv(table.drop(columns=["all_PC1", "all_PC2"]), output.table)
    plots.save(cells(table, params.min_cells), output.cells)
    plots.save(pca(table, shares, params.column, params.family), output.pca)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
