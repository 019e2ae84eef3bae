"""Harmony 2 on the arrays of either module: the GPU's Harmony. On the CPU harmonypy is the faster one.

Sources: Korsunsky et al. 2019 (Harmony); harmonypy 2.1.0 (Harmony 2: ridge penalties estimated per cluster, centroids
from the correction, batches that are hardly in a cluster left out of it). What differs from harmonypy: k-means starts
from k-means++ on a sample of the cells, the cells' random order is another, and sums are rounded otherwise.

The cells lie sorted by their combination of batches: the correction works on contiguous rows. Sums per batch are
products with one-hot matrices of few cells at a time, without atomics: equal seeds give equal results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, combinations, pairwise
from types import ModuleType
from typing import Any

import numpy as np

from . import stage
from .device import Device
from .errors import UserError

# harmonypy's, where they have a name there
ALPHA = 0.2  # the estimated penalty: this share of the cells expected in the cluster
BLOCK_SIZE = 0.05  # share of the cells that are reassigned together
BATCH_PROP_CUTOFF = 1e-5  # a cluster corrects the batches of which it holds more than this share
EPSILON_HARMONY = 1e-2  # converged when the objective falls by less than this share
MAX_ITER_KMEANS = 4  # rounds of reassignment between two corrections
LLOYD_STEPS = 10
SMALLEST_PIVOT = 1e-10  # of the largest; below it the ridge system is singular

SEEDING_CELLS = 20_000  # k-means++ draws its centroids from so many cells
TILE = 512  # so many cells are summed in float32, and the sums of tiles in float64
TINY = float(np.finfo(np.float32).tiny)
PIECE = 2**23  # most elements of a temporary array: 32 MiB of float32


@dataclass(frozen=True)
class Batches:
    """The batches of cells that lie sorted by their combination of batches; the key with most batches comes first.

    The batches of all keys, numbered through, are called levels.

    Attributes
    ----------
    codes
        keys x cells, int32, on the device: the batch within its key.
    combinations
        combinations x keys, int, on the host: the combinations of batches that occur.
    bounds
        combinations + 1, int, on the host: where the cells of each combination begin, and the last end.
    xp
        The array module.
    """

    codes: Any
    combinations: np.ndarray
    bounds: np.ndarray
    xp: ModuleType

    @classmethod
    def sort(cls, codes: np.ndarray, xp: ModuleType) -> tuple[Batches, np.ndarray]:
        """The batches of sorted cells, and the order that sorts them, for the cells' codes (cells x keys)."""
        codes = codes[:, np.argsort(-codes.max(axis=0), kind="stable")]
        order = np.lexsort(codes.T)
        codes = codes[order]
        begins = np.append(True, (codes[1:] != codes[:-1]).any(axis=1))
        bounds = np.append(np.flatnonzero(begins), len(codes))
        device_codes = xp.asarray(np.ascontiguousarray(codes.T, dtype=np.int32))
        return cls(device_codes, codes[begins], bounds, xp), order

    @cached_property
    def sizes(self) -> list[int]:
        """Levels of each key."""
        return [int(last) + 1 for last in self.combinations.max(axis=0)]

    @cached_property
    def keys(self) -> list[slice]:
        """Where the levels of each key lie among all."""
        return [slice(end - size, end) for end, size in zip(accumulate(self.sizes), self.sizes, strict=True)]

    @cached_property
    def n_cells(self) -> Any:
        """Cells of each level: levels x 1, float64."""
        cells = self.xp.asarray(np.diff(self.bounds)[:, None].astype(np.float64))
        return self.sums(self.xp.asarray(self.combinations.T), cells)

    def sums(self, codes: Any, values: Any) -> Any:
        """The sum of the rows of `values` (n x q) per level, for `codes` (keys x n): levels x q, float64."""
        parts = [_sums(code, values, size, self.xp) for code, size in zip(codes, self.sizes, strict=True)]
        return self.xp.concatenate(parts)

    def expected(self, observed: Any) -> Any:
        """E of the paper from O: the cells of each level and cluster, were clusters independent of batches."""
        return observed[self.keys[0]].sum(axis=0) * (self.n_cells / int(self.bounds[-1]))


def harmonize(
    X: np.ndarray,
    codes: np.ndarray,
    theta: float,
    sigma: float,
    lamb: float | None,
    nclust: int,
    max_iter_harmony: int,
    seed: int,
    device: Device,
) -> np.ndarray:
    """The components, corrected for the batches.

    Device memory: 2 x cells x components and cells x clusters in float32, 16 bytes a cell to order them, and some
    0.2 GB; 1,000,000 cells of 50 components in 100 clusters take 1.0 GB.

    Parameters
    ----------
    X
        cells x components, float32.
    codes
        cells x keys, int: the cell's batch under each key; under a key the numbers from 0 to the largest are all used.
    theta
        Weight of the reward for clusters that mix the batches; 0: none.
    sigma
        Width of the soft clusters.
    lamb
        Ridge penalty of every batch; None: ALPHA of the cells expected, for each cluster and batch.
    nclust
        Clusters, at most as many as cells.
    max_iter_harmony
        Most rounds of clustering and correction.
    seed
        Equal seeds give equal results.

    Returns
    -------
    cells x components, float32.

    Raises
    ------
    UserError
        If `lamb` is so small that the correction is not determined.
    """
    xp, rng = device.xp, np.random.default_rng(seed)
    batches, order = Batches.sort(codes, xp)
    host = np.asarray(X, dtype=np.float32)[order]
    Z = xp.asarray(host)
    # The unit vectors of the corrected cells; between correction and clustering, the corrected cells themselves
    Z_corr = Z.copy()
    _scale_to_unit_length(Z_corr, xp)
    Y = _lloyd(Z_corr, xp.asarray(_seeds(host, nclust, rng)), xp)
    R = xp.empty((len(X), nclust), dtype=xp.float32)
    observed = _assign_all(R, Z_corr, Y, sigma, batches)
    objective = _objective(R, Z_corr, Y, observed, theta, sigma, batches)
    for iteration in range(max_iter_harmony):
        if iteration:
            _scale_to_unit_length(Z_corr, xp)
            observed = _assign_all(R, Z_corr, Y, sigma, batches)
        for _ in range(MAX_ITER_KMEANS):
            shuffled = xp.argsort(xp.asarray(rng.random(len(X), dtype=np.float32)))
            observed = _reassign(R, observed, shuffled, Z_corr, Y, theta, sigma, batches)
        before, objective = objective, _objective(R, Z_corr, Y, observed, theta, sigma, batches)
        Y = _correct(Z_corr, Z, R, Y, lamb, batches)
        stage.log.info("iteration %d: objective %.6g", iteration + 1, objective)
        if 0 <= before - objective <= EPSILON_HARMONY * abs(before):
            stage.log.info("converged")
            break
    else:
        stage.log.info("stopped before convergence, after max_iter_harmony iterations")
    corrected = np.empty_like(host)
    corrected[order] = device.to_host(Z_corr)
    return corrected


def _pieces(start: int, stop: int, width: int) -> Iterator[slice]:
    """Consecutive rows of a table as wide as `width`, whole tiles of at most PIECE elements."""
    step = max(1, PIECE // width // TILE) * TILE
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _sums(codes: Any, values: Any, n_groups: int, xp: ModuleType) -> Any:
    """The sum of the rows of `values` (n x q) per group, for `codes` (n): n_groups x q, float64."""
    groups = xp.arange(n_groups, dtype=codes.dtype)[:, None]
    n, q = values.shape
    whole = n // TILE * TILE
    total = xp.zeros((n_groups, q), dtype=xp.float64)
    if whole:
        one_hot = (codes[:whole].reshape(-1, 1, TILE) == groups).astype(values.dtype)
        total += xp.matmul(one_hot, values[:whole].reshape(-1, TILE, q)).sum(axis=0, dtype=xp.float64)
    if whole < n:
        total += (codes[whole:] == groups).astype(values.dtype) @ values[whole:]
    return total


def _cross(R: Any, Z: Any, xp: ModuleType) -> Any:
    """`R.T @ Z` and, in a last column, the sums of R's columns: clusters x (components + 1), float64."""
    n, n_clusters = R.shape
    total = xp.zeros((n_clusters, Z.shape[1] + 1), dtype=xp.float64)
    for rows in _pieces(0, n, n_clusters):
        r, z = R[rows], Z[rows]
        whole = len(r) // TILE * TILE
        if whole:
            tiles = r[:whole].reshape(-1, TILE, n_clusters).transpose(0, 2, 1)
            total[:, :-1] += xp.matmul(tiles, z[:whole].reshape(-1, TILE, z.shape[1])).sum(axis=0, dtype=xp.float64)
        if whole < len(r):
            total[:, :-1] += r[whole:].T @ z[whole:]
        total[:, -1] += r.sum(axis=0, dtype=xp.float64)
    return total


def _scale_to_unit_length(X: Any, xp: ModuleType) -> None:
    """Scale each row to length 1, in place; rows of zeros stay."""
    for rows in _pieces(0, *X.shape):
        x = X[rows]
        x /= xp.maximum(xp.sqrt((x * x).sum(axis=1, keepdims=True)), TINY)


def _seeds(X: np.ndarray, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ centroids among a sample of the cells' unit vectors: n_clusters x components."""
    sample = X[rng.choice(len(X), min(len(X), max(SEEDING_CELLS, n_clusters)), replace=False)]
    _scale_to_unit_length(sample, np)
    chosen = [0]
    nearest = np.full(len(sample), np.inf, dtype=np.float32)
    while len(chosen) < n_clusters:
        nearest = np.minimum(nearest, np.maximum(0, 2 - 2 * (sample @ sample[chosen[-1]])))
        nearest[chosen[-1]] = 0
        share = np.cumsum(nearest, dtype=np.float64)
        # Where every cell is as a centroid is, any cell will do
        at = np.searchsorted(share, rng.random() * share[-1], side="right") if share[-1] else rng.integers(len(sample))
        chosen.append(min(int(at), len(sample) - 1))
    return sample[chosen]


def _lloyd(X: Any, Y: Any, xp: ModuleType) -> Any:
    """LLOYD_STEPS of k-means on the cells (unit vectors): centroids of unit length. An empty cluster stays."""
    clusters = xp.arange(len(Y))[:, None]
    for _ in range(LLOYD_STEPS):
        sums = xp.zeros(Y.shape, dtype=xp.float64)
        sizes = xp.zeros((len(Y), 1), dtype=xp.float64)
        half = 0.5 * (Y * Y).sum(axis=1)
        for rows in _pieces(0, len(X), len(Y)):
            nearest = (X[rows] @ Y.T - half).argmax(axis=1)
            sums += _sums(nearest, X[rows], len(Y), xp)
            sizes += (nearest == clusters).sum(axis=1, keepdims=True)
        Y = xp.where(sizes > 0, sums / xp.maximum(sizes, 1), Y).astype(xp.float32)
    _scale_to_unit_length(Y, xp)
    return Y


def _soft(X: Any, Y: Any, sigma: float) -> Any:
    """-d / sigma of each cell and centroid, d = 2 (1 - cosine): cells x clusters."""
    logits = X @ Y.T
    logits -= 1
    logits *= 2 / sigma
    return logits


def _softmax(logits: Any, xp: ModuleType) -> Any:
    """The softmax of each row, in place."""
    logits -= logits.max(axis=1, keepdims=True)
    xp.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def _assign_all(R: Any, X: Any, Y: Any, sigma: float, batches: Batches) -> Any:
    """Set R to the soft clusters without regard to batches; returns its sums per level: levels x clusters."""
    observed = 0
    for rows in _pieces(0, len(X), max(len(Y), *batches.sizes)):
        R[rows] = _softmax(_soft(X[rows], Y, sigma), batches.xp)
        observed = observed + batches.sums(batches.codes[:, rows], R[rows])
    return observed


def _reassign(
    R: Any, observed: Any, shuffled: Any, X: Any, Y: Any, theta: float, sigma: float, batches: Batches
) -> Any:
    """Set R block by block to the soft clusters that mix the batches; returns its sums per level.

    A block's cells are assigned by what all other cells leave: R ~ exp(-d / sigma) ((2 E + 1) / (O + E + 1))^theta,
    with the last factor for each of the cell's batches.
    """
    xp, n = batches.xp, len(X)
    n_blocks = min(n, round(1 / BLOCK_SIZE))
    bounds = [n * i // n_blocks for i in range(n_blocks + 1)]
    for start, stop in pairwise(bounds):
        pieces = [shuffled[rows] for rows in _pieces(start, stop, max(len(Y), *batches.sizes))]
        for cells in pieces:
            observed = observed - batches.sums(batches.codes[:, cells], R[cells])
        expected = batches.expected(observed)
        reward = (theta * (xp.log(2 * expected + 1) - xp.log(observed + expected + 1))).astype(xp.float32)
        for cells in pieces:
            codes = batches.codes[:, cells]
            logits = _soft(X[cells], Y, sigma)
            for key, code in zip(batches.keys, codes, strict=True):
                logits += reward[key][code]
            R[cells] = _softmax(logits, xp)
            observed = observed + batches.sums(codes, logits)
    return observed


def _objective(R: Any, X: Any, Y: Any, observed: Any, theta: float, sigma: float, batches: Batches) -> float:
    """Harmony's objective: distances, entropy of the clusters, and their dependence on the batches; per 2000 cells."""
    xp = batches.xp
    total = xp.zeros((), dtype=xp.float64)
    for rows in _pieces(0, len(X), len(Y)):
        r = R[rows]
        log = xp.log(xp.maximum(r, TINY))
        log -= _soft(X[rows], Y, sigma)
        log *= r
        total += log.sum(dtype=xp.float64)
    expected = batches.expected(observed)
    total += theta * (observed * xp.log((observed + expected + 1) / (2 * expected + 1))).sum()
    return float(sigma * total) * 2000 / len(X)


def _correct(Z_corr: Any, Z: Any, R: Any, Y: Any, lamb: float | None, batches: Batches) -> Any:
    """Set Z_corr to Z less each cluster's shift of the cell's batches, weighted by R; returns the centroids."""
    xp, cells = batches.xp, list(zip(batches.bounds[:-1].tolist(), batches.bounds[1:].tolist(), strict=True))
    sums = xp.stack([_cross(R[start:stop], Z[start:stop], xp) for start, stop in cells])
    shifts, Y = _ridge(sums, Y, lamb, batches)
    for levels, (start, stop) in zip(batches.combinations.tolist(), cells, strict=True):
        shift = sum(shifts[key][level] for key, level in zip(batches.keys, levels, strict=True))
        for rows in _pieces(start, stop, Z.shape[1]):
            Z_corr[rows] = Z[rows] - R[rows] @ shift
    _scale_to_unit_length(Y, xp)
    return Y


def _ridge(sums: Any, Y: Any, lamb: float | None, batches: Batches) -> tuple[Any, Any]:
    """Each cluster's linear model of the components: an intercept, its centroid, and a shift for each batch.

    The levels of the first key share no cells: they are a diagonal block D of the normal equations, coupled by C to the
    dense block A of the intercept and the other keys' levels, and are eliminated first.

    Parameters
    ----------
    sums
        combinations x clusters x (components + 1), float64: the sums of R Z and, last, of R over the cells.
    Y
        clusters x components: the centroids so far, kept by clusters that correct no batch.

    Returns
    -------
    The shifts, levels x clusters x components, 0 for batches left out, and the centroids; float32.
    """
    xp, n_clusters = batches.xp, sums.shape[1]
    codes = xp.asarray(batches.combinations.T)
    totals = batches.sums(codes, sums.reshape(len(sums), -1)).reshape(-1, *sums.shape[1:])
    mass = totals[:, :, -1]
    kept = mass / batches.n_cells > BATCH_PROP_CUTOFF
    for key in batches.keys:
        kept[key] &= kept[key].sum(axis=0) > 1
    # What is left out is an equation of its own, with 0 on the right
    penalty = ALPHA * batches.expected(mass) if lamb is None else lamb
    diagonal = xp.where(kept, mass + penalty, 1.0).T
    totals = (totals * kept[:, :, None]).transpose(1, 0, 2)
    # A cell counts in the intercept, once, if any of its batches is kept
    counted = sum(kept[key][code] for key, code in zip(batches.keys, codes, strict=True)) > 0
    intercept = (sums * counted[:, :, None]).sum(axis=0)
    active = kept.any(axis=0)

    m = batches.sizes[0]
    A = xp.zeros((n_clusters, 1 + len(mass) - m, 1 + len(mass) - m), dtype=xp.float64)
    A[:, 0, 0] = xp.where(active, intercept[:, -1], 1.0)
    A[:, 0, 1:] = A[:, 1:, 0] = totals[:, m:, -1]
    dense = xp.arange(1, A.shape[1])
    if len(dense):
        A[:, dense, dense] = diagonal[:, m:]
    C = xp.zeros((n_clusters, A.shape[1], m), dtype=xp.float64)
    C[:, 0] = totals[:, :m, -1]
    _overlaps(A, C, sums[:, :, -1], kept, batches)

    D = diagonal[:, :m]
    scaled = C / D[:, None, :]
    right, right_D = xp.concatenate([intercept[:, None], totals[:, m:]], axis=1)[:, :, :-1], totals[:, :m, :-1]
    smallest = SMALLEST_PIVOT * A.diagonal(axis1=1, axis2=2).max(axis=1)
    A -= xp.matmul(scaled, C.transpose(0, 2, 1))
    if not bool((A[:, 0, 0] > smallest).all()):
        raise UserError(f"harmony: lamb: {lamb} is too small, the correction is not determined. Raise it, or set null.")
    W = xp.linalg.solve(A, right - xp.matmul(scaled, right_D))
    W_D = (right_D - xp.matmul(C.transpose(0, 2, 1), W)) / D[:, :, None]
    shifts = xp.concatenate([W_D, W[:, 1:]], axis=1).transpose(1, 0, 2)
    return shifts.astype(xp.float32), xp.where(active[:, None], W[:, 0], Y).astype(xp.float32)


def _overlaps(A: Any, C: Any, mass: Any, kept: Any, batches: Batches) -> None:
    """Write the cells that two kept batches share into A and C; `mass` is combinations x clusters."""
    xp, m = batches.xp, batches.sizes[0]
    for a, b in combinations(range(len(batches.keys)), 2):
        pairs, pair = np.unique(batches.combinations[:, [a, b]], axis=0, return_inverse=True)
        i, j = (xp.asarray(pairs[:, column] + batches.keys[key].start) for column, key in enumerate((a, b)))
        shared = (_sums(xp.asarray(pair.reshape(-1)), mass, len(pairs), xp) * (kept[i] & kept[j])).T
        if a == 0:
            C[:, 1 + j - m, i] = shared
        else:
            A[:, 1 + i - m, 1 + j - m] = shared
            A[:, 1 + j - m, 1 + i - m] = shared
