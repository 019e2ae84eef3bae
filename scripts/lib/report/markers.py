"""What the page says of marker genes: their tables, the numbers of their figures, and groups marked by ribosomes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lib.report import facts
from lib.report.parts import Column, Done, Finding, Finished, Methods, Numbers, Part, Table
from lib.report.words import count, listed, percent
from lib.store.files import column_names, read_table

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
        top, drawn = facts.tsv(job.top), describe(facts.tsv(job.shown))
        for mark in run.marks:
            if mark.rule == "figures_markers" and (mark.section, mark.labels["method"]) == (grouping, method):
                yield Numbers(mark.path, drawn)
        said = describe(top)
        if len(top):
            said += f" The file has the first genes of each group; all tested genes are in `{job.markers}`."
        if len(top) and "pvals" in top:
            said += " P-values come from the cells that define the groups: they rank genes and prove nothing."
        columns = TABLE | {"scores": Column(f"score ({score})")}
        yield Table(job.top, f"Markers by {method}", said, "Markers", grouping, columns)
        yield from findings(run, job, top, method)


def describe(top: pd.DataFrame) -> str:
    """The first genes of the first groups, of a table of the first genes of all groups."""
    if top.empty:
        return "There are fewer than 2 groups to compare."
    groups = top.groupby("group", sort=False)["gene_symbols"].apply(lambda genes: ", ".join(genes[:3]))
    firsts = [f"{genes} ({name})" for name, genes in groups.items()]
    return f"{count(len(groups), 'group')}; the first markers are {listed(firsts, 4)}."


def ranking(run: Finished, grouping: str, method: str) -> str:
    """The table of all tested genes of a grouping's groups by a method."""
    of_grouping = [job for job in run.jobs if job.wildcards.get("grouping") == grouping]
    return next(path for job in of_grouping for path in job.files("ranking") if Path(path).stem == method)


def of_test(run: Finished, test: str) -> Methods:
    """The sentence of a test of each group against what the config names."""
    others = run.config["markers"]["reference"]
    named = [f"of `{name}` {listed(given if isinstance(given, list) else [given])}" for name, given in others.items()]
    against = f"all other cells{f' ({listed(named)})' if named else ''}"
    return Methods(
        f"Marker genes were ranked by {test} of each group against {against}, with p-values adjusted by Benjamini and "
        "Hochberg.",
        ["fdr"],
    )


def findings(run: Finished, job: Done, top: pd.DataFrame, method: str) -> Iterator[Finding]:
    """Groups with many ribosomal genes among their first markers, by the t-test if there is one, of one clustering."""
    grouping = job.wildcards["grouping"]
    methods = run.config["markers"]["methods"]
    if method != ("t-test" if "t-test" in methods else methods[0]):
        return
    if grouping in facts.clusterings(run) and grouping != facts.main_clustering(run):
        return
    genes = run.one("genes").genes
    families = [name for name in run.config["qc"]["gene_families"] if name.upper().startswith("RIB")]
    for family in families:
        if family not in column_names(genes):
            continue
        ours = read_table(genes, [family])[family]
        first = top[top["rank"] <= FIRST]
        shares = first["names"].map(ours).fillna(False).astype(bool).groupby(first["group"], sort=False).mean()
        for group, share in shares[shares >= RIBOSOMAL].items():
            said = f"{percent(share)} of its first {FIRST} markers ({method}) are ribosomal genes"
            where = f"Group {group} of {grouping}"
            limit = f"expected fewer than {percent(RIBOSOMAL)}"
            yield Finding(where, said, limit, share / RIBOSOMAL, job.top, kind="groups marked by ribosomal genes")
