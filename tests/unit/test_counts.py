"""The counts store: written counts are read back, whole or by chunks, masks and maps. All comparisons are exact."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lib.run import device
from lib.store import compressed
from lib.store.counts import Counts, CountsWriter
from lib.store.csr import column_sums, row_sums, rows_of_nonzeros, select_genes
from lib.store.stream import InMemory

CPU = device.resolve("cpu")


@pytest.fixture(name="X")
def matrix():
    """500 cells x 80 genes, about 16,000 non-zeros; the first, the last and a middle cell have none."""
    X = np.random.default_rng(0).poisson(0.5, (500, 80))
    X[[0, 250, 499]] = 0
    X[11, 12] = 65_535
    return sp.csr_matrix(X)


@pytest.fixture
def store(tmp_path, X, monkeypatch):
    """The matrix as a store in HDF5 chunks of 1000 elements, written 37 cells at a time."""
    monkeypatch.setattr(compressed, "CHUNK", 1000)
    write(tmp_path / "counts.h5ad", X)
    return tmp_path / "counts.h5ad"


def write(path, X, step=37, **options):
    writer = CountsWriter(path, X.shape[1], **options)
    for start in range(0, X.shape[0], step):
        writer.append(X[start : start + step])
    obs = pd.DataFrame(index=[f"C{i}" for i in range(X.shape[0])])
    names = np.array([f"G{i}" for i in range(X.shape[1])], dtype=object)
    writer.close(obs, pd.DataFrame({"gene_symbols": names[::-1]}, index=names))


def collect(stream, **limits):
    """All chunks concatenated, and their sizes; checks that each begins at the end of the one before."""
    done, parts = 0, []
    for chunk in stream.chunks(**limits):
        assert chunk.start == done
        assert chunk.rows == slice(done, done + chunk.X.shape[0])
        assert chunk.X.has_sorted_indices
        done += chunk.X.shape[0]
        parts.append(chunk.X)
    assert done == stream.n_obs
    return sp.vstack(parts).toarray(), [part.shape[0] for part in parts]


def test_plain_anndata_reads_the_store(store, X):
    adata = ad.read_h5ad(store)
    np.testing.assert_array_equal(adata.X.toarray(), X.toarray())
    assert adata.X.dtype == np.uint16
    assert adata.X.has_canonical_format
    assert list(adata.obs_names) == [f"C{i}" for i in range(500)]


def test_names(store):
    assert list(Counts(store).names("obs")[:2]) == ["C0", "C1"]
    assert list(Counts(store).names("var", "gene_symbols")[:2]) == ["G79", "G78"]


@pytest.mark.parametrize("limits", [{}, {"max_cells": 1}, {"max_cells": 64}, {"max_nnz": 500}, {"max_nnz": 1}])
def test_any_chunk_size_gives_the_matrix(store, X, limits):
    stream = Counts(store)
    assert (stream.n_obs, stream.n_vars, stream.nnz) == (500, 80, X.nnz)
    got, sizes = collect(stream, **limits)
    np.testing.assert_array_equal(got, X.toarray())
    assert max(sizes) <= limits.get("max_cells", 500)
    if limits.get("max_nnz") == 500:
        assert 10 < max(sizes) < 40
    np.testing.assert_array_equal(collect(stream)[0], got)  # a stream can be read again


def test_chunks_respect_the_number_of_nonzeros(store):
    assert max(chunk.X.nnz for chunk in Counts(store).chunks(max_nnz=500)) <= 500


@pytest.mark.parametrize("limits", [{}, {"max_cells": 7}, {"max_nnz": 500}])
@pytest.mark.parametrize("kept", ["half", "few", "a stretch", "none"])
def test_masks_of_cells(store, X, kept, limits):
    cells = {
        "half": np.random.default_rng(1).random(500) < 0.5,
        "few": np.isin(np.arange(500), [0, 17, 499]),
        "a stretch": (np.arange(500) > 300) & (np.arange(500) < 320),
        "none": np.zeros(500, bool),
    }[kept]
    stream = Counts(store, cells=cells)
    assert stream.n_obs == cells.sum()
    if kept == "none":
        assert list(stream.chunks(**limits)) == []
        return
    got, sizes = collect(stream, **limits)
    np.testing.assert_array_equal(got, X.toarray()[cells])
    assert min(sizes) > 0


@pytest.mark.parametrize("order", ["as stored", "reversed", "any"])
def test_maps_of_genes(store, X, order):
    kept = np.array([2, 3, 5, 40, 79])
    new = {"as stored": [0, 1, 2, 3, 4], "reversed": [4, 3, 2, 1, 0], "any": [3, 6, 0, 1, 5]}[order]
    genes = np.full(80, -1)
    genes[kept] = new
    expected = np.zeros((500, 7), int)  # the store has 5 of its 7 columns
    expected[:, new] = X.toarray()[:, kept]
    got, _ = collect(Counts(store, genes=genes, n_vars=7), max_cells=100)
    np.testing.assert_array_equal(got, expected)


def test_mask_and_map_at_once(store, X):
    cells, genes = np.arange(500) % 3 == 0, np.arange(80) - 40
    genes[:40] = -1
    got, _ = collect(Counts(store, cells=cells, genes=genes, n_vars=40), max_nnz=300)
    np.testing.assert_array_equal(got, X.toarray()[cells][:, 40:])


def test_a_stream_can_be_left_early(store, X):
    for chunk in Counts(store).chunks(max_cells=10):
        np.testing.assert_array_equal(chunk.X.toarray(), X[:10].toarray())
        break
    np.testing.assert_array_equal(collect(Counts(store))[0], X.toarray())


@pytest.mark.parametrize("step", [1, 37, 500])
def test_the_step_of_writing_does_not_show(tmp_path, X, step, monkeypatch):
    monkeypatch.setattr(compressed, "CHUNK", 128)
    write(tmp_path / "a.h5ad", X, step)
    np.testing.assert_array_equal(collect(Counts(tmp_path / "a.h5ad"))[0], X.toarray())


def test_a_count_beyond_the_type(tmp_path, X):
    X[11, 12] = 65_536
    writer = CountsWriter(tmp_path / "a.h5ad", 80)
    with pytest.raises(OverflowError, match="65536 does not fit uint16"):
        writer.append(X)
    writer.abort()
    write(tmp_path / "a.h5ad", X, dtype=np.uint32)
    np.testing.assert_array_equal(collect(Counts(tmp_path / "a.h5ad"))[0], X.toarray())


def test_many_genes(tmp_path):
    """Column indices beyond uint16."""
    X = sp.csr_matrix(([1, 2], ([0, 1], [65_535, 65_536])), shape=(2, 65_537))
    write(tmp_path / "a.h5ad", X)
    (chunk,) = Counts(tmp_path / "a.h5ad").chunks()
    assert (chunk.X != X).nnz == 0


def test_a_store_without_counts(tmp_path):
    write(tmp_path / "a.h5ad", sp.csr_matrix((3, 5), dtype=int))
    got, _ = collect(Counts(tmp_path / "a.h5ad"))
    np.testing.assert_array_equal(got, np.zeros((3, 5)))
    assert ad.read_h5ad(tmp_path / "a.h5ad").X.nnz == 0


def test_in_memory(X):
    stream = InMemory(X, max_cells=64)
    for limits in ({}, {"max_cells": 10}, {"max_cells": 1000}):
        got, sizes = collect(stream, **limits)
        np.testing.assert_array_equal(got, X.toarray())
        assert max(sizes) == min(64, limits.get("max_cells", 64))


def test_sums_do_not_overflow():
    """Sums of uint16 counts beyond 2^16, and beyond float32's 2^24."""
    X = sp.csr_matrix(np.full((300, 2), 65_535, np.uint16))
    X.data[0] = 65_534
    expected = np.full((300, 2), 65_535, np.int64)
    expected[0, 0] -= 1
    np.testing.assert_array_equal(row_sums(X, CPU), expected.sum(1))
    np.testing.assert_array_equal(column_sums(X, X.data, CPU), expected.sum(0))


def test_sums_and_rows(X):
    dense = X.toarray()
    np.testing.assert_array_equal(row_sums(X, CPU), dense.sum(1))
    np.testing.assert_array_equal(row_sums(X, CPU, X.data > 1), (dense > 1).sum(1))
    np.testing.assert_array_equal(column_sums(X, X.data, CPU), dense.sum(0))
    np.testing.assert_array_equal(rows_of_nonzeros(X, CPU), np.nonzero(dense)[0])


def test_select_genes_sorts_and_drops(X):
    genes = np.full(80, -1, np.int32)
    genes[[7, 3, 70]] = [0, 1, 2]
    got = select_genes(X, genes, 3, CPU)
    assert got.has_sorted_indices
    np.testing.assert_array_equal(got.toarray(), X.toarray()[:, [7, 3, 70]])


def test_obs_is_what_anndata_reads(tmp_path):
    """Numbers, booleans, categories of strings and of numbers, ordered or not, and a missing value."""
    obs = pd.DataFrame(
        {
            "n": np.arange(3),
            "share": [0.5, np.nan, 1],
            "good": [True, False, True],
            "batch": pd.Categorical(["b", "a", None]),
            "stage": pd.Categorical(["late", "early", "late"], ["early", "late"], ordered=True),
            "plate": pd.Categorical([2, 1, 2]),
        },
        index=["c1", "c2", "c3"],
    )
    writer = CountsWriter(tmp_path / "counts.h5ad", 2)
    writer.append(sp.csr_matrix(np.array([[1, 0], [0, 2], [3, 0]], np.uint32)))
    writer.close(obs, pd.DataFrame(index=["g1", "g2"]))
    read = ad.read_h5ad(tmp_path / "counts.h5ad").obs
    pd.testing.assert_frame_equal(Counts(tmp_path / "counts.h5ad").obs(), read, check_index_type=False)
