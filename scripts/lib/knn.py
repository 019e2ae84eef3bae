"""The k nearest neighbours of points among themselves: exact for few points, by NN-descent for many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout

import numpy as np

from .stage import LogLines

EXACT_MAX = 50_000  # points up to which comparing all pairs is quicker than compiling and running NN-descent
BLOCK = 8192  # points whose neighbours are found at a time
MIN_WIDTH = 30  # neighbours that NN-descent refines: of fewer, too many are missed
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
    n = len(X)
    others = k - 1 if include_self else k
    if exact or (exact is None and n <= EXACT_MAX):
        indices, distances = np.empty((n, others), np.int32), np.empty((n, others), np.float32)
        for rows, *found in exact_blocks(X, others, metric, n_jobs):
            indices[rows], distances[rows] = found
    else:
        indices, distances = _nn_descent(X, others, metric, seed, n_jobs)
    if include_self:
        indices = np.column_stack([np.arange(n, dtype=np.int32), indices])
        distances = np.column_stack([np.zeros(n, np.float32), distances])
    return indices, distances


def exact_blocks(
    X: np.ndarray, k: int, metric: str = "euclidean", n_jobs: int = 1
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The k nearest other points of `BLOCK` points at a time: for what needs no table of them all.

    Yields
    ------
    The points' positions, and their neighbours' indices (int32) and distances (float32), each block x k. Parameters
    and errors: see `nearest`.
    """
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    points, metric, angular = _prepared(X, k, metric)
    with threadpool_limits(n_jobs):
        search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", metric=metric).fit(points)
        for start in range(0, len(points), BLOCK):
            rows = slice(start, min(start + BLOCK, len(points)))
            distances, indices = search.kneighbors(points[rows])
            yield rows, *_without_self(indices, distances, np.arange(rows.start, rows.stop), angular)


def _nn_descent(X: np.ndarray, k: int, metric: str, seed: int, n_jobs: int) -> tuple[np.ndarray, np.ndarray]:
    from pynndescent import NNDescent

    points, metric, angular = _prepared(X, k, metric)
    width = min(max(k + 1, MIN_WIDTH), len(points))
    with redirect_stdout(LogLines()):
        index = NNDescent(points, metric=metric, n_neighbors=width, random_state=seed, n_jobs=n_jobs, verbose=True)
    indices, distances = (found[:, : k + 1] for found in index.neighbor_graph)
    return _without_self(indices, distances, np.arange(len(points)), angular)


def _prepared(X: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, str, bool]:
    """The points, the metric that finds their neighbours, and whether its distances become |a - b|^2 / 2."""
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is not one of {', '.join(METRICS)}")
    if not 0 < k < len(X):
        raise ValueError(f"{len(X)} points have no {k} other neighbours each")
    points = np.ascontiguousarray(X, np.float32)
    if metric in ("euclidean", "manhattan"):
        return points, metric, False
    if metric == "correlation":
        points = points - points.mean(1, keepdims=True)
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(norms > 0, norms, 1), "euclidean", True


def _without_self(
    indices: np.ndarray, distances: np.ndarray, rows: np.ndarray, angular: bool
) -> tuple[np.ndarray, np.ndarray]:
    """All but the point itself, or but the farthest where it is not among them (hidden by its duplicates)."""
    itself = indices == rows[:, None]
    itself[~itself.any(1), -1] = True
    shape = len(rows), indices.shape[1] - 1
    distances = distances[~itself].reshape(shape).astype(np.float32)
    return indices[~itself].reshape(shape).astype(np.int32), distances**2 / 2 if angular else distances
