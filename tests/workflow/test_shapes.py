"""Cohorts of other shapes: the article's single file, one batch, other formats, a module of another workflow."""

from __future__ import annotations

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from runs import HOME, SMALL, sheet_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("finished")]


def test_article_in_one_file_gives_what_its_patients_in_three_do(one_file, finished, run):
    """The article's config with the small cohort's sizes; per-batch results equal those of the run of three files."""
    config = yaml.safe_load((HOME / "config" / "examples" / "article.yaml").read_text())
    assert (config["batch_key"], config["label_key"]) == ("PatientNumber", "CellType")
    for section, sizes in SMALL.items():
        config[section] = config.get(section, {}) | sizes if isinstance(sizes, dict) else sizes
    config["qc"]["gene_families"]["RIBO"] = ["RPS", "RPL"]  # as in the run for comparison
    run.write([{"sample": "cohort", "path": str(one_file)}], **config)
    run.snakemake()
    atlas = ad.read_h5ad(run.folder / "results" / "atlas.h5ad")
    theirs = ad.read_h5ad(finished.folder / "results" / "atlas.h5ad")

    order = [name.rsplit("-", 1)[0] for name in theirs.obs_names]
    mine = [
        name.removesuffix("-cohort").removesuffix(f"-{p}")
        for name, p in zip(atlas.obs_names, atlas.obs["PatientNumber"], strict=True)
    ]
    assert sorted(zip(atlas.obs["PatientNumber"].astype(str), mine, strict=True)) == sorted(
        zip(theirs.obs["PatientNumber"].astype(str), order, strict=True)
    )
    assert (atlas.var["highly_variable"] == theirs.var.loc[atlas.var_names, "highly_variable"]).all()
    # The same sums in another order: only rounding
    np.testing.assert_allclose(atlas.uns["pca"]["variance_ratio"], theirs.uns["pca"]["variance_ratio"], rtol=1e-5)


def test_order_of_the_sheet_changes_nothing_but_the_order_of_the_cells(finished, run, cohort_files):
    run.write(sheet_of(cohort_files[::-1]))
    run.snakemake("results/cohort/pca.h5")
    names = ["total_counts", "kept_counts", "doublet_score"]
    one, other = (pd.read_parquet(r.folder / "results/cohort/obs.parquet")[names] for r in (finished, run))
    pd.testing.assert_frame_equal(one.sort_index(), other.sort_index())
    hvg, again = (pd.read_parquet(r.folder / "results/cohort/hvg.parquet") for r in (finished, run))
    pd.testing.assert_frame_equal(hvg, again.loc[hvg.index], rtol=1e-9)


def test_one_batch_is_not_integrated_and_the_log_says_so(run, cohort_files):
    run.write(sheet_of(cohort_files[:1]))
    run.snakemake()
    assert "only one batch" in (run.folder / "logs/cohort/harmony.log").read_text()
    atlas = ad.read_h5ad(run.folder / "results" / "atlas.h5ad")
    assert "X_pca_harmony" not in atlas.obsm
    from figures_pca import harmony_figure

    fig = harmony_figure(atlas.obsm["X_pca"], run.folder / "results/cohort/harmony.h5", {}, 0)
    assert fig.axes[0].texts[0].get_text() == "Harmony skipped: only one batch (sample)"
    assert not (run.folder / "results/figures/umap/sample.png").exists()  # of one colour
    assert "pca.png" in (run.folder / "results" / "report.html").read_text()


def test_module_of_another_workflow(run, cohort_files):
    """`module` with its own config: defaults come from the model, and targets from the module's rules."""
    run.write(sheet_of(cohort_files))
    outer = f"""
configfile: "config/config.yaml"

module somersault:
    snakefile: "{HOME}/Snakefile"
    config: config

use rule * from somersault as somersault_*

rule mine:
    default_target: True
    input: rules.somersault_genes.output.genes
"""
    (run.folder / "Snakefile").write_text(outer)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--directory", str(run.folder)]
    command += ["--snakefile", str(run.folder / "Snakefile")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run.folder / "results" / "cohort" / "genes.parquet").is_file()


def test_sheet_columns_and_limits_reach_obs(run, cohort_files):
    sheet = sheet_of(cohort_files)
    sheet[0] |= {"site": "lung", "max_genes": "600"}
    sheet[1] |= {"site": "liver"}
    run.write(sheet)
    run.snakemake("results/cohort/obs.parquet")
    obs = pd.read_parquet(run.folder / "results" / "cohort" / "obs.parquet")
    sites = obs.groupby("sample", observed=True)["site"].agg(lambda values: set(values.dropna()))
    assert sites.to_dict() == {"P1": {"lung"}, "P2": {"liver"}, "P3": set()}
    assert obs.query("sample == 'P1'")["n_genes_by_counts"].max() < 600
    assert obs.query("sample == 'P2'")["n_genes_by_counts"].max() >= 600


def test_names_of_files_may_hold_what_shells_and_patterns_give_a_meaning(run, cohort_files):
    odd = [
        "a b",
        "a#old",
        "a'b",
        "ä",
        "a\\b",
        "-a",
        "a*",
        "a$HOME",
        "~a",
        "a;b",
        "a%20b",
        "a,b",
        "a:b",
        "a|b",
        "a=b",
        "a[1]",
    ]
    for name in odd:
        (run.folder / f"{name}.h5ad").symlink_to(cohort_files[0])
    run.write([{"sample": f"S{i}", "path": f"{name}.h5ad"} for i, name in enumerate(odd)])
    run.snakemake("--until", "ingest")
    made = [run.folder / f"results/samples/S{i}/counts.h5ad" for i in range(len(odd))]
    assert all(ad.read_h5ad(path).shape == (350, 2000) for path in made[:1])
    assert len({path.stat().st_size for path in made}) <= 2  # the samples' names differ in length


def test_an_atlas_of_an_earlier_run_is_analysed_again(finished, run):
    atlas = finished.folder / "results" / "atlas.h5ad"
    run.write(
        [{"sample": "again", "path": str(atlas), "counts": "layers/counts"}],
        batch_key="sample_file",
        label_key="leiden_0.6_file",
    )
    run.snakemake("results/atlas.h5ad")
    before, after = ad.read_h5ad(atlas), ad.read_h5ad(run.folder / "results" / "atlas.h5ad")
    assert after.n_obs > 0.9 * before.n_obs
    assert set(after.obs["sample"]) == {"again"}
    kept = before.obs_names + "-again"
    mine = before.obs.set_axis(kept).loc[after.obs_names]
    for name in ("sample", "leiden_0.6", "total_counts", "doublet_score"):
        assert after.obs[f"{name}_file"].astype(str).tolist() == mine[name].astype(str).tolist()
    (notice,) = run.record("logs/samples/again/ingest.log")["notices"]
    assert "leiden_0.6 as leiden_0.6_file" in notice
