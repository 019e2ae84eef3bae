"""Fit a multinomial logistic regression on cells that are streamed.

Let z_i be the rows of a matrix for the n cells, and y_i their groups. Weights W (groups x genes) and intercepts b
minimise mean_i[logsumexp(W z_i + b) - (W z_i + b)_{y_i}] + |W|^2 / (2 C n). The objective, the optimiser (L-BFGS) and
its stopping rule are those of scikit-learn's LogisticRegression. Loss and gradient are sums over dense chunks: float32
products, float64 sums. Every step of the optimiser reads the matrix once, from memory if it fits there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from scipy.optimize import minimize

from lib.run import device as devices
from lib.run import stage
from lib.run.progress import Pace
from lib.run.resources import CACHE_BYTES
from lib.store.stream import Chunk, Stream, halving

CHUNK_VALUES = {"cpu": 20_000_000, "gpu": 40_000_000}  # values of a dense chunk: 80 or 160 MB
WORK_BYTES = 700 << 20  # GPU memory not available for the counts: dense chunks, and what they are made of

Rows = Iterable[tuple[Any, Any]]  # pairs of a dense chunk, cells x genes, float32, and its cells' groups


class DenseRows:
    """The matrix as dense chunks with their cells' groups, which can be iterated repeatedly, without cells of no group.

    A GPU holds the counts, in the smallest dtypes, and computes their rows in each iteration; the CPU holds the rows.

    Parameters
    ----------
    counts
        cells x features.
    codes
        Per cell its group, -1: in none.
    dense
        Function of a chunk's counts and the positions of its cells that returns the rows of the matrix, float32.
    """

    def __init__(self, counts: Stream, codes: np.ndarray, dense: Callable[[Any, slice], Any]) -> None:
        self.counts, self.codes, self.dense = counts, codes, dense
        self.groups = counts.device.xp.asarray(codes)
        self.rows = self.packed = None
        if counts.device.is_gpu:
            self.packed = self._pack(counts.device.memory - WORK_BYTES)
            where = "streamed" if self.packed is None else "their counts on the GPU"
        else:
            n_values = int((codes >= 0).sum()) * counts.n_vars
            fits = [dtype for dtype in (np.float32, np.float16) if n_values * np.dtype(dtype).itemsize <= CACHE_BYTES]
            self.rows = self._keep(fits[0]) if fits else None
            where = f"in memory as {np.dtype(fits[0]).name}" if fits else "streamed"
        stage.log.info("%d x %d values, %s", counts.n_obs, counts.n_vars, where)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Pairs of a float32 chunk and its cells' groups, over all cells in order."""
        if self.rows is None:
            yield from self._read()
        else:
            for Z, y in self.rows:
                yield Z.astype(np.float32, copy=False), y

    @halving
    def _keep(self, dtype: Any) -> list[tuple[Any, Any]]:
        return [(Z.astype(dtype, copy=False), y) for Z, y in self._read()]

    @halving
    def _pack(self, room: int) -> list[Packed] | None:
        """The chunks of counts; None if they need more bytes of GPU memory."""
        found = []
        for chunk in self._chunks():
            found.append(Packed(chunk))
            room -= found[-1].n_bytes
            if room < 0:
                return None
        return found

    def _chunks(self) -> Iterator[Chunk]:
        return self.counts.chunks(max(1, CHUNK_VALUES[self.counts.device.name] // self.counts.n_vars))

    def _read(self) -> Iterator[tuple[Any, Any]]:
        chunks = self._chunks() if self.packed is None else (packed.chunk() for packed in self.packed)
        for chunk in chunks:
            Z, y, named = self.dense(chunk.X, chunk.rows), self.groups[chunk.rows], self.codes[chunk.rows] >= 0
            yield (Z, y) if named.all() else (Z[y >= 0], y[y >= 0])


class Packed:
    """A chunk of counts on a GPU, whose counts and columns are held in the smallest unsigned dtypes."""

    def __init__(self, chunk: Chunk) -> None:
        X = chunk.X
        self.start, self.shape, self.dtype, self.matrix = chunk.start, X.shape, X.data.dtype, type(X)
        largest = int(X.data.max()) if X.nnz else 0, max(X.shape[1] - 1, 0)
        small = (array.astype(np.min_scalar_type(n)) for array, n in zip((X.data, X.indices), largest, strict=True))
        self.data, self.indices, self.indptr = *small, X.indptr
        self.n_bytes = self.data.nbytes + self.indices.nbytes + self.indptr.nbytes

    def chunk(self) -> Chunk:
        """The chunk as it was."""
        arrays = self.data.astype(self.dtype), self.indices.astype(np.int32), self.indptr
        return Chunk(self.start, self.matrix(arrays, shape=self.shape))


@halving
def loss_gradient(W: np.ndarray, rows: Rows, n_groups: int, xp: Any) -> tuple[float, np.ndarray]:
    """The summed loss of all cells, and its gradient.

    Parameters
    ----------
    W
        Weights and, in the last column, intercepts: groups x (genes + 1), float64; for two groups one row, that of the
        second group (the first group has zeros).
    rows
        The cells.
    n_groups
        Number of groups.
    xp
        Array module of the chunks.
    """
    weights, intercepts = xp.asarray(W[:, :-1].T, np.float32), xp.asarray(W[:, -1])
    free = slice(n_groups - len(W), n_groups)
    loss, gradient = xp.zeros(()), xp.zeros(W.shape)
    for Z, y in rows:
        logits = xp.zeros((len(y), n_groups))
        logits[:, free] = Z @ weights + intercepts
        logits -= logits.max(1, keepdims=True)
        own = xp.arange(len(y)), y
        P = xp.exp(logits)
        sums = P.sum(1, keepdims=True)
        loss += xp.log(sums).sum() - logits[own].sum()
        P /= sums
        P[own] -= 1
        P = P[:, free]
        gradient[:, :-1] += P.T.astype(np.float32) @ Z
        gradient[:, -1] += P.sum(0)
    return float(loss), gradient


def logistic_regression(
    rows: Rows, n_obs: int, n_vars: int, n_groups: int, device: devices.Device, C: float = 1.0, max_iter: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """The weights, groups x genes, and the intercepts of `LogisticRegression(C, max_iter)`; one row for two groups.

    Parameters
    ----------
    rows
        The cells.
    n_obs, n_vars, n_groups
        Numbers of cells, genes and groups.
    device
        Where the chunks lie.
    C
        Inverse of the penalty's strength.
    max_iter
        The maximal number of steps of the optimiser.
    """
    shape = 1 if n_groups == 2 else n_groups, n_vars + 1
    pace, passes = Pace("fit", max_iter, "iterations at most"), 0

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal passes
        W = w.reshape(shape)
        loss, gradient = loss_gradient(W, rows, n_groups, device.xp)
        loss, gradient = loss / n_obs, device.to_host(gradient) / n_obs
        gradient[:, :-1] += W[:, :-1] / (C * n_obs)
        passes += 1
        return loss + (W[:, :-1] ** 2).sum() / (2 * C * n_obs), gradient.ravel()

    # The stopping rule of scikit-learn's LogisticRegression with its default tolerance
    options = {"maxiter": max_iter, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps}
    start = np.zeros(shape).ravel()
    result = minimize(objective, start, method="L-BFGS-B", jac=True, options=options, callback=lambda _: pace.step())
    stage.log.info("%d iterations, %d passes, objective %.6f", result.nit, passes, result.fun)
    if not result.success:
        stage.log.warning("not converged (%s): raise `max_iter`", result.message)
    found = result.x.reshape(shape)
    return found[:, :-1], found[:, -1]
