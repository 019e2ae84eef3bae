"""Groups of cells, their comparisons, and the ranked tables of their marker genes.

A comparison is of the cells of a group with those of a reference: all other groups, or one group. For each gene,
`pct_nz_group` and `pct_nz_reference` are the shares of these cells that express it, and `logfoldchanges` is
log2((exp(m) - 1 + 1e-9) / (exp(m') - 1 + 1e-9)) of the mean log-normalised values m and m', as in
scanpy.tl.rank_genes_groups(pts=True).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deflate
import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet

from lib.inputs.genelists import GeneNames, gene_families
from lib.methods.scaling import log_normalize
from lib.run.clock import counted
from lib.run.errors import UserError
from lib.run.progress import progress
from lib.run.stage import log
from lib.store.categories import as_categories
from lib.store.compressed import pool
from lib.store.csr import counts_by_key, rows_of_nonzeros, sums_by_key
from lib.store.files import read_table, replacing, write_table
from lib.store.stream import Stream, halving

MIN_CELLS = 2  # of a group with markers, as in scanpy
MAX_DOTS = 100  # columns of a dot plot, divided among the groups, at most MAX_EACH for one
MAX_EACH = 5
VERSUS = " vs "  # between the groups of a pair
REST = "rest"  # scanpy's name for all other groups together
FLOATS = {"scores": np.float32, "logfoldchanges": np.float32, "pvals": np.float64, "pvals_adj": np.float64}
FLOATS |= {"pct_nz_group": np.float32, "pct_nz_reference": np.float32}
LINES = 1 << 16  # of a table that are written at a time
STRUCTURAL = frozenset('"\t\n\r')  # characters of names that need quotes in a TSV
CANDIDATES = 100  # first genes of each group that its panel is chosen from


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
    return Groups.of(read_table(path, [name], named=False)[name])


@dataclass(frozen=True)
class Comparisons:
    """Which groups are compared with which.

    Attributes
    ----------
    names
        One for each comparison: its group, or "A vs B" for pairs of groups.
    members, references
        comparisons x groups, float64: 1 for the group, and for the groups of its reference; else 0.
    """

    names: list[str]
    members: np.ndarray
    references: np.ndarray

    @classmethod
    def of(cls, groups: Sequence[str], grouping: str, reference: str | Sequence[str] = REST) -> Comparisons:
        """The comparisons of the groups.

        Parameters
        ----------
        groups
            Names of the groups with enough cells.
        grouping
            The name of the grouping, for messages.
        reference
            "rest": each group with all others; the name of a group: each other group with this one; or a list of pairs
            "A vs B".

        Raises
        ------
        UserError
            If a group is not there.
        """
        one = np.eye(len(groups))
        if not groups or reference == REST:
            return cls(list(groups), one, 1 - one)
        if isinstance(reference, str):
            pairs = {name: (name, reference) for name in groups if name != reference}
        else:
            pairs = {pair: pair_of(pair, groups) for pair in reference}
        for name in dict.fromkeys(name for pair in pairs.values() for name in pair):
            if name not in groups:
                raise UserError(
                    f"markers: reference: {grouping} has no group {name!r} of at least {MIN_CELLS} cells; there are "
                    f"{', '.join(groups)}. Correct the name."
                )
        at = np.array([[groups.index(name) for name in pair] for pair in pairs.values()])
        return cls(list(pairs), one[at[:, 0]], one[at[:, 1]])


def pair_of(pair: str, groups: Sequence[str]) -> tuple[str, str]:
    """The groups of a pair "A vs B", whose names may have a " vs " themselves."""
    parts = pair.split(VERSUS)
    cuts = [(VERSUS.join(parts[:i]), VERSUS.join(parts[i:])) for i in range(1, len(parts))]
    return next((cut for cut in cuts if {*cut} <= {*groups}), cuts[0])


@dataclass(frozen=True)
class GroupSums:
    """Sums over the cells of each group, groups x genes.

    Attributes
    ----------
    sums, squares
        Of the log-normalised values and of their squares; float64.
    cells
        The number of cells that express the gene; int64.
    """

    sums: np.ndarray
    squares: np.ndarray
    cells: np.ndarray

    def of(self, groups: np.ndarray) -> GroupSums:
        """The sums over the cells of several groups together, by a matrix of 0 and 1: comparisons x groups."""
        return GroupSums(*(groups @ values for values in vars(self).values()))


@halving
def group_sums(counts: Stream, codes: np.ndarray, n_groups: int, totals: np.ndarray, target_sum: float) -> GroupSums:
    """The sums of each group's log-normalised values, in one pass over the counts.

    Parameters
    ----------
    counts
        cells x genes.
    codes
        Per cell its group, -1: in none.
    n_groups
        Number of groups.
    totals, target_sum
        See `log_normalize`.
    """
    xp, device, n_vars = counts.device.xp, counts.device, counts.n_vars
    sums, squares = xp.zeros((n_groups, n_vars)), xp.zeros((n_groups, n_vars))
    cells = xp.zeros((n_groups, n_vars), xp.int64)
    size = (n_groups + 1) * n_vars  # cells of no group are summed in an extra row
    for chunk in progress(counts.chunks(), counts.n_obs, "group sums"):
        X = log_normalize(chunk.X, totals[chunk.rows], target_sum, device, np.float64)
        mine = codes[chunk.rows]
        starts = xp.asarray(np.where(mine >= 0, mine, n_groups).astype(np.int64) * n_vars)
        keys = starts[rows_of_nonzeros(X, device)] + X.indices
        sums += sums_by_key(keys, X.data, size, device).reshape(-1, n_vars)[:n_groups]
        squares += sums_by_key(keys, X.data**2, size, device).reshape(-1, n_vars)[:n_groups]
        cells += counts_by_key(keys, size, device).reshape(-1, n_vars)[:n_groups]
    return GroupSums(device.to_host(sums), device.to_host(squares), device.to_host(cells))


def descriptions(found: GroupSums, sizes: np.ndarray, compared: Comparisons) -> dict[str, np.ndarray]:
    """`logfoldchanges`, `pct_nz_group` and `pct_nz_reference` of each comparison, comparisons x genes, float64."""
    sides = []
    for groups in (compared.members, compared.references):
        n, of = (groups @ sizes)[:, None], found.of(groups)
        sides.append((np.expm1(of.sums / n) + 1e-9, of.cells / n))
    (level, share), (level_of_reference, share_of_reference) = sides
    change = np.log2(level / level_of_reference)
    return {"logfoldchanges": change, "pct_nz_group": share, "pct_nz_reference": share_of_reference}


def of_groups(function: Callable[..., np.ndarray], *tables: np.ndarray) -> np.ndarray:
    """Apply the function to the rows of several groups at a time; groups x genes."""
    return np.array(list(pool().map(function, *tables))).reshape(tables[0].shape)


def benjamini_hochberg(pvals: np.ndarray) -> np.ndarray:
    """The p-values of a group, adjusted for their number (Benjamini & Hochberg, 1995)."""
    falling = np.argsort(-pvals, kind="stable")
    bounds = pvals[falling] * (len(pvals) / np.arange(len(pvals), 0, -1))
    adjusted = np.empty_like(pvals)
    adjusted[falling] = np.minimum(np.minimum.accumulate(bounds), 1)
    return adjusted


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


def hidden_genes(families: Mapping[str, Sequence[str] | str], genes: pd.DataFrame) -> np.ndarray:
    """The names of the genes of these families, which figures of markers leave out.

    Parameters
    ----------
    families
        Name -> symbol prefixes, or a file, as in `qc: gene_families`.
    genes
        The kept genes' table.
    """
    flags = {name: values.to_numpy() for name, values in genes.select_dtypes(bool).items()}
    known = GeneNames(genes["gene_symbols"].to_numpy(object), genes["gene_ids"].to_numpy(object), flags)
    masks = gene_families(families, known, "markers: hidden_families").values()
    return genes.index.to_numpy()[np.any([np.zeros(len(genes), bool), *masks], axis=0)]


def ranked_anew(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ranks from 1 in the order of the lines of each group."""
    return table.assign(rank=table.groupby("group", sort=False).cumcount() + 1)


def specific_genes(table: pd.DataFrame, n_genes: int) -> pd.DataFrame:
    """A panel of at most `n_genes` genes for each group, each gene in one group only, the most specific ones first.

    Of the first CANDIDATES genes of each group with scores above 0, a gene stays in the group where pct_nz_group -
    pct_nz_reference is largest; by this difference the genes of a group are ordered.
    """
    found = table[(table["rank"] <= CANDIDATES) & (table["scores"] > 0)]
    found = found.assign(specific=(found["pct_nz_group"] - found["pct_nz_reference"]).astype(np.float64))
    found = found.sort_values("specific", ascending=False, kind="stable").drop_duplicates("names")
    place = {name: i for i, name in enumerate(table["group"].unique())}
    found = ranked_anew(found.sort_values("group", key=lambda names: names.map(place), kind="stable"))
    return found.loc[found["rank"] <= n_genes].drop(columns="specific")


@counted("write")
def write_markers(
    table: pd.DataFrame,
    output: Any,
    n_genes: int,
    groupby: str,
    method: str,
    reference: str = REST,
    hidden: Sequence[str] = (),
) -> None:
    """Write the table of `rank_genes` as gzipped TSV and for the atlas, and its first genes.

    Numbers are written as the shortest text that reads back equal; equal tables give equal bytes.

    Parameters
    ----------
    output
        Snakemake's outputs, with the paths `markers` (TSV), `ranking` (parquet), and of TSV files with `n_genes` genes
        of each group: `top`; `shown`, without `hidden`; `panel` (`specific_genes`).
    groupby, method, reference
        The grouping, the method of the ranking, and what the groups are compared with.
    hidden
        Names of genes that figures leave out.
    """
    uns = {"groupby": groupby, "method": method, "reference": reference}
    names = pd.unique(table[["group", "names", "gene_symbols"]].to_numpy(object).ravel("F"))
    options = csv.WriteOptions(
        include_header=False,
        delimiter="\t",
        quoting_style="needed" if any(STRUCTURAL.intersection(str(name)) for name in names) else "none",
    )

    def member(first: int) -> bytes:
        text = pa.BufferOutputStream()
        csv.write_csv(pa.Table.from_pandas(table.iloc[first : first + LINES], preserve_index=False), text, options)
        return deflate.gzip_compress(text.getvalue(), 1)

    with replacing(output.markers) as partial, partial.open("wb") as file:
        members = [pool().submit(member, first) for first in range(0, len(table), LINES)]
        write_table(table, output.ranking, slot="uns/rank_genes_groups", uns=uns)
        file.write(deflate.gzip_compress(("\t".join(table.columns) + "\n").encode(), 1))
        for compressed in members:  # one after the other they are a gzip file too
            file.write(compressed.result())
    first = table[table["rank"] <= max(n_genes, CANDIDATES) + len(hidden)]
    shown = ranked_anew(first[~first["names"].isin(hidden)])
    lists = {"top": table, "shown": shown, "panel": specific_genes(shown, n_genes)}
    for name, genes in lists.items():
        with replacing(getattr(output, name)) as partial:
            genes[genes["rank"] <= n_genes].to_csv(partial, sep="\t", index=False, float_format="%.6g")


def write_results(table: pd.DataFrame, snakemake: Any, method: str, genes: pd.DataFrame) -> None:
    """Write a stage's table of markers (`write_markers`) by the params of its rule; `genes` are the ranked genes."""
    params, reference = snakemake.params, snakemake.params.reference
    told = reference if isinstance(reference, str) else ", ".join(dict.fromkeys(table["group"]))
    hidden = hidden_genes(params.hidden_families, genes)
    write_markers(table, snakemake.output, params.n_genes, params.grouping, method, told, hidden)


def read_top(path: str | Path) -> pd.DataFrame:
    """The table of the first genes of each group, as `write_markers` wrote it."""
    text = dict.fromkeys(("group", "names", "gene_symbols"), str)
    return pd.read_csv(path, sep="\t", dtype=text, keep_default_na=False, na_values={"scores": ""})


def chosen_genes(top: pd.DataFrame) -> pd.DataFrame:
    """The genes of the dot plot: the first few of each group that rank higher in no other group; rows of `top`."""
    each = int(np.clip(MAX_DOTS // max(1, top["group"].nunique()), 1, MAX_EACH))
    mine = top.sort_values("rank", kind="stable").drop_duplicates("names").sort_index()
    return mine[mine.groupby("group", sort=False).cumcount() < each]
