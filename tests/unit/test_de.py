"""Tests between conditions: against PyDESeq2 by a formula, scipy, linear models; false discoveries in simulations."""

from __future__ import annotations

import re
from types import SimpleNamespace

import composition
import de as stage_de
import numpy as np
import pandas as pd
import pytest
from lib.methods import de
from lib.methods.pseudobulk import expressed
from lib.run.errors import UserError
from scipy import stats
from scipy.special import polygamma

N_SIMULATIONS, N_GENES, N_SAMPLES = 20, 150, 5


def simulated(seed, n=N_SAMPLES, n_genes=N_GENES, changed=0.2, batch=None):
    """Negative binomial counts, 2 n samples x genes; a share of the genes changes by a factor of 2^1.5."""
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(4, 1.2, n_genes)
    dispersion = (0.05 + 2 / mean) * rng.lognormal(0, 0.3, n_genes)
    change = np.where(np.arange(n_genes) < changed * n_genes, rng.choice([-1.5, 1.5], n_genes), 0)
    level = np.repeat([0.0, 1.0], n)
    mean = mean * rng.lognormal(0, 0.4, 2 * n)[:, None] * 2.0 ** np.outer(level, change)
    if batch is not None:
        mean = mean * 2.0 ** np.outer(batch, rng.choice([-1, 1], n_genes))
    counts = rng.negative_binomial(1 / dispersion, 1 / (1 + mean * dispersion))
    mine = expressed(counts, n)
    return counts[:, mine], pd.DataFrame({"Intercept": 1.0, "condition": level}), change[mine] != 0


def names_of(counts):
    return [f"g{i}" for i in range(counts.shape[1])]


@pytest.mark.slow
def test_deseq_is_pydeseq2s_by_a_formula():
    """Our design matrix and our linear fit of all genes at once: equal but for rounding in the optimiser."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats

    counts, design, _ = simulated(0, n=4, n_genes=60)
    found = de.deseq(counts, design, names_of(counts))
    obs = pd.DataFrame({"condition": np.where(design["condition"] > 0, "b", "a")}, [f"s{i}" for i in range(8)])
    one = DefaultInference(n_cpus=1)
    frame = pd.DataFrame(counts, obs.index, names_of(counts))
    theirs = DeseqDataSet(counts=frame, metadata=obs, design="~condition", quiet=True, inference=one)
    theirs.deseq2()
    tested = DeseqStats(theirs, contrast=["condition", "b", "a"], quiet=True, inference=one)
    tested.summary()
    for name, ours in de.STATISTICS.items():
        np.testing.assert_allclose(found[ours], tested.results_df[name], rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_false_discoveries_of_20_simulations():
    """At 5 %, at most 7 % of all genes found are false; most planted ones are found; none where nothing was planted."""
    found, false, planted, nulls = 0, 0, 0, 0
    for seed in range(N_SIMULATIONS):
        counts, design, changed = simulated(seed)
        mine = (de.deseq(counts, design, names_of(counts))["pvals_adj"] < de.SIGNIFICANT).to_numpy()
        found, false, planted = found + mine.sum(), false + (mine & ~changed).sum(), planted + changed.sum()
    for seed in range(5):
        counts, design, _ = simulated(100 + seed, changed=0)
        nulls += (de.deseq(counts, design, names_of(counts))["pvals_adj"] < de.SIGNIFICANT).any()
    assert false <= 0.07 * found
    assert found - false > 0.7 * planted
    assert nulls <= 1


def test_a_covariate_that_is_fitted_makes_room_for_the_effect():
    """24 samples, 12 against 12, of two sites in unequal numbers."""
    site = np.r_[np.ones(8), np.zeros(4), np.ones(3), np.zeros(9)]
    counts, design, changed = simulated(7, n=12, n_genes=80, batch=site)
    alone = de.deseq(counts, design, names_of(counts))["pvals_adj"] < de.SIGNIFICANT
    both = de.deseq(counts, design.assign(site=site), names_of(counts))["pvals_adj"] < de.SIGNIFICANT
    assert (both & changed).sum() > 0.9 * changed.sum()
    assert (both & ~changed).sum() <= 2
    assert (alone & ~changed).sum() > (both & ~changed).sum()


def test_sparse_counts_without_a_gene_in_all_samples():
    rng = np.random.default_rng(0)
    counts = rng.negative_binomial(2, 0.1, (6, 40))
    counts[rng.integers(0, 6, 40), np.arange(40)] = 0
    assert not (counts > 0).all(0).any()
    design = pd.DataFrame({"Intercept": 1.0, "x": [0.0, 0, 0, 1, 1, 1]})
    assert np.isfinite(de.deseq(counts, design, names_of(counts))["scores"]).all()


def test_cells_are_compared_as_scipy_compares_them():
    rng = np.random.default_rng(0)
    cells = [rng.normal(rng.normal(0, 1, 5), 1, (n, 5)) for n in (30, 4, 1, 20)]
    cells[0][:, 4] = cells[1][:, 4] = cells[2][:, 4] = cells[3][:, 4] = 0.5
    mean = np.array([x.mean(0) for x in cells])
    var = np.array([x.var(0, ddof=1) if len(x) > 1 else np.zeros(5) for x in cells])
    level = np.array([True, False, True, False])
    change, pvals = de.of_cells(mean, var, np.array(list(map(len, cells))), level)
    one, other = np.vstack([cells[0], cells[2]]), np.vstack([cells[1], cells[3]])
    np.testing.assert_allclose(change, one.mean(0) - other.mean(0), atol=1e-12)
    np.testing.assert_allclose(pvals[:4], stats.ttest_ind(one, other, equal_var=False).pvalue[:4], rtol=1e-8)
    assert pvals[4] == 1


def test_prior_of_variances_is_found():
    """Variances drawn around a scaled inverse chi-squared with 8 degrees of freedom around 0.4."""
    rng = np.random.default_rng(0)
    true = 0.4 * 8 / rng.chisquare(8, 20_000)
    freedom, value = de.prior_of(true * rng.chisquare(5, 20_000) / 5, 5)
    assert abs(freedom - 8) < 0.5
    assert abs(value - 0.4) < 0.02
    assert de.prior_of(0.4 * rng.chisquare(5, 1000) / 5, 5)[0] > 50  # no more than chance
    assert de.prior_of(np.array([1.0, 2.0]), 5) == (0.0, 1.0)
    for y in (1e-3, 0.5, 1.0, 40.0, 1e5):
        np.testing.assert_allclose(de.trigamma_inverse(float(polygamma(1, y))), y, rtol=1e-6)


def test_shares_without_a_prior_are_a_linear_model_of_logits():
    """Two groups: no moderation, hence the t-test of the logits."""
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 200, (7, 2))
    design = pd.DataFrame({"Intercept": 1.0, "x": [0.0, 0, 0, 1, 1, 1, 1]})
    found, y = de.of_shares(counts, design), de.logit_shares(counts)
    expected = stats.ttest_ind(y[3:], y[:3])
    np.testing.assert_allclose(found["scores"], expected.statistic, rtol=1e-10)
    np.testing.assert_allclose(found["pvals"], expected.pvalue, rtol=1e-10)


def test_shares_that_differ_are_found_and_others_rarely():
    rng, right, wrong = np.random.default_rng(0), 0, 0
    design = pd.DataFrame({"Intercept": 1.0, "x": np.repeat([0.0, 1.0], 6)})
    for _ in range(100):
        usual = np.r_[0.05, np.full(9, 0.95 / 9)]
        shares = [rng.dirichlet(150 * usual * (1 if i < 6 else np.r_[3, np.ones(9)])) for i in range(12)]
        counts = np.array([rng.multinomial(500, share / share.sum()) for share in shares])
        mine = de.of_shares(counts, design)["pvals_adj"] < de.SIGNIFICANT
        right, wrong = right + mine[0], wrong + mine[1:].sum()
    assert right > 90
    assert wrong < 0.05 * 900


def test_equal_shares_have_no_test_statistic():
    found = de.of_shares(np.full((4, 3), 50), pd.DataFrame({"Intercept": 1.0, "x": [0.0, 0, 1, 1]}))
    assert (found["scores"] == 0).all()
    assert (found["pvals"] == 1).all()


def bulk_of(samples, groups, n_cells, few=0):
    obs = pd.DataFrame({"sample": pd.Categorical(samples), "group": pd.Categorical(groups), "n_cells": n_cells})
    obs["few_cells"] = obs["n_cells"] < few
    return SimpleNamespace(obs=obs, groups=list(obs["group"].cat.categories))


def test_groups_without_samples_of_a_level_are_told():
    contrast = {"name": "x", "column": "c", "level": "b", "reference": "a", "covariates": [], "groupby": None}
    samples = pd.DataFrame({"c": ["a", "a", "b", "b"]}, ["P1", "P2", "P3", "P4"])
    bulk = bulk_of(["P1", "P2", "P3", "P4"] * 2, ["T"] * 4 + ["B"] * 4, [50, 50, 50, 50, 50, 3, 50, 50], few=10)
    (name, why), group = stage_de.groups_of(bulk, samples, contrast)
    assert (name, group.name) == ("B", "T")
    assert why.startswith("among the samples with enough of its cells, one sample has the level 'a' of c")
    assert group.level.tolist() == [False, False, True, True]
    table = stage_de.cells_of(bulk, samples, contrast)
    assert re.search(r"sample +B +T\n +P1 +50 +50\n +P2 +3 +50", table)


def test_a_condition_that_varies_within_a_sample_is_refused_with_the_numbers_of_cells(tmp_path):
    obs = pd.DataFrame({"sample": list("PPPPQQ"), "c": list("aaabbb")}, [f"cell{i}" for i in range(6)])
    obs.to_parquet(tmp_path / "obs.parquet")
    contrast = {"name": "x", "column": "c", "level": "b", "reference": "a", "covariates": []}
    with pytest.raises(UserError, match=r"c varies within 1 of 2 values of sample(.|\n)*sample +a +b\n +P +3 +1"):
        stage_de.samples_of(str(tmp_path / "obs.parquet"), "sample", contrast)
    with pytest.raises(UserError, match="c varies within 1 of 2"):
        composition.read_samples(str(tmp_path / "obs.parquet"), "sample", [contrast])
