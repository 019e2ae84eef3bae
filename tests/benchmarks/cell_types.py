"""Compare scores of gene sets and Wilcoxon's test with decoupler and scanpy, or on a GPU with rapids-singlecell.

    uv run --with decoupler==2.2.0 python tests/benchmarks/cell_types.py --cells 20000

The workflow makes the atlas of a simulated cohort with 50 random sets of 100 genes, and scores the sets by each method.
The peer reads the atlas, which it holds in memory, and computes the same; the largest difference to our values is told.
Our seconds are those of the jobs, each alone, with their process starts, reading and writing: `scores` for all methods
together, and `markers_wilcoxon`. The peer's are those of the calls alone. aucell breaks ties among genes at random, so
that the two differ; zscore is wrong in decoupler 2.2.0, the last one for Python 3.11.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import beside
import h5py
import numpy as np
import pandas as pd
import run as cpu_benchmark
import yaml
from scanpy_peer import measured

METHODS = ["ulm", "mlm", "aucell", "zscore", "waggr", "score_genes"]
N_SETS, N_GENES = 50, 100
GROUPING = "CellType"
STAGES = {"scores": "scores, all methods", "markers_wilcoxon": "wilcoxon"}


def write_sets(h5ad: Path, gmt: Path) -> None:
    """Sets of random genes, the same for the same cohort."""
    with h5py.File(h5ad) as file:
        genes = ad.io.read_elem(file["var"]).index
    rng = np.random.default_rng(0)
    sets = (rng.choice(genes, N_GENES, replace=False) for _ in range(N_SETS))
    gmt.write_text("".join(f"set{i}\t\t" + "\t".join(names) + "\n" for i, names in enumerate(sets)))


def write_config(folder: Path, h5ad: Path, device: str) -> Path:
    """The default config with all methods, one grouping and one collection."""
    path = cpu_benchmark.write_config(folder, h5ad)
    config = yaml.safe_load(path.read_text())
    write_sets(h5ad, folder / "sets.gmt")
    config |= {"gene_sets": {"random": str(folder / "sets.gmt")}, "annotation": {}, "device": device}
    config["scores"] = {"methods": METHODS, "marker_methods": ["ora", "gsea"], "tmin": 5, "cell_cycle": "none"}
    config["markers"] |= {"groupings": [GROUPING], "methods": ["wilcoxon"]}
    config |= {"tsne": {"enabled": False}}
    path.write_text(yaml.safe_dump(config))
    return path


def calls(folder: Path, device: str) -> tuple[ad.AnnData, dict[str, Callable[[], None]]]:
    """The atlas, and the peer's calls by name."""
    data = ad.read_h5ad(folder / "results/atlas.h5ad")
    lines = (line.split("\t") for line in (folder / "sets.gmt").read_text().splitlines())
    known = {name: [gene for gene in genes if gene in data.var_names] for name, _, *genes in lines}
    net = pd.DataFrame([(name, gene, 1.0) for name, genes in known.items() for gene in genes])
    net.columns = ["source", "target", "weight"]
    data.uns["ours"] = {method: data.obsm.pop(f"score_{method.removeprefix('score_')}") for method in METHODS}
    if device == "gpu":
        import rapids_singlecell as rsc

        rsc.get.anndata_to_GPU(data)
        methods, tools, exact = rsc.dcg, rsc.tl, {}
    else:
        import decoupler
        import scanpy as sc

        methods, tools, exact = decoupler.mt, sc.tl, {"tie_correct": True}

    def score_genes() -> None:
        for name, genes in known.items():
            tools.score_genes(data, genes, score_name=name, use_raw=False)

    def wilcoxon() -> None:
        tools.rank_genes_groups(data, GROUPING, method="wilcoxon", use_raw=False, **exact)

    def of(method: str) -> Callable[[], None]:
        times = {"times": 0} if method == "waggr" else {}
        return lambda: getattr(methods, method)(data, net, tmin=5, **times)

    found = {method: of(method) for method in METHODS[:-1]} | {"score_genes": score_genes}
    return data, found | {"wilcoxon": wilcoxon}


def difference(data: ad.AnnData, method: str) -> float:
    """The largest difference between the peer's scores and ours, in standard deviations of ours."""
    ours = data.uns["ours"][method]
    theirs = data.obs[list(ours)] if method == "score_genes" else data.obsm[f"score_{method}"][list(ours)]
    return float(np.nanmax(np.abs(theirs.to_numpy() - ours.to_numpy()) / ours.to_numpy().std(0)))


def peer(folder: Path, device: str) -> None:
    """Run the peer's calls in this process; a line of JSON for each."""
    data, found = calls(folder, device)
    with (folder / "peer.jsonl").open("w", buffering=1) as out:
        for name, call in found.items():
            line = {"call": name} | measured(call)
            print(json.dumps(line | ({"difference": difference(data, name)} if name in METHODS else {})), file=out)


def markdown(told: dict, ours: dict[str, dict[str, float]], theirs: list[dict]) -> str:
    """Two tables, with what is needed to judge them."""
    lines = beside.heading(f"Gene sets and Wilcoxon's test: {told['cells']} cells x 30,000 genes", told)
    lines += beside.costs_table(ours, STAGES)
    lines += ["", "| peer | s | MB | largest difference to ours (sd) |", "|---|---:|---:|---:|"]
    for line in theirs:
        far = f"{line['difference']:.1e}" if "difference" in line else "–"
        lines.append(f"| {line['call']} | {line['seconds']:.1f} | {line['mb']:,.0f} | {far} |")
    together = sum(line["seconds"] for line in theirs if line["call"] in METHODS)
    return "\n".join([*lines, "", f"The peer's scores together: {together:.1f} s."]) + "\n"


def benchmark(args: argparse.Namespace, folder: Path) -> None:
    """Simulate, run both, write and print the tables."""
    h5ad = folder / "cohort.h5ad"
    if not h5ad.exists():
        cpu_benchmark.simulate(h5ad, args.cells)
    config = write_config(folder, h5ad, args.device)
    told = beside.circumstances(args, ["scanpy", "decoupler", "rapids-singlecell-cu13", "numpy", "scipy"])
    scores = [f"results/cohort/scores/random/{method}.parquet" for method in METHODS]
    again = {"scores": scores, "markers_wilcoxon": [f"results/cohort/markers/{GROUPING}/wilcoxon.parquet"]}
    ours = beside.of_jobs(folder, config, args.cores, ["results/atlas.h5ad"], again)
    theirs = beside.of_peer(args, folder)
    beside.save("cell-types", markdown(told, ours, theirs), told | {"ours": ours, "peer": theirs})


if __name__ == "__main__":
    beside.main(__doc__, benchmark, peer)
