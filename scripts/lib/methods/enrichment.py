"""Scores of gene sets in profiles: cells, or groups of a marker table.

Let x be a profile of G genes, a a set's weights (0 for genes that are not in it), S the number of sets, A = [a ...],
s1 = sum x and s2 = sum x^2. One product x A of each profile gives all scores but aucell's.

- ulm: t of the slope of x ~ 1 + a; t = r sqrt((G - 2) / (1 - r^2)), r the correlation of x and a.
- mlm: t of the slopes of x ~ 1 + A. With D = [1, A], b = [s1, x A] (D'D)^-1 and sse = s2 - [s1, x A] . b,
  t = b / sqrt(sse / (G - S - 1) diag((D'D)^-1)).
- zscore: mean_a(x) sqrt(m) / sd(x) over the set's m genes, mean_a the weighted mean (RoKAI).
- waggr: the weighted mean sum(x a) / sum |a|, without a test.
- aucell: the area under the recovery curve of the set's genes among the first 5 % of the profile's genes, over the
  largest possible; genes of equal counts are in the order of a seeded permutation. Weights do not count.
- score_genes: the mean of the set's genes minus that of as abundant control genes (Satija et al. 2015, as
  scanpy.tl.score_genes). Weights do not count.
- ora: log odds ratio, with 0.5 added to each count, of the set's genes among the first 5 % of the profile's genes;
  Fisher's exact test, two-sided. The background is all genes of the profile.
- gsea: the largest deviation of the running sum over the genes by falling x, in which a gene of the set adds
  |x| / sum |x| and another one takes 1 / (G - m), over the mean of the deviations of the same sign of 1,000 random sets
  (Subramanian et al. 2005).

p-values are adjusted over the sets of a profile (Benjamini & Hochberg, 1995). Source: decoupler 2.3 (Badia-i-Mompel et
al. 2022); mlm's p-values, too, are adjusted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import qr
from scipy.sparse import csr_matrix
from scipy.special import gammaln, ndtr, stdtr

from lib.inputs.genesets import Matched, Sets, matched_in
from lib.methods.scaling import log_normalize
from lib.run import device as devices
from lib.run import stage
from lib.run.progress import progress
from lib.store.compressed import pool
from lib.store.csr import rows_of_nonzeros, sums_by_key
from lib.store.stream import Stream, halving

TOP = 0.05  # share of the genes that aucell and ora look at
TIMES, GSEA_SEED = 1000, 42  # decoupler's random sets
N_BINS, CTRL_SIZE = 25, 50  # of score_genes, scanpy's
BLOCK = 4_000_000  # scores of a chunk of cells at most, per collection
DENSE = 5_000_000  # genes x cells that aucell holds for cells with few genes
MOST = (1 << 24) - 1  # the largest count that aucell tells from others
TINY = 2.2e-16  # decoupler's guard against a division by zero


@dataclass(frozen=True)
class Weights:
    """The sets of a collection as a matrix, and what the methods need of it.

    Attributes
    ----------
    names
        The sets.
    A
        genes x sets, CSR, float64, on the device.
    n_genes
        G.
    device
        Where A lies.
    """

    names: list[str]
    A: Any
    device: devices.Device

    @classmethod
    def of(cls, matched: Matched, n_genes: int, device: devices.Device) -> Weights:
        """The matrix of a collection's sets."""
        shape = n_genes, len(matched.names)
        A = csr_matrix((matched.weights, (matched.genes, matched.columns)), shape=shape)
        return cls(matched.names, device.sparse.csr_matrix(A), device)

    @property
    def n_genes(self) -> int:
        """G."""
        return self.A.shape[0]

    def sums(self, power: Callable[[Any], Any]) -> Any:
        """Per set the sum of a function of its genes' weights."""
        return sums_by_key(self.A.indices, power(self.A.data), self.A.shape[1], self.device)


@dataclass(frozen=True)
class Products:
    """Of some profiles X: `XA` (profiles x sets), and the sums `s1` of their values and `s2` of the squares."""

    XA: Any
    s1: Any
    s2: Any

    @classmethod
    def of(cls, X: Any, weights: Weights) -> Products:
        """The products of a CSR matrix, profiles x genes, float64."""
        device, n = weights.device, X.shape[0]
        rows = rows_of_nonzeros(X, device)
        XA = X @ weights.A
        return cls(XA.toarray(), sums_by_key(rows, X.data, n, device), sums_by_key(rows, X.data**2, n, device))


def ulm(found: Products, weights: Weights) -> Any:
    """t of each set alone, profiles x sets; G - 2 degrees of freedom. 0 in profiles that do not vary."""
    xp, G = weights.device.xp, weights.n_genes
    total = weights.sums(lambda a: a)
    sd_A = xp.sqrt((weights.sums(lambda a: a**2) - total**2 / G) / (G - 1))
    sd_x = xp.sqrt(xp.maximum(found.s2 - found.s1**2 / G, 0) / (G - 1))
    r = (found.XA - found.s1[:, None] * (total / G)) / (G - 1)
    varies = (sd_x[:, None] * sd_A) > 0
    r = xp.where(varies, r / xp.where(varies, sd_x[:, None] * sd_A, 1), 0)
    return r * xp.sqrt((G - 2) / ((1 - r + TINY) * (1 + r + TINY)))


def mlm(found: Products, weights: Weights) -> Any:
    """t of all sets together, profiles x sets; G - S - 1 degrees of freedom. The sets must be `independent`."""
    xp, G, S = weights.device.xp, *weights.A.shape
    total = weights.device.to_host(weights.sums(lambda a: a))
    DD = np.empty((S + 1, S + 1))
    DD[0, 0], DD[0, 1:], DD[1:, 0] = G, total, total
    DD[1:, 1:] = weights.device.to_host((weights.A.T.tocsr() @ weights.A).toarray())
    inverse = np.linalg.inv(DD)
    b = xp.concatenate([found.s1[:, None], found.XA], 1)
    B = b @ xp.asarray(inverse)
    sse = xp.maximum(found.s2 - (b * B).sum(1), 0)
    error = xp.sqrt(sse[:, None] / (G - S - 1) * xp.asarray(np.diag(inverse)))
    return xp.where(error > 0, B / xp.where(error > 0, error, 1), 0)[:, 1:]


def zscore(found: Products, weights: Weights) -> Any:
    """z of each set, profiles x sets; 0 in profiles that do not vary."""
    xp, G = weights.device.xp, weights.n_genes
    sd = xp.sqrt(xp.maximum(found.s2 - found.s1**2 / G, 0) / (G - 1))[:, None]
    n = weights.sums(lambda a: (a != 0).astype(np.float64))
    return xp.where(sd > 0, waggr(found, weights) * xp.sqrt(n) / xp.where(sd > 0, sd, 1), 0)


def waggr(found: Products, weights: Weights) -> Any:
    """The weighted mean of each set, profiles x sets."""
    return found.XA / weights.sums(abs)


LINEAR: dict[str, Callable[[Products, Weights], Any]] = {"ulm": ulm, "mlm": mlm, "zscore": zscore, "waggr": waggr}


def pvals_of(method: str, scores: np.ndarray, n_genes: int) -> np.ndarray | None:
    """The p-values of a method's scores, profiles x sets; None if it has no test."""
    if method not in ("ulm", "mlm", "zscore"):
        return None
    down = -np.abs(scores)
    if method == "zscore":
        return 2 * ndtr(down)
    return 2 * stdtr(n_genes - (2 if method == "ulm" else scores.shape[1] + 1), down)


def adjusted(pvals: np.ndarray) -> np.ndarray:
    """The p-values of each row, adjusted for their number."""
    n = pvals.shape[1]
    order = np.argsort(pvals, axis=1)
    rising = np.take_along_axis(pvals, order, 1) * (n / np.arange(1, n + 1))
    bounds = np.minimum.accumulate(rising[:, ::-1], 1)[:, ::-1]
    out = np.empty_like(pvals)
    np.put_along_axis(out, order, np.minimum(bounds, 1), 1)
    return out


def independent(matched: Matched, n_genes: int) -> np.ndarray:
    """Mask of the sets that are no linear combination of a constant and sets before them, which mlm cannot fit."""
    S = len(matched.names)
    used, rows = np.unique(matched.genes, return_inverse=True)
    # Genes in no set are one kind of row: its number is all that counts
    D = np.zeros((len(used) + 1, S + 1))
    D[rows, matched.columns + 1] = matched.weights
    D[:, 0] = 1
    D[-1] *= np.sqrt(max(0, n_genes - len(used)))
    R = np.abs(np.diag(qr(D, mode="r", check_finite=False)[0][: S + 1]))
    R = np.pad(R, (0, S + 1 - len(R)))
    return (R / np.sqrt(np.maximum((D**2).sum(0), 1e-300)) > 1e-8)[1:]


# aucell


def aucell(X: Any, weights: Weights, order: np.ndarray) -> Any:
    """The area under the recovery curve, cells x sets.

    Parameters
    ----------
    X
        cells x genes, CSR; only the order of a cell's values counts.
    weights
        The sets.
    order
        A permutation of the genes: those of equal values are in this order.
    """
    xp, device, G = weights.device.xp, weights.device, X.shape[1]
    n_up = n_top(G)
    M = device.sparse.csr_matrix((xp.ones_like(weights.A.data), weights.A.indices, weights.A.indptr), weights.A.shape)
    place = xp.asarray(np.argsort(order))
    rows = rows_of_nonzeros(X, device)
    # Cell, falling value, place in the permutation: one integer sorts them all
    keys = rows.astype(np.uint64) << np.uint64(44)
    keys |= (np.uint64(MOST) - xp.minimum(X.data.astype(np.uint64), np.uint64(MOST))) << np.uint64(20)
    keys |= place[X.indices].astype(np.uint64)
    keys.sort()
    rank = xp.arange(1, X.nnz + 1) - X.indptr[:-1].astype(np.int64)[rows]
    genes = xp.asarray(order)[(keys & np.uint64((1 << 20) - 1)).astype(np.int64)]
    heights = xp.maximum(n_up - rank, 0).astype(np.float64)
    areas = (device.sparse.csr_matrix((heights, genes.astype(np.int32), X.indptr), X.shape) @ M).toarray()
    few = device.to_host(xp.flatnonzero(xp.diff(X.indptr) < n_up - 1))
    M_T, step = M[xp.asarray(order)].T.tocsr(), max(1, DENSE // G)
    for first in range(0, len(few), step):
        some = xp.asarray(few[first : first + step])
        areas[some] += (M_T @ heights_of_zeros(X[some], place, n_up, device).T).T
    size = device.to_host(weights.sums(xp.ones_like)).astype(np.int64)
    reached = np.minimum(size, n_up - 1)
    return areas / xp.asarray(reached * n_up - reached * (reached + 1) / 2)


def heights_of_zeros(X: Any, place: Any, n_up: int, device: devices.Device) -> Any:
    """n_up - rank of the genes that a cell lacks, which follow those it has; cells x genes in permuted order."""
    xp = device.xp
    absent = xp.ones(X.shape, bool)
    absent[rows_of_nonzeros(X, device), place[X.indices]] = False
    rank = xp.cumsum(absent, 1, dtype=np.int32) + xp.diff(X.indptr)[:, None]
    return xp.where(absent, xp.maximum(n_up - rank, 0), 0).astype(np.float64)


def n_top(n_genes: int) -> int:
    """The number of first genes that aucell and ora look at."""
    return int(np.clip(np.ceil(TOP * n_genes), 2, n_genes))


# score_genes


@halving
def gene_means(counts: Stream, totals: np.ndarray, target_sum: float) -> np.ndarray:
    """The mean of each gene's log-normalised values, rounded to 10 digits: equal ones stay equal on any device."""
    xp, device = counts.device.xp, counts.device
    sums = xp.zeros(counts.n_vars)
    for chunk in progress(counts.chunks(), counts.n_obs, "means of genes"):
        X = log_normalize(chunk.X, totals[chunk.rows], target_sum, device, np.float64)
        sums += sums_by_key(X.indices, X.data, counts.n_vars, device)
    mantissa, exponent = np.frexp(device.to_host(sums) / max(1, counts.n_obs))
    return np.ldexp(np.round(mantissa * 2.0**33), exponent - 33)


def control_genes(means: np.ndarray, genes: np.ndarray, seed: int, ctrl_size: int = CTRL_SIZE) -> np.ndarray:
    """The positions of the control genes of a set, drawn as scanpy.tl.score_genes does.

    Parameters
    ----------
    means
        See `gene_means`.
    genes
        The positions of the set's genes.
    seed, ctrl_size
        Seed, and genes drawn from each bin of means.
    """
    n_items = max(1, int(np.round(len(means) / (N_BINS - 1))))
    bins = pd.Series(means).rank(method="min").to_numpy() // n_items
    rng, found = np.random.RandomState(seed), []
    for number in np.unique(bins[genes]):
        pool_of_bin = np.flatnonzero(bins == number)
        if ctrl_size < len(pool_of_bin):
            pool_of_bin = pool_of_bin[rng.choice(len(pool_of_bin), ctrl_size, replace=False)]
        found.append(pool_of_bin)
    return np.setdiff1d(np.concatenate(found), genes)


def contrasts(matched: Matched, means: np.ndarray, seed: int, ctrl_size: int = CTRL_SIZE) -> tuple[Matched, list[str]]:
    """Weights whose sum over a profile is score_genes: 1 / m of the set's genes, -1 / c of its c control genes.

    Returns
    -------
    The weights, and the names of the sets that have no control genes, whose weights are 0.
    """
    parts, lacking = [], []
    for column, name in enumerate(matched.names):
        genes = np.unique(matched.genes[matched.columns == column])
        controls = control_genes(means, genes, seed, ctrl_size)
        if not len(controls):
            lacking.append(name)
            continue
        parts += [(genes, column, 1 / len(genes)), (controls, column, -1 / len(controls))]
    genes = np.concatenate([genes for genes, _, _ in parts]) if parts else np.zeros(0, np.int64)
    columns, weights = (
        np.concatenate([np.full(len(part[0]), part[i], dtype) for part in parts]) if parts else np.zeros(0, dtype)
        for i, dtype in ((1, np.int64), (2, np.float64))
    )
    return Matched(matched.names, genes, columns, weights, matched.n_found, matched.n_genes), lacking


# Of cells


@dataclass(frozen=True)
class Task:
    """A method on a collection: `weights`, and for aucell the `order` of equal genes."""

    collection: str
    method: str
    weights: Weights
    order: np.ndarray | None = None

    def scores(self, X: Any, products: Callable[[Weights], Products]) -> Any:
        """The scores of some cells, cells x sets, on the device."""
        if self.order is not None:
            return aucell(X, self.weights, self.order)
        found = products(self.weights)
        return found.XA if self.method == "score_genes" else LINEAR[self.method](found, self.weights)


def tasks_of(
    given: Mapping[str, Sets],
    genes: pd.DataFrame,
    counts: Stream,
    totals: np.ndarray,
    target_sum: float,
    options: Mapping[str, Any],
    seed: int,
) -> list[Task]:
    """Every method on every collection, collection by collection; what is left out is told.

    Parameters
    ----------
    given
        See `read_collections`.
    genes
        The table of the stream's genes.
    counts, totals, target_sum
        See `score_cells`.
    options
        `methods`, and `tmin`, the fewest genes of a set.
    seed
        Of random orders and control genes.
    """
    found, lost = matched_in(given, genes, options["tmin"])
    if lost:
        stage.notice("sets with fewer than %d genes in the cohort are left out: %s", options["tmin"], "; ".join(lost))
    device, n_vars, tasks = counts.device, counts.n_vars, []
    means = gene_means(counts, totals, target_sum) if "score_genes" in options["methods"] else None
    for name, matched in found.items():
        weights = Weights.of(matched, n_vars, device)
        stage.log.info("%s: %d sets, %d genes", name, len(matched.names), len(np.unique(matched.genes)))
        for method in options["methods"]:
            mine, order = weights, None
            if method == "mlm":
                keep = independent(matched, n_vars)
                if not keep.all():
                    dependent = [of for of, kept in zip(matched.names, keep, strict=True) if not kept]
                    stage.notice("mlm of %s leaves out sets that follow from others: %s", name, ", ".join(dependent))
                    mine = Weights.of(matched.of(keep), n_vars, device)
            elif method == "aucell":
                order = np.random.default_rng(seed).permutation(n_vars)
            elif method == "score_genes":
                contrast, lacking = contrasts(matched, means, seed)
                if lacking:
                    stage.notice("score_genes of %s: no control genes for %s: 0", name, ", ".join(lacking))
                mine = Weights.of(contrast, n_vars, device)
            tasks.append(Task(name, method, mine, order))
    return tasks


@halving
def score_cells(
    counts: Stream, totals: np.ndarray, target_sum: float, tasks: Sequence[Task]
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """The scores of all cells by each task, in one pass, and the adjusted p-values of methods with a test; float32.

    Parameters
    ----------
    counts
        cells x genes.
    totals, target_sum
        See `log_normalize`.
    tasks
        Methods on collections.
    """
    device, found = counts.device, [([], []) for _ in tasks]
    most = max(1, min(1 << 20, BLOCK // max((len(task.weights.names) for task in tasks), default=1)))
    for chunk in progress(counts.chunks(most), counts.n_obs, "scores"):
        X = log_normalize(chunk.X, totals[chunk.rows], target_sum, device, np.float64)
        known: dict[int, Products] = {}

        def products(weights: Weights, X: Any = X, known: dict[int, Products] = known) -> Products:
            if id(weights) not in known:
                known[id(weights)] = Products.of(X, weights)
            return known[id(weights)]

        for task, (scores, pvals) in zip(tasks, found, strict=True):
            values = device.to_host(task.scores(chunk.X, products))
            scores.append(values.astype(np.float32))
            parts = list(pool().map(lambda part, task=task: tested(task, part), row_parts(values)))
            if parts and parts[0] is not None:
                pvals.append(np.concatenate(parts))
    return [
        (np.concatenate(scores), np.concatenate(pvals) if pvals else None) if scores else (empty(task), None)
        for task, (scores, pvals) in zip(tasks, found, strict=True)
    ]


def empty(task: Task) -> np.ndarray:
    """The scores of no cells."""
    return np.zeros((0, len(task.weights.names)), np.float32)


def row_parts(values: np.ndarray, n: int = 512) -> Iterator[np.ndarray]:
    """The rows in parts, for threads."""
    for first in range(0, len(values), n):
        yield values[first : first + n]


def tested(task: Task, scores: np.ndarray) -> np.ndarray | None:
    """The adjusted p-values of some cells, float32; None if the method has no test."""
    pvals = pvals_of(task.method, scores, task.weights.n_genes)
    return None if pvals is None else adjusted(pvals).astype(np.float32)


# Of marker tables


def places_of_sets(matched: Matched, ranking: np.ndarray) -> list[np.ndarray]:
    """Per set the sorted positions of its genes in a ranking; `ranking` has the genes by falling score."""
    place = np.argsort(ranking)
    return [np.sort(np.unique(place[matched.genes[matched.columns == i]])) for i in range(len(matched.names))]


def ora(scores: np.ndarray, sets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Log odds ratio and p-value of each set; `scores` of the genes are falling, `sets` their positions."""
    G, n_up = len(scores), n_top(len(scores))
    a = np.array([np.searchsorted(places, n_up) for places in sets])
    size = np.array([len(places) for places in sets])
    b, c, d = size - a, n_up - a, G - size - n_up + a
    odds = np.log((a + 0.5) * (d + 0.5) / ((b + 0.5) * (c + 0.5)))
    return odds, np.array([fisher(int(k), int(m), n_up, G) for k, m in zip(a, size, strict=True)])


def fisher(k: int, m: int, n: int, total: int) -> float:
    """Fisher's exact test, two-sided: k of m marked genes among n drawn from `total`."""
    x = np.arange(max(0, m + n - total), min(m, n) + 1)

    def log_choose(top: Any, below: Any) -> Any:
        return gammaln(top + 1) - gammaln(below + 1) - gammaln(top - below + 1)

    log_p = log_choose(m, x) + log_choose(total - m, n - x) - log_choose(total, n)
    mine = log_p[k - x[0]]
    return float(min(1, np.exp(log_p[log_p <= mine + 1e-7]).sum()))


def permutations(n_genes: int, times: int = TIMES, seed: int = GSEA_SEED) -> np.ndarray:
    """The places to which random permutations move each gene, times x genes, int32."""
    rng, found = np.random.default_rng(seed), np.empty((times, n_genes), np.int32)
    for row in found:
        shuffled = np.arange(n_genes)
        rng.shuffle(shuffled)
        row[shuffled] = np.arange(n_genes)
    return found


def gsea(scores: np.ndarray, sets: Sequence[np.ndarray], moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalised enrichment score and p-value of each set; `scores` are falling, `moved` are `permutations`."""

    def of_set(places: np.ndarray) -> tuple[float, float]:
        real = float(deviations(np.abs(scores), places[None])[0])
        null = deviations(np.abs(scores), np.sort(moved[:, places], 1))
        alike = null[null >= 0] if real >= 0 else null[null < 0]
        if not len(alike):
            return 0.0, 1.0
        beyond = (alike >= real).sum() if real >= 0 else (alike <= real).sum()
        return real / abs(alike.mean()), (beyond + 1) / (len(alike) + 1)

    found = np.array(list(pool().map(of_set, sets))).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def deviations(heights: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The largest deviation of the running sum for each row of sorted `places`; 0 where all heights are 0."""
    n, m = len(heights), places.shape[1]
    up = np.cumsum(heights[places], 1)
    total = up[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        up /= total
    down = (places - np.arange(m)) / max(1, n - m)
    highest = np.maximum((up - down).max(1), 0)
    before = np.concatenate([np.zeros((len(up), 1)), up[:, :-1]], 1)
    lowest = np.minimum((before - down).min(1), 0)
    return np.where(total[:, 0] > 0, np.where(highest > -lowest, highest, lowest), 0)


def of_table(method: str, table: pd.DataFrame, genes: pd.Index, matched: Matched, moved: Any) -> Mapping[str, Any]:
    """A method on each group of a marker table.

    Parameters
    ----------
    method
        ora or gsea.
    table
        `group`, `rank`, `names`, `scores`, sorted by group and rank.
    genes
        The names of the genes that `matched` numbers.
    matched
        The sets of a collection.
    moved
        `permutations`, for gsea.

    Returns
    -------
    `group`, `source`, `score`, `pval`, `padj`, `n_found`, and the set's first `genes` in the ranking.
    """
    rows = []
    for group, ranked in table.groupby("group", sort=False):
        names, scores = ranked["names"].to_numpy(), ranked["scores"].to_numpy(np.float64)
        sets = places_of_sets(matched, genes.get_indexer(names))
        es, pvals = ora(scores, sets) if method == "ora" else gsea(scores, sets, moved)
        padj = adjusted(pvals[None])[0]
        for i, name in enumerate(matched.names):
            first = ", ".join(names[sets[i][sets[i] < n_top(len(names))]][:10])
            rows.append((group, name, es[i], pvals[i], padj[i], len(sets[i]), first))
    return pd.DataFrame(rows, columns=["group", "source", "score", "pval", "padj", "n_found", "genes"])
