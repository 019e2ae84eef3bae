"""Write the table of the cells of one group, which is clustered again (`subclusters`).

It is to the stages that follow what `obs.parquet` is to those of the cohort: they stream the counts of its cells.
"""

from lib.start import run

from typing import Any

import numpy as np
import pandas as pd
from lib.inputs import subgroups
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import as_categories
from lib.store.cohort import with_results
from lib.store.files import column_names, read_table, write_table


def read_labels(inputs: Any, grouping: str) -> pd.Series:
    """Each cell's group, a categorical of strings: a column of `obs`, or of the table of the grouping.

    Raises
    ------
    UserError
        If there is no such column.
    """
    path = next(iter(inputs.grouping), inputs.obs)
    if grouping not in (columns := column_names(path)):
        raise UserError(f"subclusters: grouping: there is no obs column {grouping!r}; there are {', '.join(columns)}")
    return as_categories(read_table(path, [grouping])[grouping])


def cells_of(obs: pd.DataFrame, mine: np.ndarray) -> pd.DataFrame:
    """The rows of a mask; categories without cells are dropped, as those of a cohort of these cells would be."""
    found = obs[mine].copy()
    for name in found.select_dtypes("category"):
        found[name] = found[name].cat.remove_unused_categories()
    return found


def needs(job: Job) -> Need:
    """The table of all cells, and the part of it."""
    return Need(job.process + 50 * MB + 1.4 * KB * job.n_obs, seconds=5, disk=200 * job.n_kept)


def main(snakemake: Any) -> None:
    """Read the cohort's table and the grouping, check all groups, write `sub/{group}/obs.parquet`."""
    inputs, params = snakemake.input, snakemake.params
    labels = read_labels(inputs, params.grouping)
    subgroups.check(params.groups, labels.value_counts(sort=False).to_dict(), params.grouping, "kept")
    mine = (labels == params.group).to_numpy()
    obs = with_results(read_table(inputs.obs), *map(read_table, inputs.cell_cycle))
    stage.log.info("%d of %d cells are %s", mine.sum(), len(obs), params.group)
    write_table(cells_of(obs, mine), snakemake.output.obs, "cohort")


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
