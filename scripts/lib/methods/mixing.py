"""Metrics of an integration: how well batches mix, and whether types stay apart, in a space of the cells.

The values are those of scib-metrics (Luecken et al. 2022): LISI (Korsunsky et al. 2019) over 90 neighbours, kBET
(Buttner et al. 2019) over 50, graph connectivity over 15, each counting the cell itself; silhouettes; regression of the
components on the batches. They are measured at a sample of cells: neighbours and distances of these to all cells are
found in blocks, so that nothing holds cells x cells. With all cells in the sample they are scib-metrics' values. The
graph of the connectivity is that of the sampled cells among themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lib.methods import knn
from lib.run.device import Device
from lib.store.csr import sums_by_key

# Neighbours as in scib-metrics' benchmark, the cell itself included
LISI, KBET, CONNECTIVITY = 90, 50, 15
ALPHA = 0.05  # of kBET's test
TRIES, TOLERANCE = 50, 1e-5  # of the search for a cell's bandwidth
BLOCK = {"cpu": 1 << 22, "gpu": 1 << 25}  # distances that are computed at a time
LEAST = 10  # cells of each batch of a label that are in a sample, if it has them
WITHIN = 15  # neighbours within a batch


@dataclass(frozen=True)
class Sample:
    """Cells at which is measured, drawn from each group.

    Attributes
    ----------
    rows
        Their positions, rising.
    weights
        For how many cells of its group each stands, float64.
    """

    rows: np.ndarray
    weights: np.ndarray

    def mean(self, values: np.ndarray, of: np.ndarray | None = None) -> float:
        """The weighted mean of the values that are numbers, of the cells in a mask; NaN without any."""
        known = np.isfinite(values) if of is None else np.isfinite(values) & of
        return float(np.average(values[known], weights=self.weights[known])) if known.any() else np.nan

    def median(self, values: np.ndarray) -> float:
        """The weighted median: with equal weights NumPy's; NaN without any number."""
        known = np.isfinite(values)
        values, weights = values[known], self.weights[known]
        if not len(values):
            return np.nan
        order = np.argsort(values, kind="stable")
        values, running = values[order], np.cumsum(weights[order])
        half = running[-1] / 2
        at = min(int(np.searchsorted(running, half)), len(values) - 1)
        beside = min(at + 1, len(values) - 1) if np.isclose(running[at], half) else at
        return float((values[at] + values[beside]) / 2)


def stratified(groups: np.ndarray, n: int | None, seed: int) -> Sample:
    """About `n` cells (None: all), of each group its share, but `LEAST` if it has them.

    Parameters
    ----------
    groups
        The group of each cell, integers.
    """
    if n is None or n >= len(groups):
        return Sample(np.arange(len(groups)), np.ones(len(groups)))
    _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    wanted = np.minimum(sizes, np.maximum(np.round(n * sizes / len(groups)), LEAST)).astype(int)
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    by_group = shuffled[np.argsort(codes[shuffled], kind="stable")]
    place = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = np.sort(by_group[place < wanted[codes[by_group]]])
    return Sample(rows, (sizes / wanted)[codes[rows]])


def neighbour_weights(distances: Any, perplexity: float, xp: Any) -> Any:
    """The probability of each neighbour, by a Gaussian kernel of this perplexity over distances; float64.

    As in scib-metrics (and R's lisi), the exponent is the distance, not its square.

    Parameters
    ----------
    distances
        cells x neighbours, without the cell itself.
    """
    distances = distances.astype(np.float64)
    aim = np.log(perplexity)
    beta = xp.ones((len(distances), 1))
    low, high = xp.full_like(beta, -np.inf), xp.full_like(beta, np.inf)
    for tries in range(TRIES + 1):
        P = xp.exp(-distances * beta)
        total = P.sum(1, keepdims=True)
        safe = xp.where(total > 0, total, 1)
        entropy = xp.where(total > 0, xp.log(safe) + beta * (distances * P).sum(1, keepdims=True) / safe, 0)
        excess = entropy - aim
        searching = xp.abs(excess) >= TOLERANCE
        if tries == TRIES or not searching.any():
            return xp.where(total > 0, P / safe, 0)
        low, high = xp.where(searching & (excess > 0), beta, low), xp.where(searching & (excess <= 0), beta, high)
        middle = xp.where(xp.isinf(high), 2 * beta, xp.where(xp.isinf(low), beta / 2, (low + high) / 2))
        beta = xp.where(searching, middle, beta)


def lisi(weights: Any, codes: Any, xp: Any) -> Any:
    """The inverse Simpson index of the neighbours' groups of each cell, float64; NaN where no weight is known.

    Parameters
    ----------
    weights, codes
        cells x neighbours: their probabilities (`neighbour_weights`) and groups, from 0 on.
    """
    squares = xp.zeros(len(codes))
    for group in range(int(codes.max()) + 1):
        squares += (weights * (codes == group)).sum(1) ** 2
    return xp.where(squares > 0, 1 / xp.where(squares > 0, squares, 1), np.nan)


def kbet(codes: Any, sizes: np.ndarray, xp: Any) -> np.ndarray:
    """For each cell the p-value of a chi-square test of its neighbours' batches, the cell counted, on the host.

    Parameters
    ----------
    codes
        cells x neighbours, the cell itself among them: batches from 0 on.
    sizes
        The number of cells of each batch.
    """
    from scipy.special import gammaincc

    expected = sizes / sizes.sum() * codes.shape[1]
    statistic = xp.zeros(len(codes))
    for batch, number in enumerate(expected):
        statistic += ((codes == batch).sum(1) - number) ** 2 / number
    statistic = statistic.get() if hasattr(statistic, "get") else statistic
    return gammaincc((len(sizes) - 1) / 2, statistic / 2)


def connectivity(indices: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The share of each group in the largest connected part of its own neighbour graph; NaN for empty groups.

    Parameters
    ----------
    indices
        cells x neighbours, the cell itself left out.
    codes
        The group of each cell from 0 on; -1: none.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    columns = indices.ravel()
    within = codes[rows] == codes[columns]
    graph = csr_matrix((np.ones(within.sum(), bool), (rows[within], columns[within])), (len(codes), len(codes)))
    parts = connected_components(graph, connection="strong")[1]
    found = np.full(codes.max(initial=-1) + 1, np.nan)
    sizes = np.bincount(parts)  # a part lies within one group
    for group in range(len(found)):
        mine = codes == group
        if mine.any():
            found[group] = sizes[parts[mine]].max() / mine.sum()
    return found


def distance_sums(X: Any, rows: np.ndarray, groups: np.ndarray, device: Device) -> np.ndarray:
    """The sum of the Euclidean distances of some cells to all cells of each group, float64, on the host.

    Parameters
    ----------
    X
        cells x dimensions, float32, on the device.
    rows
        The positions of the cells.
    groups
        The group of each cell, from 0 on.

    Returns
    -------
    len(rows) x groups.
    """
    xp = device.xp
    order = np.argsort(groups, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(groups))])
    points = X - X.mean(0, dtype=np.float64).astype(np.float32)  # small numbers round less
    others = points[xp.asarray(order)]
    squares = (others * others).sum(1)
    step = max(1, BLOCK[device.name] // max(1, int(np.diff(bounds).max())))
    found = np.empty((len(rows), len(bounds) - 1))
    for start in range(0, len(rows), step):
        mine = points[xp.asarray(rows[start : start + step])]
        own = (mine * mine).sum(1)[:, None]
        sums = []
        for low, high in pairwise(bounds):
            gaps = own + squares[low:high] - 2 * (mine @ others[low:high].T)
            sums.append(xp.sqrt(xp.maximum(gaps, 0, out=gaps), out=gaps).sum(1, dtype=np.float64))
        found[start : start + step] = device.to_host(xp.stack(sums, axis=1))
    return found


def silhouette(sums: np.ndarray, sizes: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Silhouettes as scikit-learn's silhouette_samples: 0 for the only cell of a group, NaN if there is one group.

    Parameters
    ----------
    sums
        cells x groups: see `distance_sums`.
    sizes
        cells x groups, or groups: the cells of each group; groups without any take no part.
    own
        The group of each cell.
    """
    sizes = np.broadcast_to(sizes, sums.shape)
    at = np.arange(len(sums)), own
    alone = sizes[at] < 2
    within = sums[at] / np.maximum(sizes[at] - 1, 1)
    means = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
    means[at] = np.inf
    nearest = means.min(1, initial=np.inf)
    largest = np.maximum(within, nearest)
    with np.errstate(invalid="ignore"):
        found = np.where(largest > 0, (nearest - within) / np.where(largest > 0, largest, 1), 0)
    return np.where(np.isinf(nearest), np.nan, np.where(alone, 0, found))


def pc_regression(X: Any, codes: np.ndarray, device: Device) -> float:
    """The share of the variance of the components that the batches explain: between batches over all."""
    xp = device.xp
    sizes, keys = np.bincount(codes), xp.asarray(codes)
    between = total = 0.0
    for column in X.T:
        values = column.astype(np.float64) - float(column.mean(dtype=np.float64))
        sums = device.to_host(sums_by_key(keys, values, len(sizes), device))
        between += float((sums**2 / np.maximum(sizes, 1)).sum())
        total += float((values * values).sum())
    return between / total if total > 0 else np.nan


def neighbours(X: Any, rows: np.ndarray, k: int, n_jobs: int, device: Device) -> tuple[Any, Any]:
    """The `k` nearest other cells (Euclidean) of some cells among all: indices and distances, on the device."""
    return knn.nearest_of(X, rows, k, "euclidean", n_jobs, device)


def kept_within(before: Any, after: Any, batches: np.ndarray, n_jobs: int, device: Device) -> np.ndarray:
    """For each cell the share of its nearest neighbours within its batch before that are such after; NaN: too few.

    An integration moves batches against each other. Within a batch it should leave cells among those they were among:
    that tells of over-correction without labels.

    Parameters
    ----------
    before, after
        cells x dimensions, float32, on the device.
    """
    found = np.full(len(batches), np.nan)
    for rows in groups_of(batches):
        k = min(WITHIN, (len(rows) - 1) // 2)
        if k < 1:
            continue
        at = device.xp.asarray(rows)
        one, other = (
            knn.nearest_neighbors(X[at], k, n_jobs=n_jobs, exact=True, device=device)[0] for X in (before, after)
        )
        found[rows] = device.to_host(knn.shared(one, other, device.xp))
    return found


def groups_of(codes: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each group."""
    order = np.argsort(codes, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


@dataclass(frozen=True)
class Measured:
    """What is measured of one space: values of the whole, and arrays with a value per batch or per label."""

    of_all: dict[str, float]
    of_batches: dict[str, np.ndarray]
    of_labels: dict[str, np.ndarray]


def measure(
    X: Any, batches: np.ndarray, labels: np.ndarray | None, sample: Sample, n_jobs: int, device: Device
) -> Measured:
    """The metrics of a space.

    Parameters
    ----------
    X
        cells x dimensions, float32, on the device.
    batches
        The batch of each cell, from 0 on. With one batch there are only metrics of labels.
    labels
        The label of each cell from 0 on, -1: none; None if there are no labels.
    sample
        The cells at which is measured.
    """
    xp, rows = device.xp, sample.rows
    k = min(LISI, len(X)) - 1
    indices, distances = neighbours(X, rows, k, n_jobs, device)
    weights = neighbour_weights(distances, max(1, (k + 1) // 3), xp)
    found = Measured({}, {}, {})
    sizes = np.bincount(batches)
    if len(sizes) > 1:
        near, own = xp.asarray(batches)[indices], batches[rows]
        of_cells = device.to_host(lisi(weights, near, xp))
        with_self = xp.concatenate([xp.asarray(own)[:, None], near[:, : KBET - 1]], axis=1)
        found.of_all["iLISI"] = (sample.median(of_cells) - 1) / (len(sizes) - 1)
        found.of_all["kBET"] = sample.mean((kbet(with_self, sizes, xp) >= ALPHA).astype(float))
        found.of_all["PC regression"] = pc_regression(X, batches, device)
        same = device.to_host((near == xp.asarray(own)[:, None]).mean(1))
        found.of_batches["own"] = np.array([sample.mean(same, own == batch) for batch in range(len(sizes))])
    if labels is not None and labels.max(initial=-1) >= 0:
        _measure_labels(found, X, batches, labels, sample, (indices, weights), n_jobs, device)
    return found


def _measure_labels(
    found: Measured,
    X: Any,
    batches: np.ndarray,
    labels: np.ndarray,
    sample: Sample,
    near: tuple[Any, Any],
    n_jobs: int,
    device: Device,
) -> None:
    """Add the metrics of labels; cells without a label are neighbours of another kind, and nothing else."""
    xp, rows = device.xp, sample.rows
    own, own_batch, n, n_batches = labels[rows], batches[rows], int(labels.max()) + 1, int(batches.max()) + 1
    known = own >= 0
    neighbour_labels = xp.asarray(np.where(labels < 0, n, labels))[near[0]]
    same = device.to_host((neighbour_labels == xp.asarray(own)[:, None]).mean(1))
    groups = np.where(labels < 0, n, labels) * n_batches + batches
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    combined = np.full((n + 1) * n_batches, -1)
    combined[np.where(labels < 0, n, labels) * n_batches + batches] = groups
    mine = rows[known]
    sums = distance_sums(X, mine, groups, device)
    padded, counts = np.zeros((len(mine), len(combined))), np.zeros(len(combined))
    there = combined >= 0
    padded[:, there], counts[there] = sums[:, combined[there]], sizes[combined[there]]
    padded, counts = padded.reshape(len(mine), n + 1, n_batches), counts.reshape(n + 1, n_batches)
    of_label, of_batch = np.full((2, len(rows)), np.nan)
    of_label[known] = silhouette(padded[:, :n].sum(2), counts[:n].sum(1), own[known])
    at = np.arange(len(mine)), own[known]
    of_batch[known] = 1 - np.abs(silhouette(padded[at], counts[own[known]], own_batch[known]))
    if n > 1:
        of_cells = np.where(known, device.to_host(lisi(near[1], neighbour_labels, xp)), np.nan)
        found.of_all["cLISI"] = (n - sample.median(of_cells)) / (n - 1)
        found.of_all["label ASW"] = (sample.mean(of_label) + 1) / 2
    per_label = {"own": same, "ASW": (of_label + 1) / 2, "batch ASW": of_batch}
    for name, values in per_label.items():
        found.of_labels[name] = np.array([sample.mean(values, own == label) for label in range(n)])
    # All cells of a label in one batch, or each in its own, tell nothing of batches
    telling = ((counts[:n] > 0).sum(1) > 1) & ((counts[:n] > 0).sum(1) < counts[:n].sum(1))
    found.of_labels["batch ASW"][~telling] = np.nan
    k = min(CONNECTIVITY, len(rows)) - 1
    if k > 0:
        indices = near[0][:, :k]
        if len(rows) < len(X):
            indices, _ = knn.nearest_neighbors(X[xp.asarray(rows)], k, n_jobs=n_jobs, exact=True, device=device)
        found.of_labels["connectivity"] = connectivity(device.to_host(indices), own)
        found.of_all["graph connectivity"] = _mean(found.of_labels["connectivity"])
    if n_batches > 1:
        found.of_all["batch ASW"] = _mean(found.of_labels["batch ASW"])
        if n > 1:
            found.of_all["isolated labels"] = _mean(found.of_labels["ASW"][isolated(labels, batches)])


def isolated(labels: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """A mask of the labels that are in the fewest batches."""
    known = labels >= 0
    pairs = np.unique(np.column_stack([labels[known], batches[known]]), axis=0)
    of_label = np.bincount(pairs[:, 0], minlength=int(labels.max()) + 1)
    return of_label == of_label[of_label > 0].min()


def _mean(values: np.ndarray) -> float:
    """The mean of the values that are numbers; NaN without any."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
