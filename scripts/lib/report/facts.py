"""Facts of a finished run that several stages, or the page, tell of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from lib.inputs.config import clustering_names
from lib.report.parts import Finished
from lib.report.words import count, percent
from lib.store.categories import as_categories
from lib.store.files import SLOTS, column_names, read_table
from lib.store.identity import read_label

# Columns of tables that hold names, as does the first one
NAMES = ("sample", "batch", "group", "names", "gene_symbols", "rule", "wildcards", "notice")


@cache
def columns(path: str, *names: str) -> pd.DataFrame:
    """Columns of an artifact, read once; those that it lacks are left out."""
    known = set(column_names(path))
    return read_table(path, [name for name in names if name in known], named=False)


def obs(run: Finished, *names: str) -> pd.DataFrame:
    """Columns of the kept cells' table."""
    return columns(run.one("features").obs, *names)


@cache
def tsv(path: str) -> pd.DataFrame:
    """A table of text; columns of numbers are numbers but for the names of samples, batches, groups and genes.

    A name may be empty; elsewhere, an empty field is a missing value.
    """
    names = pd.read_csv(path, sep="\t", nrows=0).columns
    text = dict.fromkeys([names[0], *NAMES], str)
    lacking = {name: [""] for name in names if name not in text}
    return pd.read_csv(path, sep="\t", dtype=text, keep_default_na=False, na_values=lacking)


def batches(run: Finished) -> pd.DataFrame:
    """The table of batches, indexed by their names."""
    table = tsv(run.one("figures_qc").summary)
    return table.set_index(table.columns[0])


def main_clustering(run: Finished) -> str | None:
    """The clustering of which the page tells: the first one of Leiden, else of another method."""
    return next(iter(clustering_names(run.config)), None)


def grouping(run: Finished, name: str) -> pd.Series:
    """A column of the kept cells, also one that a stage adds to them, as a categorical of strings."""
    path = run.one("features").obs
    if name not in column_names(path):
        files = [file for job in run.jobs for files in job.output for file in job.files(files)]
        path = next(file for file in files if name in _added_columns(file))
    return _categories(path, name)


@cache
def _categories(path: str, name: str) -> pd.Series:
    return as_categories(read_table(path, [name], named=False)[name])


@cache
def _added_columns(path: str) -> Sequence[str]:
    """The columns that an artifact adds to the cohort's cells."""
    label = read_label(path, SLOTS) if path.endswith(".parquet") else None
    return column_names(path) if label and "obs" in json.loads(label)["slots"].values() else ()


def clusterings(run: Finished) -> list[str]:
    """The names of the run's clusterings."""
    return clustering_names(run.config)


def numbers(run: Finished, n_samples: int) -> list[Mapping[str, str]]:
    """The six numbers of the first screen: value, what it counts, and a remark."""
    found, cells = batches(run), obs(run, "total_counts", "n_genes_by_counts")
    n_in, kept = int(found["cells"].sum()), len(cells)
    called, scored = int(found["doublets"].sum()), int(found["scored"].sum())
    name = main_clustering(run)
    n_clusters = grouping(run, name).cat.categories.size if name else 0
    n_batches = "" if len(found) == n_samples else count(len(found), "batch", "batches")
    rows = [
        (count(n_samples), "sample" if n_samples == 1 else "samples", n_batches),
        (count(kept), "cells kept", f"{percent(kept / max(n_in, 1))} of {count(n_in)}"),
        (count(cells["total_counts"].median()), "median counts per cell", ""),
        (count(cells["n_genes_by_counts"].median()), "median genes per cell", ""),
        (
            percent(called / scored) if scored else "–",
            "doublets",
            f"{count(called)} of {count(scored)} scored" if scored else "not sought",
        ),
        (count(n_clusters) if name else "–", "clusters", name or ""),
    ]
    return [dict(zip(("value", "name", "remark"), row, strict=True)) for row in rows]


def notices(run: Finished) -> list[dict[str, Any]]:
    """The notices of the jobs: rule, wildcards, notice."""
    return tsv(run.one("runs").notices).fillna("").to_dict("records")


def three_spreads_above(values: pd.Series) -> float:
    """The median plus three robust standard deviations (interquartile range / 1.349) of values; NaN are left out."""
    low, middle, high = np.nanpercentile(values, [25, 50, 75])
    return float(middle + 3 * (high - low) / 1.349)
