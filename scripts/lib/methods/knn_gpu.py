"""Nearest neighbours on the GPU: cuVS finds candidates, and their distances are computed again, exactly.

cuVS compares points by |a|^2 + |b|^2 - 2ab, which rounds away the differences of near points. So it is asked for a few
candidates more than wanted; their distances are summed up in double precision from the points themselves, and they are
ranked by distance and, among equals, by index. That also makes the result the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from math import isqrt
from typing import Any

import cupy
import numpy as np

EXTRA = 8  # candidates beyond those wanted
ELEMENTS = 1 << 22  # candidates that are ranked at a time: some 0.2 GB
PROBES = 64  # lists of the inverted file that are searched for a point
GAPS = {"euclidean": ("sum += gap * gap;", "sqrt(sum)"), "manhattan": ("sum += fabs(gap);", "sum")}


def neighbor_blocks(points: Any, k: int, metric: str, exact: bool) -> Iterator[tuple[slice, Any, Any]]:
    """The k nearest other points of a block of points at a time.

    Parameters
    ----------
    points
        points x dimensions, float32, C order, on the device.
    metric
        euclidean or manhattan.
    exact
        Compare all pairs, or look into the `PROBES` nearest lists of an inverted file only (euclidean).

    Yields
    ------
    The points' positions, and their neighbours' indices (int32) and distances (float32), each block x k.
    """
    find = (all_pairs if exact else inverted_file)(points, metric)
    width = min(k + 1 + EXTRA, len(points))
    size = max(ELEMENTS // width, 1024)
    for start in range(0, len(points), size):
        rows = slice(start, min(start + size, len(points)))
        yield rows, *ranked(points, cupy.arange(rows.start, rows.stop), find(rows, width), k, metric)


def nearest_of(points: Any, rows: np.ndarray, k: int, metric: str) -> tuple[Any, Any]:
    """The k nearest other points of some points, all pairs compared: indices (int32) and distances (float32)."""
    find, width = all_pairs(points, metric), min(k + 1 + EXTRA, len(points))
    size = max(ELEMENTS // width, 1024)
    parts = [cupy.asarray(rows[start : start + size]) for start in range(0, len(rows), size)]
    found = [ranked(points, part, find(part, width), k, metric) for part in parts]
    return tuple(cupy.concatenate(arrays) for arrays in zip(*found, strict=True))


def recall(points: Any, indices: Any, metric: str, sample: np.ndarray) -> float:
    """The fraction of the sampled points' nearest neighbours, all pairs compared, that are among those found."""
    true, _ = nearest_of(points, sample, indices.shape[1], metric)
    return float((true[:, :, None] == indices[cupy.asarray(sample)][:, None, :]).any(2).mean())


def all_pairs(points: Any, metric: str) -> Callable[[Any, int], Any]:
    """A function from (rows, width) to the rows' `width` nearest points, by comparing each with all (cuVS)."""
    from cuvs.neighbors import brute_force

    if metric == "manhattan":
        index, queries = brute_force.build(points, metric="cityblock"), points
    else:
        queries = centred(points)
        index = brute_force.build(queries, metric="sqeuclidean")
    return lambda rows, width: cupy.asarray(brute_force.search(index, queries[rows], width)[1])


def inverted_file(points: Any, metric: str) -> Callable[[Any, int], Any]:
    """As `all_pairs`, by comparing with the points of the nearest lists of an inverted file (cuVS's IVF-Flat).

    The points are shared out by k-means onto sqrt(points) lists.
    """
    from cuvs.neighbors import ivf_flat

    if metric != "euclidean":
        raise ValueError(f"an inverted file has no metric {metric!r}")
    queries = centred(points)
    lists = isqrt(len(points))
    index = ivf_flat.build(ivf_flat.IndexParams(n_lists=lists, metric="sqeuclidean"), queries)
    search = ivf_flat.SearchParams(n_probes=min(PROBES, lists))
    return lambda rows, width: cupy.asarray(ivf_flat.search(search, index, queries[rows], width)[1])


def centred(points: Any) -> Any:
    """The points about their mean, float32: the smaller they are, the less their squares round."""
    return points - points.mean(0, dtype=np.float64).astype(np.float32)


def ranked(points: Any, rows: Any, candidates: Any, k: int, metric: str) -> tuple[Any, Any]:
    """The k nearest of each row's candidates, the row's own point left out: indices and distances, the nearest first.

    Parameters
    ----------
    rows
        Which points.
    candidates
        len(rows) x more than k, int64; numbers that are no point's (none found) come last.
    """
    rows = rows[:, None].astype(np.int64)
    found = (candidates >= 0) & (candidates < len(points))
    candidates = cupy.where(found, candidates, rows)
    distances = distance_kernel(metric)(points, points.shape[1], rows, candidates)
    distances[candidates == rows] = np.inf
    # Bits of floats that are not negative sort as the floats do
    keys = (distances.view(np.uint32).astype(np.uint64) << np.uint64(32)) | candidates.astype(np.uint64)
    keys.sort(axis=1)
    keys = keys[:, :k]
    distances = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int32), distances


@cache
def distance_kernel(metric: str) -> Any:
    """(points, dimensions, a, b) to the distances between points a and points b: float32, summed in double."""
    step, distance = GAPS[metric]
    return cupy.ElementwiseKernel(
        "raw float32 points, int32 dims, int64 a, int64 b",
        "float32 distance",
        f"""
        double sum = 0;
        for (int d = 0; d < dims; ++d) {{
            double gap = (double)points[a * dims + d] - (double)points[b * dims + d];
            {step}
        }}
        distance = (float)({distance});
        """,
        f"somersault_{metric}",
    )
