"""Find marker genes by multinomial logistic regression of the groups on the highly variable genes.

Let z_i be the rows of the matrix for PCA (or of log-normalised values) for the n cells, and y_i their groups. Weights W
(groups x genes) and intercepts b minimise mean_i[logsumexp(W z_i + b) - (W z_i + b)_{y_i}] + |W|^2 / (2 C n). The
objective, the optimiser (L-BFGS) and its stopping rule are those of scikit-learn's LogisticRegression. A gene's score
in a group is its weight; each group is separated from all others. With two groups W is one row, the second group
against the first; the first group gets its negative (scanpy lists that row under the name of the first group, and so
ranks this group's markers last).
Source: scanpy.tl.rank_genes_groups(method="logreg").
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import numpy as np
from lib.methods.logreg import DenseRows, logistic_regression
from lib.methods.markers import Comparisons, descriptions, group_sums, rank_genes, read_groups, write_results
from lib.methods.scaling import Scaling, columns_of, log_normalize, regressors
from lib.report import markers as told_markers
from lib.report.parts import Finished, Methods, Part
from lib.run import device as devices
from lib.run.progress import timed
from lib.run.resources import CACHE_BYTES, CUPY, KB, MB, Job, Need
from lib.store.counts import Counts, Stores
from lib.store.csr import dense as dense_array


def needs(job: Job) -> Need:
    """The scaled features, as float32 or float16 if they fit the cache; their dense chunks; on a GPU their counts."""
    values = job.n_kept * job.n_top
    held = 4 * values if 4 * values <= CACHE_BYTES else min(2 * values, CACHE_BYTES)
    return Need(
        mem=job.process + max(14 * min(20e6, values) + held, 340 * MB * job.chunk + 200 * job.n_groups * job.n_top),
        seconds=10 + 1.5e-9 * values * job.config["markers"]["logreg"]["max_iter"],
        disk=60 * job.n_groups * job.n_top,
        vram=1000 * MB + 2.5 * job.features_nnz,
        gpu_mem=job.process + CUPY + 200 * MB + 0.6 * KB * job.n_kept,
        reads=job.features_store + 4 * job.n_comps * job.n_kept,
    )


def tells(run: Finished) -> Iterator[Part]:
    """The tables of markers."""
    yield from told_markers.told(run, "markers_logreg", "logreg", "weight")
    yield Methods("Marker genes were ranked by their weights in a logistic regression of the groups.", ["logreg"])


def main(snakemake: Any) -> None:
    """Read the features and a grouping, write the ranked genes of each group."""
    files, params = snakemake.input, snakemake.params
    device = devices.of(snakemake)
    groups = read_groups(params.grouping, files.obs, files.grouping)
    counts = Stores([Counts(part, device) for part in files.features])
    scaling = Scaling.read(files.pca)
    obs = columns_of([files.obs, *files.cell_cycle], ["kept_counts", *scaling.regress_keys])
    totals = obs["kept_counts"].to_numpy()
    of_cells = device.xp.asarray(totals), device.xp.asarray(regressors(obs, scaling.regress_keys), np.float32)

    def dense(X: Any, cells: slice) -> Any:
        mine = [values[cells] for values in of_cells]
        if params.logreg["use_scaled"]:
            return scaling.dense(X, *mine, device)
        return dense_array(log_normalize(X, mine[0], scaling.target_sum, device), device)

    n_groups, (C, max_iter) = len(groups.names), (params.logreg[key] for key in ("C", "max_iter"))
    with timed("expression"):
        sums = group_sums(counts, groups.codes, n_groups, totals, scaling.target_sum)
        found = descriptions(sums, groups.sizes, Comparisons.of(groups.names, params.grouping))
    W = np.zeros((0, counts.n_vars))
    if n_groups:
        with timed("fit"):
            rows = DenseRows(counts, groups.codes, dense)
            W, _ = logistic_regression(rows, int(groups.sizes.sum()), counts.n_vars, n_groups, device, C, max_iter)
    if n_groups == 2:
        W = np.vstack([-W, W])
    genes = counts.stores[0].var()
    table = rank_genes(groups.names, {"scores": W} | found, genes.index.to_numpy(), genes["gene_symbols"].to_numpy())
    write_results(table, snakemake, "logreg", genes)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
