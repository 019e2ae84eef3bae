"""Compute the leading eigenvectors of a large symmetric matrix by a block Lanczos method with thick restarts.

Blocks of vectors are multiplied by the matrix and made orthonormal to all before them, twice. The eigenvectors of the
matrix within their span (Rayleigh & Ritz) are its own up to the residuals, which the last block tells. When the span
has its full width, the best of them and the last block begin the next one. On a GPU the matrix and the long vectors
stay there; the small matrices go to the host, whose LAPACK starts faster than cuSOLVER. Sources: Golub & Underwood
1977; Wu & Simon 2000 (restarts); Stathopoulos & Wu 2002 (orthonormal blocks).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from scipy.linalg import eigh

from lib.store.csr import on_host

FEW = 1000  # rows up to which LAPACK computes the eigenvectors of the whole matrix
BLOCKS = 16  # between two restarts
RESIDUAL = 1e-8  # of an eigenvector, relative to the largest eigenvalue: as float32 rounds the products in the matrix
RESTARTS = 100  # a few are enough; beyond, LAPACK computes the eigenvectors
PASSES = 6  # two make a block orthonormal, three or four one that lies in the span of the blocks before it
DEAD = 1e-14  # the square of what is left of a vector of length 1, if nothing is


def leading_eigenpairs(matrix: Any, k: int, xp: ModuleType) -> tuple[Any, Any]:
    """The `k` largest eigenvalues and their eigenvectors, to residuals of `RESIDUAL` of the largest eigenvalue.

    Parameters
    ----------
    matrix
        n x n, float64, symmetric, both triangles filled; eigenvalues are not negative except by rounding.
    k
        At most n.
    xp
        The array module.

    Returns
    -------
    Eigenvalues, k, the largest first, and eigenvectors, n x k, orthonormal; float64.
    """
    n, kept, size = len(matrix), k + max(20, k // 2), 16 if k <= 50 else 32
    found = None
    if n > max(FEW, 2 * (kept + (BLOCKS + 1) * size)):
        found = _by_blocks(matrix, k, kept, size, xp)
    return found or tuple(map(xp.asarray, _last(on_host(matrix), k)))


def _by_blocks(matrix: Any, k: int, kept: int, size: int, xp: ModuleType) -> tuple[Any, Any] | None:
    """The eigenpairs; None if they have not converged. `kept` vectors go on at a restart, with blocks of `size`."""
    rng, n, width = np.random.default_rng(0), len(matrix), kept + BLOCKS * size
    basis, within = xp.zeros((n, width)), np.zeros((width, width))
    block, done = xp.asarray(np.linalg.qr(rng.normal(size=(n, size)))[0]), 0
    for _ in range(RESTARTS):
        while done + size <= width:
            last = slice(done, done + size)
            basis[:, last], done = block, done + size
            block, inside, outside = _orthonormal(matrix @ block, basis[:, :done], rng, xp)
            within[:done, last], within[last, :done] = inside, inside.T
        values, vectors = _last(within[:done, :done], kept)
        left = outside @ vectors[last]
        if (np.linalg.norm(left[:, :k], axis=0) <= RESIDUAL * values[0]).all():
            return xp.asarray(values[:k]), basis[:, :done] @ xp.asarray(vectors[:, :k])
        basis[:, :kept] = basis[:, :done] @ xp.asarray(vectors)
        within[:] = 0
        within[np.arange(kept), np.arange(kept)] = values
        within[kept : kept + size, :kept], within[:kept, kept : kept + size] = left, left.T
        done = kept
    return None


def _orthonormal(
    block: Any, basis: Any, rng: np.random.Generator, xp: ModuleType
) -> tuple[Any, np.ndarray, np.ndarray]:
    """What the orthonormal `basis` leaves of a block: new vectors, with block = basis @ inside + new @ outside.

    Where nothing is left, a random vector takes the place.
    """
    inside, outside = np.zeros((basis.shape[1], block.shape[1])), np.eye(block.shape[1])
    for _ in range(PASSES):
        share = basis.T @ block
        block = block - basis @ share
        inside += on_host(share) @ outside
        products = on_host(block.T @ block)
        norms = np.sqrt(products.diagonal())
        scales = np.divide(1, norms, where=norms > 0, out=np.zeros(len(norms)))
        squares, turned = np.linalg.eigh(products * scales * scales[:, None])
        lengths = np.sqrt(np.where(squares > DEAD, squares, 0))
        factors = np.divide(1, lengths, where=lengths > 0, out=np.zeros(len(lengths)))
        block = block @ xp.asarray(scales[:, None] * turned * factors)
        outside = lengths[:, None] * turned.T @ (norms[:, None] * outside)
        if not lengths.all():
            dead = np.flatnonzero(lengths == 0)
            block[:, dead] = xp.asarray(rng.normal(size=(len(block), len(dead))))
        elif min(norms.min(), lengths.min()) > 0.5:
            break
    return block, inside, outside


def _last(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` largest eigenvalues and their eigenvectors, the largest first, by LAPACK."""
    n = len(matrix)
    values, vectors = eigh(matrix, subset_by_index=[n - k, n - 1], check_finite=False)
    return values[::-1], vectors[:, ::-1]
