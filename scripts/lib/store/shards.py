"""Shards: contiguous parts of the kept cells. A pass over the counts can run on each shard in a separate job.

A pass of a stage is a function of the stage's input and of the results of earlier passes; it returns a dict of arrays.
Without shards one job runs all passes. With shards each pass runs as one job per shard, and the stage starts from the
files of these jobs (`Passes`).
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
Known: TypeAlias = Mapping[str, Arrays]  # the result of each pass, over all cells
WHOLE = "1-of-1"  # the shard of a pass that is not cut
Join: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]


def appended(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The rows of both, concatenated: the join of arrays with one row per cell."""
    return np.concatenate([one, other])


@dataclass(frozen=True)
class Passes:
    """The passes of a stage over the cohort, in order.

    Attributes
    ----------
    run
        Name -> the pass, a function of the input that `read` returns and the results of earlier passes.
    read
        A function of Snakemake's job and a shard's name that returns the input of the passes.
    joins
        Array -> the function that joins the arrays of two shards. Other arrays are added.
    """

    run: Mapping[str, Callable[[Any, Known], Arrays]]
    read: Callable[[Any, str], Any]
    joins: Mapping[str, Join] = field(default_factory=dict)

    def over_all(self, given: Any, n: int | None = None) -> Known:
        """The results of the first `n` passes (default: all) over all cells, with the input `given`."""
        known: dict[str, Arrays] = {}
        for name in list(self.run)[:n]:
            known[name] = self.run[name](given, known)
        return known

    def gathered(self, files: Sequence[str | Path]) -> Known:
        """The results of the passes over all cells, from the files of their shards; empty without files."""
        return Gathered(files, self.joins)

    def over_shard(self, snakemake: Any, name: str, shard: str) -> None:
        """Run one pass on one shard, and write its result to the job's output."""
        known = self.gathered(snakemake.input.shards)
        arrays = self.run[name](self.read(snakemake, shard), known)
        write_arrays(snakemake.output[0], {key: on_host(array) for key, array in arrays.items()})


class Gathered(Mapping[str, Arrays]):
    """The results of passes, read from the files of their shards on access.

    Parameters
    ----------
    files
        The files of all passes. Each pass has a folder of its name; its files are in the order of the cells.
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
        """The number of passes."""
        return len(self.files)


def cells_of_shard(shard: str, n_obs: int) -> slice:
    """The cells of a shard among `n_obs`: "2-of-3" is the second of three; sizes differ by at most one cell.

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
    """The rows of the cohort's `obs.parquet` that hold the cells of a shard's part of the features.

    Raises
    ------
    UserError
        If that table does not have them in consecutive rows.
    """
    mine, names = part.names("obs"), read_table(obs, columns=[]).index
    start = int(names.get_indexer(mine[:1])[0]) if len(mine) else 0
    if start < 0 or not np.array_equal(names[start : start + len(mine)], mine):
        raise UserError(
            f"{part.path} and {obs} are not of the same cells: one of them is of an earlier run. Delete both, and run "
            "snakemake again."
        )
    return slice(start, start + len(mine))
