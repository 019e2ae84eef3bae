"""The simulated cohort agrees with its stated truth."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import simulate as sim

DESIGN = sim.Design(n_genes=3000, umi=4000, seed=3)


def cells_of(blocks):
    """Blocks as one matrix and one table."""
    X, obs = zip(*blocks, strict=True)
    return sp.vstack(X).tocsr(), pd.concat(obs)


@pytest.fixture(scope="module")
def genes():
    return sim.simulated_genes(DESIGN)


@pytest.fixture(scope="module")
def patient(genes):
    return cells_of(sim.simulate_patient(DESIGN, 1, 3000, genes))


def log_normalised(X):
    totals = np.asarray(X.sum(1))
    return np.log1p(X.multiply(1e4 / totals).toarray())


def test_matrix_is_sound(genes, patient):
    X, obs = patient
    assert X.shape == (3000, 3000)
    assert X.has_canonical_format
    assert X.data.min() == 1
    assert genes.index.is_unique
    assert genes["gene_ids"].is_unique
    assert obs.index.is_unique
    assert obs["CellType"].nunique() == DESIGN.n_types


def test_family_shares(genes, patient):
    X, obs = patient
    good = X[~obs["true_low_quality"].to_numpy()]
    share = {
        name: np.asarray(good[:, genes.index.str.startswith(prefixes)].sum(1)).ravel() / np.asarray(good.sum(1)).ravel()
        for name, prefixes in {"MT": ("MT-",), "RIBO": ("RPS", "RPL")}.items()
    }
    # A mean of 2900 cells, each with a standard deviation of about 0.025: 0.002 is four standard errors
    assert share["MT"].mean() == pytest.approx(sim.MT_SHARE, abs=0.002)
    # The ribosomal share differs by type (0.1 in log) and patient; only its order of magnitude is tested
    assert 0.12 < share["RIBO"].mean() < 0.35


def test_low_quality_cells_fall_to_the_usual_thresholds(genes, patient):
    X, obs = patient
    bad = obs["true_low_quality"].to_numpy()
    # 120 expected of 3000, standard deviation 11
    assert bad.sum() == pytest.approx(120, abs=45)
    mt = np.asarray(X[:, genes.index.str.startswith("MT-")].sum(1)).ravel() / np.asarray(X.sum(1)).ravel()
    dropped = (np.diff(X.indptr) <= 200) | (mt >= 0.2)
    assert dropped[bad].mean() > 0.95
    assert dropped[~bad].mean() < 0.01


def test_doublets_hold_two_cells(patient):
    X, obs = patient
    is_doublet = obs["true_doublet"].to_numpy()
    # 180 expected of 3000, standard deviation 13
    assert is_doublet.sum() == pytest.approx(180, abs=52)
    totals = np.asarray(X.sum(1)).ravel()
    # Means of log-normal sizes (0.4 in log): the doublets' has a standard error of 5 %
    assert totals[is_doublet].mean() / totals[~is_doublet].mean() == pytest.approx(2, abs=0.4)


def test_median_size(patient):
    X, _ = patient
    # Types differ in size by 0.15 in log
    assert np.median(np.asarray(X.sum(1))) == pytest.approx(DESIGN.umi, rel=0.2)


def test_types_are_told_apart_by_their_means(patient):
    X, obs = patient
    clean = ~(obs["true_doublet"] | obs["true_low_quality"]).to_numpy()
    Y, codes = log_normalised(X[clean]), obs["CellType"].cat.codes.to_numpy()[clean]
    half = len(Y) // 2
    means = np.stack([Y[:half][codes[:half] == code].mean(0) for code in range(DESIGN.n_types)])
    nearest = ((Y[half:, None, :] - means) ** 2).sum(2).argmin(1)
    # A few per cent of the cells stand between two types of a lineage; chance is 15 %
    assert (nearest == codes[half:]).mean() > 0.93


def test_markers_are_raised_in_their_type(genes, patient):
    X, obs = patient
    is_type = (obs["CellType"] == "B").to_numpy()
    is_named = ~genes.index.str.startswith("GENE")
    Y = log_normalised(X)
    difference = Y[is_type].mean(0) - Y[~is_type].mean(0)
    named = (genes["marker_of"] == "B").to_numpy() & is_named
    others = ((genes["marker_of"] == "NK") & is_named).to_numpy()
    assert named.sum() == 4
    assert difference[named].min() > 0.1
    assert difference[others].max() < 0


def test_patients_differ_by_the_design(genes):
    profiles = [sim.patient_profiles(DESIGN, genes, patient)[0] for patient in (1, 2)]
    is_mt = genes.index.isin(sim.MT)
    ratio = np.log(profiles[0][0][~is_mt] / profiles[1][0][~is_mt])
    # The standard deviation of 3000 differences: relative error 1.3 %
    assert ratio.std() == pytest.approx(DESIGN.batch_sd * np.sqrt(2), rel=0.06)
    assert np.allclose([p.sum(1) for p in profiles], 1)


def test_everything_follows_from_the_seed(genes, patient):
    X, obs = patient
    again, obs_again = cells_of(sim.simulate_patient(DESIGN, 1, 3000))
    assert (again != X).nnz == 0
    pd.testing.assert_frame_equal(obs, obs_again)
    other, _ = cells_of(sim.simulate_patient(replace(DESIGN, seed=4), 1, 500))
    assert (X[:500] != other).nnz > 0


def test_cells_do_not_depend_on_how_many_are_simulated(genes, patient):
    X, obs = patient
    some, obs_some = cells_of(sim.simulate_patient(DESIGN, 1, 730))
    assert (X[:730] != some).nnz == 0
    pd.testing.assert_frame_equal(obs[:730], obs_some)
    cohort_genes, blocks = sim.simulate(DESIGN, 2, 730)
    cohort, obs_cohort = cells_of(blocks)
    pd.testing.assert_frame_equal(cohort_genes, genes)
    assert cohort.shape[0] == 1460
    assert (cohort[:730] != some).nnz == 0
    assert obs_cohort.index.is_unique
    second, _ = cells_of(sim.simulate_patient(DESIGN, 2, 730))
    assert (cohort[730:] != second).nnz == 0


def test_processes_draw_the_same_cells():
    # 3,100 cells per patient: BLOCKS blocks of one process, and a rest that ends within a block
    design = sim.Design(n_genes=1500, n_types=4, umi=300)
    X, obs = cells_of(sim.simulate(design, 2, 3100)[1])
    by_two, obs_by_two = cells_of(sim.simulate(design, 2, 3100, processes=2)[1])
    assert (by_two != X).nnz == 0
    pd.testing.assert_frame_equal(obs, obs_by_two)
    whole, _ = cells_of(sim.simulate_patient(design, 1, 3100))
    assert (X[:3100] != whole).nnz == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_one_file_a_patient(tmp_path, processes):
    design = sim.Design(n_genes=1500, n_types=4, umi=300)
    assert sim.write_patients(tmp_path, design, 3, 600, processes=processes) == 1800
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P1.h5ad", "P2.h5ad", "P3.h5ad"]
    for patient in (1, 3):
        adata = ad.read_h5ad(tmp_path / f"P{patient}.h5ad")
        X, obs = cells_of(sim.simulate_patient(design, patient, 600))
        assert (adata.X != X).nnz == 0
        assert adata.obs_names.tolist() == obs.index.tolist()
        assert adata.obs["PatientNumber"].cat.categories.tolist() == [f"P{patient}"]


def test_tables_hold_the_profile():
    profile = np.array([0.5, 0.0, 0.3, 0.2])
    shares = np.bincount(sim.inverse_cdf(profile), minlength=4) / sim.RESOLUTION
    assert np.abs(shares - profile).max() <= 1 / sim.RESOLUTION


def test_draw_counts_every_umi():
    tables = np.concatenate([sim.inverse_cdf(p) for p in (np.array([1.0, 0, 0]), np.array([0, 0.5, 0.5]))])
    n_drawn = np.array([[5, 0], [0, 100], [2, 7], [0, 0]])
    drawn_from = np.tile([0, 1], (4, 1))
    # The third cell goes to the first one's row
    X = sim.draw(np.random.default_rng(0), tables, drawn_from, n_drawn, np.array([0, 1, 0, 2]), (3, 3)).toarray()
    assert X[:, 0].tolist() == [7, 0, 0]
    assert X.sum(1).tolist() == [14, 100, 0]
    assert X.dtype == np.int32


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_h5ad(tmp_path, compression):
    design = sim.Design(n_genes=1500, n_types=4, umi=1000)
    genes, blocks = sim.simulate(design, 2, 600)
    assert sim.write_h5ad(tmp_path / "cohort.h5ad", blocks, genes, compression) == 1200
    adata = ad.read_h5ad(tmp_path / "cohort.h5ad")
    X, obs = cells_of(sim.simulate(design, 2, 600)[1])
    assert isinstance(adata.X, sp.csr_matrix)
    assert adata.X.dtype == np.float32
    assert (adata.X != X).nnz == 0
    assert adata.obs_names.tolist() == obs.index.tolist()
    assert adata.obs["PatientNumber"].cat.categories.tolist() == ["P1", "P2"]
    assert adata.obs["CellType"].tolist() == obs["CellType"].tolist()
    assert adata.var_names.tolist() == genes.index.tolist()


def test_treated_patients_have_the_planted_effects_alone(genes):
    """Two types change in 2 % of the genes, half up and half down; a third type grows; all else is the patient's."""
    change = sim.planted(DESIGN, genes)
    assert list(change) == list(sim.CHANGED)
    assert (change != 0).sum().tolist() == [round(0.02 * len(genes))] * 2
    assert (np.abs(change.sum()) <= sim.LOG2_FOLD).all()
    (usual, shares), (treated, grown) = (sim.patient_profiles(DESIGN, genes, 1, x) for x in (False, True))
    types = DESIGN.types()
    for i, name in enumerate(types):
        there = usual[i] > 0  # but the mitochondrial genes
        ratio = np.log2(treated[i, there] / usual[i, there])
        expected = change[name].to_numpy()[there] if name in change else 0
        np.testing.assert_allclose(ratio - np.median(ratio), expected, atol=1e-9)
    odds = (grown / shares) / (grown / shares)[0]
    assert odds[types.index(sim.GROWN)] == pytest.approx(sim.GROWTH)
    np.testing.assert_allclose(np.delete(odds, types.index(sim.GROWN)), 1)


def test_main_writes_one_patient(tmp_path):
    h5ad = tmp_path / "P2.h5ad"
    params = SimpleNamespace(n_obs=100, n_genes=1500, n_types=4, umi=1000, patient=2, treated=False, seed=5)
    sim.main(SimpleNamespace(params=params, output=SimpleNamespace(h5ad=h5ad)))
    adata = ad.read_h5ad(h5ad)
    X, _ = cells_of(sim.simulate_patient(sim.Design(1500, 4, 1000, seed=5), 2, 100))
    assert (adata.X != X).nnz == 0
    assert set(adata.obs["PatientNumber"]) == {"P2"}


@pytest.mark.parametrize("wrong", [{"n_types": 21}, {"n_types": 0}, {"n_genes": 200}])
def test_impossible_designs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sim.simulated_genes(sim.Design(**wrong))
