"""The example config of gene sets, cell types and markers, on the demo, to the end."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import yaml
from pages import captions_have_numbers
from runs import HOME, Run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cell types")]
EXAMPLE = yaml.safe_load((HOME / "config" / "examples" / "cell_types.yaml").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Run:
    """The demo with the example's config; less exact embeddings, to be faster."""
    run = Run(tmp_path_factory.mktemp("cell types"))
    (run.folder / "config").mkdir()
    faster = {"tsne": {"enabled": False}, "umap": {"n_epochs": 50}, "doublets": {"enabled": False}}
    (run.folder / "config" / "config.yaml").write_text(yaml.safe_dump(EXAMPLE | faster))
    run.snakemake()
    return run


@pytest.fixture(scope="module")
def atlas(done) -> ad.AnnData:
    return ad.read_h5ad(done.folder / "results" / "atlas.h5ad")


def test_scores_are_in_the_slots_of_decoupler(atlas):
    """The sets score highest in the cells of their type, by every method."""
    types = atlas.obs["CellType"].astype(str)
    for method in EXAMPLE["scores"]["methods"]:
        scores = atlas.obsm[f"score_{method.removeprefix('score_')}"]
        assert {*scores} == {*EXAMPLE["gene_sets"]}
        assert (scores.groupby(types).mean().idxmax() == list(scores)).all(), method
    for method in ("ulm", "mlm", "zscore"):
        assert atlas.obsm[f"padj_{method}"].to_numpy().max() <= 1


def test_types_by_the_reference_and_by_markers(atlas):
    """Simulated doublets and cells between two types are the rest."""
    types = atlas.obs["CellType"].astype(str)
    single = ~atlas.obs["true_doublet"].to_numpy(bool)
    for name, share in (("annotation_label", 0.95), ("annotation_majority", 0.95), ("annotation_markers", 0.9)):
        assert (atlas.obs[name].astype(str) == types)[single].mean() > share, name
    right = (atlas.obs["annotation_label"].astype(str) == types).to_numpy()
    probability = atlas.obs["annotation_probability"].to_numpy()
    assert probability[right].mean() > probability[~right].mean()
    assert "annotation_markers_colors" in atlas.uns


def test_markers_by_pairs_and_of_a_grouping_by_names(done, atlas):
    table = sc.get.rank_genes_groups_df(atlas, None, key="rank_genes_groups_CellType_wilcoxon")
    assert list(table["group"].unique()) == EXAMPLE["markers"]["reference"]["CellType"]
    first = table[table["group"] == "CD4 T vs CD8 T"].head(10)
    assert {"IL7R", "LTB", "MAL", "CD4"} & {*first["names"]}
    assert (first["pct_nz_group"] >= first["pct_nz_reference"]).all()
    assert atlas.uns["rank_genes_groups_leiden_0.6_t-test"]["params"]["reference"] == "0"
    folder = done.folder / "results" / "cohort" / "markers" / "annotation_majority"
    shown = pd.read_csv(folder / "wilcoxon.shown.tsv", sep="\t")
    assert not shown["names"].str.startswith(("MT-", "RPS", "RPL", "MALAT1", "FTL")).any()
    panel = pd.read_csv(folder / "wilcoxon.panel.tsv", sep="\t")
    assert not panel["names"].duplicated().any()


def test_enrichment_of_markers(done):
    """The first set of each group is that of its type, in each method."""
    table = pd.read_csv(done.folder / "results" / "cohort" / "enrichment" / "annotation_majority.tsv", sep="\t")
    assert set(table["method"]) == {"ora", "gsea"}
    table = table[table["group"] != "unassigned"]
    for method, of_method in table.groupby("method"):
        best = of_method.sort_values("score").groupby("group")["source"].last()
        assert (best.index == best).mean() > 0.85, method
    assert np.isfinite(table["score"]).all()


def test_figures_and_tables(done):
    figures = {path.name for path in (done.folder / "results" / "figures").rglob("*.png")}
    names = {"wilcoxon_volcano.png", "t-test_volcano.png", "annotation_label.png", "annotation_markers.png"}
    names |= {f"{method}_CellType.png" for method in EXAMPLE["scores"]["methods"]}
    names |= {f"{method}_CellType_umap.png" for method in EXAMPLE["scores"]["methods"]}
    assert names <= figures
    confusion = pd.read_csv(done.folder / "results" / "tables" / "annotation_label.tsv", sep="\t", index_col=0)
    assert confusion.index.name == "CellType"
    assert all(confusion.loc[name].idxmax() == name for name in confusion.index)


def test_the_page_tells_of_sets_and_types(done):
    captions_have_numbers(done)
    text = (done.folder / "results" / "report.html").read_text()
    for name in ("scores/lists/ulm_CellType.tsv", "annotation_label.tsv", "annotation_markers_of_clusters.tsv"):
        assert f'data-name="{name.replace("/", "_")}"' in text, name
    assert 'data-name="enrichment_CellType.tsv"' in text
    for name in ("decoupleR", "SCENIC", "Cross-tissue immune cell analysis", "Gene set enrichment analysis"):
        assert text.count(name) == 1, name
    assert re.findall(r'<span class="where">(.*?(?:annotation|Set ).*?)</span>', text) == []


def test_another_threshold_runs_the_names_alone(done):
    config = yaml.safe_load((done.folder / "config" / "config.yaml").read_text())
    before = (done.folder / "config" / "config.yaml").read_text()
    config["annotation"]["threshold"] = 0.9
    (done.folder / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    jobs = {*done.jobs()}
    (done.folder / "config" / "config.yaml").write_text(before)
    assert "annotation" in jobs
    assert not jobs & {"scores", "annotation_model", "annotation_markers", "markers_ttest_", "pca", "leiden"}


def test_sets_of_another_organism_are_refused_before_any_job(done):
    config = yaml.safe_load((done.folder / "config" / "config.yaml").read_text())
    before = (done.folder / "config" / "config.yaml").read_text()
    config["gene_sets"] = {"T": ["Il7r", "Cd4", "Ltb", "Mal"]}
    config["annotation"] = {"reference": "typo.h5ad"}
    (done.folder / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    refused = done.snakemake("--dry-run", check=False)
    (done.folder / "config" / "config.yaml").write_text(before)
    assert refused.returncode
    said = refused.stdout + refused.stderr
    assert "gene_sets: lists: 0 of its 4 genes are in the cohort" in said
    assert "4 are if upper and lower case count as the same" in said
