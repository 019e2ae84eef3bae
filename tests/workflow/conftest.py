"""The small simulated cohort, and one complete run of it."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import pytest
from runs import Run, patients, sheet_of


@pytest.fixture(scope="session")
def cohort_files(tmp_path_factory) -> list[Path]:
    """Three patients of 350 cells x 2,000 genes."""
    return patients(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def one_file(cohort_files, tmp_path_factory) -> Path:
    """The three patients in one h5ad, like the article's cohort: obs PatientNumber and CellType."""
    path = tmp_path_factory.mktemp("article") / "cohort.h5ad"
    ad.concat([ad.read_h5ad(file) for file in cohort_files], merge="same").write_h5ad(path)
    return path


@pytest.fixture
def run(tmp_path) -> Run:
    """A fresh folder."""
    return Run(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, cohort_files) -> Run:
    """A complete run of the small cohort, shared by all tests that read it; none may change it."""
    run = Run(tmp_path_factory.mktemp("finished"))
    run.write(sheet_of(cohort_files))
    run.snakemake()
    return run
