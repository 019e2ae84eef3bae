"""Read and write compressed 1-D arrays in an HDF5 file, with one chunk per thread at a time.

The arrays are plain HDF5 (shuffle and deflate, in chunks of `CHUNK` elements), which every reader supports. h5py runs
these filters in one thread; this module reads and writes the raw chunks, and a thread pool runs the filters: libdeflate
inflates at twice the speed of isa-l, and isa-l deflates at three times the speed of libdeflate.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import deflate
import h5py
import numpy as np
from isal import isal_zlib

from lib.run.clock import spending

CHUNK = 1 << 18  # elements of an HDF5 chunk
GROUP = 4  # chunks per task that inflates: each task costs time under the GIL
WAITING = 32  # chunks that may wait to be deflated


class CompressedArray:
    """A growing 1-D HDF5 dataset (shuffle + deflate) whose chunks are compressed by threads and written raw."""

    def __init__(self, group: h5py.Group, name: str, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self.dataset = group.create_dataset(
            name,
            (0,),
            self.dtype,
            maxshape=(None,),
            chunks=(CHUNK,),
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        self.pending: list[np.ndarray] = []
        self.n = self.n_pending = 0
        self.deflating: deque[Future] = deque()

    def append(self, values: np.ndarray) -> None:
        """Add values, of any dtype that casts to the array's. They are not copied: the caller must not change them."""
        start = 0
        while start < len(values):
            piece = values[start : start + CHUNK - self.n_pending]
            self.pending.append(piece)
            self.n_pending += len(piece)
            start += len(piece)
            if self.n_pending == CHUNK:
                self._submit()

    def close(self) -> None:
        """Write the remaining values, the last chunk partly filled."""
        if self.n_pending:
            self._submit()
        self.dataset.resize((self.n,))  # before the last chunk is written, which extends beyond it
        self._write(0)

    def _submit(self) -> None:
        self.deflating.append(pool().submit(_deflate, self.pending, self.dtype))
        self.n += self.n_pending
        self.pending, self.n_pending = [], 0
        self._write(WAITING)

    def _write(self, waiting: int) -> None:
        """Write the oldest chunks until at most `waiting` remain."""
        if len(self.deflating) <= waiting:
            return
        with spending("write"):
            if self.n > len(self.dataset):
                self.dataset.resize((2 * self.n,))  # doubled, to resize seldom: each time takes milliseconds
            first = (self.n - 1) // CHUNK + 1 - len(self.deflating)
            while len(self.deflating) > waiting:
                self.dataset.id.write_direct_chunk((first * CHUNK,), self.deflating.popleft().result())
                first += 1


class CompressedReader:
    """Reads an array that has the filters and chunks of `CompressedArray`; knows where its chunks lie in the file.

    Parameters
    ----------
    dataset
        A dataset of an open file.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dtype = dataset.dtype
        chunks: dict[int, tuple[int, int]] = {}
        dataset.id.chunk_iter(lambda chunk: chunks.update({chunk.chunk_offset[0]: (chunk.byte_offset, chunk.size)}))
        self.chunks = chunks

    @property
    def chunk_bytes(self) -> int:
        """Bytes of an inflated chunk."""
        return CHUNK * self.dtype.itemsize

    def read(self, fd: int, at: int, chosen: slice | np.ndarray) -> np.ndarray:
        """Elements of the chunk that begins with the element `at`, read from the file descriptor `fd`.

        Parameters
        ----------
        chosen
            Positions within the chunk, from 0 on.
        """
        rows = [row[chosen] for row in self._inflate(fd, at).reshape(self.dtype.itemsize, CHUNK)]
        values = np.empty((len(rows[0]), len(rows)), np.uint8)
        for byte, row in enumerate(rows):
            values[:, byte] = row
        return values.view(self.dtype).ravel()

    def read_shuffled(self, fd: int, start: int, stop: int, buffer: np.ndarray) -> list[Future]:
        """Inflate the chunks that hold the elements `start` to `stop` into a buffer of bytes, still shuffled.

        A shuffled chunk holds the first bytes of all elements, then all second bytes, and so on.
        """
        chunks = list(range(start // CHUNK * CHUNK, stop, CHUNK))
        return [
            pool().submit(self._inflate_into, fd, chunks[i : i + GROUP], buffer[i * self.chunk_bytes :])
            for i in range(0, len(chunks), GROUP)
        ]

    def _inflate(self, fd: int, at: int) -> np.ndarray:
        offset, size = self.chunks[at]
        return np.frombuffer(deflate.zlib_decompress(os.pread(fd, size, offset), self.chunk_bytes), np.uint8)

    def _inflate_into(self, fd: int, chunks: Sequence[int], buffer: np.ndarray) -> None:
        for i, at in enumerate(chunks):
            buffer[i * self.chunk_bytes : (i + 1) * self.chunk_bytes] = self._inflate(fd, at)


_POOL: ThreadPoolExecutor | None = None
_N = 0


def set_threads(n: int) -> None:
    """Set the number of threads that compress and decompress; by default there are as many as cores."""
    global _POOL, _N
    _POOL, _N = ThreadPoolExecutor(n), n


def n_threads() -> int:
    """The number of threads of `pool`."""
    pool()
    return _N


def pool() -> ThreadPoolExecutor:
    """The thread pool that compresses and decompresses. Its tasks must not wait for each other."""
    if _POOL is None:
        set_threads(os.cpu_count() or 1)
    return _POOL


def _deflate(pieces: list[np.ndarray], dtype: np.dtype) -> bytes:
    """One chunk, padded with zeros, shuffled (all first bytes, all second bytes ...) and deflated."""
    bits = np.dtype(f"u{dtype.itemsize}")
    n = sum(map(len, pieces))
    shuffled = np.empty((dtype.itemsize, CHUNK), np.uint8)
    shuffled[:, n:] = 0
    at = 0
    for piece in pieces:
        values = np.ascontiguousarray(piece, dtype).view(bits)
        for byte, row in enumerate(shuffled[:, at : at + len(piece)]):
            np.right_shift(values, 8 * byte, out=row, casting="unsafe")
        at += len(piece)
    return isal_zlib.compress(shuffled, 1)
