"""t-SNE: the cells in two dimensions, so that each one's neighbours stay its neighbours.

Source: van der Maaten & Hinton 2008; openTSNE (Policar, Strazar & Zupan 2024), on the neighbours already found.
"""

from typing import Any

import numpy as np
import pandas as pd
from lib import stage
from lib.files import read_arrays, read_attrs, read_table, write_table
from lib.representation import representation

EXAGGERATED = 250  # the first iterations, of n_iter, that run with early_exaggeration
STEPS = 25  # iterations between two looks at the clock


def embed(
    indices: np.ndarray, distances: np.ndarray, X: np.ndarray, config: dict[str, Any], seed: int, n_jobs: int
) -> np.ndarray:
    """The t-SNE embedding, started from the first two components of X.

    The repulsion is computed by Barnes-Hut trees below 10,000 cells, by interpolation and FFT from there on.

    Parameters
    ----------
    indices, distances
        Each cell's neighbours without itself, the nearest first, cells x k. With fewer than 3 * perplexity, the
        perplexity is lowered to k / 3.
    X
        cells x components: where the layout starts from.
    config
        perplexity, early_exaggeration, learning_rate and n_iter, in scikit-learn's and scanpy's meaning; learning_rate
        None: from the number of cells (Belkina et al. 2019).

    Returns
    -------
    cells x 2, float32.
    """
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.initialization import jitter, rescale
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    k = min(int(3 * config["perplexity"]), indices.shape[1])
    perplexity = min(config["perplexity"], k / 3)
    stage.log.info("t-SNE of %d cells, %d neighbours each, perplexity %g", len(X), k, perplexity)
    neighbors = PrecomputedNeighbors(indices[:, :k], distances[:, :k])
    affinities = PerplexityBasedNN(knn_index=neighbors, perplexity=perplexity, n_jobs=n_jobs)
    start = jitter(rescale(X[:, :2].astype(np.float64)), random_state=seed)
    # scikit-learn's gradient is four times openTSNE's
    learning_rate = "auto" if config["learning_rate"] is None else 4 * config["learning_rate"]
    embedding = TSNEEmbedding(start, affinities, learning_rate=learning_rate, n_jobs=n_jobs, random_state=seed)
    exaggerated = min(EXAGGERATED, config["n_iter"])
    pace = stage.Pace("layout", config["n_iter"], "iterations")
    said = {"callbacks": lambda *_: pace.step(STEPS), "callbacks_every_iters": STEPS}
    embedding.optimize(exaggerated, exaggeration=config["early_exaggeration"], momentum=0.5, inplace=True, **said)
    embedding.optimize(config["n_iter"] - exaggerated, momentum=0.8, inplace=True, **said)
    stage.log.info("Kullback-Leibler divergence %.4f", embedding.kl_divergence)
    return np.asarray(embedding, np.float32)


def main(snakemake: Any) -> None:
    """Read the neighbours and the representation, write `tsne.parquet`."""
    made_with = read_attrs(snakemake.input.neighbors)
    _, X = representation(snakemake.input.pca, snakemake.input.harmony, made_with["use_rep"], made_with["n_pcs"])
    knn = read_arrays(snakemake.input.neighbors, "indices", "distances")
    embedding = embed(**knn, X=X, config=snakemake.params.tsne, seed=snakemake.config["seed"], n_jobs=snakemake.threads)
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    write_table(pd.DataFrame(embedding, index=obs_names, columns=["tSNE1", "tSNE2"]), snakemake.output.tsne)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
