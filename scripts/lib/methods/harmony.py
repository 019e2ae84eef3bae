"""Harmony 2: soft clusters that mix the batches, and each cluster's shift of every batch, in turn.

Sources: Korsunsky et al. 2019 (Harmony); Harmony 2, as harmonypy 2.1 computes it (ridge penalties estimated for each
cluster, centroids from the correction, batches that are hardly in a cluster left out of it). Differences from it:
k-means starts elsewhere; the blocks of cells that are reassigned together are drawn once between two corrections, so
that their sums of each batch and cluster are known; sums are rounded otherwise.

The cells lie sorted by their combination of batches: the correction works on contiguous rows. Cells are computed in
pieces, by threads on a CPU; sums per batch are products with one-hot matrices, without atomics, and the sums of pieces
are added in order. So equal seeds give equal results on a kind of device, with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, combinations
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from lib.run import stage
from lib.run.device import Device
from lib.run.errors import UserError

# harmonypy's, where they have a name there
ALPHA = 0.2  # the estimated penalty: this share of the cells expected in the cluster
BLOCK_SIZE = 0.05  # share of the cells that are reassigned together
BATCH_PROP_CUTOFF = 1e-5  # a cluster corrects the batches of which it holds more than this share
EPSILON_HARMONY = 1e-2  # converged when the objective changes by no more than this share
MAX_ITER_KMEANS = 4  # rounds of reassignment between two corrections
SMALLEST_PIVOT = 1e-10  # of the largest; below it the ridge system is singular

KMEANS_CELLS = 256  # cells per cluster that k-means looks at, as in faiss
SEEDING_CELLS = 50  # cells per cluster that k-means++ draws its centroids from
LLOYD_STEPS = 10
TILE = 512  # so many cells are summed in float32, and the sums of tiles in float64
PIECE = {"cpu": 2**17, "gpu": 2**23}  # most elements of a temporary array: they fit a core's cache; 32 MiB
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class SortedBatches:
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
    def sort(cls, codes: np.ndarray, xp: ModuleType) -> tuple[SortedBatches, np.ndarray]:
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


@dataclass(frozen=True)
class SortedCells:
    """The cells on the device, sorted by their combination of batches.

    Attributes
    ----------
    Z
        cells x components, float32: as given.
    Z_corr
        The same, corrected; scaled to unit length while they are clustered.
    R
        cells x clusters, float32: the soft clusters.
    batches
        Their batches.
    map
        `map`, or that of a pool of threads, for functions of pieces.
    step
        Cells of a piece, whole tiles.
    """

    Z: Any
    Z_corr: Any
    R: Any
    batches: SortedBatches
    map: Callable
    step: int

    def pieces(self, start: int, stop: int) -> list[slice]:
        """Consecutive rows from start to stop."""
        return [slice(first, min(first + self.step, stop)) for first in range(start, stop, self.step)]


class Integrated(NamedTuple):
    """The components, corrected for the batches (cells x components, float32), and how the iteration ended.

    `change` is the relative change of the objective in the last of `rounds`; up to EPSILON_HARMONY it has converged.
    """

    X: np.ndarray
    rounds: int
    change: float


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
    n_jobs: int = 1,
) -> Integrated:
    """The components, corrected for the batches.

    Memory of the device: 2 x cells x components and cells x clusters in float32, 8 bytes a cell for the blocks, and on
    a GPU some 0.2 GB: 1,000,000 cells of 50 components in 100 clusters take 1.0 GB.

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
        Equal seeds give equal results on a kind of device, whatever `n_jobs`.
    device
        Where to compute.
    n_jobs
        Threads of the CPU.

    Raises
    ------
    UserError
        If `lamb` is so small that the correction is not determined.
    """
    xp, rng = device.xp, np.random.default_rng(seed)
    batches, order = SortedBatches.sort(codes, xp)
    host = np.asarray(X, dtype=np.float32)[order]
    Z, R = xp.asarray(host), xp.empty((len(X), nclust), dtype=xp.float32)
    step = max(1, PIECE[device.name] // max(nclust, Z.shape[1], *batches.sizes) // TILE) * TILE
    # Each thread limits its BLAS itself: one on OpenMP knows its limit by thread
    with threadpool_limits(1), ThreadPoolExecutor(n_jobs, initializer=threadpool_limits, initargs=(1,)) as threads:
        cells = SortedCells(Z, Z.copy(), R, batches, map if device.is_gpu or n_jobs == 1 else threads.map, step)
        Y, objective = _kmeans(cells, nclust, rng, device), None
        for iteration in range(max_iter_harmony):
            before, objective = _cluster(cells, Y, theta, sigma, rng, objective)
            Y = _correct(cells, Y, lamb)
            stage.log.info("iteration %d: objective %.6g, before %.6g", iteration + 1, objective, before)
            if abs(before - objective) <= EPSILON_HARMONY * abs(before):
                stage.log.info("converged")
                break
        else:
            stage.notice(
                "Harmony has not converged in %d iterations: in the last one its objective went from %.6g to %.6g, and "
                "a change of at most %g %% counts as converged. See in the figures whether the batches mix, and raise "
                "`harmony: max_iter_harmony`.",
                *(max_iter_harmony, before, objective, 100 * EPSILON_HARMONY),
            )
    # On a CPU the memory of Z, which is not needed any more
    host[order] = device.to_host(cells.Z_corr)
    return Integrated(host, iteration + 1, float(abs(before - objective) / max(abs(before), TINY)))


def _product(A: Any, B: Any, xp: ModuleType) -> Any:
    """`A.T @ B`, float64: of TILE rows in float32, and the sum of these products in float64."""
    if len(A) <= TILE:
        return (A.T @ B).astype(xp.float64)
    whole = len(A) // TILE * TILE
    tiles = A[:whole].reshape(-1, TILE, A.shape[1]).transpose(0, 2, 1)
    total = xp.matmul(tiles, B[:whole].reshape(-1, TILE, B.shape[1])).sum(axis=0, dtype=xp.float64)
    return total + _product(A[whole:], B[whole:], xp)


def _weighted_sums(A: Any, X: Any, xp: ModuleType) -> Any:
    """`A.T @ X` and, in a last column, the sums of A's columns; float64."""
    return xp.concatenate([_product(A, X, xp), A.sum(axis=0, dtype=xp.float64)[:, None]], axis=1)


def _one_hot(codes: Any, n_groups: int, dtype: Any, xp: ModuleType) -> Any:
    """Of each code a row with a 1 in its group: n x n_groups."""
    return (codes[:, None] == xp.arange(n_groups, dtype=codes.dtype)).astype(dtype)


def _sums(codes: Any, values: Any, n_groups: int, xp: ModuleType) -> Any:
    """The sum of the rows of `values` (n x q) per group, for `codes` (n): n_groups x q, float64."""
    return _product(_one_hot(codes, n_groups, values.dtype, xp), values, xp)


def _scale_to_unit_length(X: Any, xp: ModuleType) -> None:
    """Scale each row to length 1, in place; rows of zeros stay."""
    X /= xp.maximum(xp.sqrt((X * X).sum(axis=1, keepdims=True)), TINY)


def _kmeans(cells: SortedCells, n_clusters: int, rng: np.random.Generator, device: Device) -> Any:
    """Centroids of some of the cells' unit vectors, from k-means++: n_clusters x components, of unit length."""
    xp, n = device.xp, len(cells.Z)
    some = rng.choice(n, min(n, KMEANS_CELLS * n_clusters), replace=False)
    X = cells.Z[xp.asarray(some)]
    _scale_to_unit_length(X, xp)
    Y = xp.asarray(_seeds(device.to_host(X[: SEEDING_CELLS * n_clusters]), n_clusters, rng))
    for _ in range(LLOYD_STEPS):
        half = 0.5 * (Y * Y).sum(axis=1)

        def of_piece(rows: slice, Y: Any = Y, half: Any = half) -> Any:
            cluster = (X[rows] @ Y.T - half).argmax(axis=1)
            return _weighted_sums(_one_hot(cluster, n_clusters, X.dtype, xp), X[rows], xp)

        total = sum(cells.map(of_piece, cells.pieces(0, len(X))))
        # An empty cluster stays where it is
        Y = xp.where(total[:, -1:] > 0, total[:, :-1] / xp.maximum(total[:, -1:], 1), Y).astype(xp.float32)
    _scale_to_unit_length(Y, xp)
    return Y


def _seeds(X: np.ndarray, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: rows of X (unit vectors) that lie far from each other: n_clusters x components."""
    chosen = [0]
    distances = np.full(len(X), np.inf, dtype=np.float32)
    while len(chosen) < n_clusters:
        distances = np.minimum(distances, np.maximum(0, 2 - 2 * (X @ X[chosen[-1]])))
        distances[chosen[-1]] = 0
        share = np.cumsum(distances, dtype=np.float64)
        # Where every cell is as a centroid is, any cell will do
        at = np.searchsorted(share, rng.random() * share[-1], side="right") if share[-1] else rng.integers(len(X))
        chosen.append(min(int(at), len(X) - 1))
    return X[chosen]


def _assign(cells: SortedCells, block: list[Any], Y: Any, sigma: float, reward: Any, keep: bool) -> tuple[Any, Any]:
    """A block's soft clusters, R ~ exp(reward - d / sigma) with d = 2 (1 - cosine).

    Parameters
    ----------
    block
        The cells of each piece.
    reward
        levels x clusters, float64.
    keep
        Whether to write them into `cells.R`.

    Returns
    -------
    Their sums per level, levels x clusters, and the sum over the cells of R (log R + d / sigma); float64.
    """
    batches, xp = cells.batches, cells.batches.xp
    scaled = (Y * (2 / sigma)).T
    rewards = [reward[key].astype(xp.float32) for key in batches.keys]

    def of_piece(rows: Any) -> tuple[Any, Any]:
        codes = batches.codes[:, rows]
        R = cells.Z_corr[rows] @ scaled
        for levels, code in zip(rewards, codes, strict=True):
            R += levels[code]
        top = R.max(axis=1, keepdims=True)
        R -= top
        xp.exp(R, out=R)
        total = R.sum(axis=1, keepdims=True)
        R /= total
        if keep:
            cells.R[rows] = R
        return batches.sums(codes, R), (2 / sigma - top - xp.log(total)).sum(dtype=xp.float64)

    sums, energy = (sum(parts) for parts in zip(*cells.map(of_piece, block), strict=True))
    return sums, energy + (sums * reward).sum()


def _cluster(
    cells: SortedCells, Y: Any, theta: float, sigma: float, rng: np.random.Generator, before: float | None
) -> tuple[float, float]:
    """Set R to soft clusters that mix the batches, in MAX_ITER_KMEANS rounds over random blocks of cells.

    A block's cells are assigned by the other cells' clusters: R ~ exp(-d / sigma) ((2 E + 1) / (O + E + 1))^theta,
    with the last factor for each of the cell's batches.

    Returns
    -------
    The objective before (if None is given, that of the clusters without regard to batches) and after.
    """
    batches, xp, n = cells.batches, cells.batches.xp, len(cells.Z)

    def reward() -> Any:
        expected = batches.expected(observed)
        return theta * (xp.log(2 * expected + 1) - xp.log(observed + expected + 1))

    def objective() -> float:
        """Distances, entropy of the clusters, and their dependence on the batches; per 2000 cells."""
        return float(sigma * (sum(energies) - (observed * reward()).sum())) * 2000 / n

    list(cells.map(lambda rows: _scale_to_unit_length(cells.Z_corr[rows], xp), cells.pieces(0, n)))
    drawn = [np.sort(block) for block in np.array_split(rng.permutation(n), min(n, round(1 / BLOCK_SIZE)))]
    blocks = [[xp.asarray(block[piece]) for piece in cells.pieces(0, len(block))] for block in drawn]
    no_reward = xp.zeros((sum(batches.sizes), len(Y)))
    assigned = [_assign(cells, block, Y, sigma, no_reward, keep=False) for block in blocks]
    sums, energies = map(list, zip(*assigned, strict=True))
    observed = sum(sums)
    if before is None:
        before = objective()
    for left in reversed(range(MAX_ITER_KMEANS)):
        for i in rng.permutation(len(blocks)):
            observed = observed - sums[i]
            sums[i], energies[i] = _assign(cells, blocks[i], Y, sigma, reward(), keep=left == 0)
            observed = observed + sums[i]
    return before, objective()


def _correct(cells: SortedCells, Y: Any, lamb: float | None) -> Any:
    """Set Z_corr to Z less each cluster's shift of the cell's batches, weighted by R; returns the centroids."""
    batches, xp = cells.batches, cells.batches.xp
    bounds = zip(batches.bounds[:-1].tolist(), batches.bounds[1:].tolist(), strict=True)
    pieces = [(c, rows) for c, (start, stop) in enumerate(bounds) for rows in cells.pieces(start, stop)]
    sums = xp.zeros((len(batches.combinations), len(Y), cells.Z.shape[1] + 1))
    parts = cells.map(lambda piece: _weighted_sums(cells.R[piece[1]], cells.Z[piece[1]], xp), pieces)
    for (c, _), part in zip(pieces, parts, strict=True):
        sums[c] += part
    shifts, Y = _ridge(sums, Y, lamb, batches)

    def correct(piece: tuple[int, slice]) -> None:
        c, rows = piece
        levels = batches.combinations[c].tolist()
        shift = sum(shifts[key][level] for key, level in zip(batches.keys, levels, strict=True))
        xp.subtract(cells.Z[rows], cells.R[rows] @ shift, out=cells.Z_corr[rows])

    list(cells.map(correct, pieces))
    _scale_to_unit_length(Y, xp)
    return Y


def _ridge(sums: Any, Y: Any, lamb: float | None, batches: SortedBatches) -> tuple[Any, Any]:
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
    # A batch that is left out has an equation of its own, with 0 on the right
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


def _overlaps(A: Any, C: Any, mass: Any, kept: Any, batches: SortedBatches) -> None:
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
