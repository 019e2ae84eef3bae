"""Complete runs of cohorts on the CPU, and every stage repeated on the GPU with the same input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

HOME = Path(__file__).parents[1]
# Stage -> its artifacts in results/, of which the first is asked for; {grouping} is the Leiden clustering
STAGES = {
    "qc": ["samples/*/qc.parquet", "samples/*/qc_genes.parquet"],
    "doublets": ["samples/*/doublets.parquet", "samples/*/doublets_simulated.h5"],
    "genes": ["cohort/genes.parquet"],
    "hvg": ["cohort/hvg.parquet"],
    "features": ["cohort/features.h5ad", "cohort/obs.parquet"],
    "pca": ["cohort/pca.h5"],
    "harmony": ["cohort/harmony.h5"],
    "neighbors": ["cohort/neighbors.h5"],
    "umap": ["cohort/umap.parquet"],
    "tsne": ["cohort/tsne.parquet"],
    "leiden": ["cohort/leiden/0.6.parquet"],
    "louvain": ["cohort/louvain/0.6.parquet"],
    "kmeans": ["cohort/kmeans/8.parquet"],
    "markers_logreg": ["cohort/markers/leiden_0.6/logreg.tsv.gz"],
    "markers_ttest": ["cohort/markers/leiden_0.6/t-test.tsv.gz"],
    "atlas": ["atlas.h5ad"],
}


@dataclass
class Carried:
    """A complete run of a cohort on the CPU, and folders beside it where single stages ran on the GPU, twice."""

    name: str
    folder: Path
    config: dict[str, Any]

    def cpu(self, artifact: str) -> list[Path]:
        """An artifact of the CPU's run."""
        return sorted((self.folder / "cpu" / "results").glob(artifact))

    def gpu(self, stage: str, artifact: str, run: int = 1) -> list[Path]:
        """An artifact of a stage that ran on the GPU, from the CPU's input."""
        folder = self.folder / f"{stage}-{run}"
        if (folder / "failed").exists():
            pytest.fail((folder / "failed").read_text())
        return sorted((folder / "results").glob(artifact))

    def both(self, stage: str, n: int = 0) -> list[tuple[Path, Path]]:
        """The CPU's and the GPU's artifacts of a stage, in pairs."""
        artifact = STAGES[stage][n]
        return list(zip(self.cpu(artifact), self.gpu(stage, artifact), strict=True))


def on_gpu(folder: Path, stage: str, run: int) -> None:
    """Repeat one stage on the GPU, in a copy of the CPU's folder."""
    copy = folder / f"{stage}-{run}"
    if copy.exists():
        return
    # Hard links suffice: a stage replaces its output files, and does not change its input
    shutil.copytree(folder / "cpu", copy, copy_function=os.link, ignore=shutil.ignore_patterns(".snakemake"))
    (copy / "config" / "config.yaml").unlink()
    config = yaml.safe_load((folder / "cpu" / "config" / "config.yaml").read_text())
    (copy / "config" / "config.yaml").write_text(yaml.safe_dump(config | {"device": "gpu"}))
    targets = [str(path.relative_to(copy)) for path in (copy / "results").glob(STAGES[stage][0])]
    done = snakemake(copy, 4, *targets, "--force", "--rerun-triggers", "mtime")
    if done.returncode:
        (copy / "failed").write_text(f"{stage} on the GPU:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")


def snakemake(folder: Path, cores: int, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow in a folder, without its report."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HOME / "Snakefile"), "--directory", str(folder)]
    command += ["--cores", str(cores), "--no-hooks", "--show-failed-logs", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
