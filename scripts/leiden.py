"""Leiden clusters: communities of the fuzzy graph of largest modularity, all of them connected.

Source: Traag, Waltman & van Eck 2019; igraph's community_leiden, as scanpy.tl.leiden(flavor="igraph") calls it.
"""

from typing import Any

import numpy as np
from lib import stage
from lib.clusters import to_igraph, write_clusters
from lib.files import read_table
from lib.fuzzy import read_graph


def leiden(connectivities: Any, resolution: float, n_iterations: int, seed: int) -> np.ndarray:
    """Per cell its community; equal seeds give equal communities.

    Parameters
    ----------
    connectivities
        cells x cells, symmetric and sparse.
    resolution
        Of the modularity: higher finds more and smaller communities.
    n_iterations
        Rounds of refinement; -1: until nothing changes.
    """
    graph, weights = to_igraph(connectivities, seed)
    found = graph.community_leiden(
        objective_function="modularity", weights=weights.tolist(), resolution=resolution, n_iterations=n_iterations
    )
    stage.log.info("modularity %.4f at resolution %g", found.quality, resolution)
    return np.array(found.membership)


def main(snakemake: Any) -> None:
    """Read the graph, write `leiden/{resolution}.parquet`."""
    resolution = snakemake.wildcards.resolution
    graph = read_graph(snakemake.input.neighbors)
    membership = leiden(graph, float(resolution), snakemake.params.n_iterations, snakemake.config["seed"])
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    write_clusters(membership, f"leiden_{resolution}", obs_names, snakemake.output.leiden)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
