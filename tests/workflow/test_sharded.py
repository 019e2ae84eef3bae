"""Shards: the same results as one job up to rounding, for any files; and the jobs that a new number of shards repeats.

Tolerances. Sums of counts are integers below 2^53, and so exact. Sums of clipped counts and of log-normalised values
are float64 in another order: 1e-12 or less of their size. The PCA multiplies float32 numbers (6e-8) in other chunks,
and rotates components that explain nearly the same variance: 1e-3 for coordinates up to 10.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from lib.store.counts import Counts, Stores
from lib.store.files import read_arrays
from runs import Run, sheet_of
from sklearn.metrics import adjusted_rand_score
from tables import read_markers

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharded")]

PASSES = {"shard": 16, "features_shard": 3}  # up to the PCA: hvg in two passes, sums, gram, projection; its components
UP_TO_PCA = {"hvg": 1, "features": 1, "pca": 1}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, cohort_files) -> Run:
    """A complete run of the small cohort with three shards; no test may change it."""
    run = Run(tmp_path_factory.mktemp("sharded"))
    run.write(sheet_of(cohort_files), shards=3)
    run.snakemake()
    return run


def cohort(run: Run, name: str) -> Path:
    return run.folder / "results" / "cohort" / name


def assert_same_up_to_the_pca(one: Run, other: Run) -> None:
    hvg, hvg_1 = (pd.read_parquet(cohort(run, "hvg.parquet")) for run in (one, other))
    pd.testing.assert_frame_equal(hvg, hvg_1, rtol=1e-10)
    assert cohort(one, "obs.parquet").read_bytes() == cohort(other, "obs.parquet").read_bytes()
    pca, pca_1 = (read_arrays(cohort(run, "pca.h5")) for run in (one, other))
    assert pca.keys() == pca_1.keys()
    for name in ("coefficients", "mean", "std"):
        np.testing.assert_allclose(pca[name], pca_1[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(pca["variance_ratio"], pca_1["variance_ratio"], rtol=1e-6)
    np.testing.assert_allclose(pca["X_pca"], pca_1["X_pca"], atol=1e-3)
    with h5py.File(cohort(one, "pca.h5")) as file, h5py.File(cohort(other, "pca.h5")) as file_1:
        assert dict(file.attrs) == dict(file_1.attrs)


def assert_same_t_tests(one: Run, other: Run, grouping: str) -> None:
    tests, tests_1 = (read_markers(cohort(run, f"markers/{grouping}/t-test.tsv.gz")) for run in (one, other))
    pd.testing.assert_frame_equal(tests, tests_1, rtol=1e-6)


def test_three_shards_give_what_one_job_does(finished, sharded):
    assert_same_up_to_the_pca(sharded, finished)
    assert_same_t_tests(sharded, finished, "CellType")
    parts = [Counts(cohort(sharded, f"features/{i}-of-3.h5ad")) for i in (1, 2, 3)]
    whole = Counts(cohort(finished, "features.h5ad"))
    X, X_1 = (np.vstack([chunk.X.toarray() for chunk in stream.chunks()]) for stream in (Stores(parts), whole))
    np.testing.assert_array_equal(X, X_1)
    assert max(part.n_obs for part in parts) - min(part.n_obs for part in parts) <= 1
    assert not list((sharded.folder / "results/cohort/shards").rglob("*.h5")), "sums are deleted"


def test_the_atlas_of_three_shards_is_that_of_one_job(finished, sharded):
    atlas, atlas_1 = (ad.read_h5ad(run.folder / "results" / "atlas.h5ad") for run in (sharded, finished))
    clusterings = ["leiden_0.6", "louvain_0.6", "kmeans_8"]
    density = [name for name in atlas_1.obs if name.startswith("umap_density")]
    rest = atlas_1.obs.columns.drop([*clusterings, *density])
    pd.testing.assert_frame_equal(atlas.obs[rest], atlas_1.obs[rest])
    pd.testing.assert_frame_equal(atlas.var, atlas_1.var, rtol=1e-10)
    for X, X_1 in ((atlas.X, atlas_1.X), (atlas.layers["counts"], atlas_1.layers["counts"])):
        assert (X != X_1).nnz == 0
    # Clusterings start from components that differ in their last digits
    for name in clusterings:
        assert adjusted_rand_score(atlas.obs[name], atlas_1.obs[name]) > 0.95, name
    assert atlas.uns.keys() == atlas_1.uns.keys()


def test_every_shards_job_is_in_the_table_of_runs(sharded):
    table = pd.read_csv(sharded.folder / "results" / "tables" / "runs.tsv", sep="\t")
    ran = Counter(table["rule"])
    assert ran["features_shard"] == PASSES["features_shard"]
    assert ran["shard"] == PASSES["shard"] + 3 * ran["markers_ttest"]
    assert sharded.jobs() == []


def test_one_file_is_cut_within_it(run, one_file):
    sheet = [{"sample": "cohort", "path": str(one_file)}]
    runs = [Run(run.folder / name) for name in ("one", "four")]
    for each, shards in zip(runs, (1, 4), strict=True):
        each.folder.mkdir()
        each.write(sheet, shards=shards, batch_key="PatientNumber", markers={"groupings": ["CellType"]})
        each.snakemake("results/cohort/pca.h5", "results/cohort/markers/CellType/t-test.tsv.gz")
    one, four = runs
    assert_same_up_to_the_pca(four, one)
    assert_same_t_tests(four, one, "CellType")


def test_another_number_runs_the_passes_and_what_hangs_on_them(finished, tmp_path, cohort_files):
    subprocess.run(["cp", "-a", str(finished.folder), str(tmp_path / "copy")], check=True)
    copy = Run(tmp_path / "copy")
    copy.write(sheet_of(cohort_files), shards=3)
    jobs = Counter(copy.jobs())
    assert not {"ingest", "qc", "doublets", "cells", "figures_sample", "genes"} & set(jobs)
    expected = PASSES | UP_TO_PCA | {"shard": PASSES["shard"] + 6, "markers_ttest": 2, "atlas": 1}
    assert {name: jobs[name] for name in expected} == expected
    copy.write(sheet_of(cohort_files), shards=1)
    assert copy.jobs() == []


def test_another_number_of_components_reads_the_features_alone(sharded, tmp_path, cohort_files):
    subprocess.run(["cp", "-a", str(sharded.folder), str(tmp_path / "copy")], check=True)
    copy = Run(tmp_path / "copy")
    copy.write(sheet_of(cohort_files), shards=3, pca={"n_comps": 25})
    jobs = Counter(copy.jobs())
    assert not {"hvg", "features_shard", "features"} & set(jobs)
    assert jobs["shard"] >= 3 + 3 + 1 + 3


@pytest.mark.parametrize(("flavor", "target_sum", "passes"), [("seurat", 1e4, 1), ("cell_ranger", None, 2)])
def test_flavours_of_one_pass_and_of_two(run, cohort_files, flavor, target_sum, passes):
    config = {"normalize": {"target_sum": target_sum}, "hvg": {"n_top_genes": 600, "flavor": flavor}}
    run.write(sheet_of(cohort_files), shards=2, **config)
    jobs = Counter(run.jobs("results/cohort/hvg.parquet"))
    assert (jobs["shard"], jobs["hvg"]) == (2 * passes, 1)


def test_more_shards_than_cells_are_refused_before_anything_runs(run, cohort_files):
    run.write(sheet_of(cohort_files[:2]), shards=1000)
    done = run.snakemake("--dry-run", check=False)
    assert done.returncode
    assert re.search(r"the config's shards are 1000, but there are \d+ cells at most", done.stderr + done.stdout)
