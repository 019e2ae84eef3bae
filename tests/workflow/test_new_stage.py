"""The page of scripts/README.md that adds a stage, followed to the letter in a copy of the workflow."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from runs import HOME, Run, copy_workflow, sheet_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("new stage")]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the workflow with the stage `complexity`, as the page has it."""
    home = copy_workflow(tmp_path_factory.mktemp("copy"))
    page = (HOME / "scripts" / "README.md").read_text().split("## A stage in five steps")[1].split("\n## ")[0]
    script, rule, section, field = re.findall(r"```\w+\n(.*?)```", page, flags=re.S)
    (home / "scripts" / "complexity.py").write_text(script)
    with (home / "rules" / "cohort.smk").open("a") as file:
        file.write(f"\n\n{rule}")
    sections = home / "scripts" / "lib" / "inputs" / "sections.py"
    before, after = sections.read_text().split("class Config(Section):")
    sections.write_text(f"{before}{section}\n\nclass Config(Section):{after.rstrip()}\n{field}")
    subprocess.run([sys.executable, "config/generate.py"], cwd=home, check=True)
    return home


@pytest.fixture(scope="module")
def done(copy, tmp_path_factory, cohort_files) -> Run:
    """Two patients carried to the end by the copy."""
    run = Run(tmp_path_factory.mktemp("new stage"), home=copy)
    run.write(sheet_of(cohort_files[:2]), complexity={"min_counts": 1500})
    run.snakemake()
    return run


def test_its_column_and_parameters_are_in_the_atlas(done):
    atlas = ad.read_h5ad(done.folder / "results" / "atlas.h5ad")
    expected = np.log(atlas.obs["n_genes_by_counts"]) / np.log(atlas.obs["total_counts"])
    expected[atlas.obs["total_counts"] < 1500] = np.nan
    assert 0 < expected.isna().sum() < len(expected)
    np.testing.assert_allclose(atlas.obs["complexity"], expected, rtol=1e-12)  # float64 on both sides
    assert atlas.uns["complexity"]["params"] == {"min_counts": 1500}


def test_its_job_is_in_the_timeline_and_its_resources_in_preflight(done):
    runs = pd.read_csv(done.folder / "results" / "tables" / "runs.tsv", sep="\t")
    assert (runs["rule"] == "complexity").sum() == 1
    text = done.snakemake("preflight").stdout
    assert re.search(r"^complexity +1 +0\.\d\d +0:03 .* yes$", text, re.M)


def test_its_key_is_in_the_reference_the_config_and_the_schema(copy):
    assert "| `complexity: min_counts` | integer" in (copy / "config" / "README.md").read_text()
    assert "min_counts: 2 # cells with fewer counts" in (copy / "config" / "config.yaml").read_text()
    assert "complexity:" in (copy / "config" / "schemas" / "config.schema.yaml").read_text()


def test_its_key_is_checked_and_its_column_is_ours(done, cohort_files):
    before = (done.folder / "config" / "config.yaml").read_text()
    done.write(sheet_of(cohort_files[:2]), complexity={"min_count": 1})
    refused = done.snakemake("--dry-run", check=False)
    (done.folder / "config" / "config.yaml").write_text(before)
    assert "unknown key `complexity: min_count`: did you mean `min_counts`?" in refused.stderr + refused.stdout
    done.write([line | {"complexity": 1} for line in sheet_of(cohort_files[:2])], complexity={"min_counts": 1500})
    refused = done.snakemake("--dry-run", check=False)
    assert "the column complexity is named as what this workflow writes itself" in refused.stderr + refused.stdout


def test_a_change_of_its_key_runs_it_and_what_reads_it(done, cohort_files):
    done.write(sheet_of(cohort_files[:2]), complexity={"min_counts": 2})
    assert set(done.jobs()) == {"complexity", "matrices", "atlas", "explorer", "runs", "report"}


def test_its_chapter_finding_and_methods_are_in_the_report(done):
    text = (done.folder / "results" / "report.html").read_text()
    values = ad.read_h5ad(done.folder / "results" / "atlas.h5ad").obs["complexity"]
    assert f"The median complexity of {len(values):,} cells is {values.median():.2f}." in text
    assert text.count('id="complexity"') == text.count('href="#complexity"') - 1 == 1  # the chapters' list, and its own
    assert "The complexity of a cell is log(genes) / log(counts)." in text
    assert ("the median complexity of the cells is" in text) == (values.median() < 0.8)
