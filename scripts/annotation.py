"""Name the type of each cell by a model (`lib.methods.typing_model`), and of each small cluster by its cells' majority.

A cell whose best label has a probability below the threshold is "unassigned". The majority is taken within the
communities of a fine Leiden clustering, as CellTypist's majority voting does.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from lib.methods.typing_model import CELLS, UNASSIGNED, Model, label_cells
from lib.report import types as told_types
from lib.report.parts import Finished, Methods, Part
from lib.run import device as devices
from lib.run import stage
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import Cohort
from lib.store.files import read_table, write_table


def majority(labels: np.ndarray, clusters: np.ndarray, n_labels: int) -> np.ndarray:
    """The most frequent label of each cell's cluster, the first of equally frequent ones; integers from 0."""
    table = np.zeros((clusters.max(initial=-1) + 1, n_labels), np.int64)
    np.add.at(table, (clusters, labels), 1)
    return table.argmax(1)[clusters]


def tells(run: Finished) -> Iterator[Part]:
    """How many cells have no name, and how they got theirs."""
    threshold, reference = (run.config["annotation"][name] for name in ("threshold", "reference"))
    yield from told_types.of_unassigned(run, "annotation_label", "the reference may lack their types")
    how = "trained on" if run.of("annotation_model") else "given as"
    yield Methods(
        f"Cell types were named by a logistic regression {how} `{reference}`; cells whose best label has a probability "
        f"below {threshold:g} are unassigned, and the majority was taken within a fine Leiden clustering.",
        ["celltypist"],
    )


def needs(job: Job) -> Need:
    """Chunks, the dense values of the model's genes, and some numbers of each cell."""
    tables = job.places + 0.6 * KB * job.n_kept
    memory = job.pass_memory(200 * MB, 120 * MB + 16 * CELLS + tables)
    return Need(**memory, seconds=10 + 0.5e-6 * job.nnz, disk=20 * job.n_kept, vram=job.claim(1300 * MB, 24 * CELLS))


def main(snakemake: Any) -> None:
    """Read the model, the cohort's counts and the fine clustering; write the labels of the cells."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    model = Model.read(files.model)
    totals = read_table(files.obs, ["kept_counts"])["kept_counts"]
    counts = Cohort(files.counts, files.cells, files.genes, params.gene_key, device, obs=files.obs)
    what = f"the model {params.reference} (annotation: reference)"
    label, probability, second = label_cells(counts, model, counts.genes, totals.to_numpy(), what)
    names = np.array([*model.labels, UNASSIGNED], object)
    label = np.where(probability >= params.threshold, label, len(model.labels))
    clusters = read_table(files.over_clustering).iloc[:, 0].cat.codes.to_numpy()
    voted = majority(label, clusters, len(names))
    lost = int((label == len(model.labels)).sum())
    stage.log.info("%d of %d cells unassigned, %d after the vote", lost, len(label), (voted == len(model.labels)).sum())
    if lost > 0.5 * len(label):
        stage.notice(
            "annotation: %d of %d cells are unassigned (probability below %g): the reference may lack their types",
            *(lost, len(label), params.threshold),
        )
    table = pd.DataFrame(
        {
            "annotation_label": of_names(names, label),
            "annotation_probability": probability,
            "annotation_second": of_names(names, second),
            "annotation_majority": of_names(names, voted),
        },
        index=totals.index,
    )
    uns = {"annotation": {"params": {"reference": str(params.reference), "threshold": params.threshold}}}
    write_table(table, snakemake.output.annotation, "cohort", "obs", uns)


def of_names(names: np.ndarray, codes: np.ndarray) -> pd.Categorical:
    """The names as categories, without those of no cell."""
    return pd.Categorical(names[codes]).remove_unused_categories()


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
