"""Streams of counts in chunks of cells, which the passes of the stages read."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np

from lib.run import device as devices

P, R = ParamSpec("P"), TypeVar("R")
log = logging.getLogger("somersault")

ROWS_NNZ = {"cpu": 6_000_000, "gpu": 16_000_000}  # non-zeros of a row chunk, one step of a stream


SMALLEST = 1 / 64  # the smallest share of the chunk sizes that `halve_chunks` sets


_SHARE = 1.0  # of the chunk sizes in this process; `halve_chunks` halves it


def chunk_size(n: int) -> int:
    """A chunk size as reduced by `halve_chunks`; at least 1."""
    return max(1, int(_SHARE * n))


def halve_chunks() -> bool:
    """Halve the chunks of all streams in this process; False if they were the smallest allowed already."""
    global _SHARE
    _SHARE /= 2
    return _SHARE >= SMALLEST


@dataclass(frozen=True)
class Chunk:
    """Consecutive cells of a stream: `X` holds cells `start` to `start + X.shape[0]`, CSR, on the stream's device."""

    start: int
    X: Any

    @property
    def rows(self) -> slice:
        """The positions of these cells among all cells of the stream."""
        return slice(self.start, self.start + self.X.shape[0])


class Stream(Protocol):
    """Counts as a re-iterable sequence of row chunks, the input of the stages' functions."""

    n_obs: int
    n_vars: int
    device: devices.Device

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """All cells in order, as chunks of at most `max_cells` cells."""


class InMemory:
    """A matrix in memory as a stream, for small batches and for tests."""

    def __init__(self, X: Any, device: devices.Device | None = None, max_cells: int = 1000) -> None:
        self.device = device or devices.cpu()
        self.X = self.device.sparse.csr_matrix(X)
        self.n_obs, self.n_vars = self.X.shape
        self.max_cells = max_cells

    def of_cells(self, cells: np.ndarray) -> InMemory:
        """A stream of some of the cells, by a boolean mask."""
        rows = self.device.xp.asarray(np.flatnonzero(cells))
        return InMemory(self.X[rows], self.device, self.max_cells)

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """The matrix in slices of rows."""
        step = chunk_size(min(self.max_cells, max_cells or self.max_cells))
        for start in range(0, self.n_obs, step):
            yield Chunk(start, self.X[start : start + step])


def halving(function: Callable[P, R]) -> Callable[P, R]:
    """Repeat a pass over counts with chunks half the size if the device runs out of memory.

    The function must start afresh at every call: its sums must be local.

    Raises
    ------
    MemoryError
        If memory does not suffice for the smallest chunks either.
    """

    @wraps(function)
    def retrying(*args: P.args, **kwargs: P.kwargs) -> R:
        while True:
            try:
                return function(*args, **kwargs)
            except MemoryError as error:
                message = str(error)
                if not halve_chunks():
                    raise
            # The frames that hold the arrays can be freed only after the except clause
            gc.collect()
            log.warning("out of memory (%s): again, with chunks half as large", message)

    return retrying
