"""A model that names the types of cells: a logistic regression on standardised log-normalised values.

A cell's counts are normalised to `target_sum` over the genes of `universe` (all genes if it has none), log(1 + x) is
standardised by `mean` and `std` of the reference, and cut above `max_value`. With `link` softmax the probabilities of a
cell's labels sum to 1; with sigmoid each label has its own, as in CellTypist's models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from lib.inputs.genesets import positions
from lib.methods.scaling import log_normalize
from lib.run import device as devices
from lib.run.errors import UserError
from lib.run.progress import progress
from lib.store.csr import dense as dense_array
from lib.store.csr import rows_of_nonzeros, select_genes, sums_by_key
from lib.store.files import read_arrays, read_attrs, write_arrays
from lib.store.stream import Stream, halving

KIND = "somersault-model"  # the attribute that tells a model's file
MAX_VALUE = 10.0  # CellTypist's cut
SHARE = 0.25  # of a model's genes that must be in the cohort
UNASSIGNED = "unassigned"
CELLS = 5_000_000  # values of a dense chunk


@dataclass(frozen=True)
class Model:
    """A model.

    Attributes
    ----------
    labels, genes
        Names.
    weights, intercepts
        labels x genes, and per label.
    mean, std
        Per gene.
    universe
        The genes over which counts are normalised; empty: all.
    target_sum, max_value, link
        See above.
    """

    labels: np.ndarray
    genes: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    universe: np.ndarray
    target_sum: float = 1e4
    max_value: float = MAX_VALUE
    link: str = "softmax"

    def write(self, path: str | Path) -> None:
        """Write the model as an HDF5 file."""
        names = {name: np.char.encode(getattr(self, name).astype(str), "utf-8") for name in NAMES}
        arrays = {name: getattr(self, name).astype(np.float32) for name in NUMBERS}
        attrs = {"target_sum": self.target_sum, "max_value": self.max_value, "link": self.link}
        write_arrays(path, names | arrays, **attrs, **{KIND: 1})

    @classmethod
    def read(cls, path: str | Path) -> Model:
        """Read a model's file.

        Raises
        ------
        UserError
            If it is none.
        """
        if not is_model(path):
            raise UserError(f"{path} is no model of cell types that Somersault wrote.")
        found, attrs = read_arrays(path), read_attrs(path)
        names = {name: np.char.decode(found[name], "utf-8").astype(object) for name in NAMES}
        attrs.pop(KIND)
        return cls(**names, **{name: found[name] for name in NUMBERS}, **attrs)


NAMES, NUMBERS = ("labels", "genes", "universe"), ("weights", "intercepts", "mean", "std")


def is_model(path: str | Path) -> bool:
    """Whether a file is a model."""
    if not Path(path).is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r", locking=False) as file:
        return KIND in file.attrs


def check_overlap(n_found: int, wanted: Sequence[str], have: Sequence[str], what: str) -> None:
    """Refuse a reference or model of which less than SHARE of the genes are in the cohort.

    Raises
    ------
    UserError
        With the numbers.
    """
    if n_found < SHARE * len(wanted):
        alike = len({str(name).upper() for name in wanted} & {str(name).upper() for name in have})
        hint = "Is it of another organism, or are its genes named otherwise?"
        if alike > n_found:
            hint = f"They share {alike} if upper and lower case count as the same: it is of another organism."
        raise UserError(
            f"{what} and the cohort share {n_found} of {len(wanted)} genes ({n_found / max(1, len(wanted)):.0%}); "
            f"{SHARE:.0%} are needed. They are named like {', '.join(map(str, list(wanted)[:3]))}, the others like "
            f"{', '.join(map(str, list(have)[:3]))}. {hint}"
        )


@halving
def label_cells(
    counts: Stream, model: Model, genes: pd.DataFrame, totals: np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best label of each cell, its probability, and the second label (equal to the first of one), in one pass.

    Parameters
    ----------
    counts
        cells x genes.
    model
        The model.
    genes
        The table of the stream's genes.
    totals
        The cells' counts in all genes, for models without a universe.
    what
        The model's name, for messages.

    Returns
    -------
    Positions in `model.labels`, float32 probabilities, positions.
    """
    xp, device = counts.device.xp, counts.device
    at = positions(model.genes, genes)
    check_overlap(int((at >= 0).sum()), model.genes, genes["gene_symbols"], what)
    used = np.flatnonzero(at >= 0)
    columns = np.full(counts.n_vars, -1, np.int32)
    columns[at[used]] = np.arange(len(used))
    used = used[columns[at[used]] == np.arange(len(used))]  # of two names of one gene the last
    columns[columns >= 0] = np.argsort(np.argsort(columns[columns >= 0]))
    inside = None
    if len(model.universe):
        inside = xp.zeros(counts.n_vars, bool)
        places = positions(model.universe, genes)
        inside[xp.asarray(places[places >= 0])] = True
    mean, std = (xp.asarray(values[used], np.float32) for values in (model.mean, model.std))
    W, b = xp.asarray(model.weights[:, used].T, np.float32), xp.asarray(model.intercepts, np.float32)
    found: list[list[np.ndarray]] = [[], [], []]
    for chunk in progress(counts.chunks(max(1, CELLS // max(1, len(used)))), counts.n_obs, "labels"):
        mine = totals[chunk.rows]
        if inside is not None:
            of_universe = xp.where(inside[chunk.X.indices], chunk.X.data, 0)
            mine = device.to_host(sums_by_key(rows_of_nonzeros(chunk.X, device), of_universe, len(mine), device))
        X = select_genes(chunk.X, columns, len(used), device)
        Z = standardised(X, mine, mean, std, model, device)
        best = top_two(Z @ W + b, model.link, xp)
        for parts, values in zip(found, best, strict=True):
            parts.append(device.to_host(values))
    label, probability, second = (np.concatenate(parts) for parts in found)
    return label, probability.astype(np.float32), second


def top_two(logits: Any, link: str, xp: Any) -> tuple[Any, Any, Any]:
    """The position of the largest logit of each row, its probability, and the position of the second largest."""
    rows = xp.arange(len(logits))
    first = logits.argmax(1)
    most = logits[rows, first]
    probability = 1 / xp.exp(logits - most[:, None]).sum(1) if link == "softmax" else 1 / (1 + xp.exp(-most))
    others = logits.copy()
    others[rows, first] = -xp.inf
    return first, probability, others.argmax(1)


def standardised(X: Any, totals: Any, mean: Any, std: Any, model: Any, device: devices.Device) -> Any:
    """Rows of the matrix that a model reads, cells x genes, float32; `model` has `target_sum` and `max_value`."""
    Z = dense_array(log_normalize(X, totals, model.target_sum, device), device)
    return device.xp.minimum((Z - mean) / std, model.max_value)
