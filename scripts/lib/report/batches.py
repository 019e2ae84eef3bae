"""What the page says of the batches: how many cells each kept, lost to each limit, and its doublets."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lib.figures.words import metric_label, reason_label
from lib.report import facts
from lib.report.parts import Column, Finding, Finished, Numbers, Part, Table
from lib.report.words import count, listed, percent, spread
from lib.store.categories import natural_order

QC = "Quality control"
KEPT = 0.8  # a batch that keeps less is a finding
BELOW = 0.15  # and so is one that keeps this much less than the median batch
LOST = 0.1  # and one that loses more to a limit
FEW = 200  # and one with fewer kept cells
NEAR = 0.75  # and one whose median share of a gene family is above this part of the limit


def findings(run: Finished) -> Iterator[Finding]:
    """The batches that lost many cells, that are small, or whose cells lie near a limit."""
    table, limits = facts.batches(run), run.config["cells"]["max_pct_counts"]
    kept = table["kept"] / table["cells"].clip(lower=1)
    median = kept.median() if len(table) > 2 else None
    order = {name: i for i, name in enumerate(natural_order(table.index))}
    for i, (name, row) in enumerate(table.iterrows()):
        bars = run.figure("cells kept and removed", part=order[name], parts=len(table))
        violins = run.figure("metrics by batch", part=i, parts=len(table))
        about = {"where": f"Batch {name}"}
        few = kept[name] < KEPT or (median is not None and kept[name] < median - BELOW)
        yield from of_losses(row, kept[name], median, few, figure=bars, **about)
        if row["kept"] < FEW:
            said = f"{count(row['kept'], 'cell')} {'is' if row['kept'] == 1 else 'are'} kept"
            beyond = FEW / max(1, row["kept"])
            yield Finding(
                said=said, limit=f"expected at least {FEW}", beyond=beyond, figure=bars, kind="small batches", **about
            )
        for family, limit in limits.items():
            at = row.get(f"median_pct_counts_{family}")
            if limit and at is not None and at > NEAR * limit:
                said = f"the median share of {family} is {at:.3g} %, near the limit of {limit:g} %"
                expected, beyond = f"expected below {NEAR * limit:g} %", at / (NEAR * limit)
                about |= {"figure": violins, "kind": "medians near a limit"}
                yield Finding(said=said, limit=expected, beyond=beyond, **about)


def of_losses(row: pd.Series, kept: float, median: float | None, few: bool, **about: str) -> Iterator[Finding]:
    """The finding of a batch that kept `few` of its cells; or else those of single limits that took many."""
    lost, cells = losses(row), count(row["cells"], "cell")
    if few:
        most = [f"{reason_label(reason)} took {percent(share)}" for reason, share in lost.items() if share >= 0.05]
        said = "; ".join([f"{percent(kept)} of {cells} are kept", *([listed(most)] if most else [])])
        limit = f"expected at least {percent(KEPT)}" + (f"; the median batch keeps {percent(median)}" if median else "")
        beyond = max((1 - kept) / (1 - KEPT), (median - kept) / BELOW if median else 0)
        yield Finding(said=said, limit=limit, beyond=beyond, kind="batches that keep few cells", **about)
        return
    for reason, share in lost.items():
        if share > LOST:
            said = f"{percent(share)} of {cells} are lost to one limit, {reason_label(reason)}"
            limit, beyond = f"expected at most {percent(LOST)}", share / LOST
            yield Finding(said=said, limit=limit, beyond=beyond, kind="losses to one limit", **about)


def losses(row: pd.Series) -> dict[str, float]:
    """The share of a batch that each limit removed, the largest first."""
    found = {name.removeprefix("lost_pct_"): value / 100 for name, value in row.items() if name.startswith("lost_pct_")}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def numbers(run: Finished) -> Iterator[Numbers]:
    """The sentences of the figures of quality."""
    table = facts.batches(run)
    n_in, n_kept, kept = table["cells"].sum(), table["kept"].sum(), table["kept"] / table["cells"].clip(lower=1)
    batches = count(len(table), "batch", "batches")
    by = f", from {percent(kept.min())} in {kept.idxmin()} to {percent(kept.max())} in {kept.idxmax()}"
    said = f"{count(n_kept)} of {count(n_in, 'cell')} ({percent(n_kept / max(n_in, 1))}) are kept"
    said += by if len(table) > 1 else ""
    total = {name: (table[name] * table["cells"]).sum() / 100 for name in table if name.startswith("lost_pct_")}
    lost = [f"{reason_label(name.removeprefix('lost_pct_'))} ({count(n)})" for name, n in total.items() if n >= 0.5]
    why = f"; the limits removed cells for {listed(lost)}." if lost else "; no limit removed a cell."
    for path in [*run.files("figures_qc", "attrition"), *run.files("figures_qc", "limits")]:
        yield Numbers(path, said + why)
    medians = [name for name in table if name.startswith("median_") and table[name].notna().any()]
    of_metric = [f"{metric_label(name.removeprefix('median_'))} {spread(table[name].dropna())}" for name in medians]
    for path in [*run.files("figures_qc", "violins"), *run.files("figures_qc", "scatter")]:
        cells = f"{count(n_in, 'cell')} of {batches}"
        yield Numbers(path, f"{cells}; the medians of the kept cells: {listed(of_metric, 9)}.")


def table(run: Finished) -> Iterator[Table]:
    """The table of batches, coloured against the limits, and the ledger."""
    found = facts.batches(run)
    limits = run.config["cells"]["max_pct_counts"]
    titles = {
        found.index.name: Column("batch"),
        "cells": Column("cells"),
        "kept": Column("kept", low=FEW),
        "kept_pct": Column("kept, %", low=max(100 * KEPT, found["kept_pct"].median() - 100 * BELOW)),
        "median_total_counts": Column("median counts"),
        "median_n_genes_by_counts": Column("median genes"),
        "scored": Column("scored for doublets", hidden=True),
        "doublets": Column("doublets", hidden=True),
        "doublets_pct": Column("doublets, %", high=300 * run.config["doublets"]["expected_doublet_rate"]),
    }
    for name in found:
        if name.startswith("median_pct_counts_"):
            family = name.removeprefix("median_pct_counts_")
            limit = limits.get(family)
            titles[name] = Column(f"median {family}, %", high=NEAR * limit if limit else None, hidden=not limit)
        elif name.startswith("lost_pct_"):
            reason = reason_label(name.removeprefix("lost_pct_")).removesuffix(" %")
            titles[name] = Column(f"{reason}, %", high=100 * LOST, hidden=not found[name].any())
    said = (
        f"{count(len(found), 'batch', 'batches')}, a row each. Few genes, high MT and so on are the percentages of the "
        "cells that a limit removed; medians are of the kept cells. Coloured are values beyond the limits of findings."
    )
    for path in run.files("figures_qc", "summary"):
        yield Table(path, "Quality by batch", said, QC, columns=titles)
    for path in run.files("figures_qc", "attrition_table"):
        steps = facts.tsv(path)
        said = f"{count(steps['removed'].sum(), 'cell')} were removed in {count(steps['step'].nunique() - 1, 'step')}: "
        said += "the cells that each step removed from each batch, and those left after it."
        yield Table(path, "Attrition ledger", said, QC, "Every step")


def told(run: Finished) -> Iterator[Part]:
    """All of it."""
    yield from findings(run)
    yield from numbers(run)
    yield from table(run)
