"""Compare UMAP with scanpy's and umap-learn's, and t-SNE with scikit-learn's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tsne
from lib.methods.fuzzy import read_graph
from lib.methods.knn import nearest_neighbors
from lib.run import device as devices
from scipy.sparse import csr_matrix
from sklearn.manifold import trustworthiness

CPU = devices.cpu()
UMAP = {"min_dist": 0.5, "spread": 1.0, "n_epochs": None, "init_pos": "spectral"}
TSNE = {"perplexity": 30, "early_exaggeration": 12, "learning_rate": 1000, "n_iter": 750}


def kept_neighbours(X, embedding, k=15):
    """The fraction of each point's k neighbours that are among its k neighbours in the embedding."""
    before, after = nearest_neighbors(X, k)[0], nearest_neighbors(embedding.astype(np.float32), k)[0]
    return (before[:, :, None] == after[:, None, :]).any(2).mean()


def test_umap_is_scanpys_on_the_same_graph(pbmc3k_graph, umap_stage):
    import scanpy as sc

    adata = pbmc3k_graph.copy()
    sc.tl.umap(adata, min_dist=0.5, maxiter=50)
    X = adata.obsm["X_pca"][:, :40]
    found = umap_stage.embed(adata.obsp["connectivities"], X, "euclidean", UMAP | {"n_epochs": 50}, seed=0, device=CPU)
    # The same calls in the same order: results must be equal
    np.testing.assert_array_equal(found, adata.obsm["X_umap"])


@pytest.mark.parametrize("n_obs", [3, 4])
def test_umap_of_a_few_cells(umap_stage, n_obs):
    """Spectral positions take more cells than eigenvectors."""
    graph = csr_matrix(1 - np.eye(n_obs, dtype=np.float32))
    X = np.eye(n_obs, dtype=np.float32)
    found = umap_stage.embed(graph, X, "euclidean", UMAP | {"n_epochs": 5}, seed=0, device=CPU)
    assert found.shape == (n_obs, 2)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_umap_is_as_trustworthy_as_umap_learn_on_its_own(pbmc3k_graph, umap_stage):
    import umap

    X = pbmc3k_graph.obsm["X_pca"][:, :40].astype(np.float32)
    found = umap_stage.embed(pbmc3k_graph.obsp["connectivities"], X, "euclidean", UMAP, seed=0, device=CPU)
    direct = umap.UMAP(min_dist=0.5, random_state=0, n_jobs=1).fit_transform(X)
    # Layouts from different seeds differ by less
    assert trustworthiness(X, found, n_neighbors=15) > trustworthiness(X, direct, n_neighbors=15) - 0.01


def test_umap_from_random_positions_is_nearly_as_trustworthy(pbmc3k_graph, umap_stage):
    graph, X = pbmc3k_graph.obsp["connectivities"], pbmc3k_graph.obsm["X_pca"][:, :40].astype(np.float32)
    before = graph.data.copy()
    spectral, random = (
        trustworthiness(X, umap_stage.embed(graph, X, "euclidean", UMAP | changed, seed=0, device=CPU), n_neighbors=15)
        for changed in ({"n_epochs": 100}, {"n_epochs": 100, "init_pos": "random"})
    )
    # Both about 0.9; a layout without structure has 0.5
    assert random > spectral - 0.05
    assert spectral > 0.85
    assert (graph.data == before).all()


def test_umap_keeps_separate_components_apart(cohort, blobs, umap_stage, job):
    from scipy.sparse.csgraph import connected_components

    assert connected_components(read_graph(cohort.neighbors))[0] == 5
    _, labels = blobs
    runs = [
        job(
            {"umap": f"{i}.parquet"}, {"umap": UMAP | {"n_epochs": 100}},
            pca=cohort.pca, harmony=[], neighbors=cohort.neighbors, obs=cohort.obs,
        )
        for i in range(2)
    ]  # fmt: skip
    for task in runs:
        umap_stage.main(task)
    table = pd.read_parquet(runs[0].output.umap)
    assert list(table) == ["UMAP1", "UMAP2"]
    assert list(table.index) == list(pd.read_parquet(cohort.obs).index)
    assert (labels[nearest_neighbors(table.to_numpy(), 5)[0]] == labels[:, None]).mean() > 0.99
    assert runs[0].output.umap.read_bytes() == runs[1].output.umap.read_bytes()


def test_tsne_keeps_neighbours_as_scikit_learns_does(pbmc3k_graph):
    from sklearn import manifold

    X = pbmc3k_graph.obsm["X_pca"][::4, :40].astype(np.float32)
    found = tsne.embed(*nearest_neighbors(X, 90), X, TSNE, seed=0, n_jobs=1, device=CPU)
    reference = manifold.TSNE(perplexity=30, learning_rate=1000, max_iter=750, random_state=0, init="pca")
    expected = reference.fit_transform(X)
    # Another implementation of the same approximation; seeds differ by about as much
    assert trustworthiness(X, found, n_neighbors=15) > trustworthiness(X, expected, n_neighbors=15) - 0.02
    assert kept_neighbours(X, found) > kept_neighbours(X, expected) - 0.03


def test_tsne_table(cohort, blobs, job):
    _, labels = blobs
    runs = [
        job(
            {"tsne": f"{i}.parquet"}, {"tsne": TSNE | {"perplexity": 20, "n_iter": 100}},
            pca=cohort.pca, harmony=[], neighbors=cohort.neighbors, obs=cohort.obs, threads=1 + i,
        )
        for i in range(2)
    ]  # fmt: skip
    for task in runs:
        tsne.main(task)
    table = pd.read_parquet(runs[0].output.tsne)
    assert list(table) == ["tSNE1", "tSNE2"]
    assert list(table.index) == list(pd.read_parquet(cohort.obs).index)
    assert (labels[nearest_neighbors(table.to_numpy(), 5)[0]] == labels[:, None]).mean() > 0.99
    # One thread and two threads give equal results
    assert runs[0].output.tsne.read_bytes() == runs[1].output.tsne.read_bytes()


def test_tsne_finds_more_neighbours_than_are_kept_where_it_needs_them(blobs, notices):
    X = blobs[0]
    kept = nearest_neighbors(X, 90)
    for perplexity, k in ((20, 90), (30, 90), (31, 93), (100, 300)):
        found = tsne.enough_neighbors(*kept, X, "euclidean", perplexity, 0, 1, CPU)
        assert found[0].shape == found[1].shape == (len(X), k)
        np.testing.assert_array_equal(found[0][:, :90], kept[0])
    few = tsne.enough_neighbors(*nearest_neighbors(X[:60], 59), X[:60], "euclidean", 30, 0, 1, CPU)
    assert few[0].shape == (60, 59)
    assert notices == ["tsne: perplexity: 59 neighbours instead of 90: there are 60 cells only"]


def test_tsne_of_few_cells_lowers_the_perplexity(caplog):
    caplog.set_level("INFO")
    X = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    found = tsne.embed(*nearest_neighbors(X, 19), X, TSNE, seed=0, n_jobs=1, device=CPU)
    assert found.shape == (20, 2)
    assert np.isfinite(found).all()
    assert "19 neighbours each, perplexity 6.33" in caplog.text


def test_umap_curve_is_umap_learns(umap_stage):
    """a and b as scanpy records them for min_dist 0.5, spread 1.0; the fit is accurate to 1e-6."""
    assert umap_stage.curve_of(0.5, 1.0) == pytest.approx({"a": 0.5830300205483709, "b": 1.334166992455648}, rel=1e-6)
