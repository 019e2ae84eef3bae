"""What the flavours share: the batches, the sums over the cells of each batch, the ranks of the genes.

A flavour is a module that has what `Flavor` lists. Its statistics follow from sums over cells of functions of the
counts. A pass adds these up over chunks (`accumulate`), the sums of shards of cells add up, and `statistics` reduces
the sums, batches x genes, on the host. Where a function is not zero at a count of zero, its value there depends on the
cell's depth alone: it is summed over the batch's distinct depths (`sum_over_depths`) and corrected at the non-zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd

from lib.run import device as devices
from lib.run.errors import UserError
from lib.run.progress import progress
from lib.store.csr import row_sums, rows_of_nonzeros, sums_by_key
from lib.store.shards import Arrays
from lib.store.stream import Chunk, Stream, halving

PIECE = 1 << 20  # non-zeros that a CPU works on at a time: they fit its cache
OUTER = 1 << 22  # gene sums x depths evaluated at a time


@dataclass(frozen=True)
class Batches:
    """The batch of each cell of a stream.

    Attributes
    ----------
    codes
        Per cell its batch, from 0.
    names
        The batches' names, for messages.
    whole
        The codes of all cells, where the stream is a shard of them.
    """

    codes: np.ndarray
    names: Sequence[str]
    whole: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """Cells of each batch, over all cells."""
        codes = self.codes if self.whole is None else self.whole
        return np.bincount(codes[codes >= 0], minlength=len(self.names))

    def only(self, chosen: np.ndarray) -> Batches:
        """The batches that a mask chooses; cells of others are in no batch, code -1."""
        places = np.where(chosen, np.cumsum(chosen) - 1, -1)
        return Batches(places[self.codes], [name for name, one in zip(self.names, chosen, strict=True) if one])

    def of_shard(self, rows: slice) -> Batches:
        """The batches of a shard's cells."""
        return replace(self, codes=self.codes[rows], whole=self.codes)


@dataclass(frozen=True)
class Cells:
    """What the passes read: the counts, and the cells' batches.

    Attributes
    ----------
    counts
        cells x genes: all cells, or a shard of them.
    batches
        Of these cells.
    hvg
        The config's section `hvg`.
    target_sum
        Of the normalisation (seurat, cell_ranger); None: the median of the cells' totals.
    """

    counts: Stream
    batches: Batches
    hvg: Mapping[str, Any]
    target_sum: float | None


Pass: TypeAlias = Callable[[Cells, Sequence[Arrays]], Arrays]


class Flavor(Protocol):
    """What each flavour's module has."""

    def passes(self, target_sum: float | None) -> Sequence[Pass]:
        """The passes over the counts, in order: functions from the cells, and the earlier passes' sums over all cells,
        to sums. `lib.inputs.config.hvg_passes` knows their number."""

    def statistics(
        self,
        known: Sequence[Arrays],
        batches: Batches,
        hvg: Mapping[str, Any],
        eligible: np.ndarray,
        device: devices.Device,
        seed: int,
    ) -> Arrays:
        """The genes' statistics in each batch.

        Parameters
        ----------
        known
            The sums of all passes over all cells.
        hvg
            The config's section `hvg`.
        eligible
            Mask of the genes that may be selected.
        device
            Where residuals and zeros are summed over the depths.
        seed
            Of the draws (poisson_gene_selection).

        Returns
        -------
        `ranked`, a mask of the batches that can rank genes; the statistics in these, which `order` takes; of
        seurat_v3* also `fits`, columns of the table of the batches.

        Raises
        ------
        UserError
            If no batch can rank genes.
        """

    def order(
        self, statistics: Arrays, hvg: Mapping[str, Any], eligible: np.ndarray
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """The table of the genes, and the positions of the eligible ones, the best first (without n_top_genes: of those
        within the cut-offs)."""


@dataclass(frozen=True)
class Nonzeros:
    """Non-zeros of a stream, on its device: the count (float64), the position of its cell, and batch * genes + gene."""

    x: Any
    cell: Any
    key: Any


class Tallied:
    """A stream that notes in `totals` (int64, on its device) the counts of each cell that it gives."""

    def __init__(self, counts: Stream) -> None:
        self.counts = counts
        self.device, self.n_obs, self.n_vars = counts.device, counts.n_obs, counts.n_vars
        self.totals = counts.device.xp.zeros(counts.n_obs, np.int64)

    def chunks(self, max_cells: int | None = None) -> Iterator[Chunk]:
        """The chunks of the stream; the cells of each are tallied before it comes."""
        for chunk in self.counts.chunks(max_cells):
            self.totals[chunk.rows] = row_sums(chunk.X, self.device)
            yield chunk


@halving
def accumulate(counts: Stream, batches: Batches, terms: Callable[[Nonzeros], tuple[Any, Any]], what: str) -> np.ndarray:
    """Sums over the cells of each batch of functions of the non-zeros.

    Parameters
    ----------
    counts
        cells x genes.
    terms
        Maps non-zeros to the keys of those that count and to two arrays with one value for each of them.
    what
        The pass's name in the log.

    Returns
    -------
    2 x batches x genes, float64: exact where the terms are integers below 2^53.
    """
    xp, n_vars = counts.device.xp, counts.n_vars
    sums = xp.zeros((2, len(batches.names), n_vars))
    for chunk in progress(counts.chunks(), counts.n_obs, what):
        codes = batches.codes[chunk.rows]
        first, last = int(codes.min()), int(codes.max()) + 1
        for nonzeros in _pieces(chunk, codes, n_vars, counts.device):
            key, both = terms(nonzeros)
            for total, values in zip(sums, both, strict=True):
                added = sums_by_key(key - first * n_vars, values, (last - first) * n_vars, counts.device)
                total[first:last] += added.reshape(last - first, n_vars)
    return counts.device.to_host(sums)


def _pieces(chunk: Chunk, codes: np.ndarray, n_vars: int, device: devices.Device) -> Iterator[Nonzeros]:
    rows = rows_of_nonzeros(chunk.X, device)
    offsets = device.xp.asarray(codes.astype(np.int64) * n_vars)
    one_batch = bool((codes == codes[0]).all())
    step = chunk.X.nnz if device.is_gpu else PIECE
    for start in range(0, chunk.X.nnz, max(step, 1)):
        piece = slice(start, start + step)
        x = chunk.X.data[piece].astype(np.float64)
        offset = int(offsets[0]) if one_batch else offsets[rows[piece]]
        yield Nonzeros(x, rows[piece] + chunk.start, chunk.X.indices[piece].astype(np.int64) + offset)


def mean_and_variance(sums: np.ndarray, n: Any) -> tuple[Any, Any]:
    """Mean and variance (divisor n - 1) from the sums of the values and of their squares, over `n` cells."""
    total, squared = sums
    return total / n, (squared - total * total / n) / (n - 1)


def count_sums(counts: Stream, batches: Batches) -> np.ndarray:
    """Sums of the counts and of their squares: 2 x batches x genes, float64, exact."""
    return accumulate(counts, batches, lambda nonzeros: (nonzeros.key, (nonzeros.x, nonzeros.x * nonzeros.x)), "sums")


def tallied_sums(cells: Cells, sums_of: Callable[[Stream, Batches], np.ndarray]) -> Arrays:
    """`sums`, by `sums_of`, and `totals`, the counts of each cell, in one pass."""
    tallied = Tallied(cells.counts)
    return {"sums": sums_of(tallied, cells.batches), "totals": cells.counts.device.to_host(tallied.totals)}


def sum_over_depths(
    function: Callable[[Any], Any], sums: np.ndarray, depths: np.ndarray, device: devices.Device
) -> np.ndarray:
    """For each gene the sum over cells of function((gene's sum) * (cell's depth) / (sum of the depths)).

    It is evaluated once for each pair of a distinct gene sum and a distinct depth, `OUTER` pairs at a time.
    """
    xp = device.xp
    sums, which = xp.unique(xp.asarray(sums), return_inverse=True)
    depths = xp.asarray(depths)
    total = float(depths.sum())
    depths, cells = xp.unique(depths, return_counts=True)
    cells = cells.astype(np.float64)
    step = max(1, OUTER // len(depths))
    parts = [
        function(sums[start : start + step, None] * (depths / total)) @ cells for start in range(0, len(sums), step)
    ]
    return device.to_host(xp.concatenate(parts)[which])


def differing(sums: np.ndarray, batches: Batches, eligible: np.ndarray) -> np.ndarray:
    """Whether in each batch two cells differ in eligible genes: a mask of the batches.

    Parameters
    ----------
    sums
        Of the cells' values and of their squares: 2 x batches x genes.

    Raises
    ------
    UserError
        If they differ in no batch.
    """
    first, second = sums[:, :, eligible]
    n = batches.sizes[:, None]
    _, variance = mean_and_variance((first, second), np.maximum(n, 2))
    return some_ranked((batches.sizes > 1) & (variance > 1e-12 * second / np.maximum(n, 1)).any(1))  # less is rounding


def some_ranked(ranked: np.ndarray) -> np.ndarray:
    """The mask of the batches that can rank genes, refused if there are none."""
    if not ranked.any():
        raise UserError("no gene can be called highly variable, for in no batch do two cells differ.")
    return ranked


def variance_table(statistics: Arrays, column: str, n_top: int, eligible: np.ndarray) -> pd.DataFrame:
    """The genes' table by a variance in each batch: seurat_v3, seurat_v3_paper and pearson_residuals.

    `highly_variable_nbatches` is the number of batches in which a gene is among the first, and `highly_variable_rank`
    its median rank in these, NaN where there are none.

    Parameters
    ----------
    statistics
        `means` and `variances` of the counts over all cells, and `scores`, batches x genes.
    column
        Name of the scores' mean over the batches.
    n_top
        How many genes of a batch are its first.
    """
    scores = statistics["scores"]
    ranks = ranks_within(scores, eligible)
    top = ranks < n_top
    return pd.DataFrame(
        {
            "highly_variable_rank": np.ma.median(np.ma.masked_array(ranks, ~top), axis=0).filled(np.nan),
            "means": statistics["means"],
            "variances": statistics["variances"],
            column: scores.mean(0),
            "highly_variable_nbatches": top.sum(0),
        }
    )


def ranks_within(scores: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """Rank of each gene in each batch, 0 for the highest score; genes not eligible come last."""
    falling = np.where(eligible, -scores, np.inf)
    return falling.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")


def sorted_genes(keys: Sequence[np.ndarray], eligible: np.ndarray) -> np.ndarray:
    """Positions of the eligible genes by rising keys, the last key first; NaN after all numbers."""
    keys = [np.where(np.isnan(key), np.inf, key) for key in keys]
    order = np.lexsort(keys)
    return order[eligible[order]]
