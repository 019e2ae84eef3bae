"""Collect the memory peaks and seconds of a finished run's jobs, for the test of the resource models.

    uv run python tests/benchmarks/peaks.py FOLDER --config FOLDER/config/config.yaml

writes results/peaks-{device}-{cells}.json: the samples' sizes, the config's keys, and each job's threads, seconds and
peak memory: the kernel's maximum for the job's process. Run it with `--config warm=False`, one job at a time, on two
quiet cores. Of forks of a warm process only the GPU's memory is written, to results/peaks-{device}-{cells}-forks.json,
as the models count the libraries, which a fork shares. The samples' files must still exist; `run.py --folder` keeps
them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

HOME = Path(__file__).resolve().parents[2]
sys.path.append(str(HOME / "scripts"))

from lib.start import FORKED  # noqa: E402

from lib.inputs import config as settings  # noqa: E402
from lib.inputs import sheet as sheets  # noqa: E402
from lib.inputs.genesets import read_file  # noqa: E402
from lib.inputs.sizes import questions, sizes_of  # noqa: E402

RESULTS = Path(__file__).parent / "results"
RECORDED = ("rule", "wildcards", "threads", "peak_gpu_mb", "peak_rss_mb", "seconds")
OF_PROCESSES = ("peak_rss_mb", "seconds")
OF_THE_MACHINE = ("samples", "device", "gpu", "limits", "warm")  # keys without effect on the peaks


def jobs(folder: Path) -> list[dict[str, Any]]:
    """Rule, wildcards, threads and peaks in MB of every job with a run record."""
    found = []
    for path in sorted((folder / "logs").rglob("*.run.json")):
        record = json.loads(path.read_text())
        left_out = OF_PROCESSES if record["process"] == FORKED else ()
        found.append({name: record[name] for name in RECORDED if name not in left_out})
    return found


def without_files(config: dict[str, Any]) -> dict[str, Any]:
    """A config that names no file, as these are not kept: of their gene sets the models count the number only."""
    sets = {}
    for name, spec in config["gene_sets"].items():
        lists = read_file(spec, f"gene_sets: {name}") if isinstance(spec, str) else {name: spec}
        sets |= {one: list(genes)[:1] for one, genes in lists.items()}
    reference = config["annotation"]["reference"]
    annotation = config["annotation"] | {"reference": reference and Path(reference).name}
    return config | {"gene_sets": sets, "annotation": annotation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    args = parser.parse_args()
    os.chdir(args.folder)
    whole = settings.complete(yaml.safe_load(args.config.read_text()))
    plain = without_files(whole)
    sheet = sheets.read_sheet(whole["samples"], whole)
    samples = {name: asdict(sizes_of(question)) for name, question in questions(sheet, whole).items()}
    found = jobs(args.folder)
    device = "cpu" if all(job["peak_gpu_mb"] is None for job in found) else "gpu"
    cells = sum(sizes["n_obs"] for sizes in samples.values())
    defaults = settings.complete({})
    keys = {key: value for key, value in plain.items() if value != defaults[key] and key not in OF_THE_MACHINE}
    text = json.dumps({"device": device, "config": keys, "samples": samples, "jobs": found}, indent=1)
    forks = "" if all("peak_rss_mb" in job for job in found) else "-forks"
    (RESULTS / f"peaks-{device}-{cells}{forks}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
