"""What the page says of gene sets: those of which few genes are in the cohort, and which stand out in which groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from lib.figures.words import SIGNIFICANT
from lib.inputs.genesets import Matched, matched_in, read_collections
from lib.report.parts import Column, Finding, Finished
from lib.report.words import count, listed, percent
from lib.store.files import read_table

CHAPTER = "4 Gene sets and cell types"
FOUND = 0.5  # a set of whose genes the cohort has a smaller share is a finding
MOST_BEYOND = 5
ENRICHMENT = "Markers"  # the section
MOST_ROWS = 5000  # of a table of the page
ENRICHED = {
    "group": Column("group"),
    "collection": Column("collection", text=True),
    "method": Column("method"),
    "source": Column("set", text=True),
    "score": Column("score"),
    "pval": Column("p", p_value=True, hidden=True),
    "padj": Column("adjusted p", p_value=True),
    "n_found": Column("genes found"),
    "genes": Column("genes", text=True),
}
CITED = {"zscore": "rokai", "aucell": "aucell", "score_genes": "seurat", "gsea": "gsea"}  # the others: decoupler alone


def collections(run: Finished) -> dict[str, Matched]:
    """All sets of each collection, as far as their genes are in the cohort."""
    genes = read_table(run.one("genes").genes, ["gene_symbols", "gene_ids", "kept"])
    return matched_in(read_collections(run.config["gene_sets"]), genes[genes["kept"]], 0)[0]


def of_few(collection: str, matched: Matched, tmin: int, figure: str) -> Iterator[Finding]:
    """The sets of a collection of which the cohort has few genes."""
    for name, found, n in zip(matched.names, matched.n_found, matched.n_genes, strict=True):
        least = max(tmin, FOUND * n)
        if found < least:
            said = f"the cohort has {found} of its {count(n, 'gene')}{', so it is left out' if found < tmin else ''}"
            limit = f"expected at least {f'{tmin} (`scores: tmin`)' if found < tmin else percent(FOUND)}"
            beyond = min(MOST_BEYOND, least / max(found, 0.5))
            yield Finding(f"Set {name} of {collection}", said, limit, beyond, figure, "sets of few genes")


def cited(methods: Iterable[str]) -> list[str]:
    """The references of methods of scoring."""
    return list(dict.fromkeys(["decoupler", *(CITED[name] for name in methods if name in CITED)]))


def of_groups(means: pd.DataFrame, collection: str, method: str, grouping: str) -> str:
    """A sentence on the sets that differ most between groups; `means` as `figures_scores` writes them."""
    groups = [name for name in means if name.startswith("mean_")]
    said = f"{count(len(means), 'set')} of `{collection}` by {method}"
    if not groups:
        return f"{said}; `{grouping}` has fewer than 2 groups to compare."
    highest = means[groups].idxmax(axis=1).str.removeprefix("mean_")
    first = [
        f"{row['set']} (highest in {highest[i]}; {percent(row['between_groups'])} of its variance)"
        for i, row in means.head(3).iterrows()
    ]
    return f"{said}, in {count(len(groups), 'group')} of `{grouping}`; {listed(first)} differ most between the groups."


def of_enrichment(table: pd.DataFrame, grouping: str) -> str:
    """A sentence on the sets in which the markers of the groups are enriched, with p-values below SIGNIFICANT."""
    found = table[(table["padj"] < SIGNIFICANT) & (table["score"] > 0)].drop_duplicates("group")
    first = [f"{row.source} in {row.group}" for row in found.itertuples()]
    n_groups = table["group"].nunique()
    said = f"The markers of {len(found)} of {count(n_groups, 'group')} of `{grouping}` are enriched in a set "
    return f"{said}(adjusted p below {SIGNIFICANT}){f': {listed(first)}' if first else ''}."
