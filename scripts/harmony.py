"""Harmony: the cells' principal components, corrected for their batches.

Harmony alternates soft clustering, which is rewarded for clusters that mix the batches, with a linear correction per
cluster and batch. Source: Korsunsky et al. 2019; `lib.methods.harmony` has the algorithm.
"""

from lib.start import run

from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import pandas as pd
from lib.methods import harmony as algorithm
from lib.methods.tolerances import Tolerance
from lib.report import facts
from lib.report.parts import Finding, Finished, Methods, Numbers, Part
from lib.report.words import count, percent
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import CUPY, MB, PYTHON, Job, Need
from lib.store.categories import as_categories
from lib.store.files import read_arrays, read_attrs, read_table, write_arrays

UNMIXED = 0.5  # a larger part of the way from mixed batches to separate ones is told in the report
SOME, MIXED = 2000, 15  # cells whose neighbours are looked at for it, and the number of these
# How far results may lie from those of a sample of cells (`trust_stages`)
TOLERANCES = {
    "correlation": Tolerance(0.9, "of a sample there are fewer clusters, and they lie elsewhere", True),
}


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
) -> algorithm.Integrated:
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
    return Need(mem, seconds, points, 300 * MB + 3 * points + 1200 * job.n_kept, gpu_mem, reads=points)


def tells(run: Finished) -> Iterator[Part]:
    """Whether it converged, and how well the batches mix before and after it."""
    path, config = run.one("harmony").harmony, run.config
    known = read_attrs(path)
    figures = [*run.files("figures_pca", "components"), *run.files("figures_pca", "harmony")]
    figure = run.figure("before and after Harmony")
    if "skipped" in known:
        for one in figures:
            yield Numbers(one, f"Harmony was skipped: {known['skipped']}.")
        return
    keys = config["harmony"]["keys"] or [config["batch_key"]]
    if known["change"] > algorithm.EPSILON_HARMONY:
        said = f"the objective still changed by {percent(known['change'])} in round {known['rounds']}, the last"
        limit = f"expected at most {percent(algorithm.EPSILON_HARMONY)}; raise `harmony: max_iter_harmony`"
        yield Finding("Harmony", said, limit, min(5, known["change"] / algorithm.EPSILON_HARMONY), figure)
    obs = facts.obs(run, *keys)
    codes = pd.factorize(obs[keys[0]])[0] if len(keys) == 1 else obs.groupby(keys, dropna=False).ngroup().to_numpy()
    n_pcs = config["neighbors"]["n_pcs"]
    before, after, chance = mixing_told(run.one("pca").pca, path, codes, n_pcs)
    said = f"Of a cell's nearest neighbours {percent(before)} are of its own batch before Harmony and {percent(after)} "
    said += f"after it; {percent(chance)} would be if the batches were fully mixed."
    for one in figures:
        yield Numbers(one, said)
    left = (after - chance) / max(1 - chance, 1e-9)
    if left > UNMIXED and not run.of("trust_integration"):  # which tells it batch by batch
        said = (
            f"{percent(after)} of a cell's nearest neighbours are of its own batch after it, {percent(before)} before"
        )
        limit = f"expected at most {percent(chance + UNMIXED * (1 - chance))}; {percent(chance)} if fully mixed"
        yield Finding("Harmony", said, limit, left / UNMIXED, figure)
    yield Methods(
        f"Batches (`{', '.join(keys)}`) were integrated by Harmony in {count(known['rounds'], 'round')} (theta "
        f"{config['harmony']['theta']:g}).",
        ["harmony"],
    )


def mixing_told(pca: str, harmony: str, codes: np.ndarray, n_pcs: int) -> tuple[float, float, float]:
    """The share of the nearest neighbours of some cells, among these, that are of the cell's own batch.

    Returns
    -------
    Among MIXED neighbours of at most SOME cells drawn at random: before Harmony, after it, and if batches were mixed.
    """
    rows = np.sort(np.random.default_rng(0).choice(len(codes), min(SOME, len(codes)), replace=False))
    own, sizes = codes[rows], np.bincount(codes[rows])
    k = min(MIXED, len(rows) - 1)
    found = []
    for path, name in ((pca, "X_pca"), (harmony, "X_pca_harmony")):
        with h5py.File(path, "r", locking=False) as file:
            X = file[name][:, :n_pcs][rows]
        squares = (X * X).sum(1)
        distances = squares[:, None] + squares - 2 * (X @ X.T)
        np.fill_diagonal(distances, np.inf)
        near = np.argpartition(distances, k - 1, axis=1)[:, :k]
        found.append(float((own[near] == own[:, None]).mean()))
    return *found, float((sizes * (sizes - 1)).sum() / (len(rows) * (len(rows) - 1)))


def main(snakemake: Any) -> None:
    """Read PCA and the batches, write `harmony.h5`."""
    keys = list(snakemake.params.vars_use)
    obs = batch_columns(read_table(snakemake.input.obs, named=False), keys)
    if obs.columns.empty:
        skipped = f"only one batch ({', '.join(keys)})"
        stage.log.info("harmony skipped: %s", skipped)
        write_arrays(snakemake.output.harmony, {}, snakemake.input.pca, skipped=skipped)
        return
    stage.log.info("integrating over %s", {key: obs[key].nunique() for key in obs})
    X_pca = read_arrays(snakemake.input.pca, "X_pca")["X_pca"]
    device, seed = devices.of(snakemake), snakemake.params.seed
    found = harmonize(X_pca, obs, snakemake.params.harmony, seed, device, snakemake.threads)
    slots = {"X_pca_harmony": "obsm/X_pca_harmony"}
    ended = {"rounds": found.rounds, "change": found.change}
    write_arrays(snakemake.output.harmony, {"X_pca_harmony": found.X}, snakemake.input.pca, slots, **ended)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
