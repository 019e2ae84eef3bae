"""Compressed arrays: h5py reads the appended values, however they were cut, and equal input gives equal bytes."""

import h5py
import numpy as np
import pytest
from lib.store import compressed
from lib.store.files import LIBVER


def written(path, pieces, dtype):
    with h5py.File(path, "w", libver=LIBVER) as file:
        array = compressed.CompressedArray(file, "x", dtype)
        for piece in pieces:
            array.append(piece)
        array.close()
    return path


@pytest.mark.parametrize(
    ("stored", "appended"),
    [(np.uint16, np.uint16), (np.int32, np.uint16), (np.int32, np.float32), (np.float32, np.float32), (np.int64, int)],
)
@pytest.mark.parametrize("n", [1, 127, 128, 129, 1000, 1024])
def test_pieces_of_any_length_are_joined(tmp_path, monkeypatch, stored, appended, n):
    """Pieces shorter or longer than a chunk, or empty, that end within chunks and between them."""
    monkeypatch.setattr(compressed, "CHUNK", 128)
    rng = np.random.default_rng(n)
    values = rng.integers(0, 60_000, n).astype(appended)
    if stored == np.float32:
        values = np.log1p(values) - 5
    for cuts in ([], [0, 0], rng.integers(0, n + 1, 5), rng.integers(0, n + 1, 40)):
        path = written(tmp_path / "a.h5", np.split(values, np.sort(cuts).astype(int)), stored)
        with h5py.File(path) as file:
            assert file["x"].dtype == stored
            assert file["x"].chunks == (128,)
            np.testing.assert_array_equal(file["x"][...], values.astype(stored))


def test_cuts_leave_no_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "CHUNK", 128)
    values = np.arange(1000, dtype=np.int32) ** 2
    whole = written(tmp_path / "a.h5", [values], np.int32).read_bytes()
    assert written(tmp_path / "b.h5", np.split(values, [3, 200, 201, 700]), np.int32).read_bytes() == whole


def test_nothing_appended(tmp_path):
    with h5py.File(written(tmp_path / "a.h5", [np.empty(0)], np.int32)) as file:
        assert file["x"].shape == (0,)
