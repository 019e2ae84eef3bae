"""Louvain clusters: communities of the fuzzy graph of large modularity, merged level by level.

Source: Blondel et al. 2008; igraph's community_multilevel, as scanpy.tl.louvain(flavor="igraph") calls it, here with
the resolution that scanpy leaves at 1.
"""

from typing import Any

import numpy as np
from lib import stage
from lib.clusters import to_igraph, write_clusters
from lib.files import read_table
from lib.fuzzy import read_graph


def louvain(connectivities: Any, resolution: float, seed: int) -> np.ndarray:
    """Per cell its community; equal seeds give equal communities.

    Parameters
    ----------
    connectivities
        cells x cells, symmetric and sparse.
    resolution
        Of the modularity: higher finds more and smaller communities.
    """
    graph, weights = to_igraph(connectivities, seed)
    return np.array(graph.community_multilevel(weights=weights.tolist(), resolution=resolution).membership)


def main(snakemake: Any) -> None:
    """Read the graph, write `louvain/{resolution}.parquet`."""
    resolution = snakemake.wildcards.resolution
    membership = louvain(read_graph(snakemake.input.neighbors), float(resolution), snakemake.config["seed"])
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    write_clusters(membership, f"louvain_{resolution}", obs_names, snakemake.output.louvain)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
