"""PCA of the regressed, scaled, clipped matrix, exact, in three streamed passes; the matrix itself never exists.

With X the log-normalised features (cells x genes) and R = [1, regressors]:

1. R'R, R'X, sum X and sum X^2 are accumulated. Least squares, B = (R'R)^-1 R'X, gives the residuals X - R B
   (scanpy.pp.regress_out), and their variance per gene follows from the same sums.
2. Chunks are made dense, regressed, divided by the standard deviation, clipped (scanpy.pp.scale), and their Gram
   matrix and column sums are accumulated. Re-centring gives the covariance; its leading eigenvectors are the loadings.
3. Each chunk is projected: X_pca (scanpy.pp.pca).

Each component's sign is such that its largest loading is positive. Float32 products, float64 sums. Where the cells are
in shards, these run the passes (pca_sums.py, pca_gram.py, pca_projection.py), and what they project is joined.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lib.methods.eigen import leading_eigenpairs
from lib.methods.scaling import Scaling, log_normalize, regressors, target_of, usable_keys
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.progress import progress, timed
from lib.store.counts import Counts, Stores
from lib.store.csr import column_sums, rows_of_nonzeros
from lib.store.files import read_arrays, read_table, write_arrays
from lib.store.stream import Stream, halving

MAX_CELLS = {"cpu": 2_000, "gpu": 8_192}  # cells of a dense chunk: 40 or 160 MB for 5,000 genes


@halving
def normal_sums(counts: Stream, totals: np.ndarray, design: np.ndarray, target_sum: float) -> dict[str, Any]:
    """Pass 1: R'R, R'X and the column sums of X^2, float64, of the log-normalised features X.

    Parameters
    ----------
    counts
        cells x genes.
    totals
        Per cell its counts in the kept genes.
    design
        R, cells x (1 + regressors), the first column all ones.
    target_sum
        What normalisation makes each cell's counts sum to.
    """
    xp, device = counts.device.xp, counts.device
    RX = xp.zeros((design.shape[1], counts.n_vars))
    X2 = xp.zeros(counts.n_vars)
    for chunk in progress(counts.chunks(MAX_CELLS[device.name]), counts.n_obs, "regression sums"):
        X = log_normalize(chunk.X, totals[chunk.rows], target_sum, device, np.float64)
        R = xp.asarray(design[chunk.rows])
        rows = rows_of_nonzeros(X, device)
        for k in range(R.shape[1]):
            RX[k] += column_sums(X, X.data * R[rows, k], device)
        X2 += column_sums(X, X.data**2, device)
    return {"RR": design.T @ design, "RX": device.to_host(RX), "X2": device.to_host(X2)}


def solve_scaling(
    sums: dict[str, np.ndarray],
    n_obs: int,
    target_sum: float,
    keys: tuple[str, ...],
    scale: bool,
    max_value: float | None,
) -> Scaling:
    """The least squares coefficients and the residuals' standard deviations, from the sums of pass 1.

    With divisor n - 1; 1 where scaling is off, and for genes that do not vary, as in scanpy.
    """
    RX = sums["RX"]
    B = np.linalg.lstsq(sums["RR"], RX, rcond=None)[0]
    squares = sums["X2"] - (B * RX).sum(0)
    varies = squares > 1e-12 * sums["X2"]
    std = np.where(varies, np.sqrt(np.maximum(squares, 0) / (n_obs - 1)), 1)
    mean = np.zeros_like(B[0]) if keys else B[0]
    return Scaling(target_sum, keys, B, mean, std if scale else np.ones_like(std), max_value if scale else None)


@halving
def gram(counts: Stream, totals: np.ndarray, design: np.ndarray, scaling: Scaling) -> tuple[Any, Any]:
    """Pass 2: the lower triangle of Z'Z, genes x genes, and Z's column sums, float64; Z is the scaled matrix."""
    xp, device = counts.device.xp, counts.device
    ZZ, sums = xp.zeros((counts.n_vars, counts.n_vars)), xp.zeros(counts.n_vars)
    for chunk in progress(counts.chunks(MAX_CELLS[device.name]), counts.n_obs, "Gram matrix"):
        Z = scaling.dense(chunk.X, totals[chunk.rows], design[chunk.rows], device)
        for rows in blocks(counts.n_vars):  # half the products, and no second matrix of this size
            ZZ[rows, : rows.stop] += Z[:, rows].T @ Z[:, : rows.stop]
        sums += Z.sum(0, dtype=np.float64)
    return ZZ, sums


def blocks(n: int, size: int = 1000) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n)."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def leading_components(
    ZZ: Any, sums: Any, n_obs: int, n_comps: int, device: devices.Device
) -> tuple[np.ndarray, np.ndarray, float]:
    """The leading eigenvectors and eigenvalues of the covariance (divisor n - 1), and the total variance.

    Parameters
    ----------
    ZZ, sums
        See `gram`; `ZZ` is overwritten.
    n_obs
        Number of cells.
    n_comps
        Number of components.

    Returns
    -------
    Loadings (genes x n_comps, orthonormal), their variances (falling), and the variance of all genes together.
    """
    n, xp = len(ZZ), device.xp
    for rows in blocks(n):
        ZZ[rows, : rows.stop] -= xp.outer(sums[rows], sums[: rows.stop] / n_obs)
    ZZ /= n_obs - 1
    total = float(xp.trace(ZZ))
    if device.is_gpu:
        ZZ = xp.tril(ZZ)
        ZZ += xp.tril(ZZ, -1).T
        variance, PCs = map(device.to_host, leading_eigenpairs(ZZ, n_comps, xp))
    else:
        from scipy.linalg import eigh

        # Transposed, and so in LAPACK's own order, it is not copied; its lower triangle is then the upper one
        wanted = [n - n_comps, n - 1]
        variance, PCs = eigh(ZZ.T, subset_by_index=wanted, lower=False, overwrite_a=True, check_finite=False)
        variance, PCs = variance[::-1], PCs[:, ::-1].copy()
    PCs *= np.sign(PCs[np.abs(PCs).argmax(0), np.arange(n_comps)])
    return PCs, variance, total


@halving
def project(
    counts: Stream, totals: np.ndarray, design: np.ndarray, scaling: Scaling, PCs: np.ndarray, center: np.ndarray
) -> np.ndarray:
    """Pass 3: the scaled, centred cells in the coordinates of the components; cells x comps, float32."""
    xp, device = counts.device.xp, counts.device
    loadings = xp.asarray(PCs, np.float32)
    shift = xp.asarray(center @ PCs, np.float32)
    X_pca = np.empty((counts.n_obs, PCs.shape[1]), np.float32)
    for chunk in progress(counts.chunks(MAX_CELLS[device.name]), counts.n_obs, "projection"):
        Z = scaling.dense(chunk.X, totals[chunk.rows], design[chunk.rows], device)
        X_pca[chunk.rows] = device.to_host(Z @ loadings - shift)
    return X_pca


def pca(
    counts: Stream,
    totals: np.ndarray,
    design: np.ndarray,
    n_comps: int,
    target_sum: float,
    regress_keys: tuple[str, ...] = (),
    scale: bool = True,
    max_value: float | None = 10,
) -> tuple[dict[str, np.ndarray], Scaling]:
    """All three passes.

    Returns
    -------
    X_pca, PCs, variance and variance_ratio (shares of the variance of all features), and the scaling.

    Raises
    ------
    UserError
        If there are too few cells or features for two components.
    """
    n_comps = components_of(n_comps, counts.n_obs, counts.n_vars)
    sums = normal_sums(counts, totals, design, target_sum)
    scaling = solve_scaling(sums, counts.n_obs, target_sum, regress_keys, scale, max_value)
    ZZ, Z_sums = gram(counts, totals, design, scaling)
    with timed("eigenvectors"):
        PCs, variance, total = leading_components(ZZ, Z_sums, counts.n_obs, n_comps, counts.device)
    X_pca = project(counts, totals, design, scaling, PCs, counts.device.to_host(Z_sums) / counts.n_obs)
    arrays = {"X_pca": X_pca, "PCs": PCs.astype(np.float32), "variance": variance, "variance_ratio": variance / total}
    return arrays, scaling


def components_of(n_comps: int, n_obs: int, n_vars: int) -> int:
    """How many components there are to have of those wanted; says so where these are fewer.

    Raises
    ------
    UserError
        If there are too few cells or features for two.
    """
    most = min(n_obs, n_vars) - 1
    if most < 2:
        raise UserError(
            f"{n_obs} cells x {n_vars} highly variable genes are too few for a PCA, which takes three of each: keep "
            "more cells (config: `cells`) or genes (`genes: min_counts`, `hvg`)."
        )
    if n_comps > most:
        stage.notice(
            "pca: n_comps: %d components instead of %d: there are %d cells x %d highly variable genes",
            *(most, n_comps, n_obs, n_vars),
        )
    return min(n_comps, most)


def read_cells(
    obs: str | Path, params: Any, say: Callable[..., None] = stage.log.warning
) -> tuple[np.ndarray, np.ndarray, float, tuple[str, ...]]:
    """All cells' totals and design (see `normal_sums`), what normalisation makes their counts sum to, and the columns
    that are regressed out; those that cannot be are for `say`."""
    keys = usable_keys(obs, params.regress_keys, say)
    table = read_table(obs, ["kept_counts", *keys])
    totals = table["kept_counts"].to_numpy()
    return totals, regressors(table, keys), target_of(totals, params.target_sum), keys


def main(snakemake: Any) -> None:
    """Read the features and `obs.parquet`, or what shards made of them, write `pca.h5`."""
    files, params = snakemake.input, snakemake.params
    if files.components:
        usable_keys(files.obs, params.regress_keys, stage.notice)  # the shards have but logged it
        arrays = read_arrays(files.components, "PCs", "variance", "variance_ratio")
        arrays["PCs"], scaling = arrays["PCs"].astype(np.float32), Scaling.read(files.components)
        arrays["X_pca"] = np.concatenate([read_arrays(path)["X_pca"] for path in files.projections])
    else:
        device, scale = devices.of(snakemake), params.scale
        counts = Stores([Counts(part, device) for part in files.features])
        totals, design, target_sum, keys = read_cells(files.obs, params, stage.notice)
        options = keys, scale["enabled"], scale["max_value"]
        arrays, scaling = pca(counts, totals, design, params.n_comps, target_sum, *options)
    stage.log.info("variance of the first ten: %s", np.round(arrays["variance_ratio"][:10], 4).tolist())
    write_arrays(snakemake.output.pca, arrays | scaling.arrays(), files.obs, **scaling.attrs())


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
