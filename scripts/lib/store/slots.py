"""The places of artifacts in the atlas: each artifact names the slots of AnnData that it fills and its uns entries.

A table fills one slot; each array of an HDF5 file fills one. `files.write_table` and `files.write_arrays` take

    obs, var            the columns of a table
    obsm/NAME           a table, or an array with one row per cell
    frame/NAME          a table with one row per cell that stays a table, in obsm
    varm/NAME           an array with one row per highly variable gene; other genes get 0
    obsp/NAME           a CSR matrix (a group of data, indices, indptr), or an array cells x k of the distances to each
                        cell's neighbours, whose positions are in `indices`; the first n_neighbors - 1 are used
    uns/NAME            an array; a table of markers in scanpy's layout, `uns/rank_genes_groups`; or another table
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.store.files import SLOTS, read_arrays, read_attrs, read_csr, read_table
from lib.store.identity import read_label


@dataclass(frozen=True)
class Part:
    """The content of one slot.

    Attributes
    ----------
    path
        The artifact.
    slot
        Its slot, such as obs or obsm/X_pca.
    value
        A table, an array, or a sparse matrix.
    about
        The artifact's entries for uns.
    """

    path: str | Path
    slot: str
    value: Any
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """The name within the slot: X_pca for obsm/X_pca."""
        return self.slot.partition("/")[2]


def parts_of(path: str | Path, read: Callable[[str | Path], Any] = read_table) -> Iterator[Part]:
    """The parts of an artifact, slot by slot; none if it names no slots. `read` reads a table."""
    label = read_label(path, SLOTS)
    if label is None:
        return
    about = json.loads(label)
    for name, slot in about["slots"].items():
        value = read(path) if str(path).endswith(".parquet") else _read_array(path, name, slot)
        yield Part(path, slot, value, about["uns"])


def of_all_genes(values: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Expand an array with one row per feature to one row per gene; rows of genes not selected are zero."""
    of_all = np.zeros((len(selected), values.shape[1]), values.dtype)
    of_all[selected] = values
    return of_all


def _read_array(path: str | Path, name: str, slot: str) -> Any:
    if not slot.startswith("obsp/"):
        return read_arrays(path, name)[name]
    if name == "distances":
        return distance_matrix(**read_arrays(path, "indices", name), n_neighbors=read_attrs(path)["n_neighbors"])
    return read_csr(path, name)


def distance_matrix(indices: np.ndarray, distances: np.ndarray, n_neighbors: int) -> Any:
    """The distances of each cell to the nearest n_neighbors - 1 others, as a CSR matrix."""
    from scipy.sparse import csr_matrix

    n_obs, others = len(indices), n_neighbors - 1
    starts = np.arange(n_obs + 1, dtype=np.int32) * others
    found = csr_matrix((distances[:, :others].ravel(), indices[:, :others].ravel(), starts), shape=(n_obs, n_obs))
    found.sort_indices()
    return found
