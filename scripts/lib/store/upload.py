"""Upload compressed arrays to the GPU: threads inflate them into pinned buffers, which are copied while it computes.

Each span of elements takes the next of a few slots; a slot is a pinned buffer and a buffer on the card. Threads inflate
the span's chunks into the pinned buffer, still shuffled and in the file's dtype. A separate stream copies it to the
card, where a kernel unshuffles and widens the chosen rows. So reading, copying and computing overlap, and the compact
dtypes are copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cupy
import numpy as np

from lib.store.compressed import CHUNK, CompressedReader

if TYPE_CHECKING:
    from lib.store.counts import Source

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


@dataclass(frozen=True)
class Ticket:
    """A span that is under way: its slot, who fills it, and where its chunks begin in the file and in the slot."""

    slot: Slot
    futures: list[Future]
    readers: Sequence[CompressedReader]
    spans: list[slice]
    bounds: np.ndarray
    keep: np.ndarray


class Upload:
    """Uploads spans of rows of stores, in the order of the requests; `n_slots` of them may be under way at a time."""

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        self.slots: list[Slot] = []  # allocated on demand, while the threads fill the previous one
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.submitted = 0
        self.futures: deque[list[Future]] = deque(maxlen=n_slots)

    def submit(self, source: Source, bounds: np.ndarray, keep: np.ndarray) -> Ticket:
        """Have the threads inflate a span into the next slot; see `lib.store.counts.Reader.submit`."""
        start, stop = int(bounds[0]), int(bounds[-1])
        n_chunks = (stop - 1) // CHUNK - start // CHUNK + 1 if stop > start else 0
        ends = np.cumsum([0, *(n_chunks * reader.chunk_bytes for reader in source.readers)])
        slot = self._slot(max(int(ends[-1]), 1))
        spans = [slice(*pair) for pair in pairwise(ends)]
        futures = [
            future
            for reader, span in zip(source.readers, spans, strict=True)
            for future in reader.read_shuffled(source.fd, start, stop, slot.pinned[span])
        ]
        self.futures.append(futures)
        return Ticket(slot, futures, source.readers, spans, bounds, keep)

    def _slot(self, n_bytes: int) -> Slot:
        """The next slot, its last copy done, of at least this size; a new one has room for spans of more chunks."""
        i = self.submitted % self.n_slots
        self.submitted += 1
        if i < len(self.slots):
            self.slots[i].copied.synchronize()
            if len(self.slots[i].pinned) >= n_bytes:
                return self.slots[i]
        self.slots[i : i + 1] = [Slot(n_bytes + n_bytes // 4)]
        return self.slots[i]

    def take(self, ticket: Ticket) -> list[Any]:
        """The chosen rows of a span, on the card.

        Returns
        -------
        Counts (float32, or float64 if a count may need it), columns (int32) and indptr (int32) of these rows.
        """
        slot, bounds, keep = ticket.slot, ticket.bounds, ticket.keep
        for future in ticket.futures:
            future.result()
        current = cupy.cuda.get_current_stream()
        self.stream.wait_event(slot.read)
        for span in ticket.spans:
            slot.card[span].set(slot.pinned[span], stream=self.stream)
        slot.copied.record(self.stream)
        starts = bounds[:-1][keep] - int(bounds[0]) // CHUNK * CHUNK
        indptr = np.concatenate([[0], np.cumsum(np.diff(bounds)[keep])])
        kept, starts = cupy.asarray(indptr.astype(np.int32)), cupy.asarray(starts.astype(np.int64))
        current.wait_event(slot.copied)
        arrays = []
        for reader, span, dtype in zip(ticket.readers, ticket.spans, _dtypes(ticket.readers), strict=True):
            values = cupy.empty(int(indptr[-1]), dtype)
            if len(values):
                _WIDEN(slot.card[span], kept, starts, len(starts), reader.dtype.itemsize, CHUNK, values)
            arrays.append(values)
        slot.read.record(current)
        return [*arrays, kept]

    def close(self) -> None:
        """Wait until nothing writes into the buffers."""
        wait([future for futures in self.futures for future in futures])
        self.stream.synchronize()


def _dtypes(readers: Sequence[CompressedReader]) -> tuple[Any, Any]:
    """Those of CuPy's sparse matrices; float32 holds every integer up to 2^24."""
    return (np.float32 if readers[0].dtype.itemsize <= 2 else np.float64), np.int32
