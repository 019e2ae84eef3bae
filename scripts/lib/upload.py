"""Compressed arrays on their way to the GPU: threads inflate into pinned buffers, which travel while it computes.

A span of elements takes the next of a few slots, each a pinned buffer and one on the card. Threads inflate its chunks
into the first, still shuffled and in the file's dtype; a stream of its own copies it to the second; a kernel there
unshuffles and widens. Reading, travelling and computing so go on at the same time, and the compact dtypes travel.
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

from .compressed import CHUNK, CompressedReader

_WIDEN = cupy.ElementwiseKernel(
    "raw uint8 shuffled, int64 skip, int32 size, int64 chunk",
    "T value",
    """
    long long at = i + skip, block = at / chunk;
    long long first = block * size * chunk + (at - block * chunk);
    unsigned int bits = 0;
    for (int byte = 0; byte < size; ++byte) bits |= (unsigned int)shuffled[first + byte * chunk] << (8 * byte);
    value = (T)bits;
    """,
    "somersault_widen",
)


class Slot:
    """A pinned buffer, one on the card, and the events of the last copy and of the last kernel that read it."""

    def __init__(self, n_bytes: int) -> None:
        self.pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(n_bytes), np.uint8, n_bytes)
        self.card = cupy.empty(n_bytes, np.uint8)
        self.copied, self.read = cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True)
        self.read.record()


class Upload:
    """Spans of several arrays, in the order in which they are asked for.

    Parameters
    ----------
    path
        The file.
    readers
        Its arrays, of unsigned integers: data, then indices.
    largest
        Elements of the largest span.
    n_slots
        Spans that may be on their way at a time.
    """

    def __init__(self, path: Path, readers: Sequence[CompressedReader], largest: int, n_slots: int) -> None:
        self.fd, self.readers = os.open(path, os.O_RDONLY), readers
        n_chunks = (largest - 1) // CHUNK + 2  # a span begins and ends within a chunk
        self.offsets = np.cumsum([0, *(n_chunks * reader.chunk_bytes for reader in readers)])
        self.slots = [Slot(int(self.offsets[-1])) for _ in range(n_slots)]
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.submitted = 0
        self.futures: deque[list[Future]] = deque(maxlen=n_slots)

    def submit(self, start: int, stop: int) -> tuple[Slot, list[Future], int, int]:
        """Have the threads inflate a span into the next slot."""
        slot = self.slots[self.submitted % len(self.slots)]
        self.submitted += 1
        slot.copied.synchronize()
        futures = [
            future
            for reader, offset in zip(self.readers, self.offsets, strict=False)
            for future in reader.read_shuffled(self.fd, start, stop, slot.pinned[offset:])
        ]
        self.futures.append(futures)
        return slot, futures, start, stop

    def take(self, ticket: tuple[Slot, list[Future], int, int]) -> list[Any]:
        """A span's counts (float32, float64 where a count may need it) and columns (int32), on the card."""
        slot, futures, start, stop = ticket
        for future in futures:
            future.result()
        current = cupy.cuda.get_current_stream()
        self.stream.wait_event(slot.read)
        n_chunks = (stop - 1) // CHUNK - start // CHUNK + 1 if stop > start else 0
        for reader, offset in zip(self.readers, self.offsets, strict=False):
            span = slice(offset, offset + n_chunks * reader.chunk_bytes)
            slot.card[span].set(slot.pinned[span], stream=self.stream)
        slot.copied.record(self.stream)
        current.wait_event(slot.copied)
        arrays = [
            self._widened(slot.card[offset:], reader.dtype, dtype, start, stop)
            for reader, offset, dtype in zip(self.readers, self.offsets, self._dtypes(), strict=False)
        ]
        slot.read.record(current)
        return arrays

    def close(self) -> None:
        """Wait for what still writes into the buffers, and close the file."""
        wait([future for futures in self.futures for future in futures])
        self.stream.synchronize()
        os.close(self.fd)

    def _dtypes(self) -> tuple[Any, Any]:
        # What CuPy's sparse matrices hold; float32 has every integer up to 2^24
        return (np.float32 if self.readers[0].dtype.itemsize <= 2 else np.float64), np.int32

    @staticmethod
    def _widened(shuffled: Any, stored: np.dtype, dtype: Any, start: int, stop: int) -> Any:
        values = cupy.empty(stop - start, dtype)
        if len(values):
            _WIDEN(shuffled, start % CHUNK, stored.itemsize, CHUNK, values)
        return values
