"""Columns of any name as every key that names one: refused before any job, or planned to the end."""

from __future__ import annotations

import anndata as ad
import pytest
from runs import sheet_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("names")]

PLANNED = ["{sample}", "{}", "x\ny", "..", " ", "*?[a]", "%2F", "\\", "".join(map(str, range(60))), "$(x)", "😀"]
REFUSED = {
    "../../../../x": "from version 0.13 on, AnnData refuses names of columns with a /",
    "a/b": "from version 0.13 on, AnnData refuses names of columns with a /",
    "n" * 300: "whose 300 characters do not fit a path",
    "😀" * 14: "whose 14 characters do not fit a path",
    ".": "names '.', which no file of HDF5 can have as a name",
    "": "`batch_key`",
}


def of_all_keys(name: str) -> dict[str, object]:
    """A config that names the column wherever it can."""
    of_sections = {"harmony": {"keys": [name]}, "density": {"groupby": name}, "markers": {"groupings": [name]}}
    return {"batch_key": name, "label_key": name, **of_sections}


@pytest.fixture(scope="module")
def named(cohort_files, tmp_path_factory):
    """A patient with columns of these names."""
    patient = ad.read_h5ad(cohort_files[0])
    for name in PLANNED:
        patient.obs[name] = patient.obs["CellType"]
    path = tmp_path_factory.mktemp("named") / "P1.h5ad"
    patient.write_h5ad(path)
    return path


@pytest.mark.parametrize("name", PLANNED, ids=repr)
def test_odd_names_are_planned_within_the_folder(run, named, name):
    run.write(sheet_of([named]), **of_all_keys(name))
    plan = run.snakemake("--dry-run").stdout
    assert "rule density" in plan
    assert "/../" not in plan
    assert not (run.folder / "results").exists()


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: repr(name[:20]))
def test_impossible_names_are_refused(run, cohort_files, name):
    run.write(sheet_of(cohort_files[:1]), **of_all_keys(name))
    done = run.snakemake("--dry-run", check=False)
    assert done.returncode
    assert REFUSED[name] in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def rows() -> list[tuple[str, str, str]]:
    """Odd names of columns, for docs/odd_input.md."""
    about = "a column with this name, wherever the config can name one"
    planned = [(repr(name[:20]), about, "works to the end") for name in PLANNED]
    return planned + [(repr(name[:20]), about, "refused before any job") for name in REFUSED]
