"""Compare scrublet with scanpy's and with planted doublets, and run it as a stage."""

from __future__ import annotations

from types import SimpleNamespace

import doublets
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lib.run import stage
from lib.run.errors import UserError
from lib.store.counts import Counts, CountsWriter
from lib.store.files import read_table
from lib.store.stream import InMemory

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
    """Counts of four cell types with 40 markers each among 800 genes, and a mask of doublets of different types."""
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
    """Below and above 200 cells, where two pairs per cell are a hundredth of all pairs."""
    from sklearn.utils.random import sample_without_replacement

    theirs = sample_without_replacement(n * n, 2 * n, random_state=np.random.RandomState(4))
    np.testing.assert_array_equal(doublets.random_pairs(n, 2 * n, 4) @ [n, 1], theirs)


def test_more_doublets_than_pairs_are_refused():
    with pytest.raises(UserError, match="101 doublets are too many for 10 cells"):
        doublets.random_pairs(10, 101, 0)


def test_scanpys_own_example(pbmc3k):
    """scanpy's test of pp.scrublet: the same doublets, within its tolerance."""
    found = doublets.scrublet(InMemory(pbmc3k.X[200:400]))
    assert np.flatnonzero(found.predicted).tolist() == [13, 138]
    np.testing.assert_allclose(found.scores[[13, 138]], 0.149254, rtol=1e-5, atol=1e-5)


def test_scores_and_threshold_are_scanpys(pbmc3k):
    import scanpy as sc

    cells = pbmc3k[:800].copy()
    found = doublets.scrublet(InMemory(cells.X))
    sc.pp.scrublet(cells, use_approx_neighbors=False)
    expected = cells.uns["scrublet"]
    # A score is a count of neighbours: rounding (float32 in scanpy) may swap two at equal distance, in few cells
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
    """From the genes' products, and from the cells' products if there are fewer cells."""
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
    # The coordinates are float32 of about 10
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
    monkeypatch.setitem(doublets.TOGETHER, "cpu", 0)
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
    assert "fewer cells than doublets: min_cells: 100: few (49)" in caplog.text or "few (48)" in caplog.text
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


@pytest.mark.parametrize("most", [None, 30_000, 0])
def test_batches_whose_cells_are_mixed_are_read_in_few_passes_and_score_as_alone(tmp_path, monkeypatch, most):
    """`most` non-zeros are read at a time: all in one pass, two batches in each, or each batch by itself."""
    X, _ = mixture(600)
    batches = np.random.default_rng(0).choice(["a", "b", "c", "d"], 600)
    write_store(tmp_path / "counts.h5ad", X, batches)
    if most is not None:
        monkeypatch.setitem(doublets.TOGETHER, "cpu", most * X.nnz // 60_000)
    read, chunks = [], Counts.chunks
    monkeypatch.setattr(Counts, "chunks", lambda self, *given: read.append(self.n_obs) or chunks(self, *given))
    table, simulated = run_stage(tmp_path)
    assert list(simulated) == ["a", "b", "c", "d"]
    if most is None:
        assert read == [600]
    elif most:
        assert 2 <= len(read) <= 3
    for batch in simulated:
        alone = doublets.scrublet(InMemory(X[batches == batch]))
        np.testing.assert_array_equal(table["doublet_score"][batches == batch], alone.scores)


def test_cells_all_alike_are_no_batch_to_score(tmp_path, notices):
    with pytest.raises(UserError, match="0 of its genes are highly variable, too few to tell doublets by"):
        doublets.scrublet(InMemory(np.ones((200, 50), np.uint16)))
    write_store(tmp_path / "counts.h5ad", sp.csr_matrix(np.ones((200, 50), np.uint16)), ["same"] * 200)
    table, simulated = run_stage(tmp_path)
    assert table["doublet_score"].isna().all()
    assert simulated == {}
    assert notices == [
        "not scored for doublets: same (200 cells: 0 of its genes are highly variable, too few to tell doublets by)"
    ]


@pytest.mark.parametrize("n_cells", [1, 2, 3, 4, 6])
def test_a_handful_of_cells_is_scored_or_told(tmp_path, notices, n_cells):
    write_store(tmp_path / "counts.h5ad", mixture(n_cells)[0], ["few"] * n_cells)
    table, simulated = run_stage(tmp_path, min_cells=1, n_neighbors=1, sim_doublet_ratio=1.0)
    assert table["doublet_score"].notna().any() == bool(simulated)
    assert bool(simulated) or any("not scored for doublets: few" in text for text in notices)


def test_more_components_and_neighbours_than_a_batch_has_are_cut(tmp_path, notices):
    """With a component for nearly each cell all distances are equal, and most cells would be called."""
    X, planted = mixture(289, 20)
    write_store(tmp_path / "counts.h5ad", X, ["few"] * 289)
    table, _ = run_stage(tmp_path, n_prin_comps=200, n_neighbors=1000)
    assert notices[-2:] == [
        "doublets: n_prin_comps: 200 is too many for batches of few cells: 96 in few (289)",
        "doublets: n_neighbors: 1000 is too many for batches of few cells: 144 in few (289)",
    ]
    table, _ = run_stage(tmp_path, n_prin_comps=200)
    assert table["predicted_doublet"].mean() < 0.2
    assert table["doublet_score"][planted].median() > 1.2 * table["doublet_score"][~planted].median()


def continuum(width: float, seed: int = 0) -> sp.csr_matrix:
    """1,000 progenitors along a path whose genes switch on and off over `width` of it; no doublets."""
    rng = np.random.default_rng(seed)
    at, base = rng.random(1000), rng.lognormal(0, 1.2, 1500)
    peaks, moving = rng.random(1500), rng.random(1500) < 0.3
    rates = base * np.where(moving, 1 + 2.5 * np.exp(-0.5 * ((at[:, None] - peaks) / width) ** 2), 1)
    rates *= 4000 * rng.lognormal(0, 0.3, (1000, 1)) / rates.sum(1, keepdims=True)
    return sp.csr_matrix(rng.poisson(rates * rng.gamma(4, 0.25, rates.shape)).astype(np.uint16))


def test_calls_in_cells_of_one_kind_are_not_trusted(pbmc3k):
    """If all cells are similar or form a continuum, the minimum is no valley: cells exceed it as often as doublets."""
    of_one_type = pbmc3k[(pbmc3k.obs["cell_type"] == "CD14+ Mono").to_numpy()]
    found = doublets.scrublet(InMemory(of_one_type.X))
    assert found.predicted.mean() > 0.5  # a spurious minimum left of the main mode
    assert not found.trusted
    assert doublets.scrublet(InMemory(of_one_type.X), threshold=found.threshold).trusted  # set by the user
    for kind in ("Naive CD4 T", "B"):
        assert not doublets.scrublet(InMemory(pbmc3k[(pbmc3k.obs["cell_type"] == kind).to_numpy()].X)).trusted


@pytest.mark.parametrize("seed", range(3))
def test_calls_in_a_continuum_are_not_trusted(seed):
    found = doublets.scrublet(InMemory(continuum(0.7, seed)))
    assert np.isnan(found.threshold) or not found.trusted


def test_calls_in_blood_and_in_simulated_patients_are_trusted(pbmc3k, real_data):
    import anndata as ad
    from simulate import Design, simulate_patient, simulated_genes

    technologies = ad.read_h5ad(real_data / "pbmc_3tech" / "pbmc_3tech.h5ad")
    parts = [technologies[rows].X for rows in technologies.obs.groupby("batch", observed=True).indices.values()]
    design = Design(n_genes=2000, n_types=5, umi=2500, seed=0)
    genes = simulated_genes(design)
    for patient in (1, 2, 3):
        parts.append(sp.vstack([X for X, _ in simulate_patient(design, patient, 350, genes)]).tocsr())
    for X in [pbmc3k.X, *parts]:
        found = doublets.scrublet(InMemory(X))
        assert found.trusted
        assert found.predicted.any()


def test_too_many_calls_are_not_trusted():
    rng = np.random.default_rng(0)
    simulated = rng.normal(0.5, 0.1, 1000)
    scores = np.concatenate([np.full(840, 0.1), np.full(160, 0.6)])
    assert not doublets.is_trusted(scores, simulated, 0.3, 0.05)
    assert doublets.is_trusted(scores, simulated, 0.3, 0.1)
    # A few cells exceed a threshold that hardly any simulated doublet reaches: up to some number this is noise
    assert doublets.is_trusted(np.append(np.full(99, 0.1), 0.9), simulated, 0.8, 0.05)
    assert not doublets.is_trusted(np.append(np.full(900, 0.1), np.full(30, 0.9)), simulated, 0.8, 0.05)
