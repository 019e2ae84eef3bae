"""Compare names of cell types with another grouping: a matrix of confusion, as a figure and a table.

A row is a group of the known types (or, without these, of a clustering), a column a name; a field is the share of the
row's cells that have the name. Columns are ordered so that the largest shares lie on the diagonal.
"""

from lib.start import run

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import plots
from lib.report import facts
from lib.report import types as told_types
from lib.report.parts import Finished, Numbers, Part, Table
from lib.run.resources import KB, MB, PYTHON, Job, Need
from lib.store.categories import as_categories
from lib.store.files import read_table, write_tsv
from matplotlib.figure import Figure

MOST = 60  # rows or columns with their shares written


def confusion(known: pd.Series, names: pd.Series) -> pd.DataFrame:
    """The number of cells of each known type (rows) with each name (columns); cells without a known type are left out.

    Columns follow the rows in which they have most cells.
    """
    known, names = as_categories(known), as_categories(names)
    table = pd.crosstab(known, names)
    if table.empty:
        return table
    shares = table.to_numpy() / np.maximum(table.to_numpy().sum(1, keepdims=True), 1)
    order = np.lexsort((-shares.max(0), shares.argmax(0)))
    return table.iloc[:, order]


def matrix(table: pd.DataFrame, row_name: str, column_name: str) -> Figure:
    """The shares of each row's cells."""
    if table.empty:
        return plots.nothing(f"no cell has both {row_name} and {column_name}")
    sizes = table.sum(axis=1)
    shares = table.div(sizes, axis=0).to_numpy()
    side = 0.34 if max(table.shape) <= 25 else 0.2
    fig, axes = plots.panels(1, 1, (side * table.shape[1], side * table.shape[0]))
    ax = axes[0, 0]
    drawn = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(np.arange(table.shape[1]), table.columns, rotation=90, size=8)
    ax.set_yticks(np.arange(table.shape[0]), [f"{name} ({n:,})" for name, n in sizes.items()], size=8)
    ax.set_xlabel(column_name)
    ax.set_ylabel(row_name)
    if max(table.shape) <= MOST:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.05:
                colour = "white" if share > 0.6 else "black"
                ax.text(
                    column,
                    row,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    size=6 if side > 0.3 else 4,
                    color=colour,
                )
    plots.colour_bar(ax, drawn, "share of the row", gap=0.15, height=min(1.4, side * table.shape[0]))
    return fig


def tells(run: Finished) -> Iterator[Part]:
    """How far the names agree with the known types, and the tables."""
    for path in run.files("figures_annotation", "tables"):
        cells, name = facts.tsv(path), Path(path).stem
        known = cells.columns[0]
        figure = run.figure(told_types.figure_of(name))
        said, findings = told_types.compare(
            cells.set_index(known).astype(int), known, name, known == run.config["label_key"], figure
        )
        yield from findings
        yield Numbers(figure, said)
        yield Table(path, f"{name} and {known}", f"{said} Numbers of cells.", **told_types.PLACE)


def needs(job: Job) -> Need:
    """Two columns of the cells."""
    return Need(PYTHON + 110 * MB + 0.5 * KB * job.n_kept, 20, 5 * MB)


def main(snakemake: Any) -> None:
    """Draw the confusion of each column of names with the known types, and write its table."""
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    of_known = inputs.known[0] if inputs.known else inputs.obs
    known = read_table(of_known, [params.known])[params.known]
    figures = np.reshape(output.figures, (-1, params.formats)).tolist()
    for name, path, figure, file in zip(params.names, inputs.names, figures, output.tables, strict=True):
        table = confusion(known, read_table(path, [name])[name])
        write_tsv(table.rename_axis(index=params.known, columns=None).reset_index(), file)
        plots.save(matrix(table, params.known, name), figure)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
