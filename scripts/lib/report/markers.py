"""What the page says of marker genes: their tables, the numbers of their figures, and groups marked by ribosomes."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lib.report import facts
from lib.report.parts import Column, Done, Finding, Finished, Numbers, Part, Table
from lib.report.words import count, listed, percent
from lib.store.files import column_names

RIBOSOMAL = 0.5  # a group with this share of ribosomal genes among its first markers is a finding
FIRST = 20  # markers looked at
TABLE = {
    "group": Column("group"),
    "rank": Column("rank"),
    "gene_symbols": Column("gene"),
    "names": Column("name in the atlas", hidden=True),
    "logfoldchanges": Column("log2 fold change"),
    "pct_nz_group": Column("% expressing in"),
    "pct_nz_reference": Column("% expressing out"),
    "pvals": Column("p", p_value=True, hidden=True),
    "pvals_adj": Column("adjusted p", p_value=True),
}


def told(run: Finished, rule: str, method: str, score: str) -> Iterator[Part]:
    """The tables, sentences and findings of the markers by one method.

    Parameters
    ----------
    rule
        The rule that found them.
    method
        Its name in the config.
    score
        What its score is, in words.
    """
    for job in run.of(rule):
        grouping = job.wildcards["grouping"]
        top = facts.tsv(job.top)
        title = f"Markers by {method}"
        if top.empty:
            yield Table(job.top, title, "There are fewer than two groups to compare.", "Markers", grouping, TABLE)
            continue
        said = describe(top)
        columns = TABLE | {"scores": Column(f"score ({score})")}
        more = f" The file has the first genes of each group; all tested genes are in `{job.markers}`."
        p = (
            ""
            if "pvals" not in top
            else (" P-values come from the cells that define the groups: they rank genes and prove nothing.")
        )
        yield Table(job.top, title, said + more + p, "Markers", grouping, columns)
        for mark in run.marks:
            if mark.section == grouping and mark.labels.get("method") == method:
                yield Numbers(mark.path, said)
        yield from findings(run, job, top, method)


def describe(top: pd.DataFrame) -> str:
    """The first genes of the first groups."""
    groups = top.groupby("group", sort=False)["gene_symbols"].apply(lambda genes: ", ".join(genes[:3]))
    firsts = [f"{genes} ({name})" for name, genes in groups.items()]
    return f"{count(len(groups), 'group')}; the first markers are {listed(firsts, 4)}."


def findings(run: Finished, job: Done, top: pd.DataFrame, method: str) -> Iterator[Finding]:
    """Groups with many ribosomal genes among their first markers, by the t-test if there is one, of one clustering."""
    grouping = job.wildcards["grouping"]
    if method != "t-test" and "t-test" in run.config["markers"]["methods"]:
        return
    if grouping in facts.clusterings(run) and grouping != facts.main_clustering(run):
        return
    genes = run.one("genes").genes
    families = [name for name in run.config["qc"]["gene_families"] if name.upper().startswith("RIB")]
    for family in families:
        if family not in column_names(genes):
            continue
        ours = facts.columns(genes, family)[family]
        first = top[top["rank"] <= FIRST]
        shares = first["names"].map(ours).fillna(False).astype(bool).groupby(first["group"], sort=False).mean()
        for group, share in shares[shares >= RIBOSOMAL].items():
            said = f"{percent(share)} of its first {FIRST} markers ({method}) are ribosomal genes"
            where = f"Group {group} of {grouping}"
            limit = f"expected fewer than {percent(RIBOSOMAL)}"
            yield Finding(where, said, limit, share / RIBOSOMAL, job.top, kind="groups marked by ribosomal genes")
