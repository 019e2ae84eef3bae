"""Compute the UMAP: a layout of the cells' fuzzy graph in two dimensions.

Source: McInnes, Healy & Melville 2018; umap-learn's `simplicial_set_embedding`, called as scanpy.tl.umap calls it, and
on the GPU cuML's, called as rapids_singlecell.tl.umap calls it.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from lib.methods.fuzzy import read_graph
from lib.methods.representation import representation
from lib.methods.tolerances import Tolerance
from lib.report import embeddings
from lib.report.parts import Finished, Methods, Part
from lib.run import device as devices
from lib.run import stage
from lib.run.imports import import_library
from lib.run.progress import LOG_EVERY, LogLines, timed
from lib.run.resources import CUML, MB, PYTHON, Job, Need
from lib.store.files import read_attrs, read_table, write_table

SMALL = 10_000  # up to this number of cells n_epochs null is 500 instead of 200, as in umap-learn
EIGENVECTORS = 3  # of the spectral positions; there must be more cells
PACE = "layout: {n_fmt} of {total_fmt} epochs, {rate_fmt}, {remaining} left"  # as tqdm's bar
# How far results may lie from those of a sample of cells (`trust_stages`)
TOLERANCES = {
    "trustworthiness": Tolerance(0.75, "two dimensions; at random 0.5", True),
    "preserved neighbours": Tolerance(0.2, "two dimensions; at random 0.05", True),
    "neighbours with another seed": Tolerance(0.2, "two dimensions; at random 0.05", True),
}


def embed(
    graph: Any, X: np.ndarray, metric: str, config: dict[str, Any], seed: int, device: devices.Device
) -> np.ndarray:
    """The layout of the graph; equal seeds give equal layouts.

    Parameters
    ----------
    graph
        cells x cells, symmetric CSR of memberships.
    X
        The representation behind the graph. It places the graph's connected components if there are several (on the
        GPU only the graph is used).
    metric
        The distance between rows of X.
    config
        min_dist, spread, n_epochs and init_pos, as scanpy.tl.umap names them.

    Returns
    -------
    cells x 2, float32.
    """
    n_epochs = epochs(config["n_epochs"], len(X))
    init_pos = config["init_pos"] if len(X) > EIGENVECTORS else "random"
    stage.log.info("%d epochs from %s positions", n_epochs, init_pos)
    lay_out = _cuml if device.is_gpu else _umap_learn
    return lay_out(graph, X, metric, config | {"n_epochs": n_epochs, "init_pos": init_pos}, seed, device)


def curve_of(min_dist: float, spread: float) -> dict[str, float]:
    """The a and b of 1 / (1 + a d^2b), UMAP's similarity at distance d (McInnes 2018), fitted as umap-learn does.

    Distances are in units of `spread`: in others the fit starts too far away, and may end at negative a and b.
    """
    from scipy.optimize import curve_fit

    distance, shortest = np.linspace(0, 3, 300), min_dist / spread
    wanted = np.where(distance < shortest, 1, np.exp(-(distance - shortest)))
    a, b = curve_fit(lambda d, a, b: 1 / (1 + a * d ** (2 * b)), distance, wanted)[0]
    return {"a": float(a / spread ** (2 * b)), "b": float(b)}


def epochs(n_epochs: int | None, n_obs: int) -> int:
    """The number of epochs of the layout; None is umap-learn's own choice."""
    return n_epochs or (500 if n_obs <= SMALL else 200)


def _umap_learn(
    graph: Any, X: np.ndarray, metric: str, config: dict[str, Any], seed: int, device: devices.Device
) -> np.ndarray:
    """The layout by umap-learn; a seeded layout uses one thread."""
    import_library("umap")  # this file has the same name
    from umap.umap_ import simplicial_set_embedding

    layout, _ = simplicial_set_embedding(
        data=X,
        graph=graph.copy(),  # umap-learn sets small memberships to zero in place
        n_components=2,
        initial_alpha=1.0,
        **curve_of(config["min_dist"], config["spread"]),
        gamma=1.0,
        negative_sample_rate=5,
        n_epochs=config["n_epochs"],
        init=config["init_pos"],
        random_state=np.random.RandomState(seed),
        metric=metric,
        metric_kwds={},
        densmap=False,
        densmap_kwds={},
        output_dens=False,
        tqdm_kwds={"file": LogLines(), "mininterval": LOG_EVERY, "bar_format": PACE, "disable": False},
    )
    return layout


def _cuml(
    graph: Any, X: np.ndarray, metric: str, config: dict[str, Any], seed: int, device: devices.Device
) -> np.ndarray:
    """The layout by cuML; with a seed it adds the forces in a fixed order, which is deterministic but slower."""
    from cuml.manifold.umap import simplicial_set_embedding

    xp = device.xp
    edges = device.sparse.csr_matrix(graph).tocoo()
    edges.has_canonical_format = True  # else cuML would sort them again
    with timed("layout"):
        layout = simplicial_set_embedding(
            data=xp.zeros((len(X), 1), np.float32),  # cuML uses only its number of rows
            graph=edges,
            n_components=2,
            initial_alpha=1.0,
            **curve_of(config["min_dist"], config["spread"]),
            gamma=1.0,
            negative_sample_rate=5,
            n_epochs=config["n_epochs"],
            init=config["init_pos"],
            random_state=seed,
        )
    return device.to_host(xp.asarray(layout))


def needs(job: Job) -> Need:
    """The graph in several orders, and the layout; on a CPU also Numba's compilation."""
    graph = 115 * job.edges
    seconds = 15 + 4e-6 * job.n_kept * epochs(job.config["umap"]["n_epochs"], job.n_kept)
    vram = 300 * MB + 54 * job.edges
    return Need(PYTHON + 190 * MB + graph, seconds, 20 * job.n_kept, vram, PYTHON + CUML + 0.5 * graph)


def tells(run: Finished) -> Iterator[Part]:
    """The sentences of its figures."""
    yield from embeddings.numbers(run, "UMAP")
    options = run.config["umap"]
    how = f"`min_dist` {options['min_dist']:g}, `spread` {options['spread']:g}"
    yield Methods(
        f"The graph was laid out in two dimensions by UMAP ({run.package('umap-learn', 'umap', 'cuml')}; {how})."
    )


def main(snakemake: Any) -> None:
    """Read the graph and the representation, write `umap.parquet`."""
    device = devices.of(snakemake)
    made_with = read_attrs(snakemake.input.neighbors)
    _, X = representation(snakemake.input.pca, snakemake.input.harmony, made_with["use_rep"], made_with["n_pcs"])
    graph = read_graph(snakemake.input.neighbors)
    layout = embed(graph, X, made_with["metric"], snakemake.params.umap, snakemake.params.seed, device)
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    table = pd.DataFrame(layout, index=obs_names, columns=["UMAP1", "UMAP2"])
    curve = curve_of(snakemake.params.umap["min_dist"], snakemake.params.umap["spread"])
    uns = {"umap": {"params": curve | {"random_state": snakemake.params.seed}}}
    write_table(table, snakemake.output.umap, "cohort", "obsm/X_umap", uns)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
