"""Measure the overhead of a run on the test cluster, outside of its stages.

    uv run python tests/slurm/measure.py --samples 3 --cells 350

Needs root and SLURM's packages. Prints the SLURM jobs, each with its stages and the seconds in which one of them ran,
and the share of the run's wall time without a running stage: submitting, queueing, polling, starting Snakemake.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]
sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from cluster import Cluster, missing  # noqa: E402
from runs import patients, sheet_of  # noqa: E402
from submitted import Submitted  # noqa: E402


def seconds_of(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, last = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, last))
        last = max(last, end)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--cells", type=int, default=350)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("snakemake", nargs="*", help="further arguments, after --")
    args = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder) / "cluster")
        run = Submitted(Path(folder) / "run", cluster)
        run.folder.mkdir()
        run.write(sheet_of(patients(Path(folder), args.samples, args.cells, args.genes)), device="cpu")
        try:
            cluster.start()
            began = time.time()
            status = run.submit(*args.snakemake).wait()
            wall = time.time() - began
            jobs = run.submissions()
        finally:
            cluster.stop()
        records = [json.loads(path.read_text()) for path in run.folder.glob("logs/**/*.run.json")]
        if status:
            sys.exit(run.log())
    spans = [(record["started"], record["ended"]) for record in records]
    for job in jobs:
        print(*(f"{job[name]:>10}" for name in ("state", "seconds", "memory", "limit")), job["what"])
    ran, computed = seconds_of(spans), sum(record["seconds_by"]["compute"] for record in records)
    print(f"{len(jobs)} SLURM jobs for {len(records)} stages")
    print(f"wall time {wall:.0f} s; no stage ran in {1 - ran / wall:.0%} of it")
    print(f"stages: {sum(r['seconds'] for r in records):.0f} s in all, of these computing {computed:.0f} s")


if __name__ == "__main__":
    main()
