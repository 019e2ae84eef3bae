"""Draw the tests of a contrast: a volcano of each group, and the numbers of genes found in all groups.

Beside the genes that samples tell apart stand those that tests of cells would call, on the same genes.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import plots, volcanoes
from lib.report import differences as told
from lib.report.facts import tsv
from lib.report.parts import Finished, Part
from lib.run.resources import MB, N_TESTED, PYTHON, Job, Need
from lib.store.files import read_table
from matplotlib.figure import Figure

ROW = 0.22  # inches of a group


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The genes of each group that are named: the first by p-value, `rank` from 1."""
    found = table[table["pvals_adj"] < volcanoes.SIGNIFICANT].sort_values("pvals", kind="stable")
    return found.assign(rank=found.groupby("group", sort=False).cumcount() + 1)


def overview(counts: pd.DataFrame, level: str, reference: str) -> Figure:
    """Genes that rise and fall in each group; and how many tests of cells would call.

    Parameters
    ----------
    counts
        A line for each group: `group`, `n_up`, `n_down`, `n_cell_tests`, `n_samples_level`, `n_samples_reference`.
    """
    y = np.arange(len(counts))
    fig, axes = plots.panels(1, 2, (2.6, max(0.8, ROW * len(counts))), (0.5, 0.5), sharey=True)
    left, right = axes[0]
    up, down = counts["n_up"].to_numpy(), counts["n_down"].to_numpy()
    most = max(1, up.max(initial=0), down.max(initial=0))
    left.barh(y, up, 0.7, color=plots.PALETTE[0])
    left.barh(y, -down, 0.7, color=plots.LIMIT)
    for at, a, b in zip(y, up, down, strict=True):
        left.text(a + 0.03 * most, at, f"{a:,}", va="center_baseline", size=7)
        left.text(-b - 0.03 * most, at, f"{b:,}", va="center_baseline", ha="right", size=7)
    left.axvline(0, color=plots.LIMIT, lw=0.5)
    left.set_xlim(-1.5 * most, 1.5 * most)
    left.xaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    left.xaxis.set_major_locator(plots.mpl.ticker.MaxNLocator(4, integer=True))
    left.set_xlabel("genes lower | higher", size=8)
    left.set_title(plots.fitted([f"{level} against {reference}"], 2.6, 8)[0], loc="left", size=8)
    sizes = zip(counts["group"], counts["n_samples_level"], counts["n_samples_reference"], strict=True)
    names = plots.counted(counts["group"].tolist(), [f" ({n} : {m})" for _, n, m in sizes], 2.2, 8)
    left.set_yticks(y, names, size=8)
    left.invert_yaxis()
    right.plot(1 + counts["n_cell_tests"], y, "o", color=plots.KEPT, ms=5, mew=0)
    right.plot(1 + up + down, y, "o", color=plots.PALETTE[0], ms=5, mew=0)
    right.set_xscale("log")
    right.set_xlim(0.7, 2 * (1 + max(counts["n_cell_tests"].max(), (up + down).max())))
    right.xaxis.set_major_locator(plots.mpl.ticker.FixedLocator([1, 11, 101, 1001, 10_001]))
    right.xaxis.set_minor_locator(plots.mpl.ticker.NullLocator())
    right.xaxis.set_major_formatter(lambda value, _: f"{value - 1:,.0f}")
    right.set_xlabel("genes found", size=8)
    plots.outside_legend(right, {"samples compared": plots.PALETTE[0], "cells compared": plots.KEPT})
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
    return fig


def needs(job: Job) -> Need:
    """The table of all groups, and two images."""
    tested = job.n_groups * min(job.n_vars, N_TESTED)
    return Need(PYTHON + 130 * MB + 260 * tested, 30 + 1e-5 * tested, 10 * MB)


def tells(run: Finished) -> Iterator[Part]:
    """The numbers of the figures."""
    for job in run.of("figures_de"):
        yield from told.of_figures(run, job)


def main(snakemake: Any) -> None:
    """Draw the tests of a contrast in the groups of a grouping."""
    inputs, contrast, output = snakemake.input, snakemake.params.contrast, snakemake.output
    table = read_table(inputs.de).rename(columns={"pct_nz_level": "pct_nz_group"})
    table = table.assign(group=table["group"].astype(str), pvals_adj=table["pvals_adj"].fillna(1))
    plots.save(volcanoes.volcanoes(table, named(table)), output.volcano)
    plots.save(overview(tsv(inputs.overview), contrast["level"], contrast["reference"]), output.overview)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
