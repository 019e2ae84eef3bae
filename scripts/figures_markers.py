"""Draw the marker genes of each group: their scores, and a dot plot of their expression in all groups.

For a group g of n_g cells and a gene j with log-normalised values v_ij, a dot's size is |{i in g: v_ij > 0}| / n_g and
its colour sum_{i in g} v_ij / n_g, as in scanpy.pl.dotplot.
"""

from lib.start import run

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import plots, tables
from lib.methods.markers import Groups, read_groups
from lib.methods.scaling import log_normalize, target_of
from lib.run.progress import Pace
from lib.run.resources import KB, MB, PYTHON, Job, Need
from lib.store.cohort import Cohort
from lib.store.counts import Counts, Stores
from lib.store.csr import rows_of_nonzeros
from lib.store.files import read_table
from lib.store.stream import InMemory, Stream
from matplotlib.figure import Figure

MAX_DOTS = 100  # columns of the dot plot, divided among the groups, at most MAX_EACH for one
MAX_EACH = 5
DOT = 70  # area, in square points, of the dot of a gene that all cells express
PART = 10_000  # cells that one thread processes, CELLS at a time
CELLS = 1000


def expression_by_group(
    counts: Stream, groups: Groups, totals: np.ndarray, target_sum: float, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-normalised expression of each gene in each group, and the fraction of cells that express it.

    Parameters
    ----------
    counts
        cells x genes.
    groups
        Each cell's group.
    totals
        Counts of each cell in all kept genes.
    target_sum
        The sum of each cell's counts after normalisation.
    threads
        Number of threads, each of which processes a part at a time; the result does not depend on it.

    Returns
    -------
    Two arrays, groups x genes, float64.
    """
    n_groups = len(groups.names)
    codes = np.where(groups.codes < 0, n_groups, groups.codes)
    found = np.zeros((2, n_groups + 1, counts.n_vars))
    pace = Pace("expression", counts.n_obs)
    with ThreadPoolExecutor(threads) as pool:
        for n_cells, of_part in pool.map(lambda part: sums_by_group(*part, codes, totals, target_sum), parts(counts)):
            found[:, : of_part.shape[1]] += of_part
            pace.step(n_cells)
    pace.end()
    means, fractions = found[:, :n_groups] / groups.sizes[:, None]
    return means, fractions


def parts(counts: Stream) -> Iterator[tuple[int, Stream, np.ndarray | None]]:
    """At most PART cells each: the number of cells before, their stream, and their rows; one in memory stays whole."""
    if isinstance(counts, InMemory):
        yield 0, counts, None
        return
    before = 0
    for store in counts.stores if isinstance(counts, Stores) else [counts]:
        kept = np.flatnonzero(store.cells)
        for first in range(0, len(kept), PART):
            rows = kept[first : first + PART]
            yield before, store, rows
            before += len(rows)


def sums_by_group(
    before: int, counts: Stream, part: np.ndarray | None, codes: np.ndarray, totals: np.ndarray, target_sum: float
) -> tuple[int, np.ndarray]:
    """The number of cells, and the summed expression and number of expressing cells of each code and gene.

    Parameters
    ----------
    before
        The position of the first cell in `codes` and `totals`.
    counts, part
        A stream, and the rows of its store to read; None: all.
    codes, totals
        Of all cells.

    Returns
    -------
    Cells, and 2 x codes x genes, float64.
    """
    if part is not None:
        counts = copy(counts)
        counts.cells, counts.n_obs = np.isin(np.arange(len(counts.cells)), part), len(part)
    n_codes, n_vars = int(codes.max()) + 1, counts.n_vars
    sums, cells = np.zeros(n_codes * n_vars), np.zeros(n_codes * n_vars)
    for chunk in counts.chunks(CELLS):
        rows = slice(before + chunk.rows.start, before + chunk.rows.stop)
        X = log_normalize(chunk.X, totals[rows], target_sum, counts.device, np.float64)
        keys = codes[rows][rows_of_nonzeros(X, counts.device)] * n_vars + X.indices
        sums += np.bincount(keys, weights=X.data, minlength=len(sums))
        cells += np.bincount(keys[X.data > 0], minlength=len(cells))
    return counts.n_obs, np.stack([sums, cells]).reshape(2, n_codes, n_vars)


def score_panels(top: pd.DataFrame) -> Figure:
    """A panel for each group with its first genes, by falling score."""
    names = list(top["group"].unique())
    n_genes = int(top.groupby("group").size().max())
    columns = min(len(names), 4 if len(names) <= 12 else 8)
    rows = -(-len(names) // columns)
    fig, axes = plots.panels(rows, columns, (1.1, 0.14 * n_genes + 0.2), (0.95, 0.6))
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, names, strict=False):
        genes = top[top["group"] == name]
        at = np.arange(len(genes))
        left = min(0.0, genes["scores"].min())
        ax.hlines(at, left, genes["scores"], color=plots.KEPT, lw=1)
        ax.plot(genes["scores"], at, "o", ms=3.5, color=plots.PALETTE[0])
        ax.set_yticks(at, genes["gene_symbols"], size=6.5, style="italic")
        ax.set_ylim(n_genes - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.set_title(name, loc="left", size=8)
        ax.xaxis.set_major_locator(plots.mpl.ticker.MaxNLocator(3))
        ax.tick_params(axis="x", labelsize=7)
    for ax in axes[-1]:
        ax.set_xlabel("score", size=8)
    return fig


def dot_plot(means: pd.DataFrame, fractions: pd.DataFrame, symbols: list[str], marked: list[str]) -> Figure:
    """Groups as rows, marker genes as columns; size: fraction of expressing cells, colour: mean expression.

    Parameters
    ----------
    means, fractions
        groups x genes, the genes in the order drawn.
    symbols
        The name of each gene in the figure.
    marked
        The group that each gene marks; neighbouring genes of one group get a bracket.
    """
    n_groups, n_genes = means.shape
    fig, axes = plots.panels(1, 1, (0.17 * n_genes + 0.2, 0.19 * n_groups + 0.2))
    ax = axes[0, 0]
    x, y = np.meshgrid(np.arange(n_genes), np.arange(n_groups))
    area = DOT * fractions.to_numpy().ravel()
    options = {"cmap": "Reds", "vmin": 0, "edgecolors": "#888888", "linewidths": 0.3}
    drawn = ax.scatter(x.ravel(), y.ravel(), s=area, c=means.to_numpy().ravel(), **options)
    ax.set_xlim(-0.7, n_genes - 0.3)
    ax.set_ylim(n_groups - 0.3, -0.7)
    ax.set_xticks(np.arange(n_genes), symbols, rotation=90, size=7, style="italic")
    ax.set_yticks(np.arange(n_groups), means.index, size=8)
    ax.tick_params(length=2)
    for name in dict.fromkeys(marked):
        at = [i for i, group in enumerate(marked) if group == name]
        ax.plot(
            [at[0] - 0.35, at[-1] + 0.35],
            [1.02, 1.02],
            color="black",
            lw=0.9,
            transform=ax.get_xaxis_transform(),
            clip_on=False,
        )
        short = max(map(len, marked)) <= 4
        where = {"ha": "center"} if short else {"ha": "left", "rotation": 60, "rotation_mode": "anchor"}
        ax.text(np.mean(at), 1.04, name, transform=ax.get_xaxis_transform(), va="bottom", size=7, **where)
    plots.colour_bar(ax, drawn, "mean expression\n(log-normalised)", gap=0.25, height=1.0)
    sizes = [
        ax.scatter([], [], s=DOT * f, c="#888888", linewidths=0, label=f"{100 * f:.0f}")
        for f in (0.2, 0.4, 0.6, 0.8, 1)
    ]
    across, _ = plots.inches(ax)
    place = {"loc": "upper left", "bbox_to_anchor": (1 + 1.1 / across, 1.0), "borderaxespad": 0}
    ax.legend(handles=sizes, title="cells that\nexpress (%)", title_fontsize=8, labelspacing=0.6, **place)
    return fig


def chosen_genes(top: pd.DataFrame) -> pd.DataFrame:
    """The genes of the dot plot: the first few of each group, each gene only where it first occurs."""
    each = int(np.clip(MAX_DOTS // top["group"].nunique(), 1, MAX_EACH))
    return top[top["rank"] <= each].drop_duplicates("names")


def stream_of(inputs: Any, gene_key: str, names: pd.Series) -> tuple[Stream, pd.Index]:
    """The counts of some genes, and their order; from the features if these have all of them, else from the samples."""
    known = pd.Index(Counts(inputs.features[0]).names("var"))
    if names.isin(known).all():
        columns = pd.Index(names).get_indexer(known).astype(np.int32)
        stores = [Counts(part, genes=columns, n_vars=len(names)) for part in inputs.features]
        return Stores(stores), pd.Index(names)
    genes = read_table(inputs.genes)
    subset = genes.index[genes["kept"]].isin(names)
    cohort = Cohort(inputs.counts, inputs.cells, inputs.genes, gene_key, subset=subset, obs=inputs.obs)
    return cohort, cohort.genes.index


def needs(job: Job) -> Need:
    """Always on the CPU: chunks of cells, with all genes if the features lack a gene that is drawn."""
    chunk = 45 * CELLS * job.nnz / max(1, job.n_obs)
    sums = 48 * job.n_groups * job.n_vars
    mem = PYTHON + 70 * MB + (chunk + sums) * job.threads + job.places + 0.3 * KB * job.n_kept
    return Need(mem, 30 + 0.4e-6 * job.nnz, 20 * MB)


def main(snakemake: Any) -> None:
    """Draw the scores and the dot plot of a grouping's markers; write the top markers as a page for the report."""
    inputs, params, output, grouping = snakemake.input, snakemake.params, snakemake.output, snakemake.params.grouping
    text = dict.fromkeys(("group", "names", "gene_symbols"), str)
    top = pd.read_csv(inputs.top, sep="\t", dtype=text, keep_default_na=False, na_values={"scores": ""})
    tables.write_html(top, output.table, f"Top markers of {grouping}, {snakemake.wildcards.method}")
    if top.empty:
        for path in (output.scores, output.dotplot):
            plots.save(plots.nothing(f"{grouping}: fewer than two groups to compare, hence no markers."), path)
        return
    groups = read_groups(grouping, inputs.obs, inputs.grouping)
    genes = chosen_genes(top)
    counts, order = stream_of(inputs, params.gene_key, genes["names"])
    totals = read_table(inputs.obs, columns=["kept_counts"])["kept_counts"].to_numpy()
    target_sum = target_of(totals, params.target_sum)
    expression = expression_by_group(counts, groups, totals, target_sum, snakemake.threads)
    means, fractions = (pd.DataFrame(values, groups.names, order)[genes["names"].tolist()] for values in expression)
    symbols, marked = genes["gene_symbols"].tolist(), genes["group"].tolist()
    tasks = [
        lambda: plots.save(score_panels(top), output.scores, dpi=120),
        lambda: plots.save(dot_plot(means, fractions, symbols, marked), output.dotplot),
    ]
    plots.draw_all(tasks, snakemake.threads)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
