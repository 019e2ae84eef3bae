"""Draw the quality of the batches: metrics, cells that the limits remove, doublet scores; and write tables of them."""

from lib.start import run

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from h5py import File
from lib.figures import distributions, grids, plots, words
from lib.methods.ledgers import MORE, MUCH, describe_limit, shares_taken, with_losses
from lib.run import stage
from lib.run.forked import run_all
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import united
from lib.store.files import are_in, column_names, read_index, read_table, write_tsv
from lib.store.names import unescape
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SCORES = ["doublet_score", "log1p_total_counts", "log1p_n_genes_by_counts"]  # metrics with limits that are not drawn
EMPTY = "no_counts_in_kept_genes"  # a reason of the ledger
TILE = (2.0, 1.7)  # inches of a batch's panel
SCORED, SIMULATED = "#7F8FA6", "#D55E00"
SHAPES = {"fill": {"color": SCORED, "lw": 0}, "plot": {"color": SIMULATED, "lw": 1}}
MAX_COLOURED = 20  # with more batches, the scatter shows numbers of cells instead of batches


def batch_order(cells: pd.DataFrame, batch_key: str) -> list[str]:
    """Batches in natural order, those without a kept cell last, so that figures of kept cells have the same colours."""
    kept = plots.natural_order(cells.loc[cells["kept"], batch_key].unique())
    return kept + [name for name in plots.natural_order(cells[batch_key].unique()) if name not in set(kept)]


def cohort_scatter(
    cells: pd.DataFrame, batch_key: str, metrics: Sequence[str], limits: Mapping[str, list[float]], seed: int
) -> Figure:
    """Counts against each of `metrics`: a point per cell in its batch's colour, or shaded hexagons for many batches."""
    order = batch_order(cells, batch_key)
    colours = plots.category_colours(order, "batches")
    codes = pd.Index(order).get_indexer(cells[batch_key].astype(str))
    each = plots.rgba(colours.values())[codes] if len(order) <= MAX_COLOURED else None
    fig, axes = plots.panels(1, len(metrics), (3.6, 3.2), (0.95, 0))
    for ax, metric in zip(axes[0], metrics, strict=True):
        drawn = (cells[metric].notna() | (cells["total_counts"] == 0)).to_numpy()  # without cells that lack the family
        each_drawn = None if each is None else each[drawn]
        shaded = plots.metric_scatter(ax, cells[drawn], metric, limits, each_drawn, seed)
    if each is not None:
        plots.outside_legend(axes[0, -1], colours, gap=0.4)
    else:
        plots.colour_bar(axes[0, -1], shaded, "cells", gap=0.45)
    return fig


def attrition(ledger: pd.DataFrame) -> pd.DataFrame:
    """The number of cells of each batch that were kept, and that each reason removed.

    Parameters
    ----------
    ledger
        The samples' ledgers, concatenated.

    Returns
    -------
    batches x ["" for kept, then the reasons in the order in which they apply], integers.
    """
    reasons = [reason for reason in ledger["reason"].unique() if reason]
    removed = ledger.pivot_table(index="batch", columns="reason", values="removed", aggfunc="sum", fill_value=0)
    kept = ledger.groupby(["sample", "batch"])["left"].last().groupby("batch").sum()
    order = plots.natural_order(ledger["batch"].unique())
    return removed.reindex(columns=["", *reasons], fill_value=0).assign(**{"": kept}).loc[order].astype(int)


def with_empty(ledger: pd.DataFrame, cells: pd.DataFrame, batch_key: str) -> pd.DataFrame:
    """The ledger plus the step that removes kept cells without counts in the kept genes, if there are any.

    Parameters
    ----------
    cells
        All cells: `sample`, `batch_key` and `empty`.
    """
    if not cells["empty"].any():
        return ledger
    lost = cells[cells["empty"]].groupby(["sample", batch_key], observed=True).size()
    left = ledger.groupby(["sample", "batch"])["left"].last()
    rows = [(*place, "genes", EMPTY, n, left[place] - n) for place, n in lost.items()]
    return pd.concat([ledger, pd.DataFrame(rows, columns=ledger.columns)], ignore_index=True)


def attrition_bars(lost: pd.DataFrame) -> Figure:
    """A stacked bar per batch: cells kept, then cells removed by each reason; numbers left, percentages right."""
    colours = plots.reason_colours([reason for reason in lost if reason])
    height = max(0.6, len(lost) * np.clip(8 / len(lost), distributions.ROW, 0.35))
    fig, axes = plots.panels(1, 2, (3.6, height), (0.3, 0), sharey=True)
    for ax, numbers in zip(axes[0], (lost, 100 * lost.div(lost.sum(1), axis=0)), strict=True):
        start = np.zeros(len(lost))
        for reason, values in numbers.items():
            ax.barh(range(len(lost)), values, left=start, height=0.75, color=colours[reason], lw=0)
            start += values.to_numpy()
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(lost) - 0.4, -0.6)
    axes[0, 0].set_yticks(range(len(lost)), plots.fitted(list(lost.index), distributions.NAMES, 8), size=8)
    plots.thousands(axes[0, 0].xaxis)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(5))
    axes[0, 0].set_xlabel("cells")
    axes[0, 1].set_xlabel("% of the batch's cells")
    axes[0, 1].set_xlim(0, 100)
    shown = {f"{words.reason_label(name)} ({n:,})": colours[name] for name, n in lost.sum().items() if n}
    plots.outside_legend(axes[0, 1], shown)
    return fig


def outlier_limits(cells: pd.DataFrame, config: Mapping[str, Any]) -> dict[str, list[float]]:
    """Metric -> the values at `mad` median absolute deviations from the median, for the metrics drawn of one batch."""
    found = {}
    for name in config["mad_metrics"] if config.get("mad") else []:
        metric, percentage = name.removeprefix("log1p_"), name.startswith("pct_counts_")
        if metric not in cells:
            continue
        values = cells[metric] if metric == name else np.log1p(cells[metric])
        spread = config["mad"] * (values - values.median()).abs().median()
        ends = np.array(
            [values.median() + spread] if percentage else [values.median() - spread, values.median() + spread]
        )
        found[metric] = np.round(ends if metric == name else np.expm1(ends), 1).tolist()
    return found


def limit_tiles(
    cells: Mapping[str, pd.DataFrame],
    limits: Mapping[str, Mapping[str, list[float]]],
    reasons: Sequence[str],
    family: str | None,
    seed: int,
) -> Figure:
    """A panel for each batch: genes of each cell against a gene family's percentage, coloured by why it was removed.

    Parameters
    ----------
    cells
        Batch -> n_genes_by_counts, pct_counts_{family} or total_counts, and reason ("" if kept).
    limits
        Batch -> metric -> its limits.
    reasons
        All reasons, in the order of application.
    family
        The gene family shown; None: counts against genes.
    seed
        Of the drawing order.
    """
    x, y = ("n_genes_by_counts", f"pct_counts_{family}") if family else ("total_counts", "n_genes_by_counts")
    colours = plots.reason_colours(reasons)
    inks, known = plots.rgba(colours.values()), pd.Index(list(colours))
    every = pd.concat([table[[x, y, "reason"]] for table in cells.values()])
    values = {x: np.maximum(every[x].to_numpy(float), 1), y: np.nan_to_num(every[y].to_numpy(float))}
    values[y] = values[y] if family else np.maximum(values[y], 1)
    axes = [grids.Scale.of(values[x], log=True), grids.Scale.of(values[y], not family, 0 if family else None)]
    for axis, metric in zip(axes, (x, y), strict=True):  # the limits, if they are not far
        for at in {at for of_batch in limits.values() for at in of_batch.get(metric, [])}:
            place = float(axis.place(at))
            if -1.5 <= place < 0.02 and at > 0:
                axis.low = min(axis.low, 0.95 * at)
            elif 0.98 < place <= 2.5:
                axis.high = max(axis.high, 1.05 * at)
    titles = plots.counted(list(cells), [f" ({len(table):,})" for table in cells.values()], TILE[0] + 0.2, 8)
    grid = grids.Grid(titles, TILE, *axes)
    places = np.repeat(np.arange(len(cells)), [len(table) for table in cells.values()])
    at = np.concatenate([grid.at(i, values[x][places == i], values[y][places == i]) for i in range(len(cells))])
    order = plots.drawing_order(len(at), seed)
    style = plots.point_style(int(len(at) / len(cells)), TILE[1])
    plots.dots(grid.ax, *at[order].T, inks[known.get_indexer(every["reason"].astype(str))][order], **style)
    for i, name in enumerate(cells):
        grid.limits(i, "x", limits[name].get(x, []))
        grid.limits(i, "y", limits[name].get(y, []))
    grid.frame(words.metric_label(x), words.metric_label(y))
    n = every["reason"].astype(str).value_counts()
    shown = {f"{words.reason_label(name)} ({n[name]:,})": colours[name] for name in colours if n.get(name)}
    plots.outside_legend(grid.ax, shown, gap=0.3)
    return grid.fig


def doublet_tiles(
    observed: Mapping[str, np.ndarray], simulated: Mapping[str, np.ndarray], thresholds: Mapping[str, float]
) -> Figure:
    """A panel for each batch: doublet scores of its cells and of simulated doublets, on a log axis of their number.

    Parameters
    ----------
    observed, simulated
        Batch -> scores, of cells and of simulated doublets.
    thresholds
        Batch -> the threshold above which a cell is called a doublet; NaN: none found.
    """
    called = {name: int((scores > thresholds[name]).sum()) for name, scores in observed.items()}
    said = [f": {called[name]:,} of {len(scores):,} called" for name, scores in observed.items()]
    every = [*observed.values(), *simulated.values()]
    edges = np.linspace(0, max(1e-3, *(scores.max(initial=0) for scores in every)), 51)
    counts = {name: [np.histogram(of[name], edges)[0] for of in (observed, simulated)] for name in observed}
    top = np.array([0.5, max(max(n.max() for n in both) for both in counts.values())])
    grid = grids.Grid(
        plots.counted(list(observed), said, TILE[0] + 0.2, 8),
        TILE,
        grids.Scale(0, edges[-1]),
        grids.Scale.of(top, True),
    )
    grid.y.low = 0.5
    for i, name in enumerate(observed):
        for n, (artist, style) in zip(counts[name], SHAPES.items(), strict=True):
            steps = np.maximum(np.repeat(np.r_[0, n, 0], 2)[1:-1], 0.5)
            outline = grid.at(i, np.repeat(edges, 2), steps)
            getattr(grid.ax, artist)(*outline.T, **style)
        if np.isfinite(thresholds[name]):
            grid.limits(i, "x", [round(thresholds[name], 3)])
    grid.frame(words.metric_label("doublet_score"), "number (log)")
    plots.outside_legend(grid.ax, {"cells": SCORED, "simulated doublets": SIMULATED}, gap=0.2)
    return grid.fig


def summary(cells: pd.DataFrame, batch_key: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Per batch: cells before and after, and the medians of `metrics` of the kept cells (NaN if none is kept)."""
    batches, kept = cells[batch_key].astype(str), cells["kept"]
    table = pd.DataFrame({"cells": batches.value_counts(), "kept": batches[kept].value_counts()}).fillna(0).astype(int)
    table["kept_pct"] = (100 * table["kept"] / table["cells"]).round(2)
    medians = cells.loc[kept, list(metrics)].groupby(batches[kept]).median().add_prefix("median_")
    table = table.join(medians.round(2)).loc[batch_order(cells, batch_key)]
    return table.rename_axis(batch_key).reset_index()


def tell_uneven(ledger: pd.DataFrame, cells: pd.DataFrame, batch_key: str) -> None:
    """Give notice of limits that removed a share of a batch that exceeds the median batch's by MORE; batches that lost
    MUCH have a notice of the stage `cells`."""
    for reason, shares in shares_taken(ledger).items():
        median = shares.median()
        uneven = shares[(shares > median + MORE) & (shares <= MUCH)]
        if len(uneven):
            stage.notice(
                "%s (of the median batch it takes %.0f %%)",
                *(describe_limit(reason, uneven, cells, batch_key), 100 * median),
            )


def read_doublets(files: Sequence[str], cells: pd.DataFrame) -> tuple[dict, dict, dict]:
    """The scores of cells and of simulated doublets, and the threshold, of each batch of each sample that was scored.

    Parameters
    ----------
    files
        The samples' `doublets_simulated.h5`, in the order of the sheet.
    cells
        Of all samples: `part` (the number of the file), `unit` (the batch's name) and doublet_score.
    """
    observed, simulated, thresholds = {}, {}, {}
    scores = cells[cells["doublet_score"].notna()]
    places = scores.groupby(["part", "batch_name"], observed=True).indices
    for part, path in enumerate(files):
        with File(path, locking=False) as file:
            for key, found in file["scores"].items():
                mine = scores.iloc[places.get((part, unescape(key)), [])]
                name = mine["unit"].iloc[0] if len(mine) else unescape(key)
                observed[name], simulated[name] = mine["doublet_score"].to_numpy(), found[...]
                thresholds[name] = float(found.attrs["threshold"])
    return observed, simulated, thresholds


def pages(items: Sequence[Any], outputs: Sequence[str], formats: int) -> list[tuple[Sequence[Any], list[str]]]:
    """The items of each page, and the page's files; a page without items has none."""
    of_page = np.reshape(outputs, (-1, formats)).tolist()
    each = -(-len(items) // len(of_page))
    return [(items[i * each : (i + 1) * each], paths) for i, paths in enumerate(of_page)]


def needs(job: Job) -> Need:
    """Tables of cells, and the images."""
    return job.drawn((90 + job.n_samples) * MB, 1.0 * KB, seconds=20)


def main(snakemake: Any) -> None:
    """Draw violins, scatter, attrition, limits and doublets; write the ledger and the summary as tables."""
    inputs, params, output, seed = snakemake.input, snakemake.params, snakemake.output, snakemake.params.seed
    batch_key, formats = params.batch_key, params.formats
    known = {path: set(column_names(path)) for path in inputs.cells}
    families = [f"pct_counts_{family}" for family in params.families]
    families = [metric for metric in families if any(metric in columns for columns in known.values())]
    metrics = ["total_counts", "n_genes_by_counts", *families]
    columns = list(dict.fromkeys([*metrics, *SCORES, "predicted_doublet", "kept", "reason", "sample", batch_key]))
    parts = [read_table(path, [c for c in columns if c in known[path]], named=False) for path in inputs.cells]
    batches = united([table[batch_key] for table in parts])
    cells = pd.concat(parts, ignore_index=True).assign(**{batch_key: batches.array.astype(str)})
    ledgers = [
        pd.read_csv(path, sep="\t", dtype={"sample": str, "batch": str}, keep_default_na=False)
        for path in inputs.ledgers
    ]
    ledger = pd.concat(ledgers)
    tell_uneven(ledger, cells, batch_key)
    cells["empty"] = cells["kept"] & ~are_in(map(read_index, inputs.cells), read_index(inputs.obs))
    ledger, cells["kept"] = with_empty(ledger, cells, batch_key), cells["kept"] & ~cells["empty"]
    lost, order = attrition(ledger), batch_order(cells, batch_key)
    colours, limits = plots.category_colours(order, "batches"), words.limits(params.cells)

    # A batch of a sample is drawn with its own limits
    cells["part"] = np.repeat(np.arange(len(parts)), [len(table) for table in parts])
    cells["batch_name"] = cells[batch_key]
    shared = cells.groupby("batch_name")["part"].nunique().gt(1).any() and batch_key != "sample"
    cells["unit"] = cells["batch_name"] + (", " + cells["sample"].astype(str) if shared else "")
    of_unit = cells.groupby("unit").indices
    units = [(name, of_unit[name]) for name in plots.natural_order(of_unit)]
    reasons = [reason for reason in ledger["reason"].unique() if reason and reason != EMPTY]

    def draw_violins(names: Sequence[str], paths: list[str]) -> None:
        shown = {name: colours[name] for name in names}
        plots.save(distributions.violins(cells[metrics], cells[batch_key], shown, limits), paths, dpi=110)

    def draw_limits(page: Sequence[tuple[str, np.ndarray]], paths: list[str]) -> None:
        drawn = {name: cells.iloc[place] for name, place in page}
        of_batch = {}
        for name, table in drawn.items():
            given = params.limits[int(table["part"].iloc[0])]
            of_batch[name] = {metric: list(at) for metric, at in words.limits(given).items()}
            for metric, at in outlier_limits(table, given).items():
                of_batch[name][metric] = of_batch[name].get(metric, []) + at
        family = families[0].removeprefix("pct_counts_") if families else None
        plots.save(limit_tiles(drawn, of_batch, reasons, family, seed), paths, dpi=120)

    def draw_doublets(page: Sequence[str], paths: list[str]) -> None:
        fig = doublet_tiles(*({name: found[name] for name in page} for found in doublets)) if page else None
        plots.save(fig or plots.nothing("No batch was scored for doublets."), paths, dpi=120)

    tasks = [
        lambda: plots.save(cohort_scatter(cells, batch_key, metrics[1:3], limits, seed), output.scatter),
        *(partial(draw_violins, *page) for page in pages(order, output.violins, formats)),
        *(partial(draw_attrition, *page) for page in pages(lost, output.attrition, formats)),
        *(partial(draw_limits, *page) for page in pages(units, output.limits, formats)),
    ]
    doublets = read_doublets(inputs.simulated, cells)
    named = plots.natural_order(doublets[0])
    tasks += [partial(draw_doublets, *page) for page in pages(named, output.doublets, formats)]
    run_all(tasks, snakemake.threads)
    write_tsv(ledger, output.attrition_table)
    of_batches = with_losses(summary(cells, batch_key, metrics), ledger, cells)
    write_tsv(of_batches, output.summary)
    stage.log.info("%d of %d cells kept, %d batches", cells["kept"].sum(), len(cells), len(of_batches))


def draw_attrition(lost: pd.DataFrame, paths: list[str]) -> None:
    """Draw the batches of one page."""
    plots.save(attrition_bars(lost), paths, dpi=110)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
