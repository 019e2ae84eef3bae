"""Describe the cells lost in each batch, for errors and notices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lib.store.files import read_table

BATCHES_SHOWN = 12  # batches in a message: those with the fewest cells left
NAMES_SHOWN = 5
MUCH = 0.3  # a limit that removes this share of a batch gets a notice
MORE = 0.15  # and so does one that exceeds the median batch's share by this

FEW = "so few are usual in matrices of all droplets and in panels of few genes: give the filtered matrix, or lower {}"
MANY = "so many are usual in full-length protocols and deep sequencing: raise {}"
LIMITS = {  # a limit's name in the ledger, or its prefix -> the config's key, the metric, and what to do
    "min_genes": ("cells: min_genes", "n_genes_by_counts", FEW),
    "max_genes": ("cells: max_genes", "n_genes_by_counts", MANY),
    "min_counts": ("cells: min_counts", "total_counts", FEW),
    "max_counts": ("cells: max_counts", "total_counts", MANY),
    "max_pct_counts_": (
        "cells: max_pct_counts: ",
        "pct_counts_",
        "such shares are usual in some tissues (of MT: heart, kidney), and in dying cells: raise {} if these are well",
    ),
    "mad_": ("cells: mad", "", "the cells may be of several kinds: raise {}"),
    "doublet": ("doublets: threshold", "doublet_score", "look at figures/samples/*/doublets.png, and set {} by eye"),
}


def where_cells_went(cells: Sequence[str | Path], batch_key: str) -> str:
    """A sentence per batch: its cells, those kept, and those lost by each reason; batches with fewest cells first.

    Parameters
    ----------
    cells
        The samples' `cells.parquet`.
    batch_key
        Their column that names the batches.
    """
    table = pd.concat([read_table(path, [batch_key, "reason"]).astype(str) for path in cells])
    counted = table.groupby([batch_key, "reason"]).size().unstack(fill_value=0)
    kept = counted.pop("") if "" in counted else pd.Series(0, index=counted.index)
    said = []
    for batch in kept.sort_values(kind="stable").index[:BATCHES_SHOWN]:
        lost = counted.loc[batch].sort_values(ascending=False, kind="stable")
        words = "".join(f", {reason} took {n}" for reason, n in lost.items() if n)
        said.append(f"{batch}: {kept[batch]} of {kept[batch] + lost.sum()} cells kept{words}")
    more = f"; and {len(kept) - len(said)} more" if len(kept) > len(said) else ""
    return f"Where the cells went, by {batch_key}: {'; '.join(said)}{more}."


def keys_of_limits(cells: Sequence[str | Path]) -> str:
    """The config's keys of the limits that removed cells, those that removed most first."""
    reasons = pd.concat([read_table(path, ["reason"])["reason"].astype(str) for path in cells])
    return ", ".join(
        dict.fromkeys(f"`{key_of_limit(reason)}`" for reason in reasons[reasons != ""].value_counts().index)
    )


def key_of_limit(reason: str) -> str:
    """The config's key of a limit, by its name in the ledger."""
    begins = next(name for name in LIMITS if reason.startswith(name))
    return LIMITS[begins][0] + ("" if begins == "mad_" else reason.removeprefix(begins))


def shares_taken(ledger: pd.DataFrame) -> pd.DataFrame:
    """The share of each batch's cells that each limit removed, 0 to 1.

    Parameters
    ----------
    ledger
        The ledger of one sample, or of several, concatenated.

    Returns
    -------
    Rows: sample and batch, both strings. Columns: the reasons, in the order in which they apply.
    """
    by_batch = [ledger["sample"].astype(str), ledger["batch"].astype(str)]
    n_cells = ledger["left"].groupby(by_batch).first()
    removed = ledger.pivot_table(index=by_batch, columns="reason", values="removed", aggfunc="sum", fill_value=0)
    reasons = [reason for reason in ledger["reason"].unique() if reason]
    return removed[reasons].div(n_cells, axis=0)


def with_losses(batches: pd.DataFrame, ledger: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """A table of batches with the percentage that each limit removed, and the doublets called among the cells scored.

    Parameters
    ----------
    batches
        A row for each batch, whose name is in the first column.
    ledger
        The ledgers of all samples, concatenated.
    cells
        All cells: that first column, `doublet_score` and `predicted_doublet`.
    """
    removed = ledger.pivot_table(index="batch", columns="reason", values="removed", aggfunc="sum", fill_value=0)
    n_cells = ledger[ledger["reason"] == ""].groupby("batch")["left"].sum()
    names, key = batches.iloc[:, 0].astype(str), batches.columns[0]
    lost = {f"lost_pct_{r}": 100 * removed[r] / n_cells for r in ledger["reason"].unique() if r and r != "doublet"}
    scored = cells[cells["doublet_score"].notna()]
    of_batch = scored["predicted_doublet"].groupby(scored[key].astype(str))
    found = pd.DataFrame({name: values.round(2) for name, values in lost.items()}, index=names)
    found["scored"], found["doublets"] = of_batch.size(), of_batch.sum()
    found[["scored", "doublets"]] = found[["scored", "doublets"]].fillna(0).astype(int)
    found["doublets_pct"] = (100 * found["doublets"] / found["scored"]).round(2)
    return pd.concat([batches, found.reset_index(drop=True)], axis=1)


def describe_limit(reason: str, shares: pd.Series, cells: pd.DataFrame, batch_key: str, at: object = None) -> str:
    """A text that tells the shares that a limit removed of batches, the medians of its metric, and what to do.

    Parameters
    ----------
    reason
        The limit's name in the ledger.
    shares
        A column of `shares_taken`, for the batches to name.
    cells
        Metrics, `sample` and `batch_key` of their cells.
    at
        The limit's value, if it is known.
    """
    begins = next(name for name in LIMITS if reason.startswith(name))
    _, metric, advice = LIMITS[begins]
    key, metric = key_of_limit(reason), metric + reason.removeprefix(begins)
    values = cells[metric] if metric in cells else pd.Series(float("nan"), cells.index)
    medians = values.groupby([cells["sample"].astype(str), cells[batch_key].astype(str)]).median()
    falling = shares.sort_values(ascending=False, kind="stable")
    said = [f"{100 * share:.0f} % of {place[1]} (median {medians[place]:.4g})" for place, share in falling.items()]
    limit = key if at is None else f"{key}: {at:g}"
    return f"{limit} takes {shortened(said)}; medians are of {metric}: {advice.format(key)}"


def shortened(names: Sequence[object], most: int = NAMES_SHOWN) -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
