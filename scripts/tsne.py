"""Compute the t-SNE: the cells in two dimensions, where each cell keeps its neighbours.

Source: van der Maaten & Hinton 2008; openTSNE (Policar, Strazar & Zupan 2024), and on the GPU cuML, with the neighbours
of the stage `neighbors`.
"""

from lib.start import run

from collections.abc import Iterator
from math import log2
from typing import Any

import numpy as np
import pandas as pd
from lib.methods.knn import nearest_neighbors
from lib.methods.representation import representation
from lib.methods.tolerances import Tolerance
from lib.report import embeddings
from lib.report.parts import Finished, Methods, Part
from lib.run import device as devices
from lib.run import stage
from lib.run.progress import Pace, timed
from lib.run.resources import CUML, MB, PYTHON, Job, Need
from lib.store.files import read_arrays, read_attrs, read_table, write_table

EXAGGERATED = 250  # the first iterations, of n_iter, that run with early_exaggeration
STEPS = 25  # iterations between two checks of the clock
MIN_RATE = 200  # least learning rate of cuML if it follows from the number of cells: 50 in scikit-learn's units
# How far results may lie from those of a sample of cells (`trust_stages`)
TOLERANCES = {
    "trustworthiness": Tolerance(0.75, "two dimensions; at random 0.5", True),
    "preserved neighbours": Tolerance(0.2, "two dimensions; at random 0.05", True),
    "neighbours with another seed": Tolerance(0.2, "two dimensions; at random 0.05", True),
}


def embed(
    indices: np.ndarray,
    distances: np.ndarray,
    X: np.ndarray,
    config: dict[str, Any],
    seed: int,
    n_jobs: int,
    device: devices.Device,
) -> np.ndarray:
    """The t-SNE embedding, started from the first two components of X; equal seeds give equal embeddings.

    Parameters
    ----------
    indices, distances
        Each cell's neighbours without itself, the nearest first, cells x k. With fewer than 3 * perplexity, the
        perplexity is lowered to k / 3.
    X
        cells x components; the first two are the initial layout.
    config
        perplexity, early_exaggeration, learning_rate and n_iter, as defined by scikit-learn and scanpy; learning_rate
        None: from the number of cells (Belkina et al. 2019).

    Returns
    -------
    cells x 2, float32.
    """
    k = min(int(3 * config["perplexity"]), indices.shape[1])
    perplexity = min(config["perplexity"], k / 3)
    stage.log.info("t-SNE of %d cells, %d neighbours each, perplexity %g", len(X), k, perplexity)
    config = config | {"perplexity": perplexity}
    if device.is_gpu:
        embedding, divergence = _cuml(indices[:, :k], distances[:, :k], X[:, :2], config, seed, device)
    else:
        embedding, divergence = _opentsne(indices[:, :k], distances[:, :k], X[:, :2], config, seed, n_jobs)
    stage.log.info("Kullback-Leibler divergence %.4f", divergence)
    return embedding


def enough_neighbors(
    indices: np.ndarray,
    distances: np.ndarray,
    X: np.ndarray,
    metric: str,
    perplexity: float,
    seed: int,
    n_jobs: int,
    device: devices.Device,
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours that t-SNE needs, 3 * perplexity: those kept with the graph, or, of more, found anew."""
    wanted, most = int(3 * perplexity), len(X) - 1
    if wanted > most:
        stage.notice("tsne: perplexity: %d neighbours instead of %d: there are %d cells only", most, wanted, most + 1)
    k = min(wanted, most)
    if k <= indices.shape[1]:
        return indices, distances
    stage.log.info("%d neighbours are kept with the graph, and perplexity %g needs %d", indices.shape[1], perplexity, k)
    with timed("neighbours"):
        found = nearest_neighbors(X, k, metric, seed, n_jobs, device=device)
    return device.to_host(found[0]), device.to_host(found[1])


def _opentsne(
    indices: np.ndarray, distances: np.ndarray, start: np.ndarray, config: dict[str, Any], seed: int, n_jobs: int
) -> tuple[np.ndarray, float]:
    """The embedding by openTSNE: repulsion by Barnes-Hut trees below 10,000 cells, else by interpolation and FFT."""
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.initialization import jitter, rescale
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    neighbors = PrecomputedNeighbors(indices, distances)
    affinities = PerplexityBasedNN(knn_index=neighbors, perplexity=config["perplexity"], n_jobs=n_jobs)
    start = jitter(rescale(start.astype(np.float64)), random_state=seed)
    # scikit-learn's gradient is four times openTSNE's
    learning_rate = "auto" if config["learning_rate"] is None else 4 * config["learning_rate"]
    embedding = TSNEEmbedding(start, affinities, learning_rate=learning_rate, n_jobs=n_jobs, random_state=seed)
    exaggerated = min(EXAGGERATED, config["n_iter"])
    pace = Pace("layout", config["n_iter"], "iterations")
    said = {"callbacks": lambda *_: pace.step(STEPS), "callbacks_every_iters": STEPS}
    embedding.optimize(exaggerated, exaggeration=config["early_exaggeration"], momentum=0.5, inplace=True, **said)
    embedding.optimize(config["n_iter"] - exaggerated, momentum=0.8, inplace=True, **said)
    return np.asarray(embedding, np.float32), embedding.kl_divergence


def _cuml(
    indices: np.ndarray,
    distances: np.ndarray,
    start: np.ndarray,
    config: dict[str, Any],
    seed: int,
    device: devices.Device,
) -> tuple[np.ndarray, float]:
    """The embedding by cuML: repulsion by interpolation and FFT, cuML's only deterministic method.

    cuML's gradient equals openTSNE's, a quarter of scikit-learn's, and cuML doubles the learning rate after the
    exaggerated iterations. The learning rate of the config, or from the number of cells (at least 50 in scikit-learn's
    units), is that of the exaggerated iterations.
    """
    from cuml.manifold import TSNE

    xp, n = device.xp, len(start)
    asked = config["learning_rate"]
    learning_rate = max(n / config["early_exaggeration"], MIN_RATE) if asked is None else 4 * asked
    stage.log.info("learning rate %g, then %g (scikit-learn's)", learning_rate / 4, learning_rate / 2)
    # cuML expects each cell as its own first neighbour and weighs it; at the largest distance it weighs least
    itself = xp.arange(n)[:, None]
    indices, distances = xp.asarray(indices), xp.asarray(distances)
    indices = xp.concatenate([itself, indices.astype(itself.dtype)], axis=1)
    distances = xp.concatenate([distances[:, -1:], distances], axis=1)
    model = TSNE(
        perplexity=config["perplexity"],
        n_neighbors=indices.shape[1],
        early_exaggeration=config["early_exaggeration"],
        exaggeration_iter=EXAGGERATED,
        max_iter=config["n_iter"],
        learning_rate=learning_rate,
        learning_rate_method=None,
        min_grad_norm=0.0,  # so that all iterations run
        init="pca",  # the PCA of two components is themselves, up to a rotation
        method="fft",
        random_state=seed,
        output_type="cupy",
    )
    with timed("layout"):
        embedding = model.fit_transform(xp.asarray(start, np.float32), knn_graph=(indices, distances))
    return device.to_host(embedding).astype(np.float32, order="C"), model.kl_divergence_


def needs(job: Job) -> Need:
    """The symmetric affinities of the neighbours; the neighbours themselves, if more are needed than are kept."""
    k = max(job.k, int(3 * job.config["tsne"]["perplexity"]))
    affinities = 52 * k * job.n_kept
    searched = (k > job.k) * 5e-7 * k * job.n_kept * log2(job.n_kept + 2)
    return Need(
        mem=PYTHON + 90 * MB + affinities,
        seconds=20 + 3e-6 * job.n_kept * job.config["tsne"]["n_iter"] + searched,
        disk=20 * job.n_kept,
        vram=300 * MB + 108 * k * job.n_kept,
        gpu_mem=job.process + CUML + 0.5 * affinities,
        reads=8 * (job.n_comps + job.k) * job.n_kept,
    )


def tells(run: Finished) -> Iterator[Part]:
    """The sentences of its figures."""
    yield from embeddings.numbers(run, "t-SNE")
    options = run.config["tsne"]
    rate = "cells / early exaggeration" if options["learning_rate"] is None else f"{options['learning_rate']:g}"
    yield Methods(
        f"A t-SNE ({run.package('opentsne', 'tsne', 'cuml')}) was computed with perplexity {options['perplexity']:g}, "
        f"early exaggeration {options['early_exaggeration']:g} and a learning rate of {rate}.",
        ["tsne", "tsne_rate"],
    )


def main(snakemake: Any) -> None:
    """Read the neighbours and the representation, write `tsne.parquet`."""
    device = devices.of(snakemake)
    made_with = read_attrs(snakemake.input.neighbors)
    _, X = representation(snakemake.input.pca, snakemake.input.harmony, made_with["use_rep"], made_with["n_pcs"])
    knn = read_arrays(snakemake.input.neighbors, "indices", "distances")
    seed, n_jobs, perplexity = snakemake.params.seed, snakemake.threads, snakemake.params.tsne["perplexity"]
    knn = enough_neighbors(*knn.values(), X, made_with["metric"], perplexity, seed, n_jobs, device)
    embedding = embed(*knn, X=X, config=snakemake.params.tsne, seed=seed, n_jobs=n_jobs, device=device)
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    table = pd.DataFrame(embedding, index=obs_names, columns=["tSNE1", "tSNE2"])
    uns = {"tsne": {"params": {key: value for key, value in snakemake.params.tsne.items() if key != "enabled"}}}
    write_table(table, snakemake.output.tsne, "cohort", "obsm/X_tsne", uns)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
