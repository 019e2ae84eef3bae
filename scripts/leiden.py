"""Compute Leiden clusters: connected communities of the fuzzy graph with the largest modularity.

Source: Traag, Waltman & van Eck 2019; igraph's community_leiden, as scanpy.tl.leiden(flavor="igraph") calls it, and on
the GPU cuGraph's leiden, as rapids_singlecell.tl.leiden calls it. Both maximise the same modularity, the sum over the
communities of w / W - resolution * (d / 2W)^2, with w the weight within, d the sum of degrees, W the total weight.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import numpy as np
from lib.methods.clusters import by_leiden, by_louvain, cugraph_communities, graph_needs, to_igraph, write_clusters
from lib.methods.fuzzy import read_graph
from lib.methods.tolerances import Tolerance
from lib.report import clusters as told_clusters
from lib.report.parts import Finished, Methods, Part
from lib.report.words import listed
from lib.run import device as devices
from lib.run import stage
from lib.run.resources import Job, Need
from lib.store.files import read_table

STARTS = 2  # runs of Leiden on the GPU
MAX_REFINED = 50_000  # up to this number of cells igraph's Leiden refines cuGraph's communities, in a second or two

# How far results may lie from repetitions (`trust_clusters`)
TOLERANCES = {
    "quality": Tolerance(0.95, "of the best modularity; a sample's own clusters reach more", True),
}


def leiden(connectivities: Any, resolution: float, n_iterations: int, seed: int, device: devices.Device) -> np.ndarray:
    """The community of each cell; equal seeds give equal communities, except on a GPU (`scripts/README.md`).

    On the GPU the best of several runs of cuGraph is taken. Up to `MAX_REFINED` cells Louvain's run may be the best,
    and igraph's Leiden refines it: cuGraph goes through the levels only once, and ends with slightly less modularity.

    Parameters
    ----------
    connectivities
        cells x cells, symmetric and sparse, without a diagonal.
    resolution
        Of the modularity: higher values give more and smaller communities.
    n_iterations
        Rounds of igraph, each through all levels; -1: until nothing changes.
    """
    start = None
    if device.is_gpu:
        refined = connectivities.shape[0] <= MAX_REFINED
        goes = [by_leiden(resolution, seed + start) for start in range(STARTS)]
        goes += [by_louvain(resolution)] if refined else []
        start, modularity = cugraph_communities(connectivities, goes, resolution, seed, device)
        if not refined:
            stage.log.info("modularity %.4f at resolution %g", modularity, resolution)
            return start
    graph, weights = to_igraph(connectivities, seed)
    found = graph.community_leiden(
        objective_function="modularity",
        weights=weights.tolist(),
        resolution=resolution,
        n_iterations=n_iterations,
        initial_membership=None if start is None else start.tolist(),
    )
    stage.log.info("modularity %.4f at resolution %g", found.quality, resolution)
    return np.array(found.membership)


def needs(job: Job) -> Need:
    """The graph, and igraph's or cuGraph's copies of it."""
    n_iterations = job.config["leiden"]["n_iterations"]
    seconds = 5 + 1e-6 * job.edges * (n_iterations if n_iterations > 0 else 20)
    refined = 95 * job.edges * (job.n_kept <= MAX_REFINED)
    return graph_needs(job, seconds, refined)


def tells(run: Finished) -> Iterator[Part]:
    """The clusters to look at, and how they were found."""
    yield from told_clusters.told(run, "leiden")
    package = run.package("igraph", "leiden", "pylibcugraph")
    if values := listed(run.config["leiden"]["resolutions"], 9):  # none: it ran for the names of cell types alone
        yield Methods(f"Clusters were found by Leiden ({package}) at a resolution of {values}.", ["leiden"])


def main(snakemake: Any) -> None:
    """Read the graph, write `leiden/{resolution}.parquet`."""
    device = devices.of(snakemake)
    resolution = snakemake.wildcards.resolution
    n_iterations, seed = snakemake.params.n_iterations, snakemake.params.seed
    graph = read_graph(snakemake.input.neighbors)
    membership = leiden(graph, float(resolution), n_iterations, seed, device)
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    params = {"resolution": float(resolution), "random_state": seed, "n_iterations": n_iterations}
    write_clusters(membership, f"leiden_{resolution}", obs_names, snakemake.output.leiden, **params)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
