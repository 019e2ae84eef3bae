"""Pseudobulks against scanpy's aggregate and against sums of the same counts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from lib.methods import pseudobulk
from lib.methods.pseudobulk import Profiles, components, expressed, layers_of, profile_sums
from lib.store.stream import InMemory


@pytest.fixture(scope="module")
def cohort():
    """500 cells x 60 genes of 5 samples, mixed, in 3 groups; some without a group."""
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(rng.lognormal(-0.5, 1, 60), (500, 60)))
    samples = pd.Series(rng.choice(["P1", "P2", "P10", "P3"], 500), name="sample")
    groups = pd.Series(rng.choice(["T", "B", "a/b", None], 500, p=[0.5, 0.3, 0.1, 0.1]), name="group")
    groups[(samples == "P3") & (groups == "T")] = "B"
    return X, samples, groups


def sums_of(X, profiles, **options):
    totals = np.asarray(X.sum(1)).ravel().astype(float)
    return profile_sums(InMemory(X, **options), profiles.codes, len(profiles.obs), totals, 1e4)


def test_sums_means_and_variances_are_scanpys(cohort):
    """Sums are exact; means and variances float32 of float64."""
    X, samples, groups = cohort
    profiles = Profiles.of(samples, groups)
    found = sums_of(X, profiles, max_cells=37)
    layers = layers_of(found, profiles.obs["n_cells"].to_numpy())
    there = groups.notna().to_numpy()
    keys = (samples + "_" + groups.astype(object).fillna("")).to_numpy()
    adata = ad.AnnData(X.astype(np.float64), obs=pd.DataFrame({"key": pd.Categorical(keys)}, index=keys))
    adata.obs_names_make_unique()
    raw = sc.get.aggregate(adata[there], "key", ["sum", "count_nonzero"])
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    logs = sc.get.aggregate(adata[there], "key", ["mean", "var"])
    order = raw.obs_names.get_indexer(profiles.obs.index)
    assert (order >= 0).all()
    assert len(raw) == len(profiles.obs)
    sizes = pd.Series(keys[there]).value_counts()
    assert profiles.obs["n_cells"].tolist() == sizes[profiles.obs.index].tolist()
    np.testing.assert_array_equal(found["sums"], raw.layers["sum"][order])
    share = raw.layers["count_nonzero"][order] / sizes[profiles.obs.index].to_numpy()[:, None]
    np.testing.assert_allclose(layers["pct_nz"], share, rtol=1e-6)
    np.testing.assert_allclose(layers["mean"], logs.layers["mean"][order], rtol=1e-5)
    np.testing.assert_allclose(layers["var"], logs.layers["var"][order], rtol=1e-4, atol=1e-6)


def test_profiles_are_sample_by_sample_in_natural_order(cohort):
    _, samples, groups = cohort
    obs = Profiles.of(samples, groups).obs
    assert list(obs["sample"].unique()) == ["P1", "P2", "P3", "P10"]
    assert "P3_T" not in obs.index  # no cells
    assert obs["n_cells"].sum() == groups.notna().sum()


def test_names_that_coincide_are_told_apart():
    obs = Profiles.of(pd.Series(["a_b", "a", "a_b"]), pd.Series(["c", "b_c", "c"])).obs
    assert obs.index.is_unique
    assert len(obs) == 2


def test_parts_of_the_cells_add_up_and_blocks_do_not_show(cohort, monkeypatch):
    """What shards do; and a limit of profiles x genes that one cell reaches."""
    X, samples, groups = cohort
    profiles = Profiles.of(samples, groups)
    whole = sums_of(X, profiles)
    totals = np.asarray(X.sum(1)).ravel().astype(float)
    parts = [
        profile_sums(InMemory(X[rows]), profiles.codes[rows], len(profiles.obs), totals[rows], 1e4)
        for rows in (slice(0, 180), slice(180, 500))
    ]
    monkeypatch.setattr(pseudobulk, "BLOCK", 60)
    small = sums_of(X[:90], Profiles(profiles.obs, profiles.codes[:90]))
    first = sums_of(X[:90], Profiles(profiles.obs, profiles.codes[:90]), max_cells=1000)
    for name, values in whole.items():
        np.testing.assert_allclose(parts[0][name] + parts[1][name], values, rtol=1e-12)
        np.testing.assert_allclose(small[name], first[name], rtol=1e-12)


def test_no_cell_has_a_group():
    profiles = Profiles.of(pd.Series(["a", "b"]), pd.Series([None, None], dtype=object))
    assert profiles.obs.empty
    assert sums_of(sp.csr_matrix(np.ones((2, 3))), profiles)["sums"].shape == (0, 3)


def test_expressed_is_filterbyexpr():
    """By hand: libraries of 1,000, so that 10 counts are the limit in as many samples as the smaller level has."""
    counts = np.array([[10, 9, 10, 14, 957], [10, 9, 10, 0, 971], [10, 9, 0, 0, 981], [0, 9, 0, 0, 991]])
    assert expressed(counts, 2).tolist() == [True, False, True, False, True]
    assert expressed(counts, 3).tolist() == [True, False, False, False, True]
    many = np.tile([10, 990], (40, 1))
    many[17:] = [0, 1000]
    assert expressed(many, 20)[0]  # 10 + 0.7 * 10 = 17 samples
    many[16] = [0, 1000]
    assert not expressed(many, 20)[0]
    assert not expressed(np.zeros((4, 3), int), 2).any()


def test_components_find_a_sample_that_stands_apart():
    rng = np.random.default_rng(1)
    mean = rng.lognormal(4, 1, 500)
    usual = rng.negative_binomial(20, 20 / (20 + mean), (8, 500))
    other = rng.negative_binomial(20, 20 / (20 + mean * rng.lognormal(0, 1.2, 500)), (1, 500))
    X, shares, distance = components(np.vstack([usual, other]))
    assert abs(X[:, 0]).argmax() == 8
    assert shares[0] > 0.5
    assert distance[8] > 2 * np.median(distance) > distance[:8].max()
    found, shares, _ = components(np.full((3, 4), 10))
    assert not found.any()
    assert np.isfinite(shares).all()
