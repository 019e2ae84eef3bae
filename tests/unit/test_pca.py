"""Compare normalisation, regression, scaling and PCA with scanpy, which builds the matrix that we never build."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pca as stage_of_pca
import pytest
import scanpy as sc
import scipy.sparse as sp
from lib.methods.scaling import Scaling, log_normalize, regressors, target_of, usable_keys
from lib.run import stage
from lib.run.errors import UserError
from lib.store.files import write_table
from lib.store.stream import InMemory
from pca import Cells, components_of, normal_sums, pca, solve_scaling

KEYS = ("total_counts", "pct_counts_MT")


def features(pbmc3k: ad.AnnData, n_top_genes: int = 2000) -> ad.AnnData:
    """Counts of variable genes in layers['counts'], log-normalised float64 in X, obs with the regressors."""
    adata = pbmc3k
    adata.var["MT"] = np.array([name.startswith("MT-") for name in adata.var_names])
    sc.pp.calculate_qc_metrics(adata, qc_vars=["MT"], inplace=True)
    sc.pp.filter_genes(adata, min_counts=3)
    adata.layers["counts"] = adata.X.astype(np.uint16)
    adata.obs["kept_counts"] = np.asarray(adata.X.sum(1)).ravel()
    adata.X = adata.X.astype(np.float64)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=n_top_genes, layer="counts")
    return adata[:, adata.var["highly_variable"]].copy()


def scanpy_matrix(adata: ad.AnnData, keys: tuple[str, ...], scale: bool) -> np.ndarray:
    adata = adata.copy()
    if keys:
        sc.pp.regress_out(adata, list(keys))
    if scale:
        sc.pp.scale(adata, max_value=10)
    return adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)


def largest_sine(U: np.ndarray, V: np.ndarray) -> float:
    """The sine of the largest angle between the spaces of two orthonormal bases; 0: they are the same."""
    U, V = U.astype(np.float64), V.astype(np.float64)
    return np.linalg.norm(V - U @ (U.T @ V), 2)


@pytest.mark.parametrize("scale", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("keys", [KEYS, pytest.param((), marks=pytest.mark.slow)])
def test_pbmc3k_equals_scanpy(pbmc3k, keys, scale):
    adata = features(pbmc3k)
    counts = InMemory(adata.layers["counts"], max_cells=700)
    totals, design = adata.obs["kept_counts"].to_numpy(), regressors(adata.obs, keys)
    ours, scaling = pca(Cells(counts, totals, design, 50, 1e4, keys, scale, 10))

    theirs = scanpy_matrix(adata, keys, scale)
    reference = sc.pp.pca(theirs, n_comps=50, svd_solver="full", return_info=True)
    Z = scaling.dense(adata.layers["counts"], totals, design, counts.device)
    # Ours is float32: values up to 10 are accurate to 1e-6
    center = 0 if keys or scale else theirs.mean(0)
    np.testing.assert_allclose(Z, theirs - center, atol=1e-5)
    # Shares of variance: float32 products, float64 sums
    np.testing.assert_allclose(ours["variance_ratio"], reference[2], rtol=1e-5)
    np.testing.assert_allclose(ours["variance"], reference[3], rtol=1e-5)
    assert largest_sine(ours["PCs"], reference[1].T) < 1e-4


def simulated(n_obs: int = 400, n_vars: int = 120) -> tuple[sp.csr_matrix, pd.DataFrame]:
    rng = np.random.default_rng(1)
    types = rng.lognormal(0, 1, (4, n_vars))
    X = sp.csr_matrix(rng.poisson(types[rng.integers(0, 4, n_obs)]).astype(np.uint16))
    obs = pd.DataFrame({"total_counts": np.asarray(X.sum(1)).ravel(), "noise": rng.normal(1e6, 1, n_obs)})
    obs["kept_counts"] = obs["total_counts"]
    return X, obs


def run(X, obs, max_cells=1000, keys=("total_counts", "noise"), n_comps=10):
    totals, design = obs["kept_counts"].to_numpy(), regressors(obs, keys)
    n_comps = components_of(n_comps, *X.shape)
    return pca(Cells(InMemory(X, max_cells=max_cells), totals, design, n_comps, 1e4, keys))


def test_log_normalize_equals_scanpy():
    X, obs = simulated()
    adata = ad.AnnData(X.astype(np.float64))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    counts = InMemory(X)
    ours = log_normalize(X, obs["kept_counts"], 1e4, counts.device)
    np.testing.assert_allclose(ours.toarray(), adata.X.toarray(), rtol=2e-7)  # float32 rounds once


def test_regressors_far_from_zero_are_regressed_out():
    """The residuals for a key at 1e6 +- 1 equal those of NumPy's least squares: the normal equations are accurate."""
    X, obs = simulated()
    _, scaling = run(X, obs)
    keys = ["total_counts", "noise"]
    Y = np.log1p(X.toarray() / obs[["kept_counts"]].to_numpy() * 1e4)
    R = np.column_stack([np.ones(len(obs)), obs[keys] - obs[keys].mean()])
    residuals = Y - R @ np.linalg.lstsq(R, Y, rcond=None)[0]
    np.testing.assert_allclose(scaling.std, residuals.std(0, ddof=1), rtol=1e-9)


def test_chunk_size_changes_only_rounding():
    X, obs = simulated()
    (one, _), (many, _) = run(X, obs), run(X, obs, max_cells=7)
    np.testing.assert_allclose(one["X_pca"], many["X_pca"], atol=2e-4)  # float32 sums over different chunks
    np.testing.assert_allclose(one["variance"], many["variance"], rtol=1e-5)


@pytest.mark.parametrize("keys", [("total_counts", "noise"), ()])
def test_products_of_few_cells_have_the_components_of_the_covariance(monkeypatch, keys):
    X, obs = simulated(n_obs=90, n_vars=300)
    few, _ = run(X, obs, keys=keys, n_comps=85)
    monkeypatch.setattr(stage_of_pca, "FEW", 0)
    many, _ = run(X, obs, keys=keys, n_comps=85)
    # float32 products in both, summed in another order
    np.testing.assert_allclose(few["variance"], many["variance"], rtol=1e-5)
    np.testing.assert_allclose(few["variance_ratio"].sum(), many["variance_ratio"].sum(), rtol=1e-6)
    np.testing.assert_allclose(few["PCs"].T @ few["PCs"], np.eye(85), atol=1e-6)
    np.testing.assert_allclose(few["X_pca"][:, :5], many["X_pca"][:, :5], atol=2e-4)
    assert largest_sine(few["PCs"][:, :80], many["PCs"][:, :80]) < 1e-4


@pytest.mark.slow
def test_few_cells_of_pbmc3k_equal_scanpy(pbmc3k):
    adata = features(pbmc3k, 4000)[::3].copy()
    totals, design = adata.obs["kept_counts"].to_numpy(), regressors(adata.obs, KEYS)
    ours, _ = pca(Cells(InMemory(adata.layers["counts"]), totals, design, 50, 1e4, KEYS, True, 10))
    reference = sc.pp.pca(scanpy_matrix(adata, KEYS, True), n_comps=50, svd_solver="full", return_info=True)
    np.testing.assert_allclose(ours["variance_ratio"], reference[2], rtol=1e-5)
    assert largest_sine(ours["PCs"], reference[1].T) < 1e-4


def test_same_run_same_bytes():
    X, obs = simulated()
    (one, _), (two, _) = run(X, obs), run(X, obs)
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_constant_gene_and_constant_regressor_do_no_harm():
    X, obs = simulated()
    X = sp.hstack([X, sp.csr_matrix((len(obs), 1), dtype=np.uint16)]).tocsr()
    obs["flat"] = 3.0
    arrays, scaling = run(X, obs, keys=("total_counts", "flat"))
    assert scaling.std[-1] == 1
    assert np.isfinite(arrays["X_pca"]).all()


def test_there_are_fewer_components_than_cells_and_genes(notices):
    X, obs = simulated(8)
    arrays, _ = run(X, obs)
    assert arrays["X_pca"].shape == (8, 7)
    assert notices == ["pca: n_comps: 7 components instead of 10: there are 8 cells x 120 highly variable genes"]
    assert run(X[:, :3], obs, n_comps=5)[0]["X_pca"].shape == (8, 2)
    with pytest.raises(UserError, match="2 cells x 120 highly variable genes are too few for a PCA"):
        run(*simulated(2))


def test_regressor_must_be_numeric():
    obs = pd.DataFrame({"kept_counts": [1, 2], "site": ["a", "b"], "score": [1.0, 2.0]})
    with pytest.raises(UserError, match="'site' is no numeric obs column; there are kept_counts, score"):
        regressors(obs, ["site"])


def test_what_is_not_known_of_all_cells_is_not_regressed_out(tmp_path, notices):
    obs = pd.DataFrame({"total_counts": [1, 2, 3, 4, 5], "pct_counts_MT": [1.0, np.nan, np.inf, 4, 5]})
    write_table(obs, tmp_path / "obs.parquet")
    keys = ["total_counts", "pct_counts_MT", "pct_counts_HB"]
    assert usable_keys([tmp_path / "obs.parquet"], keys, stage.notice) == ("total_counts",)
    assert notices == [
        "not regressed out (regress_out: keys): pct_counts_HB, which this cohort does not have; "
        "pct_counts_MT, which is missing or infinite for 2 of 5 kept cells"
    ]
    with pytest.raises(UserError, match="no column phase"):
        usable_keys([tmp_path / "obs.parquet"], ["phase"], stage.notice)
    write_table(obs[:2].fillna(1), tmp_path / "obs.parquet")
    assert usable_keys([tmp_path / "obs.parquet"], keys[:2], stage.notice) == ()
    assert "only 2 cells are left" in notices[-1]


def test_the_target_is_scanpys_median():
    """As for a dense matrix; for a sparse one, scanpy 1.11 includes cells without counts in the median."""
    X, _ = simulated()
    X = sp.vstack([X, sp.csr_matrix((30, X.shape[1]), dtype=X.dtype)]).tocsr()
    totals = np.asarray(X.sum(1)).ravel()
    adata = ad.AnnData(X.toarray().astype(np.float64))
    sc.pp.normalize_total(adata)
    assert target_of(totals, None) == pytest.approx(adata.X[0].sum(), rel=1e-12)
    assert target_of(totals, 1e4) == 1e4


def test_scaling_is_read_as_written(tmp_path):
    from lib.store.files import write_arrays

    X, obs = simulated()
    _, scaling = run(X, obs)
    write_arrays(tmp_path / "pca.h5", scaling.arrays(), **scaling.attrs())
    again = Scaling.read(tmp_path / "pca.h5")
    assert (again.regress_keys, again.max_value, again.target_sum) == (("total_counts", "noise"), 10, 1e4)
    assert (again.std == scaling.std).all()
    assert (again.coefficients == scaling.coefficients).all()


def test_residuals_equal_scanpys_stored_ones(real_data):
    """`regress_test_small.npy`: n_counts and percent_mito regressed out of 200 x 200 log-normalised values."""
    adata = sc.datasets.pbmc68k_reduced().raw.to_adata()[:200, :200].copy()
    keys = ("n_counts", "percent_mito")
    counts = InMemory(adata.X.astype(np.float64).expm1())  # log-normalising with totals of one undoes this
    totals, design = np.ones(200), regressors(adata.obs, keys)
    scaling = solve_scaling(normal_sums(counts, totals, design, 1), 200, 1, keys, False, None)
    ours = scaling.dense(counts.X, totals, design, counts.device)
    stored = np.load(real_data / "scanpy_reference" / "regress_test_small.npy")
    np.testing.assert_allclose(ours, stored, atol=1e-5)  # stored as float32, from float32 input
