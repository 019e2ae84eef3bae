"""The cluster, started once, and runs of the workflow on it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster, missing
from runs import HOME, Run, patients


@dataclass
class Submitted(Run):
    """A folder in which the workflow runs on the cluster, through profiles/slurm."""

    cluster: Cluster

    def submit(self, *args: str) -> subprocess.Popen[str]:
        """Start snakemake, as on a login node; its log is `main.log`."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(HOME / "Snakefile")]
        command += ["--directory", str(self.folder), "--workflow-profile", str(HOME / "profiles" / "slurm")]
        command += ["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "10", *args]
        env = self.cluster.environment | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with (self.folder / "main.log").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True)

    def on_cluster(self, *args: str, check: bool = True) -> int:
        """Run snakemake to its end; its exit status."""
        status = self.submit(*args).wait()
        if check and status:
            pytest.fail(f"snakemake {' '.join(args)} failed:\n{self.log()[-6000:]}")
        return status

    def log(self) -> str:
        """What snakemake printed."""
        return (self.folder / "main.log").read_text()

    def submissions(self) -> list[dict[str, str]]:
        """The SLURM jobs of this folder, in the order of their submission."""
        ids = {line.split("jobid ")[1].split()[0] for line in self.log().splitlines() if "submitted with SLURM" in line}
        return [job for job in self.cluster.jobs() if job["job"] in ids]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Two nodes of CPUs and one with two pretended GPUs."""
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs the extra: uv sync --extra slurm")
    if reason := missing():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        try:
            cluster.start()
        except (OSError, RuntimeError) as error:
            pytest.skip(f"SLURM does not start here: {error}")
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def cohort_files(tmp_path_factory) -> list[Path]:
    """Three patients of 350 cells x 2,000 genes."""
    return patients(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def run(tmp_path, cluster) -> Submitted:
    """A fresh folder."""
    return Submitted(tmp_path, cluster)
