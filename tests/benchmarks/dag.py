"""Measure Snakemake's own time for a cohort of many samples: reading the workflow, and a dry run of all jobs.

    uv run python tests/benchmarks/dag.py --samples 200

Every sample is a small simulated file. The first dry run opens all files for their sizes, the second reads the sizes
from the cache file that the first wrote.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

HOME = Path(__file__).resolve().parents[2]
sys.path.append(str(HOME / "scripts"))


def write_cohort(folder: Path, samples: int, cells: int = 60, genes: int = 500) -> None:
    """A file of `cells` x `genes` for each sample, the sheet that names them, and a config."""
    from simulate import Design, simulate_patient, simulated_genes, write_h5ad

    design = Design(n_genes=genes, n_types=3, umi=500)
    var = simulated_genes(design)
    (folder / "config").mkdir(parents=True, exist_ok=True)
    lines = ["sample\tpath"]
    for patient in range(1, samples + 1):
        path = folder / f"S{patient}.h5ad"
        write_h5ad(path, simulate_patient(design, patient, cells, var), var)
        lines.append(f"S{patient}\t{path}")
    (folder / "config/samples.tsv").write_text("\n".join(lines) + "\n")
    (folder / "config/config.yaml").write_text(yaml.safe_dump({"device": "cpu"}))


def seconds(folder: Path, *args: str) -> tuple[float, str]:
    """Wall seconds of a snakemake command in `folder`, and its output."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", HOME / "Snakefile", "--directory", folder, *args]
    started = time.time()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.time() - started, done.stdout


def measure(folder: Path, samples: int) -> dict[str, float]:
    """The number of jobs, and the seconds to read the workflow and for the first and the second dry run."""
    write_cohort(folder, samples)
    read, _ = seconds(folder, "--list-rules")
    first, text = seconds(folder, "--dry-run")
    second, _ = seconds(folder, "--dry-run")
    jobs = int(re.search(r"^total\s+(\d+)$", text, re.M)[1])
    return {"samples": samples, "jobs": jobs, "read": read, "first dry run": first, "dry run": second}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="*", default=[200])
    for samples in parser.parse_args().samples:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), samples)
        print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
