"""Harmony: the cells' principal components, corrected for their batches.

Harmony alternates soft clustering, which is rewarded for clusters that mix the batches, with a linear correction per
cluster and batch. Source: Korsunsky et al. 2019; `lib.methods.harmony` has the algorithm.
"""

from lib.start import run

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from lib.methods import harmony as algorithm
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import CUPY, MB, PYTHON, Job, Need
from lib.store.categories import as_categories
from lib.store.files import read_arrays, read_table, write_arrays


def batch_columns(obs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The columns of `obs` to integrate over: those of `keys` with at least two batches.

    Raises
    ------
    UserError
        If a key is no column of `obs`, or has missing values.
    """
    for key in keys:
        if key not in obs:
            raise UserError(f"harmony: keys: there is no obs column {key!r}. Columns: {', '.join(obs.columns)}")
        if missing := int(obs[key].isna().sum()):
            raise UserError(
                f"harmony: keys: {missing} of {len(obs)} cells have no {key!r}. Give every cell a batch "
                "in the sample sheet or in its file, or choose another column."
            )
    columns = pd.DataFrame({key: as_categories(obs[key]).astype(str) for key in keys}, obs.index)
    return columns.loc[:, columns.nunique() > 1]


def harmonize(
    X_pca: np.ndarray, obs: pd.DataFrame, config: dict[str, Any], seed: int, device: devices.Device, n_jobs: int
) -> np.ndarray:
    """The integrated components: from a cluster for every 30 cells, 100 at most.

    Parameters
    ----------
    X_pca
        cells x components, float32.
    obs
        cells x keys: the batches.
    config
        theta, sigma, lamb and max_iter_harmony, as harmonypy names them.
    seed
        Equal seeds give equal results on one kind of device, whatever `n_jobs`.
    device
        Where to compute.
    n_jobs
        Threads of the CPU.

    Returns
    -------
    cells x components, float32.
    """
    nclust = max(1, min(round(len(X_pca) / 30), 100))
    codes = np.stack([pd.factorize(obs[key], sort=True)[0] for key in obs], axis=1)
    theta, sigma, lamb, max_iter = (config[key] for key in ("theta", "sigma", "lamb", "max_iter_harmony"))
    return algorithm.harmonize(X_pca, codes, theta, sigma, lamb, nclust, max_iter, seed, device, n_jobs)


def needs(job: Job) -> Need:
    """Some copies of the components, each cell's share in 100 clusters, and these clusters' sums in each batch."""
    sums = 5 * 8 * 100 * job.n_comps * job.n_batches
    points = 4 * job.n_comps * job.n_kept
    mem = job.process + 20 * MB + 4 * points + 400 * job.n_kept + 700 * job.n_kept + sums
    gpu_mem = PYTHON + CUPY + 8 * points + 800 * job.n_kept
    seconds = 5 + 1e-4 * job.n_kept * (1 + job.n_batches / 20)
    return Need(mem, seconds, points, 600 * MB + 6 * points + 1600 * job.n_kept, gpu_mem, reads=points)


def main(snakemake: Any) -> None:
    """Read PCA and the batches, write `harmony.h5`."""
    keys = list(snakemake.params.vars_use)
    obs = batch_columns(read_table(snakemake.input.obs), keys)
    if obs.columns.empty:
        skipped = f"only one batch ({', '.join(keys)})"
        stage.log.info("harmony skipped: %s", skipped)
        write_arrays(snakemake.output.harmony, {}, snakemake.input.pca, skipped=skipped)
        return
    stage.log.info("integrating over %s", {key: obs[key].nunique() for key in obs})
    X_pca = read_arrays(snakemake.input.pca, "X_pca")["X_pca"]
    device, seed = devices.of(snakemake), snakemake.params.seed
    X = harmonize(X_pca, obs, snakemake.params.harmony, seed, device, snakemake.threads)
    slots = {"X_pca_harmony": "obsm/X_pca_harmony"}
    write_arrays(snakemake.output.harmony, {"X_pca_harmony": X}, snakemake.input.pca, slots)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
