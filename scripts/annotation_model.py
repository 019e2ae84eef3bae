"""Train a model of cell types on a labelled reference: a multinomial logistic regression.

The reference's counts are normalised to 10,000 over the genes that it shares with the cohort. Of these genes, those
are used whose log(1 + x) differs most between the labels, by the F statistic of an analysis of variance. They are
standardised and cut above 10, as CellTypist does (Dominguez Conde et al. 2022); weights and intercepts are those of
`lib.methods.logreg`. Every pass streams the reference.
"""

from lib.start import run

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from ingest import gene_table, write_counts
from lib.inputs.formats import open_counts
from lib.inputs.genesets import positions
from lib.inputs.reference import check_labels
from lib.methods.logreg import DenseRows, logistic_regression
from lib.methods.markers import Groups, GroupSums, group_sums
from lib.methods.typing_model import MAX_VALUE, Model, check_overlap, standardised
from lib.run import device as devices
from lib.run import stage
from lib.run.progress import progress, timed
from lib.run.resources import CACHE_BYTES, GB, KB, MB, Job, Need
from lib.store.counts import Counts
from lib.store.csr import row_sums
from lib.store.files import read_table
from lib.store.stream import Stream, halving

TARGET_SUM = 1e4


def f_statistic(found: GroupSums, sizes: np.ndarray) -> np.ndarray:
    """Per gene the F statistic of its values between groups; 0 for genes that do not vary."""
    n, k = sizes.sum(), len(sizes)
    means = found.sums / sizes[:, None]
    between = (sizes[:, None] * (means - found.sums.sum(0) / n) ** 2).sum(0) / (k - 1)
    within = (found.squares - found.sums * means).sum(0) / max(1, n - k)
    squares = found.squares.sum(0) / n
    return np.where(between > 1e-12 * squares, between / np.maximum(within, 1e-12 * squares + 1e-300), 0)


@halving
def totals_of(counts: Stream) -> np.ndarray:
    """The counts of each cell."""
    found = [
        counts.device.to_host(row_sums(c.X, counts.device)) for c in progress(counts.chunks(), counts.n_obs, "totals")
    ]
    return np.concatenate(found)


def train(store: Path, labels: pd.Series, genes: pd.DataFrame, params: Any, device: devices.Device, what: str) -> Model:
    """The model of a reference in a counts store.

    Parameters
    ----------
    labels
        The labels of the store's cells.
    genes
        The cohort's kept genes.
    params
        The config's `annotation`.
    what
        The reference's name, for messages.
    """
    groups = Groups.of(labels.rename(what))
    whole = Counts(store)
    var = whole.var()
    at = positions(genes.index, var)
    if (at >= 0).sum() < (known := positions(genes["gene_ids"], var) >= 0).sum():
        at = np.where(known, positions(genes["gene_ids"], var), -1)
    common = np.flatnonzero(at >= 0)
    smaller = genes["gene_symbols"] if len(genes) < len(var) else var["gene_symbols"]
    other = var["gene_symbols"] if len(genes) < len(var) else genes["gene_symbols"]
    check_overlap(len(common), smaller, other, f"{what} (annotation: reference)")
    codes = groups.codes[groups.codes >= 0]

    def counts_of(chosen: np.ndarray) -> Counts:
        columns = np.full(len(var), -1, np.int32)
        columns[at[chosen]] = np.arange(len(chosen))
        return Counts(store, device, groups.codes >= 0, columns, len(chosen))

    counts = counts_of(common)
    totals = totals_of(counts)
    found = group_sums(counts, codes, len(groups.names), totals, TARGET_SUM)
    strength = f_statistic(found, groups.sizes)
    best = np.sort(np.argsort(-strength, kind="stable")[: params["n_genes"]])
    best = best[strength[best] > 0]
    stage.log.info(
        "%s: %d cells, %d labels, %d genes in common, %d used",
        *(what, len(codes), len(groups.names), len(common), len(best)),
    )
    n = len(codes)
    mean = found.sums.sum(0)[best] / n
    std = np.sqrt(np.maximum(found.squares.sum(0)[best] / n - mean**2, 0))
    std[std == 0] = 1
    names = genes.index.to_numpy()
    xp = device.xp
    model = Model(
        np.array(groups.names, object),
        names[common[best]],
        *np.zeros((2, 0)),
        mean,
        std,
        names[common],
        TARGET_SUM,
        MAX_VALUE,
    )
    on_device = [xp.asarray(values, np.float32) for values in (mean, std)]
    with timed("fit"):
        rows = DenseRows(
            counts_of(common[best]), codes, lambda X, cells: standardised(X, totals[cells], *on_device, model, device)
        )
        W, b = logistic_regression(rows, n, len(best), len(groups.names), device, params["C"], params["max_iter"])
    if len(W) == 1:  # of two labels: the second against the first
        W, b = np.vstack([0 * W, W]), np.append(0, b)
    return Model(model.labels, model.genes, W, b, mean, std, model.universe, TARGET_SUM, MAX_VALUE)


def needs(job: Job) -> Need:
    """The reference's size is not known beforehand: one of a million cells is assumed, which is streamed."""
    mem = job.process + 14 * 20e6 + CACHE_BYTES + 500 * MB + 16 * KB * job.n_vars
    return Need(mem, seconds=600, disk=5 * GB, vram=4 * GB, gpu_mem=mem, reads=200 * MB)


def main(snakemake: Any) -> None:
    """Read the reference and the cohort's genes, write the model."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    genes = read_table(files.genes)
    genes, folder = genes[genes["kept"]], Path(snakemake.output.model).parent
    with TemporaryDirectory(dir=folder) as scratch:
        store = Path(scratch) / "reference.h5ad"
        with open_counts(files.reference, scratch=scratch, counts=params.annotation["reference_counts"]) as reader:
            key, where = params.annotation["reference_key"], str(files.reference)
            check_labels(reader.obs, key, where)
            labels = reader.obs[key].reset_index(drop=True)
            index = pd.Index([f"c{i}" for i in range(reader.n_obs)])
            write_counts(reader, pd.DataFrame(index=index), gene_table(reader.gene_symbols, reader.gene_ids), store)
        model = train(store, labels, genes, params.annotation, device, where)
    model.write(snakemake.output.model)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
