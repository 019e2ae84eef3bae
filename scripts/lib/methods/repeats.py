"""The cells that `trust_clusters` and `trust_resolutions` cluster again: all, or, of many, a sample of each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.methods import mixing
from lib.methods.fuzzy import fuzzy_graph, read_graph
from lib.methods.knn import nearest_neighbors
from lib.methods.representation import representation
from lib.run import device as devices
from lib.run.resources import MB, Job, Need
from lib.store.files import read_attrs

TIMES = 4  # so many times `trust: n_cells` are clustered at most


@dataclass(frozen=True)
class Space:
    """What is clustered: cells in a space, and their graph; `rows` are their positions among all cells."""

    X: np.ndarray
    graph: Any
    rows: np.ndarray


def read_space(files: Any, groups: np.ndarray, n_cells: int | None, seed: int, n_jobs: int) -> Space:
    """The run's graph and space, or, of more than TIMES `n_cells` cells, those of a sample of each group.

    Parameters
    ----------
    files
        Snakemake's inputs, with `pca`, `harmony` and `neighbors`.
    groups
        The group of each cell, integers.
    n_cells
        The config's `trust: n_cells`; None: all cells.
    seed, n_jobs
        Of the sample, and threads of the search.
    """
    made_with = read_attrs(files.neighbors)
    X = representation(files.pca, files.harmony, made_with["use_rep"], made_with["n_pcs"])[1]
    rows = mixing.stratified(groups, None if n_cells is None else TIMES * n_cells, seed).rows
    if len(rows) == len(X):
        return Space(X, read_graph(files.neighbors), rows)
    X = X[rows]
    k = min(made_with["n_neighbors"] - 1, len(X) - 1)
    found = nearest_neighbors(X, k, made_with["metric"], seed, n_jobs, exact=True)
    return Space(X, fuzzy_graph(*found, devices.cpu()), rows)


def rand(one: np.ndarray, other: np.ndarray) -> float:
    """The adjusted Rand index of two clusterings."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(one, other))


def needs(job: Job, runs: int, disk: float) -> Need:
    """The need of so many clusterings: the space, the graph, each process' copy of it, and a sample's neighbours."""
    asked = job.config["trust"]["n_cells"]
    n = min(job.n_kept, TIMES * asked if asked else job.n_kept)
    edges = job.edges * n / max(1, job.n_kept)
    mem = job.process + 150 * MB + (100 * edges + 20 * MB) * job.threads + 16 * job.n_pcs * n
    mem += 12 * job.edges + 8 * job.n_pcs * job.n_kept + 60 * job.n_kept
    return Need(mem, 15 + 4e-6 * edges * runs + 1e-8 * n * n, disk, reads=0)
