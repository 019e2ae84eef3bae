"""Draw the cohort's quality: metrics by batch with the limits, cells lost at each step; and write both as tables."""

from lib.start import run

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import plots, tables, words
from lib.methods.ledgers import MORE, MUCH, describe_limit, shares_taken, with_losses
from lib.run import stage
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import united
from lib.store.files import column_names, read_table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SCORES = ["doublet_score", "log1p_total_counts", "log1p_n_genes_by_counts"]  # metrics with limits that are not drawn
EMPTY = "no_counts_in_kept_genes"  # a reason of the ledger
MAX_COLOURED = 20  # with more batches, the scatter shows numbers of cells instead of batches


def batch_order(cells: pd.DataFrame, batch_key: str) -> list[str]:
    """Batches in natural order, those without a kept cell last, so that figures of kept cells have the same colours."""
    kept = plots.natural_order(cells.loc[cells["kept"], batch_key].unique())
    return kept + [name for name in plots.natural_order(cells[batch_key].unique()) if name not in set(kept)]


def violin(ax: Axes, values: np.ndarray, at: float, colour: str, log: bool) -> None:
    """A horizontal violin around y = `at`, with quartiles and median; with `log`, the density of log10 values.

    The density is a histogram of 256 bins, smoothed by a Gaussian of Silverman's width, which is fast for a million
    cells.
    """
    values = np.log10(np.maximum(values, 1)) if log else values
    low, high = values.min(), values.max()
    width = max(
        0.9 * min(values.std(), np.subtract(*np.percentile(values, [75, 25])) / 1.34) * len(values) ** -0.2, 1e-3
    )
    edges = np.linspace(low - 3 * width, high + 3 * width, 257)
    centres = (edges[1:] + edges[:-1]) / 2
    kernel = np.exp(-0.5 * ((centres - centres.mean()) / width) ** 2)
    density = np.convolve(np.histogram(values, edges)[0], kernel, mode="same")
    inside = (centres >= low) & (centres <= high)
    density, centres = 0.42 * density / density.max(), 10**centres if log else centres
    ax.fill_between(centres[inside], at - density[inside], at + density[inside], color=colour, lw=0)
    quartiles = np.percentile(values, [25, 50, 75])
    first, median, third = 10**quartiles if log else quartiles
    ax.plot([first, third], [at, at], color="black", lw=2.2, solid_capstyle="butt")
    ax.plot([median], [at], marker="o", ms=3, mfc="white", mec="black", mew=0.6)


def violins(
    cells: pd.DataFrame, batch_key: str, metrics: Sequence[str], limits: Mapping[str, Sequence[float]]
) -> Figure:
    """Metrics of all cells before the limits: a row per batch, a panel per metric, counts on log axes."""
    order = batch_order(cells, batch_key)
    colours = plots.category_colours(order)
    height = max(1.2, len(order) * np.clip(16 / len(order), 0.17, 0.5))
    fig, axes = plots.panels(1, len(metrics), (2.9, height), (0.35, 0))
    groups = dict(list(cells.groupby(cells[batch_key].astype(str))))
    for ax, metric in zip(axes[0], metrics, strict=True):
        log = not metric.startswith("pct_")
        for row, batch in enumerate(order):
            values = groups[batch][metric]
            if values.notna().any():  # all are missing if the batch lacks the gene family
                violin(ax, values.fillna(0).to_numpy(dtype=float), row, colours[batch], log)
        if log:
            plots.log_axis(ax.xaxis)
        ax.set_ylim(len(order) - 0.4, -0.6)
        ax.set_yticks(range(len(order)), [])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(words.metric_label(metric))
        plots.draw_limits(ax, "x", limits.get(metric, []))
        ax.tick_params(axis="x", top=len(order) > 60, labeltop=len(order) > 60)
    axes[0, 0].set_yticklabels(order, size=8 if len(order) <= 60 else 6.5)
    return fig


def cohort_scatter(
    cells: pd.DataFrame, batch_key: str, metrics: Sequence[str], limits: Mapping[str, list[float]], seed: int
) -> Figure:
    """Counts against each of `metrics`: a point per cell in its batch's colour, or shaded hexagons for many batches."""
    order = batch_order(cells, batch_key)
    colours = plots.category_colours(order)
    codes = pd.Index(order).get_indexer(cells[batch_key].astype(str))
    each = plots.rgba(colours.values())[codes] if len(order) <= MAX_COLOURED else None
    fig, axes = plots.panels(1, len(metrics), (3.6, 3.2), (0.95, 0))
    for ax, metric in zip(axes[0], metrics, strict=True):
        drawn = (cells[metric].notna() | (cells["total_counts"] == 0)).to_numpy()  # without cells that lack the family
        each_drawn = None if each is None else each[drawn]
        shaded = plots.metric_scatter(ax, cells[drawn], metric, limits, each_drawn, seed)
    if each is not None:
        plots.outside_legend(axes[0, -1], colours, max_rows=16, bbox_to_anchor=(1.12, 1.0))
    else:
        plots.colour_bar(axes[0, -1], shaded, "cells", gap=0.45)
    return fig


def attrition(ledger: pd.DataFrame) -> pd.DataFrame:
    """The number of cells of each sample that were kept, and that each reason removed.

    Parameters
    ----------
    ledger
        The samples' ledgers, concatenated.

    Returns
    -------
    samples x ["" for kept, then the reasons in the order in which they apply], integers.
    """
    reasons = [reason for reason in ledger["reason"].unique() if reason]
    removed = ledger.pivot_table(index="sample", columns="reason", values="removed", aggfunc="sum", fill_value=0)
    kept = ledger.groupby(["sample", "batch"])["left"].last().groupby("sample").sum()
    order = plots.natural_order(ledger["sample"].unique())
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
    """A stacked bar per sample: cells kept, then cells removed by each reason; numbers left, percentages right."""
    colours = plots.reason_colours([reason for reason in lost if reason])
    height = max(0.6, len(lost) * np.clip(16 / len(lost), 0.15, 0.35))
    fig, axes = plots.panels(1, 2, (3.6, height), (0.3, 0), sharey=True)
    for ax, numbers in zip(axes[0], (lost, 100 * lost.div(lost.sum(1), axis=0)), strict=True):
        start = np.zeros(len(lost))
        for reason, values in numbers.items():
            ax.barh(range(len(lost)), values, left=start, height=0.75, color=colours[reason], lw=0)
            start += values.to_numpy()
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.margins(y=0.02 if len(lost) > 10 else 0.05)
    axes[0, 0].set_yticks(range(len(lost)), lost.index, size=8 if len(lost) <= 60 else 6.5)
    axes[0, 0].invert_yaxis()
    plots.thousands(axes[0, 0].xaxis)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(5))
    axes[0, 0].set_xlabel("cells")
    axes[0, 1].set_xlabel("% of the sample's cells")
    axes[0, 1].set_xlim(0, 100)
    shown = {f"{words.reason_label(name)} ({n:,})": colours[name] for name, n in lost.sum().items() if n}
    plots.outside_legend(axes[0, 1], shown)
    return fig


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


def needs(job: Job) -> Need:
    """Tables of cells, and the images."""
    return job.drawn(90 * MB, 0.8 * KB, seconds=60)


def main(snakemake: Any) -> None:
    """Draw violins, scatter and attrition of the cohort; write the ledger and the summary as tables."""
    params, output = snakemake.params, snakemake.output
    known = {path: set(column_names(path)) for path in snakemake.input.cells}
    families = [f"pct_counts_{family}" for family in params.families]
    families = [metric for metric in families if any(metric in columns for columns in known.values())]
    metrics = ["total_counts", "n_genes_by_counts", *families]
    columns = list(dict.fromkeys([*metrics, *SCORES, "predicted_doublet", "kept", "sample", params.batch_key]))
    parts = [read_table(path, columns=[c for c in columns if c in known[path]]) for path in snakemake.input.cells]
    batches = united([table[params.batch_key] for table in parts])
    cells = pd.concat(parts).assign(**{params.batch_key: batches.array.astype(str)})
    ledger = pd.concat(
        [
            pd.read_csv(path, sep="\t", dtype={"sample": str, "batch": str}, keep_default_na=False)
            for path in snakemake.input.ledgers
        ]
    )
    tell_uneven(ledger, cells, params.batch_key)
    cells["empty"] = cells["kept"] & ~cells.index.isin(read_table(snakemake.input.obs, columns=[]).index)
    ledger, cells["kept"] = with_empty(ledger, cells, params.batch_key), cells["kept"] & ~cells["empty"]
    limits = words.limits(params.cells)
    batch_key, seed = params.batch_key, snakemake.params.seed
    tasks = [
        lambda: plots.save(violins(cells, batch_key, metrics, limits), output.violins, dpi=110),
        lambda: plots.save(cohort_scatter(cells, batch_key, metrics[1:3], limits, seed), output.scatter),
        lambda: plots.save(attrition_bars(attrition(ledger)), output.attrition, dpi=110),
    ]
    plots.draw_all(tasks, snakemake.threads)
    tables.write_tsv(ledger, output.attrition_table)
    counted = attrition(ledger).rename(columns=words.reason_label).reset_index()
    tables.write_html(counted, output.attrition_html, "Cells kept, and removed by each step")
    of_batches = with_losses(summary(cells, params.batch_key, metrics), ledger, cells)
    tables.write_tsv(of_batches, output.summary)
    tables.write_html(of_batches, output.summary_html, "Cells and medians of the kept cells, by batch")
    stage.log.info("%d of %d cells kept, %d batches", cells["kept"].sum(), len(cells), len(of_batches))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
