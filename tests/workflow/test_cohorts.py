"""Cohorts of many kinds finish at the first try, with the defaults and only the names of their batches and types."""

from __future__ import annotations

import json
import re

import anndata as ad
import cohorts
import pandas as pd
import pytest
from runs import Run

pytestmark = pytest.mark.slow


def carried(run: Run, kind: str, *targets: str, **config) -> list[str]:
    """Run the workflow on a cohort, and return the notices of its stages."""
    run.write(cohorts.COHORTS[kind](run.folder), small=False, label_key="CellType", **config)
    run.snakemake(*targets)
    records = sorted(run.folder.glob("logs/**/*.run.json"))
    return [text for path in records for text in json.loads(path.read_text())["notices"]]


def said(notices: list[str], *patterns: str) -> None:
    """Each notice matches one of the patterns, in any order, and each pattern matches one notice."""
    for pattern in patterns:
        assert sum(bool(re.match(pattern, text)) for text in notices) == 1, (pattern, notices)
    assert len(notices) == len(patterns), notices


def atlas_of(run: Run) -> ad.AnnData:
    return ad.read_h5ad(run.folder / "results" / "atlas.h5ad")


def test_a_panel_with_ensembl_ids(run):
    """All figures are drawn: there are no ribosomal genes, which the figure of the quality leaves out."""
    notices = carried(run, "panel")
    said(
        notices,
        "gene family RIBO has no gene in this cohort",
        "hvg: n_top_genes: all 1000 genes instead of 5000: there are no more",
    )
    obs = atlas_of(run).obs
    assert obs["pct_counts_MT"].between(0.5, 20).all()
    assert "pct_counts_RIBO" not in obs
    assert (run.folder / "results/figures/umap_quality.png").is_file()


def test_forty_small_batches_in_one_file(run):
    notices = carried(run, "small_donors", "results/atlas.h5ad", batch_key="donor")
    said(
        notices,
        "hvg: n_top_genes: all 39.. genes instead of 5000",
        r"in \d+ of 40 batches too few genes vary for the loess of hvg: span: 0.3; instead a wider one for D0",
        r"the doublets called in D\d+ .* are not trusted",
    )
    fits = pd.read_csv(run.folder / "results/cohort/hvg_batches.tsv", sep="\t")
    assert fits["ranked"].all()
    assert set(fits["fit"]) == {"own", "wider"}
    assert (fits["span"] > 0.3).sum() == (fits["fit"] == "wider").sum()
    assert atlas_of(run).obs["donor"].nunique() == 40


def test_mouse(run):
    notices = carried(run, "mouse", "results/atlas.h5ad")
    said(notices, "hvg: n_top_genes: all 2... genes instead of 5000")
    atlas = atlas_of(run)
    assert atlas.var.index[atlas.var["MT"]].tolist() == [f"mt-Nd{i}" for i in range(1, 7)]
    assert atlas.obs["pct_counts_RIBO"].min() > 0


def test_a_full_length_protocol_beside_droplets(run):
    """All figures are drawn: the default limit removes all cells of one sample, with a notice; the other continues."""
    notices = carried(run, "full_length")
    said(
        notices,
        r"sample plates: none of its 300 cells is left \(max_genes 300\): the cohort goes on without it\. "
        r"cells: max_genes: 5000 takes 100 % of plates \(median 1\.\d+e\+04\).*raise cells: max_genes",
    )
    assert set(atlas_of(run).obs["sample"]) == {"droplets"}


def test_progenitors_without_borders(run):
    notices = carried(run, "continuum", "results/atlas.h5ad")
    said(notices, "hvg: n_top_genes: all", "the doublets called in progenitors .* are not trusted")
    obs = atlas_of(run).obs
    assert obs["predicted_doublet"].any()
    assert len(obs) == 1000


def test_cells_rich_in_mitochondria(run):
    notices = carried(run, "half_mt", "results/atlas.h5ad")
    said(
        notices,
        "hvg: n_top_genes: all",
        r"sample heart: none of its 400 cells is left \(max_pct_counts_MT 400\).*20 takes 100 % of heart \(median 5",
    )
