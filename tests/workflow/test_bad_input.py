"""Wrong input of users: one message, before time is lost, and no files left behind."""

from __future__ import annotations

import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from lib.run import diagnosis
from runs import sheet_of


def message(run, *args: str) -> str:
    """The standard error of a run that must fail."""
    done = run.snakemake(*args, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"leidn": {"resolutions": [1]}}, "unknown key `leidn`: did you mean `leiden`?"),
        ({"neighbors": {"n_pcs": 50}}, "`neighbors: n_pcs` (50) exceeds `pca: n_comps` (30)"),
    ],
)
def test_config_is_refused_before_any_job(run, cohort_files, config, expected):
    run.write(sheet_of(cohort_files), **config)
    assert expected in message(run)
    assert not (run.folder / "results").exists()


def test_gpu_that_is_not_there_is_refused_before_any_job(run, cohort_files):
    if diagnosis.unusable() is None:
        pytest.skip("there is a GPU here")
    run.write(sheet_of(cohort_files), device="gpu")
    assert "rule hvg" in run.snakemake("--dry-run").stdout  # as on a cluster's login node
    assert "device: gpu cannot be used here: " in message(run)
    assert not (run.folder / "results").exists()


def test_missing_file_is_refused_before_any_job(run, cohort_files):
    run.write([*sheet_of(cohort_files), {"sample": "P9", "path": "gone.h5ad"}])
    assert "sample P9: gone.h5ad does not exist" in message(run)
    assert not (run.folder / "results").exists()


def test_what_headers_tell_wrong_is_one_message_before_any_job(run, cohort_files, tmp_path):
    odd = ad.read_h5ad(cohort_files[1])
    odd.X = np.log1p(odd.X)
    odd.write_h5ad(tmp_path / "odd.h5ad")
    (tmp_path / "cut.h5ad").write_bytes(cohort_files[2].read_bytes()[:5000])
    more = [{"sample": name, "path": str(tmp_path / f"{name}.h5ad")} for name in ("odd", "cut")]
    run.write([*sheet_of(cohort_files[:1]), *more], label_key="cell_type")
    text = message(run)
    assert "sample P1: label_key: neither" in text
    assert "the sheet has a column cell_type; there are sample," in text
    assert "X does not hold raw counts" in text
    assert "cut.h5ad cannot be read" in text
    assert not (run.folder / "results").exists()
    assert not (run.folder / "logs").exists()


@pytest.mark.slow
def test_sample_left_empty_by_its_limits(run, cohort_files):
    run.write([{**line, "min_genes": "4000"} for line in sheet_of(cohort_files[:1])], cells={"max_genes": None})
    text = message(run, "results/cohort/genes.parquet")
    assert "none of the cohort's 350 cells are left" in text
    assert "Where the cells went, by sample: P1: 0 of 350 cells kept, min_genes took 350" in text
    assert "Loosen the limits" in text
    (notice,) = run.record("logs/samples/P1/cells.log")["notices"]
    assert notice.startswith("sample P1: none of its 350 cells is left (min_genes 350): the cohort goes on without it.")


@pytest.mark.slow
def test_fewer_cells_than_components_and_neighbours(run, cohort_files, tmp_path):
    few = tmp_path / "few.h5ad"
    ad.read_h5ad(cohort_files[0])[:60].copy().write_h5ad(few)
    run.write([{"sample": "few", "path": str(few)}], pca={"n_comps": 90}, hvg={"n_top_genes": 600, "span": 0.9})
    run.snakemake("results/atlas.h5ad")
    n_obs = len(pd.read_parquet(run.folder / "results/cohort/obs.parquet"))
    assert n_obs < 60
    told = [text for log in ("pca", "tsne") for text in run.record(f"logs/cohort/{log}.log")["notices"]]
    assert told == [
        f"pca: n_comps: {n_obs - 1} components instead of 90: there are {n_obs} cells x 600 highly variable genes",
        f"tsne: perplexity: {n_obs - 1} neighbours instead of 90: there are {n_obs} cells only",
    ]


@pytest.mark.slow
def test_mixed_references_are_named(run, cohort_files, tmp_path):
    odd = ad.read_h5ad(cohort_files[1])
    odd.var_names = [f"ENSG{i:011d}" for i in range(odd.n_vars)]
    odd.var_names = np.where([n.endswith("7") for n in odd.var_names], "MT-" + odd.var_names, odd.var_names)
    odd.write_h5ad(tmp_path / "odd.h5ad")
    sheet = [*sheet_of([cohort_files[0], cohort_files[2]]), {"sample": "odd", "path": str(tmp_path / "odd.h5ad")}]
    run.write(sheet, qc={"gene_families": {"MT": ["MT-"], "RIBO": None}})
    text = message(run, "results/cohort/genes.parquet")
    assert "counted against different references" in text.replace("\n", " ")
    assert "Sample odd" in text


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full") or os.geteuid() != 0, reason="needs a small file system of its own")
def test_full_disk(run, cohort_files):
    """With a results folder of 300 kB, the message says that the disk is full, and no partial file stays."""
    import subprocess

    results = run.folder / "results"
    results.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(results)], check=False).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        run.write(sheet_of(cohort_files[:1]))
        assert "the disk is full" in message(run, "results/samples/P1/counts.h5ad")
        assert not [path for path in results.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(results)], check=True)


@pytest.mark.slow
def test_read_only_results(run, cohort_files):
    import subprocess

    results = run.folder / "results"
    results.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(results)], check=False).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        run.write(sheet_of(cohort_files[:1]))
        done = run.snakemake("results/samples/P1/counts.h5ad", check=False)
        assert done.returncode != 0
        assert "ead-only file system" in done.stderr
    finally:
        subprocess.run(["umount", str(results)], check=True)
