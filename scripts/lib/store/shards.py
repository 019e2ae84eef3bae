"""Shards: contiguous parts of the kept cells. A pass over the counts can run on each as a job of its own.

A stage's passes are functions from what it reads, and what its earlier passes found, to a dict of arrays. One job runs
them all; with shards each runs as jobs, and the stage starts from the files that these leave (`Passes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lib.run.errors import UserError
from lib.store.counts import Counts
from lib.store.csr import on_host
from lib.store.files import read_arrays, read_table, write_arrays

Arrays: TypeAlias = dict[str, Any]
Known: TypeAlias = Mapping[str, Arrays]  # what each pass found, over all cells
WHOLE = "1-of-1"  # the shard of a pass that is not cut
Join: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]


def appended(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The rows of both, one after the other: how arrays with a row a cell are joined."""
    return np.concatenate([one, other])


@dataclass(frozen=True)
class Passes:
    """The passes of a stage over the cohort, in order.

    Attributes
    ----------
    run
        Name -> the pass: from what `read` gives and the results of the passes before to arrays.
    read
        From the job (as Snakemake gives it) and its shard's name to what the passes read.
    joins
        Array -> how those of two shards become one. Others add up.
    """

    run: Mapping[str, Callable[[Any, Known], Arrays]]
    read: Callable[[Any, str], Any]
    joins: Mapping[str, Join] = field(default_factory=dict)

    def over_all(self, given: Any, n: int | None = None) -> Known:
        """What the passes, the first `n` of them (default: all), find over all cells, which `given` has."""
        known: dict[str, Arrays] = {}
        for name in list(self.run)[:n]:
            known[name] = self.run[name](given, known)
        return known

    def gathered(self, files: Sequence[str | Path]) -> Known:
        """What the passes found over all cells, from what their shards' jobs have left; empty without files."""
        return Gathered(files, self.joins)

    def over_shard(self, snakemake: Any, name: str, shard: str) -> None:
        """Run one pass on one shard, and write what it finds to the job's output."""
        known = self.gathered(snakemake.input.shards)
        arrays = self.run[name](self.read(snakemake, shard), known)
        write_arrays(snakemake.output[0], {key: on_host(array) for key, array in arrays.items()})


class Gathered(Mapping[str, Arrays]):
    """What passes found, read from the files of their shards when it is asked for.

    Parameters
    ----------
    files
        Those of a pass lie in a folder of its name, and are in the order of the cells.
    joins
        See `Passes`.
    """

    def __init__(self, files: Sequence[str | Path], joins: Mapping[str, Join]) -> None:
        self.files: dict[str, list[str | Path]] = {}
        self.joins = joins
        for file in files:
            self.files.setdefault(Path(file).parent.name, []).append(file)

    def __getitem__(self, name: str) -> Arrays:
        """The arrays of a pass, over all shards."""

        def both(one: Arrays, other: Arrays) -> Arrays:
            return {key: self.joins.get(key, np.add)(array, other[key]) for key, array in one.items()}

        return reduce(both, map(read_arrays, self.files[name]))

    def __iter__(self) -> Iterator[str]:
        """The names of the passes."""
        return iter(self.files)

    def __len__(self) -> int:
        """How many passes there are."""
        return len(self.files)


def cells_of_shard(shard: str, n_obs: int) -> slice:
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


def cells_of_part(part: Counts, obs: str | Path) -> slice:
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
