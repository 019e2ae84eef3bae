"""Name the type of each cluster by its markers: the set of genes whose scores stand out most in its cells.

The scores of a set are standardised over all cells. A cluster gets the set with the largest mean, and its margin, the
difference to the second largest. A cluster is "unassigned" if no set has a mean above 0, or if the best set scores no
higher there than in the average cell's genes (mean raw score of 0 or less, for methods that have signs).
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from lib.methods.typing_model import UNASSIGNED
from lib.report import facts
from lib.report import types as told_types
from lib.report.parts import Finished, Methods, Part, Table
from lib.report.words import count
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import KB, MB, PYTHON, Job, Need
from lib.store.files import read_table, write_table, write_tsv


def best_sets(scores: pd.DataFrame, codes: np.ndarray, names: list[str]) -> pd.DataFrame:
    """For each cluster its best set, that set's mean standardised score, the second set, and the margin.

    Parameters
    ----------
    scores
        cells x sets, at least two sets.
    codes, names
        Each cell's cluster, and the clusters' names.
    """
    values = scores.to_numpy(np.float64)
    sizes = np.bincount(codes, minlength=len(names))
    raw = np.stack([np.bincount(codes, column, len(names)) for column in values.T], 1) / sizes[:, None]
    deviation = values.std(0)
    means = (raw - values.mean(0)) / np.where(deviation > 0, deviation, 1)
    order = np.argsort(-means, axis=1, kind="stable")
    rows = np.arange(len(names))
    best, second = order[:, 0], order[:, 1]
    found = (means[rows, best] > 0) & (raw[rows, best] > 0)
    sets = scores.columns.to_numpy(object)
    table = {"cluster": names, "n_cells": sizes, "label": np.where(found, sets[best], UNASSIGNED)}
    table |= {"best": sets[best], "score": means[rows, best], "second": sets[second]}
    return pd.DataFrame(table | {"margin": means[rows, best] - means[rows, second]})


def tells(run: Finished) -> Iterator[Part]:
    """How many cells are in clusters without a name, and the clusters' table."""
    table, collection = run.one("annotation_markers").table, run.config["annotation"]["markers"]
    yield from told_types.of_unassigned(
        run, "annotation_markers", f"no set of `{collection}` stands out in their clusters"
    )
    found = facts.tsv(table)
    n_named = (found["label"] != UNASSIGNED).sum()
    said = f"{n_named} of {count(len(found), 'cluster')} have a name by the sets of `{collection}`. The margin is the "
    said += "difference of the best and the second mean score, in standard deviations of all cells."
    yield Table(table, "Names of clusters by markers", said, **told_types.PLACE, columns=told_types.NAMED)
    method = run.config["scores"]["methods"][0]
    yield Methods(f"Each cluster was named by the set of `{collection}` whose scores ({method}) stand out most there.")


def needs(job: Job) -> Need:
    """The scores of all cells."""
    return Need(PYTHON + 60 * MB + 1.5 * KB * job.n_kept, 20 + 1e-5 * job.n_kept, MB + 20 * job.n_kept)


def main(snakemake: Any) -> None:
    """Read the scores of a collection and a clustering; write each cell's label, and the clusters' table."""
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    scores, clustering = read_table(inputs.scores), read_table(inputs.clustering)
    if scores.shape[1] < 2:
        raise UserError(
            f"annotation: markers: {params.collection} has one set with enough genes (scores: tmin); two are needed to "
            "choose from"
        )
    labels = clustering.iloc[:, 0]
    table = best_sets(scores, labels.cat.codes.to_numpy(), list(labels.cat.categories))
    write_tsv(table, output.table)
    for row in table.itertuples():
        stage.log.info("%s: %s (margin %.2f)", row.cluster, row.label, row.margin)
    if (lost := table["label"] == UNASSIGNED).any():
        stage.notice(
            "annotation by %s: no set stands out in clusters %s", params.collection, ", ".join(table["cluster"][lost])
        )
    by_cell = table.iloc[labels.cat.codes.to_numpy()].set_index(scores.index)
    found = pd.DataFrame(
        {
            "annotation_markers": pd.Categorical(by_cell["label"]),
            "annotation_margin": by_cell["margin"].astype(np.float32),
        }
    )
    uns = {"annotation_markers": {"params": {"collection": params.collection, "clustering": str(labels.name)}}}
    write_table(found, output.annotation, "cohort", "obs", uns)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
