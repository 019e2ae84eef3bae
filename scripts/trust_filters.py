"""Look at the cells before any filter: which of their clusters each limit took, and how well doublets could be told.

A sample of all cells is clustered without any filter (normalised, logarithm, the most variable genes, principal
components, Leiden), by genes that belong to no gene family: so cells with much MT lie among their like. A cluster with
many genes that a limit takes for the most part is likely a type of cells, not cells of poor quality. Doublets are told
by scores if those of simulated doublets are above the cells' (area under the ROC curve; 0.5: not at all).
"""

from lib.start import run

from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import pandas as pd
from lib.figures.words import reason_label
from lib.methods import mixing
from lib.methods.clusters import by_falling_size
from lib.methods.fuzzy import fuzzy_graph
from lib.methods.knn import nearest_neighbors
from lib.methods.scaling import log_normalize
from lib.report import facts
from lib.report.parts import Column, Finding, Finished, Paragraph, Part, Table
from lib.report.words import count, percent
from lib.run import device as devices
from lib.run import stage
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import as_categories, name_of, natural_order
from lib.store.cohort import gene_columns
from lib.store.counts import Counts
from lib.store.csr import row_sums
from lib.store.files import read_table, write_tsv
from lib.store.names import escape_key

CPU = devices.cpu()
N_GENES, N_COMPS, N_NEIGHBORS, RESOLUTION = 1000, 20, 15, 1.0  # of the quick look
FEW = 20  # cells of a cluster that is told of
TAKEN, GENES = 0.5, 0.5  # limits of findings: a cluster's share that a limit takes; its median genes to the kept cells'
AUROC = 0.6  # and of simulated doublets against cells
CHAPTER, SECTION = "Trust", "Filters and doublets"


def quick_look(X: Any, seed: int) -> np.ndarray:
    """Clusters of cells by their counts, cells x genes: 0, 1, ... by falling size."""
    from leiden import leiden

    if X.shape[0] < 3 or not X.nnz:
        return np.zeros(X.shape[0], np.int32)
    values = log_normalize(X, row_sums(X, CPU), 1e4, CPU)
    mean = np.asarray(values.mean(0)).ravel()
    variance = np.asarray(values.multiply(values).mean(0)).ravel() - mean**2
    chosen = np.sort(np.argsort(-variance, kind="stable")[:N_GENES])
    Z = values[:, chosen].toarray() - mean[chosen].astype(np.float32)
    components = np.linalg.eigh((Z.T @ Z).astype(np.float64))[1][:, ::-1][:, :N_COMPS]
    space = Z @ components.astype(np.float32)
    k = min(N_NEIGHBORS, len(space)) - 1
    graph = fuzzy_graph(*nearest_neighbors(space, k, exact=True), CPU)
    return by_falling_size(leiden(graph, RESOLUTION, 2, seed, CPU))


def by_cluster(clusters: np.ndarray, cells: pd.DataFrame, reasons: Sequence[str], label: str | None) -> pd.DataFrame:
    """Each cluster: its cells, their usual label, median genes, and what is kept and taken, in per cent."""
    rows = []
    for cluster in range(int(clusters.max(initial=-1)) + 1):
        mine = cells[clusters == cluster]
        known = mine[label].dropna() if label else mine.iloc[:0, 0]
        row = {"cluster": cluster, "cells": len(mine), "label": known.mode().iloc[0] if len(known) else ""}
        row |= {"median_genes": mine["n_genes_by_counts"].median(), "kept_pct": 100 * mine["kept"].mean()}
        row |= {f"lost_pct_{reason}": 100 * (mine["reason"] == reason).mean() for reason in reasons}
        rows.append(row | {"doublets_pct": 100 * mine["predicted_doublet"].mean()})
    columns = ["cluster", "cells", "label", "median_genes", "kept_pct", *(f"lost_pct_{reason}" for reason in reasons)]
    return pd.DataFrame(rows, columns=[*columns, "doublets_pct"])


def doublets_of(path: str, cells: pd.DataFrame, sample: str, batch_key: str) -> Iterator[dict[str, Any]]:
    """Of each scored batch of a sample: expected and called doublets, and whether simulated ones score above cells."""
    from sklearn.metrics import roc_auc_score

    batches = cells[batch_key].map(name_of, na_action="ignore")
    with h5py.File(path, "r", locking=False) as file:
        rate = float(file["scores"].attrs["expected_doublet_rate"])
        simulated = {name: (values[...], dict(values.attrs)) for name, values in file["scores"].items()}
    for batch in natural_order(batches.dropna().unique()):
        if escape_key(batch) not in simulated:
            continue
        scores, known = simulated[escape_key(batch)]
        mine = cells["doublet_score"][batches == batch].dropna().to_numpy()
        truth = np.repeat([0, 1], [len(mine), len(scores)])
        area = roc_auc_score(truth, np.concatenate([mine, scores])) if len(mine) and len(scores) else np.nan
        yield {
            "batch": batch,
            "sample": sample,
            "scored": int(known["scored"]),
            "expected": rate * int(known["scored"]),
            "called": int(known["called"]),
            "trusted": bool(known["trusted"]),
            "simulated_above_pct": 100 * float(np.mean(scores > known["threshold"])),
            "simulated_auroc": area,
        }


def read_counts(files: Any, drawn: Sequence[np.ndarray], gene_key: str) -> Any:
    """The counts of the drawn cells (a mask for each sample) in the kept genes that belong to no family."""
    from scipy.sparse import vstack

    genes = read_table(files.genes)
    families = genes.drop(columns="kept").select_dtypes(bool)
    genes = genes[genes["kept"] & ~families.any(axis=1)]
    parts: list[Any] = []
    columns = gene_columns(genes, gene_key)
    for path, mine in zip(files.counts, drawn, strict=True):
        store = Counts(path)
        parts += [chunk.X for chunk in store.part(mine, columns(store), len(genes)).chunks()]
    return vstack(parts, format="csr")


def needs(job: Job) -> Need:
    """All cells' tables, and the counts of the sampled ones."""
    n = min(job.n_obs, job.config["trust"]["n_cells"] or job.n_obs)
    share = n / max(1, job.n_obs)
    mem = job.process + 250 * MB + 30 * share * job.nnz + 1.7 * KB * job.n_obs + 16 * N_GENES * n
    return Need(mem, 15 + 1e-7 * job.nnz + 1e-8 * n * n + 1e-4 * n, 5 * MB)


def tells(run: Finished) -> Iterator[Part]:
    """Clusters that a limit took though their cells look good, and batches whose doublets cannot be told."""
    job = run.one("trust_filters")
    clusters, doublets = facts.tsv(job.filters), facts.tsv(job.doublets)
    lost = [name for name in clusters if name.startswith("lost_pct_")]
    titles = {name: Column(f"{reason_label(name.removeprefix('lost_pct_'))}, %", high=100 * TAKEN) for name in lost}
    titles |= {"cluster": Column("cluster", text=True), "label": Column("most are", text=True)}
    said = (
        f"{count(clusters['cells'].sum(), 'cell')} before any filter, in {count(len(clusters), 'cluster')} of a quick "
    )
    said += "look: what each limit took of them, in per cent."
    yield Table(job.filters, "Filters by cluster", said, CHAPTER, SECTION, titles)
    usual = facts.obs(run, "n_genes_by_counts")["n_genes_by_counts"].median()
    for row in clusters.to_dict("records"):
        for name in lost:
            share, reason = row[name] / 100, name.removeprefix("lost_pct_")
            good = row["median_genes"] > GENES * usual or not reason.startswith(("max_pct", "mad_pct"))
            if row["cells"] >= FEW and share > TAKEN and good and not reason.startswith(("min_", "doublet")):
                label = f", most of them {row['label']}," if isinstance(row["label"], str) else ""
                said = f"{percent(share)} of its {count(row['cells'], 'cell')}{label} are lost to one limit, "
                said += f"{reason_label(reason)}, though they have {count(row['median_genes'], 'gene')} in the median"
                where = f"Cluster {row['cluster']} before filters"
                limit = f"expected at most {percent(TAKEN)}; kept cells have {count(usual, 'gene')}"
                yield Finding(where, said, limit, 1 + (share - TAKEN) / TAKEN, job.filters, "clusters lost to a limit")
    if not len(doublets):
        yield Paragraph("No batch was scored for doublets.", CHAPTER, SECTION)
        return
    said = (
        "Of each scored batch: doublets expected and called, the simulated doublets above the threshold in per cent, "
    )
    said += "and the area under the ROC curve of simulated doublets against cells; 0.5 tells that they do not differ."
    columns = {"batch": Column("batch", text=True), "sample": Column("sample", text=True)}
    columns["simulated_auroc"] = Column("simulated AUROC", low=AUROC)
    yield Table(job.doublets, "Doublets by batch", said, CHAPTER, SECTION, columns)
    for row in doublets[doublets["simulated_auroc"] < AUROC].to_dict("records"):
        said = (
            f"doublets cannot be told: simulated ones score no higher than cells (AUROC {row['simulated_auroc']:.2f})"
        )
        beyond = (1 - row["simulated_auroc"]) / (1 - AUROC)
        yield Finding(
            f"Batch {row['batch']}", said, f"expected at least {AUROC}", beyond, job.doublets, "doublet scores"
        )


def main(snakemake: Any) -> None:
    """Read all cells, cluster a sample of them, write the tables."""
    files, params = snakemake.input, snakemake.params
    columns = ["kept", "reason", "n_genes_by_counts", "doublet_score", "predicted_doublet", params.batch_key]
    tables, doublets = [], []
    for sample, path, simulated in zip(params.samples, files.cells, files.simulated, strict=True):
        cells = read_table(path)
        doublets += doublets_of(simulated, cells, sample, params.batch_key)
        cells = cells.assign(**{params.label: cells.get(params.label, np.nan)} if params.label else {})
        tables.append(cells[list(dict.fromkeys([*columns, *filter(None, [params.label])]))])
    known = ["batch", "sample", "scored", "expected", "called", "trusted", "simulated_above_pct", "simulated_auroc"]
    write_tsv(pd.DataFrame(doublets, columns=known), snakemake.output.doublets)
    sizes = [len(table) for table in tables]
    batches = [as_categories(table[params.batch_key]).cat.codes.to_numpy() for table in tables]
    groups = np.concatenate([codes.astype(np.int64) + 1 + 10**6 * i for i, codes in enumerate(batches)])
    drawn = np.zeros(sum(sizes), bool)
    drawn[mixing.stratified(groups, params.n_cells, params.seed).rows] = True
    parts = np.split(drawn, np.cumsum(sizes)[:-1])
    clusters = quick_look(read_counts(files, parts, params.gene_key), params.seed)
    cells = pd.concat([table[mine].astype({"reason": str}) for table, mine in zip(tables, parts, strict=True)])
    reasons = [reason for reason in pd.unique(cells["reason"]) if reason]
    table = by_cluster(clusters, cells, reasons, params.label)
    stage.log.info("clusters before filters:\n%s", table.to_string(index=False))
    write_tsv(table, snakemake.output.filters)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
