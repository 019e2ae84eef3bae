"""Complete runs of cohorts on the CPU, and every stage repeated on the GPU with the same input."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

HOME = Path(__file__).parents[1]
MARKERS = ("tsv.gz", "top.tsv", "shown.tsv", "panel.tsv", "parquet")  # a method's, see rules/common.smk
PLACES = {"{COHORT}": "cohort", "{SAMPLE}": "samples/*", "{{grouping}}": "leiden_0.6"}


def stages_on_gpu() -> dict[str, list[str]]:
    """The stages whose rules ask for a GPU -> their artifacts in results/, of which the first is asked for."""
    found = {}
    for path in sorted((HOME / "rules").glob("*.smk")):
        for name, text in re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), flags=re.M | re.S):
            output = re.search(r"^    output:\n(.*?)(?=^    \w)", text, flags=re.M | re.S)
            if not re.search(r"^        gpu=GPU", text, flags=re.M) or not output:
                continue
            made = output[1].replace("FEATURE_FILES[0]", '"{COHORT}/features.h5ad"')
            tables = (f'"{{COHORT}}/markers/{{{{grouping}}}}/\\1.{end}"' for end in MARKERS)
            made = re.sub(r'\*\*marker_tables\("(.+)"\)', " ".join(tables), made)
            paths = re.findall(r'"(?:results/)?([^"]+\.(?:h5|h5ad|parquet|tsv|tsv\.gz))"', made)
            for part, place in PLACES.items():
                paths = [text.replace(part, place) for text in paths]
            found[name] = [re.sub(r"\{+\w+\}+", "*", text) for text in paths]
    return {name: paths for name, paths in found.items() if name != "shard"}  # a pass of another stage


STAGES = stages_on_gpu()


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
    targets = targets or [f"results/{STAGES[stage][0]}"]  # a temporary file
    done = snakemake(copy, 4, *targets, "--force", "--rerun-triggers", "mtime", "--notemp")
    if done.returncode:
        (copy / "failed").write_text(f"{stage} on the GPU:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")


def snakemake(folder: Path, cores: int, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow in a folder, without its report."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HOME / "Snakefile"), "--directory", str(folder)]
    command += ["--cores", str(cores), "--no-hooks", "--show-failed-logs", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
