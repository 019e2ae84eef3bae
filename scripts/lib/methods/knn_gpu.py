"""Nearest neighbours on the GPU: candidates are found, and their distances are computed again, exactly.

Points are compared by |a|^2 + |b|^2 - 2ab, which rounds away the differences of near points. So a few candidates more
than wanted are found; their distances are summed up in double precision from the points themselves, and they are
ranked by distance and, among equals, by index. That also makes the result the same in every run.

cuVS compares all pairs of few points. Many are shared out onto lists by k-means (`of_lists`): the neighbours that a
point has in near lists bound the distance within which all its neighbours lie, and the points of all lists that come so
near are compared with this bound. So few distances are sorted, and far lists are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import cupy
import numpy as np
from cuvs.common import Resources
from cuvs.neighbors import brute_force

EXTRA = 8  # candidates beyond those wanted
ELEMENTS = 1 << 22  # candidates that are ranked at a time: some 0.2 GB
FEW = 400_000  # points up to which cuVS compares all pairs
NEAR, PROBES = 32, 64  # lists in which neighbours are found first; in which all are found if not exactly
LEAST = 4  # times k + 1: the fewest points of these lists
ROWS, COLUMNS = 2048, 1 << 18  # points that are compared with others at a time: at most
PAIRS = 1 << 26  # pairs that are compared at a time: 0.3 GB
WIDTH = 4  # times k + 1 + EXTRA: points within a bound; where there are more, cuVS compares all
GAPS = {"euclidean": ("sum += gap * gap;", "sqrt(sum)"), "manhattan": ("sum += fabs(gap);", "sum")}
WITHIN = cupy.RawKernel(
    """
extern "C" __global__
void somersault_within(const float* distances, const float* bounds, int n, int first, int width, int* counts,
                       int* found) {
    const float* line = distances + (long long)blockIdx.y * n;
    float bound = bounds[blockIdx.y];
    for (int at = blockIdx.x * blockDim.x + threadIdx.x; at < n; at += gridDim.x * blockDim.x) {
        if (line[at] > bound) continue;
        int place = atomicAdd(counts + blockIdx.y, 1);
        if (place < width) found[(long long)blockIdx.y * width + place] = first + at;
    }
}
""",
    "somersault_within",
)


def neighbor_blocks(
    points: Any, k: int, metric: str, exact: bool, lists: Callable[[Any], tuple[Any, Any]]
) -> Iterator[tuple[Any, Any, Any]]:
    """The k nearest other points of a block of points at a time.

    Parameters
    ----------
    points
        points x dimensions, float32, C order, on the device.
    metric
        euclidean or manhattan.
    exact
        Find all, or those in the `PROBES` nearest lists only (euclidean).
    lists
        A function that shares points out: the list of each point, and the lists' centres.

    Yields
    ------
    The points' positions, and their neighbours' indices (int32) and distances (float32), each block x k.
    """
    if metric == "euclidean" and (not exact or len(points) > FEW):
        for rows, candidates in of_lists(points, k, exact, lists):
            yield rows, *ranked(points, rows, candidates, k, metric)
        return
    find = all_pairs(points, metric)
    width = min(k + 1 + EXTRA, len(points))
    size = max(ELEMENTS // width, 1024)
    for start in range(0, len(points), size):
        rows = slice(start, min(start + size, len(points)))
        yield rows, *ranked(points, cupy.arange(rows.start, rows.stop), find(rows, width), k, metric)


def of_lists(points: Any, k: int, exact: bool, lists: Callable[[Any], tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Candidates for the k nearest other points, of some points of a list at a time: rows, and candidates of each.

    The parameters are those of `neighbor_blocks`. Candidates are -1 where there are fewer.
    """
    from scipy.spatial.distance import cdist

    points = centred(points)
    labels, centres = lists(points)
    order = cupy.argsort(labels)
    points, labels = points[order], labels[order]
    ends = np.cumsum([0, *np.bincount(labels.get(), minlength=len(centres))])
    lengths = cupy.linalg.norm(points - centres[labels], axis=1)
    radii = np.array([float(lengths[a:b].max()) if b > a else -np.inf for a, b in pairwise(ends)])
    gaps = cdist(centres.get(), centres.get())
    width, most = min(k + 1 + EXTRA, len(points)), WIDTH * (k + 1 + EXTRA)
    resources, every = Resources(), None  # the search among all points, if some rows need it
    for own, near in enumerate(np.argsort(gaps, axis=1)):
        sizes = np.cumsum(np.diff(ends)[near])
        enough = int(np.searchsorted(sizes, min(LEAST * (k + 1), len(points)))) + 1
        first = near[: max(NEAR if exact else PROBES, enough)]
        columns = of_these(first, labels, len(centres))
        for start in range(ends[own], ends[own + 1], ROWS):
            rows = slice(start, min(start + ROWS, ends[own + 1]))
            found, bounds = nearest_in(points, rows, columns, centres[own], k, resources)
            reach = float((cupy.sqrt(bounds) + lengths[rows]).max()) if exact else 0.0
            needed = np.flatnonzero(gaps[own] - radii <= (1 + 1e-5) * reach)
            if not exact or np.isin(needed, first).all():
                yield order[rows], order[found]
                continue
            others = of_these(needed, labels, len(centres))
            found, counts = within(points, rows, others, centres[own], bounds, most)
            candidates = cupy.where(found < 0, -1, order[others[found]])
            crowded = cupy.flatnonzero(counts > most)
            if len(crowded):
                every = every or all_pairs(points, "euclidean")
                candidates[crowded, :width] = order[every(rows.start + crowded, width)]
                candidates[crowded, width:] = -1
            yield order[rows], candidates


def of_these(lists: np.ndarray, labels: Any, n_lists: int) -> Any:
    """The positions of the points of some lists; `labels` tells each point's list."""
    return cupy.flatnonzero(cupy.asarray(np.isin(np.arange(n_lists), lists))[labels])


def nearest_in(points: Any, rows: slice, columns: Any, centre: Any, k: int, resources: Resources) -> tuple[Any, Any]:
    """The points nearest to those of the rows, and squares of distances within which each has k others.

    Parameters
    ----------
    columns
        The positions of the points to choose from.
    centre
        About which points are compared.
    """
    queries, others = points[rows] - centre, points[columns] - centre
    width = min(k + 1 + EXTRA, len(columns))
    distances, found = searched(others, "sqeuclidean", resources)(queries, width)
    bounds = distances[:, min(k, width - 1)]
    # Of d^2 = |a|^2 + |b|^2 - 2ab, for b no farther than the bound, each of d + 2 additions may round by 2^-24
    sizes = 2 * cupy.linalg.norm(queries, axis=1) + cupy.sqrt(cupy.maximum(bounds, 0))
    margin = 2 * (points.shape[1] + 4) * 2.0**-24
    return columns[found], cupy.maximum(bounds, 0) + np.float32(margin) * sizes**2


def within(points: Any, rows: slice, columns: Any, centre: Any, bounds: Any, width: int) -> tuple[Any, Any]:
    """The points whose squared distances to those of the rows are at most the rows' bounds.

    Returns
    -------
    Numbers of columns, int32, rows x at most `width`, in no order, -1 where there are fewer; and how many there are.
    """
    left = points[rows] - centre
    n, ones = len(left), cupy.ones
    left = cupy.hstack([-2 * left, (left**2).sum(1, keepdims=True), ones((n, 1), np.float32)])
    counts, found = cupy.zeros(n, np.int32), cupy.full((n, width), -1, np.int32)
    size = min(PAIRS // n, COLUMNS)
    for first in range(0, len(columns), size):
        right = points[columns[first : first + size]] - centre
        right = cupy.hstack([right, ones((len(right), 1), np.float32), (right**2).sum(1, keepdims=True)])
        distances = left @ right.T
        grid = min(-(-len(right) // 1024), 256), n
        arguments = distances, bounds, np.int32(len(right)), np.int32(first), np.int32(width), counts, found
        WITHIN(grid, (256,), arguments)
    return found[:, : int(counts.max().clip(1, width))], counts


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
    points, resources = points if metric == "manhattan" else centred(points), Resources()
    search = searched(points, "cityblock" if metric == "manhattan" else "sqeuclidean", resources)
    return lambda rows, width: search(points[rows], width)[1]


def searched(points: Any, metric: str, resources: Resources) -> Callable[[Any, int], tuple[Any, Any]]:
    """A function from (queries, width) to distances and indices of the nearest points; `resources` are cuVS's own."""
    index = brute_force.build(points, metric=metric, resources=resources)

    def search(queries: Any, width: int) -> tuple[Any, Any]:
        found = brute_force.search(index, queries, width, resources=resources)
        resources.sync()
        return cupy.asarray(found[0]), cupy.asarray(found[1])

    return search


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
