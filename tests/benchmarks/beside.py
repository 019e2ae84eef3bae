"""What benchmarks share that run the workflow, and then a peer in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import run as cpu_benchmark

CALLED = "uv run --with decoupler==2.2.0 python"


def versions(names: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment(cores: int) -> dict[str, str]:
    """The environment of both sides, with a limit on threads."""
    return os.environ | {f"{name}_NUM_THREADS": str(cores) for name in cpu_benchmark.THREAD_LIMITS}


def of_jobs(
    folder: Path, config: Path, cores: int, targets: Sequence[str], again: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Run the workflow to the targets, then some rules again, one job at a time and without warm processes.

    Parameters
    ----------
    again
        Rule -> the files that are asked for.

    Returns
    -------
    Per rule `seconds` of all its jobs, in all and by kind (`import s` ...), and the largest memory `mb`, `GPU MB`.
    """
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        cpu_benchmark.HOME / "Snakefile",
        "--directory",
        folder,
    ]
    command += ["--configfile", config, "--cores", cores]
    alone = ["--default-resources", "jobs=1", "--resources", "jobs=1", "--config", "warm=False", "--forcerun", *again]
    started = 0.0
    for more in (["--", *targets], [*alone, "--", *(file for files in again.values() for file in files)]):
        started = time.time()
        done = subprocess.run(list(map(str, [*command, *more])), capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"the workflow failed:\n{done.stderr[-5000:]}")
    costs: dict[str, dict[str, float]] = {rule: {} for rule in again}
    for path in (folder / "logs").rglob("*.run.json"):
        record = json.loads(path.read_text())
        if record["rule"] not in again or record["started"] < started:
            continue
        cost = costs[record["rule"]]
        parts = {"seconds": record["seconds"]} | {f"{kind} s": of for kind, of in record["seconds_by"].items()}
        cost |= {name: cost.get(name, 0) + seconds for name, seconds in parts.items()}
        peaks = {"mb": record["peak_rss_mb"], "GPU MB": record["peak_gpu_mb"] or 0}
        cost |= {name: max(cost.get(name, 0), peak) for name, peak in peaks.items() if peak}
    return costs


def costs_table(costs: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> list[str]:
    """The lines of a table of `of_jobs`; `names`: rule -> what is computed."""
    lines = ["| ours | s | MB | parts |", "|---|---:|---:|---|"]
    for rule, name in names.items():
        cost = dict(costs[rule])
        seconds, mb = cost.pop("seconds"), cost.pop("mb")
        lines.append(f"| {name} | {seconds:.1f} | {mb:,.0f} | {', '.join(f'{k} {v:,.1f}' for k, v in cost.items())} |")
    return lines


def of_peer(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run the benchmark's peer, and read what it measured."""
    command = [sys.executable, sys.argv[0], "--device", args.device, "--peer", str(folder)]
    subprocess.run(command, env=environment(args.cores), check=True)
    return [json.loads(line) for line in (folder / "peer.jsonl").read_text().splitlines()]


def circumstances(args: argparse.Namespace, packages: Sequence[str]) -> dict[str, Any]:
    """What is needed to judge the seconds, and to measure them again."""
    return {
        "cells": args.cells,
        "command": cpu_benchmark.command_line(*args.called.split()),
        "date": time.strftime("%Y-%m-%d"),
        "device": args.device,
        "cores": args.cores,
        "cpu": cpu_benchmark.cpu(),
        "load": os.getloadavg()[0],
        "versions": versions(packages),
    }


def heading(title: str, told: dict[str, Any]) -> list[str]:
    """The first lines of the tables' page."""
    lines = [f"# {title}", "", f"`{told['command']}`", ""]
    lines += [f"{told['date']}, {told['device']}, {told['cores']} cores of {told['cpu']}, load {told['load']:.0f}."]
    return [*lines, ", ".join(f"{name} {v}" for name, v in told["versions"].items()) + ".", ""]


def save(name: str, text: str, measured: dict[str, Any]) -> None:
    """Write the page and its data, and print the page."""
    path = cpu_benchmark.RESULTS / f"{measured['date']}-{name}-{measured['device']}-{measured['cells']}"
    path.with_suffix(".md").write_text(text)
    path.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n")
    print(text)


def main(
    description: str, benchmark: Callable[[argparse.Namespace, Path], None], peer: Callable[[Path, str], None]
) -> None:
    """Run a benchmark, or, in the process that it starts, its peer."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--cores", type=int, default=2, help="of both")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--folder", type=Path, help="where to run, and what to keep (default: a temporary one)")
    parser.add_argument("--called", default=CALLED, help="how it was called, for the table")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        peer(args.peer, args.device)
    elif args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        benchmark(args, args.folder.resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            benchmark(args, Path(folder))
