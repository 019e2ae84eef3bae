"""Pseudobulks: the counts of each sample's cells of a group, summed; and their means and variances.

A profile is a sample's cells of one group. Source: decoupler's `pp.pseudobulk`, scanpy's `get.aggregate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from lib.methods.scaling import log_normalize
from lib.run.errors import UserError
from lib.run.progress import progress
from lib.run.stage import log
from lib.store.categories import as_categories
from lib.store.csr import counts_by_key, rows_of_nonzeros, sums_by_key
from lib.store.files import read_table
from lib.store.h5ad import read_frame
from lib.store.stream import Stream, halving

BLOCK = 60_000_000  # profiles x genes of a chunk at most
MIN_COUNT, MIN_TOTAL, LARGE, MIN_PROP = 10, 15, 10, 0.7  # edgeR's
ROWS = 64  # profiles whose layers are computed at once
LAYERS = ("pct_nz", "mean", "var")


@dataclass(frozen=True)
class Profiles:
    """The profiles of a cohort.

    Attributes
    ----------
    obs
        A line for each profile that has cells, sample by sample: `sample` and `group`, categories; `n_cells`.
    codes
        Per cell its profile; -1: none.
    """

    obs: pd.DataFrame
    codes: np.ndarray

    @classmethod
    def of(cls, samples: pd.Series, groups: pd.Series) -> Profiles:
        """The profiles of cells with these samples and groups; cells without either are left out."""
        samples, groups = as_categories(samples), as_categories(groups)
        of_sample, of_group = samples.cat.codes.to_numpy(np.int64), groups.cat.codes.to_numpy(np.int64)
        mine = (of_sample >= 0) & (of_group >= 0)
        if not mine.all():
            log.info("%d of %d cells without a sample or a group are left out", (~mine).sum(), len(mine))
        keys = of_sample * len(groups.cat.categories) + of_group
        found, codes, sizes = np.unique(keys[mine], return_inverse=True, return_counts=True)
        every = np.full(len(mine), -1, np.int64)
        every[mine] = codes
        row, column = np.divmod(found, max(1, len(groups.cat.categories)))
        table = {
            "sample": pd.Categorical.from_codes(row, samples.cat.categories),
            "group": pd.Categorical.from_codes(column, groups.cat.categories),
            "n_cells": sizes.astype(np.int64),
        }
        names = [f"{sample}_{group}" for sample, group in zip(table["sample"], table["group"], strict=True)]
        return cls(pd.DataFrame(table, pd.Index(unique(names), dtype=object)), every)


def unique(names: Sequence[str]) -> list[str]:
    """The names, each that came before with a number at its end."""
    found: dict[str, None] = {}
    for name in names:
        free, i = name, 0
        while free in found:
            free, i = f"{name}-{i + 1}", i + 1
        found[free] = None
    return list(found)


def read_profiles(obs: str | Path, grouping: Sequence[str | Path], name: str, sample_key: str) -> Profiles:
    """The profiles of a grouping: a clustering's table, or a column of `obs.parquet` if that list is empty."""
    groups = read_table(grouping[0] if grouping else obs, [name], named=False)[name]
    return Profiles.of(read_table(obs, [sample_key], named=False)[sample_key], groups)


@halving
def profile_sums(
    counts: Stream, codes: np.ndarray, n_profiles: int, totals: np.ndarray, target_sum: float
) -> dict[str, np.ndarray]:
    """The sums over the cells of each profile, in one pass over the counts.

    Only the profiles that a chunk has are on the device, so that its memory does not grow with the samples.

    Parameters
    ----------
    counts
        cells x genes.
    codes
        Per cell its profile, -1: in none.
    n_profiles
        Number of profiles.
    totals, target_sum
        See `log_normalize`.

    Returns
    -------
    profiles x genes: `sums` of the counts (int64, exact), `cells` that express the gene (int32), `logs` and `squares`,
    the sums of the log-normalised values and of their squares (float64).
    """
    device, n_vars = counts.device, counts.n_vars
    xp, shape = device.xp, (n_profiles, n_vars)
    found = {"sums": np.zeros(shape, np.int64), "cells": np.zeros(shape, np.int32)}
    found |= {"logs": np.zeros(shape), "squares": np.zeros(shape)}
    most = None if n_profiles * n_vars <= BLOCK else max(1, BLOCK // n_vars)
    for chunk in progress(counts.chunks(most), counts.n_obs, "pseudobulks"):
        mine = codes[chunk.rows]
        here = np.unique(mine[mine >= 0])
        places = np.where(mine >= 0, np.searchsorted(here, mine), len(here))  # cells of no profile: an extra row
        size = (len(here) + 1) * n_vars
        keys = xp.asarray(places * n_vars)[rows_of_nonzeros(chunk.X, device)] + chunk.X.indices
        logs = log_normalize(chunk.X, totals[chunk.rows], target_sum, device, np.float64).data
        parts = {
            "sums": sums_by_key(keys, chunk.X.data, size, device),
            "cells": counts_by_key(keys, size, device),
            "logs": sums_by_key(keys, logs, size, device),
            "squares": sums_by_key(keys, logs**2, size, device),
        }
        for name, part in parts.items():
            of_chunk = device.to_host(part).reshape(-1, n_vars)[:-1]
            found[name][here] += of_chunk.astype(found[name].dtype, copy=False)
    return found


def layers_of(found: dict[str, np.ndarray], n_cells: np.ndarray) -> dict[str, np.ndarray]:
    """`pct_nz`, the share of cells that express a gene, `mean` and `var` (divisor n - 1) of the log-normalised values.

    Each profiles x genes, float32; the variance of one cell is 0.
    """
    layers = {name: np.empty(found["logs"].shape, np.float32) for name in LAYERS}
    for first in range(0, len(n_cells), ROWS):
        rows = slice(first, first + ROWS)
        n = n_cells[rows, None].astype(np.float64)
        squares, mean = found["squares"][rows], found["logs"][rows] / n
        var = (squares - found["logs"][rows] * mean) / np.maximum(n - 1, 1)
        layers["pct_nz"][rows], layers["mean"][rows] = found["cells"][rows] / n, mean
        layers["var"][rows] = np.where(var > 1e-14 * squares, var, 0)  # below the rounding error it is zero
    return layers


@dataclass(frozen=True)
class Pseudobulk:
    """A file of pseudobulks, of which some rows are read at a time.

    Attributes
    ----------
    path
        `pseudobulk/{grouping}.h5ad`.
    obs, var
        Its tables.
    """

    path: str | Path
    obs: pd.DataFrame
    var: pd.DataFrame

    @classmethod
    def open(cls, path: str | Path) -> Pseudobulk:
        """Read the tables of a file."""
        with h5py.File(path, "r", locking=False) as file:
            return cls(path, read_frame(file["obs"]), read_frame(file["var"]))

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """The counts of the profiles that a mask keeps, profiles x genes."""
        return self._read("X", rows)

    def layer(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A layer of the profiles that a mask keeps; float32."""
        return self._read(f"layers/{name}", rows)

    def _read(self, name: str, rows: np.ndarray) -> np.ndarray:
        with h5py.File(self.path, "r", locking=False) as file:
            return file[name][np.flatnonzero(rows)]

    @property
    def groups(self) -> list[str]:
        """The names of the groups in their order."""
        return list(self.obs["group"].cat.categories)


def expressed(counts: np.ndarray, n_smallest: int) -> np.ndarray:
    """Mask of the genes that can be tested: edgeR's filterByExpr (Chen, Lun & Smyth 2016).

    They have `MIN_COUNT` counts, per the median library, in as many samples as the smaller level has (of more than 10
    samples: in 10 and 70 % of the rest), and `MIN_TOTAL` in all.

    Parameters
    ----------
    counts
        samples x genes.
    n_smallest
        Samples of the smaller level.
    """
    library = counts.sum(1).astype(np.float64)
    least = n_smallest if n_smallest <= LARGE else LARGE + (n_smallest - LARGE) * MIN_PROP
    middle = np.median(library)
    if middle == 0:
        return np.zeros(counts.shape[1], bool)
    enough = counts / np.maximum(library, 1)[:, None] >= MIN_COUNT / middle
    return (enough.sum(0) >= least - 1e-14) & (counts.sum(0) >= MIN_TOTAL - 1e-14)


def log_cpm(counts: np.ndarray, prior: float = 2) -> np.ndarray:
    """log2 counts per million of profiles with counts, float64, as edgeR's cpm(log=TRUE).

    `prior` counts are added to each gene of a library of mean size, and in proportion to others.
    """
    library = counts.sum(1, keepdims=True).astype(np.float64)
    added = prior * library / library.mean()
    return np.log2((counts + added) / (library + 2 * added) * 1e6)


def check_not_empty(profiles: Profiles, grouping: str, sample_key: str) -> None:
    """Refuse a grouping without groups, or samples without names."""
    if profiles.obs.empty:
        raise UserError(
            f"pseudobulk: no cell has both a group of {grouping} and a value of {sample_key}. Name another grouping "
            "(`pseudobulk: groupings`, `de`), or another `pseudobulk: sample_key`."
        )


def components(counts: np.ndarray, n_genes: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal components of profiles, on the log2 CPM of the `n_genes` `expressed` ones that vary most, centred.

    Parameters
    ----------
    counts
        profiles x genes.

    Returns
    -------
    The first two components (profiles x 2; 0 where there are fewer), their shares of the variance, and each profile's
    distance to the median profile in these genes.
    """
    X = log_cpm(counts)[:, expressed(counts, max(2, len(counts) // 2))]
    X = X[:, np.argsort(-X.var(0), kind="stable")[:n_genes]]
    distance = np.sqrt(((X - np.median(X, 0)) ** 2).sum(1))
    X = X - X.mean(0)
    products = X @ X.T  # of few profiles
    variance, vectors = np.linalg.eigh(products)
    n = min(2, len(X))
    first, size = vectors[:, ::-1][:, :n], np.maximum(variance[::-1][:n], 0)
    found, shares = np.zeros((len(X), 2)), np.zeros(2)
    signs = np.sign(first[np.abs(first).argmax(0), np.arange(n)])
    found[:, :n] = first * np.sqrt(size) * signs
    shares[:n] = size / max(np.trace(products), 1e-300)
    return found, shares, distance
