"""Compare the leading eigenpairs by blocks, on NumPy, with LAPACK's of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
from lib.methods.eigen import FEW, RESIDUAL, leading_eigenpairs


def covariance(n: int, strong: int, seed: int = 0) -> np.ndarray:
    """A covariance of n variables: strong directions over noise with close eigenvalues, as in expression data."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(4 * n, n))
    signal = rng.normal(size=(4 * n, strong)) * np.geomspace(40, 2, strong) @ rng.normal(size=(strong, n)) / np.sqrt(n)
    X = noise + signal
    return X.T @ X / len(X)


@pytest.mark.parametrize("scale", [1e-8, 1, 1e8])
@pytest.mark.parametrize(("n", "k"), [(1600, 30), (1500, 100), (FEW, 50), (40, 30), (30, 30)])
def test_as_of_the_whole_matrix(n, k, scale):
    """Eigenvalues to a relative 1e-9; eigenvectors as far as the next eigenvalue, which is close, separates them."""
    matrix = scale * covariance(n, 10)
    true, vectors = (found[..., ::-1][..., :k] for found in np.linalg.eigh(matrix))
    values, found = leading_eigenpairs(matrix, k, np)
    np.testing.assert_allclose(values, true, rtol=1e-9)
    np.testing.assert_allclose(found.T @ found, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(np.abs((found * vectors).sum(0)), 1, atol=1e-5)
    residual = matrix @ found - found * values
    assert np.linalg.norm(residual, axis=0).max() <= 1.01 * RESIDUAL * true[0]


@pytest.mark.parametrize("rank", [0, 1, 20, 60, 1400])
def test_of_few_directions(rank):
    """A matrix of less than full rank: blocks of vectors span all that it has before they are as many as asked for."""
    rng, n, k = np.random.default_rng(0), 1400, 30
    half = rng.normal(size=(n, rank)) if rank < n else np.eye(n)
    matrix = half @ half.T
    values, found = leading_eigenpairs(matrix, k, np)
    true = np.linalg.eigvalsh(matrix)[::-1][:k]
    np.testing.assert_allclose(values, true, atol=1e-12 * n)
    np.testing.assert_allclose(found.T @ found, np.eye(k), atol=1e-12)
    residual = matrix @ found - found * values
    assert np.linalg.norm(residual, axis=0).max() <= 1.01 * RESIDUAL * max(true[0], 1e-300)
