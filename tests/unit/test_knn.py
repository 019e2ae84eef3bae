"""Nearest neighbours against scikit-learn's, and the approximate search's recall."""

from __future__ import annotations

import numpy as np
import pytest
from lib.methods import knn

METRICS = ["euclidean", "cosine", "manhattan", "correlation"]


def blobs(n: int, dims: int = 20) -> np.ndarray:
    """Ten overlapping clusters whose spread falls along the axes, as principal components' does."""
    rng = np.random.default_rng(0)
    spread = np.exp(-np.arange(dims) / 10)
    centres = rng.normal(size=(10, dims)) * 3 * spread
    return (centres[rng.integers(10, size=n)] + rng.normal(size=(n, dims)) * spread).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_is_scikit_learns(metric):
    from scipy.spatial.distance import cdist

    X = blobs(400)
    between = cdist(X.astype(np.float64), X.astype(np.float64), metric.replace("manhattan", "cityblock"))
    np.fill_diagonal(between, np.inf)
    indices, distances = knn.nearest_neighbors(X, 12, metric)
    assert indices.dtype == np.int32
    assert distances.dtype == np.float32
    # float32 coordinates: distances to 7 digits, of the angular ones less the square's; ranks may swap within that
    np.testing.assert_allclose(distances, np.sort(between, 1)[:, :12], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(between, indices, 1), distances, rtol=1e-4, atol=1e-6)


def test_blocks_do_not_show(monkeypatch):
    X = blobs(500)
    whole = knn.nearest_neighbors(X, 7)
    monkeypatch.setattr(knn, "BLOCK", 64)
    for a, b in zip(whole, knn.nearest_neighbors(X, 7), strict=True):
        np.testing.assert_array_equal(a, b)


def test_itself_is_first_or_left_out_even_among_duplicates():
    X = np.repeat(blobs(20), 10, axis=0)
    indices, distances = knn.nearest_neighbors(X, 5)
    assert not (indices == np.arange(200)[:, None]).any()
    np.testing.assert_allclose(distances, 0, atol=1e-6)  # nine duplicates each; float32
    with_self, _ = knn.nearest_neighbors(X, 5, include_self=True)
    np.testing.assert_array_equal(with_self[:, 0], np.arange(200))
    assert with_self.shape == (200, 5)
    assert not (with_self[:, 1:] == np.arange(200)[:, None]).any()


def test_inverted_file_of_few_or_equal_points_is_whole():
    X = np.repeat(blobs(30), 4, axis=0)
    found, _ = knn.nearest_neighbors(X, 119, exact=False)
    assert all(sorted([i, *indices]) == list(range(120)) for i, indices in enumerate(found))


@pytest.mark.parametrize(("k", "metric", "message"), [(20, "euclidean", "20 points"), (5, "hamming", "not one of")])
def test_what_cannot_be_found_is_refused(k, metric, message):
    with pytest.raises(ValueError, match=message):
        knn.nearest_neighbors(blobs(20), k, metric)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_approximate_search_finds_nearly_all(metric):
    from scipy.spatial.distance import cdist

    X, k = blobs(15_000, 40), 15  # in 122 lists
    between = cdist(X[:1000], X, metric.replace("manhattan", "cityblock"))
    between[np.arange(1000), np.arange(1000)] = np.inf
    exact = np.argpartition(between, k, axis=1)[:, :k]
    found, distances = knn.nearest_neighbors(X, k, metric, seed=1, exact=False)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found[:1000], strict=True)])
    assert recall > 0.99
    assert (np.diff(distances, axis=1) >= 0).all()
    assert not (found == np.arange(len(X))[:, None]).any()
    if metric == "euclidean":
        there = np.linalg.norm(X[found[:500]] - X[:500, None], axis=2)
        np.testing.assert_allclose(distances[:500], there, atol=1e-3)  # float32, by |a|^2 + |b|^2 - 2ab
    np.testing.assert_array_equal(found, knn.nearest_neighbors(X, k, metric, seed=1, exact=False)[0])
