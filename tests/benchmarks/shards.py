"""Measure the passes over the cohort with 1, 2 and 4 shards: seconds of each pass and stage, and the speed-up.

    uv run python tests/benchmarks/shards.py --cells 40000                         # one core for each shard's job
    python tests/benchmarks/shards.py --cells 200000 --device gpu --shards 1 2     # one card for each

A simulated cohort of the article's shape (one h5ad, 8 patients, 30,000 genes) is processed up to `genes` once. From
there each number of shards runs HVG, features, PCA and the t-test of the cell types, in its own folder; on CPUs it may
use as many cores as shards, at most all cores. The seconds of a pass are those of its slowest shard by the stages'
logs, times the number of rounds if there are more shards than cores. The seconds of a stage are from the start of its
first job to the end of its last one, with process starts and Snakemake's own time between the passes. With `--runs`
each number of a row is the minimum of several runs, as other load only adds to it. The results are compared with those
of the first number of shards.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import yaml
from beside import versions
from run import HOME, RESULTS, THREAD_LIMITS, command_line, cpu, simulate, write_config

STAGES = {
    "hvg": ["hvg"],
    "features": ["features_shard", "features"],
    "pca": ["pca"],
    "markers_ttest": ["markers_ttest"],
}
PASSES = ["sums", "clipped sums", "features", "regression sums", "Gram matrix", "eigenvectors", "projection"]
PASSES += ["group sums"]
# One target per stage, run one after another, so that no stages run in parallel
TARGETS = ["results/cohort/hvg.parquet", "results/cohort/obs.parquet", "results/cohort/pca.h5"]
TARGETS += ["results/cohort/markers/CellType/t-test.tsv.gz"]
PACKAGES = ["numpy", "scipy", "h5py", "snakemake", "cupy-cuda12x", "cupy-cuda13x"]
ALL_CORES = os.sched_getaffinity(0)


def snakemake(folder: Path, args: argparse.Namespace, cores: int, *more: str) -> float:
    """Run the workflow in a folder, on CPUs with this many cores; return wall seconds."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", HOME / "Snakefile", "--directory", folder, "--quiet"]
    command += ["--configfile", folder / "config.yaml", "--rerun-triggers", "mtime", "--cores", cores, *more]
    env = dict(os.environ)
    if args.device == "cpu":
        env |= {f"{name}_NUM_THREADS": "1" for name in THREAD_LIMITS}
        os.sched_setaffinity(0, sorted(ALL_CORES)[:cores])
    started = time.time()
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the workflow failed:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return time.time() - started


def prepare(folder: Path, args: argparse.Namespace) -> Path:
    """The folder with the cohort and its samples' stages, made once, from which all numbers of shards start."""
    base = folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    if not (folder / "cohort.h5ad").exists():
        simulate(folder / "cohort.h5ad", args.cells)
    path = write_config(base, folder / "cohort.h5ad")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"device": args.device}))
    if not (base / "results/cohort/genes.parquet").exists():
        snakemake(base, args, args.cores, "--", "results/cohort/genes.parquet")
    return base


def measure(base: Path, shards: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the stages, of the passes and in total with this number of shards, and the cards used."""
    folder = base.with_name(f"shards-{shards}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, copy_function=os.link, ignore=shutil.ignore_patterns(".snakemake", "config.yaml"))
    config = yaml.safe_load((base / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"shards": shards}))
    threads = [f"{rule}=1" for rules in (*STAGES.values(), ["shard"]) for rule in rules]
    more = ["--set-threads", *threads] if args.device == "cpu" else []
    cores = min(shards, args.cores) if args.device == "cpu" else args.cores
    load, wall = os.getloadavg()[0], sum(snakemake(folder, args, cores, *more, "--", target) for target in TARGETS)
    records = [json.loads(path.read_text()) for path in (folder / "logs/cohort").rglob("*.run.json")]
    stages, jobs = {}, []
    for stage, rules in STAGES.items():
        passes = (stage, "shard")
        mine = [
            r
            for r in records
            if r["rule"] in rules or (r["wildcards"].get("passed", "").split("/")[0], r["rule"]) == passes
        ]
        stages[stage] = max(job["ended"] for job in mine) - min(job["started"] for job in mine)
        jobs += mine
    logs = "\n".join(path.read_text() for path in (folder / "logs/cohort").rglob("*.log"))

    def rounds(name: str) -> int:
        return 1 if args.device == "gpu" or name == "eigenvectors" else -(-shards // cores)

    found = re.findall(r"INFO ([\w ]+): (?:\d+ cells in )?([\d.]+) s$", logs, flags=re.M)
    return {
        "wall": wall,
        "load": load,
        "stages": stages,
        "passes": {name: max(float(s) for n, s in found if n == name) * rounds(name) for name in PASSES},
        "jobs": len(jobs),
        "peak_rss_mb": max(job["peak_rss_mb"] for job in jobs),
        "peak_gpu_mb": max((job["peak_gpu_mb"] or 0) for job in jobs),
        "cards": len(set(re.findall(r"INFO GPU (\S+): \d+ of its", logs))),
    }


def fastest(tries: list[dict[str, Any]]) -> dict[str, Any]:
    """The minimum of each time, and the maximum of each other number."""
    least = {name: {n: min(tried[name][n] for tried in tries) for n in tries[0][name]} for name in ("stages", "passes")}
    most = {name: max(tried[name] for tried in tries) for name in tries[0] if name not in least}
    return most | least | {"wall": min(tried["wall"] for tried in tries)}


def difference(folder: Path, reference: Path) -> dict[str, float]:
    """The differences from the results of another number of shards."""
    hvg, hvg_0 = (pd.read_parquet(f / TARGETS[0]) for f in (folder, reference))
    with h5py.File(folder / TARGETS[2]) as pca, h5py.File(reference / TARGETS[2]) as pca_0:
        ratios, ratios_0 = pca["variance_ratio"][...], pca_0["variance_ratio"][...]
        X, X_0 = pca["X_pca"][:, :40], pca_0["X_pca"][:, :40]
    tests, tests_0 = (pd.read_csv(f / TARGETS[3], sep="\t") for f in (folder, reference))
    return {
        "genes chosen otherwise": int((hvg["highly_variable"] != hvg_0["highly_variable"]).sum()),
        "variance_ratio, relative": float(np.abs(ratios / ratios_0 - 1).max()),
        "X_pca, of its largest": float(np.abs(X - X_0).max() / np.abs(X_0).max()),
        "marker genes ranked otherwise": int((tests["names"] != tests_0["names"]).sum()),
    }


def markdown(measured: dict[str, Any]) -> str:
    """The tables, with the facts needed to judge them."""
    runs = measured["runs"]
    numbers = list(runs)
    lines = [f"# {measured['cells']} cells by shards, {measured['device']}", "", f"`{measured['command']}`", ""]
    lines += [f"{measured['date']}, {measured['machine']}."]
    lines += [", ".join(f"{name} {v}" for name, v in measured["versions"].items()) + ".", ""]
    head = [f"{n} shard{'s' * (int(n) > 1)}" for n in numbers] + [f"speed-up, {n}" for n in numbers[1:]]
    lines += ["| seconds | " + " | ".join(head) + " |", "|---" + "|---:" * len(head) + "|"]

    def row(name: str, seconds: list[float]) -> str:
        ratios = [f"{seconds[0] / s:.2f}" if s else "–" for s in seconds[1:]]
        return "| " + " | ".join([name, *(f"{s:.1f}" for s in seconds), *ratios]) + " |"

    lines += [row(name, [runs[n]["passes"][name] for n in numbers]) for name in PASSES]
    lines.append(row("**all passes**", [sum(runs[n]["passes"].values()) for n in numbers]))
    lines += [row(f"stage {name}", [runs[n]["stages"][name] for n in numbers]) for name in STAGES]
    lines.append(row("**all stages**", [sum(runs[n]["stages"].values()) for n in numbers]))
    lines.append(row("Snakemake from start to end, four times", [runs[n]["wall"] for n in numbers]))
    lines.append("")
    for n, run in runs.items():
        cards = f", on {run['cards']} cards, {run['peak_gpu_mb']:.0f} MB of one at most" if run["cards"] else ""
        lines.append(f"- {n}: {run['jobs']} jobs of at most {run['peak_rss_mb']:.0f} MB{cards}; load {run['load']:.1f}")
    lines += [
        f"- {n} against {numbers[0]}: " + ", ".join(f"{name} {value:.3g}" for name, value in run["difference"].items())
        for n, run in runs.items()
        if "difference" in run
    ]
    return "\n".join(lines) + "\n"


def machine(device: str) -> str:
    """Cores, processor and cards."""
    name = f"{os.cpu_count()} cores of {cpu()}"
    if device == "gpu":
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
        name += "; " + ", ".join(re.findall(r": (.*?) \(", done.stdout))
    return name


def benchmark(folder: Path, args: argparse.Namespace) -> None:
    """Measure every number of shards, write and print the tables."""
    base = prepare(folder, args)
    if args.device == "gpu" and not args.warm:  # kernels are compiled once per machine
        for shards in args.shards[:2]:
            measure(base, shards, args)
    runs = {}
    for shards in args.shards:
        tries = [measure(base, shards, args) for _ in range(args.runs)]
        runs[str(shards)] = fastest(tries)
        if shards != args.shards[0]:
            first = base.with_name(f"shards-{args.shards[0]}")
            runs[str(shards)]["difference"] = difference(base.with_name(f"shards-{shards}"), first)
    measured = {
        "cells": args.cells,
        "device": args.device,
        "command": command_line("uv", "run", "python"),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(args.device),
        "versions": versions(PACKAGES),
        "runs": runs,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"{measured['date']}-shards-{args.device}-{args.cells}"
    (args.out / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n")
    (args.out / f"{name}.md").write_text(markdown(measured))
    print(markdown(measured))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=40_000, help="of the cohort (default: 40000)")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4], help="their numbers (default: 1 2 4)")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="for all jobs together (default: all)")
    parser.add_argument(
        "--warm", action="store_true", help="kernels are compiled already: no run before those that count"
    )
    parser.add_argument("--runs", type=int, default=1, help="of each number of shards (default: 1)")
    parser.add_argument("--folder", type=Path, help="where to run, and what to keep (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the tables go (default: results/)")
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.folder:
        benchmark(args.folder.resolve(), args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            benchmark(Path(folder), args)


if __name__ == "__main__":
    main()
