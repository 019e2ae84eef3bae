"""Scrublet against scanpy's, against planted doublets, and as a stage."""

from __future__ import annotations

from types import SimpleNamespace

import doublets
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lib import stage
from lib.counts import CountsWriter, InMemory
from lib.errors import UserError
from lib.files import read_table

DEFAULTS = {
    "enabled": True,
    "remove": True,
    "expected_doublet_rate": 0.05,
    "sim_doublet_ratio": 2.0,
    "n_prin_comps": 30,
    "n_neighbors": None,
    "threshold": None,
    "min_cells": 100,
}


def mixture(n_cells: int = 600, n_doublets: int = 40, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts of four cell types with 40 markers each among 800 genes, and which cells are two of different types."""
    rng = np.random.default_rng(seed)
    means = np.tile(rng.lognormal(-1, 1, size=800), (4, 1))
    for kind in range(4):
        means[kind, 40 * kind : 40 * kind + 40] *= 12
    kinds = rng.integers(4, size=n_cells)
    planted = np.arange(n_cells) < n_doublets
    second = (kinds + rng.integers(1, 4, size=n_cells)) % 4
    rates = means[kinds] + planted[:, None] * means[second]
    return sp.csr_matrix(rng.poisson(rates).astype(np.uint16)), planted


def write_store(path, X, batches):
    writer = CountsWriter(path, X.shape[1])
    writer.append(X)
    obs = pd.DataFrame({"batch": pd.Categorical(batches)}, index=[f"cell{i}" for i in range(X.shape[0])])
    writer.close(obs, pd.DataFrame(index=[f"gene{i}" for i in range(X.shape[1])]))
    qc = pd.DataFrame({"n_genes_by_counts": X.getnnz(1), "total_counts": X.sum(1).A1}, index=obs.index)
    qc.to_parquet(path.with_name("qc.parquet"))


def run_stage(folder, limits=None, **changes):
    doublets.main(
        SimpleNamespace(
            input=SimpleNamespace(counts=folder / "counts.h5ad", qc=folder / "qc.parquet"),
            params=SimpleNamespace(seed=0, batch_key="batch", cells=limits or {}, doublets=DEFAULTS | changes),
            output=SimpleNamespace(doublets=folder / "doublets.parquet", simulated=folder / "simulated.h5"),
            resources={},
            threads=1,
        )
    )
    with h5py.File(folder / "simulated.h5") as file:
        simulated = {name: (d[...], d.attrs["threshold"]) for name, d in file["scores"].items()}
    return read_table(folder / "doublets.parquet"), simulated


@pytest.mark.parametrize("n", [30, 199, 201, 3000])
def test_pairs_are_those_that_scikit_learn_draws(n):
    """Below and above 200 cells, of whose pairs two a cell are a hundredth."""
    from sklearn.utils.random import sample_without_replacement

    theirs = sample_without_replacement(n * n, 2 * n, random_state=np.random.RandomState(4))
    np.testing.assert_array_equal(doublets.random_pairs(n, 2 * n, 4) @ [n, 1], theirs)


def test_more_doublets_than_pairs_are_refused():
    with pytest.raises(UserError, match="101 doublets are too many for 10 cells"):
        doublets.random_pairs(10, 101, 0)


def test_scanpys_own_example(pbmc3k):
    """scanpy's test of pp.scrublet: the same doublets, to its tolerance."""
    found = doublets.scrublet(InMemory(pbmc3k.X[200:400]))
    assert np.flatnonzero(found.predicted).tolist() == [13, 138]
    np.testing.assert_allclose(found.scores[[13, 138]], 0.149254, rtol=1e-5, atol=1e-5)


def test_scores_and_threshold_are_scanpys(pbmc3k):
    import scanpy as sc

    cells = pbmc3k[:800].copy()
    found = doublets.scrublet(InMemory(cells.X))
    sc.pp.scrublet(cells, use_approx_neighbors=False)
    expected = cells.uns["scrublet"]
    # A score is a count of neighbours: rounding (float32 there) may swap two at equal distance, in few cells
    assert (found.scores == cells.obs["doublet_score"]).mean() > 0.99
    np.testing.assert_allclose(found.scores, cells.obs["doublet_score"], atol=0.02)
    assert (found.simulated == expected["doublet_scores_sim"]).mean() > 0.99
    assert found.threshold == pytest.approx(expected["threshold"], abs=0.01)


@pytest.mark.slow
def test_whole_pbmc3k_is_scanpys(pbmc3k):
    import scanpy as sc

    found = doublets.scrublet(InMemory(pbmc3k.X))
    sc.pp.scrublet(pbmc3k, use_approx_neighbors=False)
    assert np.corrcoef(found.scores, pbmc3k.obs["doublet_score"])[0, 1] > 0.9999
    assert found.threshold == pytest.approx(pbmc3k.uns["scrublet"]["threshold"], rel=1e-3)
    np.testing.assert_array_equal(found.predicted, pbmc3k.obs["predicted_doublet"])


def test_pairs_are_those_that_scanpy_draws():
    from scanpy.preprocessing._utils import sample_comb

    for n, n_pairs in ((200, 400), (1000, 2000)):  # two of scikit-learn's sampling methods
        expected = sample_comb((n, n), n_pairs, random_state=np.random.RandomState(3))
        np.testing.assert_array_equal(doublets.random_pairs(n, n_pairs, 3), expected)


@pytest.mark.parametrize("n_genes", [150, 300])
def test_projection_is_that_of_the_z_scored_matrix(n_genes):
    """By way of the genes' products, and where the cells are fewer by way of theirs."""
    from sklearn.decomposition import PCA

    X, _ = mixture(200)
    X = X[:, :n_genes]
    scored = np.ones(200, bool)
    scored[::7] = False
    totals, projected, offset = doublets.project(InMemory(X, max_cells=33), scored, 4)
    dense = X[scored].toarray() / totals[:, None] * 1e6
    z = (dense - dense.mean(0)) / dense.std(0, ddof=1)
    pca = PCA(4, svd_solver="full").fit(z)
    pairs = np.array([[0, 1], [5, 9], [3, 3]])
    both = X[scored].toarray()[pairs].sum(1)
    both = (both / both.sum(1, keepdims=True) * 1e6 - dense.mean(0)) / dense.std(0, ddof=1)
    expected = np.concatenate([pca.transform(z), pca.transform(both)])
    found = np.concatenate(
        [
            doublets.embed(projected, totals, offset, np),
            doublets.embed(projected[pairs].sum(1), totals[pairs].sum(1), offset, np),
        ]
    )
    # The coordinates are float32 and some 10 in size
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)


def test_planted_doublets_are_found():
    from sklearn.metrics import roc_auc_score

    X, planted = mixture()
    found = doublets.scrublet(InMemory(X))
    assert roc_auc_score(planted, found.scores) > 0.99  # measured: 1.000; types are far apart
    called = found.predicted
    assert called[planted].mean() > 0.9
    assert called[~planted].mean() < 0.02


def test_chunks_do_not_show(monkeypatch):
    X, _ = mixture(300)
    whole = doublets.scrublet(InMemory(X))
    monkeypatch.setitem(doublets.HELD, "cpu", 0)
    monkeypatch.setitem(doublets.DENSE, "cpu", 5000)
    pieces = doublets.scrublet(InMemory(X, max_cells=37))
    # Sums of float64 in another order: a neighbour at equal distance may change, in few cells
    assert (whole.scores == pieces.scores).mean() > 0.99
    np.testing.assert_allclose(pieces.scores, whole.scores, atol=0.02)


def test_cells_with_hardly_a_gene_are_not_scored():
    X, _ = mixture(300)
    X = X.tolil()
    X[[5, 150]] = 0
    X[5, :2] = 1
    found = doublets.scrublet(InMemory(X.tocsr()))
    assert np.flatnonzero(np.isnan(found.scores)).tolist() == [5, 150]
    assert not found.predicted[[5, 150]].any()
    assert len(found.simulated) == 2 * 298


def test_scores_with_one_mode_have_no_threshold():
    rng = np.random.default_rng(0)
    assert np.isnan(doublets.minimum_between_modes(1 - np.sqrt(np.linspace(0, 1, 100_000))))
    both = np.concatenate([rng.normal(0, 0.1, 10_000), rng.normal(1, 0.1, 10_000)])
    assert 0.3 < doublets.minimum_between_modes(both) < 0.7


def test_stage_scores_each_batch_of_the_cells_within_the_limits(tmp_path, caplog):
    parts = [mixture(200, 20, seed)[0] for seed in (1, 2)] + [mixture(50, 5, 3)[0]]
    X, batches = sp.vstack(parts, format="csr"), np.repeat(["a", "b/c", "few"], [200, 200, 50])
    shuffled = np.random.default_rng(0).permutation(450)
    X, batches = X[shuffled], batches[shuffled]
    write_store(tmp_path / "counts.h5ad", X, batches)
    limit = int(np.percentile(X.getnnz(1), 5))
    with caplog.at_level("INFO", stage.log.name):
        table, simulated = run_stage(tmp_path, {"min_genes": limit})
    passed = X.getnnz(1) > limit
    assert table.index.tolist() == [f"cell{i}" for i in range(450)]
    assert table["predicted_doublet"].dtype == bool
    np.testing.assert_array_equal(table["doublet_score"].notna(), passed & (batches != "few"))
    assert not table["predicted_doublet"][~passed].any()
    assert set(simulated) == {"a", "b=2Fc"}
    assert "batch few: not scored" in caplog.text
    alone = doublets.scrublet(InMemory(X[passed & (batches == "a")]))
    np.testing.assert_array_equal(table["doublet_score"][passed & (batches == "a")], alone.scores)
    np.testing.assert_array_equal(simulated["a"][0], alone.simulated)
    assert simulated["a"][1] == alone.threshold
    first = (tmp_path / "doublets.parquet").read_bytes(), (tmp_path / "simulated.h5").read_bytes()
    run_stage(tmp_path, {"min_genes": limit})
    assert first == ((tmp_path / "doublets.parquet").read_bytes(), (tmp_path / "simulated.h5").read_bytes())


def test_stage_without_a_threshold_calls_nothing_and_says_so(tmp_path, caplog, monkeypatch):
    write_store(tmp_path / "counts.h5ad", mixture(150)[0], ["a"] * 150)
    monkeypatch.setattr(doublets, "minimum_between_modes", lambda scores: np.nan)
    with caplog.at_level("WARNING", stage.log.name):
        table, simulated = run_stage(tmp_path)
    assert table["doublet_score"].notna().all()
    assert not table["predicted_doublet"].any()
    assert np.isnan(simulated["a"][1])
    assert "no doublet is called" in caplog.text
    table, simulated = run_stage(tmp_path, threshold=0.2)
    np.testing.assert_array_equal(table["predicted_doublet"], table["doublet_score"] > 0.2)
    assert simulated["a"][1] == 0.2


def test_stage_disabled_scores_nothing(tmp_path):
    write_store(tmp_path / "counts.h5ad", mixture(150)[0], ["a"] * 150)
    table, simulated = run_stage(tmp_path, enabled=False)
    assert table["doublet_score"].isna().all()
    assert not table["predicted_doublet"].any()
    assert simulated == {}


def test_cells_all_alike_are_no_batch_to_score():
    with pytest.raises(UserError, match="0 of its genes are highly variable, too few to tell doublets by"):
        doublets.scrublet(InMemory(np.ones((200, 50), np.uint16)))
