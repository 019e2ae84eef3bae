"""Draw the variance of each principal component, and the cells in the first four, before and after Harmony."""

from lib.start import run

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import plots
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


def components(spaces: Mapping[str, np.ndarray], batches: pd.Series, seed: int) -> Figure:
    """Cells coloured by batch: a row for each of `spaces` (title -> cells x components), a panel for each of PAIRS."""
    codes, names = plots.categories(batches)
    colours = plots.category_colours(names)
    each = plots.rgba([*colours.values(), plots.BACKGROUND])[codes]
    pairs = [pair for pair in PAIRS if pair[1] < min(X.shape[1] for X in spaces.values())]
    fig, axes = plots.panels(len(spaces), len(pairs), (3.3, 3.1), (0.7, 0.85))
    for row, (title, X) in zip(axes, spaces.items(), strict=True):
        for ax, (first, second) in zip(row, pairs, strict=True):
            plots.points(ax, X[:, first], X[:, second], each, seed)
            ax.set_xlabel(f"PC{first + 1}")
            ax.set_ylabel(f"PC{second + 1}")
        row[0].set_title(title, loc="left")
    plots.batch_legend(axes[0, -1], colours)
    return fig


def shown_spaces(X_pca: np.ndarray, harmony: Sequence[str]) -> dict[str, np.ndarray]:
    """The spaces for `components`: the PCA, and Harmony's result or, in the title, why it did not run.

    Parameters
    ----------
    X_pca
        cells x components.
    harmony
        `harmony.h5`; empty if Harmony is disabled.
    """
    shown = X_pca[:, :4]
    for path in harmony:
        if skipped := read_attrs(path).get("skipped"):
            return {f"PCA; Harmony skipped: {skipped}": shown}
        return {"PCA": shown, "PCA, integrated by Harmony": read_arrays(path)["X_pca_harmony"][:, :4]}
    return {"PCA": shown}


def needs(job: Job) -> Need:
    """Tables of cells, and the images."""
    return job.drawn(100 * MB, 1.3 * KB, seconds=60)


def main(snakemake: Any) -> None:
    """Draw `pca_variance.png` and `pca.png` from `pca.h5`, `obs.parquet` and `harmony.h5`, if there is one."""
    params, output = snakemake.params, snakemake.output
    pca = read_arrays(snakemake.input.pca, "variance_ratio", "X_pca")
    plots.save(variance_ratio(pca["variance_ratio"], params.n_pcs), output.variance)
    spaces = shown_spaces(pca["X_pca"], snakemake.input.harmony)
    batches = read_table(snakemake.input.obs, columns=[params.batch_key])[params.batch_key]
    plots.save(components(spaces, batches, snakemake.params.seed), output.components)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
