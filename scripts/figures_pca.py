"""Draw the variance of each principal component, the cells in the first four, and in two before and after Harmony."""

from lib.start import run

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from h5py import File
from lib.figures import plots
from lib.run.forked import run_all
from lib.run.resources import KB, MB, Job, Need
from lib.store.files import read_arrays, read_attrs, read_table
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

PAIRS = ((0, 1), (2, 3))


def variance_ratio(ratio: np.ndarray, n_pcs: int) -> Figure:
    """Percentage of the variance by component, on a log axis, with the last component of the neighbour search."""
    fig, axes = plots.panels(1, 1, (5.2, 3.2))
    ax = axes[0, 0]
    ax.plot(np.arange(1, len(ratio) + 1), 100 * ratio, marker="o", ms=3, lw=0.8, color=plots.PALETTE[0])
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    n_used = min(n_pcs, len(ratio))
    ax.axvline(n_used, color=plots.LIMIT, lw=0.9, ls=(0, (4, 2)))
    held = 100 * ratio[:n_used].sum()
    ax.text(
        n_used, 1.02, f"{n_used} used: {held:.1f} % of the variance", ha="center", transform=ax.get_xaxis_transform()
    )
    ax.set_xlabel("principal component")
    ax.set_ylabel("% of the variance (log)")
    return fig


def components(X_pca: np.ndarray, batches: pd.Series, seed: int) -> Figure:
    """Cells coloured by batch in each of PAIRS of components."""
    codes, names = plots.categories(batches)
    colours = plots.category_colours(names, "batches")
    each = plots.rgba([*colours.values(), plots.BACKGROUND])[codes]
    pairs = [pair for pair in PAIRS if pair[1] < X_pca.shape[1]]
    fig, axes = plots.panels(1, len(pairs), (3.3, 3.1), (0.7, 0))
    for ax, (first, second) in zip(axes[0], pairs, strict=True):
        plots.points(ax, X_pca[:, first], X_pca[:, second], each, seed)
        ax.set_xlabel(f"PC{first + 1}")
        ax.set_ylabel(f"PC{second + 1}")
    plots.batch_legend(axes[0, -1], colours)
    return fig


def integration(
    before: np.ndarray, after: np.ndarray, groupings: Mapping[str, tuple[pd.Series, str]], seed: int
) -> Figure:
    """The first two components before and after Harmony, side by side, in a row for each grouping, which colours cells.

    Parameters
    ----------
    before, after
        cells x components.
    groupings
        Name -> each cell's category, and the family of its colours.
    """
    fig, axes = plots.panels(len(groupings), 2, (3.3, 3.1), (0.35, 0.75))
    for row, (name, (values, family)) in zip(axes, groupings.items(), strict=True):
        codes, names = plots.categories(values)
        colours = plots.category_colours(names, family)
        each = plots.rgba([*colours.values(), plots.BACKGROUND])[codes]
        for ax, X, title in zip(row, (before, after), ("before Harmony", "after Harmony"), strict=True):
            plots.points(ax, X[:, 0], X[:, 1], each, seed)
            ax.set_title(plots.fitted([f"{title}, by {name}"], 3.3, 9, "bold")[0], loc="left")
            ax.set_xlabel("PC1")
            ax.tick_params(labelleft=ax is row[0])
        row[0].set_ylabel("PC2")
        plots.batch_legend(row[1], colours)
    return fig


def harmony_figure(
    X_pca: np.ndarray, harmony: str, groupings: Mapping[str, tuple[pd.Series, str]], seed: int
) -> Figure:
    """The figure of `integration`, or the reason why Harmony did not run."""
    if skipped := read_attrs(harmony).get("skipped"):
        return plots.nothing(f"Harmony skipped: {skipped}")
    return integration(X_pca, first_columns(harmony, "X_pca_harmony", 2), groupings, seed)


def first_columns(path: str, name: str, n: int) -> np.ndarray:
    """The first columns of an array in an HDF5 file."""
    with File(path, locking=False) as file:
        return file[name][:, :n]


def needs(job: Job) -> Need:
    """Tables of cells, and the images."""
    return job.drawn(100 * MB, 0.6 * KB, seconds=20)


def main(snakemake: Any) -> None:
    """Draw `pca_variance.png`, `pca.png` and, if Harmony is enabled, `harmony.png`."""
    inputs, params, output, seed = snakemake.input, snakemake.params, snakemake.output, snakemake.params.seed
    X_pca = first_columns(inputs.pca, "X_pca", 4)
    table = read_table(inputs.obs, params.groupings, named=False)
    ratio = read_arrays(inputs.pca, "variance_ratio")["variance_ratio"]
    groupings = {name: (table[name], params.colours.get(name, "types")) for name in params.groupings}
    tasks = [
        lambda: plots.save(components(X_pca, table[params.batch_key], seed), output.components),
        lambda: plots.save(variance_ratio(ratio, params.n_pcs), output.variance),
    ]
    if inputs.harmony:
        tasks.append(lambda: plots.save(harmony_figure(X_pca, inputs.harmony[0], groupings, seed), output.harmony))
    run_all(tasks, snakemake.threads)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
