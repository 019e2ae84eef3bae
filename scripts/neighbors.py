"""Find the nearest neighbours of every cell, once for UMAP, t-SNE and the clusterings, and compute their fuzzy graph.

n_neighbors counts the cell itself, as in scanpy.pp.neighbors: the graph uses the n_neighbors - 1 nearest other cells.
As many are kept as t-SNE uses with its usual perplexity, 3 * 30 (van der Maaten 2014), whatever the config's is: so a
change of t-SNE leaves the graph and all that is made of it. With a larger perplexity t-SNE searches again.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

from lib.methods.fuzzy import fuzzy_graph
from lib.methods.knn import EXACT_MAX, LISTS, nearest_neighbors
from lib.methods.representation import representation
from lib.methods.tolerances import Tolerance
from lib.report.parts import Finished, Methods, Part
from lib.run import device as devices
from lib.run import stage
from lib.run.progress import timed
from lib.run.resources import CUPY, KEPT, MB, Job, Need
from lib.store.files import write_arrays

# How far results may lie from those of a sample of cells (`trust_stages`)
TOLERANCES = {
    "recall": Tolerance(0.98, "an inverted file finds some 99.8 %", True),
    "distances": Tolerance(1e-3, "float32"),
    "connectivities": Tolerance(1e-3, "float32, and a bandwidth by bisection"),
}


def needs(job: Job) -> Need:
    """The neighbours of every cell, and the graph."""
    found = 8 * job.k * job.n_kept
    graph = 24 * job.edges
    compared = job.n_kept if job.n_kept <= EXACT_MAX["cpu"] else LISTS * job.n_kept**0.5  # with each cell
    return Need(
        mem=job.process + 50 * MB + 2 * found + graph,
        seconds=10 + 8e-9 * job.n_kept * compared,
        disk=found + 10 * job.edges,
        vram=1000 * MB + 2 * found + 24 * job.n_pcs * job.n_kept,
        gpu_mem=job.process + CUPY + 2 * found + graph,
        reads=8 * job.n_comps * job.n_kept,
    )


def tells(run: Finished) -> Iterator[Part]:
    """How the graph was made."""
    options = run.config["neighbors"]
    n_pcs = min(options["n_pcs"], run.config["pca"]["n_comps"])
    yield Methods(
        f"A graph of {options['n_neighbors']} nearest neighbours ({options['metric']} distance, {n_pcs} dimensions) "
        "was computed with the weights of UMAP.",
        ["umap"],
    )


def main(snakemake: Any) -> None:
    """Read the representation, write `neighbors.h5`."""
    device = devices.of(snakemake)
    config = snakemake.params.neighbors
    n_neighbors, metric = config["n_neighbors"], config["metric"]
    use_rep, X = representation(snakemake.input.pca, snakemake.input.harmony, config["use_rep"], config["n_pcs"])
    if X.shape[1] < (config["n_pcs"] or 0):
        stage.notice("neighbors: n_pcs: %d instead of %d: there are no more components", X.shape[1], config["n_pcs"])
    if n_neighbors > len(X):
        stage.notice("neighbors: n_neighbors: %d instead of %d: there are no more cells", len(X), n_neighbors)
        n_neighbors = len(X)
    k = max(n_neighbors - 1, min(KEPT, len(X) - 1))
    stage.log.info("%d neighbours of %d cells in %d dimensions of %s, %s", k, len(X), X.shape[1], use_rep, metric)
    with timed("neighbours"):
        indices, distances = nearest_neighbors(X, k, metric, snakemake.params.seed, snakemake.threads, device=device)
    with timed("fuzzy graph"):
        graph = fuzzy_graph(indices[:, : n_neighbors - 1], distances[:, : n_neighbors - 1], device)
    arrays = {
        "indices": indices,
        "distances": distances,
        **{f"connectivities/{name}": getattr(graph, name) for name in ("data", "indices", "indptr")},
    }
    arrays = {name: device.to_host(array) for name, array in arrays.items()}
    attrs = {"n_neighbors": n_neighbors, "n_pcs": X.shape[1], "metric": metric, "use_rep": use_rep}
    slots = {name: f"obsp/{name}" for name in ("connectivities", "distances")}
    uns = {f"{name}_key": name for name in slots} | {"params": {"method": "umap", **attrs}}
    write_arrays(snakemake.output.neighbors, arrays, snakemake.input.pca, slots, {"neighbors": uns}, **attrs)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
