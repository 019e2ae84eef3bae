"""What the page says of the names of cell types: how many cells have none, and whether they agree with known types."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lib.methods.typing_model import UNASSIGNED
from lib.report import facts
from lib.report.clusters import AGREE
from lib.report.parts import Column, Finding, Finished
from lib.report.sets import CHAPTER
from lib.report.words import count, listed, percent

PLACE = {"chapter": CHAPTER, "section": "Cell types"}  # of tables
NAMED = {
    "cluster": Column("cluster"),
    "n_cells": Column("cells"),
    "label": Column("name", text=True),
    "best": Column("best set", text=True),
    "score": Column("mean score"),
    "second": Column("second set", text=True),
    "margin": Column("margin"),
}
LACKING = 0.2  # names that more cells lack are a finding


def of_unassigned(run: Finished, name: str, advice: str) -> Iterator[Finding]:
    """A finding if many cells have no name."""
    share = float((facts.grouping(run, name) == UNASSIGNED).mean())
    if share > LACKING:
        said, limit = f"{percent(share)} of the cells are unassigned", f"expected at most {percent(LACKING)}; {advice}"
        yield Finding(name, said, limit, share / LACKING, run.figure(figure_of(name)))


def figure_of(name: str) -> str:
    """The label of the figure that compares names with known types, which the rule gives it."""
    return f"confusion of {name}"


def agreement(cells: pd.DataFrame) -> tuple[pd.Series, bool]:
    """The number of cells of each row that have the row's own name, or else that of most of its cells.

    Parameters
    ----------
    cells
        Known types x names: numbers of cells; without those that are unassigned.

    Returns
    -------
    The numbers, and whether half of the rows or more occur among the names, so that these are compared.
    """
    same = [name for name in cells.index if name in cells]
    if own := 2 * len(same) >= len(cells):
        return pd.Series({name: cells.loc[name, name] if name in same else 0 for name in cells.index}), own
    return cells.max(axis=1), own


def compare(cells: pd.DataFrame, known: str, name: str, is_label: bool, figure: str) -> tuple[str, list[Finding]]:
    """A sentence on a matrix of confusion, and a finding if the known types are labels that disagree with the names."""
    n, n_unassigned = int(cells.to_numpy().sum()), int(cells.get(UNASSIGNED, pd.Series(0)).sum())
    named = cells.drop(columns=UNASSIGNED, errors="ignore")
    total = named.sum(axis=1)
    if not total.sum():
        return f"None of {count(n, 'cell')} with a `{known}` has a name by `{name}`.", []
    right, own = agreement(named)
    agree = right.sum() / total.sum()
    what = f"the name of their `{known}`" if own else f"the name of most cells of their `{known}`"
    said = f"{percent(agree)} of {count(total.sum(), 'cell')} have, by `{name}`, {what}"
    lost = f"; {percent(n_unassigned / n)} of all are unassigned" if n_unassigned else ""
    findings = []
    if is_label and len(total) > 1 and agree < AGREE:
        shares = (right / total.clip(lower=1))[total > 0].sort_values(kind="stable")
        worst = listed([f"{label} ({percent(share)})" for label, share in shares.items() if share < AGREE], 3)
        text = f"{percent(agree)} of the assigned cells have {what}; the least so are {worst}"
        limit, beyond = f"expected at least {percent(AGREE)}", (1 - agree) / (1 - AGREE)
        findings = [Finding(f"{name} and {known}", text, limit, beyond, figure, "names that disagree with the labels")]
    return f"{said}{lost}.", findings
