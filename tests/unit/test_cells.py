"""Thresholds, median absolute deviations and the attrition ledger."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from cells import ledger
from lib.errors import UserError
from lib.thresholds import threshold_reasons

ARTICLE = {"min_genes": 200, "max_genes": 5000, "max_pct_counts": {"MT": 20}, "mad": None}


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame({"total_counts": 1000, "n_genes_by_counts": 1000, "pct_counts_MT": 5.0, **columns})


def test_limits_are_strict_and_the_first_reason_counts():
    qc = table(n_genes_by_counts=[200, 201, 4999, 5000, 100, 1000], pct_counts_MT=[1.0, 19.99, 20.0, 1, 50, np.nan])
    reasons = threshold_reasons(qc, ARTICLE)
    nothing_to_judge = "max_pct_counts_MT"  # a cell without counts has no percentage, and does not pass
    assert reasons.tolist() == ["min_genes", "", "max_pct_counts_MT", "max_genes", "min_genes", nothing_to_judge]


def test_no_limits_keep_all():
    qc = table(n_genes_by_counts=[0, 9999])
    assert (threshold_reasons(qc, {"min_genes": None, "max_pct_counts": {}}) == "").all()


def test_pbmc3k_keeps_the_cells_that_scanpy_keeps(pbmc3k):
    pbmc3k.var["MT"] = np.array([name.startswith("MT-") for name in pbmc3k.var_names])
    sc.pp.calculate_qc_metrics(pbmc3k, qc_vars=["MT"], inplace=True)
    limits = {"min_genes": 200, "max_genes": 2500, "max_pct_counts": {"MT": 5}}
    ours = threshold_reasons(pbmc3k.obs, limits) == ""
    obs = pbmc3k.obs
    theirs = obs[(obs["n_genes_by_counts"] > 200) & (obs["n_genes_by_counts"] < 2500) & (obs["pct_counts_MT"] < 5)]
    assert list(ours[ours].index) == list(theirs.index)
    assert ours.sum() == 2638  # scanpy's and Seurat's tutorials on these cells


def test_deviations_are_of_the_cells_own_group():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 100), rng.normal(50, 1, 100)])
    values[[0, 100]] = 20, 70
    qc = table(log1p_total_counts=values, pct_counts_MT=np.r_[5 + rng.normal(0, 1, 199), -40])
    groups = np.repeat(["a", "b"], 100)
    limits = {"mad": 10, "mad_metrics": ["log1p_total_counts", "pct_counts_MT"]}
    reasons = threshold_reasons(qc, limits, groups)
    # 20 and 70 are far from their own group's median; a low percentage is no fault
    assert reasons[reasons != ""].to_dict() == dict.fromkeys([0, 100], "mad_log1p_total_counts")


def test_unknown_metric_lists_those_there_are():
    with pytest.raises(UserError, match="no metric pct_counts_HB; there are total_counts"):
        threshold_reasons(table(n_genes_by_counts=[1]), {"max_pct_counts": {"HB": 1}})


def test_ledger_adds_up():
    reasons = pd.Series(["", "min_genes", "doublet", "", "min_genes", "max_genes"])
    batches = pd.Series(["a", "a", "a", "b", "b", "b"])
    order = [("thresholds", "min_genes"), ("thresholds", "max_genes"), ("doublets", "doublet")]
    rows = ledger(reasons, batches, "S1", order)
    assert rows.query("batch == 'a'")["left"].tolist() == [3, 2, 2, 1]
    assert rows.query("batch == 'b'")["left"].tolist() == [3, 2, 1, 1]
    assert rows["removed"].sum() == 4
    assert (rows["sample"] == "S1").all()
