"""Compute Louvain clusters: communities of the fuzzy graph with large modularity, merged level by level.

Source: Blondel et al. 2008; igraph's community_multilevel, as scanpy.tl.louvain(flavor="igraph") calls it, but with the
resolution, which scanpy leaves at 1; on the GPU cuGraph's louvain. Both maximise the same modularity as `leiden`.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import numpy as np
from lib.methods.clusters import by_louvain, cugraph_communities, graph_needs, to_igraph, write_clusters
from lib.methods.fuzzy import read_graph
from lib.methods.tolerances import Tolerance
from lib.report import clusters as told_clusters
from lib.report.parts import Finished, Methods, Part
from lib.report.words import listed
from lib.run import device as devices
from lib.run import stage
from lib.run.resources import Job, Need
from lib.store.files import read_table

# How far results may lie from repetitions (`trust_clusters`)
TOLERANCES = {
    "quality": Tolerance(0.95, "of the best modularity; a sample's own clusters reach more", True),
}


def louvain(connectivities: Any, resolution: float, seed: int, device: devices.Device) -> np.ndarray:
    """The community of each cell; equal seeds give equal communities.

    Parameters
    ----------
    connectivities
        cells x cells, symmetric and sparse, without a diagonal.
    resolution
        Of the modularity: higher values give more and smaller communities.
    seed
        Of the order in which igraph visits the cells, or, on the GPU, cuGraph's communities.
    """
    if device.is_gpu:
        membership, modularity = cugraph_communities(connectivities, [by_louvain(resolution)], resolution, seed, device)
    else:
        graph, weights = to_igraph(connectivities, seed)
        weights = weights.tolist()
        membership = np.array(graph.community_multilevel(weights=weights, resolution=resolution).membership)
        modularity = graph.modularity(membership, weights=weights, resolution=resolution)
    stage.log.info("modularity %.4f at resolution %g", modularity, resolution)
    return membership


def needs(job: Job) -> Need:
    """The graph, and igraph's or cuGraph's copies of it."""
    return graph_needs(job, seconds=5 + 2e-6 * job.edges)


def tells(run: Finished) -> Iterator[Part]:
    """The clusters to look at, and how they were found."""
    yield from told_clusters.told(run, "louvain")
    values = listed(run.config["louvain"]["resolutions"], 9)
    yield Methods(f"Louvain clusters were computed at a resolution of {values}.", ["louvain"])


def main(snakemake: Any) -> None:
    """Read the graph, write `louvain/{resolution}.parquet`."""
    device = devices.of(snakemake)
    resolution = snakemake.wildcards.resolution
    graph = read_graph(snakemake.input.neighbors)
    params = {"resolution": float(resolution), "random_state": snakemake.params.seed}
    membership = louvain(graph, float(resolution), snakemake.params.seed, device)
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    write_clusters(membership, f"louvain_{resolution}", obs_names, snakemake.output.louvain, **params)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
