"""Compute the density of each category's cells in the UMAP: a Gaussian kernel density estimate, scaled to 0..1.

Source: scanpy.tl.embedding_density, which sums the kernels of all pairs of cells (scipy.stats.gaussian_kde with
Scott's bandwidth: the category's covariance times n^(-1/3)). Here the cells of a category are binned on a grid, which
is smoothed and interpolated at the cells. So the work grows with the number of cells instead of its square.
"""

from lib.start import run

from typing import Any

import numpy as np
import pandas as pd
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import as_categories
from lib.store.files import read_table, write_table

STEPS = 6  # grid steps per bandwidth
REACH = 5  # bandwidths at which a kernel is cut off
MAX_SIDE = 4096  # grid points per side
MIN_CELLS = 4  # three always have equal density: whitened, they form an equilateral triangle


def density(points: np.ndarray) -> np.ndarray:
    """The scaled density at each point.

    Parameters
    ----------
    points
        points x 2.

    Returns
    -------
    float32, 0 at the least dense point and 1 at the densest; all 1 if there are fewer than `MIN_CELLS` points or all
    lie on one line.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    n = len(points)
    covariance = np.cov(points, rowvar=False) if n >= MIN_CELLS else np.zeros((2, 2))
    if np.linalg.matrix_rank(covariance) < 2:
        return np.ones(n, np.float32)
    # For whitened points the kernel is isotropic, with this standard deviation
    bandwidth = n ** (-1 / 6)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (points - points.mean(0)).T)
    white -= white.min(1, keepdims=True)
    step = max(bandwidth / STEPS, white.max() / MAX_SIDE)
    margin = int(np.ceil(REACH * bandwidth / step))
    at = white / step + margin
    shape = np.ceil(at.max(1)).astype(int) + margin + 1
    grid = _shared_out(at, tuple(shape))
    # Binning and interpolation are both linear; each adds a variance of 1/6 square step
    width = np.sqrt(max((bandwidth / step) ** 2 - 1 / 3, 0))
    smooth = gaussian_filter(grid, width, mode="constant", truncate=REACH)
    found = map_coordinates(smooth, at, order=1)
    return ((found - found.min()) / np.ptp(found)).astype(np.float32)


def _shared_out(at: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A grid on which each point's weight, one, is distributed bilinearly to the four surrounding grid points."""
    corner = np.floor(at).astype(np.int64)
    y, x = at - corner
    grid = np.zeros(shape[0] * shape[1])
    for down, right, weight in [(0, 0, (1 - y) * (1 - x)), (0, 1, (1 - y) * x), (1, 0, y * (1 - x)), (1, 1, y * x)]:
        grid += np.bincount((corner[0] + down) * shape[1] + corner[1] + right, weight, len(grid))
    return grid.reshape(shape)


def density_by(points: np.ndarray, groups: pd.Series) -> np.ndarray:
    """The density of each point among the points of its category, float32; NaN if its group is missing."""
    densities = np.full(len(points), np.nan, np.float32)
    for category, cells in groups.groupby(groups, observed=True).indices.items():
        densities[cells] = density(points[cells])
        if len(cells) < MIN_CELLS:
            stage.log.warning("%s %s: %d cells are too few for a density; set to 1", groups.name, category, len(cells))
    return densities


def needs(job: Job) -> Need:
    """The table of cells, and a grid."""
    return Need(job.process + 50 * MB + 0.8 * KB * job.n_kept, 10 + 5e-5 * job.n_kept, disk=20 * job.n_kept)


def main(snakemake: Any) -> None:
    """Read the UMAP and the categories (a clustering, or a column of obs), write `density.parquet`."""
    files, groupby = snakemake.input, snakemake.params.groupby
    obs = read_table(files.grouping[0] if files.grouping else files.obs)
    if groupby not in obs:
        raise UserError(f"density: groupby: there is no obs column {groupby!r}. Columns: {', '.join(obs.columns)}")
    points = read_table(files.umap).to_numpy(np.float64)
    table = pd.DataFrame({f"umap_density_{groupby}": density_by(points, as_categories(obs[groupby]))}, index=obs.index)
    uns = {f"{table.columns[0]}_params": {"covariate": groupby, "components": [1, 2]}}
    write_table(table, snakemake.output.density, "cohort", "obs", uns)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
