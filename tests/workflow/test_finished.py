"""The complete run of the small cohort: all files exist, and results agree with the simulation's truth."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from lib import start
from sklearn.metrics import adjusted_rand_score, roc_auc_score

mpl.use("Agg")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("finished")]


def is_link_to(path, target):
    try:
        return path.readlink() == target
    except OSError:
        return False


@pytest.fixture(scope="module")
def atlas(finished):
    return ad.read_h5ad(finished.folder / "results" / "atlas.h5ad")


def test_nothing_is_left_to_do(finished):
    assert finished.jobs() == []


def test_report_holds_every_figure(finished):
    report = (finished.folder / "results" / "report.html").read_text()
    figures = sorted(path.name for path in (finished.folder / "results" / "figures").rglob("*.png"))
    assert len(figures) > 20
    assert not [name for name in figures if name not in report]


def test_every_stage_left_log_and_record(finished):
    logs = {
        path.relative_to(finished.folder / "logs").with_suffix("") for path in finished.folder.glob("logs/**/*.log")
    }
    assert len(logs) > 30
    for log in logs:
        record = finished.record(f"logs/{log}.log")
        assert record["device"] == "cpu"
        assert record["process"].startswith((start.OWN, start.FORKED))
        assert record["seconds"] > 0
        assert record["peak_rss_mb"] > 1


def test_most_jobs_were_forks_of_a_warm_process_that_has_ended(finished):
    records = [json.loads(path.read_text()) for path in finished.folder.glob("logs/**/*.run.json")]
    forked = [record for record in records if record["process"] == start.FORKED]
    assert len(forked) > len(records) / 2
    inside = {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cwd") if is_link_to(path, finished.folder)}
    assert inside <= {os.getpid()}


def test_table_of_jobs_has_every_record_but_its_own_and_the_reports(finished):
    table = pd.read_csv(finished.folder / "results" / "tables" / "runs.tsv", sep="\t", keep_default_na=False)
    records = [json.loads(path.read_text()) for path in finished.folder.glob("logs/**/*.run.json")]
    jobs = [(r["rule"], ", ".join(f"{k}={v}" for k, v in r["wildcards"].items())) for r in records]
    jobs.remove(("runs", ""))
    jobs.remove(("report", ""))
    assert sorted(zip(table["rule"], table["wildcards"], strict=True)) == sorted(jobs)


def test_nothing_half_written_is_left(finished):
    assert not list(finished.folder.glob("results/**/.*"))


def test_inputs_are_untouched(finished, cohort_files):
    assert all(
        path.stat().st_mtime < (finished.folder / "config" / "config.yaml").stat().st_mtime for path in cohort_files
    )


def test_ledger_accounts_for_every_cell(finished, atlas):
    ledgers = pd.concat(pd.read_csv(path, sep="\t") for path in finished.folder.glob("results/samples/*/ledger.tsv"))
    assert ledgers.groupby("sample")["left"].first().sum() - ledgers["removed"].sum() == atlas.n_obs
    cells = pd.concat(pd.read_parquet(p) for p in sorted(finished.folder.glob("results/samples/*/cells.parquet")))
    assert set(cells.index[cells["kept"]]) == set(atlas.obs_names)


def test_doublets_score_above_single_cells(finished):
    """The truth is simulated; a doublet of two cells of one type does not differ, so 1.0 cannot be reached."""
    cells = pd.concat(pd.read_parquet(path) for path in finished.folder.glob("results/samples/*/cells.parquet"))
    scored = cells[cells["doublet_score"].notna()]
    assert roc_auc_score(scored["true_doublet"], scored["doublet_score"]) > 0.75


def test_clusters_find_the_types_and_batches_mix(atlas):
    """Known types are found as clusters, and a cell's neighbours are of all patients that have its type."""
    assert adjusted_rand_score(atlas.obs["CellType"], atlas.obs["leiden_0.6"]) > 0.8
    before, after = (same_patient(atlas, rep) for rep in ("X_pca", "X_pca_harmony"))
    # Chance is a third, with three patients of like composition
    assert after < 0.5
    assert after < before - 0.2


def same_patient(atlas: ad.AnnData, rep: str) -> float:
    """The mean share of a cell's 15 nearest neighbours that are of the same patient."""
    from sklearn.neighbors import NearestNeighbors

    X = atlas.obsm[rep][:, :20]
    near = NearestNeighbors(n_neighbors=16).fit(X).kneighbors(X, return_distance=False)[:, 1:]
    codes = atlas.obs["sample"].cat.codes.to_numpy()
    return float((codes[near] == codes[:, None]).mean())


def test_markers_are_the_simulated_programmes(finished):
    """Most of the ten best t-test markers of a type are raised in it or in its lineage."""
    from simulate import TYPES, Design, simulated_genes

    marker_of = simulated_genes(Design(n_genes=2000, n_types=5, umi=2500))["marker_of"]
    markers = pd.read_csv(finished.folder / "results/cohort/markers/CellType/t-test.tsv.gz", sep="\t")
    for name, table in markers.groupby("group"):
        best = table.nsmallest(10, "rank")["names"]
        assert marker_of[best].isin([name, TYPES[name][0]]).mean() >= 0.7, name


def test_scanpy_draws_the_atlas(atlas):
    sc.pl.umap(atlas, color=["leiden_0.6", "CellType", "total_counts"], show=False)
    sc.pl.violin(atlas, ["n_genes_by_counts", "pct_counts_MT"], groupby="sample", show=False)
    sc.pl.rank_genes_groups(atlas, show=False)
    sc.pl.pca_variance_ratio(atlas, show=False)
    assert sc.get.rank_genes_groups_df(atlas, group=None)["names"].isin(atlas.var_names).all()


def test_atlas_counts_are_the_files(atlas, cohort_files):
    for path in cohort_files:
        source = ad.read_h5ad(path)
        mine = atlas[atlas.obs["sample"] == path.stem]
        names = [re.sub(rf"-{path.stem}$", "", name) for name in mine.obs_names]
        expected = source[names, mine.var["gene_symbols"].to_numpy()].X
        assert (mine.layers["counts"] != expected).nnz == 0


def test_atlas_values_are_scanpys(atlas):
    theirs = ad.AnnData(atlas.layers["counts"].astype(np.float64), obs=atlas.obs, var=atlas.var)
    sc.pp.normalize_total(theirs, target_sum=1e4)
    sc.pp.log1p(theirs)
    np.testing.assert_allclose(atlas.X.data, theirs.X.data, rtol=1e-5)  # stored as float32
