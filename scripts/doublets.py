"""Compute doublet scores of a sample's cells, batch by batch, with scrublet.

Doublets are simulated by adding the counts of random pairs of cells. Cells and simulated doublets are projected on the
principal components of the cells' normalised, z-scored highly variable genes. Let d be the number of simulated doublets
among a cell's k nearest, q = (d + 1) / (k + 2), r the number of simulated doublets per cell, and rho the expected
doublet rate. Then

    doublet_score = q * rho / r / (1 - rho - q * (1 - rho - rho / r))

and cells are called doublets if their score is above the minimum between the two modes of the simulated doublets'
scores. Source: Wolock, Lopez and Klein 2019; scanpy.pp.scrublet, with the same random numbers.

The projection is linear: a doublet's projection is the sum of its parents', divided by their joint total, so the counts
of doublets are never computed.

Calls are not always reliable. If cells form a continuum, or are very similar, the minimum may be a dent in a single
mode, and the threshold divides single cells. If all calls were right, and doublets were like the simulated ones, then

    (share of the cells above the threshold) / (share of the simulated doublets above it)

would be the share of doublets among the cells (Wolock's overall doublet rate). A batch's calls are trusted if at most
CALLED times the expected rate is called, and if this overall rate, beyond counting noise, is at most IMPLIED times the
expected one. With an expected rate of 5 %, it is 1 to 13 % in PBMC of four chemistries, and at most a fifth in
simulated types. It is 85 % and more in PBMC of a single type, where as many cells as simulated doublets lie above the
threshold.
"""

from lib.start import run

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pandas as pd
from lib.methods import knn
from lib.methods.eigen import leading_eigenpairs
from lib.methods.hvg.dispersions import normalized_dispersions
from lib.methods.hvg.shared import mean_and_variance
from lib.methods.ledgers import shortened
from lib.methods.thresholds import threshold_reasons
from lib.report.parts import Finding, Finished, Methods, Numbers, Part
from lib.report.words import count, percent
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.progress import Pace, progress
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import name_of, natural_order
from lib.store.counts import Counts
from lib.store.csr import column_counts, column_sums, dense, row_sums, rows_of_nonzeros, select_genes, select_rows
from lib.store.files import LIBVER, read_table, replacing, write_table
from lib.store.names import escape_key, unescape
from lib.store.stream import Chunk, InMemory, Stream

MIN_CELLS_OF_GENE = 3  # scanpy's filter within scrublet
MIN_GENES_OF_CELL = 3
# Most components and neighbours, of a batch's cells: with more components a cell has its own, and all are called
MOST_COMPS, MOST_NEIGHBORS = 1 / 3, 1 / 2
MIN_MEAN, MAX_MEAN, MIN_DISP, N_BINS = 0.0125, 3, 0.5, 20  # scanpy's defaults of highly_variable_genes
TARGET_SUM = 1e6  # of the highly variable genes' counts
CALLED, IMPLIED = 3, 6  # times the expected rate
FEW, MOST = 0.01, 0.99  # shares of all pairs between which scikit-learn shuffles all of them
# The most non-zeros of a stream that is held in memory for repeated passes: about 0.6 GB
HELD = {"cpu": 48_000_000, "gpu": 80_000_000}
TOGETHER = {"cpu": 16_000_000, "gpu": 80_000_000}  # non-zeros of several batches that are read in one pass
HELD_CELLS = {"cpu": 4_000, "gpu": 8_000}  # cells of its chunks
# Cells and simulated doublets of a batch of which all pairs are compared: with more it takes minutes
ALL_PAIRS = {"cpu": 30_000, "gpu": knn.EXACT_MAX["gpu"]}
DENSE = {"cpu": 8_000_000, "gpu": 40_000_000}  # elements of the dense chunks for the covariance


@dataclass(frozen=True)
class Doublets:
    """The result of scrublet for one batch.

    Attributes
    ----------
    scores
        Per cell, float64; NaN for a cell with too few genes to be scored.
    simulated
        Scores of the simulated doublets.
    threshold
        Cells with a higher score are doublets; NaN if no threshold was found.
    trusted
        Whether the threshold was set, or separates doublets from cells.
    """

    scores: np.ndarray
    simulated: np.ndarray
    threshold: float
    trusted: bool = True

    @property
    def predicted(self) -> np.ndarray:
        """Whether each cell is called a doublet."""
        return self.scores > self.threshold


class Selected:
    """A stream of some of the genes of a stream."""

    def __init__(self, counts: Stream, genes: np.ndarray) -> None:
        self.counts, self.device, self.n_obs, self.n_vars = counts, counts.device, counts.n_obs, int(genes.sum())
        self.columns = np.where(genes, np.cumsum(genes) - 1, -1).astype(np.int32)

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """The stream's chunks, reduced to the chosen genes."""
        for chunk in self.counts.chunks(max_cells):
            yield Chunk(chunk.start, select_genes(chunk.X, self.columns, self.n_vars, self.device))


def held(counts: Stream, nnz: int) -> Stream:
    """The stream read into memory if its `nnz` non-zeros are few enough, else unchanged."""
    name = counts.device.name
    if nnz > HELD[name] or not counts.n_obs:
        return counts
    X = counts.device.sparse.vstack([chunk.X for chunk in counts.chunks()], format="csr")
    return InMemory(X, counts.device, max_cells=HELD_CELLS[name])


def scrublet(
    counts: Stream,
    expected_doublet_rate: float = 0.05,
    sim_doublet_ratio: float = 2.0,
    n_prin_comps: int = 30,
    n_neighbors: int | None = None,
    threshold: float | None = None,
    seed: int = 0,
    n_jobs: int = 1,
) -> Doublets:
    """Score the cells of one batch.

    Parameters
    ----------
    counts
        The batch's cells x genes.
    n_neighbors
        Neighbours per cell if there were no simulated doublets; None: round(0.5 * sqrt(cells)).
    threshold
        None: the minimum between the modes of the simulated doublets' scores.

    Raises
    ------
    UserError
        If there are fewer than three cells to score, or if fewer than three genes are highly variable.
    """
    variable, scored = highly_variable(counts)
    if variable.n_vars < 3:
        raise UserError(f"{variable.n_vars} of its genes are highly variable, too few to tell doublets by")
    totals, projected, offset = project(variable, scored, n_prin_comps)
    parents = random_pairs(len(totals), int(len(totals) * sim_doublet_ratio), seed)
    xp = counts.device.xp
    parents = xp.asarray(parents)
    cells = embed(projected, totals, offset, xp)
    simulated = embed(projected[parents].sum(1), totals[parents].sum(1), offset, xp)
    k = round(0.5 * np.sqrt(len(totals))) if n_neighbors is None else n_neighbors
    scores = neighbor_scores(cells, simulated, k, expected_doublet_rate, counts.device, seed, n_jobs)
    per_cell = np.full(counts.n_obs, np.nan)
    per_cell[scored] = scores[: len(totals)]
    of_simulated = scores[len(totals) :]
    if threshold is not None:
        return Doublets(per_cell, of_simulated, threshold)
    found = minimum_between_modes(of_simulated)
    return Doublets(per_cell, of_simulated, found, is_trusted(per_cell, of_simulated, found, expected_doublet_rate))


def is_trusted(scores: np.ndarray, simulated: np.ndarray, threshold: float, expected_doublet_rate: float) -> bool:
    """Whether a threshold that was found separates doublets from cells; see the module's docstring."""
    n_called, n_scored = int((scores > threshold).sum()), int(np.isfinite(scores).sum())
    surely = n_called - 2 * np.sqrt(n_called)
    implied = surely > IMPLIED * expected_doublet_rate * n_scored * (simulated > threshold).mean()
    return not implied and n_called <= CALLED * expected_doublet_rate * n_scored


def highly_variable(counts: Stream) -> tuple[Stream, np.ndarray]:
    """The counts of the genes with a high dispersion for their mean, and a mask of cells with enough genes to score.

    As scanpy's highly_variable_genes, flavour seurat, with its default limits, on counts normalised to the cells'
    median total, of the genes in at least 3 cells.
    """
    xp = counts.device.xp
    n_cells = xp.zeros(counts.n_vars, np.int64)
    for chunk in progress(counts.chunks(), counts.n_obs, "cells per gene"):
        n_cells += column_counts(chunk.X, counts.device)
    n_cells = counts.device.to_host(n_cells)
    genes = n_cells >= MIN_CELLS_OF_GENE
    expressed = Selected(counts, genes)
    totals, n_genes = cell_sums(expressed)
    scored = n_genes >= MIN_GENES_OF_CELL
    if (n_scored := int(scored.sum())) < MIN_CELLS_OF_GENE:
        raise UserError(f"{n_scored} of its cells have {MIN_GENES_OF_CELL} genes that others have too")
    factors = xp.where(scored, xp.median(totals[scored]) / xp.maximum(totals, 1), 0)

    sums = xp.zeros((2, expressed.n_vars))
    for chunk in progress(expressed.chunks(), counts.n_obs, "normalised sums"):
        values = chunk.X.data * factors[chunk.rows][rows_of_nonzeros(chunk.X, counts.device)]
        sums[0] += column_sums(chunk.X, values, counts.device)
        sums[1] += column_sums(chunk.X, values * values, counts.device)
    mean, variance = mean_and_variance(counts.device.to_host(sums), n_scored)
    found = normalized_dispersions(mean, variance, "seurat", N_BINS)
    norm, mean = np.nan_to_num(found["dispersions_norm"]), found["means"]
    genes[genes] = (mean > MIN_MEAN) & (mean < MAX_MEAN) & (norm > MIN_DISP)
    stage.log.info("%d cells, %d highly variable genes", n_scored, genes.sum())
    return held(Selected(counts, genes), n_cells[genes].sum()), counts.device.to_host(scored)


def cell_sums(counts: Stream) -> tuple[Any, Any]:
    """The number of counts and of genes of each cell, int64, on the stream's device."""
    parts = [(row_sums(chunk.X, counts.device), chunk.X.indptr[1:] - chunk.X.indptr[:-1]) for chunk in counts.chunks()]
    totals, n_genes = (counts.device.xp.concatenate(part) for part in zip(*parts, strict=True))
    return totals, n_genes


def project(counts: Stream, scored: np.ndarray, n_prin_comps: int) -> tuple[Any, Any, Any]:
    """Principal components of the normalised, z-scored counts, from their covariance, without building that matrix.

    With X the counts, t the cells' totals, Z = (1e6 X / t - mean) / std, and V the first eigenvectors of Z'Z,
    Z V = (1e6 / t) X (V / std) - mean (V / std).

    Parameters
    ----------
    counts
        All cells x the highly variable genes.
    scored
        Boolean mask of the cells to use.

    Returns
    -------
    totals
        Totals of these cells, int64.
    projected
        X (V / std), these cells x components, float64.
    offset
        mean (V / std).
    """
    device, xp, n = counts.device, counts.device.xp, int(scored.sum())
    k = min(n_prin_comps, n - 1, counts.n_vars - 1)
    few = n < counts.n_vars and n * counts.n_vars <= DENSE[device.name]
    mean, std, components = (_of_few_cells if few else _of_genes)(counts, scored, n, k)
    weights = components / std[:, None]
    totals, projected = [], []
    for chunk in counts.chunks():
        X = select_rows(chunk.X, scored[chunk.rows], device)
        totals.append(row_sums(X, device))
        projected.append(X @ weights)
    return xp.concatenate(totals), xp.concatenate(projected), mean @ weights


def _of_genes(counts: Stream, scored: np.ndarray, n: int, k: int) -> tuple[Any, Any, Any]:
    """Means and standard deviations of the genes, and the first k eigenvectors of their correlations; float64."""
    xp = counts.device.xp
    products, sums = xp.zeros((counts.n_vars, counts.n_vars)), xp.zeros(counts.n_vars)
    for Z, total in _normalized(counts, scored):
        sums += total
        products += Z.T @ Z
    mean = sums / n
    products -= n * xp.outer(mean, mean)
    std = varying(xp.sqrt(xp.maximum(products.diagonal(), 0) / (n - 1)), xp)
    products /= std[:, None]
    products /= std
    return mean, std, leading_eigenpairs(products, k, xp)[1]


def _of_few_cells(counts: Stream, scored: np.ndarray, n: int, k: int) -> tuple[Any, Any, Any]:
    """As `_of_genes`, from the n x n products of the cells, for fewer cells than genes."""
    xp = counts.device.xp
    parts, sums = zip(*_normalized(counts, scored), strict=True)
    Z, mean = xp.concatenate(parts), sum(sums) / n
    Z -= mean.astype(np.float32)
    std = varying(xp.sqrt((Z * Z).sum(0, dtype=np.float64) / (n - 1)), xp)
    Z /= std.astype(np.float32)
    components = Z.T @ leading_eigenpairs((Z @ Z.T).astype(np.float64), k, xp)[1]
    return mean, std, components / xp.linalg.norm(components, axis=0)


def varying(std: Any, xp: Any) -> Any:
    """Standard deviations to divide by; 1 for genes with the same share of the highly variable counts in all cells."""
    return xp.where(std > 0, std, 1)


def _normalized(counts: Stream, scored: np.ndarray) -> Iterator[tuple[Any, Any]]:
    """Counts of the scored cells as shares of their totals: dense float32 chunks, and the genes' sums in float64."""
    device, xp = counts.device, counts.device.xp
    max_cells = max(1, DENSE[device.name] // max(counts.n_vars, 1))
    for chunk in progress(counts.chunks(max_cells), counts.n_obs, "covariance"):
        X = select_rows(chunk.X, scored[chunk.rows], device)
        shares = X.data * (TARGET_SUM / xp.maximum(row_sums(X, device), 1))[rows_of_nonzeros(X, device)]
        Z = device.sparse.csr_matrix((shares.astype(np.float32), X.indices, X.indptr), X.shape)
        yield dense(Z, device), column_sums(X, shares, device)


def random_pairs(n: int, n_pairs: int, seed: int) -> np.ndarray:
    """`n_pairs` different pairs of `n` cells, n_pairs x 2: the same pairs as scanpy's.

    The numbers are those of scikit-learn's sample_without_replacement(n * n, n_pairs, random_state=seed).

    Raises
    ------
    UserError
        If `n_pairs` is the number of all pairs, or more.
    """
    random, n_all = np.random.RandomState(seed), n * n
    if n_pairs >= MOST * n_all:
        raise UserError(f"{n_pairs} doublets are too many for {n} cells. Lower `doublets: sim_doublet_ratio`.")
    if n_pairs > FEW * n_all:
        return np.column_stack(np.divmod(random.permutation(n_all)[:n_pairs], n))
    drawn = first = np.empty(0, np.int64)
    while len(first) < n_pairs:
        drawn = np.concatenate([drawn, random.randint(n_all, size=n_pairs)])
        first = np.unique(drawn, return_index=True)[1]
    return np.column_stack(np.divmod(drawn[np.sort(first)[:n_pairs]], n))


def embed(projected: Any, totals: Any, offset: Any, xp: Any) -> Any:
    """Coordinates of cells, or of sums of cells, on the principal components, float32; see `project`."""
    return (projected * (TARGET_SUM / xp.maximum(totals, 1))[:, None] - offset).astype(np.float32)


def neighbor_scores(
    cells: Any,
    simulated: Any,
    n_neighbors: int,
    expected_doublet_rate: float,
    device: devices.Device,
    seed: int = 0,
    n_jobs: int = 1,
) -> np.ndarray:
    """Scores of the cells, then of the simulated doublets, from the share of simulated doublets among the neighbours.

    As in scanpy, k = round(n_neighbors * (1 + r)), and the k - 1 nearest others are used: of more than `ALL_PAIRS`
    points those in near lists (`lib.methods.knn`).
    """
    rho, r = expected_doublet_rate, len(simulated) / len(cells)
    k = max(2, round(n_neighbors * (1 + r)))
    points = device.xp.concatenate([cells, simulated])
    n_simulated = device.xp.zeros(len(points))
    pace = Pace("neighbours", len(points), "cells and simulated doublets")
    exact = len(points) <= ALL_PAIRS[device.name]
    for rows, indices, _ in knn.blocks(points, k - 1, "euclidean", seed, n_jobs, exact, device):
        n_simulated[rows] = (indices >= len(cells)).sum(1)
        pace.step(len(indices))
    pace.end()
    q = (device.to_host(n_simulated) + 1) / (k + 2)
    return q * rho / r / (1 - rho - q * (1 - rho - rho / r))


def minimum_between_modes(scores: np.ndarray) -> float:
    """The score at the minimum of the smoothed histogram between its two modes; NaN if it does not have two."""
    from skimage.filters import threshold_minimum

    try:
        return float(threshold_minimum(scores))
    except RuntimeError:
        return np.nan


def score_batches(
    store: Counts, passed: np.ndarray, batches: np.ndarray, min_cells: int, **options: Any
) -> tuple[pd.DataFrame, dict[str, Doublets]]:
    """Run scrublet on each batch of a store.

    Parameters
    ----------
    store
        All cells x genes.
    passed
        Per cell whether it passes the thresholds; other cells are neither scored nor used to simulate doublets.
    batches
        Each cell's batch.
    min_cells
        Batches with fewer cells that pass are not scored.
    options
        Options of `scrublet`.

    Returns
    -------
    Per cell `doublet_score`, `predicted_doublet` and `trusted`, and the result of scrublet for each scored batch.
    """
    scores, predicted = np.full(len(passed), np.nan), np.zeros(len(passed), bool)
    trusted = np.ones(len(passed), bool)
    found, odd, cut = {}, [], {}
    cells = {batch: passed & (batches == batch) for batch in np.unique(batches)}
    small = [f"{batch} ({mask.sum()})" for batch, mask in cells.items() if 0 < mask.sum() < min_cells]
    cells = {batch: mask for batch, mask in cells.items() if mask.sum() >= min_cells}
    for batch, counts in streams_of_batches(store, cells):
        stage.log.info("batch %s: %d cells", batch, counts.n_obs)
        fitting = fit_to(counts.n_obs, options)
        for key in fitting:
            cut.setdefault(key, []).append(f"{fitting[key]} in {name_of(batch)} ({counts.n_obs})")
        try:
            result = scrublet(counts, **options | fitting)
        except UserError as error:
            odd.append(f"{batch} ({counts.n_obs} cells: {error})")
            continue
        mine = cells[batch]
        scores[mine], predicted[mine], trusted[mine] = result.scores, result.predicted, result.trusted
        found[name_of(batch)] = result
        report(name_of(batch), result)
    found = {name: found[name] for name in map(name_of, cells) if name in found}
    table = pd.DataFrame({"doublet_score": scores, "predicted_doublet": predicted, "trusted": trusted})
    give_notices(found, small, odd, min_cells)
    for key, said in cut.items():
        stage.notice("doublets: %s: %d is too many for batches of few cells: %s", key, options[key], shortened(said))
    return table, found


def streams_of_batches(store: Counts, cells: Mapping[Any, np.ndarray]) -> Iterator[tuple[Any, Stream]]:
    """Each batch and its counts; batches that fit into memory together are read in one pass, wherever their cells are.

    Parameters
    ----------
    store
        All cells x genes.
    cells
        Batch -> mask of its cells.
    """
    most, of_cells = TOGETHER[store.device.name], np.diff(store.indptr)
    nnz = {batch: int(of_cells[mask].sum()) for batch, mask in cells.items()}
    waiting = sorted(cells, key=lambda batch: int(np.argmax(cells[batch])))  # in the order of the file
    while waiting:
        sums = np.cumsum([nnz[batch] for batch in waiting])
        together = waiting[: max(1, int(np.searchsorted(sums, most, "right")))]
        waiting = waiting[len(together) :]
        of_any = np.logical_or.reduce([cells[batch] for batch in together])
        counts = held(Counts(store.path, store.device, of_any), sums[len(together) - 1])
        for batch in together:
            yield batch, counts if len(together) == 1 else counts.of_cells(cells[batch][of_any])


def fit_to(n_cells: int, options: Mapping[str, Any]) -> dict[str, int]:
    """The options of `scrublet` that are too large for a batch, cut."""
    most = {"n_prin_comps": MOST_COMPS, "n_neighbors": MOST_NEIGHBORS}
    cut = {key: max(1, int(share * n_cells)) for key, share in most.items()}
    return {key: value for key, value in cut.items() if (options.get(key) or 0) > value}


def give_notices(found: Mapping[str, Doublets], small: Sequence[str], odd: Sequence[str], min_cells: int) -> None:
    """Give notice of batches without doublet calls, and why: `small`, `odd`, or by scrublet's result."""
    if small:
        few = "not scored for doublets, as they have fewer cells than doublets: min_cells: %d: %s"
        stage.notice(few, min_cells, shortened(small))
    if odd:
        stage.notice("not scored for doublets: %s", shortened(odd))
    look = "look at the histograms in results/figures/samples and set doublets: threshold"
    if modeless := [batch for batch, result in found.items() if np.isnan(result.threshold)]:
        stage.notice(
            "no doublet is called in %s: the simulated scores do not have two modes; %s", shortened(modeless), look
        )
    if doubted := [
        f"{batch} ({100 * result.predicted.mean():.1f} % called at {result.threshold:.3f}, "
        f"of the simulated {100 * (result.simulated > result.threshold).mean():.0f} %)"
        for batch, result in found.items()
        if not result.trusted
    ]:
        stage.notice(
            "the doublets called in %s are not trusted, as the threshold divides single cells: they are flagged "
            "(predicted_doublet) and kept; %s",
            *(shortened(doubted), look),
        )


def report(batch: str, result: Doublets) -> None:
    """Log the doublets called in a batch."""
    if np.isnan(result.threshold):
        return
    called, detectable = result.predicted.mean(), (result.simulated > result.threshold).mean()
    stage.log.info(
        "batch %s: threshold %.3f, %d cells (%.1f %%) called, %.1f %% of the simulated doublets above it",
        batch,
        result.threshold,
        result.predicted.sum(),
        100 * called,
        100 * detectable,
    )


def write_simulated(found: Mapping[str, Doublets], path: str, expected_doublet_rate: float = 0.05) -> None:
    """Write `doublets_simulated.h5`: the simulated scores and the threshold of each batch, its name escaped.

    Attributes of a batch's scores: the threshold, whether its calls are trusted, the cells scored and called.
    """
    with replacing(path) as partial, h5py.File(partial, "w", libver=LIBVER) as file:
        group = file.create_group("scores")
        group.attrs["expected_doublet_rate"] = expected_doublet_rate
        for batch, result in found.items():
            dataset = group.create_dataset(escape_key(batch), data=result.simulated, track_times=False)
            dataset.attrs["threshold"], dataset.attrs["trusted"] = result.threshold, result.trusted
            dataset.attrs["scored"], dataset.attrs["called"] = np.isfinite(result.scores).sum(), result.predicted.sum()


def needs(job: Job) -> Need:
    """Counts of batches that are read together, components of cells and simulated doublets, the genes' covariance."""
    of_batch = job.largest_batch / max(1, job.n_obs) * job.nnz
    held = min(max(of_batch, min(job.nnz, TOGETHER[job.device])), HELD[job.device])
    points = (1 + job.config["doublets"]["sim_doublet_ratio"]) * job.largest_batch
    tables = 0.7 * KB * points + 1.0 * KB * job.n_obs
    memory = job.pass_memory(350 * MB, 20 * MB + tables + 12 * held * (not job.gpu), gpu_chunk=470 * MB)
    covariance = 8 * min(job.n_vars, 5_000) ** 2  # rarely more highly variable genes
    vram = job.claim(400 * MB, 3 * covariance + 12 * held + 2 * KB * points)
    compared = points if points <= ALL_PAIRS["cpu"] else knn.LISTS * points**0.5  # with each point
    seconds = 5 + 0.3e-6 * job.nnz + 8e-9 * compared * points * job.n_obs / max(1, job.largest_batch)
    return Need(**memory, seconds=seconds, disk=40 * points, vram=vram)


def tells(run: Finished) -> Iterator[Part]:
    """The rates of the batches, those that are far from the expected one, and thresholds in no valley."""
    options = run.config["doublets"]
    found = pd.DataFrame(
        scores_told(run), columns=["sample", "batch", "rate", "scored", "called", "threshold", "trusted"]
    )
    for path in run.files("figures_qc", "doublets"):
        yield Numbers(path, rates_told(found))
    if found.empty:
        return
    shared = found["batch"].duplicated().any()
    names = found["batch"] + (", " + found["sample"] if shared else "")
    order = natural_order(names)
    for name, row in zip(names, found.itertuples(), strict=True):
        expected, share = row.rate * row.scored, row.called / max(row.scored, 1)
        figure = run.figure("doublet scores", part=order.index(name), parts=len(order))
        where = f"Batch {row.batch}"
        limit = f"expected {percent(row.rate)}, within a factor of {CALLED}"
        if np.isnan(row.threshold):
            said = "no doublet is called, as the scores of simulated doublets have no valley between two modes"
            yield Finding(where, said, "expected two modes", 1.5, figure, "doublet rates")
        elif not row.trusted:
            said = f"{percent(share)} are called doublets at a threshold that divides single cells; they are kept"
            yield Finding(where, said, limit, max(1.5, share / (CALLED * row.rate)), figure, "doublet rates")
        elif share > CALLED * row.rate or (share < row.rate / CALLED and expected - row.called > 3 * np.sqrt(expected)):
            said = f"{percent(share)} of {count(row.scored, 'cell')} are called doublets"
            beyond = max(share / row.rate, row.rate / max(share, 1e-3)) / CALLED
            yield Finding(where, said, limit, min(beyond, 5), figure, "doublet rates")
    done = "removed" if options["remove"] else "flagged"
    rate, called, scored = options["expected_doublet_rate"], found["called"].sum(), found["scored"].sum()
    yield Methods(
        f"Doublets were scored with Scrublet in each batch (expected rate {percent(rate)}, "
        f"{options['sim_doublet_ratio']:g} simulated doublets per cell, {options['n_prin_comps']} components): "
        f"{count(called)} of {count(scored, 'cell')} were called, and {done} where the threshold separated them.",
        ["scrublet"],
    )


def scores_told(run: Finished) -> Iterator[tuple]:
    """Sample, batch, expected rate, cells scored and called, threshold, and whether it is trusted, of each batch."""
    for job in run.of("doublets"):
        with h5py.File(job.simulated, "r", locking=False) as file:
            rate = float(file["scores"].attrs["expected_doublet_rate"])
            for batch, scores in file["scores"].items():
                known = scores.attrs
                numbers = int(known["scored"]), int(known["called"]), float(known["threshold"]), bool(known["trusted"])
                yield job.wildcards["sample"], unescape(batch), rate, *numbers


def rates_told(found: pd.DataFrame) -> str:
    """A sentence on the rates of batches."""
    if found.empty:
        return "0 cells were scored for doublets."
    share = found["called"] / found["scored"].clip(lower=1)
    if len(found) == 1:
        row = found.iloc[0]
        at = "no threshold is found" if np.isnan(row["threshold"]) else f"the threshold is {row['threshold']:.3f}"
        return f"{count(row['called'])} of {count(row['scored'], 'cell')} ({percent(share.iloc[0])}) are called; {at}."
    ends = [f"{percent(share.loc[at])} ({found.loc[at, 'batch']})" for at in (share.idxmin(), share.idxmax())]
    return f"Doublets of {count(len(found), 'batch', 'batches')}: called are from {ends[0]} to {ends[1]} of the cells."


def main(snakemake: Any) -> None:
    """Score a sample's cells, write `doublets.parquet` and `doublets_simulated.h5`."""
    options = dict(snakemake.params.doublets)
    enabled, min_cells = options.pop("enabled"), options.pop("min_cells")
    options.pop("remove")  # an option of the stage `cells`
    store = Counts(snakemake.input.counts, devices.of(snakemake))
    batches = store.column(snakemake.params.batch_key)
    if enabled:
        reasons = threshold_reasons(read_table(snakemake.input.qc), snakemake.params.cells, batches)
        passed = (reasons == "").to_numpy()
    else:
        stage.log.info("doublets: enabled is false, no cell is scored")
        passed = np.zeros(store.n_obs, bool)
    table, found = score_batches(
        store, passed, batches, min_cells, seed=snakemake.params.seed, n_jobs=snakemake.threads, **options
    )
    table.index = pd.Index(store.names("obs"))
    write_table(table, snakemake.output.doublets, "sample")
    write_simulated(found, snakemake.output.simulated, options["expected_doublet_rate"])


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
