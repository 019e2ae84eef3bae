"""Where artifacts belong in the atlas: each carries the slots of AnnData that it fills, and what it was made with.

A table fills one slot, the arrays of an HDF5 file one each. `files.write_table` and `files.write_arrays` take

    obs, var            a table's columns
    obsm/NAME           a table, or an array with a row a cell
    varm/NAME           an array with a row a feature, of the highly variable genes; 0 for all others
    obsp/NAME           a CSR matrix (a group of data, indices, indptr), or an array cells x k of the distances to each
                        cell's nearest, whose positions are in `indices`; the first n_neighbors - 1 count
    uns/NAME            an array; a table of markers as scanpy has it, `uns/rank_genes_groups`; or another table
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.store.files import SLOTS, read_arrays, read_attrs, read_csr, read_table
from lib.store.identity import read_label


@dataclass(frozen=True)
class Part:
    """What fills one slot.

    Attributes
    ----------
    path
        The artifact.
    slot
        Its slot, such as obs or obsm/X_pca.
    value
        A table, an array, or a sparse matrix.
    about
        What the artifact has for uns.
    """

    path: str | Path
    slot: str
    value: Any
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """The name within the slot: X_pca of obsm/X_pca."""
        return self.slot.partition("/")[2]


def parts_of(path: str | Path) -> Iterator[Part]:
    """What an artifact fills, slot by slot; nothing where it carries none."""
    label = read_label(path, SLOTS)
    if label is None:
        return
    about = json.loads(label)
    for name, slot in about["slots"].items():
        value = read_table(path) if str(path).endswith(".parquet") else _read_array(path, name, slot)
        yield Part(path, slot, value, about["uns"])


def of_all_genes(values: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """An array with a row a feature as one with a row a gene, zero for those not selected."""
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
    """The distances of each cell to its nearest, itself counted among n_neighbors, as a CSR matrix."""
    from scipy.sparse import csr_matrix

    n_obs, others = len(indices), n_neighbors - 1
    starts = np.arange(n_obs + 1, dtype=np.int32) * others
    found = csr_matrix((distances[:, :others].ravel(), indices[:, :others].ravel(), starts), shape=(n_obs, n_obs))
    found.sort_indices()
    return found
