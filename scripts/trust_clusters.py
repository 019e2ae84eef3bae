"""Cluster again with other seeds and other resolutions, and compare: which clusters can be relied on.

The first clustering of the config is repeated with several seeds by igraph or scikit-learn, on the run's own graph, or,
of many cells, on the graph of a sample of them. For a cluster C whose cells fall into parts C_k of a repetition,

    together = sum_k |C_k| (|C_k| - 1) / (|C| (|C| - 1))

is the share of its pairs of cells that stay together; a cell's stability is the share of its cluster's other cells that
stay with it, the mean over the repetitions. The run's clusterings must reach the repetitions' modularity, or inertia.

Leiden at other resolutions tells how many clusters the data bear: where neighbouring resolutions agree (adjusted Rand
index) and clusters are apart (silhouette). One is suggested, and none is taken.
"""

from lib.start import run

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from lib.methods import mixing
from lib.methods.clusters import to_igraph
from lib.methods.fuzzy import fuzzy_graph, read_graph
from lib.methods.knn import nearest_neighbors
from lib.methods.representation import representation
from lib.methods.tolerances import Tolerance
from lib.report import facts
from lib.report.parts import Column, Finding, Finished, Methods, Paragraph, Part, Table
from lib.report.words import count, listed, percent
from lib.run import device as devices
from lib.run import models, stage
from lib.run.resources import MB, Job, Need
from lib.store.files import read_attrs, read_table, write_table, write_tsv

CPU = devices.cpu()
SCRIPTS = ("leiden.py", "louvain.py", "kmeans.py")  # whose limits are read
TIMES = 4  # so many times `trust: n_cells` are clustered at most
SILHOUETTES = 1000  # cells whose silhouettes are computed
TOGETHER, AGREE = 0.6, 0.8  # limits of findings: pairs of a cluster, and the mean adjusted Rand index
ITERATIONS = 2  # of Leiden at other resolutions, as scanpy advises
CHAPTER, SECTION = "Trust", "Clusters"


@dataclass(frozen=True)
class Space:
    """What is clustered: cells in a space, and their graph; `rows` are their positions among all cells."""

    X: np.ndarray
    graph: Any
    rows: np.ndarray


def read_space(files: Any, groups: np.ndarray, most: int | None, seed: int, n_jobs: int) -> Space:
    """The run's graph and space, or, of more than `most` cells, those of a sample of each group."""
    made_with = read_attrs(files.neighbors)
    X = representation(files.pca, files.harmony, made_with["use_rep"], made_with["n_pcs"])[1]
    rows = mixing.stratified(groups, most, seed).rows
    if len(rows) == len(X):
        return Space(X, read_graph(files.neighbors), rows)
    X = X[rows]
    k = min(made_with["n_neighbors"] - 1, len(X) - 1)
    found = nearest_neighbors(X, k, made_with["metric"], seed, n_jobs, exact=True)
    return Space(X, fuzzy_graph(*found, CPU), rows)


def cluster(space: Space, name: str, seed: int, n_iterations: int) -> np.ndarray:
    """A clustering of this name by the function of its stage, on the CPU."""
    method, value = name.split("_")
    if method == "leiden":
        from leiden import leiden

        return leiden(space.graph, float(value), n_iterations, seed, CPU)
    if method == "louvain":
        from louvain import louvain

        return louvain(space.graph, float(value), seed, CPU)
    from kmeans import kmeans

    return kmeans(space.X, int(value), seed, CPU)


def quality(space: Space, name: str, labels: np.ndarray) -> float:
    """The modularity of a clustering, or the inertia of k-means."""
    method, value = name.split("_")
    if method == "kmeans":
        groups = mixing.groups_of(labels)
        return float(sum(((space.X[rows] - space.X[rows].mean(0)) ** 2).sum(dtype=np.float64) for rows in groups))
    graph, weights = to_igraph(space.graph, 0)
    return graph.modularity(labels, weights=weights, resolution=float(value))


def relative_quality(name: str, mine: float, others: Sequence[float]) -> float:
    """The quality of a clustering relative to the best of others: of 1 it is as good; the inertia is inverted."""
    if name.startswith("kmeans"):
        return min(others) / max(mine, 1e-12) if min(others) > 0 else 1.0
    return mine / max(others) if max(others) > 0 else 1.0


def rand(one: np.ndarray, other: np.ndarray) -> float:
    """The adjusted Rand index of two clusterings."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(one, other))


def stability(labels: np.ndarray, repeats: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The share of each cluster's pairs, and of each cell's pairs with its cluster, that stay together; see the module.

    Parameters
    ----------
    labels
        The cluster of each cell, from 0 on.
    repeats
        The same cells' clusters in each repetition.

    Returns
    -------
    Per cluster and per cell, float64: means over the repetitions. 1 for a cell alone.
    """
    n = int(labels.max()) + 1
    sizes = np.bincount(labels, minlength=n)
    of_cells = np.zeros(len(labels))
    for other in repeats:
        _, part, parts = np.unique(labels * (int(other.max()) + 1) + other, return_inverse=True, return_counts=True)
        with_it = (parts[part] - 1) / np.maximum(sizes[labels] - 1, 1)
        of_cells += np.where(sizes[labels] > 1, with_it, 1)
    of_cells /= max(len(repeats), 1)
    return np.bincount(labels, of_cells, n) / np.maximum(sizes, 1), of_cells


def silhouette_of(space: Space, labels: np.ndarray) -> float:
    """The mean silhouette of some cells of each cluster; NaN of one cluster."""
    sizes = np.bincount(labels)
    if len(sizes) < 2:
        return np.nan
    sample = mixing.stratified(labels, SILHOUETTES, 0)
    sums = mixing.distance_sums(space.X, sample.rows, labels, CPU)
    return sample.mean(mixing.silhouette(sums, sizes, labels[sample.rows]))


def scan(space: Space, resolutions: Sequence[float], seed: int) -> pd.DataFrame:
    """Leiden at each resolution: clusters, silhouette, agreement with the neighbouring resolutions, the suggested one.

    The suggested one has the largest product of agreement and silhouette, each on a scale from 0 to 1, of those with
    several clusters.
    """
    resolutions = sorted(resolutions)
    found = [cluster(space, f"leiden_{resolution}", seed, ITERATIONS) for resolution in resolutions]
    between = [rand(one, other) for one, other in pairwise(found)]
    table = pd.DataFrame(
        {
            "resolution": resolutions,
            "clusters": [len(np.unique(labels)) for labels in found],
            "silhouette": [silhouette_of(space, labels) for labels in found],
            "agreement": [np.mean(between[max(0, i - 1) : i + 1] or [np.nan]) for i in range(len(found))],
        }
    )
    score = (table["silhouette"] + 1) / 2 * table["agreement"].clip(lower=0)
    best = score.idxmax() if score.notna().any() else -1
    return table.assign(suggested=["yes" if i == best else "" for i in table.index])


def repeated(
    space: Space, names: Mapping[str, np.ndarray], seeds: int, seed: int, n_iterations: int
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Each clustering against repetitions: the first one `seeds` times, the others once; and those of the first."""
    rows, first = [], []
    for i, (name, labels) in enumerate(names.items()):
        more = [(seed + 1 + j) % 2**32 for j in range(seeds if i == 0 else 1)]
        again = [cluster(space, name, other, n_iterations) for other in more]
        mine = quality(space, name, labels)
        best = relative_quality(name, mine, [quality(space, name, other) for other in again])
        limit = models.declared(name.split("_")[0], "TOLERANCES")["quality"]
        agree = [rand(labels, other) for other in again]
        agree += [rand(one, other) for i, one in enumerate(again) for other in again[:i]]
        rows.append([name, len(space.rows), len(np.unique(labels)), len(again), np.mean(agree), min(agree)])
        rows[-1] += [mine, best, limit.said, limit.holds(best)]
        first = again if i == 0 else first
    columns = ["clustering", "cells", "clusters", "repeats", "mean_ari", "least_ari", "quality", "relative_quality"]
    return pd.DataFrame(rows, columns=[*columns, "limit", "within"]), first


def needs(job: Job) -> Need:
    """The space and the graph, igraph's copy of it, and a sample's neighbours."""
    asked = job.config["trust"]["n_cells"]
    n = min(job.n_kept, TIMES * asked if asked else job.n_kept)
    edges = job.edges * n / max(1, job.n_kept)
    runs = job.config["trust"]["seeds"] + len(job.config["trust"]["resolutions"]) + 6
    mem = job.process + 150 * MB + 100 * edges + 12 * job.edges + 8 * job.n_pcs * job.n_kept + 60 * job.n_kept
    mem += 16 * job.n_pcs * n
    return Need(mem, 15 + 4e-6 * edges * runs + 1e-8 * n * n, 5 * MB + 10 * job.n_kept, reads=0)


def tells(run: Finished) -> Iterator[Part]:
    """How stable the clusterings are, and which clusters are not; the suggested resolution."""
    job = run.one("trust_clusters")
    clusterings, clusters, scanned = (facts.tsv(path) for path in (job.clusterings, job.clusters, job.resolutions))
    first = clusterings.iloc[0]
    name, figure = first["clustering"], run.figure("UMAP", first["clustering"])
    said = (
        f"{count(first['repeats'], 'repetition')} of {name} with other seeds, of {count(first['cells'], 'cell')}: the "
    )
    said += f"adjusted Rand index is {first['mean_ari']:.2f} in the mean, {first['least_ari']:.2f} at least."
    yield Paragraph(said, CHAPTER, SECTION)
    said = "Each clustering against repetitions with other seeds: the adjusted Rand index, and its modularity (of "
    said += "k-means its inertia) relative to the best of them."
    yield Table(
        job.clusterings, "Clusterings repeated", said, CHAPTER, SECTION, {"clustering": Column("clustering", text=True)}
    )
    said = "The share of each cluster's pairs of cells that stay together under other seeds."
    columns = {"cluster": Column("cluster", text=True), "together": Column("stay together", low=TOGETHER)}
    yield Table(job.clusters, f"Stability of {name}", said, CHAPTER, SECTION, columns)
    if len(scanned):
        yield Paragraph(suggestion_told(scanned), CHAPTER, SECTION)
        said = "Leiden at other resolutions: agreement is the mean adjusted Rand index with the neighbouring ones."
        yield Table(job.resolutions, "Resolutions", said, CHAPTER, SECTION)
    for row in clusterings[clusterings["within"].astype(str) != "True"].to_dict("records"):
        limit: Tolerance = models.declared(row["clustering"].split("_")[0], "TOLERANCES")["quality"]
        what = "inertia" if row["clustering"].startswith("kmeans") else "modularity"
        said = f"has {percent(max(0, row['relative_quality']))} of the quality ({what}) that other seeds reach"
        beyond = limit.beyond(row["relative_quality"])
        yield Finding(f"Clustering {row['clustering']}", said, f"expected {limit.said}", beyond, figure)
    if first["mean_ari"] < AGREE and str(first["within"]) == "True":
        said = f"depends on the seed: repetitions agree with an adjusted Rand index of {first['mean_ari']:.2f}"
        beyond = (1 - first["mean_ari"]) / (1 - AGREE)
        yield Finding(f"Clustering {name}", said, f"expected at least {AGREE}", beyond, figure)
    for row in clusters[clusters["together"] < TOGETHER].to_dict("records"):
        said = f"is not stable: {percent(row['together'])} of its pairs of cells stay together under other seeds"
        limit, beyond = f"expected at least {percent(TOGETHER)}", (1 - row["together"]) / (1 - TOGETHER)
        yield Finding(f"Cluster {row['cluster']} of {name}", said, limit, beyond, figure, "unstable clusters")
    yield Methods(f"{name} was repeated with {count(first['repeats'], 'other seed')}.")


def suggestion_told(scanned: pd.DataFrame) -> str:
    """A sentence on the suggested resolution."""
    best = scanned[scanned["suggested"] == "yes"]
    if best.empty:
        return "No resolution is suggested, as none has several clusters."
    row = best.iloc[0]
    return (
        f"Of the resolutions {listed(scanned['resolution'], 12)}, {row['resolution']} is suggested: its "
        f"{count(row['clusters'], 'cluster')} agree with those of the neighbouring resolutions (adjusted Rand index "
        f"{row['agreement']:.2f}) and are apart (silhouette {row['silhouette']:.2f}). It is not taken unless the "
        "config names it."
    )


def main(snakemake: Any) -> None:
    """Repeat the clusterings, write the tables and the cells' stability."""
    files, params = snakemake.input, snakemake.params
    tables = [read_table(path) for path in files.clusterings]
    named = {table.columns[0]: table.iloc[:, 0].cat.codes.to_numpy().astype(np.int64) for table in tables}
    main_name = next(iter(named))
    most = None if params.n_cells is None else TIMES * params.n_cells
    space = read_space(files, named[main_name], most, params.seed, snakemake.threads)
    sampled = {name: labels[space.rows] for name, labels in named.items()}
    clusterings, first = repeated(space, sampled, params.seeds, params.seed, params.n_iterations)
    stage.log.info("repetitions:\n%s", clusterings.to_string(index=False))
    write_tsv(clusterings, snakemake.output.clusterings)
    of_clusters, of_cells = stability(sampled[main_name], first)
    names = tables[0].iloc[:, 0].cat.categories
    sizes = np.bincount(named[main_name], minlength=len(names))
    found = {"cluster": names, "cells": sizes, "together": np.append(of_clusters, [np.nan] * len(names))[: len(names)]}
    write_tsv(pd.DataFrame(found), snakemake.output.clusters)
    write_tsv(scan(space, params.resolutions, params.seed), snakemake.output.resolutions)
    of_all = np.full(len(tables[0]), np.nan, np.float32)
    of_all[space.rows] = of_cells
    column = f"stability_{main_name}"
    made_with = {column: {"params": {"seeds": params.seeds, "random_state": params.seed}}}
    write_table(pd.DataFrame({column: of_all}, tables[0].index), snakemake.output.stability, "cohort", "obs", made_with)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
