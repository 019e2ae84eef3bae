"""Decide which cells of a sample are kept, and count the removed ones by their first reason: the attrition ledger.

A cell is kept if it passes every limit of the config's `cells` section (strict inequalities, as
200 < n_genes_by_counts < 5000, pct_counts_MT < 20; optionally within `mad` median absolute deviations of its
batch). With `doublets: remove` it must also be no predicted doublet of a batch whose calls are trusted.
"""

from lib.start import run

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from lib.inputs.sheet import stored_names
from lib.methods.ledgers import MUCH, describe_limit, shares_taken
from lib.methods.thresholds import failing, threshold_reasons
from lib.report import batches as told_batches
from lib.report.parts import Finished, Methods, Part
from lib.report.words import listed
from lib.run import stage
from lib.run.resources import KB, MB, Job, Need
from lib.store.counts import Counts
from lib.store.files import read_table, replacing, write_table
from lib.store.h5ad import constant


def with_sheet(obs: pd.DataFrame, params: Any) -> pd.DataFrame:
    """The store's obs with the sheet's columns; a column of the file that the sheet has too becomes `{column}_file`.

    Parameters
    ----------
    obs
        `sample`, the file's columns, and the batches if these come from the sheet.
    params
        `sheet`, the sample's line, and `batch_key`.
    """
    known = {"sample"} | ({params.batch_key} & params.sheet.keys())
    columns = [name for name in obs if name not in known]
    names = stored_names(columns, params.sheet, keep=columns)
    if renamed := [f"{name} as {kept}" for name, kept in names.items() if kept != name]:
        stage.notice("columns of the file with names of the sheet's columns are kept: %s", ", ".join(renamed))
    added = {
        name: obs[name] if name in known else constant(value, len(obs)).set_axis(obs.index)
        for name, value in params.sheet.items()
    }
    return pd.concat([obs[["sample"]], obs[list(names)].rename(columns=names), pd.DataFrame(added, obs.index)], axis=1)


def ledger(reasons: pd.Series, batches: pd.Series, sample: str, order: list[tuple[str, str]]) -> pd.DataFrame:
    """Cells removed and left, per batch, after each step.

    Parameters
    ----------
    reasons
        Per cell the first reason why it is removed, "" if it is kept.
    batches
        Each cell's batch.
    sample
        The sample's name.
    order
        (step, reason) in the order of application.

    Returns
    -------
    Columns sample, batch, step, reason, removed, left; the first row of a batch is its input.
    """
    rows = []
    for batch, of_batch in reasons.groupby(batches.to_numpy(), sort=True):
        left = len(of_batch)
        rows.append((sample, batch, "input", "", 0, left))
        for step, reason in order:
            removed = int((of_batch == reason).sum())
            left -= removed
            rows.append((sample, batch, step, reason, removed, left))
    return pd.DataFrame(rows, columns=["sample", "batch", "step", "reason", "removed", "left"])


def tell_losses(cells: pd.DataFrame, table: pd.DataFrame, batch_key: str, limits: Mapping[str, Any]) -> None:
    """Give notice of limits that removed more than MUCH of a batch, and of a sample without any cell left.

    Parameters
    ----------
    cells
        The sample's `cells.parquet`.
    table
        Its ledger.
    batch_key
        Column of the batches.
    limits
        The config's `cells` section with the sample's own limits.
    """
    sample, shares = table["sample"].iloc[0], shares_taken(table)
    many = {reason: of_batches[of_batches > MUCH] for reason, of_batches in shares.items()}
    fixed = limits | {f"max_pct_counts_{family}": at for family, at in (limits.get("max_pct_counts") or {}).items()}
    told = [
        describe_limit(reason, of_batches, cells, batch_key, fixed.get(reason))
        for reason, of_batches in many.items()
        if len(of_batches)
    ]
    if not cells["kept"].any():
        lost = cells["reason"].value_counts()
        words = ", ".join(f"{reason} {n}" for reason, n in lost[lost > 0].items())
        stage.notice(
            "sample %s: none of its %d cells is left (%s): the cohort goes on without it. %s",
            *(sample, len(cells), words, ". ".join(told)),
        )
        return
    for text in told:
        stage.notice("sample %s: %s", sample, text)


def needs(job: Job) -> Need:
    """Tables of cells, side by side."""
    return Need(job.process + 30 * MB + 1.7 * KB * job.n_obs, 5 + 2e-5 * job.n_obs, disk=200 * job.n_obs)


def tells(run: Finished) -> Iterator[Part]:
    """How many cells each batch kept, and which limits were applied."""
    yield from told_batches.told(run)
    limits = run.config["cells"]
    bounds = {"genes": ("min_genes", "max_genes"), "counts": ("min_counts", "max_counts")}
    said = [f"more than {limits[low]:,} {what}" for what, (low, _) in bounds.items() if limits[low] is not None]
    said += [f"fewer than {limits[high]:,} {what}" for what, (_, high) in bounds.items() if limits[high] is not None]
    said += [f"less than {at:g} % of the counts in {name} genes" for name, at in limits["max_pct_counts"].items()]
    if limits["mad"] is not None:
        said.append(f"metrics within {limits['mad']:g} median absolute deviations of their batch's median")
    if said:
        yield Methods(f"Cells with {listed(said, 9)} were kept.", ["limits"])


def main(snakemake: Any) -> None:
    """Join a sample's obs, metrics and doublets; write `cells.parquet` and `ledger.tsv`."""
    limits, sample = snakemake.params.cells, snakemake.wildcards.sample
    obs = with_sheet(Counts(snakemake.input.counts).obs(), snakemake.params)
    qc, doublets = read_table(snakemake.input.qc), read_table(snakemake.input.doublets)
    batches = obs[snakemake.params.batch_key]
    reasons = threshold_reasons(qc, limits, batches.to_numpy())
    order = [("thresholds", name) for name, _ in failing(qc, limits, batches.to_numpy())]
    trusted = doublets.pop("trusted")
    if snakemake.params.remove_doublets:
        reasons = reasons.mask(doublets["predicted_doublet"] & trusted & (reasons == ""), "doublet")
        order.append(("doublets", "doublet"))
    kept = reasons == ""
    removed = reasons[~kept].value_counts().to_dict()
    stage.log.info("%d of %d cells kept; removed: %s", kept.sum(), len(kept), removed)
    overlap = obs.columns.intersection(qc.columns.append(doublets.columns))
    if len(overlap):
        stage.log.info("the file's own columns %s are replaced by this run's", ", ".join(overlap))
    cells = pd.concat([obs.drop(columns=overlap), qc, doublets], axis=1)
    cells = cells.assign(kept=kept, reason=reasons.astype("category"))
    table = ledger(reasons, batches, sample, order)
    tell_losses(cells, table, snakemake.params.batch_key, limits)
    write_table(cells, snakemake.output.cells, "sample")
    with replacing(snakemake.output.ledger) as partial:
        table.to_csv(partial, sep="\t", index=False)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
