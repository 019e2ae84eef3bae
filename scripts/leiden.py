"""Leiden clusters: communities of the fuzzy graph of largest modularity, all of them connected.

Source: Traag, Waltman & van Eck 2019; igraph's community_leiden, as scanpy.tl.leiden(flavor="igraph") calls it, and on
the GPU cuGraph's leiden, as rapids_singlecell.tl.leiden calls it. Both maximise the same modularity, the sum over the
communities of w / W - resolution * (d / 2W)^2: w, the weight within; d, the sum of degrees; W, the weight in all.
"""

from typing import Any

import numpy as np
from lib import device as devices
from lib import stage
from lib.clusters import in_order, to_igraph, to_pylibcugraph, write_clusters
from lib.files import read_table
from lib.fuzzy import read_graph

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
        goes through the levels once, moving cells at each until the modularity stops growing.
    """
    if device.is_gpu:
        from pylibcugraph import leiden as communities

        handle, graph = to_pylibcugraph(connectivities, device)
        *found, modularity = communities(handle, seed, graph, MAX_LEVEL, resolution, THETA, False)
        membership = in_order(*found, device)
    else:
        graph, weights = to_igraph(connectivities, seed)
        found = graph.community_leiden(
            objective_function="modularity", weights=weights.tolist(), resolution=resolution, n_iterations=n_iterations
        )
        membership, modularity = np.array(found.membership), found.quality
    stage.log.info("modularity %.4f at resolution %g", modularity, resolution)
    return membership


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
