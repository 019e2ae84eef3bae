"""Gather the clusters within groups (`subclusters`) in one column of all cells, and the groups' UMAPs in one table.

The sub-cluster of a cell is `{group},{cluster}`, as in scanpy.tl.leiden(restrict_to=...); the cells of the other groups
keep the grouping's names. A cell's position is that in the UMAP of its group, and missing (NaN) for other cells.
"""

from lib.start import run

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lib.methods.markers import read_top
from lib.report import clusters as told_clusters
from lib.report import facts
from lib.report.markers import TABLE, describe
from lib.report.parts import Column, Done, Finding, Finished, Methods, Numbers, Paragraph, Part, Table
from lib.report.words import count, listed
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import KB, MB, Job, Need
from lib.store.files import read_table, write_table, write_tsv
from subset import read_labels

CHAPTER = "Sub-clusters"
FIRST = 5  # markers of a sub-cluster in the table
# A marker sets a sub-cluster apart if so many points more of its cells express it; or if it is twice as high (log2),
# and at least half of the cells express it
MORE, CHANGE, EXPRESSED = 25, 1, 0.5
COLUMNS = {
    "subcluster": Column("sub-cluster"),
    "n_cells": Column("cells"),
    "pct_of_group": Column("% of the group"),
    "batch": Column("largest batch"),
    "pct_in_batch": Column("% in it"),
}


def with_subclusters(labels: pd.Series, clusters: Mapping[str, pd.Series]) -> pd.Series:
    """The labels, in which those of some groups are replaced by `{group},{cluster}`.

    Parameters
    ----------
    labels
        Each cell's group, a categorical of strings.
    clusters
        Group -> the clusters of its cells, a categorical in the order of these cells.

    Returns
    -------
    A categorical; the sub-clusters stand where their group stood.
    """
    found, names = labels.astype(object), []
    for group in labels.cat.categories:
        if group in clusters:
            of_group = clusters[group].cat.rename_categories(lambda name, group=group: f"{group},{name}")
            found[(labels == group).to_numpy()] = of_group.to_numpy(object)
            names += list(of_group.cat.categories)
        else:
            names.append(group)
    return pd.Series(pd.Categorical(found, names), labels.index, name="subclusters")


def summary(clusters: pd.Series, batches: pd.Series, top: pd.DataFrame) -> pd.DataFrame:
    """A line for each cluster of a group: its cells, its largest batch, and its first markers.

    Parameters
    ----------
    clusters, batches
        Of the group's cells.
    top
        The first markers of each cluster; may be empty.
    """
    names = clusters.cat.categories
    cells = pd.crosstab(clusters.to_numpy(object), batches.astype(str).to_numpy(object)).loc[names]
    sizes = cells.sum(axis=1).to_numpy()
    table = {"n_cells": sizes, "pct_of_group": 100 * sizes / len(clusters)}
    table |= {"batch": cells.idxmax(axis=1).to_numpy(), "pct_in_batch": 100 * cells.max(axis=1).to_numpy() / sizes}
    firsts = top[top["rank"] <= FIRST].groupby("group", sort=False)["gene_symbols"].agg(", ".join)
    return pd.DataFrame({"subcluster": names, **table, "markers": firsts.reindex(names).fillna("").to_numpy()})


def needs(job: Job) -> Need:
    """Some columns of all cells."""
    return Need(job.process + 50 * MB + 1 * KB * job.n_obs, seconds=10, disk=50 * job.n_obs + MB)


def tells(run: Finished) -> Iterator[Part]:
    """The sub-clusters of each group: their sizes, their markers, and those that need a look."""
    if not run.of("subclusters"):
        return
    options = run.config["subclusters"]
    sizes = []
    for job in run.of("leiden_sub"):
        group = job.wildcards["subgroup"]
        clusters = read_table(job.leiden).iloc[:, 0]
        sizes.append(f"{group} ({count(len(clusters), 'cell')}) into {count(clusters.nunique())}")
        yield from told_of_group(run, group, clusters)
    said = f"{count(len(sizes), 'group')} of `{options['grouping']}` {'was' if len(sizes) == 1 else 'were'} clustered "
    said += f"again, each by itself: {listed(sizes, 12)}. The column `subclusters` of the atlas has all of them."
    yield Paragraph(said, CHAPTER)
    said = "A line for each sub-cluster: its cells, its largest batch, and its first markers."
    yield Table(run.one("subclusters").table, "All sub-clusters", said, CHAPTER, columns=COLUMNS)
    yield Methods(
        f"Groups of `{options['grouping']}` ({listed(options['groups'], 12)}) were clustered again by themselves, by "
        f"the same steps from highly variable genes on, at a Leiden resolution of {options['resolution']:g}."
    )


def told_of_group(run: Finished, group: str, clusters: pd.Series) -> Iterator[Part]:
    """What is told of one group."""
    section = f"{run.config['subclusters']['grouping']} {group}"
    obs = next(job.obs for job in run.of("subset") if job.wildcards["subgroup"] == group)
    of_sizes = clusters.value_counts()
    said = f"{count(len(clusters), 'cell')} of {section} in {count(len(of_sizes), 'sub-cluster')}"
    ends = [f"{of_sizes.index[i]} with {count(of_sizes.iloc[i])}" for i in (0, -1)]
    said += f"; the largest is {ends[0]}, the smallest {ends[1]}." if len(of_sizes) > 1 else "."
    figure = ""
    for mark in (mark for mark in run.marks if mark.wildcards.get("subgroup") == group):
        if "UMAP" in mark.labels:
            figure = figure or mark.path
            yield Numbers(mark.path, said)
    rankings = [job for job in run.jobs if "ranking" in job.output and job.wildcards.get("subgroup") == group]
    for job in rankings:
        yield from told_markers(run, job, section)
    for job in rankings[:1]:
        yield from without_markers(facts.tsv(job.top), section, job.top)
    batch_key = run.config["batch_key"]
    metrics = [f"pct_counts_{family}" for family in run.config["cells"]["max_pct_counts"]]
    known = facts.columns(obs, batch_key, *metrics, "doublet_score")
    yield from told_clusters.of_size(clusters, section, figure)
    yield from told_clusters.of_batches(clusters, known[batch_key].astype(str), section, figure)
    for metric in known.columns.drop(batch_key):
        yield from told_clusters.of_quality(clusters, known[metric], metric, section, figure)


def told_markers(run: Finished, job: Done, section: str) -> Iterator[Part]:
    """The table of a group's first markers by one method, and the numbers of their figures."""
    top, method = facts.tsv(job.top), Path(job.top).name.removesuffix(".top.tsv")
    title = f"Markers by {method}"
    if top.empty:
        yield Table(job.top, title, "There are fewer than two sub-clusters to compare.", CHAPTER, section, TABLE)
        return
    said = describe(top)
    columns = TABLE | {"scores": Column("score")}
    yield Table(job.top, title, f"{said} All tested genes are in `{job.markers}`.", CHAPTER, section, columns)
    for mark in run.marks:
        if mark.section == section and mark.labels.get("markers") == method:
            yield Numbers(mark.path, said)


def without_markers(top: pd.DataFrame, section: str, figure: str = "") -> Iterator[Finding]:
    """Sub-clusters none of whose first markers sets them apart, as where cells that do not differ are split."""
    more = 100 * (top["pct_nz_group"] - top["pct_nz_reference"])
    strong = (top["logfoldchanges"] >= CHANGE) & (top["pct_nz_group"] >= EXPRESSED)
    own = ((more >= MORE) | strong).groupby(top["group"], sort=False).any()
    for cluster, most in more.groupby(top["group"], sort=False).max().items():
        if not own[cluster]:
            said = (
                f"its first markers are expressed by at most {max(most, 0):.0f} points more of its cells than of others"
            )
            limit = f"expected {MORE} points for one, or twice the expression; perhaps cells of one kind are split"
            kind = "sub-clusters without markers of their own"
            yield Finding(f"Cluster {cluster} of {section}", said, limit, MORE / max(most, 1), figure, kind=kind)


def read_group(inputs: Any, i: int, group: str, names: pd.Index) -> tuple[pd.Series, pd.DataFrame]:
    """The clusters and the UMAP of the i-th group, whose cells have these names.

    Raises
    ------
    UserError
        If they are not of these cells.
    """
    clusters, umap = read_table(inputs.leiden[i]).iloc[:, 0], read_table(inputs.umap[i])
    if not clusters.index.equals(names) or not umap.index.equals(names):
        raise UserError(
            f"{inputs.leiden[i]} and {inputs.umap[i]} are not of the cells that {group} has now, but of an earlier run."
            " Delete their folder, and run snakemake again."
        )
    return clusters, umap


def main(snakemake: Any) -> None:
    """Read the clusters and UMAPs of the groups; write them for all cells, and the table of sub-clusters."""
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    labels = read_labels(inputs, params.grouping)
    batches = read_table(inputs.obs, [params.batch_key])[params.batch_key]
    places = pd.DataFrame(np.nan, labels.index, ["UMAP1", "UMAP2"], np.float32)
    clusters, tables = {}, []
    for i, group in enumerate(params.groups):
        mine = (labels == group).to_numpy()
        clusters[group], umap = read_group(inputs, i, group, labels.index[mine])
        places[mine] = umap.to_numpy(np.float32)
        top = read_top(inputs.tops[i]) if inputs.tops else pd.DataFrame(columns=["group", "rank", "gene_symbols"])
        table = summary(clusters[group], batches[mine], top)
        table.insert(0, "group", group)
        tables.append(table)
        stage.log.info("%s: %d cells in %d sub-clusters", group, mine.sum(), len(table))
    found = with_subclusters(labels, clusters)
    uns = {name: getattr(params, name) for name in ("grouping", "groups", "resolution")}
    write_table(found.to_frame(), output.labels, "cohort", "obs", {"subclusters": {"params": uns}})
    write_table(places, output.umap, "cohort", "obsm/X_umap_subclusters")
    write_tsv(pd.concat(tables), output.table)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
