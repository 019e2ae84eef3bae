"""Compute the matrix for PCA and markers chunk by chunk: log-normalised, regressed, scaled, clipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.run import device as devices
from lib.run.errors import UserError
from lib.store.csr import dense, rows_of_nonzeros
from lib.store.files import column_names, read_arrays, read_attrs, read_table

METRICS = ("pct_counts_", "total_counts_", "log1p_total_counts_")  # of gene families, which a cohort may lack


def target_of(totals: np.ndarray, target_sum: float | None) -> float:
    """The sum of each cell's counts after normalisation: `target_sum`, by default the median of the totals above zero.

    As in scanpy.pp.normalize_total on a dense matrix, the median leaves out cells without counts.
    """
    return target_sum or float(np.median(totals[totals > 0]))


def log_normalize(X: Any, totals: Any, target_sum: float, device: devices.Device, dtype: Any = np.float32) -> Any:
    """log(1 + counts * target_sum / totals) of a CSR chunk, as scanpy's normalize_total and log1p.

    Parameters
    ----------
    X
        cells x genes, CSR counts.
    totals
        Counts of each cell in the kept genes. Cells with none stay zero, as in scanpy.
    target_sum
        The sum of each cell's counts before the logarithm.

    Returns
    -------
    CSR with `X`'s structure, of `dtype`.
    """
    factors = size_factors(totals, target_sum, device)
    data = device.xp.log1p(X.data * factors[rows_of_nonzeros(X, device)]).astype(dtype)
    return device.sparse.csr_matrix((data, X.indices, X.indptr), shape=X.shape)


def size_factors(totals: Any, target_sum: float, device: devices.Device) -> Any:
    """target_sum / totals of each cell, float64; 0 for cells without counts."""
    xp = device.xp
    totals = xp.asarray(totals, dtype=np.float64)
    return xp.where(totals > 0, target_sum / xp.where(totals > 0, totals, 1), 0)


def regressors(obs: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    """The design matrix of scanpy.pp.regress_out, [1, keys], cells x (1 + keys), float64.

    Keys are standardised, which does not change the residuals and keeps the normal equations well conditioned.

    Raises
    ------
    UserError
        If a key is not a numeric column of obs.
    """
    numeric = obs.select_dtypes("number").columns
    columns = [np.ones(len(obs))]
    for key in keys:
        if key not in numeric:
            raise UserError(f"regress_out: keys: {key!r} is no numeric obs column; there are {', '.join(numeric)}")
        centered = obs[key].to_numpy(np.float64) - obs[key].mean()
        columns.append(centered / (centered.std() or 1))
    return np.column_stack(columns)


def columns_of(tables: Sequence[str | Path], columns: Sequence[str]) -> pd.DataFrame:
    """Columns of several tables of the same cells; of two tables with a column of this name, the last one's."""
    place = {name: path for path in tables for name in column_names(path)}
    wanted = {path: [name for name in columns if place.get(name, tables[0]) == path] for path in tables}
    return pd.concat([read_table(path, names) for path, names in wanted.items()], axis=1)


def usable_keys(tables: Sequence[str | Path], keys: Sequence[str], say: Callable[..., None]) -> tuple[str, ...]:
    """The `keys` that can be regressed out: columns of the tables with a finite value for all kept cells.

    There are none if there are no more cells than coefficients. `say` is told which keys are left out.
    """
    known = [name for path in tables for name in column_names(path)]
    lacking = [key for key in keys if key not in known and key.startswith(METRICS)]
    found = [key for key in keys if key not in lacking]
    table = columns_of(tables, found)
    infinite = table.select_dtypes("number").apply(np.isinf).sum().reindex(table.columns, fill_value=0)
    missing = table.isna().sum() + infinite
    said = [f"{key}, which this cohort does not have" for key in lacking]
    said += [
        f"{key}, which is missing or infinite for {n} of {len(table)} kept cells" for key, n in missing.items() if n
    ]
    if said:
        say("not regressed out (regress_out: keys): %s", "; ".join(said))
    found = [key for key in found if not missing[key]]
    if found and len(table) <= len(found) + 1:
        say("nothing is regressed out (regress_out: keys), as only %d cells are left", len(table))
        return ()
    return tuple(found)


@dataclass(frozen=True)
class Scaling:
    """The transformation of a chunk of counts into rows of the matrix for PCA.

    Attributes
    ----------
    target_sum
        See `log_normalize`.
    regress_keys
        obs columns regressed out; empty: no regression.
    coefficients
        Coefficients of the regression, (1 + regress_keys) x genes, the intercept first.
    mean, std
        Per gene: `mean` is subtracted, `std` divides. `mean` is 0 after a regression; `std` is 1 if scaling is off.
    max_value
        Values beyond +-max_value are clipped to it; None: no clipping.
    """

    target_sum: float
    regress_keys: tuple[str, ...]
    coefficients: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    max_value: float | None

    def dense(self, X: Any, totals: Any, design: Any, device: devices.Device) -> Any:
        """The rows of the matrix for a chunk, cells x genes, float32.

        Parameters
        ----------
        X
            cells x genes, CSR counts.
        totals
            The cells' counts in the kept genes.
        design
            Rows of `regressors` for these cells.
        """
        limit = np.inf if self.max_value is None else self.max_value
        if device.is_gpu:
            from lib.store.kernels import scaled_rows

            factors = size_factors(totals, self.target_sum, device)
            return scaled_rows(X, factors, device.xp.asarray(design, np.float32), *self.on_card, limit)
        Z = dense(log_normalize(X, totals, self.target_sum, device), device)
        if self.regress_keys:
            Z -= np.asarray(design, np.float32) @ self.coefficients.astype(np.float32)
        else:
            Z -= self.mean.astype(np.float32)
        Z /= self.std.astype(np.float32)
        return np.clip(Z, -limit, limit, out=Z)

    @cached_property
    def on_card(self) -> tuple[Any, Any]:
        """On the GPU, float32: what is multiplied with the design, and `std`; without keys the design is ones."""
        import cupy

        known = self.coefficients if self.regress_keys else self.mean[None]
        return cupy.asarray(known, np.float32, "C"), cupy.asarray(self.std, np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that `read` needs."""
        return {"coefficients": self.coefficients, "mean": self.mean, "std": self.std}

    def attrs(self) -> dict[str, Any]:
        """The scalars that `read` needs; `max_value` is NaN for None."""
        max_value = np.nan if self.max_value is None else self.max_value
        return {"target_sum": self.target_sum, "max_value": max_value, "regress_keys": json.dumps(self.regress_keys)}

    @classmethod
    def read(cls, path: str | Path) -> Scaling:
        """The scaling in `pca.h5`."""
        attrs = read_attrs(path)
        max_value = None if np.isnan(attrs["max_value"]) else attrs["max_value"]
        keys = tuple(json.loads(attrs["regress_keys"]))
        return cls(attrs["target_sum"], keys, **read_arrays(path, "coefficients", "mean", "std"), max_value=max_value)
