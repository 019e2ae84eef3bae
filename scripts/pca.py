"""Compute an exact PCA of the regressed, scaled, clipped matrix in three streamed passes, without building the matrix.

Let X be the log-normalised features (cells x genes) and R = [1, regressors].

1. R'R, R'X, sum X and sum X^2 are accumulated. Least squares, B = (R'R)^-1 R'X, gives the residuals X - R B
   (scanpy.pp.regress_out); their variance per gene follows from the same sums.
2. Chunks are made dense, regressed, divided by the standard deviation and clipped (scanpy.pp.scale). Their Gram matrix
   and column sums are accumulated; re-centring gives the covariance, whose leading eigenvectors are the loadings.
3. Each chunk is projected: X_pca (scanpy.pp.pca).

Of few cells the scaled matrix is smaller than the covariance: pass 2 keeps it, and the products of its cells have the
same leading eigenvalues. The sign of each component makes its largest loading positive. Products are float32, sums
float64. With shards, each pass runs on every shard (shard.py), and their projections are joined.
"""

from lib.start import run

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from lib.methods.eigen import leading_eigenpairs
from lib.methods.scaling import Scaling, columns_of, log_normalize, regressors, target_of, usable_keys
from lib.methods.tolerances import Tolerance
from lib.report.parts import Finished, Methods, Numbers, Part
from lib.report.words import count, listed, percent
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.progress import progress, timed
from lib.run.resources import CUPY, KB, MB, PYTHON, Job, Need
from lib.store.counts import Counts, Stores
from lib.store.csr import column_sums, rows_of_nonzeros
from lib.store.files import read_arrays, write_arrays
from lib.store.shards import WHOLE, Arrays, Known, Passes, appended, cells_of_part
from lib.store.stream import Stream, halving

SLOTS = {"X_pca": "obsm/X_pca", "PCs": "varm/PCs"}
SLOTS |= {name: f"uns/pca/{name}" for name in ("variance", "variance_ratio")}
UNS = {"pca": {"params": {"zero_center": True, "use_highly_variable": True, "mask_var": "highly_variable"}}}
FEW = 0.8  # cells per gene up to which the matrix and the products of its cells take less memory than the covariance
MAX_CELLS = {"cpu": 2_000, "gpu": 8_192}  # cells of a dense chunk: 40 or 160 MB for 5,000 genes
# How far results may lie from those of a sample of cells (`trust_stages`)
TOLERANCES = {
    "projection": Tolerance(1e-3, "products in float32, relative to the largest coordinate"),
    "orthonormality": Tolerance(1e-4, "float32"),
    "variance": Tolerance(1e-3, "products in float32"),
    "captured variance": Tolerance(0.95, "components of other cells fit a sample a little worse, or better", True),
}


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
        The sum of each cell's counts after normalisation.
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

    Standard deviations have divisor n - 1. They are 1 if scaling is off, and for genes that do not vary, as in scanpy.
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
    """Pass 2: the lower blocks of Z'Z, genes x genes, and Z's column sums, float64; Z is the scaled matrix."""
    xp, device = counts.device.xp, counts.device
    ZZ, sums = xp.zeros((counts.n_vars, counts.n_vars)), xp.zeros(counts.n_vars)
    for chunk in progress(counts.chunks(MAX_CELLS[device.name]), counts.n_obs, "Gram matrix"):
        Z = scaling.dense(chunk.X, totals[chunk.rows], design[chunk.rows], device)
        for rows in blocks(counts.n_vars):  # saves half the products, and a second matrix of this size
            ZZ[rows, : rows.stop] += Z[:, rows].T @ Z[:, : rows.stop]
        sums += Z.sum(0, dtype=np.float64)
    return ZZ, sums


def blocks(n: int, size: int = 1000) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n)."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@halving
def scaled(counts: Stream, totals: np.ndarray, design: np.ndarray, scaling: Scaling) -> tuple[Any, Any]:
    """Pass 2 of few cells: the scaled matrix Z, float32, and its column sums, float64."""
    xp, device = counts.device.xp, counts.device
    Z = xp.empty((counts.n_obs, counts.n_vars), np.float32)
    for chunk in progress(counts.chunks(MAX_CELLS[device.name]), counts.n_obs, "scaled matrix"):
        Z[chunk.rows] = scaling.dense(chunk.X, totals[chunk.rows], design[chunk.rows], device)
    return Z, Z.sum(0, dtype=np.float64)


def leading_of_few(Z: Any, sums: Any, n_comps: int, device: devices.Device) -> tuple[np.ndarray, np.ndarray, float]:
    """The same as `leading_components`, from Z itself, which is overwritten.

    Z'Z and ZZ' have the same leading eigenvalues; if ZZ' u = d u, the loadings are Z'u / sqrt(d).
    """
    n_obs, n_vars, xp = *Z.shape, device.xp
    Z -= xp.asarray(sums / n_obs, np.float32)
    products = xp.zeros((n_obs, n_obs))
    for columns in blocks(n_vars):
        products += Z[:, columns] @ Z[:, columns].T
    cells, squares = leading(products, n_comps, device)
    PCs = device.to_host(Z.T @ xp.asarray(cells, np.float32)).astype(np.float64)
    PCs = signed(np.linalg.qr(PCs)[0])  # orthonormal to rounding; float32 products are not
    return PCs, squares / (n_obs - 1), float(xp.trace(products)) / (n_obs - 1)


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
    PCs, variance = leading(ZZ, n_comps, device)
    return signed(PCs), variance, total


def leading(matrix: Any, k: int, device: devices.Device) -> tuple[np.ndarray, np.ndarray]:
    """The k leading eigenvectors and eigenvalues of a symmetric matrix whose `blocks` above the diagonal it fills."""
    for rows in blocks(len(matrix)):
        matrix[: rows.start, rows] = matrix[rows, : rows.start].T
    values, vectors = map(device.to_host, leading_eigenpairs(matrix, k, device.xp))
    return vectors, values


def signed(PCs: np.ndarray) -> np.ndarray:
    """The loadings with signs that make each component's largest one positive."""
    return PCs * np.sign(PCs[np.abs(PCs).argmax(0), np.arange(PCs.shape[1])])


@halving
def project(
    counts: Stream, totals: np.ndarray, design: np.ndarray, scaling: Scaling, PCs: np.ndarray, center: np.ndarray
) -> np.ndarray:
    """Pass 3: the scaled, centred cells projected on the components; cells x comps, float32."""
    xp, device = counts.device.xp, counts.device
    loadings = xp.asarray(PCs, np.float32)
    shift = xp.asarray(center @ PCs, np.float32)
    X_pca = np.empty((counts.n_obs, PCs.shape[1]), np.float32)
    for chunk in progress(counts.chunks(MAX_CELLS[device.name]), counts.n_obs, "projection"):
        Z = scaling.dense(chunk.X, totals[chunk.rows], design[chunk.rows], device)
        X_pca[chunk.rows] = device.to_host(Z @ loadings - shift)
    return X_pca


@dataclass(frozen=True)
class Cells:
    """The input of the passes: the features, and the values of all cells that regression and scaling need.

    Attributes
    ----------
    counts
        cells x features: all cells, or a shard of them.
    totals, design
        See `normal_sums`; for all cells.
    rows
        The positions of the cells of `counts` among all cells.
    n_comps
        The number of components (`components_of`).
    target_sum, keys, scale, max_value
        Settings of the scaling, see `solve_scaling`.
    """

    counts: Stream
    totals: np.ndarray
    design: np.ndarray
    n_comps: int
    target_sum: float
    keys: tuple[str, ...] = ()
    scale: bool = True
    max_value: float | None = 10
    rows: slice = field(default_factory=lambda: slice(None))

    @property
    def chunks(self) -> tuple[Stream, np.ndarray, np.ndarray]:
        """The stream, and the totals and the design of its cells."""
        return self.counts, self.totals[self.rows], self.design[self.rows]

    def scaling(self, known: Known) -> Scaling:
        """The scaling from the sums of pass 1."""
        options = self.target_sum, self.keys, self.scale, self.max_value
        return solve_scaling(known["sums"], len(self.totals), *options)


def sums_pass(cells: Cells, known: Known) -> Arrays:
    """Pass 1."""
    return normal_sums(*cells.chunks, cells.target_sum)


def gram_pass(cells: Cells, known: Known) -> Arrays:
    """Pass 2."""
    if cells.rows == slice(None) and cells.counts.n_obs <= FEW * cells.counts.n_vars:
        Z, sums = scaled(*cells.chunks, cells.scaling(known))
        return {"Z": Z, "sums": sums}
    ZZ, sums = gram(*cells.chunks, cells.scaling(known))
    return {"ZZ": ZZ, "sums": sums}


def components_pass(cells: Cells, known: Known) -> Arrays:
    """The components and the scaling, computed once, so that all shards are projected on the same components."""
    found, n_obs, device = known["gram"], len(cells.totals), cells.counts.device
    with timed("eigenvectors"):
        sums = device.xp.asarray(found["sums"])
        if "Z" in found:
            PCs, variance, total = leading_of_few(found["Z"], sums, cells.n_comps, device)
        else:
            ZZ = device.xp.asarray(found["ZZ"])
            PCs, variance, total = leading_components(ZZ, sums, n_obs, cells.n_comps, device)
    arrays = {"PCs": PCs, "variance": variance, "variance_ratio": variance / total}
    return arrays | {"center": device.to_host(sums) / n_obs} | cells.scaling(known).arrays()


def projection_pass(cells: Cells, known: Known) -> Arrays:
    """Pass 3."""
    found = known["components"]
    return {"X_pca": project(*cells.chunks, scaling_of(cells, found), found["PCs"], found["center"])}


def scaling_of(cells: Cells, found: Arrays) -> Scaling:
    """The scaling that was computed with the components."""
    arrays = {name: found[name] for name in ("coefficients", "mean", "std")}
    return Scaling(cells.target_sum, cells.keys, **arrays, max_value=cells.max_value if cells.scale else None)


def pca(cells: Cells, files: Sequence[str | Path] = ()) -> tuple[dict[str, np.ndarray], Scaling]:
    """The result of all passes; passes that shards have run are read from their `files`.

    Returns
    -------
    X_pca, PCs, variance and variance_ratio (shares of the variance of all features), and the scaling.
    """
    known = PASSES.gathered(files) or PASSES.over_all(cells)
    found, X_pca = known["components"], known["projection"]["X_pca"]
    arrays = {"X_pca": X_pca, "PCs": found["PCs"].astype(np.float32)}
    return arrays | {name: found[name] for name in ("variance", "variance_ratio")}, scaling_of(cells, found)


def components_of(n_comps: int, n_obs: int, n_vars: int, say: Callable[..., None] = stage.notice) -> int:
    """The number of components: `n_comps`, or fewer if there are too few cells or features, which `say` is told.

    Raises
    ------
    UserError
        If there are too few cells or features for two.
    """
    most = min(n_obs, n_vars) - 1
    if most < 2:
        raise UserError(
            f"{n_obs} cells x {n_vars} highly variable genes are too few for a PCA, which takes three of each: keep "
            "more cells (config: `cells`) or genes (`genes: min_counts`, `hvg: n_top_genes`)."
        )
    if n_comps > most:
        say(
            "pca: n_comps: %d components instead of %d: there are %d cells x %d highly variable genes",
            *(most, n_comps, n_obs, n_vars),
        )
    return min(n_comps, most)


def read(snakemake: Any, shard: str | None = None) -> Cells:
    """Read the features and `obs.parquet`; only the stage, not its shards, gives notice of omissions."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    say = stage.log.warning if shard else stage.notice
    tables = [files.obs, *files.cell_cycle]
    keys = usable_keys(tables, params.regress_keys, say)
    table = columns_of(tables, ["kept_counts", *keys])
    totals = table["kept_counts"].to_numpy()
    all_cells = shard in (None, WHOLE)
    counts = Stores([Counts(part, device) for part in files.features if all_cells or Path(part).stem == shard])
    return Cells(
        counts=counts,
        totals=totals,
        design=regressors(table, keys),
        n_comps=components_of(params.n_comps, len(totals), counts.n_vars, say),
        target_sum=target_of(totals, params.target_sum),
        keys=keys,
        scale=params.scale["enabled"],
        max_value=params.scale["max_value"],
        rows=slice(None) if all_cells else cells_of_part(counts.stores[0], files.obs),
    )


PASSES = Passes(
    {"sums": sums_pass, "gram": gram_pass, "components": components_pass, "projection": projection_pass},
    read,
    joins={"X_pca": appended},
)


def needs(job: Job) -> Need:
    """The genes' covariance and its eigenvectors; dense chunks of cells; the cells' components."""
    if job.part:
        return needs_of_pass(job)
    covariance, dense = 8 * job.n_top**2, 4 * MAX_CELLS["cpu"] * job.n_top
    cells = (6 * job.n_comps + 500) * job.n_kept
    held = 20 * MB + 8 * job.n_comps * job.n_kept + 16 * job.n_comps * job.n_top
    need = Need(
        mem=job.process + 40 * MB + max(1.2 * covariance + 2 * dense, 1.8 * covariance) + cells,
        seconds=10 + 2e-11 * job.n_kept * job.n_top**2 + 1e-8 * job.n_top**2 * job.n_comps,
        disk=4 * job.n_comps * (job.n_kept + job.n_top) + 64 * job.n_top,
        vram=1000 * MB + 4 * covariance,
        gpu_mem=job.process + CUPY + 100 * MB + cells,
        reads=job.features_store + 8 * min(job.n_kept, job.n_top) ** 2,  # threads also find the eigenvectors
    )
    return job.reduced(need, held)


def needs_of_pass(job: Job) -> Need:
    """The need of a pass over a shard, with the values of all cells that it reads; or of the components, for all."""
    covariance, vectors, part = 8 * job.n_top**2, 16 * job.n_comps * job.n_top, job.shard
    if job.part == "components":  # two covariances and their sum
        mem = PYTHON + 40 * MB + 3.3 * covariance + vectors + 0.1 * KB * job.n_kept
        seconds = 10 + 1e-8 * job.n_top**2 * job.n_comps
        vram, disk = 1000 * MB + 4 * covariance, vectors + 64 * job.n_top
        return Need(mem, seconds, disk, vram, mem + CUPY, reads=4 * covariance)
    if job.part == "sums":
        per_cell = job.features_nnz / max(1, job.n_kept)
        mem = job.process + 50 * MB + 50 * MAX_CELLS["cpu"] * per_cell + 0.3 * KB * job.n_kept
        vram = 1000 * MB + 100 * MAX_CELLS["gpu"] * per_cell
        return Need(mem, 10 + 0.2e-6 * part.features_nnz, 64 * job.n_top, vram, mem + CUPY, reads=part.features_store)
    need = job.of_shard(needs, 0.2 * KB)
    if job.part == "gram":
        return replace(need, disk=covariance + 64 * job.n_top, gpu_mem=need.gpu_mem + covariance)
    seconds = 10 + 1e-10 * part.n_kept * job.n_top * job.n_comps + 0.2e-6 * part.features_nnz
    return replace(need, mem=need.mem - 1.1 * covariance, seconds=seconds, disk=4 * job.n_comps * part.n_kept)


def tells(run: Finished) -> Iterator[Part]:
    """The variance of the components, and how the features were scaled."""
    config = run.config
    shares = read_arrays(run.one("pca").pca, "variance_ratio")["variance_ratio"]
    used = min(config["neighbors"]["n_pcs"], len(shares))
    said = f"The first of {count(len(shares), 'component')} explains {percent(shares[0])} of the variance, "
    said += f"the {used} used {percent(shares[:used].sum())}, and the last of these {percent(shares[used - 1])}."
    for path in run.files("figures_pca", "variance"):
        yield Numbers(path, said)
    if not run.of("harmony"):
        for path in run.files("figures_pca", "components"):
            yield Numbers(path, said)
    target, keys, scale = config["normalize"]["target_sum"], config["regress_out"]["keys"], config["scale"]
    steps = [f"normalised to {target:,.0f} counts per cell" if target else "normalised to the cells' median counts"]
    steps += ["log-transformed"] + (
        [f"corrected for {listed(f'`{key}`' for key in keys)} by regression"] if keys else []
    )
    steps += ["scaled to unit variance"] if scale["enabled"] else []
    steps += [f"clipped at {scale['max_value']:g}"] if scale["enabled"] and scale["max_value"] else []
    yield Methods(
        f"Counts were {listed(steps, 9)}, and {count(len(shares), 'principal component')} computed.",
        ["scanpy"],
    )


def main(snakemake: Any) -> None:
    """Read the features and `obs.parquet`, or the results of shards; write `pca.h5`."""
    files = snakemake.input
    arrays, scaling = pca(read(snakemake), files.shards)
    stage.log.info("variance of the first ten: %s", np.round(arrays["variance_ratio"][:10], 4).tolist())
    write_arrays(snakemake.output.pca, arrays | scaling.arrays(), files.obs, SLOTS, UNS, **scaling.attrs())


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
