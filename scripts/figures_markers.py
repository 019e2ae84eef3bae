"""Draw the marker genes of each group: their scores, a dot plot of their expression in all groups, and on the cells.

For a group g of n_g cells and a gene j with log-normalised values v_ij, a dot's size is |{i in g: v_ij > 0}| / n_g. Its
colour is the mean, sum_{i in g} v_ij / n_g, scaled to 0..1 over the groups, as scanpy.pl.dotplot(standard_scale="var").
"""

from lib.start import run

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import embeddings, plots
from lib.methods.markers import Groups, chosen_genes, read_groups, read_top
from lib.methods.scaling import log_normalize, target_of
from lib.run.forked import run_all
from lib.run.progress import progress
from lib.run.resources import KB, MB, PYTHON, Job, Need
from lib.store.counts import Counts
from lib.store.csr import rows_of_nonzeros
from lib.store.files import read_column, read_table
from lib.store.stream import Stream
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

DOT = 70  # area, in square points, of the dot of a gene that all cells express
MAX_GROUPS = 120  # drawn of a grouping; of more, those with most cells
MAX_TILES = 48  # groups whose first gene is shown on the cells
FEW = 10  # genes of each of more than 12 groups
HEIGHT = 19.5  # inches of the scores at most
LETTER = 0.135  # inches of a gene's row


def read_expression(
    counts: Stream, groups: Groups, totals: np.ndarray, target_sum: float, shown: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Mean log-normalised expression of each gene by group, the fraction of cells that express it, and some values.

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
    shown
        Columns of `counts`, whose values are returned.

    Returns
    -------
    Two arrays, groups x genes, float64; and cells x `shown`, CSC, float32.
    """
    from scipy.sparse import csc_matrix, vstack

    n_groups, n_vars = len(groups.names), counts.n_vars
    codes = np.where(groups.codes < 0, n_groups, groups.codes)
    found, values = np.zeros((2, (n_groups + 1) * n_vars)), []
    for chunk in progress(counts.chunks(), counts.n_obs, "expression"):
        X = log_normalize(chunk.X, totals[chunk.rows], target_sum, counts.device, np.float64)
        keys = codes[chunk.rows][rows_of_nonzeros(X, counts.device)] * n_vars + X.indices
        found[0] += np.bincount(keys, weights=X.data, minlength=found.shape[1])
        found[1] += np.bincount(keys[X.data > 0], minlength=found.shape[1])
        values.append(csc_matrix(X.astype(np.float32)[:, list(shown)]))
    means, fractions = found.reshape(2, n_groups + 1, n_vars)[:, :n_groups] / groups.sizes[:, None]
    return means, fractions, vstack(values, format="csc")


def score_panels(top: pd.DataFrame, note: str = "") -> Figure:
    """For each group its first genes by falling score: a line and a dot each, up to the group's highest score.

    All groups share one `Axes`, whose unit is an inch: an `Axes` for each would take seconds.
    """
    names = list(top["group"].unique())
    columns = min(len(names), 4 if len(names) <= 12 else 8 if len(names) <= 48 else 12)
    rows = -(-len(names) // columns)
    n_genes = int(top.groupby("group").size().max())
    n_genes = max(1, min(n_genes, n_genes if len(names) <= 12 else FEW, int((HEIGHT / rows - 0.65) / LETTER)))
    shown = top[top.groupby("group", sort=False).cumcount() < n_genes]
    label = min(1.0, 0.08 + max(plots.text_width(name, 6.5, style="italic") for name in shown["gene_symbols"]))
    wide, bar, high = label + 1.35, 1.1, n_genes * LETTER + 0.65
    fig, axes = plots.panels(1, 1, (columns * wide, rows * high))
    ax = axes[0, 0]
    ax.set_axis_off()
    stems, dots = [], []
    for i, (name, genes) in enumerate(shown.groupby("group", sort=False)):
        x, y = (i % columns) * wide + label, -(i // columns) * high - 0.3
        scores = genes["scores"].to_numpy(float)
        low, high_score = min(0.0, scores.min()), max(scores.max(), 0.0)
        at = x + bar * (scores - low) / max(high_score - low, 1e-12)
        lines = y - LETTER * (np.arange(len(genes)) + 0.5)
        stems += [[(x, line), (end, line)] for end, line in zip(at, lines, strict=True)]
        dots += list(zip(at, lines, strict=True))
        for symbol, line in zip(plots.fitted(list(genes["gene_symbols"]), label - 0.06, 6.5), lines, strict=True):
            ax.text(x - 0.05, line, symbol, ha="right", va="center_baseline", size=6.5, style="italic")
        title = plots.fitted([str(name)], wide - 0.1, 8, "bold")[0]
        ax.text(x - label + 0.05, y + 0.05, title, va="bottom", size=8, weight="bold")
        bottom = lines[-1] - LETTER * 0.5
        ax.plot([x, x + bar], [bottom, bottom], color="black", lw=0.6)
        for value, place, side in ((low, x, "left"), (high_score, x + bar, "right")):
            ax.text(place, bottom - 0.03, f"{value:,.3g}", ha=side, va="top", size=6)
    ax.add_collection(LineCollection(stems, colors=plots.KEPT, linewidths=1))
    ax.plot(*np.transpose(dots), "o", ms=3, color=plots.PALETTE[0])
    ax.set_xlim(0, columns * wide)
    ax.set_ylim(-rows * high, 0)
    for text in ax.texts:
        text.set_in_layout(False)  # all lie within the panel; looking where takes a third of the time
    if note:
        ax.text(0, 0.05, note, size=8)
    return fig


def dot_plot(
    means: pd.DataFrame, fractions: pd.DataFrame, symbols: Sequence[str], marked: Sequence[str], note: str = ""
) -> Figure:
    """Groups as rows, marker genes as columns; size: fraction of expressing cells, colour: mean, scaled by gene.

    Parameters
    ----------
    means, fractions
        groups x genes, the genes in the order drawn.
    symbols
        The name of each gene in the figure.
    marked
        The group that each gene marks; neighbouring genes of one group get a bracket.
    note
        A remark below the genes.
    """
    n_groups, n_genes = means.shape
    column, row = 0.17, 0.19
    fig, axes = plots.panels(1, 1, (column * n_genes + 0.2, row * n_groups + 0.2))
    ax = axes[0, 0]
    x, y = np.meshgrid(np.arange(n_genes), np.arange(n_groups))
    area = DOT * fractions.to_numpy().ravel()
    options = {"cmap": "Reds", "vmin": 0, "vmax": 1, "edgecolors": "#888888", "linewidths": 0.3}
    scaled = (means - means.min()) / (means.max() - means.min()).replace(0, 1)
    drawn = ax.scatter(x.ravel(), y.ravel(), s=area, c=scaled.to_numpy().ravel(), **options)
    ax.set_xlim(-0.5 - 0.1 / column, n_genes - 0.5 + 0.1 / column)
    ax.set_ylim(n_groups - 0.5 + 0.1 / row, -0.5 - 0.1 / row)
    ax.set_xticks(np.arange(n_genes), plots.fitted(symbols, 1.2, 7), rotation=90, size=7, style="italic")
    ax.set_yticks(np.arange(n_groups), plots.fitted(list(means.index), 2.2, 8), size=8)
    ax.tick_params(length=2)
    groups = list(dict.fromkeys(marked))
    names = dict(zip(groups, plots.fitted(groups, 1.6, 7), strict=True))
    places = {name: [i for i, group in enumerate(marked) if group == name] for name in groups}
    level = all(plots.text_width(names[name], 7) < column * len(at) for name, at in places.items())
    above = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    top = 1 + 0.05 / plots.inches(ax)[1]
    for name, at in places.items():
        ax.plot([at[0] - 0.35, at[-1] + 0.35], [top, top], color="black", lw=0.9, **above)
        ax.text(
            np.mean(at),
            2 * top - 1,
            names[name],
            va="bottom",
            size=7,
            ha="center",
            rotation=0 if level else 90,
            **above,
        )
    bare = [name for name in means.index if name not in places]
    notes = [note] if note else []
    if bare:
        notes.append(f"without a bracket, as their top genes rank as high in another group: {', '.join(bare)}")
    if notes:
        below = 1.15 * max(plots.text_width(symbol, 7, style="italic") for symbol in plots.fitted(symbols, 1.2, 7))
        place = {"transform": ax.transAxes, "size": 8, "va": "top"}
        across = max(4.0, plots.inches(ax)[0])
        ax.text(0, -(below + 0.15) / plots.inches(ax)[1], plots.fitted(["; ".join(notes)], across, 8)[0], **place)
    plots.colour_bar(ax, drawn, "mean expression,\nscaled by gene", gap=0.25, height=1.0)
    shares = (0.2, 0.4, 0.6, 0.8, 1.0)
    across, up = plots.inches(ax)
    left = 1 + 1.15 / across
    ax.text(left, 1, "cells that\nexpress (%)", va="top", size=8, transform=ax.transAxes)
    at = [(left + 0.1 / across, 1 - (0.4 + 0.17 * i) / up) for i in range(len(shares))]
    style = {"transform": ax.transAxes, "clip_on": False, "c": "#888888", "linewidths": 0}
    ax.scatter(*np.transpose(at), s=[DOT * share for share in shares], **style)
    for (place, line), share in zip(at, shares, strict=True):
        label = {"va": "center_baseline", "size": 8, "transform": ax.transAxes}
        ax.text(place + 0.15 / across, line, f"{100 * share:.0f}", **label)
    return fig


def expression_tiles(
    X: np.ndarray,
    values: Any,
    titles: tuple[Sequence[str], Sequence[str]],
    axes_names: Sequence[str],
    seed: int,
    note: str,
) -> Figure:
    """A tile for each gene: the cells that express it over all others, the highest values on top.

    Parameters
    ----------
    X
        cells x 2.
    values
        cells x genes, CSC, log-normalised.
    titles
        See `embeddings.tiles`.
    """
    some = np.zeros(len(X), bool)
    some[plots.drawing_order(len(X), seed)[: embeddings.MAX_IN_TILES]] = True
    drawn = []
    for i in range(values.shape[1]):
        cells, of_cells = (part[values.indptr[i] : values.indptr[i + 1]] for part in (values.indices, values.data))
        cells, of_cells = cells[some[cells]], of_cells[some[cells]]
        order = of_cells.argsort(kind="stable")
        drawn.append((cells[order], of_cells[order] / max(of_cells.max(initial=0), 1e-12)))
    label = "expression, scaled by gene"
    return embeddings.tiles(X, titles, drawn, axes_names, label, embeddings.EXPRESSION, note)


def needs(job: Job) -> Need:
    """Always on the CPU: chunks of the panel, and the values of some genes."""
    drawers = 250 * MB * (job.threads - 1)
    return Need(PYTHON + 330 * MB + drawers + 0.7 * KB * job.n_kept, 30 + 1e-4 * job.n_kept, 20 * MB)


def main(snakemake: Any) -> None:
    """Draw the markers of each of `params.groupings` by each of `params.methods`."""
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    embedding = read_table(inputs.embedding, named=False)
    totals = read_column(inputs.obs, "kept_counts")
    target_sum = target_of(totals, params.target_sum)
    pairs = [(grouping, method) for grouping in params.groupings for method in params.methods]
    tops = dict(zip(pairs, inputs.tops, strict=True))
    files = {
        name: [path for path, of in zip(inputs.clusterings, params.clusterings, strict=True) if of == name]
        for name in params.groupings
    }
    drawn = {name: np.reshape(getattr(output, name), (len(pairs), -1)).tolist() for name in ("scores", "dotplot")}
    drawn["cells"] = np.reshape(output.cells, (len(params.groupings), -1)).tolist()

    def draw_scores(i: int) -> None:
        top = read_top(inputs.tops[i])
        names = top["group"].unique()
        note = f"The first {MAX_GROUPS} of {len(names)} groups" if len(names) > MAX_GROUPS else ""
        fig = (
            plots.nothing(none(pairs[i][0]))
            if top.empty
            else score_panels(top[top["group"].isin(names[:MAX_GROUPS])], note)
        )
        plots.save(fig, drawn["scores"][i], dpi=120)

    def draw_tiles(grouping: str) -> tuple[list[str], pd.DataFrame, pd.DataFrame] | None:
        """Draw a grouping's first markers on the cells; its groups, and the largest ones' means and fractions."""
        of_cells = drawn["cells"][params.groupings.index(grouping)]
        found = [read_top(path) for pair, path in tops.items() if pair[0] == grouping]
        if all(top.empty for top in found):
            plots.save(plots.nothing(none(grouping)), of_cells)
            return None
        groups, panel = read_groups(grouping, inputs.obs, files[grouping]), Counts(inputs.panel)
        tiles_of = groups.largest(MAX_TILES)
        ranked = [top.drop_duplicates("group").set_index("group") for top in found]
        # Of pairs of groups there are others
        whole = next((top for top in ranked if {*tiles_of} <= {*top.index}), None)
        first = ranked[0].head(MAX_TILES) if whole is None else whole.loc[tiles_of]
        tiles_of = list(first.index)
        order = pd.Index(panel.names("var"))
        columns = order.get_indexer(first["names"])
        means, fractions, values = read_expression(panel, groups, totals, target_sum, columns)
        titles = tiles_of, [f": {symbol}" for symbol in plots.fitted(list(first["gene_symbols"]), 0.9, 8)]
        note = left_out(len(tiles_of), len(groups.names))
        X, axes_names = embedding.to_numpy(np.float32), list(embedding.columns)
        plots.save(expression_tiles(X, values, titles, axes_names, params.seed, note), of_cells)
        of_groups = (pd.DataFrame(of, groups.names, order) for of in (means, fractions))
        return groups.names, *(of.loc[groups.largest(MAX_GROUPS)] for of in of_groups)

    def draw_dots(i: int, found: tuple[list[str], pd.DataFrame, pd.DataFrame] | None) -> None:
        if found is None:
            plots.save(plots.nothing(none(pairs[i][0])), drawn["dotplot"][i])
            return
        names, *tables = found
        shown, genes = tables[0].index, chosen_genes(read_top(inputs.tops[i]))
        genes = genes[genes["group"].isin(shown) | ~genes["group"].isin(names)]
        of_genes = (of[genes["names"].tolist()] for of in tables)
        symbols, note = genes["gene_symbols"].tolist(), left_out(len(shown), len(names))
        plots.save(dot_plot(*of_genes, symbols, genes["group"].tolist(), note), drawn["dotplot"][i])

    tiles = [partial(draw_tiles, name) for name in params.groupings]
    found = run_all([*tiles, *(partial(draw_scores, i) for i in range(len(pairs)))], snakemake.threads)
    expression = dict(zip(params.groupings, found[: len(tiles)], strict=True))
    run_all([partial(draw_dots, i, expression[pair[0]]) for i, pair in enumerate(pairs)], snakemake.threads)


def left_out(n: int, of: int) -> str:
    """What a figure of n groups says of the others."""
    return f"the {n} largest of {of} groups" if n < of else ""


def none(grouping: str) -> str:
    """What a figure says in place of markers."""
    return f"{grouping}: fewer than two groups to compare, hence no markers."


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
