"""Nearest neighbours on the GPU: candidates are found, and their distances are computed again, exactly.

Points are compared by |a|^2 + |b|^2 - 2ab, which rounds away the differences of near points. So a few candidates more
than wanted are found; their distances are summed up in double precision from the points themselves, and they are
ranked by distance and, among equals, by index. That also makes the result the same in every run.

cuVS compares all pairs of few points. Many are shared out onto lists by k-means (`of_lists`): the neighbours that a
point has in near lists bound the distance within which all its neighbours lie, and the points of all lists that come so
near are compared with this bound. So nothing is sorted but candidates, and far lists are left out. The host waits for
nothing from one list to the next, as other jobs on the card would let it wait each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import cupy
import numpy as np

EXTRA = 8  # candidates beyond those wanted
ELEMENTS = 1 << 22  # candidates that are ranked at a time: some 0.1 GB
FEW = 400_000  # points up to which cuVS compares all pairs
NEAR, PROBES = 32, 64  # lists in which neighbours are found first; in which all are found if not exactly
LEAST = 4  # times k + 1: the fewest points of these lists
ROWS, PAIRS = 2048, 1 << 26  # points, and pairs of points, that are compared at a time: 0.3 GB
MOST = 0.5  # of the points; of more, all are compared
WIDTH = 4  # times k + 1 + EXTRA: points within a bound; where there are more, cuVS compares all
GAPS = {"euclidean": ("sum += gap * gap;", "sqrt(sum)"), "manhattan": ("sum += fabs(gap);", "sum")}
_BLOCK = 256  # threads
_WITHIN = cupy.RawKernel(
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
# One block per row: the bits of its value of rank k, from 0, eight at a time; negative values are rounded zeros
_OF_RANK = cupy.RawKernel(
    """
extern "C" __global__
void somersault_of_rank(const float* distances, int n, int k, float* found) {
    const float* line = distances + (long long)blockIdx.x * n;
    __shared__ int counts[256];
    __shared__ unsigned int bits;
    if (!threadIdx.x) bits = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        counts[threadIdx.x] = 0;
        __syncthreads();
        unsigned int known = shift == 24 ? 0 : ~0u << (shift + 8), chosen = bits;
        for (int at = threadIdx.x; at < n; at += blockDim.x) {
            unsigned int value = __float_as_uint(fmaxf(line[at], 0.0f));
            if ((value & known) == chosen) atomicAdd(counts + (value >> shift & 255), 1);
        }
        __syncthreads();
        if (!threadIdx.x) {
            int digit = 0;
            for (; k >= counts[digit]; ++digit) k -= counts[digit];
            bits = chosen | (unsigned int)digit << shift;
        }
        __syncthreads();
    }
    if (!threadIdx.x) found[blockIdx.x] = __uint_as_float(bits);
}
""",
    "somersault_of_rank",
)
# One block per row: the key of each candidate is its distance, then its index; its rank is the number of smaller keys
_RANKED = """
extern "C" __global__
void somersault_ranked(const float* points, long long n_points, int dims, const long long* rows,
                       const long long* candidates, int width, int k, unsigned long long* keys, int* indices,
                       float* distances) {
    long long row = rows[blockIdx.x], first = (long long)blockIdx.x * width;
    keys += first;
    for (int j = threadIdx.x; j < width; j += blockDim.x) {
        long long other = candidates[first + j];
        unsigned int distance = 0x7f800000u;  // infinity; bits of floats that are not negative sort as the floats do
        if (other < 0 || other >= n_points) other = row;
        if (other != row) {
            double sum = 0;
            for (int d = 0; d < dims; ++d) {
                double gap = (double)points[row * dims + d] - (double)points[other * dims + d];
                STEP
            }
            distance = __float_as_uint((float)(DISTANCE));
        }
        keys[j] = (unsigned long long)distance << 32 | (unsigned int)other;
    }
    __syncthreads();
    for (int j = threadIdx.x; j < width; j += blockDim.x) {
        unsigned long long key = keys[j];
        int rank = 0;
        for (int i = 0; i < width; ++i) rank += keys[i] < key || (keys[i] == key && i < j);
        if (rank >= k) continue;
        indices[(long long)blockIdx.x * k + rank] = (int)(key & 0xffffffffu);
        distances[(long long)blockIdx.x * k + rank] = __uint_as_float((unsigned int)(key >> 32));
    }
}
"""


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
    The points' positions, and their neighbours' indices (int32) and distances (float32), each block x k. Points may
    come twice: what comes last is right.
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

    The parameters are those of `neighbor_blocks`. Candidates are -1 where there are fewer. Rows with more than `WIDTH`
    times as many come once more at the end, with the right ones.
    """
    from scipy.spatial.distance import cdist

    points = centred(points)
    labels, centres = lists(points)
    order = cupy.argsort(labels)
    points, labels = points[order], labels[order]
    n, ends = len(points), np.cumsum([0, *np.bincount(cupy.asnumpy(labels), minlength=len(centres))])
    sizes, members = np.diff(ends), np.split(np.arange(n, dtype=np.int32), ends[1:-1])
    squares, ones = (points * points).sum(1, keepdims=True), cupy.ones((n, 1), np.float32)
    left, right = cupy.hstack([-2 * points, squares, ones]), cupy.hstack([points, ones, squares])
    lengths = cupy.linalg.norm(points - centres[labels], axis=1)
    gaps, most = cdist(*2 * [cupy.asnumpy(centres)]), WIDTH * (k + 1 + EXTRA)
    needed, bounds = [], cupy.empty(n, np.float32)
    for own, near in enumerate(np.argsort(gaps, axis=1)):
        enough = int(np.searchsorted(np.cumsum(sizes[near]), min(LEAST * (k + 1), n))) + 1
        needed.append(near[: max(NEAR if exact else PROBES, enough)])
        if sizes[own]:
            columns = right[cupy.asarray(np.concatenate([members[i] for i in needed[own]]))]
            for rows in _pieces(ends[own], ends[own + 1], len(columns)):
                distances = left[rows] @ columns.T
                arguments = distances, np.int32(len(columns)), np.int32(min(k, len(columns) - 1)), bounds[rows]
                _OF_RANK((len(distances),), (_BLOCK,), arguments)
    # Of d^2 = |a|^2 + |b|^2 - 2ab, for b no farther than the bound, each of d + 4 additions may round by 2^-24
    margin = np.float32(2 * (points.shape[1] + 4) * 2.0**-24)
    bounds += margin * (2 * cupy.sqrt(squares[:, 0]) + cupy.sqrt(bounds)) ** 2
    if exact:
        reaches, radii = (
            np.array([part.max(initial=-np.inf) for part in np.split(cupy.asnumpy(values), ends[1:-1])])
            for values in (cupy.sqrt(bounds) + lengths, lengths)
        )
        needed = [np.flatnonzero(gaps[own] - radii <= (1 + 1e-5) * reach) for own, reach in enumerate(reaches)]
    crowded = cupy.zeros(n, bool)
    for own, near in enumerate(needed):
        if not sizes[own]:
            continue
        of_all = sizes[near].sum() > MOST * n
        others = order if of_all else order[(some := cupy.asarray(np.concatenate([members[i] for i in near])))]
        columns = right if of_all else right[some]
        for rows in _pieces(ends[own], ends[own + 1], ROWS):
            found, counts = within(left[rows], columns, bounds[rows], most)
            crowded[rows] = counts > most
            candidates = others[found]
            candidates[found < 0] = -1
            yield order[rows], candidates
    if len(again := cupy.flatnonzero(crowded)):
        find, width = all_pairs(points, "euclidean"), min(k + 1 + EXTRA, n)
        for part in _pieces(0, len(again), width):
            yield order[again[part]], order[find(again[part], width)]


def _pieces(start: int, stop: int, across: int) -> list[slice]:
    """Consecutive rows from start to stop, of which each has at most `PAIRS` pairs with `across` others."""
    step = max(1, min(ROWS, PAIRS // across))
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def within(left: Any, right: Any, bounds: Any, width: int) -> tuple[Any, Any]:
    """Which squared distances, the products of the rows of `left` and of `right`, are at most the bounds of `left`.

    Returns
    -------
    Rows of `right`, int32, rows of `left` x at most `width`, in no order, -1 where there are fewer; and their numbers.
    """
    n = len(left)
    counts, found = cupy.zeros(n, np.int32), cupy.full((n, width), -1, np.int32)
    size = PAIRS // n
    for first in range(0, len(right), size):
        distances = left @ right[first : first + size].T
        columns = distances.shape[1]
        grid = min(-(-columns // 1024), 256), n
        arguments = distances, bounds, np.int32(columns), np.int32(first), np.int32(width), counts, found
        _WITHIN(grid, (_BLOCK,), arguments)
    return found, counts


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

    points = points if metric == "manhattan" else centred(points)  # the index only refers to them
    index = brute_force.build(points, metric="cityblock" if metric == "manhattan" else "sqeuclidean")
    return lambda rows, width: cupy.asarray(brute_force.search(index, points[rows], width)[1])


def centred(points: Any) -> Any:
    """The points about their mean, float32: the smaller they are, the less their squares round."""
    return points - points.mean(0, dtype=np.float64).astype(np.float32)


def ranked(points: Any, rows: Any, candidates: Any, k: int, metric: str) -> tuple[Any, Any]:
    """The k nearest of each row's candidates, the row's own point left out: indices and distances, the nearest first.

    Parameters
    ----------
    rows
        Which points, int64.
    candidates
        len(rows) x more than k, int64; numbers that are no point's (none found) come last.
    """
    (n, width), dims = candidates.shape, points.shape[1]
    indices, distances = cupy.empty((n, k), np.int32), cupy.empty((n, k), np.float32)
    keys, candidates = cupy.empty((n, width), np.uint64), cupy.ascontiguousarray(candidates, np.int64)
    given = points, np.int64(len(points)), np.int32(dims), rows, candidates, np.int32(width), np.int32(k)
    if n:
        _ranked(metric)((n,), (_BLOCK,), (*given, keys, indices, distances))
    return indices, distances


@cache
def _ranked(metric: str) -> Any:
    step, distance = GAPS[metric]
    return cupy.RawKernel(_RANKED.replace("STEP", step).replace("DISTANCE", distance), "somersault_ranked")
