"""Compute stages again on the CPU, at a sample of cells and from the run's own artifacts, and compare.

Cells are drawn from every batch and cluster. Where a stage's function can be called on them, it is, on the CPU; else a
library's that scanpy calls too, or the formula written out. What a sample can not give exactly (means of genes,
components, integration, markers) is held to limits that its own spread allows. The limits are the `TOLERANCES` beside
each stage; one that is exceeded is a finding of the report.
"""

from lib.start import run

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from lib.methods import fuzzy, knn, mixing
from lib.methods.hvg.shared import Batches
from lib.methods.markers import Comparisons, Groups, group_sums
from lib.methods.representation import representation
from lib.methods.scaling import Scaling, columns_of, log_normalize, regressors, target_of
from lib.methods.tolerances import Tolerance
from lib.report import facts
from lib.report.parts import Column, Finding, Finished, Methods, Paragraph, Part, Table
from lib.report.words import count, listed
from lib.run import device as devices
from lib.run import models, stage
from lib.run.errors import UserError
from lib.run.resources import MB, Job, Need
from lib.store.categories import as_categories
from lib.store.cohort import gene_columns, kept_genes
from lib.store.counts import Counts
from lib.store.csr import row_sums, select_genes
from lib.store.files import read_arrays, read_attrs, read_column, read_table, write_tsv
from lib.store.stream import InMemory

CPU = devices.cpu()
# The stages whose limits are read, by their scripts
SCRIPTS = ("qc.py", "features.py", "hvg.py", "pca.py", "harmony.py", "neighbors.py", "umap.py", "tsne.py")
SCRIPTS += ("markers_ttest.py",)
DENSE = 1000  # cells of which the scaled matrix is held, and all pairs of which are compared in an embedding
PAIRS = 2 * 10**8  # pairs of cells that are compared at most, to find neighbours
LEAST = 200  # cells whose neighbours are found at least
CELLS = {"pca": "few", "neighbors": "searching", "umap": "few", "tsne": "few"}  # stages checked at fewer cells
COMPS = 10  # components whose captured variance is compared
NEAR, WIDE = 15, 50  # neighbours in a space, and in its embedding
ERRORS = 5  # standard errors
FIRST = 20  # markers of a group
GENES = 100  # highly variable ones
ENOUGH, OF_BATCH = 1000, 200  # cells that can rank genes, in all and of each batch
CHAPTER, SECTION = "Trust", "Stages"
TOLD = (  # titles and captions of the two tables
    (
        "Stages computed again",
        "Each stage computed again on the CPU, at cells from every batch and cluster, and compared.",
    ),
    (
        "Embeddings against their space",
        "How many of the neighbours that cells have in the embedded space the plane keeps near.",
    ),
)
Values = dict[str, float]


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest difference relative to the largest true value of the column; infinite where only one is a number."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if not truth.size:
        return 0.0
    if (np.isnan(found) != np.isnan(truth)).any():
        return np.inf
    scale = np.nanmax(np.abs(truth), initial=0)
    return float(np.nanmax(np.abs(found - truth), initial=0) / (scale or 1))


def check_qc(X: Any, families: Mapping[str, np.ndarray], obs: pd.DataFrame) -> Values:
    """The quality metrics of the sampled cells, from their counts in all genes."""
    from qc import cell_metrics

    truth = {name: values for name, values in cell_metrics(X, dict(families), [], CPU).items() if name in obs}
    return {"metrics": max((relative_error(obs[name], values) for name, values in truth.items()), default=0.0)}


def check_features(kept: Any, totals: np.ndarray, features: Any, target_sum: float) -> Values:
    """The totals in the kept genes, and the normalised values of the features against the formula."""
    found = log_normalize(features, totals, target_sum, CPU)
    cells = np.repeat(np.arange(len(totals)), np.diff(features.indptr))
    truth = np.log1p(features.data * (target_sum / np.maximum(totals, 1))[cells])
    return {
        "totals": float(np.abs(row_sums(kept, CPU) - totals).max(initial=0)),
        "normalised values": relative_error(found.data, truth),
    }


def check_hvg(kept: Any, table: pd.DataFrame, weights: np.ndarray) -> Values:
    """The share of genes whose mean in the sample is within `ERRORS` standard errors of the run's (seurat_v3).

    The error of a gene that few sampled cells have, or none, is at least that of a Poisson variable of the run's mean.
    """
    weights = weights / weights.sum()
    mean = kept.T @ weights
    squares = kept.multiply(kept).T @ weights**2 - 2 * mean * (kept.T @ weights**2) + mean**2 * (weights**2).sum()
    means = table["means"].to_numpy()
    far = np.abs(mean - means) > ERRORS * np.sqrt(np.maximum(squares, means * (weights**2).sum())) + 1e-9
    return {"means": 1 - float(far.mean())}


def check_selection(
    kept: Any, table: pd.DataFrame, batches: Batches, hvg: Mapping[str, Any], target_sum: float, seed: int
) -> Values:
    """The share of the run's first highly variable genes that the same function selects in the sample."""
    from hvg import highly_variable_genes

    chosen = table["highly_variable"].to_numpy()
    ranks = np.where(chosen, table["highly_variable_rank"], np.nan)
    first = np.argsort(ranks, kind="stable")[: min(GENES, int(np.isfinite(ranks).sum()))]
    wanted = {**hvg, "n_top_genes": None if hvg["n_top_genes"] is None else int(chosen.sum())}
    try:
        again = highly_variable_genes(InMemory(kept), batches, wanted, target_sum, seed=seed)
    except UserError as error:
        stage.log.info("no genes are selected in the sample: %s", error)
        return {}
    return {"overlap": float(again["highly_variable"].to_numpy()[first].mean())} if len(first) else {}


def check_pca(Z: np.ndarray, rows: np.ndarray, X_pca: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Values:
    """The projection of some cells, the variances, the orthonormality, and the variance that the components capture.

    The latter is measured on one half of the cells, relative to that captured by the components of the other half:
    those of all cells should be no worse.

    Parameters
    ----------
    Z
        cells x features, the scaled matrix of some cells.
    rows
        Their positions.
    X_pca
        Of all cells.
    arrays
        `PCs` and `variance` of the run.
    """
    PCs = arrays["PCs"].astype(np.float64)
    mine = X_pca[rows].astype(np.float64)
    Z = Z - mean_of(Z)
    projected = Z @ arrays["PCs"]
    found = {
        "projection": relative_error(mine - mean_of(mine), projected),
        "orthonormality": float(np.abs(PCs.T @ PCs - np.eye(PCs.shape[1])).max()),
        "variance": relative_error([column.var(ddof=1, dtype=np.float64) for column in X_pca.T], arrays["variance"]),
    }
    one, other = Z[::2], Z[1::2]
    k = min(COMPS, PCs.shape[1], len(one) - 1)
    if k > 0 and len(other) > 1:
        squares, vectors = np.linalg.eigh((one @ one.T).astype(np.float64))
        weights = vectors[:, -k:] / np.sqrt(np.maximum(squares[-k:], 1e-12))
        truth = ((other @ (one.T @ weights.astype(np.float32))) ** 2).sum(dtype=np.float64)
        captured = (projected[1::2, :k] ** 2).sum(dtype=np.float64)
        found["captured variance"] = float(captured / max(truth, 1e-12))
    return found


def mean_of(values: np.ndarray) -> np.ndarray:
    """The mean of each column."""
    return values.mean(0, keepdims=True)


def check_harmony(X_pca: np.ndarray, integrated: np.ndarray, obs: pd.DataFrame, *options: Any) -> Values:
    """The correlation of the sampled cells' components with Harmony's of these alone, weighted by their variances."""
    from harmony import batch_columns, harmonize

    columns = batch_columns(obs, list(obs.columns))
    if columns.columns.empty:
        return {}
    again = harmonize(X_pca, columns, *options).X.astype(np.float64)
    one, other = again - mean_of(again), integrated - mean_of(integrated.astype(np.float64))
    products = (one * other).sum(0) / np.maximum(np.sqrt((one**2).sum(0) * (other**2).sum(0)), 1e-12)
    return {"correlation": float(np.average(products, weights=(one**2).sum(0) + 1e-12))}


def check_neighbors(
    X: np.ndarray, rows: np.ndarray, found: Mapping[str, np.ndarray], made_with: Mapping[str, Any], n_jobs: int
) -> Values:
    """Recall against exact search, distances of the neighbours found, and connectivities computed again from them.

    Parameters
    ----------
    X
        The space of the neighbours, all cells.
    rows
        The sampled cells.
    found
        `indices`, `distances` of all cells, and `graph`, their connectivities.
    """
    indices, distances = found["indices"], found["distances"]
    k = indices.shape[1]
    true, true_distances = knn.nearest_of(X, rows, k, made_with["metric"], n_jobs, CPU)
    recall = knn.shared(true, indices[rows], np).mean()
    same = true == indices[rows]
    others = made_with["n_neighbors"] - 1
    near = indices[rows, :others]
    cells, place = np.unique(np.concatenate([rows, near.ravel()]), return_inverse=True)
    mean = float(distances[:, :others].mean(dtype=np.float64)) * others / (others + 1)
    strengths = fuzzy.memberships(distances[cells, :others].astype(np.float32), mean, CPU)
    here, there = place[: len(rows)], place[len(rows) :].reshape(near.shape)
    back = np.zeros(near.shape)
    for column in range(others):
        hit = indices[near[:, column], :others] == rows[:, None]
        back[:, column] = (strengths[there[:, column]] * hit).sum(1)
    forth = strengths[here]
    stored = np.asarray(found["graph"][np.repeat(rows, others), near.ravel()]).ravel()
    return {
        "recall": float(recall),
        "distances": relative_error(np.where(same, distances[rows], true_distances), true_distances),
        "connectivities": float(np.abs(stored - (forth + back - forth * back).ravel()).max(initial=0)),
    }


def check_embedding(X: np.ndarray, embedding: np.ndarray, again: np.ndarray | None = None) -> Values:
    """Trustworthiness, and the share of cells' neighbours that stay near them, here and with another seed.

    Parameters
    ----------
    X, embedding, again
        The space, the embedding and that of another seed, of some cells, among which neighbours are sought.
    """
    from sklearn.manifold import trustworthiness

    if len(X) < 3 * NEAR:  # of fewer cells all are neighbours
        return {}
    wide = min(WIDE, len(X) - 1)

    def near(values: np.ndarray, k: int) -> np.ndarray:
        return knn.nearest_neighbors(values.astype(np.float32), k, exact=True)[0]

    shown = near(embedding, wide)
    found = {"trustworthiness": float(trustworthiness(X, embedding, n_neighbors=NEAR))}
    found["preserved neighbours"] = float(knn.shared(near(X, NEAR), shown, np).mean())
    if again is not None:
        found["neighbours with another seed"] = float(knn.shared(near(again, NEAR), shown, np).mean())
    return found


def check_markers(
    kept: Any, groups: Groups, totals: np.ndarray, target_sum: float, ranking: pd.DataFrame, genes: Sequence[str]
) -> Values:
    """The share of the first markers of each group that are its first ones in the sample, by the same t-test."""
    from markers_ttest import welch

    sums = group_sums(InMemory(kept), groups.codes, len(groups.names), totals, target_sum)
    enough = np.flatnonzero(groups.sizes >= 3)
    if len(enough) < 2:
        return {}
    scores = welch(sums, groups.sizes, Comparisons.of(groups.names, ""))["scores"]
    shares = []
    for group in enough:
        mine = ranking[(ranking["group"] == groups.names[group]) & (ranking["rank"] <= FIRST)]["names"]
        again = np.argsort(-scores[group], kind="stable")[: len(mine)]
        shares.append(np.isin(np.asarray(genes)[again], mine).mean() if len(mine) else np.nan)
    return {"markers": float(np.nanmean(shares))} if np.isfinite(shares).any() else {}


@dataclass
class Sampled:
    """The input of the checks: the sampled cells, and the artifacts, read when they are asked for."""

    files: Any
    params: Any
    n_jobs: int = 1

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The table of all cells, without their names."""
        return read_table(self.files.obs, named=False)

    @cached_property
    def sample(self) -> mixing.Sample:
        """The sampled cells, of each batch and cluster."""
        groups = as_categories(self.obs[self.params.batch_key]).cat.codes.to_numpy().astype(np.int64) + 1
        for path in self.files.clusters:
            codes = read_table(path, named=False).iloc[:, 0].cat.codes.to_numpy().astype(np.int64)
            groups = groups * (codes.max(initial=0) + 1) + codes
        return mixing.stratified(groups, self.params.n_cells, self.params.seed)

    @cached_property
    def rows(self) -> np.ndarray:
        """Their positions."""
        return self.sample.rows

    def some(self, n: int) -> np.ndarray:
        """The positions of at most `n` of them."""
        chosen = np.random.default_rng(0).choice(len(self.rows), min(n, len(self.rows)), replace=False)
        return self.rows[np.sort(chosen)]

    @cached_property
    def few(self) -> np.ndarray:
        """The positions of those of which all pairs are compared."""
        return self.some(DENSE)

    @cached_property
    def searching(self) -> np.ndarray:
        """The positions of those that are compared with all cells."""
        return self.some(max(LEAST, PAIRS // len(self.obs)))

    @cached_property
    def totals(self) -> np.ndarray:
        """The counts of all cells in the kept genes."""
        return self.obs["kept_counts"].to_numpy()

    @cached_property
    def target_sum(self) -> float:
        """The sum of a cell's counts after normalisation."""
        return target_of(self.totals, self.params.target_sum)

    @cached_property
    def counts(self) -> tuple[Any, Any, dict[str, np.ndarray]]:
        """The sampled cells' quality metrics as checked, sample by sample, and their counts in the kept genes."""
        from scipy.sparse import vstack

        chosen, genes, worst, parts = np.zeros(len(self.obs), bool), kept_genes(self.files.genes), {"metrics": 0.0}, []
        chosen[self.rows] = True
        columns, last = gene_columns(genes, self.params.gene_key), 0
        for path, of_cells, of_genes in zip(self.files.counts, self.files.cells, self.files.qc_genes, strict=True):
            mine = read_column(of_cells, "kept").astype(bool)
            first, last = last, last + int(mine.sum())
            if not chosen[first:last].any():
                continue
            mine[mine] = chosen[first:last]
            store = Counts(path)
            X = vstack([chunk.X for chunk in store.part(mine).chunks()], format="csr")
            table = read_table(of_genes)
            families = {name: table[name].to_numpy() for name in table.select_dtypes(bool)}
            found = check_qc(X, families, self.obs[first:last][chosen[first:last]])
            worst = {name: max(value, found[name]) for name, value in worst.items()}
            parts.append(select_genes(X, columns(store), len(genes), CPU))
        return worst, vstack(parts, format="csr"), genes.index.to_numpy()

    @cached_property
    def features(self) -> Any:
        """The sampled cells' counts in the features."""
        from scipy.sparse import vstack

        wanted, parts = np.zeros(len(self.obs), bool), []
        wanted[self.rows] = True
        for path in self.files.features:
            mine, wanted = np.split(wanted, [Counts(path).n_obs])
            parts += [chunk.X for chunk in Counts(path, CPU, mine).chunks()]
        return vstack(parts, format="csr")

    def space(self) -> tuple[dict[str, Any], np.ndarray]:
        """How the neighbours were found, and in which space."""
        made_with = read_attrs(self.files.neighbors)
        given = self.files.pca, self.files.harmony, made_with["use_rep"], made_with["n_pcs"]
        return made_with, representation(*given)[1]


def of_pca(given: Sampled) -> Values:
    """See `check_pca`."""
    scaling, arrays = Scaling.read(given.files.pca), read_arrays(given.files.pca, "X_pca", "PCs", "variance")
    tables = [given.files.obs, *given.files.cell_cycle]
    design = regressors(columns_of(tables, list(scaling.regress_keys)), scaling.regress_keys)
    place = np.searchsorted(given.rows, given.few)
    Z = scaling.dense(given.features[place], given.totals[given.few], design[given.few], CPU)
    return check_pca(Z, given.few, arrays.pop("X_pca"), arrays)


def of_harmony(given: Sampled) -> Values:
    """See `check_harmony`."""
    found = [read_arrays(path) for path in given.files.harmony]
    if not found or not found[0]:
        return {}
    X_pca = read_arrays(given.files.pca, "X_pca")["X_pca"][given.rows]
    obs = given.obs.iloc[given.rows][list(given.params.batch_keys)]
    options = given.params.harmony, given.params.seed, CPU, given.n_jobs
    return check_harmony(X_pca, found[0]["X_pca_harmony"][given.rows], obs, *options)


def of_neighbors(given: Sampled) -> Values:
    """See `check_neighbors`."""
    made_with, X = given.space()
    found = read_arrays(given.files.neighbors, "indices", "distances")
    found["graph"] = fuzzy.read_graph(given.files.neighbors)
    return check_neighbors(X, given.searching, found, made_with, given.n_jobs)


def of_markers(given: Sampled) -> Values:
    """See `check_markers`."""
    if not given.files.ranking:
        return {}
    _, kept, genes = given.counts
    path = given.files.grouping[0] if given.files.grouping else given.files.obs
    groups = Groups.of(read_table(path, [given.params.grouping], named=False)[given.params.grouping].iloc[given.rows])
    ranking = read_table(given.files.ranking[0], ["group", "rank", "names"])
    return check_markers(kept, groups, given.totals[given.rows], given.target_sum, ranking, genes)


def of_selection(given: Sampled, table: pd.DataFrame) -> Values:
    """See `check_selection`."""
    from hvg import batches_to_rank_in

    codes, names = pd.factorize(given.obs[given.params.batch_key].astype(str))
    of_all = batches_to_rank_in(Batches(codes, list(names)), given.params.hvg)
    batches = Batches(of_all.codes[given.rows], of_all.names)
    few = batches.sizes < np.minimum(OF_BATCH, of_all.sizes)
    if few.any() or len(given.rows) < min(ENOUGH, len(given.obs)):
        return {}
    return check_selection(
        given.counts[1], table, batches, given.params.hvg, given.params.target_sum, given.params.seed
    )


def of_embedding(given: Sampled, paths: Sequence[str]) -> Values:
    """See `check_embedding`; the first path is that of the run, a second one of another seed."""
    if not paths:
        return {}
    shown = (read_table(path, named=False).to_numpy()[given.few] for path in paths)
    return check_embedding(given.space()[1][given.few], *shown)


def checks(given: Sampled) -> Iterator[tuple[str, Values]]:
    """Each stage's name and what was found of it; nothing for stages that did not run, or that another job checks."""
    yield "umap", of_embedding(given, given.files.umap)
    yield "tsne", of_embedding(given, given.files.tsne)
    if not given.files.counts:
        return
    yield "qc", given.counts[0]
    totals = given.totals[given.rows]
    yield "features", check_features(given.counts[1], totals, given.features, given.target_sum)
    table = read_table(given.files.hvg)
    found = check_hvg(given.counts[1], table, given.sample.weights) if "variances_norm" in table else {}
    yield "hvg", found | of_selection(given, table)
    yield "pca", of_pca(given)
    yield "harmony", of_harmony(given)
    yield "neighbors", of_neighbors(given)
    yield "markers_ttest", of_markers(given)


def limits_of(name: str) -> dict[str, Tolerance]:
    """The tolerances that a stage declares."""
    return models.declared(name, "TOLERANCES")


def needs(job: Job) -> Need:
    """The sampled cells' counts and scaled features, the components and the neighbours of all cells."""
    n = min(job.n_kept, job.config["trust"]["n_cells"] or job.n_kept)
    share = n / max(1, job.n_kept)
    cells = 8 * job.n_comps * job.n_kept + 16 * job.k * job.n_kept + 12 * job.edges + 400 * job.n_kept
    mem = job.process + 450 * MB + 30 * share * job.nnz + 4 * 4 * DENSE * job.n_top + cells
    seconds = 15 + 0.5e-7 * job.nnz + 1e-8 * n * job.n_kept + 2e-3 * n
    return Need(mem, seconds, 5 * MB, reads=job.store)


def tells(run: Finished) -> Iterator[Part]:
    """Which stages are not as computed again."""
    paths = [*run.files("trust_stages", "stages"), *run.files("trust_embeddings", "stages")]
    table = pd.concat([facts.tsv(path).assign(path=path) for path in paths], ignore_index=True)
    bad = table[table["within"].astype(str) != "True"]
    n, cells = table["stage"].nunique(), count(table["cells"].max(), "cell")
    said = f"{count(len(table), 'check')} of {count(n, 'stage')} at {cells}: "
    said += (
        f"out of tolerance {listed(bad['stage'].drop_duplicates())}." if len(bad) else "all within their tolerances."
    )
    yield Paragraph(said, CHAPTER, SECTION)
    columns = {"value": Column("found"), "limit": Column("expected", text=True)}
    columns |= {"why": Column("not perfect, as", text=True)}
    for path, (title, said) in zip(paths, TOLD, strict=False):
        yield Table(path, title, said, CHAPTER, SECTION, columns)
    for row in bad.to_dict("records"):
        limit = limits_of(row["stage"])[row["check"]]
        said = f"differs from its repetition at a sample of cells: {row['check']} is {row['value']:.3g}"
        yield Finding(f"Stage {row['stage']}", said, f"expected {limit.said}", limit.beyond(row["value"]), row["path"])
    yield Methods(f"Stages were computed again on the CPU for {cells}, and compared.")


def main(snakemake: Any) -> None:
    """Check each stage whose files are given, write `trust_stages.tsv` or `trust_embeddings.tsv`."""
    given = Sampled(snakemake.input, snakemake.params, snakemake.threads)
    rows = []
    for name, found in checks(given):
        limits = limits_of(name) if found else {}
        for check, value in found.items():
            limit = limits[check]
            n = len(getattr(given, CELLS.get(name, "rows")))
            rows.append([name, check, value, limit.said, limit.holds(value), n, limit.why])
    table = pd.DataFrame(rows, columns=["stage", "check", "value", "limit", "within", "cells", "why"])
    stage.log.info("checks:\n%s", table.drop(columns="why").to_string(index=False))
    write_tsv(table, snakemake.output.stages)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
