"""The k nearest neighbours of points among themselves: exact for few points, by NN-descent for many."""

from __future__ import annotations

import numpy as np

EXACT_MAX = 20_000  # points up to which comparing all pairs is no slower than NN-descent and its compilation
METRICS = ("euclidean", "cosine", "manhattan", "correlation")


def nearest(
    X: np.ndarray,
    k: int,
    metric: str = "euclidean",
    seed: int = 0,
    n_jobs: int = 1,
    exact: bool | None = None,
    include_self: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """For each point its k nearest other points, the nearest first.

    Cosine and correlation distances are found as Euclidean ones between rows of unit length (of centred rows, for
    correlation): |a - b|^2 / 2 = 1 - cos(a, b).

    Parameters
    ----------
    X
        points x dimensions, float32.
    k
        Neighbours wanted, below the number of points.
    metric
        euclidean, cosine, manhattan or correlation.
    seed
        Of NN-descent: equal seeds give equal results.
    n_jobs
        Threads.
    exact
        Compare all pairs (scikit-learn), or search by NN-descent (pynndescent: Dong et al. 2011); None: all pairs up
        to `EXACT_MAX` points.
    include_self
        Count each point as the first of its own k neighbours, as scanpy and UMAP do.

    Returns
    -------
    Indices (int32) and distances (float32), each points x k.

    Raises
    ------
    ValueError
        If the metric is unknown or there are not enough points for k neighbours.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is not one of {', '.join(METRICS)}")
    n = len(X)
    others = k - 1 if include_self else k
    if not 0 < others < n:
        raise ValueError(f"{n} points have no {k} neighbours each")
    points = np.ascontiguousarray(X, np.float32)
    angular = metric in ("cosine", "correlation")
    if angular:
        points = _unit_rows(points, centred=metric == "correlation")
    search = _all_pairs if (n <= EXACT_MAX if exact is None else exact) else _nn_descent
    indices, distances = search(points, others, "euclidean" if angular else metric, seed, n_jobs)
    indices, distances = indices.astype(np.int32), distances.astype(np.float32)
    if angular:
        distances = distances**2 / 2
    if include_self:
        indices = np.column_stack([np.arange(n, dtype=np.int32), indices])
        distances = np.column_stack([np.zeros(n, np.float32), distances])
    return indices, distances


def _unit_rows(points: np.ndarray, centred: bool) -> np.ndarray:
    if centred:
        points = points - points.mean(1, keepdims=True)
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(norms > 0, norms, 1)


def _all_pairs(points: np.ndarray, k: int, metric: str, seed: int, n_jobs: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    with threadpool_limits(n_jobs):
        found = NearestNeighbors(n_neighbors=k, algorithm="brute", metric=metric).fit(points)
        distances, indices = found.kneighbors()
    return indices, distances


def _nn_descent(points: np.ndarray, k: int, metric: str, seed: int, n_jobs: int) -> tuple[np.ndarray, np.ndarray]:
    from pynndescent import NNDescent

    # A wider graph than asked for: the first k of it are nearly all right
    width = min(max(k + 1, MIN_WIDTH), len(points))
    index = NNDescent(points, metric=metric, n_neighbors=width, random_state=seed, n_jobs=n_jobs)
    indices, distances = index.neighbor_graph
    return _without_self(indices, distances, k)


def _without_self(indices: np.ndarray, distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of each row's neighbours that are not the row itself."""
    other = indices != np.arange(len(indices))[:, None]
    first = np.argsort(~other, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(indices, first, 1), np.take_along_axis(distances, first, 1)


MIN_WIDTH = 30
