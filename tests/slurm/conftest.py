"""The cluster, started once, and folders for runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from runs import patients
from submitted import Submitted


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Two nodes with CPUs only and one with two simulated GPUs."""
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
