"""Compare the workflow with scanpy in memory: seconds, memory and the clusters' truth, on a simulated cohort.

    uv run python tests/benchmarks/run.py --cells 20000 --cells 100000 --skip tsne

Both run the article's steps with the parameters of config/config.yaml on one h5ad (8 patients, 30,000 genes, 20 cell
types, about 2,400 genes per cell): the workflow by Snakemake, one job at a time; scanpy in one process. The table goes
to results/, as markdown and as JSON. A rule's seconds include its process start; figures have no counterpart and are
not in the totals. scanpy's t-SNE is scikit-learn's with its 1,000 iterations; its Louvain has no resolution.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from sklearn.metrics import adjusted_rand_score

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

from lib.start import FORKED

from lib.run.models import WARM_MB

HOME = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
PATIENTS = 8
RULES = ["ingest", "qc", "doublets", "cells", "genes", "normalize", "hvg", "features", "pca"]
UP_TO_PCA = len(RULES)
RULES += ["harmony", "neighbors", "umap", "tsne", "density", "leiden", "louvain", "kmeans"]
RULES += ["markers_logreg", "markers_ttest", "atlas", "figures"]
SAME = {"matrices": "atlas"}  # rules that together do what is one stage of the peer
PACKAGES = ["scanpy", "anndata", "numpy", "scipy", "scikit-learn", "harmonypy", "igraph", "umap-learn", "snakemake"]
THREAD_LIMITS = ["OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "VECLIB_MAXIMUM"]

Cost = dict[str, float]  # seconds, mb


def simulate(h5ad: Path, cells: int) -> None:
    """A cohort of the article's shape: one file, obs PatientNumber and CellType."""
    script = HOME / "scripts/simulate.py"
    subprocess.run([sys.executable, script, h5ad, f"--patients={PATIENTS}", f"--cells={cells // PATIENTS}"], check=True)


def write_config(folder: Path, h5ad: Path) -> Path:
    """The default config with the article's keys and a sheet of one line."""
    config = yaml.safe_load((HOME / "config/config.yaml").read_text())
    config |= {"samples": str(folder / "samples.tsv"), "batch_key": "PatientNumber", "label_key": "CellType"}
    config["device"] = "cpu"
    (folder / "samples.tsv").write_text(f"sample\tpath\ncohort\t{h5ad}\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def run_workflow(folder: Path, config: Path, cores: int, env: dict[str, str]) -> tuple[dict[str, Cost], Cost]:
    """Run the workflow, one job at a time.

    Returns
    -------
    Per rule the sum of its jobs' seconds and the largest memory; and the result: cells, genes, ARI, wall seconds.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", HOME / "Snakefile", "--directory", folder]
    command += ["--configfile", config, "--cores", cores, "--default-resources", "jobs=1", "--resources", "jobs=1"]
    for name in ("results", "logs", ".snakemake"):  # of earlier runs
        shutil.rmtree(folder / name, ignore_errors=True)
    started, load = time.time(), os.getloadavg()[0]
    with (folder / "snakemake.log").open("w") as log:
        done = subprocess.run([str(c) for c in command], env=env, stdout=log, stderr=subprocess.STDOUT, check=False)
    wall = time.time() - started
    if done.returncode:
        sys.exit(f"the workflow failed:\n{(folder / 'snakemake.log').read_text()[-5000:]}")
    return rule_costs(folder), {"seconds": wall, "load": load, **workflow_result(folder)}


def rule_costs(folder: Path) -> dict[str, Cost]:
    """Per rule the sum of its jobs' seconds and the largest memory, the warm process' included; from run records."""
    costs: dict[str, Cost] = defaultdict(lambda: {"seconds": 0.0, "mb": 0.0})
    for path in sorted((folder / "logs").rglob("*.run.json")):
        record = json.loads(path.read_text())
        cost = costs["figures" if record["rule"].startswith("figures") else SAME.get(record["rule"], record["rule"])]
        cost["seconds"] += record["seconds"]
        shared = WARM_MB if record["process"] == FORKED else 0
        cost["mb"] = max(cost["mb"], record["peak_rss_mb"] + shared)
    return dict(costs)


def workflow_result(folder: Path) -> dict[str, Any]:
    """Cells, genes and clusters of the result, and the agreement of the clusters with the true types."""
    cohort = folder / "results/cohort"
    truth = pd.read_parquet(cohort / "obs.parquet", columns=["CellType"])["CellType"]
    found = pd.read_parquet(next((cohort / "leiden").glob("*.parquet"))).iloc[:, 0]
    return {
        "n_obs": len(truth),
        "n_vars": int(pd.read_parquet(cohort / "genes.parquet", columns=["kept"])["kept"].sum()),
        "ari": adjusted_rand_score(truth.astype(str), found.astype(str)),
        "clusters": int(found.nunique()),
        "notes": [],
    }


def run_scanpy(
    folder: Path, h5ad: Path, config: Path, cores: int, env: dict[str, str], skip: list[str], timeout: float
) -> tuple[dict[str, Cost], dict[str, Any]]:
    """Run scanpy's counterpart; end it if a stage takes more than `timeout` seconds, which its result then notes."""
    out = folder / "scanpy.jsonl"
    peer = Path(__file__).with_name("scanpy_peer.py")
    command = [peer, h5ad, config, out, folder / "scanpy.h5ad", "--cores", cores, "--skip", *skip]
    out.unlink(missing_ok=True)
    started, load = time.time(), os.getloadavg()[0]
    with (folder / "scanpy.log").open("w") as log:
        process = subprocess.Popen([sys.executable, *map(str, command)], env=env, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.5)
            since = out.stat().st_mtime if out.exists() else started
            if time.time() - since > timeout:
                process.kill()
                process.wait()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    result = {"seconds": time.time() - started, "load": load, "stages": [line for line in lines if "seconds" in line]}
    result |= next((line["result"] for line in lines if "result" in line), {"notes": []})
    if process.returncode:
        killed = process.returncode == -signal.SIGKILL
        why = f"more than {timeout:.0f} s" if killed else (folder / "scanpy.log").read_text().splitlines()[-1]
        result["notes"].append(f"scanpy's {lines[-1].get('stage')} did not end: {why}")
    costs: dict[str, Cost] = defaultdict(lambda: {"seconds": 0.0, "mb": 0.0})
    for line in result["stages"]:
        costs[line["rule"]]["seconds"] += line["seconds"]
        costs[line["rule"]]["mb"] = max(costs[line["rule"]]["mb"], line["mb"])
    return dict(costs), result


def table(ours: dict[str, Cost], theirs: dict[str, Cost]) -> pd.DataFrame:
    """One row per rule and two of totals, over scanpy's stages, if it ran; the total of memory is the maximum."""
    rows = {rule: (ours.get(rule), theirs.get(rule)) for rule in RULES}
    for name, rules in {"up to PCA": RULES[:UP_TO_PCA], "in all": RULES}.items():
        # Our stages normalise when they read, so only scanpy has normalize
        both = [rule for rule in rules if rule in (theirs or ours) and rule != "figures"]
        rows[f"**{name}**"] = tuple(_together([side[r] for r in both if r in side]) for side in (ours, theirs))
    lines = []
    for name, (our, their) in rows.items():
        cells = [cost and cost[key] for key in ("seconds", "mb") for cost in (our, their)]
        lines.append([name, *cells[:2], _ratio(*cells[:2]), *cells[2:], _ratio(*cells[2:])])
    columns = ["stage", "ours s", "scanpy s", "scanpy / ours", "ours MB", "scanpy MB", "scanpy / ours MB"]
    return pd.DataFrame(lines, columns=columns)


def _together(costs: list[Cost]) -> Cost | None:
    return {"seconds": sum(c["seconds"] for c in costs), "mb": max(c["mb"] for c in costs)} if costs else None


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return theirs / ours if ours and theirs else None


def markdown(measured: dict[str, Any], rows: pd.DataFrame) -> str:
    """The table, with the facts needed to judge it."""
    lines = [f"# {measured['cells']} cells x 30,000 genes", "", f"`{measured['command']}`", ""]
    lines += [f"{measured['date']}, {measured['cores']} cores of {measured['cpu']}."]
    lines += [", ".join(f"{name} {v}" for name, v in measured["versions"].items()) + ".", ""]
    lines += ["| " + " | ".join(rows.columns) + " |", "|---" + "|---:" * (len(rows.columns) - 1) + "|"]
    for row in rows.itertuples(index=False):
        digits = [1, 1, 1, 0, 0, 1]
        cells = ["–" if pd.isna(v) else f"{v:,.{d}f}" for v, d in zip(row[1:], digits, strict=True)]
        lines.append("| " + " | ".join([row[0], *cells]) + " |")
    lines.append("")
    for name in ("ours", "scanpy"):
        if "ari" in (result := measured[name]):
            lines.append(
                f"- {name}: {result['n_obs']} cells x {result['n_vars']} genes kept; Leiden finds {result['clusters']} "
                f"clusters, adjusted Rand index against the true types {result['ari']:.3f}; {result['seconds']:.0f} s "
                f"from start to end, all included; load of the machine before it {result['load']:.1f}"
            )
        lines += [f"- {note}" for note in measured[name].get("notes", [])]
    return "\n".join(lines) + "\n"


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def command_line(*python: str) -> str:
    """How this benchmark was called, without the folders of the machine."""
    folders = {"--folder", "--out"}
    words = [word for word in sys.argv[1:] if word.partition("=")[0] not in folders or "=" not in word]
    kept = [word for before, word in pairwise(["", *words]) if not {before, word} & folders]
    return shlex.join([*python, f"tests/benchmarks/{Path(sys.argv[0]).name}", *kept])


def benchmark(cells: int, args: argparse.Namespace, folder: Path) -> None:
    """Simulate, run both, write and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    h5ad = folder / "cohort.h5ad"
    if not h5ad.exists():
        simulate(h5ad, cells)
    config = write_config(folder, h5ad)
    env = os.environ | {f"{name}_NUM_THREADS": str(args.cores) for name in THREAD_LIMITS}
    measured: dict[str, Any] = {
        "cells": cells,
        "command": command_line("uv", "run", "python"),
        "date": time.strftime("%Y-%m-%d"),
        "cores": args.cores,
        "cpu": cpu(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "ours": {},
        "scanpy": {},
    }
    ours: dict[str, Cost] = {}
    theirs: dict[str, Cost] = {}
    if args.only != "scanpy":
        ours, measured["ours"] = run_workflow(folder, config, args.cores, env)
    if args.only != "ours":
        theirs, measured["scanpy"] = run_scanpy(folder, h5ad, config, args.cores, env, args.skip, args.timeout)
    rows = table(ours, theirs)
    measured["table"] = json.loads(rows.to_json(orient="records"))
    RESULTS.mkdir(exist_ok=True)
    name = f"{measured['date']}-{cells}" + (f"-{args.only}" if args.only else "")
    (RESULTS / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(markdown(measured, rows))
    print(markdown(measured, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, action="append", help="of the cohort; may repeat (default: 20000)")
    parser.add_argument("--cores", type=int, default=2, help="of both")
    parser.add_argument("--only", choices=["ours", "scanpy"])
    parser.add_argument("--skip", nargs="*", default=[], help="rules that scanpy shall not run: tsne ...")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that one stage of scanpy may take")
    parser.add_argument("--folder", type=Path, help="where to run, and what to keep (default: a temporary one)")
    args = parser.parse_args()
    for cells in args.cells or [20_000]:
        if args.folder:
            benchmark(cells, args, args.folder.resolve() / str(cells))
        else:
            with tempfile.TemporaryDirectory() as folder:
                benchmark(cells, args, Path(folder))


if __name__ == "__main__":
    main()
