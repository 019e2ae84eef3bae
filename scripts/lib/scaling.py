"""The matrix that PCA and the markers work on, a chunk at a time: log-normalised, regressed, scaled, clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import device as devices
from .counts import rows_of_nonzeros


def log_normalize(X: Any, totals: Any, target_sum: float, device: devices.Device, dtype: Any = np.float32) -> Any:
    """log(1 + counts * target_sum / totals) of a CSR chunk, as scanpy's normalize_total and log1p.

    Parameters
    ----------
    X
        cells x genes, CSR counts.
    totals
        Counts that each cell has in the kept genes. Cells with none stay zero, as in scanpy.
    target_sum
        What each cell's counts sum to before the logarithm.

    Returns
    -------
    CSR with `X`'s structure, of `dtype`.
    """
    xp = device.xp
    totals = xp.asarray(totals, dtype=np.float64)
    factors = xp.where(totals > 0, target_sum / xp.where(totals > 0, totals, 1), 0)
    data = xp.log1p(X.data * factors[rows_of_nonzeros(X, device)]).astype(dtype)
    return device.sparse.csr_matrix((data, X.indices, X.indptr), shape=X.shape)


@dataclass(frozen=True)
class Scaling:
    """What turns a chunk of log-normalised values into rows of the matrix that PCA sees.

    Attributes
    ----------
    target_sum
        See `log_normalize`.
    coefficients
        Regression coefficients, (1 + regressors) x genes, the intercept first; None: no regression.
        As scanpy's regress_out, the residual leaves the intercept out too: residuals have mean zero.
    mean, std
        Per gene, of the residuals; `mean` is subtracted and `std` divided by where scaling is on.
    max_value
        Clip at +-max_value; None: no clipping.
    """

    target_sum: float
    coefficients: np.ndarray | None
    mean: np.ndarray
    std: np.ndarray
    max_value: float | None
