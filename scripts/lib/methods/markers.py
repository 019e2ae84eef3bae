"""Groups of cells, and the ranked tables of their marker genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from isal import igzip
from pyarrow import csv, parquet

from lib.run.clock import counted
from lib.run.errors import UserError
from lib.run.stage import log
from lib.store.categories import as_categories
from lib.store.files import read_table, replacing, write_table

MIN_CELLS = 2  # of a group with markers, as in scanpy
MAX_DOTS = 100  # columns of a dot plot, divided among the groups, at most MAX_EACH for one
MAX_EACH = 5
FLOATS = {"scores": np.float32, "logfoldchanges": np.float32, "pvals": np.float64, "pvals_adj": np.float64}


@dataclass(frozen=True)
class Groups:
    """A grouping of cells.

    Attributes
    ----------
    names
        Names of the groups with at least `MIN_CELLS` cells, in the atlas' order of categories
        (`lib.store.categories.as_categories`); empty if there are fewer than two such groups.
    codes
        Per cell the position of its group in `names`, -1: in none; int32.
    """

    names: list[str]
    codes: np.ndarray

    @classmethod
    def of(cls, labels: pd.Series) -> Groups:
        """The groups in a column of labels; logs the cells and groups that are left out."""
        labels = as_categories(labels)
        codes, names = labels.cat.codes.to_numpy(), labels.cat.categories
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        if (codes < 0).any():
            log.info("%s: %d of %d cells without a label are left out", labels.name, (codes < 0).sum(), len(codes))
        large = sizes >= MIN_CELLS
        if not large.all():
            left_out = ", ".join(names[~large])
            log.warning("%s: groups left out, as they have fewer than %d cells: %s", labels.name, MIN_CELLS, left_out)
        if large.sum() < 2:
            log.warning("%s: no markers, as there are fewer than two groups to compare", labels.name)
            large[:] = False
        positions = np.append(np.where(large, np.cumsum(large) - 1, -1), -1)
        return cls(list(names[large]), positions[codes].astype(np.int32))

    @property
    def sizes(self) -> np.ndarray:
        """The number of cells of each group."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))

    def largest(self, n: int) -> list[str]:
        """The names of the `n` groups with most cells, in their order."""
        return [self.names[i] for i in np.sort(np.argsort(-self.sizes, kind="stable")[:n])]


def read_groups(name: str, obs: str | Path, clustering: Sequence[str | Path]) -> Groups:
    """The groups of the cells by a clustering's parquet, or by a column of `obs.parquet` if that list is empty.

    Raises
    ------
    UserError
        If obs has no such column.
    """
    path = clustering[0] if clustering else obs
    columns = parquet.read_schema(path).names
    if name not in columns:
        raise UserError(
            f"markers: groupings: {name!r} is neither a clustering nor an obs column; there are {', '.join(columns)}"
        )
    return Groups.of(read_table(path, [name])[name])


def rank_genes(
    groups: Sequence[str], statistics: Mapping[str, np.ndarray], names: np.ndarray, symbols: np.ndarray
) -> pd.DataFrame:
    """All genes of each group by falling score; genes with equal scores keep their order.

    Parameters
    ----------
    groups
        The groups' names.
    statistics
        `scores` and further statistics, each groups x genes.
    names, symbols
        The genes' names and symbols.

    Returns
    -------
    Table with `group`, `rank` (from 1), `names`, `gene_symbols`, and the statistics in scanpy's dtypes.
    """
    order = np.argsort(-statistics["scores"], axis=1, kind="stable")
    ranks = np.broadcast_to(np.arange(1, order.shape[1] + 1), order.shape)
    table = {"group": np.repeat(np.array(groups, object), order.shape[1]), "rank": ranks.ravel()}
    table |= {"names": names[order.ravel()], "gene_symbols": symbols[order.ravel()]}
    for name, values in statistics.items():
        table[name] = np.take_along_axis(values, order, 1).ravel().astype(FLOATS[name])
    return pd.DataFrame(table)


@counted("write")
def write_markers(table: pd.DataFrame, output: Any, n_genes: int, groupby: str, method: str) -> None:
    """Write the table of `rank_genes` as gzipped TSV and for the atlas, and the first `n_genes` of each group as TSV.

    Numbers are written as the shortest text that reads back equal; equal tables give equal bytes.

    Parameters
    ----------
    output
        Snakemake's outputs, with the paths `markers`, `ranking` and `top`.
    groupby, method
        The grouping, and the method of the ranking.
    """
    uns = {"groupby": groupby, "method": method}
    write_table(table, output.ranking, slot="uns/rank_genes_groups", uns=uns)
    structural = table["group"].str.contains('["\t\n\r]').any() or table["names"].str.contains('["\t\n\r]').any()
    options = csv.WriteOptions(
        include_header=False, delimiter="\t", quoting_style="needed" if structural else "none", batch_size=1 << 16
    )
    with replacing(output.markers) as partial, partial.open("wb") as raw, igzip.IGzipFile("", "wb", 2, raw, 0) as file:
        file.write(("\t".join(table.columns) + "\n").encode())
        csv.write_csv(pa.Table.from_pandas(table, preserve_index=False), file, options)
    with replacing(output.top) as partial:
        table[table["rank"] <= n_genes].to_csv(partial, sep="\t", index=False, float_format="%.6g")


def read_top(path: str | Path) -> pd.DataFrame:
    """The table of the first genes of each group, as `write_markers` wrote it."""
    text = dict.fromkeys(("group", "names", "gene_symbols"), str)
    return pd.read_csv(path, sep="\t", dtype=text, keep_default_na=False, na_values={"scores": ""})


def chosen_genes(top: pd.DataFrame) -> pd.DataFrame:
    """The genes of the dot plot: the first few of each group that rank higher in no other group; rows of `top`."""
    each = int(np.clip(MAX_DOTS // max(1, top["group"].nunique()), 1, MAX_EACH))
    mine = top.sort_values("rank", kind="stable").drop_duplicates("names").sort_index()
    return mine[mine.groupby("group", sort=False).cumcount() < each]
