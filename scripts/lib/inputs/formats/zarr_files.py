"""Zarr on disk: the metadata of its elements without their data, and checks before zarr reads any data."""

from __future__ import annotations

import bz2
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lib.inputs.formats.arrays import FREE, MOST, File
from lib.inputs.formats.base import DamagedError, kind_of_file
from lib.inputs.formats.links import NOT_READ
from lib.run.errors import UserError

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
# Ways of storing numbers and text that run no code, by their names in zarr's versions 2 and 3
CODECS = {"blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma", "shuffle", "delta", "crc32", "crc32c", "adler32"}
CODECS |= {"fletcher32", "fixedscaleoffset", "bitround", "quantize", "astype", "packbits", "categorize"}
CODECS |= {"bytes", "transpose", "sharding_indexed", "vlen-utf8", "vlen-bytes", "vlen-array", "json2", "zfpy", "pcodec"}
INFLATERS = {"gzip": lambda: zlib.decompressobj(31), "zlib": zlib.decompressobj}
INFLATERS |= {"bz2": bz2.BZ2Decompressor, "lzma": lzma.LZMADecompressor}


def zarr_file(path: Path, data: bool) -> File:
    """The elements of a zarr; only their metadata without `data`.

    Raises
    ------
    UserError
        If a part of the store lies outside its folder or is no file, if metadata are broken, or if a chunk would run
        code or inflate to more than it should.
    """
    size, nodes = 0, []
    for folder, files in _folders(path):
        size += sum(file.stat().st_size for file in files)
        node = ZarrNode(folder, path) if any(file.name in METADATA[:2] for file in files) else None
        if node is not None and node.shape is not None:
            nodes.append(node)
    node = ZarrNode(path, path)
    if not node.about:
        raise UserError(
            f"{path} is no zarr: it has neither zarr.json nor .zgroup. Correct its path in the sample sheet."
        )
    if node.shape is not None:
        raise UserError(f"{path} is no group of zarr but an array. Give an AnnData file.")
    if not data:
        return File(path, node, size)
    for array in nodes:
        array.check_chunks()
    import zarr

    return File(path, zarr.open_group(path, mode="r", use_consolidated=False), size)


def _folders(path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The folders of a store with their files, without those that no reader opens."""
    home = path.resolve()
    for top, folders, names in os.walk(path, followlinks=False):
        if Path(top) == path:
            folders[:] = [name for name in folders if name not in NOT_READ]
        files = [Path(top) / name for name in names]
        for element in [*files, *(Path(top) / name for name in folders)]:
            link = element.is_symlink()
            if link and not element.resolve().is_relative_to(home):
                where = element.relative_to(path)
                raise UserError(
                    f"{path}: {where} is a link to {os.readlink(element)}, outside its folder. Copy it there."
                )
            if link and element.is_dir():
                raise UserError(f"{path}: {element.relative_to(path)} is a link to a folder. Write the zarr anew.")
        for file in files:
            if not file.is_file():
                raise UserError(
                    f"{path}: {file.relative_to(path)} is no file but {kind_of_file(file)}. Write the zarr anew."
                )
        yield Path(top), files


class ZarrNode:
    """The metadata of a group or an array of a zarr on disk, version 2 or 3, with the interface of h5py."""

    def __init__(self, path: Path, home: Path) -> None:
        self.path, self.home = path, home
        self.name = path.relative_to(home).as_posix()
        self.shape: tuple[int, ...] | None = None
        self.chunks: tuple[int, ...] | None = None
        if (path / "zarr.json").exists():
            self.about = self._json("zarr.json")
            self.attrs, dtype = self.about.get("attributes", {}), self.about.get("data_type")
            grid = self.about.get("chunk_grid", {})
            chunks = grid.get("configuration", {}).get("chunk_shape") if isinstance(grid, dict) else None
            codecs = self.about.get("codecs", ())
        else:
            self.about = self._json(".zarray") | self._json(".zgroup")
            self.attrs, dtype, chunks = self._json(".zattrs"), self.about.get("dtype"), self.about.get("chunks")
            codecs = [*(self.about.get("filters") or ()), self.about.get("compressor")]
        try:
            self.dtype = np.dtype(dtype if isinstance(dtype, str) else object)
        except TypeError:
            if not isinstance(dtype, str) or not dtype.isalnum():
                self.refuse(f"the type of its values is unknown, {dtype}")
            self.dtype = np.dtype(object)
        if "shape" in self.about:
            self.shape, self.chunks = self._sizes("shape", self.about["shape"]), self._sizes("chunks", chunks)
            self.codecs = list(self._codecs(codecs))

    def _json(self, name: str) -> dict[str, Any]:
        """A file of metadata; empty if there is none."""
        file = self.path / name
        if not file.exists():
            return {}
        try:
            found = json.loads(file.read_text())
        except ValueError as error:
            raise DamagedError(self.home, f"{self.name}/{name} is no JSON ({error})") from None
        if not isinstance(found, dict):
            self.refuse(f"its {name} is no object of JSON")
        return found

    def _sizes(self, what: str, told: Any) -> tuple[int, ...]:
        if not isinstance(told, list) or not all(isinstance(n, int) and n >= (what == "chunks") for n in told):
            self.refuse(f"its {what} are {str(told)[:60]}, not whole numbers")
        return tuple(told)

    def _codecs(self, told: Any) -> Iterator[str]:
        """The names of the ways in which an array is stored, the last one applied last."""
        for codec in told:
            if codec is not None:
                name = str(codec.get("name", codec.get("id")) if isinstance(codec, dict) else codec)
                name = name.removeprefix("numcodecs.")
                if name == "pickle":
                    self.refuse("it is stored as Python's pickles, which run code as they are read")
                if name not in CODECS:
                    self.refuse(f"it is stored in a way that is not known here, {name}")
                yield name

    def refuse(self, why: str) -> NoReturn:
        """Refuse an element whose metadata are odd."""
        raise UserError(f"{self.home} is not laid out as its format is: {self.name}: {why}. Write the zarr anew.")

    @property
    def nchunks(self) -> int:
        """Chunks, or shards, that there should be."""
        return prod(-(-n // step) for n, step in zip(self.shape or (), self.chunks or (), strict=True))

    @property
    def nchunks_initialized(self) -> int:
        """Chunks that are there: zarr fills the others."""
        return min(self.nchunks, sum(1 for _ in self._chunk_files()))

    def _chunk_files(self) -> Iterator[Path]:
        return (file for file in self.path.rglob("*") if file.name not in METADATA and file.is_file())

    @property
    def _chunk_bytes(self) -> int:
        return prod(self.chunks or ()) * max(self.dtype.itemsize, 1)

    def check_chunks(self) -> None:
        """Refuse a chunk that would inflate to far more than it should."""
        codec = next((name for name in reversed(self.codecs) if name not in ("crc32c", "crc32", "adler32")), "")
        for file in self._chunk_files():
            text = self.dtype.kind == "O"
            most = FREE + MOST // 10 * file.stat().st_size if text else 4 * self._chunk_bytes + FREE // 64
            if _inflated(codec, file, most) > most:
                raise DamagedError(
                    self.home, f"the chunk {file.relative_to(self.home)} holds more bytes than it should"
                )

    def __contains__(self, name: str) -> bool:
        """Whether it has this element."""
        parts = Path(name).parts
        inside = parts and ".." not in parts and not Path(name).is_absolute()
        return bool(inside) and any((self.path / name / file).exists() for file in METADATA[:3])

    def get(self, name: str) -> ZarrNode | None:
        """An element, or None."""
        found = name in self
        return self[name] if found else None

    def __getitem__(self, name: str) -> ZarrNode:
        """An element."""
        if name not in self:
            raise KeyError(f"it has no {self.path.name}/{name}")
        return ZarrNode(self.path / name, self.home)

    def __iter__(self) -> Iterator[str]:
        """The names of its elements."""
        return (file.name for file in sorted(self.path.iterdir()) if file.is_dir() and file.name in self)


def _inflated(codec: str, file: Path, most: int) -> int:
    """How many bytes a chunk's file inflates to, as its first bytes say, or by inflating it up to `most`."""
    with file.open("rb") as opened:
        head = opened.read(18)
        if codec == "blosc":
            return int.from_bytes(head[4:8], "little")
        if codec == "lz4":
            return int.from_bytes(head[:4], "little")
        if codec == "zstd" and len(head) >= 6:
            flag = head[4] >> 6
            at = 5 + (not head[4] & 32) + (0, 1, 2, 4)[head[4] & 3]
            size = (int(bool(head[4] & 32)), 2, 4, 8)[flag]
            return int.from_bytes(head[at : at + size], "little") + 256 * (flag == 1)
        if codec in ("gzip", "zlib") and 1100 * file.stat().st_size <= most:
            return 0
        opened.seek(0)
        try:
            return _streamed(INFLATERS[codec], opened.read(), most) if codec in INFLATERS else 0
        except (zlib.error, OSError, lzma.LZMAError, EOFError):
            return 0  # zarr tells of the damage


def _streamed(inflater: Callable[[], Any], raw: bytes, most: int) -> int:
    """How many bytes streams inflate to, counted up to some more than `most`."""
    total = 0
    while raw and total <= most:
        stream = inflater()
        while not stream.eof and total <= most:
            inflated = stream.decompress(raw, 1 << 20)
            raw = getattr(stream, "unconsumed_tail", b"")
            if not inflated and not raw:
                break
            total += len(inflated)
        raw = stream.unused_data or raw
    return total
