"""Draw a sample's quality figures: counts, genes and gene families of each cell with the limits; doublet scores."""

from lib.start import run

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from h5py import File
from lib.figures import plots, words
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import as_categories
from lib.store.files import column_names, read_table
from lib.store.names import unescape
from matplotlib.figure import Figure


def qc_scatter(
    cells: pd.DataFrame, limits: Mapping[str, list[float]], reasons: Sequence[str], family: str | None, seed: int
) -> Figure:
    """Counts against genes, and against a gene family's percentage; cells are coloured by the reason of their removal.

    Parameters
    ----------
    cells
        total_counts, n_genes_by_counts, pct_counts_{family}, and reason ("" if kept).
    limits
        Metric -> its limits.
    reasons
        All reasons, in the order of application.
    family
        The gene family shown; None: only genes.
    seed
        Of the drawing order.
    """
    against = ["n_genes_by_counts", *([f"pct_counts_{family}"] if family else [])]
    colours = plots.reason_colours(reasons)
    reason = cells["reason"].astype(str)
    each = plots.rgba(colours.values())[pd.Index(list(colours)).get_indexer(reason)]
    fig, axes = plots.panels(1, len(against), (3.6, 3.2), (0.9, 0))
    for ax, metric in zip(axes[0], against, strict=True):
        plots.metric_scatter(ax, cells, metric, limits, each, seed)
    n = reason.value_counts()
    shown = {f"{words.reason_label(name)} ({n[name]:,})": colour for name, colour in colours.items() if n.get(name)}
    plots.outside_legend(axes[0, -1], shown, bbox_to_anchor=(1.1, 1.0))
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


def doublet_histograms(
    observed: Mapping[str, np.ndarray], simulated: Mapping[str, np.ndarray], thresholds: Mapping[str, float]
) -> Figure:
    """Observed and simulated doublet scores of each batch, side by side, numbers of cells on a log scale.

    Parameters
    ----------
    observed, simulated
        Batch -> scores, of cells and of simulated doublets.
    thresholds
        Batch -> the threshold above which a cell is called a doublet; NaN: none found.
    """
    batches = plots.natural_order(observed)
    fig, axes = plots.panels(len(batches), 2, (3.2, 2.0), (0.7, 0.75), sharex="row")
    for (left, right), batch in zip(axes, batches, strict=True):
        top = max(observed[batch].max(), simulated[batch].max(), 1e-3)
        for ax, scores, colour in (
            (left, observed[batch], plots.PALETTE[0]),
            (right, simulated[batch], plots.PALETTE[1]),
        ):
            ax.hist(scores, bins=np.linspace(0, top, 51), color=colour, log=True)
            ax.set_ylim(bottom=0.7)
            plots.log_axis(ax.yaxis)
            if np.isfinite(thresholds[batch]):
                plots.draw_limits(ax, "x", [round(thresholds[batch], 3)])
            ax.set_xlabel(words.metric_label("doublet_score"))
        called = (observed[batch] > thresholds[batch]).sum()
        left.set_title(f"{batch}: {called:,} of {len(observed[batch]):,} cells called", loc="left", pad=12)
        right.set_title("simulated doublets", loc="left", pad=12)
        left.set_ylabel("cells (log)")
        right.set_ylabel("simulated doublets (log)")
    return fig


def needs(job: Job) -> Need:
    """Tables of cells, and the images."""
    return job.drawn(75 * MB, 0.6 * KB, seconds=30)


def main(snakemake: Any) -> None:
    """Draw `qc_scatter.png` from a sample's cells and ledger, and `doublets.png` if doublets were simulated."""
    params, seed = snakemake.params, snakemake.params.seed
    metrics = ["total_counts", "n_genes_by_counts", "reason", "doublet_score", params.batch_key]
    known = column_names(snakemake.input.cells)
    family = next((name for name in params.families if f"pct_counts_{name}" in known), None)
    cells = read_table(snakemake.input.cells, columns=[*metrics, *([f"pct_counts_{family}"] if family else [])])
    ledger = pd.read_csv(snakemake.input.ledger, sep="\t", dtype=str, keep_default_na=False)
    reasons = [reason for reason in ledger["reason"].unique() if reason]
    limits = words.limits(params.cells)
    if cells[params.batch_key].nunique() == 1:
        for metric, at in outlier_limits(cells, params.cells).items():
            limits[metric] = limits.get(metric, []) + at
    simulated, thresholds = {}, {}
    with File(snakemake.input.simulated, locking=False) as file:
        for batch, scores in ((unescape(key), scores) for key, scores in file["scores"].items()):
            simulated[batch], thresholds[batch] = scores[...], float(scores.attrs["threshold"])
    batch_of = as_categories(cells[params.batch_key]).astype(str)
    observed = {batch: cells["doublet_score"][batch_of == batch].dropna().to_numpy() for batch in simulated}

    def draw_doublets() -> None:
        scored = doublet_histograms(observed, simulated, thresholds) if simulated else None
        plots.save(scored or plots.nothing("No batch was scored for doublets."), snakemake.output.doublets, dpi=120)

    def draw_cells() -> None:
        plots.save(qc_scatter(cells, limits, reasons, family, seed), snakemake.output.qc, dpi=130)

    plots.draw_all([draw_doublets, draw_cells], snakemake.threads)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
