"""What the clusterings share: the graph that they cut, the order of their labels, their table."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import device as devices
from . import stage
from .files import write_table

if TYPE_CHECKING:
    import igraph


def to_igraph(connectivities: Any, seed: int) -> tuple[igraph.Graph, np.ndarray]:
    """The undirected graph of symmetric connectivities, its weights (float64), and igraph's random numbers seeded.

    Parameters
    ----------
    connectivities
        cells x cells, symmetric and sparse; the diagonal is left out.
    seed
        Of igraph's one random number generator.
    """
    import igraph
    from scipy.sparse import triu

    igraph.set_random_number_generator(random.Random(seed))
    upper = triu(connectivities, k=1, format="coo")
    graph = igraph.Graph(connectivities.shape[0], np.column_stack([upper.row, upper.col]))
    return graph, upper.data.astype(np.float64)


def to_pylibcugraph(connectivities: Any, device: devices.Device) -> tuple[Any, Any]:
    """What pylibcugraph's functions take first: a resource handle, and the undirected graph with its weights (float32).

    Parameters
    ----------
    connectivities
        cells x cells, symmetric, CSR, without a diagonal; on the host or on the device.
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
    return handle, graph


def in_order(vertices: Any, communities: Any, device: devices.Device) -> np.ndarray:
    """Per cell its community, on the host, from pylibcugraph's pairs of a cell and its community."""
    membership = device.xp.empty_like(communities)
    membership[vertices] = communities
    return device.to_host(membership)


def by_falling_size(membership: np.ndarray) -> np.ndarray:
    """Clusters renumbered from the largest (0) to the smallest; of equal ones the one with the first cell comes first.

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


def write_clusters(membership: np.ndarray, column: str, obs_names: pd.Index, path: str | Path) -> None:
    """Write a clustering as a categorical column with the labels "0", "1", ... by falling size."""
    codes = by_falling_size(np.asarray(membership))
    sizes = np.bincount(codes)
    labels = pd.Categorical.from_codes(codes, [str(i) for i in range(len(sizes))])
    stage.log.info("%s: %d clusters of %s cells", column, len(sizes), ", ".join(map(str, sizes)))
    write_table(pd.DataFrame({column: labels}, index=obs_names), path)
