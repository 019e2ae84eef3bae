"""`snakemake preflight` and `snakemake doctor`, as a user calls them."""

from __future__ import annotations

import re

import pytest
from lib.run import diagnosis
from runs import sheet_of

pytestmark = pytest.mark.slow


def test_preflight_lists_every_rule_and_computes_nothing(run, cohort_files):
    run.write(sheet_of(cohort_files))
    text = run.snakemake("preflight").stdout
    assert "3 samples, 1,050 cells" in text
    assert re.search(r"^doublets +3 .* yes$", text, re.M)
    assert re.search(r"^atlas +1 .* yes$", text, re.M)
    jobs = len(run.jobs())
    assert f"{jobs} jobs" in text
    assert not (run.folder / "results").exists()


def test_preflight_fails_where_a_job_does_not_fit(run, cohort_files):
    run.write(sheet_of(cohort_files), limits={"mem_gb": 0.1})
    done = run.snakemake("preflight", check=False)
    assert done.returncode
    assert re.search(r"^atlas .* no: memory$", done.stdout, re.M)
    assert "atlas: no: memory" in done.stderr
    done = run.snakemake("preflight", "--resources", "mem_mb=200", check=False)
    assert re.search(r"^ingest .* no: memory$", done.stdout, re.M)


def test_preflight_of_a_gpu_run_works_where_there_is_none(run, cohort_files):
    run.write(sheet_of(cohort_files), device="gpu")
    text = run.snakemake("preflight").stdout
    assert "GPU memory GB" in text


def test_doctor_finds_this_machine_in_order(run, cohort_files):
    run.write(sheet_of(cohort_files), device="cpu")
    text = run.snakemake("doctor").stdout
    for what in ("machine", "Python", "packages", "executors", "GPU", "disk"):
        assert re.search(rf"^ok +{what}", text, re.M), text
    assert "WRONG" not in text


@pytest.mark.skipif(diagnosis.unusable() is None, reason="there is a GPU")
def test_doctor_fails_where_the_config_wants_a_gpu_and_there_is_none(run, cohort_files):
    run.write(sheet_of(cohort_files), device="gpu")
    done = run.snakemake("doctor", check=False)
    assert done.returncode
    assert re.search(r"^WRONG GPU: not usable", done.stdout, re.M)


def test_the_demo_is_made_and_carried_to_the_end(run):
    """In an empty folder, with the workflow's own config and sheet."""
    jobs = run.jobs()
    assert jobs.count("simulate") == jobs.count("ingest") == 3
    assert {"atlas", "report", "umap"} <= set(jobs)
