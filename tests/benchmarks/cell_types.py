"""Compare scores of gene sets and Wilcoxon's test with decoupler and scanpy, or on a GPU with rapids-singlecell.

    uv run --with decoupler==2.2.0 --with celltypist --with 'scikit-learn<1.8' \\
        python tests/benchmarks/cell_types.py --cells 20000

The workflow makes the atlas of a simulated cohort with 50 random sets of 100 genes, scores the sets by each method, and
names the cells' types by a reference: 20,000 cells of one more patient. The peer reads the atlas, which it holds in
memory, and computes the same; the largest difference to our values is told. Our seconds are those of the jobs, each
alone, with their process starts, reading and writing: `scores` for all methods together. The peer's are those of the
calls alone. aucell breaks ties among genes at random, so that the two differ; zscore is wrong in decoupler 2.2.0, the
last one for Python 3.11. Types have a peer if CellTypist is installed: it trains on the CPU, with our model's genes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import beside
import h5py
import numpy as np
import pandas as pd
import run as cpu_benchmark
import yaml
from lib.methods.typing_model import Model
from scanpy_peer import measured

METHODS = ["ulm", "mlm", "aucell", "zscore", "waggr", "score_genes"]
N_SETS, N_GENES = 50, 100
GROUPING = "CellType"
OF_REFERENCE = 20_000  # cells
MODEL = "results/cohort/annotation/model.h5"
STAGES = {"scores": "scores, all methods", "markers_wilcoxon": "wilcoxon"}
STAGES |= {"annotation_model": "training on the reference", "annotation": "types of all cells"}


def write_sets(h5ad: Path, gmt: Path) -> None:
    """Sets of random genes, the same for the same cohort."""
    with h5py.File(h5ad) as file:
        genes = ad.io.read_elem(file["var"]).index
    rng = np.random.default_rng(0)
    sets = (rng.choice(genes, N_GENES, replace=False) for _ in range(N_SETS))
    gmt.write_text("".join(f"set{i}\t\t" + "\t".join(names) + "\n" for i, names in enumerate(sets)))


def write_reference(path: Path) -> None:
    """A patient whom the cohort does not have, if the file is not there."""
    from simulate import Design, simulate_patient, simulated_genes, write_h5ad

    if not path.exists():
        design = Design(n_genes=30_000, n_types=20, umi=6000)  # that of the cohort
        genes = simulated_genes(design)
        write_h5ad(path, simulate_patient(design, cpu_benchmark.PATIENTS + 1, OF_REFERENCE, genes), genes)


def write_config(folder: Path, h5ad: Path, device: str) -> Path:
    """The default config with all methods, one grouping, one collection and the reference."""
    path, reference = cpu_benchmark.write_config(folder, h5ad), folder / "reference.h5ad"
    config = yaml.safe_load(path.read_text())
    write_sets(h5ad, folder / "sets.gmt")
    write_reference(reference)
    config |= {"gene_sets": {"random": str(folder / "sets.gmt")}, "device": device}
    config["annotation"] = {"reference": str(reference), "reference_key": GROUPING, "markers": None}
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
    found |= {"wilcoxon": wilcoxon}
    return data, found | (celltypist_calls(folder, data) if find_spec("celltypist") else {})


def celltypist_calls(folder: Path, data: ad.AnnData) -> dict[str, Callable[[], None]]:
    """Training on the reference, with the genes of our model, and naming the atlas' cells; `data` gets the labels."""
    import celltypist
    import scanpy as sc

    model, held = Model.read(folder / MODEL), {}
    reference, cells = ad.read_h5ad(folder / "reference.h5ad"), ad.AnnData(data.layers["counts"], data.obs, data.var)
    for table in (reference, cells):
        sc.pp.normalize_total(table, target_sum=1e4)
        sc.pp.log1p(table)

    def train() -> None:
        held["model"] = celltypist.train(reference[:, model.genes].copy(), GROUPING, check_expression=False, n_jobs=-1)

    def types() -> None:
        fine = data.obs.filter(like="leiden").iloc[:, -1]
        found = celltypist.annotate(cells, held["model"], majority_voting=True, over_clustering=fine)
        data.obs["theirs"] = found.predicted_labels["predicted_labels"].astype(str)

    return {"celltypist.train": train, "celltypist.annotate": types}


def right(data: ad.AnnData, column: str) -> float:
    """The share of the cells whose label is their true type."""
    return float((data.obs[column].astype(str) == data.obs[GROUPING].astype(str)).mean())


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
            line |= {"difference": difference(data, name)} if name in METHODS else {}
            print(json.dumps(line | ({"right": right(data, "theirs")} if "theirs" in data.obs else {})), file=out)
        print(json.dumps({"call": "ours", "right": right(data, "annotation_label")}), file=out)


def markdown(told: dict, ours: dict[str, dict[str, float]], theirs: list[dict]) -> str:
    """Two tables, with what is needed to judge them."""
    lines = beside.heading(f"Gene sets and Wilcoxon's test: {told['cells']} cells x 30,000 genes", told)
    lines += beside.costs_table(ours, STAGES)
    lines += ["", "| peer | s | MB | largest difference to ours (sd) |", "|---|---:|---:|---:|"]
    for line in (line for line in theirs if "seconds" in line):
        far = f"{line['difference']:.1e}" if "difference" in line else "–"
        lines.append(f"| {line['call']} | {line['seconds']:.1f} | {line['mb']:,.0f} | {far} |")
    together = sum(line["seconds"] for line in theirs if line["call"] in METHODS)
    lines += ["", f"The peer's scores together: {together:.1f} s.", ""]
    shares = [f"{line['right']:.2%} ({line['call']})" for line in theirs if "right" in line]
    return "\n".join([*lines, f"Cells with the right type, before any vote: {', '.join(shares)}."]) + "\n"


def benchmark(args: argparse.Namespace, folder: Path) -> None:
    """Simulate, run both, write and print the tables."""
    h5ad = folder / "cohort.h5ad"
    if not h5ad.exists():
        cpu_benchmark.simulate(h5ad, args.cells)
    config = write_config(folder, h5ad, args.device)
    told = beside.circumstances(args, ["scanpy", "decoupler", "celltypist", "rapids-singlecell-cu13", "numpy", "scipy"])
    scores = [f"results/cohort/scores/random/{method}.parquet" for method in METHODS]
    again = {"scores": scores, "markers_wilcoxon": [f"results/cohort/markers/{GROUPING}/wilcoxon.parquet"]}
    again |= {"annotation_model": [MODEL], "annotation": ["results/cohort/annotation.parquet"]}
    ours = beside.of_jobs(folder, config, args.cores, ["results/atlas.h5ad"], again)
    theirs = beside.of_peer(args, folder)
    beside.save("cell-types", markdown(told, ours, theirs), told | {"ours": ours, "peer": theirs})


if __name__ == "__main__":
    beside.main(__doc__, benchmark, peer)
