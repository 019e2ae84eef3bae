"""Runs of the whole workflow on a small simulated cohort, each in its own folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

HOME = Path(__file__).parents[1]
SMALL = {  # settings for about 1,000 cells x 2,000 genes
    "label_key": "CellType",
    "hvg": {"n_top_genes": 600, "span": 0.5},
    "pca": {"n_comps": 30},
    "neighbors": {"n_pcs": 20},
    "tsne": {"n_iter": 250},
    "umap": {"n_epochs": 100},
}


COPIED = ("Snakefile", "pyproject.toml", "config", "envs", "profiles", "rules", "scripts")


def copy_workflow(home: Path) -> Path:
    """Copy the workflow into a folder, to be changed there."""
    home.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = HOME / name
        shutil.copytree(source, home / name) if source.is_dir() else shutil.copy(source, home / name)
    return home


@dataclass
class Run:
    """A folder in which the workflow runs, or a copy of it elsewhere."""

    folder: Path
    home: Path = field(default=HOME, kw_only=True)

    def write(self, sheet: Sequence[dict[str, Any]], small: bool = True, **config: Any) -> None:
        """Write samples.tsv and config.yaml: `config`, over SMALL's keys unless `small` is false."""
        names = list(dict.fromkeys(name for line in sheet for name in line))
        lines = ["\t".join(names), *("\t".join(str(line.get(name, "")) for name in names) for line in sheet)]
        (self.folder / "config").mkdir(exist_ok=True)
        (self.folder / "config" / "samples.tsv").write_text("\n".join(lines) + "\n")
        (self.folder / "config" / "config.yaml").write_text(yaml.safe_dump((SMALL if small else {}) | config))

    def snakemake(self, *args: str, check: bool = True, cores: int = 2) -> subprocess.CompletedProcess[str]:
        """Run snakemake on the workflow in this folder."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(self.home / "Snakefile")]
        command += ["--directory", str(self.folder), "--cores", str(cores), *args]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=env, check=False)
        if check and done.returncode:
            pytest.fail(f"snakemake {' '.join(args)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return done

    def jobs(self, *args: str) -> list[str]:
        """The rules that a run would execute, by Snakemake's dry run: one entry per job, without `all`."""
        text = self.snakemake("--dry-run", *args).stdout
        rows = text.split("Job stats:")[1].split("total")[0].splitlines()[3:] if "Job stats:" in text else []
        counts = [row.split() for row in rows if row.strip()]
        return sorted(name for name, count in counts for _ in range(int(count)) if name != "all")

    def record(self, log: str) -> dict[str, Any]:
        """The run record of a stage, by its log's path."""
        return json.loads((self.folder / log).with_suffix(".run.json").read_text())


def patients(
    folder: Path, n_patients: int = 3, n_obs: int = 350, n_genes: int = 2000, seed: int = 0, n_treated: int = 0
) -> list[Path]:
    """Simulated patients, one file each; the last `n_treated` have planted effects."""
    from simulate import Design, simulate_patient, simulated_genes, write_h5ad

    design = Design(n_genes=n_genes, n_types=5, umi=2500, seed=seed)
    genes = simulated_genes(design)
    paths = []
    for patient in range(1, n_patients + 1):
        paths.append(folder / f"P{patient}.h5ad")
        treated = patient > n_patients - n_treated
        write_h5ad(paths[-1], simulate_patient(design, patient, n_obs, genes, treated), genes)
    return paths


def sheet_of(files: Sequence[Path]) -> list[dict[str, str]]:
    """One line of the sheet per file, with the file's name."""
    return [{"sample": file.stem, "path": str(file)} for file in files]
