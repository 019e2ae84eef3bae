"""The workflow on a real SLURM: few, full jobs, and recovery from failures."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from lib import start
from runs import Run, sheet_of
from test_profile import PROFILE, filled

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]
STAGES = ["ingest", "qc", "doublets", "cells"]
CELLS = [f"results/samples/P{i}/cells.parquet" for i in (1, 2, 3)]


def until(condition, seconds: float = 240):
    """Wait until a condition holds, and return its value."""
    end = time.time() + seconds
    while not (value := condition()):
        assert time.time() < end, "waited in vain"
        time.sleep(0.3)
    return value


def running(run, what: str = "") -> dict[str, str] | None:
    """The latest running job whose comment contains `what`."""
    jobs = [job for job in run.submissions() if job["state"] == "RUNNING" and what in job["what"]]
    return jobs[-1] if jobs else None


def written(run) -> dict[Path, tuple[int, int]]:
    """The files, with their inodes and times."""
    files = {path: path.stat() for path in run.folder.glob("results/**/*") if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in files.items()}


def assert_same_atlas(one: Path, other: Path) -> None:
    """The same arrays, value by value: repeated stages give the same results."""
    a, b = ad.read_h5ad(one), ad.read_h5ad(other)
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    assert (a.X != b.X).nnz == (a.layers["counts"] != b.layers["counts"]).nnz == 0
    for mine, theirs in ((a.obsm, b.obsm), (a.varm, b.varm)):
        assert set(mine) == set(theirs)
        for name in mine:
            np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(theirs[name]), err_msg=name)
    assert set(a.obsp) == set(b.obsp)
    for name in a.obsp:
        assert (a.obsp[name] != b.obsp[name]).nnz == 0, name


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, cohort_files) -> Run:
    """A run of the cohort to its atlas on this machine, without a cluster."""
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    run.write(sheet_of(cohort_files), device="cpu")
    run.snakemake("results/atlas.h5ad")
    return run


def test_stages_of_a_sample_are_one_job(run, cohort_files):
    run.write(sheet_of(cohort_files[:1]), device="cpu")
    run.on_cluster(CELLS[0])
    (job,) = run.submissions()
    assert job["state"] == "COMPLETED"
    assert "sample" in job["what"]
    assert list(run.folder.glob("logs/slurm/*/*.log"))
    assert (run.folder / CELLS[0]).is_file()
    started = {rule: run.record(f"logs/samples/P1/{rule}.log")["process"] for rule in ("ingest", "qc", "cells")}
    assert set(started.values()) == {start.FORKED}, started  # of a warm process within the job


@pytest.mark.slow
def test_jobs_of_a_whole_run_are_as_designed(run, cohort_files, undisturbed):
    """One for each group of rules, which three samples do not fill, and one for each job of no group."""
    run.write(sheet_of(cohort_files), device="cpu")
    plan = run.snakemake("--dry-run", "--workflow-profile", str(PROFILE.parent)).stdout
    groups = re.findall(r"^\[.*\] Group job (\w+)", plan, flags=re.M)
    assert sorted(groups) == ["cohort", "figures", "sample", "umap"]
    alone = re.findall(r"^rule (\w+)", plan, flags=re.M)
    run.on_cluster()
    jobs = run.submissions()
    assert {job["state"] for job in jobs} == {"COMPLETED"}
    expected = [*groups, *(rule for rule in alone if rule not in ("all", "report"))]  # these two Snakemake runs itself
    found = sorted(max((k for k in expected if job["what"].startswith(f"rule_{k}")), key=len) for job in jobs)
    assert found == sorted(expected)
    assert_same_atlas(run.folder / "results/atlas.h5ad", undisturbed.folder / "results/atlas.h5ad")
    assert (run.folder / "results/report.html").is_file()


@pytest.mark.slow
def test_small_samples_share_a_job_that_asks_for_the_sum_of_their_times(run, cohort_files):
    """Members run one after another: the job requests the sum of times and the largest memory."""
    run.write(sheet_of(cohort_files), device="cpu")
    sizes = [f"{rule}:{name}" for rule in STAGES for name in ("mem_mb=1000", "runtime=3")]
    run.on_cluster("--group-components", "sample=2", "--set-resources", *sizes, "--", *CELLS)
    jobs = run.submissions()
    assert sorted((job["limit"], job["memory"]) for job in jobs) == [("12:00", "1000M"), ("24:00", "1000M")]


@pytest.mark.slow
def test_gpu_jobs_ask_for_a_gpu_of_their_partition_and_keep_what_was_done_when_they_fail(run, cohort_files, tmp_path):
    """No stage can compute on a simulated GPU: qc fails with a message, but the output of ingest stays."""
    run.write(sheet_of(cohort_files[:1]), device="gpu")
    filled(tmp_path, gpu_partition="gpu", gpu_model="h100", partition="cpu")
    assert run.on_cluster("--workflow-profile", str(tmp_path), "--retries", "0", "--", CELLS[0], check=False)
    (job,) = run.submissions()
    assert (job["partition"], job["node"], job["state"]) == ("gpu", "gpu1", "FAILED")
    assert "TresPerJob=gres:gpu:h100:1" in run.cluster.run("scontrol", "show", "job", job["job"]).split()
    assert "cannot be used" in (run.folder / "logs/samples/P1/qc.log").read_text()
    counts = run.folder / "results/samples/P1/counts.h5ad"
    before = counts.stat().st_mtime_ns
    run.write(sheet_of(cohort_files[:1]), device="cpu")
    run.on_cluster("--", CELLS[0])
    assert counts.stat().st_mtime_ns == before


@pytest.mark.slow
def test_out_of_memory_and_over_time_are_tried_again_with_more(run, cohort_files):
    """300 MB do not suffice for Snakemake and a stage. In the second attempt the time limit is cut and processes are
    stopped."""
    run.write(sheet_of(cohort_files[:1]), device="cpu")
    sizes = [f"{rule}:{name}" for rule in STAGES for name in ("mem_mb=300 * attempt**2", "runtime=5 * attempt")]
    main = run.submit("--set-resources", *sizes, "--", CELLS[0])
    second = until(lambda: len(run.submissions()) == 2 and running(run))
    run.cluster.run("scontrol", "update", f"jobid={second['job']}", "TimeLimit=1")
    step = f"{second['job']}.0"
    until(lambda: step in run.cluster.run("squeue", "--steps", "-ho", "%i").split())
    run.cluster.run("scancel", "--signal=STOP", step)
    assert main.wait() == 0
    jobs = run.submissions()
    assert [job["memory"] for job in jobs] == ["300M", "1200M", "2700M"]
    assert jobs[0]["state"] in ("OUT_OF_MEMORY", "FAILED")
    assert [job["state"] for job in jobs[1:]] == ["TIMEOUT", "COMPLETED"]
    assert (jobs[0]["limit"], jobs[2]["limit"]) == ("20:00", "1:00:00")


@pytest.mark.slow
def test_killed_jobs_drained_node_and_killed_main_process(run, cohort_files, undisturbed):
    """The run ends normally, and jobs finished before the main process was killed are not repeated."""
    run.write(sheet_of(cohort_files), device="cpu")
    main = run.submit("results/atlas.h5ad")

    killed = until(lambda: running(run, "sample"))
    until(lambda: (run.folder / "results/samples").exists() and list(run.folder.glob("results/samples/*/qc.parquet")))
    run.cluster.run("scancel", killed["job"])
    again = until(lambda: (job := running(run, "sample")) and job["job"] != killed["job"] and job)
    run.cluster.run("scontrol", "update", f"nodename={again['node']}", "state=drain", "reason=test")
    cohort = until(lambda: running(run, "cohort"))
    assert cohort["node"] != again["node"]
    until(lambda: (run.folder / "results/cohort/features.h5ad").is_file() and list(run.folder.glob("**/obs.parquet")))
    until(lambda: (run.folder / "logs/cohort/pca.log").exists())
    os.killpg(main.pid, signal.SIGKILL)
    main.wait()
    run.cluster.run("scancel", cohort["job"])
    until(lambda: not running(run))
    before = written(run)

    run.cluster.run("scontrol", "update", f"nodename={again['node']}", "state=resume")
    assert run.on_cluster("--unlock") == 0
    run.on_cluster("results/atlas.h5ad")
    after = written(run)
    assert {"genes.parquet", "hvg.parquet", "features.h5ad"} <= {path.name for path in before}
    assert not [path for path in before if not path.name.startswith(".") and after[path] != before[path]]
    states = [job["state"] for job in run.submissions()]
    assert states.count("CANCELLED") == 2
    assert set(states) == {"CANCELLED", "COMPLETED"}
    assert_same_atlas(run.folder / "results/atlas.h5ad", undisturbed.folder / "results/atlas.h5ad")
