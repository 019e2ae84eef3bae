"""What the page says of differences between conditions: genes, shares of groups, and samples that stand apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from lib.figures.words import SIGNIFICANT
from lib.inputs import contrasts
from lib.report import facts, sets
from lib.report.parts import Column, Done, Finding, Finished, Numbers, Paragraph, Part, Table
from lib.report.words import count, listed

CHAPTER = "5 Differences between conditions"
FEW = 3  # samples of a level; with fewer, chance decides much
APART = 2.0  # a profile this many times as far from the median profile of its group as is usual stands apart
ENOUGH = 5  # profiles of a group, to tell what is usual
SMALL = 0.25  # of the median number of cells: a profile of fewer is far away by chance
OVERVIEW = {
    "group": Column("group"),
    "n_samples_level": Column("samples of the level"),
    "n_samples_reference": Column("samples of the reference"),
    "n_genes": Column("genes tested"),
    "n_up": Column("higher"),
    "n_down": Column("lower"),
    "n_cell_tests": Column("by tests of cells"),
}
GENES = {
    "group": Column("group"),
    "rank": Column("rank"),
    "names": Column("name in the atlas", hidden=True),
    "gene_symbols": Column("gene"),
    "scores": Column("Wald's statistic"),
    "base_mean": Column("mean count"),
    "logfoldchanges": Column("log2 fold change"),
    "lfc_se": Column("its standard error", hidden=True),
    "pvals": Column("p", p_value=True, hidden=True),
    "pvals_adj": Column("adjusted p", p_value=True),
    "pct_nz_level": Column("share expressing, level"),
    "pct_nz_reference": Column("share expressing, reference"),
    "pvals_adj_cells": Column("adjusted p by a test of cells", p_value=True, hidden=True),
}
SHARES = {
    "contrast": Column("contrast"),
    "group": Column("group"),
    "n_samples_level": Column("samples of the level"),
    "n_samples_reference": Column("samples of the reference"),
    "share_level": Column("mean share, level"),
    "share_reference": Column("mean share, reference"),
    "logit_change": Column("change of the logit"),
    "scores": Column("moderated t"),
    "pvals": Column("p", p_value=True, hidden=True),
    "pvals_adj": Column("adjusted p", p_value=True),
}


def span(values: pd.Series) -> str:
    """The smallest and the largest number: "3 to 5"."""
    ends = dict.fromkeys(count(end) for end in (values.min(), values.max()))
    return " to ".join(ends)


def contrast_of(run: Finished, job: Done) -> Mapping[str, Any]:
    """The contrast of a job."""
    name = job.wildcards["contrast"]
    return next(contrast for contrast in contrasts.declared(run.config) if contrast["name"] == name)


def describe(table: pd.DataFrame, contrast: Mapping[str, Any], grouping: str) -> str:
    """A sentence on the overview of a contrast: samples, groups, genes found."""
    level, reference = (span(table[f"n_samples_{side}"]) for side in ("level", "reference"))
    said = f"{level} samples of {contrast['level']} against {reference} of {contrast['reference']}, in "
    said += f"{count(len(table), 'group')} of `{grouping}`"
    found = (table["n_up"] + table["n_down"]).set_axis(table["group"])
    if not found.sum():
        return f"{said}: no gene differs (adjusted p below {SIGNIFICANT})."
    first = [
        f"{count(n)} in {name}" for name, n in found[found > 0].sort_values(ascending=False, kind="stable").items()
    ]
    return f"{said}: genes that differ (adjusted p below {SIGNIFICANT}): {listed(first)}."


def beside(table: pd.DataFrame) -> str:
    """What tests of cells would call."""
    found, cells = int((table["n_up"] + table["n_down"]).sum()), int(table["n_cell_tests"].sum())
    return f"In all {count(found)}; a test of cells would call {count(cells)} of the same genes."


def of_de(run: Finished, job: Done) -> Iterator[Part]:
    """The tables of a contrast, and whether it has few samples."""
    contrast, grouping = contrast_of(run, job), job.wildcards["grouping"]
    table, name = facts.tsv(job.overview), contrast["name"]
    said = f"{describe(table, contrast, grouping)} {beside(table)}"
    yield Table(job.overview, f"Genes found, {name}", said, CHAPTER, grouping, OVERVIEW)
    more = f" The genes whose statistics are largest in each group; all tested genes are in `{job.tables}`."
    yield Table(job.top, f"Genes, {name}", said + more, CHAPTER, grouping, GENES)
    fewest = {side: int(table[f"n_samples_{side}"].max()) for side in ("level", "reference")}
    few = [f"{n} samples of {contrast[side]}" for side, n in fewest.items() if n < FEW]
    if few:
        limit = f"expected at least {FEW} of each level"
        figure = run.figure(grouping, name, "genes found")
        beyond = FEW / min(fewest.values())
        yield Finding(
            f"Contrast {name} in {grouping}", f"there are {listed(few)}", limit, beyond, figure, kind="contrasts"
        )


def of_figures(run: Finished, job: Done) -> Iterator[Part]:
    """The numbers of a contrast's figures."""
    contrast, grouping = contrast_of(run, job), job.wildcards["grouping"]
    (made,) = [done for done in run.of("de") if done.wildcards == job.wildcards]
    table = facts.tsv(made.overview)
    for path in job.files("volcano"):
        yield Numbers(path, describe(table, contrast, grouping))
    for path in job.files("overview"):
        yield Numbers(path, f"{describe(table, contrast, grouping)} {beside(table)}")


def of_enrichment(run: Finished, job: Done) -> Table | Paragraph:
    """The gene sets of a contrast; a sentence alone if the table is too long to be read."""
    table = facts.tsv(job.enrichment)
    name, grouping = job.wildcards["contrast"], job.wildcards["grouping"]
    found = table[table["padj"] < SIGNIFICANT].drop_duplicates(["group", "source"])
    first = [f"{row.source} in {row.group}" for row in found.itertuples()]
    said = f"{count(len(found), 'set')} with an adjusted p below {SIGNIFICANT}{f': {listed(first)}' if first else ''}."
    if len(table) > sets.MOST_ROWS:
        return Paragraph(f"Gene sets, {name}: {said} The table is `{job.enrichment}`.", CHAPTER, grouping)
    columns = sets.ENRICHED | {"direction": Column("direction")}
    return Table(job.enrichment, f"Gene sets, {name}", said, CHAPTER, grouping, columns)


def apart(table: pd.DataFrame) -> pd.DataFrame:
    """The samples that stand apart in at least half of their groups: `n_apart`, `n_groups`, `distance` (median).

    Judged are profiles of groups with ENOUGH of them, and with a share SMALL of the group's median number of cells.
    """
    judged = table[table["distance"].notna()]
    of_group = judged.groupby("group")
    enough = of_group["distance"].transform("size") >= ENOUGH
    judged = judged[enough & (judged["n_cells"] >= SMALL * of_group["n_cells"].transform("median"))]
    of_sample = judged.assign(apart=judged["distance"] > APART).groupby("sample", sort=False)
    found = of_sample.agg(n_apart=("apart", "sum"), n_groups=("apart", "size"), distance=("distance", "median"))
    return found[found["n_apart"] >= (found["n_groups"] / 2).clip(lower=1)]


def of_profiles(run: Finished, job: Done) -> Iterator[Part]:
    """The table of profiles, the numbers of their figures, and samples that stand apart."""
    grouping, table = job.wildcards["grouping"], facts.tsv(job.table)
    few, key = int(table["few_cells"].sum()), run.config["pseudobulk"]["sample_key"]
    said = (
        f"{count(len(table), 'profile')} of {count(table['sample'].nunique(), 'sample')} (`{key}`) in "
        f"{count(table['group'].nunique(), 'group')} of `{grouping}`; {count(few)} of fewer than "
        f"{run.config['pseudobulk']['min_cells']} cells, which are not tested."
    )
    for path in (*job.files("cells"), *job.files("pca")):
        yield Numbers(path, said)
    columns = {"few_cells": Column("few cells"), "distance": Column("distance", high=APART)}
    more = " `distance`: to the median profile of the group, over the median of these distances."
    yield Table(job.table, f"Pseudobulks, {grouping}", said + more, CHAPTER, grouping, columns)
    figure = run.figure(grouping, "principal components")
    for name, sample in apart(table).iterrows():
        yield Finding(
            f"Sample {name}",
            f"its pseudobulks stand apart in {sample['n_apart']:.0f} of {count(sample['n_groups'], 'group')} of "
            f"{grouping} (median distance {sample['distance']:.2g})",
            f"expected at most {APART:g} times the usual distance to the median profile",
            sample["distance"] / APART,
            figure,
            "samples that stand apart",
        )


def changed(tests: pd.DataFrame) -> str:
    """A sentence on the tests of shares of a contrast."""
    found = tests[tests["pvals_adj"] < SIGNIFICANT]
    first = [
        f"{row.group} ({100 * row.share_reference:.2g} to {100 * row.share_level:.2g} %)" for row in found.itertuples()
    ]
    n = f"{tests['n_samples_level'].iloc[0]} against {tests['n_samples_reference'].iloc[0]} samples"
    of = f"{len(first)} of {count(len(tests), 'group')}: {listed(first)}"
    what = f"the share differs (adjusted p below {SIGNIFICANT}) in {of}" if first else "no share differs"
    return f"{tests['contrast'].iloc[0]}, {n}: {what}."


def of_composition(run: Finished, job: Done) -> Iterator[Part]:
    """The tables of the shares, and the tests."""
    grouping, table, tests = job.wildcards["grouping"], facts.tsv(job.table), facts.tsv(job.tests_table)
    said = f"{count(table['sample'].nunique(), 'sample')}, {count(table['group'].nunique(), 'group')} of `{grouping}`."
    yield Table(job.table, f"Shares in each sample, {grouping}", said, CHAPTER, grouping)
    if len(tests):
        said = " ".join(changed(of_contrast) for _, of_contrast in tests.groupby("contrast", sort=False))
        yield Table(job.tests_table, f"Tests of shares, {grouping}", said, CHAPTER, grouping, SHARES)
    for name, of_contrast in tests.groupby("contrast", sort=False):
        sizes = of_contrast[["n_samples_level", "n_samples_reference"]].iloc[0]
        if sizes.min() < FEW:
            limit = f"expected at least {FEW} of each level"
            said = f"shares of {listed(map(str, sizes), 2)} samples are compared"
            figure = run.figure(grouping, str(name), "shares by level")
            yield Finding(
                f"Contrast {name} of shares in {grouping}", said, limit, FEW / sizes.min(), figure, kind="contrasts"
            )


def of_shares(run: Finished) -> Iterator[Part]:
    """The numbers of the figures of shares."""
    tables = {job.wildcards["grouping"]: job for job in run.of("composition")}
    for mark in run.marks:
        if mark.rule != "figures_composition":
            continue
        made = tables[mark.section]
        sizes = facts.tsv(made.table).groupby("sample")["n_cells"].sum()
        tests = facts.tsv(made.tests_table)
        mine = tests[tests["contrast"] == mark.labels.get("contrast", "")]
        if len(mine):
            yield Numbers(mark.path, changed(mine))
        elif "contrast" not in mark.labels:
            yield Numbers(mark.path, f"{count(len(sizes), 'sample')} of {span(sizes)} cells, by `{mark.section}`.")
