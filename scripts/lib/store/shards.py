"""Shards: contiguous parts of the kept cells, whose passes run as jobs of their own and whose sums add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path

import numpy as np

from lib.run.errors import UserError
from lib.store.counts import Counts
from lib.store.files import read_arrays, read_table


def rows_of(shard: str, n_obs: int) -> slice:
    """The cells of a shard among `n_obs`: "2-of-3" is the second of three, as large as the others to a cell.

    Raises
    ------
    UserError
        If there are fewer cells than shards.
    """
    number, n = map(int, shard.split("-of-"))
    if n > n_obs:
        raise UserError(f"the config's shards are {n}, but there are {n_obs} kept cells. Set `shards` to 1.")
    return slice((number - 1) * n_obs // n, number * n_obs // n)


def rows_of_part(part: Counts, obs: str | Path) -> slice:
    """Where the cells of a shard's part of the features stand in the cohort's `obs.parquet`.

    Raises
    ------
    UserError
        If that table does not have them, one after the other.
    """
    mine, names = part.names("obs"), read_table(obs, columns=[]).index
    start = int(names.get_indexer(mine[:1])[0]) if len(mine) else 0
    if start < 0 or not np.array_equal(names[start : start + len(mine)], mine):
        raise UserError(
            f"{part.path} and {obs} are not of the same cells: one of them is of an earlier run. Delete both, and run "
            "snakemake again."
        )
    return slice(start, start + len(mine))


def combine(
    files: Sequence[str | Path], *names: str, **others: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """The named arrays (default: all) that each shard wrote, over all shards.

    They are added up, but for those that `others` has another function for.
    """

    def both(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: others.get(name, np.add)(array, other[name]) for name, array in one.items()}

    return reduce(both, (read_arrays(file, *names) for file in files))
