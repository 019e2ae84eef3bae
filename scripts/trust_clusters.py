"""Cluster again with other seeds, and compare: which clusters can be relied on.

The first clustering of the config is repeated with several seeds by igraph or scikit-learn, on the run's own graph, or,
of many cells, on the graph of a sample of them. For a cluster C whose cells fall into parts C_k of a repetition,

    together = sum_k |C_k| (|C_k| - 1) / (|C| (|C| - 1))

is the share of its pairs of cells that stay together; a cell's stability is the share of its cluster's other cells that
stay with it, the mean over the repetitions. In the consensus, a cell is in the cluster in which most repetitions have
it, where a repetition's cluster counts as the one with which it shares most cells. The run's clusterings must reach the
repetitions' modularity, or inertia.
"""

from lib.start import run

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from lib.methods import mixing, repeats
from lib.methods.clusters import to_igraph
from lib.methods.repeats import Space, rand
from lib.methods.tolerances import Tolerance
from lib.report import facts
from lib.report.parts import Column, Finding, Finished, Methods, Numbers, Paragraph, Part, Table
from lib.report.words import count, percent
from lib.run import device as devices
from lib.run import models, stage
from lib.run.forked import run_all
from lib.run.resources import MB, Job, Need
from lib.store.files import read_table, write_table, write_tsv

CPU = devices.cpu()
SCRIPTS = ("leiden.py", "louvain.py", "kmeans.py")  # whose limits are read
TOGETHER, AGREE = 0.6, 0.8  # limits of findings: pairs of a cluster, and the mean adjusted Rand index
CHAPTER, SECTION = "Trust", "Clusters"


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


def stability(labels: np.ndarray, repetitions: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The share of each cluster's pairs, and of each cell's pairs with its cluster, that stay together; see the module.

    Parameters
    ----------
    labels
        The cluster of each cell, from 0 on.
    repetitions
        The same cells' clusters in each repetition.

    Returns
    -------
    Per cluster and per cell, float64: means over the repetitions. 1 for a cell alone.
    """
    n = int(labels.max()) + 1
    sizes = np.bincount(labels, minlength=n)
    of_cells = np.zeros(len(labels))
    for other in repetitions:
        _, part, parts = np.unique(labels * (int(other.max()) + 1) + other, return_inverse=True, return_counts=True)
        with_it = (parts[part] - 1) / np.maximum(sizes[labels] - 1, 1)
        of_cells += np.where(sizes[labels] > 1, with_it, 1)
    of_cells /= max(len(repetitions), 1)
    return np.bincount(labels, of_cells, n) / np.maximum(sizes, 1), of_cells


def consensus(labels: np.ndarray, repetitions: Sequence[np.ndarray]) -> np.ndarray:
    """The cluster in which most repetitions have each cell (see the module), int64; its own one if as many do."""
    n = int(labels.max(initial=0)) + 1
    votes = np.zeros((len(labels), n), np.float32)
    votes[np.arange(len(labels)), labels] = 0.5
    for other in repetitions:
        shared = np.bincount(other * n + labels, minlength=(int(other.max()) + 1) * n).reshape(-1, n)
        votes[np.arange(len(labels)), shared.argmax(1)[other]] += 1
    return votes.argmax(1)


def repeated(
    space: Space, names: Mapping[str, np.ndarray], seeds: int, seed: int, n_iterations: int, processes: int = 1
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Each clustering against repetitions: the first one `seeds` times, the others once; and those of the first."""
    rows, first = [], []
    times = dict.fromkeys(names, 1) | {next(iter(names)): seeds}
    more = [(name, (seed + 1 + j) % 2**32) for name, n in times.items() for j in range(n)]
    found = iter(run_all([partial(cluster, space, *one, n_iterations) for one in more], processes))
    for i, (name, labels) in enumerate(names.items()):
        again = list(islice(found, times[name]))
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
    """The repetitions of all clusterings."""
    return repeats.needs(job, job.config["trust"]["seeds"] + 6, 5 * MB + 10 * job.n_kept)


def tells(run: Finished) -> Iterator[Part]:
    """How stable the clusterings are, and which clusters are not."""
    job = run.one("trust_clusters")
    clusterings, clusters = facts.tsv(job.clusterings), facts.tsv(job.clusters)
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
    said = "The share of each cluster's pairs of cells that stay together under other seeds, and of its cells that "
    said += "most repetitions have in it (consensus)."
    columns = {"cluster": Column("cluster", text=True), "together": Column("stay together", low=TOGETHER)}
    yield Table(job.clusters, f"Stability of {name}", said, CHAPTER, SECTION, columns)
    for path in run.files("figures_stability", "quality"):
        yield Numbers(path, stability_told(clusters))
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


def stability_told(clusters: pd.DataFrame) -> str:
    """A sentence on the least stable cluster."""
    known = clusters[clusters["together"].notna()]
    if known.empty:
        return "No cluster was repeated."
    worst = known.loc[known["together"].idxmin()]
    name, n = worst["cluster"], int((known["together"] < TOGETHER).sum())
    said = f"Cluster {name} is the least stable: {percent(worst['together'])} of its pairs of cells stay together"
    return f"{said}; {n} of {count(len(known), 'cluster')} are below {percent(TOGETHER)}."


def main(snakemake: Any) -> None:
    """Repeat the clusterings, write the tables, the cells' stability and their consensus."""
    files, params = snakemake.input, snakemake.params
    tables = [read_table(path) for path in files.clusterings]
    named = {table.columns[0]: table.iloc[:, 0].cat.codes.to_numpy().astype(np.int64) for table in tables}
    main_name = next(iter(named))
    space = repeats.read_space(files, named[main_name], params.n_cells, params.seed, snakemake.threads)
    sampled = {name: labels[space.rows] for name, labels in named.items()}
    clusterings, first = repeated(space, sampled, params.seeds, params.seed, params.n_iterations, snakemake.threads)
    stage.log.info("repetitions:\n%s", clusterings.to_string(index=False))
    write_tsv(clusterings, snakemake.output.clusterings)
    mine, names = sampled[main_name], tables[0].iloc[:, 0].cat.categories
    of_clusters, of_cells = stability(mine, first)
    agreed = consensus(mine, first)
    sizes = np.bincount(named[main_name], minlength=len(names))
    in_sample = np.maximum(np.bincount(mine, minlength=len(names)), 1)
    found = {"cluster": names, "cells": sizes, "together": np.append(of_clusters, [np.nan] * len(names))[: len(names)]}
    found["consensus"] = np.bincount(mine[agreed == mine], minlength=len(names)) / in_sample
    write_tsv(pd.DataFrame(found), snakemake.output.clusters)
    of_all, codes = np.full(len(tables[0]), np.nan, np.float32), np.full(len(tables[0]), -1)
    of_all[space.rows], codes[space.rows] = of_cells, agreed
    columns = {
        f"stability_{main_name}": of_all,
        f"consensus_{main_name}": pd.Categorical.from_codes(codes, names),
    }
    told = {"params": {"seeds": params.seeds, "random_state": params.seed}}
    made_with = dict.fromkeys(columns, told)
    write_table(pd.DataFrame(columns, tables[0].index), snakemake.output.stability, "cohort", "obs", made_with)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
