"""Compute k-means clusters of the cells, in the same space as their neighbours.

Source: Arthur & Vassilvitskii 2007 (k-means++); KMeans of scikit-learn, on the GPU of cuVS, the best of ten starts.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import numpy as np
from lib.methods.clusters import write_clusters
from lib.methods.representation import representation
from lib.methods.tolerances import Tolerance
from lib.report import clusters as told_clusters
from lib.report.parts import Finished, Methods, Part
from lib.report.words import listed
from lib.run import device as devices
from lib.run import stage
from lib.run.resources import CUPY, MB, Job, Need
from lib.store.files import read_table

STARTS = 10
TOLERANCE = 1e-6  # cuVS stops if the relative gain of inertia is smaller

# How far results may lie from repetitions (`trust_clusters`)
TOLERANCES = {
    "quality": Tolerance(0.9, "of the best inertia, inverted: starts end in other optima", True),
}


def kmeans(X: np.ndarray, n_clusters: int, seed: int, device: devices.Device) -> np.ndarray:
    """The cluster of each cell, int32; at most as many clusters as cells."""
    if n_clusters > len(X):
        stage.notice("kmeans: n_clusters: %d instead of %d: there are no more cells", len(X), n_clusters)
        n_clusters = len(X)
    if device.is_gpu:
        labels, inertia, n_iter = _cuvs(X, n_clusters, seed, device)
    else:
        from sklearn.cluster import KMeans

        found = KMeans(n_clusters, n_init=STARTS, random_state=seed).fit(X)
        labels, inertia, n_iter = found.labels_, found.inertia_, found.n_iter_
    stage.log.info("inertia %.6g after %d iterations", inertia, n_iter)
    return labels


def _cuvs(X: np.ndarray, n_clusters: int, seed: int, device: devices.Device) -> tuple[np.ndarray, float, int]:
    """Labels, inertia and iterations of the best start."""
    from cuvs.cluster.kmeans import KMeansParams, fit, predict

    xp = device.xp
    X = xp.asarray(X, np.float32, order="C")
    # 0: greedy k-means++ as in scikit-learn; with oversampling it would be k-means||
    params = KMeansParams(n_clusters=n_clusters, n_init=STARTS, oversampling_factor=0.0, tol=TOLERANCE)
    # cuVS draws the same random numbers in every run, so the seed sets the order of the cells
    order = xp.asarray(np.random.default_rng(seed).permutation(len(X)))
    centroids, inertia, n_iter = fit(params, X[order])
    labels, _ = predict(params, X, xp.asarray(centroids))
    return device.to_host(xp.asarray(labels)), inertia, n_iter


def needs(job: Job) -> Need:
    """The components, and the cells' distances to the centres."""
    points = 4 * job.n_pcs * job.n_kept
    mem, gpu_mem = job.process + 75 * MB + 5 * points, job.process + CUPY + 5 * points
    seconds, vram = 10 + 2e-4 * job.n_kept, 300 * MB + 4 * points
    return Need(mem, seconds, 20 * job.n_kept, vram, gpu_mem, reads=8 * job.n_comps * job.n_kept)


def tells(run: Finished) -> Iterator[Part]:
    """The clusters to look at, and how they were found."""
    yield from told_clusters.told(run, "kmeans")
    values = listed(run.config["kmeans"]["n_clusters"], 9)
    yield Methods(f"k-means was run with k = {values}.")


def main(snakemake: Any) -> None:
    """Read the representation, write `kmeans/{n_clusters}.parquet`."""
    device = devices.of(snakemake)
    params, n_clusters = snakemake.params, snakemake.wildcards.n_clusters
    _, X = representation(snakemake.input.pca, snakemake.input.harmony, params.use_rep, params.n_pcs)
    membership = kmeans(X, int(n_clusters), snakemake.params.seed, device)
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    made_with = {"n_clusters": int(n_clusters), "random_state": params.seed}
    write_clusters(membership, f"kmeans_{n_clusters}", obs_names, snakemake.output.kmeans, **made_with)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
