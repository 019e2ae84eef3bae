"""Compare formats and codecs for the counts store by write time, bytes and stream rate.

    uv run python tests/benchmarks/formats.py --cells 20000

Writes simulated counts (30,000 genes, about 2,400 non-zeros per cell) in every format, reads each three times in row
chunks from a warm page cache, and prints a table with the fastest of the three reads. `store` is `lib.store.counts`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from lib.store.compressed import CHUNK
from lib.store.counts import Counts, CountsWriter
from simulate import Design, simulate
from zarr.codecs import BloscCodec, ZstdCodec

Pieces = Iterator[tuple[np.ndarray, np.ndarray]]
ROWS = 6_000_000  # elements read or written at a time


def hdf5(value_type: str, index_type: str, **options: Any) -> tuple[Callable, Callable]:
    """Two datasets of an HDF5 file, through h5py."""

    def write(path: Path, X: sp.csr_matrix) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=X.data.astype(value_type), **options)
            file.create_dataset("indices", data=X.indices.astype(index_type), **options)

    def read(path: Path) -> Pieces:
        with h5py.File(path) as file:
            data, indices = file["data"], file["indices"]
            for start in range(0, len(data), ROWS):
                yield data[start : start + ROWS], indices[start : start + ROWS]

    return write, read


def zarr3(compressor: Any, shards: int | None) -> tuple[Callable, Callable]:
    """Two uint16 arrays of a zarr group, in shards of this many chunks."""

    def write(path: Path, X: sp.csr_matrix) -> None:
        group = zarr.open_group(path, mode="w", zarr_format=3)
        for name, values in (("data", X.data), ("indices", X.indices)):
            shape = (CHUNK * shards,) if shards else None
            array = group.create_array(
                name, shape=values.shape, dtype="uint16", chunks=(CHUNK,), shards=shape, compressors=compressor
            )
            step = CHUNK * (shards or 16)
            for start in range(0, len(values), step):
                array[start : start + step] = values[start : start + step].astype(np.uint16)

    def read(path: Path) -> Pieces:
        group = zarr.open_group(path, mode="r")
        data, indices = group["data"], group["indices"]
        for start in range(0, data.shape[0], ROWS):
            yield data[start : start + ROWS], indices[start : start + ROWS]

    return write, read


def store() -> tuple[Callable, Callable]:
    """The project's store: shuffle and deflate by threads, bypassing HDF5's own filters."""

    def write(path: Path, X: sp.csr_matrix) -> None:
        writer = CountsWriter(path, X.shape[1])
        for start in range(0, X.shape[0], 2000):
            writer.append(X[start : start + 2000])
        writer.close(pd.DataFrame(index=map(str, range(X.shape[0]))), pd.DataFrame(index=map(str, range(X.shape[1]))))

    def read(path: Path) -> Pieces:
        for chunk in Counts(path).chunks():
            yield chunk.X.data, chunk.X.indices

    return write, read


CHUNKED = {"chunks": (CHUNK,), "shuffle": True}
BLOSC = {"cname": "lz4", "shuffle": "bitshuffle"}
FORMATS = {
    "HDF5, int32, as AnnData writes it": hdf5("i4", "i4"),
    "HDF5, uint16, uncompressed": hdf5("u2", "u2"),
    "HDF5, uint16, lzf": hdf5("u2", "u2", compression="lzf", **CHUNKED),
    "HDF5, uint16, deflate 1, h5py": hdf5("u2", "u2", compression="gzip", compression_opts=1, **CHUNKED),
    "store: HDF5, uint16, deflate 1, threads": store(),
    "zarr 3, uncompressed, 16 chunks a shard": zarr3(None, 16),
    "zarr 3, blosc lz4, chunk files": zarr3(BloscCodec(**BLOSC), None),
    "zarr 3, blosc lz4, 16 chunks a shard": zarr3(BloscCodec(**BLOSC), 16),
    "zarr 3, zstd 1, 16 chunks a shard": zarr3(ZstdCodec(level=1), 16),
}


def measure(write: Callable, read: Callable, X: sp.csr_matrix, folder: Path) -> tuple[float, float, int, float]:
    """Seconds to write, bytes per non-zero, files, and non-zeros per second of the fastest of three reads."""
    path = folder / "counts"
    started = time.perf_counter()
    write(path, X)
    written = time.perf_counter() - started
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    seconds, expected = [], X.data.sum(dtype=np.int64) + X.indices.sum(dtype=np.int64)
    for _ in range(3):
        started = time.perf_counter()
        found = sum(data.sum(dtype=np.int64) + indices.sum(dtype=np.int64) for data, indices in read(path))
        seconds.append(time.perf_counter() - started)
        assert found == expected
    size = sum(file.stat().st_size for file in files)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return written, size / X.nnz, len(files), X.nnz / min(seconds)


def main() -> None:
    """Simulate, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20_000)
    cells = parser.parse_args().cells
    _, blocks = simulate(Design(30_000, 20, 6000), 8, cells // 8)
    X = sp.vstack([block.astype(np.int32) for block, _ in blocks], format="csr")
    print(f"{X.shape[0]} cells x {X.shape[1]} genes, {X.nnz / 1e6:.0f} million non-zeros\n")
    print("| format | write, s | bytes a non-zero | files | stream, million non-zeros/s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (write, read) in FORMATS.items():
            written, size, files, rate = measure(write, read, X, Path(folder))
            print(f"| {name} | {written:.2f} | {size:.2f} | {files} | {rate / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
