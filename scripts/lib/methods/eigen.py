"""Compute the leading eigenvectors of a large symmetric matrix by a block Lanczos method with thick restarts.

Blocks of vectors are multiplied by the matrix and made orthonormal to all before them, twice. The eigenvectors of the
matrix within their span (Rayleigh & Ritz) are its own up to the residuals, which the last block tells. When the span
has its full width, the best of them and the last block begin the next one. Sources: Golub & Underwood 1977; Wu & Simon
2000 (restarts); Stathopoulos & Wu 2002 (orthonormal blocks).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from lib.store.csr import on_host

FEW = 1000  # rows up to which the eigenvectors of the whole matrix are computed
BLOCKS = 16  # between two restarts
RESIDUAL = 1e-8  # of an eigenvector, relative to the largest eigenvalue: as float32 rounds the products in the matrix
RESTARTS = 100  # a few are enough; beyond, the eigenvectors of the whole matrix are computed
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
    return found or _last(matrix, k, xp)


def _by_blocks(matrix: Any, k: int, kept: int, size: int, xp: ModuleType) -> tuple[Any, Any] | None:
    """The eigenpairs; None if they have not converged. `kept` vectors go on at a restart, with blocks of `size`."""
    rng, n, width = np.random.default_rng(0), len(matrix), kept + BLOCKS * size
    basis, within = xp.zeros((n, width)), xp.zeros((width, width))
    block, done = xp.asarray(np.linalg.qr(rng.normal(size=(n, size)))[0]), 0
    for _ in range(RESTARTS):
        while done + size <= width:
            last = slice(done, done + size)
            basis[:, last], done = block, done + size
            block, inside, outside = _orthonormal(matrix @ block, basis[:, :done], rng, xp)
            within[:done, last], within[last, :done] = inside, inside.T
        values, vectors = _last(within[:done, :done], kept, xp)
        left = xp.asarray(outside) @ vectors[last]
        if bool((xp.linalg.norm(left[:, :k], axis=0) <= RESIDUAL * values[0]).all()):
            return values[:k], basis[:, :done] @ vectors[:, :k]
        basis[:, :kept] = basis[:, :done] @ vectors
        within[:] = 0
        within[:kept, :kept] = xp.diag(values)
        within[kept : kept + size, :kept], within[:kept, kept : kept + size] = left, left.T
        done = kept
    return None


def _orthonormal(block: Any, basis: Any, rng: np.random.Generator, xp: ModuleType) -> tuple[Any, Any, np.ndarray]:
    """What the orthonormal `basis` leaves of a block: new vectors, with block = basis @ inside + new @ outside.

    Where nothing is left, a random vector takes the place. The small `outside` lies on the host.
    """
    inside, outside = 0, np.eye(block.shape[1])
    for i in range(PASSES):
        share = basis.T @ block
        block = block - basis @ share
        inside = inside + (share @ xp.asarray(outside) if i else share)
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
        elif i and min(norms.min(), lengths.min()) > 0.5:  # orthonormal before, and hardly changed since
            break
    return block, inside, outside


def _last(matrix: Any, k: int, xp: ModuleType) -> tuple[Any, Any]:
    """The `k` largest eigenvalues and their eigenvectors, the largest first, by LAPACK or cuSOLVER, which finds all."""
    n = len(matrix)
    if xp is np:
        from scipy.linalg import eigh

        values, vectors = eigh(matrix, subset_by_index=[n - k, n - 1], check_finite=False)
    else:
        values, vectors = xp.linalg.eigh(matrix)
    return values[::-1][:k], vectors[:, ::-1][:, :k]
