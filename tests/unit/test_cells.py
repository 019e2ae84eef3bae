"""Thresholds, median absolute deviations and the attrition ledger."""

from __future__ import annotations

from types import SimpleNamespace

import cells
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from cells import ledger, tell_losses
from lib.methods.ledgers import shares_taken, where_cells_went
from lib.methods.thresholds import failing, threshold_reasons
from lib.run.errors import UserError
from lib.store.counts import CountsWriter
from lib.store.files import read_table, write_table

ARTICLE = {"min_genes": 200, "max_genes": 5000, "max_pct_counts": {"MT": 20}, "mad": None}


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame({"total_counts": 1000, "n_genes_by_counts": 1000, "pct_counts_MT": 5.0, **columns})


def test_limits_are_strict_and_the_first_reason_counts():
    qc = table(n_genes_by_counts=[200, 201, 4999, 5000, 100, 1000], pct_counts_MT=[1.0, 19.99, 20.0, 1, 50, np.nan])
    reasons = threshold_reasons(qc, ARTICLE)
    nothing_to_judge = "max_pct_counts_MT"  # a cell without counts has no percentage, and fails
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
    # 20 and 70 are far from the median of their group; a low percentage is not removed
    assert reasons[reasons != ""].to_dict() == dict.fromkeys([0, 100], "mad_log1p_total_counts")


def test_unknown_metric_lists_those_there_are():
    with pytest.raises(UserError, match=r"no metric .genes.; there are total_counts"):
        threshold_reasons(table(n_genes_by_counts=[1]), {"mad": 5, "mad_metrics": ["genes"]})


def test_a_family_without_genes_removes_no_cell():
    limits = {"max_pct_counts": {"HB": 1, "MT": 5}, "mad": 1, "mad_metrics": ["pct_counts_HB", "log1p_total_counts_HB"]}
    qc = table(n_genes_by_counts=[1, 1], pct_counts_MT=[1.0, 9.0])
    assert threshold_reasons(qc, limits).tolist() == ["", "max_pct_counts_MT"]
    names = [name for name, _ in failing(qc, limits)]  # the ledger has the same rows as in other samples
    assert names == ["max_pct_counts_HB", "max_pct_counts_MT", "mad_pct_counts_HB", "mad_log1p_total_counts_HB"]


def test_ledger_adds_up():
    reasons = pd.Series(["", "min_genes", "doublet", "", "min_genes", "max_genes"])
    batches = pd.Series(["a", "a", "a", "b", "b", "b"])
    order = [("thresholds", "min_genes"), ("thresholds", "max_genes"), ("doublets", "doublet")]
    rows = ledger(reasons, batches, "S1", order)
    assert rows.query("batch == 'a'")["left"].tolist() == [3, 2, 2, 1]
    assert rows.query("batch == 'b'")["left"].tolist() == [3, 2, 1, 1]
    assert rows["removed"].sum() == 4
    assert (rows["sample"] == "S1").all()


@pytest.fixture
def lost() -> tuple[pd.DataFrame, pd.DataFrame]:
    """A sample's cells and ledger: max_genes removes 4 of 10 cells of batch a, 3 of 10 of b; the family removes c."""
    reasons = pd.Series(["max_genes"] * 4 + [""] * 6 + ["max_genes"] * 3 + [""] * 7 + ["max_pct_counts_MT"] * 5)
    batches = pd.Series(list("aaaaaaaaaabbbbbbbbbbccccc"))
    table = pd.DataFrame(
        {"sample": "S1", "donor": batches, "kept": reasons == "", "reason": reasons.astype("category")}
    )
    table["n_genes_by_counts"], table["pct_counts_MT"] = np.where(batches == "a", 9100, 3000), 53.0
    order = [("thresholds", "max_genes"), ("thresholds", "max_pct_counts_MT")]
    return table, ledger(reasons, batches, "S1", order)


def test_a_limit_that_takes_much_of_a_batch_is_told(lost, notices):
    limits = {"max_genes": 5000, "max_pct_counts": {"MT": 20}}
    tell_losses(*lost, "donor", limits)
    assert notices == [
        "sample S1: cells: max_genes: 5000 takes 40 % of a (median 9100); medians are of n_genes_by_counts: "
        "so many are usual in full-length protocols and deep sequencing: raise cells: max_genes",
        "sample S1: cells: max_pct_counts: MT: 20 takes 100 % of c (median 53); medians are of pct_counts_MT: such "
        "shares are usual in some tissues (of MT: heart, kidney), and in dying cells: raise cells: max_pct_counts: MT "
        "if these are well",
    ]


def test_a_sample_without_a_cell_left_is_told_once(lost, notices):
    table, rows = lost
    only = table["donor"] == "c"
    tell_losses(table[only], rows[rows["batch"] == "c"], "donor", {"max_pct_counts": {"MT": 20}})
    (text,) = notices
    assert text.startswith(
        "sample S1: none of its 5 cells is left (max_pct_counts_MT 5): the cohort goes on without it. cells: max_pct"
    )


def test_shares_and_where_cells_went(lost, tmp_path):
    table, rows = lost
    shares = shares_taken(rows)
    assert shares.loc[("S1", "a")].tolist() == [0.4, 0]
    assert shares.loc[("S1", "c")].tolist() == [0, 1]
    write_table(table, tmp_path / "cells.parquet")
    assert where_cells_went([tmp_path / "cells.parquet"], "donor") == (
        "Where the cells went, by donor: c: 0 of 5 cells kept, max_pct_counts_MT took 5; "
        "a: 6 of 10 cells kept, max_genes took 4; b: 7 of 10 cells kept, max_genes took 3."
    )


def test_the_sheets_columns_join_the_files(notices):
    index = pd.Index(["x", "y"])
    obs = pd.DataFrame(
        {"sample": "s1", "donor": "d1", "site": ["p", "q"], "site_file": [1, 2], "total_counts_file": 3}, index
    )
    sheet = {"age": 45, "dose": float("nan"), "donor": "d1", "site": "Ghent", "group": None}
    found = cells.with_sheet(obs, SimpleNamespace(sheet=sheet, batch_key="donor"))
    assert list(found) == ["sample", "site_file_file", "site_file", "total_counts_file", *sheet]
    assert found["site_file_file"].tolist() == ["p", "q"]
    assert found["site"].tolist() == ["Ghent", "Ghent"]
    assert found["age"].dtype == np.int64
    assert found["dose"].dtype == np.float64
    assert found["group"].isna().all()
    assert found["donor"].equals(obs["donor"])
    assert found.index.equals(index)
    assert notices == ["columns of the file with names of the sheet's columns are kept: site as site_file_file"]


@pytest.mark.parametrize(("trusted", "kept"), [(True, 1), (False, 3)])
def test_doublets_that_are_not_trusted_stay(tmp_path, job, trusted, kept):
    writer = CountsWriter(tmp_path / "counts.h5ad", 2)
    writer.append(sp.csr_matrix(np.ones((3, 2), np.uint16)))
    index = pd.Index(["x", "y", "z"])
    writer.close(pd.DataFrame({"sample": ["S"] * 3}, index), pd.DataFrame(index=["a", "b"]))
    write_table(table(n_genes_by_counts=[1, 1, 1]).set_axis(index), tmp_path / "qc.parquet")
    called = pd.DataFrame({"doublet_score": 0.5, "predicted_doublet": [True, True, False], "trusted": trusted}, index)
    write_table(called, tmp_path / "doublets.parquet")
    stage_job = job(
        {"cells": "cells.parquet", "ledger": "ledger.tsv"},
        {"batch_key": "sample", "cells": {}, "remove_doublets": True, "sheet": {"site": "Ghent"}},
        {"sample": "S"},
        **{
            name: tmp_path / f"{name}.{end}"
            for name, end in [("counts", "h5ad"), ("qc", "parquet"), ("doublets", "parquet")]
        },
    )
    cells.main(stage_job)
    found = read_table(tmp_path / "cells.parquet")
    assert found["kept"].sum() == kept
    assert found["predicted_doublet"].tolist() == [True, True, False]
    assert "trusted" not in found
    assert found["site"].astype(str).tolist() == ["Ghent"] * 3
