"""The space in which cells are compared: the first components of PCA, or of Harmony if it ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from lib.run.errors import UserError


def representation(
    pca: str | Path, harmony: Sequence[str | Path], use_rep: str, n_pcs: int | None
) -> tuple[str, np.ndarray]:
    """The representation that neighbours, embeddings and k-means share.

    Parameters
    ----------
    pca
        `pca.h5`.
    harmony
        `harmony.h5`; empty if Harmony is disabled.
    use_rep
        X_pca, X_pca_harmony, or auto: X_pca_harmony if there is one, else X_pca.
    n_pcs
        The number of components, the first ones; at most all of them. None: all.

    Returns
    -------
    The representation's name, and cells x components, float32.

    Raises
    ------
    UserError
        If `use_rep` is X_pca_harmony and there is none.
    """
    integrated = None
    for path in harmony:
        with h5py.File(path, "r", locking=False) as file:
            integrated = file["X_pca_harmony"][:, :n_pcs] if "X_pca_harmony" in file else None
    if use_rep == "X_pca_harmony" and integrated is None:
        raise UserError(
            "neighbors: use_rep is X_pca_harmony, but Harmony did not run (harmony: enabled is false, or there is one "
            "batch only). Set use_rep to auto or X_pca."
        )
    if integrated is not None and use_rep != "X_pca":
        name, X = "X_pca_harmony", integrated
    else:
        with h5py.File(pca, "r", locking=False) as file:
            name, X = "X_pca", file["X_pca"][:, :n_pcs]
    return name, X.astype(np.float32, copy=False)
