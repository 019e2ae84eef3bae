"""Compare leading eigenpairs by float32 and refinement, on NumPy, with LAPACK in float64."""

from __future__ import annotations

import numpy as np
import pytest
from lib.methods.eigen import leading_eigenpairs


def covariance(n: int, strong: int, seed: int = 0) -> np.ndarray:
    """A covariance of n variables: strong directions over noise with close eigenvalues, as in expression data."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(4 * n, n))
    signal = rng.normal(size=(4 * n, strong)) * np.geomspace(40, 2, strong) @ rng.normal(size=(strong, n)) / np.sqrt(n)
    X = noise + signal
    return X.T @ X / len(X)


@pytest.mark.parametrize(("n", "k"), [(600, 50), (400, 100), (40, 30), (30, 30)])
def test_as_in_double_precision(n, k):
    """Eigenvalues to a relative 1e-9; eigenvectors unless the next eigenvalue is too close to separate them.

    Float32 alone has eigenvalues to about 1e-6 of the largest.
    """
    matrix = covariance(n, 10)
    true, vectors = (found[..., ::-1][..., :k] for found in np.linalg.eigh(matrix))
    values, found = leading_eigenpairs(matrix, k, np)
    np.testing.assert_allclose(values, true, rtol=1e-9)
    np.testing.assert_allclose(found.T @ found, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(np.abs((found * vectors).sum(0)), 1, atol=1e-5)
    residual = matrix @ found - found * values
    assert np.linalg.norm(residual, axis=0).max() < 1e-4 * true[0] / 100
