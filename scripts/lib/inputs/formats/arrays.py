"""Elements of HDF5 and zarr: what they are, and their values, of which no more is read than their shapes say."""

from __future__ import annotations

import os
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import deflate
import h5py
import numpy as np

from lib.inputs.formats.base import NUMBERS, PLUGIN, DamagedError
from lib.run.errors import UserError
from lib.store.compressed import pool

FREE, MOST = 64 << 20, 200  # bytes that a table may take in memory: any, and for each byte of its file
DENSE = 2000  # bytes of a dense matrix for each byte of its file: deflate makes 1032 of one
VLEN = 16  # bytes of a string of any length in a chunk: its length and where it is
FEW = 10_000  # elements of a vector that are read without asking where all its chunks are
PIECE = 1 << 20  # elements of a vector without chunks that a thread reads at a time
DEFLATE = h5py.h5z.FILTER_DEFLATE
OTHER = "holds more or fewer bytes than it should"
KINDS = {"O": "text or objects", "S": "text", "U": "text", "T": "text", "V": "records", "c": "complex numbers"}
KINDS |= {"b": "booleans"}


class File:
    """The elements of a file, by their paths from its root.

    Attributes
    ----------
    path, root
        The file, and its root: a group of h5py or zarr, or a `ZarrNode`, which reads no data.
    size
        Its bytes, with those of the files beside it that it links to.
    found
        Elements that were looked for before.
    """

    def __init__(self, path: Path, root: Any, size: int, found: dict[str, Any] | None = None) -> None:
        self.path, self.root, self.size = path, root, size
        self.places: dict[tuple[str, str], dict[int, int] | None] = {}
        self.found = found or {}

    def find(self, name: str) -> Any:
        """An element, or None."""
        if name not in self.found:
            try:
                outside = not isinstance(self.root, h5py.Group) and ".." in name.split("/")  # to HDF5 ".." is a name
                self.found[name] = self.root[name] if not outside and name in self.root else None
            except (LookupError, RuntimeError):  # links that lead nowhere
                self.found[name] = None
        return self.found[name]

    def group(self, name: str) -> Any:
        """A group."""
        found = self.find(name)
        if found is None:
            raise UserError(f"{self.path} is not laid out as its format is: it has no {name}.")
        if is_array(found):
            raise UserError(f"{self.path} is not laid out as its format is: {name} is no group.")
        return found

    def array(self, name: str, ndim: int = 1, kinds: str = "") -> Any:
        """An array with values of these kinds of NumPy's types."""
        found = self.find(name)
        if found is None:
            raise UserError(f"{self.path} is not laid out as its format is: it has no {name}.")
        if problem := array_problem(found, ndim, kinds):
            raise UserError(f"{self.path} is not laid out as its format is: {name} {problem}.")
        self.check_room(f"a chunk of {name}", chunk_bytes(found))
        return found

    def has_room(self, asked: int) -> bool:
        """Whether so many bytes are not far more than the file has."""
        return asked <= FREE + MOST * self.size

    def check_room(self, name: str, asked: int, dense: bool = False) -> None:
        """Refuse an array that would take far more memory than the file has bytes; or a dense matrix, on disk."""
        if not self.has_room(asked) and not (dense and asked <= 16 * FREE + DENSE * self.size):
            raise UserError(
                f"{self.path}: {name} says that it holds {asked / 1e6:,.0f} MB, and the file has "
                f"{self.size / 1e6:,.3f} MB. The shapes in it cannot be right: write it anew."
            )

    def check_written(self, name: str, array: Any) -> None:
        """Refuse an array of which a part was never written, which HDF5 and zarr would fill."""
        if lacking := _n_unwritten(array):
            raise DamagedError(self.path, f"{name} lacks {int(lacking)} of its chunks")

    def whole(self, name: str, array: Any) -> np.ndarray:
        """All values of an array."""
        self.check_room(name, n_bytes(array))
        return self.read(name, array)

    def read(self, name: str, array: Any, *selection: slice) -> np.ndarray:
        """The values of a part of an array. Threads inflate the raw chunks of a deflated HDF5 dataset."""
        many = len(selection) == 1 and len(range(*selection[0].indices(array.shape[0]))) > FEW
        if many and (places := self._plain_places(array)) is not None:
            return self._read_plain(name, array, selection[0], places)
        codes = codes_of(array)
        if codes not in ([DEFLATE], [h5py.h5z.FILTER_SHUFFLE, DEFLATE]) or array.dtype.kind not in NUMBERS:
            self.check_inflating(name, array)
            return array[selection]
        chunks, dtype, fetch = array.chunks, array.dtype, array.id.read_direct_chunk  # h5py asks HDF5 each time
        wanted = [*selection, *[slice(None)] * (array.ndim - len(selection))]
        bounds = [chosen.indices(n)[:2] for chosen, n in zip(wanted, array.shape, strict=True)]
        out = np.empty([stop - start for start, stop in bounds], dtype)
        grid = [range(start // n * n, stop, n) for (start, stop), n in zip(bounds, chunks, strict=True)]

        def inflate(at: tuple[int, ...]) -> None:
            edges = [
                (max(start, low), min(stop, low + n), start, low)
                for (start, stop), low, n in zip(bounds, at, chunks, strict=True)
            ]
            here = tuple(slice(low - start, high - start) for low, high, start, _ in edges)
            inner = tuple(slice(low - first, high - first) for low, high, _, first in edges)
            try:
                mask, raw = fetch(at)
            except (OSError, RuntimeError):  # never written
                mask, raw = 1, b""
            if mask:
                out[here] = array[tuple(slice(low, high) for low, high, *_ in edges)]
                return
            values = np.frombuffer(deflate.zlib_decompress(raw, prod(chunks) * dtype.itemsize), np.uint8)
            if len(values) != prod(chunks) * dtype.itemsize:
                raise DamagedError(self.path, f"a chunk of {name} {OTHER}")
            if len(codes) == 1:
                out[here] = values.view(dtype).reshape(chunks)[inner]
            else:
                planes = values.reshape(dtype.itemsize, *chunks)[(slice(None), *inner)]
                out[here] = np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view(dtype)[..., 0]

        list(pool().map(inflate, product(*grid)))
        return out

    def _plain_places(self, array: Any) -> dict[int, int] | None:
        """Where in the file the chunks of an HDF5 vector of numbers lie, as they are: first element -> byte.

        None if it has filters, or lies elsewhere, or the system cannot read in this way.
        """
        if not isinstance(array, h5py.Dataset) or not hasattr(os, "preadv"):
            return None
        where = array.file.filename, array.name
        if where not in self.places:
            self.places[where] = _plain_places(array)
        return self.places[where]

    def _read_plain(self, name: str, array: Any, selection: slice, places: dict[int, int]) -> np.ndarray:
        """A part of a vector without filters; several threads read, as HDF5 does not."""
        start, stop, _ = selection.indices(len(array))
        out, size, step = np.empty(max(0, stop - start), array.dtype), array.dtype.itemsize, (array.chunks or [0])[0]
        raw = out.view(np.uint8)
        edges = range(start // step * step, stop, step) if step else range(start, stop, PIECE)

        def fetch(at: int) -> None:
            low, high = max(at, start), min(at + (step or PIECE), stop)
            first = at if step else 0
            wanted = raw[(low - start) * size : (high - start) * size]
            if os.preadv(file.fileno(), [wanted], places[first] + (low - first) * size) < len(wanted):
                raise DamagedError(self.path, f"{name} ends too early")

        with open(array.file.filename, "rb", buffering=0) as file:
            list(pool().map(fetch, edges))
        return out

    def check_inflating(self, name: str, array: Any) -> None:
        """Refuse a deflated HDF5 dataset with a chunk of other bytes than it should have: HDF5 takes whatever comes."""
        codes = codes_of(array) or []
        if DEFLATE not in codes:
            return
        one = VLEN if array.dtype.kind == "O" else array.dtype.itemsize
        size, end = prod(array.chunks) * one, -4 if codes[-1] == h5py.h5z.FILTER_FLETCHER32 else None
        chunks: list[Any] = []
        array.id.chunk_iter(lambda chunk: chunks.append(chunk))  # a value that is not None would end the iteration
        for chunk in chunks:
            raw = array.id.read_direct_chunk(chunk.chunk_offset)[1]
            if not chunk.filter_mask and len(deflate.zlib_decompress(raw[:end], size)) != size:
                raise DamagedError(self.path, f"a chunk of {name} {OTHER}")

    def strings(self, name: str, array: Any) -> np.ndarray:
        """An array of text, or of numbers or booleans as text."""
        values = self.whole(name, array)
        if values.dtype.kind not in "biufSOUT":
            raise UserError(f"{self.path}: {name} is no array of text, but of {kind_name(values)}.")
        names = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):
            try:
                names[i] = value.decode() if isinstance(value, bytes) else str(value)
            except UnicodeDecodeError:
                self._refuse_name(name, i, f"is no UTF-8 but {value[:40]!r}. Write the names anew, as UTF-8")
            if "\0" in names[i]:
                self._refuse_name(name, i, f"has a NUL in it, {names[i][:40]!r}. Write the names anew")
        return names

    def _refuse_name(self, name: str, i: int, why: str) -> NoReturn:
        raise UserError(f"{self.path}: {name}: the name number {i + 1} {why}.")


def _plain_places(array: h5py.Dataset) -> dict[int, int] | None:
    """See `File._plain_places`."""
    plain = array.ndim == 1 and array.dtype.kind in NUMBERS and not array.is_virtual
    if not plain or array.external or array.file.driver != "sec2" or array.file.userblock_size:
        return None
    if array.chunks is None:
        at = array.id.get_offset()
        return None if at is None else {0: at}
    if codes_of(array):
        return None
    places: dict[int, int] = {}
    array.id.chunk_iter(lambda chunk: places.update({chunk.chunk_offset[0]: chunk.byte_offset}))
    return places if len(places) == -(-len(array) // array.chunks[0]) else None


def is_array(element: Any) -> bool:
    """Whether an element of HDF5 or zarr is an array, not a group."""
    return getattr(element, "shape", None) is not None or not hasattr(element, "__contains__")


def is_strings(element: Any) -> bool:
    """Whether an element is an HDF5 dataset of strings, with whichever attributes."""
    return isinstance(element, h5py.Dataset) and h5py.check_string_dtype(element.dtype) is not None


def is_numbers(element: Any) -> bool:
    """Whether an element is an HDF5 dataset of numbers, with whichever attributes."""
    return isinstance(element, h5py.Dataset) and element.dtype.kind in NUMBERS


def array_problem(element: Any, ndim: int, kinds: str = "") -> str | None:
    """Why an element is no array with so many dimensions and values of these kinds; None if it is."""
    if not hasattr(element, "shape") or (hasattr(element, "__contains__") and element.shape is None):
        return "is no array"
    if element.shape is None:
        return "is empty"
    if len(element.shape) != ndim:
        return f"has {len(element.shape)} dimension{'s' * (len(element.shape) != 1)}, not {ndim}"
    if kinds and np.dtype(element.dtype).kind not in kinds:
        return f"is no array of numbers, but of {kind_name(element)}"
    if (codes := codes_of(element) or []).count(DEFLATE) > 1:
        return "is compressed twice: write it anew"
    missing = [code for code in codes if not h5py.h5z.filter_avail(code)]
    return f"is {PLUGIN.format(f'HDF5 filter {missing[0]}')}" if missing else None


def kind_name(array: Any) -> str:
    """The kind of an array's values, in words."""
    dtype = np.dtype(array.dtype)
    return KINDS.get(dtype.kind, str(dtype))


def n_bytes(array: Any) -> int:
    """Bytes of an array in memory; at least those of one chunk."""
    return max(prod(array.shape or ()) * np.dtype(array.dtype).itemsize, chunk_bytes(array))


def chunk_bytes(array: Any) -> int:
    """Bytes of a chunk of an array in memory."""
    return prod(getattr(array, "chunks", None) or ()) * np.dtype(array.dtype).itemsize


def parts_of(element: Any) -> list[Any]:
    """An array, or the arrays of a group, such as values and mask."""
    if is_array(element):
        return [element]
    return [element[name] for name in element if name in element and is_array(element[name])]


def codes_of(array: Any) -> list[int] | None:
    """The codes of the filters of an HDF5 dataset in chunks; None for other arrays."""
    if not isinstance(array, h5py.Dataset) or array.chunks is None:
        return None
    filters = array.id.get_create_plist()
    return [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]


def _n_unwritten(array: Any) -> int:
    """Chunks of an array that were never written; 1 for one without chunks that was not."""
    if not isinstance(array, h5py.Dataset):
        return max(0, array.nchunks - array.nchunks_initialized)
    if array.is_virtual or not array.size:
        return 0
    if array.chunks is None:
        return int(not array.id.get_storage_size())
    return prod(-(-n // step) for n, step in zip(array.shape, array.chunks, strict=True)) - array.id.get_num_chunks()
