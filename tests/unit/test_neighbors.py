"""Compare neighbours and their fuzzy graph with scanpy's and umap-learn's."""

from __future__ import annotations

import neighbors
import numpy as np
import pytest
from lib.methods.fuzzy import fuzzy_graph, read_graph
from lib.methods.knn import nearest_neighbors
from lib.methods.representation import representation
from lib.run import device as devices
from lib.run.errors import UserError
from lib.store.files import read_arrays, read_attrs, write_arrays

CPU = devices.cpu()
CONFIG = {"n_neighbors": 15, "n_pcs": 8, "metric": "euclidean", "use_rep": "auto"}
# The bisection ends when a cell's summed memberships are within 1e-5 of the target, above or below
TOLERANCE = 2e-5


def test_the_graph_is_scanpys(pbmc3k_graph):
    X = pbmc3k_graph.obsm["X_pca"][:, :40].astype(np.float32)
    graph = fuzzy_graph(*nearest_neighbors(X, 14), CPU)
    expected = pbmc3k_graph.obsp["connectivities"]
    assert abs(graph - expected).max() < TOLERANCE
    assert graph.nnz == expected.nnz
    assert (graph != graph.T).nnz == 0
    assert graph.dtype == np.float32


def test_duplicate_points_as_in_umap_learn():
    from umap.umap_ import fuzzy_simplicial_set

    X = np.repeat(np.random.default_rng(0).normal(size=(200, 5)), 3, axis=0).astype(np.float32)
    X[:40] = 0
    indices, distances = nearest_neighbors(X, 15, include_self=True)
    expected, _, _ = fuzzy_simplicial_set(X, 15, None, None, knn_indices=indices, knn_dists=distances)
    assert abs(fuzzy_graph(indices[:, 1:], distances[:, 1:], CPU) - expected).max() < TOLERANCE


def test_neither_blocks_nor_a_second_call_change_the_graph(blobs, monkeypatch):
    found = nearest_neighbors(blobs[0], 14)
    whole = fuzzy_graph(*found, CPU)
    assert (fuzzy_graph(*found, CPU) != whole).nnz == 0
    monkeypatch.setattr("lib.methods.fuzzy.BLOCK", 64)
    assert (fuzzy_graph(*found, CPU) != whole).nnz == 0


def test_the_artifact(job, cohort, blobs):
    X = blobs[0][:, :8].astype(np.float64)
    arrays = read_arrays(cohort.neighbors, "indices", "distances")
    squared = ((X[:, None] - X[None]) ** 2).sum(2)
    np.fill_diagonal(squared, np.inf)
    expected = np.sqrt(np.sort(squared, axis=1)[:, :90])  # what t-SNE usually needs
    # float32 distances by |a|^2 + |b|^2 - 2ab
    np.testing.assert_allclose(arrays["distances"], expected, rtol=1e-4)
    np.testing.assert_allclose(np.sqrt(np.take_along_axis(squared, arrays["indices"], 1)), expected, rtol=1e-4)
    assert (arrays["indices"].dtype, arrays["distances"].dtype) == (np.int32, np.float32)
    graph = read_graph(cohort.neighbors)
    assert (graph != fuzzy_graph(arrays["indices"][:, :14], arrays["distances"][:, :14], CPU)).nnz == 0
    assert read_attrs(cohort.neighbors) == {
        "n_neighbors": 15, "n_pcs": 8, "metric": "euclidean", "use_rep": "X_pca",
    }  # fmt: skip
    again = job({"neighbors": "again.h5"}, {"neighbors": CONFIG}, pca=cohort.pca, harmony=[])
    neighbors.main(again)
    assert again.output.neighbors.read_bytes() == cohort.neighbors.read_bytes()


def test_the_integrated_space_is_used_where_there_is_one(tmp_path):
    pca, harmony, skipped = tmp_path / "pca.h5", tmp_path / "harmony.h5", tmp_path / "skipped.h5"
    write_arrays(pca, {"X_pca": np.zeros((5, 3), np.float32)})
    write_arrays(harmony, {"X_pca_harmony": np.ones((5, 3), np.float32)})
    write_arrays(skipped, {}, skipped="only one batch (sample)")
    for path, use_rep, name in [
        (harmony, "auto", "X_pca_harmony"),
        (harmony, "X_pca", "X_pca"),
        (skipped, "auto", "X_pca"),
        ([], "auto", "X_pca"),
    ]:
        found, X = representation(pca, path and [path], use_rep, 2)
        assert found == name
        assert X.shape == (5, 2)
        assert X.all() == (name == "X_pca_harmony")
    for path in (skipped, []):
        with pytest.raises(UserError, match="use_rep is X_pca_harmony, but Harmony did not run"):
            representation(pca, path and [path], "X_pca_harmony", 2)
    for path in (harmony, []):
        assert representation(pca, path and [path], "auto", 4)[1].shape == (5, 3)


def test_there_are_no_more_neighbours_than_cells_nor_components_than_pca_found(tmp_path, job, notices):
    write_arrays(tmp_path / "pca.h5", {"X_pca": np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)})
    config = {"n_neighbors": 15, "n_pcs": 40, "metric": "euclidean", "use_rep": "auto"}
    inputs = {"pca": tmp_path / "pca.h5", "harmony": []}
    neighbors.main(job({"neighbors": "neighbors.h5"}, {"neighbors": config}, **inputs))
    attrs = read_attrs(tmp_path / "neighbors.h5")
    assert (attrs["n_neighbors"], attrs["n_pcs"]) == (9, 8)
    assert read_arrays(tmp_path / "neighbors.h5", "indices")["indices"].shape == (9, 8)
    assert notices == [
        "neighbors: n_pcs: 8 instead of 40: there are no more components",
        "neighbors: n_neighbors: 9 instead of 15: there are no more cells",
    ]
