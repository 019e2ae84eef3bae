"""Upload compressed arrays to the GPU: threads inflate them into pinned buffers, which are copied while it computes.

Each span of elements takes the next of a few slots; a slot is a pinned buffer and a buffer on the card. Threads inflate
the span's chunks into the pinned buffer, still shuffled and in the file's dtype. A separate stream copies it to the
card, where a kernel unshuffles and widens the chosen rows. So reading, copying and computing overlap, and the compact
dtypes are copied.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from lib.store.compressed import CHUNK, CompressedReader

_WIDEN = cupy.ElementwiseKernel(
    "raw uint8 shuffled, raw int32 indptr, raw int64 starts, int32 n_rows, int32 size, int64 chunk",
    "T value",
    """
    int row = 0, end = n_rows;  // indptr[row] <= i < indptr[end]
    while (end - row > 1) {
        int middle = (row + end) / 2;
        if (indptr[middle] <= i) row = middle; else end = middle;
    }
    long long at = starts[row] + (i - indptr[row]), block = at / chunk;
    long long first = block * size * chunk + (at - block * chunk);
    unsigned int bits = 0;
    for (int byte = 0; byte < size; ++byte) bits |= (unsigned int)shuffled[first + byte * chunk] << (8 * byte);
    value = (T)bits;
    """,
    "somersault_widen_rows",
)


class Slot:
    """A pinned buffer, a buffer on the card, and the events of its last copy and of the last kernel that read it."""

    def __init__(self, n_bytes: int) -> None:
        self.pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(n_bytes), np.uint8, n_bytes)
        self.card = cupy.empty(n_bytes, np.uint8)
        self.copied, self.read = cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True)
        self.read.record()


class Upload:
    """Uploads spans of several arrays, in the order of the requests.

    Parameters
    ----------
    path
        The file.
    readers
        The readers of its arrays of unsigned integers: data, then indices.
    largest
        Elements of the largest span.
    n_slots
        The number of spans that may be under way at a time.
    """

    def __init__(self, path: Path, readers: Sequence[CompressedReader], largest: int, n_slots: int) -> None:
        self.fd, self.readers = os.open(path, os.O_RDONLY), readers
        n_chunks = (largest - 1) // CHUNK + 2  # a span may begin and end within a chunk
        self.offsets = np.cumsum([0, *(n_chunks * reader.chunk_bytes for reader in readers)])
        self.n_slots = n_slots
        self.slots: list[Slot] = []  # allocated on demand, while the threads fill the previous one
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.submitted = 0
        self.futures: deque[list[Future]] = deque(maxlen=n_slots)

    def submit(self, bounds: np.ndarray, keep: np.ndarray) -> tuple[Slot, list[Future], np.ndarray, np.ndarray]:
        """Have the threads inflate a span into the next slot; see `lib.store.counts._Fetch.submit`."""
        if len(self.slots) < self.n_slots:
            self.slots.append(Slot(int(self.offsets[-1])))
        slot = self.slots[self.submitted % self.n_slots]
        self.submitted += 1
        slot.copied.synchronize()
        futures = [
            future
            for reader, offset in zip(self.readers, self.offsets, strict=False)
            for future in reader.read_shuffled(self.fd, int(bounds[0]), int(bounds[-1]), slot.pinned[offset:])
        ]
        self.futures.append(futures)
        return slot, futures, bounds, keep

    def take(self, ticket: tuple[Slot, list[Future], np.ndarray, np.ndarray]) -> list[Any]:
        """The chosen rows of the span that `submit` gave the ticket of, on the card.

        Returns
        -------
        Counts (float32, or float64 if a count may need it), columns (int32) and indptr (int32) of these rows.
        """
        slot, futures, bounds, keep = ticket
        start, stop = int(bounds[0]), int(bounds[-1])
        for future in futures:
            future.result()
        current = cupy.cuda.get_current_stream()
        self.stream.wait_event(slot.read)
        n_chunks = (stop - 1) // CHUNK - start // CHUNK + 1 if stop > start else 0
        for reader, offset in zip(self.readers, self.offsets, strict=False):
            span = slice(offset, offset + n_chunks * reader.chunk_bytes)
            slot.card[span].set(slot.pinned[span], stream=self.stream)
        slot.copied.record(self.stream)
        starts = bounds[:-1][keep] - start // CHUNK * CHUNK
        indptr = np.concatenate([[0], np.cumsum(np.diff(bounds)[keep])])
        kept, starts = cupy.asarray(indptr.astype(np.int32)), cupy.asarray(starts.astype(np.int64))
        current.wait_event(slot.copied)
        arrays = []
        for reader, offset, dtype in zip(self.readers, self.offsets, self._dtypes(), strict=False):
            values = cupy.empty(int(indptr[-1]), dtype)
            if len(values):
                _WIDEN(slot.card[offset:], kept, starts, len(starts), reader.dtype.itemsize, CHUNK, values)
            arrays.append(values)
        slot.read.record(current)
        return [*arrays, kept]

    def close(self) -> None:
        """Wait until nothing writes into the buffers, and close the file."""
        wait([future for futures in self.futures for future in futures])
        self.stream.synchronize()
        os.close(self.fd)

    def _dtypes(self) -> tuple[Any, Any]:
        # The dtypes of CuPy's sparse matrices; float32 holds every integer up to 2^24
        return (np.float32 if self.readers[0].dtype.itemsize <= 2 else np.float64), np.int32
