"""Common parts of the clusterings: their graph, the order of their labels, their table."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lib.run import device as devices
from lib.run import stage
from lib.run.imports import import_lean
from lib.run.resources import CUML, MB, PYTHON, Job, Need
from lib.store.csr import rows_of_nonzeros, sums_by_key
from lib.store.files import write_table

if TYPE_CHECKING:
    import igraph


def to_igraph(connectivities: Any, seed: int) -> tuple[igraph.Graph, np.ndarray]:
    """The undirected graph of symmetric connectivities, and its weights (float64); seeds igraph's random numbers.

    Parameters
    ----------
    connectivities
        cells x cells, symmetric and sparse; the diagonal is left out.
    seed
        Of igraph's only random number generator.
    """
    from scipy.sparse import triu

    igraph = import_lean("igraph")
    igraph.set_random_number_generator(random.Random(seed))
    upper = triu(connectivities, k=1, format="coo")
    graph = igraph.Graph(connectivities.shape[0], np.column_stack([upper.row, upper.col]))
    return graph, upper.data.astype(np.float64)


Find = Callable[[Any, Any], tuple]  # cells, their communities and the modularity, from a handle and a graph
MAX_LEVEL = 100  # levels of merging in cuGraph; a graph of cells takes fewer
THRESHOLD = 1e-7  # cuGraph's default: Louvain stops when a level gains less modularity
THETA = 1.0  # cuGraph's default: the randomness of Leiden's refinement


def by_leiden(resolution: float, seed: int) -> Find:
    """cuGraph's Leiden, for `cugraph_communities`."""
    from pylibcugraph import leiden

    return lambda handle, graph: leiden(handle, seed, graph, MAX_LEVEL, resolution, THETA, False)


def by_louvain(resolution: float) -> Find:
    """cuGraph's Louvain, for `cugraph_communities`. It uses no random numbers."""
    from pylibcugraph import louvain

    return lambda handle, graph: louvain(handle, graph, MAX_LEVEL, THRESHOLD, resolution, False)


def cugraph_communities(
    connectivities: Any, find: Sequence[Find], resolution: float, seed: int, device: devices.Device
) -> tuple[np.ndarray, float]:
    """The best of several clusterings by pylibcugraph, and its modularity.

    cuGraph moves all cells at once, and may stop although merging communities would raise the modularity. So igraph's
    Louvain continues on the small graph whose nodes are the communities. Merging keeps connected communities connected.

    Parameters
    ----------
    connectivities
        cells x cells, symmetric, CSR, without a diagonal; on the host or on the device.
    find
        Results of `by_leiden` and `by_louvain`.
    resolution
        Of the modularity.
    seed
        Of the order in which igraph visits the nodes.
    device
        A GPU.
    """
    from pylibcugraph import GraphProperties, ResourceHandle, SGGraph

    adjacency = device.sparse.csr_matrix(connectivities)
    handle = ResourceHandle()
    graph = SGGraph(
        handle,
        GraphProperties(is_symmetric=True, is_multigraph=False),
        adjacency.indptr,
        adjacency.indices,
        weight_array=adjacency.data.astype(np.float32, copy=False),
        store_transposed=False,
        renumber=False,
        do_expensive_check=False,
        input_array_format="CSR",
    )
    best: tuple[np.ndarray, float] | None = None
    for communities in find:
        vertices, found, _ = communities(handle, graph)
        membership = device.xp.empty_like(found)
        membership[vertices] = found
        merged = merge(adjacency, membership, resolution, seed, device)
        if best is None or merged[1] > best[1]:
            best = merged
    return best


def merge(
    adjacency: Any, membership: Any, resolution: float, seed: int, device: devices.Device
) -> tuple[np.ndarray, float]:
    """Merge communities if that raises the modularity; return both. `membership` is on the device."""
    igraph, xp = import_lean("igraph"), device.xp
    _, codes = xp.unique(membership, return_inverse=True)
    n = int(codes.max()) + 1
    keys = codes[rows_of_nonzeros(adjacency, device)] * n + codes[adjacency.indices]
    pairs, which = xp.unique(keys, return_inverse=True)
    weights = device.to_host(sums_by_key(which, adjacency.data, len(pairs), device))
    source, target = np.divmod(device.to_host(pairs), n)
    upper = source <= target
    source, target, weights = source[upper], target[upper], weights[upper]
    weights = np.where(source == target, weights / 2, weights)  # each link within a community was counted twice
    igraph.set_random_number_generator(random.Random(seed))
    graph = igraph.Graph(n, np.column_stack([source, target]))
    merged = graph.community_multilevel(weights=weights.tolist(), resolution=resolution).membership
    quality = [
        graph.modularity(members, weights=weights.tolist(), resolution=resolution) for members in (range(n), merged)
    ]
    stage.log.info("%d communities, modularity %.4f; merged to %d: %.4f", n, quality[0], max(merged) + 1, quality[1])
    members = np.asarray(merged if quality[1] > quality[0] else range(n))
    return members[device.to_host(codes)], max(quality)


def by_falling_size(membership: np.ndarray) -> np.ndarray:
    """Renumber clusters from the largest (0) to the smallest; of equal ones the one with the first cell comes first.

    Parameters
    ----------
    membership
        Per cell its cluster, any integers.

    Returns
    -------
    Per cell its cluster's rank, int32.
    """
    _, first, inverse, sizes = np.unique(membership, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank[inverse]


def write_clusters(membership: np.ndarray, column: str, obs_names: pd.Index, path: str | Path, **params: float) -> None:
    """Write a clustering as a categorical column of labels "0", "1", ... by falling size; `params` are its settings."""
    codes = by_falling_size(np.asarray(membership))
    sizes = np.bincount(codes)
    labels = pd.Categorical.from_codes(codes, [str(i) for i in range(len(sizes))])
    alone = int((sizes == 1).sum())
    if 2 * alone > len(sizes):
        key = column.partition("_")[0]
        stage.notice("%s: %d of its %d clusters are single cells: set a lower %s", column, alone, len(sizes), key)
    stage.log.info("%s: %d clusters of %s cells", column, len(sizes), ", ".join(map(str, sizes)))
    write_table(pd.DataFrame({column: labels}, index=obs_names), path, "cohort", "obs", {column: {"params": params}})


def graph_needs(job: Job, seconds: float, refined: float = 0) -> Need:
    """The need of a clustering of the graph: the graph, and igraph's or cuGraph's copies of it.

    Parameters
    ----------
    refined
        Bytes of memory in addition to a clustering on the GPU.
    """
    gpu_mem = PYTHON + CUML + 30 * job.edges + refined
    vram = 300 * MB + 70 * job.edges
    return Need(PYTHON + 30 * MB + 95 * job.edges, seconds, 20 * job.n_kept, vram, gpu_mem)
