"""Runs of the workflow on the cluster, through profiles/slurm."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest
from cluster import Cluster
from runs import HOME, Run


@dataclass
class Submitted(Run):
    """A folder in which the workflow runs on the cluster, through profiles/slurm."""

    cluster: Cluster

    def submit(self, *args: str) -> subprocess.Popen[str]:
        """Start snakemake as on a login node; its log is `main.log`."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(HOME / "Snakefile")]
        command += ["--directory", str(self.folder), "--workflow-profile", str(HOME / "profiles" / "slurm")]
        command += ["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "10", *args]
        env = self.cluster.environment | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with (self.folder / "main.log").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True)

    def on_cluster(self, *args: str, check: bool = True) -> int:
        """Run snakemake to its end, and return its exit status."""
        status = self.submit(*args).wait()
        if check and status:
            pytest.fail(f"snakemake {' '.join(args)} failed:\n{self.log()[-6000:]}")
        return status

    def log(self) -> str:
        """The output of snakemake."""
        return (self.folder / "main.log").read_text()

    def submissions(self) -> list[dict[str, str]]:
        """The SLURM jobs of this folder, in the order of their submission."""
        ids = {line.split("jobid ")[1].split()[0] for line in self.log().splitlines() if "submitted with SLURM" in line}
        return [job for job in self.cluster.jobs() if job["job"] in ids]
