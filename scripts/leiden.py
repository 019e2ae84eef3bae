"""Leiden clusters: communities of the fuzzy graph of largest modularity, all of them connected.

Source: Traag, Waltman & van Eck 2019; igraph's community_leiden, as scanpy.tl.leiden(flavor="igraph") calls it, and on
the GPU cuGraph's leiden, as rapids_singlecell.tl.leiden calls it. Both maximise the same modularity, the sum over the
communities of w / W - resolution * (d / 2W)^2: w, the weight within; d, the sum of degrees; W, the weight in all.
"""

from functools import partial
from typing import Any

import numpy as np
from lib import device as devices
from lib import stage
from lib.clusters import cugraph_communities, to_igraph, write_clusters
from lib.files import read_table
from lib.fuzzy import read_graph

STARTS = 2  # on the GPU
MAX_LEVEL = 100  # of merging, on the GPU: more than a graph of cells takes
THETA = 1.0  # cuGraph's default: how much chance there is in its refinement


def leiden(connectivities: Any, resolution: float, n_iterations: int, seed: int, device: devices.Device) -> np.ndarray:
    """Per cell its community; equal seeds give equal communities.

    Parameters
    ----------
    connectivities
        cells x cells, symmetric and sparse, without a diagonal.
    resolution
        Of the modularity: higher finds more and smaller communities.
    n_iterations
        Rounds of refinement, each through all levels; -1: until nothing changes. On the GPU it says nothing: cuGraph
        goes through the levels once, and the best of `STARTS` goes is taken.
    """
    if device.is_gpu:
        from pylibcugraph import leiden as communities

        starts = [partial(found_by, communities, seed + start, resolution) for start in range(STARTS)]
        membership, modularity = cugraph_communities(connectivities, starts, resolution, seed, device)
    else:
        graph, weights = to_igraph(connectivities, seed)
        found = graph.community_leiden(
            objective_function="modularity", weights=weights.tolist(), resolution=resolution, n_iterations=n_iterations
        )
        membership, modularity = np.array(found.membership), found.quality
    stage.log.info("modularity %.4f at resolution %g", modularity, resolution)
    return membership


def found_by(communities: Any, seed: int, resolution: float, handle: Any, graph: Any) -> tuple:
    """pylibcugraph's leiden from one seed."""
    return communities(handle, seed, graph, MAX_LEVEL, resolution, THETA, False)


def main(snakemake: Any) -> None:
    """Read the graph, write `leiden/{resolution}.parquet`."""
    device = devices.of(snakemake)
    resolution = snakemake.wildcards.resolution
    graph = read_graph(snakemake.input.neighbors)
    membership = leiden(graph, float(resolution), snakemake.params.n_iterations, snakemake.config["seed"], device)
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    write_clusters(membership, f"leiden_{resolution}", obs_names, snakemake.output.leiden)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
