"""k-means clusters of the cells, in the space in which their neighbours were found.

Source: Arthur & Vassilvitskii 2007 (k-means++); scikit-learn's KMeans, the best of ten starts.
"""

from typing import Any

import numpy as np
from lib import stage
from lib.clusters import write_clusters
from lib.errors import UserError
from lib.files import read_table
from lib.representation import representation

STARTS = 10


def kmeans(X: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Per cell its cluster, int32.

    Raises
    ------
    UserError
        If there are fewer cells than clusters.
    """
    from sklearn.cluster import KMeans

    if n_clusters > len(X):
        raise UserError(f"kmeans: n_clusters is {n_clusters}, but only {len(X)} cells are left. Lower it.")
    found = KMeans(n_clusters, n_init=STARTS, random_state=seed).fit(X)
    stage.log.info("inertia %.6g after %d iterations", found.inertia_, found.n_iter_)
    return found.labels_


def main(snakemake: Any) -> None:
    """Read the representation, write `kmeans/{n_clusters}.parquet`."""
    params, n_clusters = snakemake.params, snakemake.wildcards.n_clusters
    _, X = representation(snakemake.input.pca, snakemake.input.harmony, params.use_rep, params.n_pcs)
    membership = kmeans(X, int(n_clusters), snakemake.config["seed"])
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    write_clusters(membership, f"kmeans_{n_clusters}", obs_names, snakemake.output.kmeans)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
