"""Cluster at other resolutions of Leiden, to suggest one for a reason.

How many clusters the data bear is told by where neighbouring resolutions agree (adjusted Rand index) and clusters are
apart (silhouette). One resolution is suggested, and none is taken. Leiden runs as in `trust_clusters`: on the run's own
graph, or, of many cells, on that of a sample of them.
"""

from lib.start import run

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from lib.methods import mixing, repeats
from lib.methods.repeats import Space, rand
from lib.report import facts
from lib.report.parts import Finished, Paragraph, Part, Table
from lib.report.words import count, listed
from lib.run import device as devices
from lib.run.resources import MB, Job, Need
from lib.store.files import read_table, write_tsv

CPU = devices.cpu()
SILHOUETTES = 1000  # cells whose silhouettes are computed
ITERATIONS = 2  # of Leiden, as scanpy advises
CHAPTER, SECTION = "Trust", "Clusters"


def silhouette_of(space: Space, labels: np.ndarray) -> float:
    """The mean silhouette of some cells of each cluster; NaN of one cluster."""
    sizes = np.bincount(labels)
    if len(sizes) < 2:
        return np.nan
    sample = mixing.stratified(labels, SILHOUETTES, 0)
    sums = mixing.distance_sums(space.X, sample.rows, labels, CPU)
    return sample.mean(mixing.silhouette(sums, sizes, labels[sample.rows]))


def scan(space: Space, resolutions: Sequence[float], seed: int) -> pd.DataFrame:
    """Leiden at each resolution: clusters, silhouette, agreement with the neighbouring resolutions, the suggested one.

    The suggested one has the largest product of agreement and silhouette, each on a scale from 0 to 1, of those with
    several clusters.
    """
    from leiden import leiden

    resolutions = sorted(resolutions)
    found = [leiden(space.graph, float(resolution), ITERATIONS, seed, CPU) for resolution in resolutions]
    between = [rand(one, other) for one, other in pairwise(found)]
    table = pd.DataFrame(
        {
            "resolution": resolutions,
            "clusters": [len(np.unique(labels)) for labels in found],
            "silhouette": [silhouette_of(space, labels) for labels in found],
            "agreement": [np.mean(between[max(0, i - 1) : i + 1] or [np.nan]) for i in range(len(found))],
        }
    )
    score = (table["silhouette"] + 1) / 2 * table["agreement"].clip(lower=0)
    best = score.idxmax() if score.notna().any() else -1
    return table.assign(suggested=["yes" if i == best else "" for i in table.index])


def needs(job: Job) -> Need:
    """Leiden at all resolutions."""
    return repeats.needs(job, len(job.config["trust"]["resolutions"]), 1 * MB)


def tells(run: Finished) -> Iterator[Part]:
    """The suggested resolution, and the table of all."""
    job = run.one("trust_resolutions")
    scanned = facts.tsv(job.resolutions)
    if len(scanned):
        yield Paragraph(suggestion_told(scanned), CHAPTER, SECTION)
        said = "Leiden at other resolutions: agreement is the mean adjusted Rand index with the neighbouring ones."
        yield Table(job.resolutions, "Resolutions", said, CHAPTER, SECTION)


def suggestion_told(scanned: pd.DataFrame) -> str:
    """A sentence on the suggested resolution."""
    best = scanned[scanned["suggested"] == "yes"]
    if best.empty:
        return "No resolution is suggested, as none has several clusters."
    row = best.iloc[0]
    return (
        f"Resolution {row['resolution']} is suggested, of {listed(scanned['resolution'], 12)}: its "
        f"{count(row['clusters'], 'cluster')} agree with those of the neighbouring resolutions (adjusted Rand index "
        f"{row['agreement']:.2f}) and are apart (silhouette {row['silhouette']:.2f}). It is not taken unless the "
        "config names it."
    )


def main(snakemake: Any) -> None:
    """Cluster at each resolution, write `trust_resolutions.tsv`."""
    files, params = snakemake.input, snakemake.params
    groups = read_table(files.clusterings[0], named=False).iloc[:, 0].cat.codes.to_numpy().astype(np.int64)
    space = repeats.read_space(files, groups, params.n_cells, params.seed, snakemake.threads)
    write_tsv(scan(space, params.resolutions, params.seed), snakemake.output.resolutions)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
