"""Compare our Harmony with harmonypy on a CPU: wall and CPU seconds, alternately in one process.

    uv run python tests/benchmarks/harmony.py --cells 20000 100000 --runs 5

The components are simulated: 20 types in 8 batches, each of which shifts its cells; types and shifts differ less from
component to component. Both sides get the workflow's defaults and 100 clusters, and each the same seed in all runs.
Each number is the minimum of several runs, as other load only adds to it. If other processes use the cores, CPU seconds
are more informative than wall seconds.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import harmonypy
import numpy as np
import pandas as pd
from run import HOME, RESULTS, command_line, cpu

sys.path.append(str(HOME / "scripts"))

from lib.inputs import config as settings
from lib.methods.harmony import harmonize
from lib.run import device as devices

CONFIG = settings.complete({})["harmony"]
THETA, SIGMA, LAMB, MAX_ITER = (CONFIG[key] for key in ("theta", "sigma", "lamb", "max_iter_harmony"))
NCLUST, SEED = 100, 0
PACKAGES = ["numpy", "harmonypy"]


def simulate(cells: int, components: int, batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Components (float32) and the batch of each cell."""
    rng = np.random.default_rng(0)
    extent = 10 / np.sqrt(np.arange(1, components + 1))
    types, batch = rng.choice(20, cells, p=rng.dirichlet(np.full(20, 2.0))), rng.integers(0, batches, cells)
    centres, shifts = (size * rng.normal(size=(n, components)) * extent for n, size in ((20, 1), (batches, 0.5)))
    return (centres[types] + shifts[batch] + rng.normal(size=(cells, components))).astype(np.float32), batch


def ours(X: np.ndarray, batch: np.ndarray, threads: int) -> np.ndarray:
    return harmonize(X, batch[:, None], THETA, SIGMA, LAMB, NCLUST, MAX_ITER, SEED, devices.cpu(), threads).X


def theirs(X: np.ndarray, batch: np.ndarray, threads: int) -> np.ndarray:
    parameters = {"theta": THETA, "sigma": SIGMA, "lamb": LAMB, "max_iter_harmony": MAX_ITER, "nclust": NCLUST}
    obs = pd.DataFrame({"batch": batch})
    return harmonypy.run_harmony(X, obs, "batch", **parameters, random_state=SEED, ncores=threads).Z_corr


class Iterations(logging.Handler):
    """Counts the iterations that either side logs."""

    n = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.n += record.getMessage().lower().startswith("iteration ")


def measure(X: np.ndarray, batch: np.ndarray, threads: int, runs: int, iterations: Iterations) -> dict[str, object]:
    """One row of the table."""
    sides: dict[str, Callable] = {"ours": ours, "harmonypy": theirs}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    found, rounds = {}, {}
    for _ in range(runs):
        for name, side in sides.items():
            iterations.n, wall, used = 0, time.perf_counter(), time.process_time()
            found[name] = side(X, batch, threads)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - used))
            rounds[f"{name}: iterations"] = iterations.n
    agree = min(np.corrcoef(a, b)[0, 1] for a, b in zip(found["ours"].T, found["harmonypy"].T, strict=True))
    row = {"cells": f"{len(X):,}", "components": X.shape[1], "batches": int(batch.max()) + 1, "threads": threads}
    for column, what in enumerate(("wall", "CPU")):
        mine, others = (min(run[column] for run in seconds[name]) for name in sides)
        row |= {f"ours: {what} s": f"{mine:.2f}", f"harmonypy: {what} s": f"{others:.2f}"}
        row |= {f"ratio, {what}": f"{others / mine:.1f}"}
    return row | rounds | {"least r": f"{agree:.5f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--components", type=int, nargs="+", default=[100, 50])
    parser.add_argument("--batches", type=int, nargs="+", default=[8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    iterations = Iterations()
    for name in ("somersault", "harmonypy"):
        logging.getLogger(name).handlers[:] = [iterations]
        logging.getLogger(name).setLevel(logging.INFO)
    rows = []
    for cells in args.cells:
        for components in args.components:
            for batches in args.batches:
                X, batch = simulate(cells, components, batches)
                rows += [measure(X, batch, threads, args.runs, iterations) for threads in args.threads]
                print(*rows[-len(args.threads) :], sep="\n", flush=True)
    lines = [list(rows[0]), ["---:"] * len(rows[0]), *(list(map(str, row.values())) for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    command = command_line("uv", "run", "python")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    text = f"""# Harmony on a CPU, ours and harmonypy's

`{command}`

{time.strftime("%Y-%m-%d")}, {os.cpu_count()} cores of {cpu()}, load {os.getloadavg()[1]:.0f}. {versions}.

{table}

Seconds are the least of {args.runs} runs in turn; ratios are harmonypy's by ours. `least r` is the correlation of the
component in which the two agree least.
"""
    path = Path(RESULTS) / f"{time.strftime('%Y-%m-%d')}-harmony.md"
    path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
