"""UMAP's fuzzy graph of the cells: the weighted neighbour graph for UMAP and the clusterings.

Source: McInnes, Healy & Melville 2018, section 3.1; umap-learn's `fuzzy_simplicial_set` with its defaults, as
`scanpy.pp.neighbors(method="umap")` calls it.
"""

from __future__ import annotations

from math import log2
from pathlib import Path
from typing import Any

import numpy as np

from lib.run import device as devices
from lib.store.files import read_csr

ITERATIONS = 64
TOLERANCE = 1e-5  # of a cell's summed memberships
MIN_SCALE = 1e-3  # a bandwidth is at least this fraction of the mean distance
BLOCK = 1 << 16  # cells whose bandwidths are computed at once


def fuzzy_graph(indices: Any, distances: Any, device: devices.Device) -> Any:
    """The fuzzy union of the cells' neighbourhoods.

    The membership of neighbour j in the neighbourhood of i is v_ij = exp(-max(0, d_ij - rho_i) / sigma_i); the graph
    is v_ij + v_ji - v_ij * v_ji.

    Parameters
    ----------
    indices, distances
        Each cell's neighbours without itself, cells x (n_neighbors - 1): n_neighbors counts the cell, as in scanpy.
    device
        The device of the arrays.

    Returns
    -------
    Symmetric CSR, cells x cells, float32, indices sorted.
    """
    xp = device.xp
    n_obs, others = indices.shape
    # umap-learn's average includes the cell itself, at distance zero
    mean = float(distances.mean(dtype=np.float64)) * others / (others + 1)
    strengths = xp.concatenate(
        [memberships(distances[i : i + BLOCK].astype(np.float32), mean, device) for i in range(0, n_obs, BLOCK)]
    )
    stored = strengths > 0
    starts = xp.zeros(n_obs + 1, np.int64)
    starts[1:] = xp.cumsum(stored.sum(1))
    local = device.sparse.csr_matrix((strengths[stored], indices[stored], starts), shape=(n_obs, n_obs))
    local.sort_indices()
    transpose = local.T.tocsr()
    graph = local + transpose - local.multiply(transpose)
    graph.sort_indices()
    return graph


def memberships(distances: Any, mean: float, device: devices.Device) -> Any:
    """The membership of each neighbour in a cell's neighbourhood, 0 to 1.

    rho_i is the smallest distance above zero. sigma_i, found by bisection, makes the memberships sum to
    log2(n_neighbors), and is at least `MIN_SCALE` of the cell's mean distance (of `mean`, if all its distances are
    zero).

    Parameters
    ----------
    distances
        cells x (n_neighbors - 1), float32.
    mean
        The mean distance over all cells.
    """
    xp = device.xp
    n_neighbors = distances.shape[1] + 1
    target = np.float32(log2(n_neighbors))
    rho = xp.where(distances > 0, distances, np.float32(np.inf)).min(1)
    rho[xp.isinf(rho)] = 0
    gaps = xp.maximum(distances - rho[:, None], 0)
    low, high = xp.zeros_like(rho), xp.full_like(rho, np.inf)
    sigma = xp.ones_like(rho)
    for _ in range(ITERATIONS):
        excess = xp.exp(-gaps / sigma[:, None]).sum(1) - target
        searching = xp.abs(excess) >= TOLERANCE
        if not searching.any():
            break
        high = xp.where(searching & (excess > 0), sigma, high)
        low = xp.where(searching & (excess < 0), sigma, low)
        sigma = xp.where(searching, xp.where(xp.isinf(high), 2 * sigma, (low + high) / 2), sigma)
    smallest = xp.where(rho > 0, distances.sum(1) / n_neighbors, np.float32(mean))
    sigma = xp.maximum(sigma, np.float32(MIN_SCALE) * smallest)
    return xp.exp(-gaps / sigma[:, None])


def read_graph(path: str | Path) -> Any:
    """The connectivities of a `neighbors.h5`: symmetric CSR, cells x cells, float32."""
    return read_csr(path, "connectivities")
