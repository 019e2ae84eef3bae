"""Compare pseudobulks with scanpy's aggregate and decoupler's, and measure the tests of genes between conditions.

    uv run --with decoupler==2.2.0 python tests/benchmarks/differences.py --cells 20000
    uv run python tests/benchmarks/differences.py --cells 200000 --device gpu --cores 16

The cohort are 24 simulated patients, one file each, in 20 types; half of them are treated. The workflow sums the counts
of each patient and type, and tests the treatment in all types. The peer holds the kept cells and genes in memory and
sums them too; that its sums are ours is checked. Our seconds are those of the jobs, each alone, with their process
starts, reading and writing; the peer's are those of the calls alone, and of reading the files beside them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import beside
import numpy as np
import pandas as pd
import run as cpu_benchmark
import yaml
from scanpy_peer import measured

PATIENTS, TYPES, GENES, UMI = 24, 20, 30_000, 6000
NAME = "condition_treated_vs_control"
TARGETS = ["results/cohort/pseudobulk/CellType.h5ad", f"results/cohort/de/CellType/{NAME}.parquet"]
RULES = {"pseudobulk": "pseudobulks", "de": "tests, all types"}


def simulate(folder: Path, cells: int, processes: int) -> None:
    """One file for each patient, the second half treated."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    (folder / "cohort").mkdir(exist_ok=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(write_patient, [folder] * PATIENTS, range(1, PATIENTS + 1), [cells // PATIENTS] * PATIENTS))


def write_patient(folder: Path, patient: int, n_obs: int) -> None:
    """The file of one patient, if it is not there."""
    from simulate import Design, simulate_patient, simulated_genes, write_h5ad

    path, design = folder / "cohort" / f"P{patient}.h5ad", Design(GENES, TYPES, UMI)
    if not path.exists():
        genes = simulated_genes(design)
        write_h5ad(path, simulate_patient(design, patient, n_obs, genes, patient > PATIENTS // 2), genes)


def write_config(folder: Path, device: str) -> Path:
    """The default config with the contrast, and the sheet."""
    config = yaml.safe_load((cpu_benchmark.HOME / "config/config.yaml").read_text())
    config |= {"samples": str(folder / "samples.tsv"), "label_key": "CellType", "device": device}
    config |= {"de": [{"column": "condition", "level": "treated", "reference": "control"}]}
    config |= {"gene_sets": {}, "annotation": {}, "doublets": {"enabled": False}}
    lines = ["sample\tpath\tcondition"]
    for i in range(1, PATIENTS + 1):
        condition = "treated" if i > PATIENTS // 2 else "control"
        lines.append(f"P{i}\t{folder / 'cohort' / f'P{i}.h5ad'}\t{condition}")
    (folder / "samples.tsv").write_text("\n".join(lines) + "\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def in_memory(folder: Path) -> ad.AnnData:
    """The kept cells x kept genes, as the peers take them."""
    genes = pd.read_parquet(folder / "results/cohort/genes.parquet")
    kept, parts = genes.index[genes["kept"]], []
    for i in range(1, PATIENTS + 1):
        cells = pd.read_parquet(folder / f"results/samples/P{i}/cells.parquet", columns=["kept", "CellType"])
        data = ad.read_h5ad(folder / "cohort" / f"P{i}.h5ad")[cells["kept"].to_numpy(), kept].copy()
        data.obs = data.obs[["CellType"]].assign(sample=f"P{i}")
        parts.append(data)
    data = ad.concat(parts, index_unique="-")
    data.obs = data.obs.astype("category")
    return data


def peer(folder: Path, device: str) -> None:
    """Run the peers' calls in this process; a line of JSON for each, with whether the sums are ours."""
    ours, held = ad.read_h5ad(folder / TARGETS[0]), {}
    by = ["sample", "CellType"]

    def read() -> None:
        held["data"] = in_memory(folder)

    def scanpy() -> None:
        import scanpy as sc

        held["sums"] = sc.get.aggregate(held["data"], by, ["sum", "count_nonzero"]).layers["sum"]

    def rapids() -> None:
        import rapids_singlecell as rsc

        found = rsc.get.aggregate(held["data"], by, ["sum", "count_nonzero"])
        held["sums"] = found.layers["sum"].get()

    def copied() -> None:
        import rapids_singlecell as rsc

        rsc.get.anndata_to_GPU(held["data"])

    def decoupler() -> None:
        import decoupler as dc

        held["sums"] = dc.pp.pseudobulk(held["data"], sample_col="sample", groups_col="CellType", mode="sum").X

    calls: dict[str, Callable[[], None]] = {"reading": read}
    if device == "gpu" and find_spec("rapids_singlecell"):
        calls |= {"copying to the card": copied, "rapids-singlecell": rapids}
    else:
        calls |= {"scanpy": scanpy} | ({"decoupler": decoupler} if find_spec("decoupler") else {})
    with (folder / "peer.jsonl").open("w", buffering=1) as out:
        for name, call in calls.items():
            line = {"call": name} | measured(call)
            if "sums" in held:
                sums = held.pop("sums")
                sums = (sums.toarray() if hasattr(sums, "toarray") else np.asarray(sums)).astype(np.float64)
                sums = sums[sums.any(1)]  # decoupler keeps profiles without cells
                same = sums.shape == ours.shape and np.array_equal(np.sort(sums.sum(1)), np.sort(ours.X.sum(1)))
                line["same"] = bool(same and np.array_equal(sums.sum(0), ours.X.sum(0)))
            print(json.dumps(line), file=out)


def markdown(told: dict, ours: dict[str, dict[str, float]], theirs: list[dict]) -> str:
    """Two tables, with what is needed to judge them."""
    title = f"Pseudobulks and tests: {told['cells']} cells of {PATIENTS} patients x {GENES:,} genes, {TYPES} types"
    lines = beside.heading(title, told)
    lines += beside.costs_table(ours, RULES)
    lines += ["", f"{told['found']} genes differ in {told['groups']} types (adjusted p below 0.05).", ""]
    lines += ["| peer | s | MB | same sums |", "|---|---:|---:|---|"]
    for line in theirs:
        same = {True: "yes", False: "NO"}.get(line.get("same"), "–")
        lines.append(f"| {line['call']} | {line['seconds']:.1f} | {line['mb']:,.0f} | {same} |")
    return "\n".join(lines) + "\n"


def benchmark(args: argparse.Namespace, folder: Path) -> None:
    """Simulate, run both, write and print the tables."""
    simulate(folder, args.cells, args.cores)
    told = beside.circumstances(args, ["pydeseq2", "scanpy", "decoupler", "rapids-singlecell-cu13", "numpy", "scipy"])
    again = {rule: [target] for rule, target in zip(RULES, TARGETS, strict=True)}
    before = ["results/cohort/obs.parquet", "results/cohort/genes.parquet"]
    ours = beside.of_jobs(folder, write_config(folder, args.device), args.cores, before, again)
    theirs, table = beside.of_peer(args, folder), pd.read_parquet(folder / TARGETS[1])
    told |= {"found": int((table["pvals_adj"] < 0.05).sum()), "groups": int(table["group"].nunique())}
    beside.save("differences", markdown(told, ours, theirs), told | {"ours": ours, "peer": theirs})


if __name__ == "__main__":
    beside.main(__doc__, benchmark, peer)
