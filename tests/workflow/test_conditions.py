"""The example config of differences between conditions, on a small cohort: its planted effects are found."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from anndata.io import write_elem
from lib.inputs import config as settings
from lib.report.parts import Done, Finding, Finished, Numbers, Table
from lib.run.models import declared
from lib.store.names import escape
from runs import HOME, Run, patients, sheet_of
from simulate import CHANGED, GROWN, Design, planted, simulated_genes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("conditions")]
EXAMPLE = yaml.safe_load((HOME / "config" / "examples" / "conditions.yaml").read_text())
SHEET = pd.read_csv(HOME / "config" / "examples" / "conditions.tsv", sep="\t")
NAME = "condition_treated_vs_control"
FIGURES = [
    *(f"results/figures/de/CellType/{NAME}/{name}.png" for name in ("genes", "volcano")),
    *(f"results/figures/pseudobulk/CellType/{name}.png" for name in ("cells", "components")),
    "results/figures/composition/CellType/samples.png",
    f"results/figures/composition/CellType/levels/{NAME}.png",
]
TABLES = [f"results/tables/de/CellType/{NAME}/enrichment.tsv", "results/tables/pseudobulk/CellType/scores.tsv"]


@pytest.fixture(scope="module")
def truth() -> pd.DataFrame:
    """The planted changes, genes x types."""
    design = Design(n_genes=2000, n_types=5, umi=2500)
    return planted(design, simulated_genes(design))


@pytest.fixture(scope="module")
def done(tmp_path_factory, truth) -> Run:
    """Eight patients of 250 cells x 2,000 genes with the example's sheet; of the run the parts that it is about."""
    run = Run(tmp_path_factory.mktemp("conditions"))
    files = patients(run.folder, 8, 250, n_treated=4)
    columns = SHEET.drop(columns=["sample", "path"]).to_dict("records")
    rises = {f"rises in {name}": list(truth.index[truth[name] > 0]) for name in truth}
    config = EXAMPLE | {"pseudobulk": {"groupings": ["CellType"]}, "doublets": {"enabled": False}, "gene_sets": rises}
    config["gene_sets"] |= {"B cells": ["MS4A1", "CD19", "BANK1", "VPREB3"]}
    sheet = [line | more for line, more in zip(sheet_of(files), columns, strict=True)]
    run.write(sheet, **{key: value for key, value in config.items() if key != "samples"})
    run.snakemake(*FIGURES, *TABLES, "results/cohort/composition/CellType/tests.parquet")
    return run


def table_of(done, path):
    return pd.read_csv(done.folder / "results" / "tables" / path, sep="\t")


def test_the_example_is_the_demos_own_sheet():
    assert (SHEET["condition"].value_counts() == 4).all()
    assert (SHEET["path"].str.contains("-treated") == (SHEET["condition"] == "treated")).all()


def test_planted_effects_are_found_and_no_others(done, truth):
    """Of 40 genes a type at least half, with a tenth of false ones at most; nothing in types without effects."""
    table = pd.read_parquet(done.folder / "results" / "cohort" / "de" / "CellType" / f"{NAME}.parquet")
    found = table[table["pvals_adj"] < 0.05]
    for name, genes in found.groupby("group"):
        change = truth[name].reindex(genes["names"]) if name in CHANGED else pd.Series(0, genes["names"])
        right = np.sign(change.to_numpy()) == np.sign(genes["logfoldchanges"].to_numpy())
        if name in CHANGED:
            assert right.sum() > 20, name
            assert (~right).mean() < 0.1, name
        else:
            assert len(genes) <= 2, name
    assert set(CHANGED) <= {*found["group"]}


def test_tests_of_cells_stand_beside(done):
    """They call many genes in types without effects."""
    table = table_of(done, f"de/CellType/{NAME}/overview.tsv").set_index("group")
    assert (table[["n_samples_level", "n_samples_reference"]] == 4).all(axis=None)
    others = table.drop(index=list(CHANGED))
    assert (others["n_cell_tests"] > 50).all()
    assert (others[["n_up", "n_down"]].sum(axis=1) <= 2).all()


def test_each_group_has_a_table(done):
    folder = done.folder / "results" / "tables" / "de" / "CellType" / NAME
    whole = pd.read_parquet(done.folder / "results" / "cohort" / "de" / "CellType" / f"{NAME}.parquet")
    files = {path.stem for path in (folder / "groups").glob("*.tsv")}
    assert files == {escape(name) for name in whole["group"].unique()}
    of_one = pd.read_csv(folder / "groups" / "CD4=20T.tsv", sep="\t")
    assert len(of_one) == (whole["group"] == "CD4 T").sum()
    assert (of_one["scores"].diff().dropna() <= 1e-6).all()
    assert of_one["rank"].tolist() == list(range(1, len(of_one) + 1))


def test_the_type_that_grows_is_found(done):
    tests = table_of(done, "composition/CellType/tests.tsv").set_index("group")
    assert tests.loc[GROWN, "pvals_adj"] < 0.05
    assert tests["logit_change"].idxmax() == GROWN
    shares = table_of(done, "composition/CellType/shares.tsv")
    assert {"condition", "sex"} <= {*shares}
    np.testing.assert_allclose(shares.groupby("sample")["share"].sum(), 1, atol=1e-5)  # six digits


def test_sets_of_planted_genes_are_enriched_and_scored(done):
    table = table_of(done, f"de/CellType/{NAME}/enrichment.tsv")
    assert set(table["method"]) == {"ora", "gsea"}
    for name in CHANGED:
        mine = table[(table["group"] == name) & (table["source"] == f"rises in {name}")]
        assert (mine.loc[mine["direction"] != "down", "padj"] < 0.05).all()
        assert (mine.loc[mine["direction"] == "down", "score"] < 0).all()
    scores = table_of(done, "pseudobulk/CellType/scores.tsv")
    of_b = scores[scores["source"] == "B cells"].groupby("group")["score"].mean()
    assert of_b.idxmax() == "B"


def test_pseudobulks_are_the_sums_of_the_counts(done):
    bulk = ad.read_h5ad(done.folder / "results" / "cohort" / "pseudobulk" / "CellType.h5ad")
    store = ad.read_h5ad(done.folder / "results" / "samples" / "P1" / "counts.h5ad")
    cells = pd.read_parquet(done.folder / "results" / "samples" / "P1" / "cells.parquet")
    mine = (cells["kept"] & (cells["CellType"] == "B")).to_numpy()
    row = bulk[(bulk.obs["sample"] == "P1") & (bulk.obs["group"] == "B")]
    assert row.obs["n_cells"].item() == mine.sum()
    expected = np.asarray(store[mine, store.var_names.get_indexer(bulk.var_names)].X.sum(0)).ravel()
    np.testing.assert_array_equal(row.X.ravel(), expected)
    assert row.obs["total_counts"].item() == expected.sum()
    assert {"condition", "sex", "age"} <= {*bulk.obs}
    assert "pct_counts_MT" not in bulk.obs


def test_the_atlas_takes_the_tables(done, tmp_path):
    """In uns, as tables that every version of AnnData reads."""
    import h5py
    from atlas import read_slots, without_none

    cohort = done.folder / "results" / "cohort"
    names = [f"de/CellType/{NAME}.parquet", "composition/CellType/shares.parquet", "composition/CellType/tests.parquet"]
    slots = read_slots([cohort / name for name in names])
    with h5py.File(tmp_path / "uns.h5ad", "w") as file:
        write_elem(file, "uns", without_none(slots.uns))
        write_elem(file, "obs", pd.DataFrame(index=["x"]))
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    uns = ad.read_h5ad(tmp_path / "uns.h5ad").uns
    assert len(uns["de"][f"{NAME}_CellType"]) > 1000
    assert uns["de_params"][f"{NAME}_CellType"]["level"] == "treated"
    assert {*uns["composition"]} == {"CellType", "CellType_tests"}


def finished(done: Run) -> Finished:
    """The run as the report sees it, as far as the stages here."""
    results = done.folder / "results"
    of = {"grouping": "CellType", "contrast": NAME}
    tables, figures = results / "tables", results / "figures"
    at = tables / "de" / "CellType" / NAME
    outputs = {
        "pseudobulk": {},
        "de": {"overview": at / "overview.tsv", "top": at / "top.tsv", "tables": at / "groups"},
        "de_enrichment": {"enrichment": at / "enrichment.tsv"},
        "composition": {
            "table": tables / "composition" / "CellType" / "shares.tsv",
            "tests_table": tables / "composition" / "CellType" / "tests.tsv",
        },
        "figures_pseudobulk": {
            "table": tables / "pseudobulk" / "CellType" / "profiles.tsv",
            "cells": figures / "cells.png",
            "pca": figures / "pca.png",
        },
        "figures_de": {"overview": figures / "genes.png", "volcano": figures / "volcano.png"},
    }
    jobs = [Done(rule, rule, of, {k: str(path) for k, path in made.items()}) for rule, made in outputs.items()]
    return Finished(settings.complete(yaml.safe_load((done.folder / "config" / "config.yaml").read_text())), jobs)


def test_the_report_tells_how_many_samples_stand_behind_a_number(done):
    run = finished(done)
    parts = [part for job in run.jobs for part in declared(job.script, "tells")(run)]
    assert not [part for part in parts if isinstance(part, Finding)]
    said = next(part.said for part in parts if isinstance(part, Numbers) and part.figure.endswith("genes.png"))
    assert said.startswith("4 samples of treated against 4 of control, in 5 groups of `CellType`: genes that differ")
    assert "a test of cells would call" in said
    titles = {part.title for part in parts if isinstance(part, Table)}
    assert {f"Genes found, {NAME}", f"Genes, {NAME}", "Tests of shares, CellType", "Pseudobulks, CellType"} <= titles


def test_figures_are_drawn(done):
    for path in FIGURES:
        assert (done.folder / path).stat().st_size > 5000, path


def test_another_covariate_tests_anew_and_sums_nothing(done):
    path = done.folder / "config" / "config.yaml"
    before = path.read_text()
    config = yaml.safe_load(before)
    config["de"][0]["covariates"] = ["age"]
    path.write_text(yaml.safe_dump(config))
    jobs = {*done.jobs(*FIGURES, *TABLES)}
    path.write_text(before)
    assert {"de", "figures_de", "composition", "de_enrichment"} <= jobs
    assert not jobs & {"pseudobulk", "pseudobulk_scores", "ingest", "features"}


def test_preflight_knows_the_stages(done):
    said = done.snakemake("preflight").stdout
    for stage in ("pseudobulk", "de", "composition", "figures_de"):
        assert f"\n{stage} " in said or f" {stage} " in said, said


def test_without_contrasts_nothing_of_it_runs(done):
    path = done.folder / "config" / "config.yaml"
    before = path.read_text()
    config = yaml.safe_load(before)
    for key in ("de", "pseudobulk", "composition"):
        config.pop(key)
    path.write_text(yaml.safe_dump(config))
    jobs = {*done.jobs()}
    path.write_text(before)
    new = {"pseudobulk", "pseudobulk_scores", "de", "de_enrichment", "composition"}
    assert not jobs & (new | {"figures_de", "figures_pseudobulk", "figures_composition"})


def test_24_samples_with_a_confounded_site_are_refused_before_any_job(done, tmp_path):
    """12 treated at one site, 12 controls at another: the message has their numbers."""
    run = Run(tmp_path)
    half = ["control"] * 12 + ["treated"] * 12
    sheet = [
        {
            "sample": f"S{i}",
            "path": str(done.folder / "P1.h5ad"),
            "condition": one,
            "site": {"c": "A", "t": "B"}[one[0]],
        }
        for i, one in enumerate(half)
    ]
    contrast = {"column": "condition", "level": "treated", "reference": "control", "covariates": ["site"]}
    run.write(sheet, de=[contrast])
    refused = run.snakemake(check=False)
    assert refused.returncode
    said = refused.stdout + refused.stderr
    assert "Traceback" not in said
    assert "the effect of condition cannot be told apart from that of site alone" in said
    assert "control    12  0" in said
    assert not (run.folder / "results").exists()
