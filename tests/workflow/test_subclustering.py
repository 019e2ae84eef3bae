"""Groups that are clustered again: what a cohort of their cells alone gives, and the types that a group hides."""

from __future__ import annotations

import html

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from lib.store.names import escape
from runs import Run, patients, sheet_of
from sklearn.metrics import adjusted_rand_score

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("subclusters")]

# Without limits and doublets, a cell and a gene are kept or not whatever the other cells are
CONFIG = {
    "cells": {"min_genes": None, "max_genes": None, "max_pct_counts": {"MT": None}},
    "doublets": {"enabled": False},
    "genes": {"min_counts": 0},
    "hvg": {"n_top_genes": 500},
    "pca": {"n_comps": 20},
    "neighbors": {"n_pcs": 10},
    "umap": {"n_epochs": 50},
    "tsne": {"enabled": False},
    "trust": {"enabled": False},
    "louvain": {"resolutions": []},
    "kmeans": {"n_clusters": []},
    "markers": {"methods": ["t-test"], "groupings": []},
}
HIDING, OTHER = "T/NK cells: {all}", "mono #1"
FOLDER = f"results/cohort/sub/{escape(HIDING)}"
ARTIFACTS = ["hvg.parquet", "obs.parquet", "pca.h5", "harmony.h5", "neighbors.h5", "umap.parquet"]
ARTIFACTS += ["leiden/0.6.parquet", "markers/leiden_0.6/t-test.tsv.gz"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two patients; the column `lineage` puts three types into one group, and leaves some cells without a group."""
    made = patients(tmp_path_factory.mktemp("lineages"), n_patients=2)
    for path in made:
        adata = ad.read_h5ad(path)
        types = sorted(adata.obs["CellType"].unique())
        names = dict.fromkeys(types[:3], HIDING) | {types[3]: OTHER}
        adata.obs["lineage"] = adata.obs["CellType"].astype(str).map(names)
        adata.write_h5ad(path)
    return made


@pytest.fixture(scope="module")
def run(files, tmp_path_factory) -> Run:
    """A whole run; no test may change it."""
    run = Run(tmp_path_factory.mktemp("subclusters"))
    run.write(sheet_of(files), subclusters={"grouping": "lineage", "groups": [HIDING, OTHER]}, **CONFIG)
    run.snakemake()
    return run


def test_results_are_those_of_a_cohort_of_these_cells(run, files, tmp_path):
    """Byte for byte: the same stages read the same counts."""
    alone = Run(tmp_path)
    for path in files:
        adata = ad.read_h5ad(path)
        adata[adata.obs["lineage"] == HIDING].write_h5ad(tmp_path / path.name)
    config = CONFIG | {"markers": {"methods": ["t-test"], "groupings": ["leiden_0.6"]}}
    alone.write(sheet_of([tmp_path / path.name for path in files]), **config)
    alone.snakemake(*(f"results/cohort/{name}" for name in ARTIFACTS))
    for name in ARTIFACTS:
        one, other = run.folder / FOLDER / name, tmp_path / "results/cohort" / name
        assert one.read_bytes() == other.read_bytes(), name


def test_atlas_and_tables_have_the_types_that_the_group_hides(run):
    atlas = ad.read_h5ad(run.folder / "results/atlas.h5ad")
    labels, lineage = atlas.obs["subclusters"], atlas.obs["lineage"]
    mine = (lineage == HIDING).to_numpy()
    assert labels[mine].str.startswith(f"{HIDING},").all()
    assert labels[(lineage == OTHER).to_numpy()].str.startswith(f"{OTHER},").all()
    assert labels.isna().equals(lineage.isna())
    assert lineage.isna().any()
    # the simulated types are far apart; some cells are doublets, and one type may be split
    assert adjusted_rand_score(labels[mine], atlas.obs["CellType"][mine]) > 0.9
    umap, places = pd.read_parquet(run.folder / FOLDER / "umap.parquet"), atlas.obsm["X_umap_subclusters"]
    np.testing.assert_array_equal(places[mine], umap.to_numpy())
    assert np.isnan(places[lineage.isna()]).all()
    table = pd.read_csv(run.folder / "results/tables/subclusters.tsv", sep="\t")
    assert table["n_cells"].sum() == (~lineage.isna()).sum()
    sizes = labels.value_counts()
    assert all(sizes[f"{row.group},{row.subcluster}"] == row.n_cells for row in table.itertuples())


def test_report_shows_each_group_and_tells_small_subclusters_only(run):
    page = html.unescape((run.folder / "results/report.html").read_text())
    assert "2 groups of" in page
    table = pd.read_csv(run.folder / "results/tables/subclusters.tsv", sep="\t")
    for row in table[table["group"] == HIDING].itertuples():  # the types are large
        assert (f"Cluster {row.subcluster} of lineage {HIDING}<" in page) == (row.n_cells < 20)
    for group in (HIDING, OTHER):
        shown = [f"umap_{name}.png" for name in ("leiden_0.6", "sample", "CellType")]
        for name in [*shown, *(f"t-test{end}.png" for end in ("", "_dotplot", "_umap", "_volcano"))]:
            assert (run.folder / "results/figures/sub" / escape(group) / name).is_file()
        assert page.count(f"{group} in ") >= len(shown)  # the sentences of its UMAPs


def test_a_further_group_leaves_the_others_as_they_are(run):
    fewer = run.folder / "more.yaml"
    fewer.write_text(yaml.safe_dump({"subclusters": {"groups": [OTHER]}}))
    jobs = run.jobs("--configfile", str(fewer))
    assert "subclusters" in jobs
    assert not [job for job in jobs if job.endswith("_sub") or job == "subset"]


def test_groups_that_are_not_there_are_refused_before_any_job(files, tmp_path):
    run = Run(tmp_path)
    run.write(sheet_of(files), subclusters={"grouping": "lineage", "groups": ["T/NK", OTHER, 7]}, **CONFIG)
    done = run.snakemake("--dry-run", check=False)
    told = done.stdout + done.stderr
    assert done.returncode
    assert "'T/NK' is no group" in told
    assert "'7' is no group" in told
    assert OTHER in told.split("Its groups")[1]
