"""Sum the counts of each sample's cells of each group, in one pass over the counts: pseudobulks.

X of the file are the sums of counts, integers; obs the profiles, with `sample`, `group`, `n_cells`, `total_counts`,
`few_cells` (fewer than `min_cells`), and the columns of obs that are constant within every sample; layers `pct_nz`, the
share of a profile's cells that express a gene, and `mean` and `var` of their log-normalised values, by which cells can
be tested. Genes are the kept ones. Source: decoupler's `pp.pseudobulk`; scanpy's `get.aggregate`.
"""

from lib.start import run

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
import pandas as pd
from lib.inputs.computed import COMPUTED
from lib.inputs.contrasts import samples_of
from lib.methods.pseudobulk import Profiles, check_not_empty, layers_of, profile_sums, read_profiles
from lib.methods.scaling import target_of
from lib.report.parts import Finished, Methods, Part
from lib.report.words import listed
from lib.run import device as devices
from lib.run import stage
from lib.run.clock import spending
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import as_categories
from lib.store.cohort import Cohort, kept_genes
from lib.store.files import LIBVER, column_names, read_column, read_table, replacing
from lib.store.h5ad import plain_strings
from lib.store.shards import Arrays, Known, Passes
from lib.store.stream import Stream

OWN = ("group", "n_cells", "total_counts", "few_cells")  # columns of the profiles
PART = 60e6  # profiles x genes of a chunk at most (`lib.methods.pseudobulk.BLOCK`)
BYTES = 48  # of a profile and gene: four sums, the layers, and the counts as they are written


@dataclass(frozen=True)
class Cells:
    """The input of the pass: the counts in the kept genes, and the cells' profiles and totals.

    Attributes
    ----------
    counts, codes, n_profiles, totals, target_sum
        See `profile_sums`; for all cells, or for a shard.
    """

    counts: Stream
    codes: np.ndarray
    n_profiles: int
    totals: np.ndarray
    target_sum: float


def sums_pass(cells: Cells, known: Known) -> Arrays:
    """The only pass."""
    return profile_sums(cells.counts, cells.codes, cells.n_profiles, cells.totals, cells.target_sum)


def read(snakemake: Any, shard: str | None = None) -> Cells:
    """The cohort's counts, and the profiles of a grouping."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    profiles = read_profiles(files.obs, files.grouping, params.grouping, params.sample_key)
    check_not_empty(profiles, params.grouping, params.sample_key)
    totals = read_column(files.obs, "kept_counts")
    counts = Cohort(files.counts, files.cells, files.genes, params.gene_key, device, shard=shard, obs=files.obs)
    rows, target_sum = counts.rows, target_of(totals, params.target_sum)
    return Cells(counts, profiles.codes[rows], len(profiles.obs), totals[rows], target_sum)


PASSES = Passes({"sums": sums_pass}, read)


def constant_columns(obs: str, sample_key: str) -> pd.DataFrame:
    """The columns of the sheet and the files with one value in every sample: samples x columns."""
    key = read_table(obs, [sample_key])[sample_key]
    codes = as_categories(key).cat.codes.to_numpy()
    first = np.flatnonzero(~pd.Series(codes).duplicated() & (codes >= 0))
    of_code = np.zeros(codes.max(initial=-1) + 2, np.int64)
    of_code[codes[first]] = first
    found = {}
    for name in column_names(obs):
        if name in (sample_key, "sample", *OWN) or name.startswith("__") or COMPUTED.fullmatch(name):
            continue
        values = read_table(obs, [name]).get(name)  # the index has no values
        if values is None or values.isna().all():
            continue
        if not pd.api.types.is_float_dtype(values.dtype):
            values = pd.Series(pd.factorize(values)[0])
        if same(values.to_numpy()[codes >= 0], values.to_numpy()[of_code[codes[codes >= 0]]]):
            found[name] = read_table(obs, [name])[name]
    table = pd.DataFrame({sample_key: key, **found}, key.index)
    return samples_of(table, sample_key, list(found))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether all values are equal, or both missing."""
    equal = one == other
    return bool((equal | ((one != one) & (other != other))).all())


def described(profiles: Profiles, sums: np.ndarray, samples: pd.DataFrame, min_cells: int) -> pd.DataFrame:
    """The obs of the file."""
    obs = profiles.obs.assign(total_counts=sums.sum(1), few_cells=profiles.obs["n_cells"] < min_cells)
    of_profile = samples.reindex(obs["sample"].astype(str)).set_axis(obs.index)
    text = [name for name in of_profile if not pd.api.types.is_numeric_dtype(of_profile[name].dtype)]
    return pd.concat([obs, of_profile.assign(**{name: as_categories(of_profile[name]) for name in text})], axis=1)


def needs(job: Job) -> Need:
    """Sums per profile and gene, of a profile for each sample and group."""
    values = max(job.n_samples, job.n_batches) * job.n_groups * job.n_vars
    if job.part:
        return replace(job.of_shard(needs, 0.3 * KB), disk=28 * values)
    memory = job.pass_memory(370 * MB, job.places + BYTES * values + 0.8 * KB * job.n_kept, gpu_chunk=40 * MB)
    seconds = 20 + 0.4e-6 * job.nnz + 5e-8 * values
    need = Need(**memory, seconds=seconds, disk=10 * values, vram=job.claim(1700 * MB, 32 * min(values, PART)))
    return job.reduced(need, 100 * MB + BYTES * values + 0.8 * KB * job.n_kept)


def tells(run: Finished) -> Iterator[Part]:
    """What was summed."""
    names = listed(f"`{job.wildcards['grouping']}`" for job in run.of("pseudobulk"))
    options = run.config["pseudobulk"]
    if names:
        yield Methods(
            f"Counts were summed over the cells of each `{options['sample_key']}` in each group of {names} "
            f"(pseudobulks); sums of fewer than {options['min_cells']} cells were not tested."
        )


def main(snakemake: Any) -> None:
    """Read the cohort's counts, or the results of shards, and a grouping; write the pseudobulks as AnnData."""
    from anndata.io import write_elem

    files, params = snakemake.input, snakemake.params
    profiles = read_profiles(files.obs, files.grouping, params.grouping, params.sample_key)
    check_not_empty(profiles, params.grouping, params.sample_key)
    found = (PASSES.gathered(files.shards) or PASSES.over_all(read(snakemake)))["sums"]
    samples = constant_columns(files.obs, params.sample_key)
    obs = described(profiles, found["sums"], samples, params.min_cells)
    small = found["sums"].max(initial=0) < 2**31
    elements = {"X": found["sums"].astype(np.int32 if small else np.int64), "obs": plain_strings(obs)}
    elements["var"] = plain_strings(kept_genes(files.genes).drop(columns="kept"))
    told = {"grouping": params.grouping, "sample_key": params.sample_key, "min_cells": params.min_cells}
    elements |= {"layers": layers_of(found, obs["n_cells"].to_numpy()), "uns": {"pseudobulk": told}}
    packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    with replacing(snakemake.output.pseudobulk) as partial, h5py.File(partial, "w", libver=LIBVER) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        with spending("write"):
            for name, element in elements.items():
                write_elem(file, name, element, dataset_kwargs=packed if name in ("X", "layers") else {})
    few = obs[obs["few_cells"]]
    stage.log.info("%d profiles of %d samples, %d of few cells", len(obs), obs["sample"].nunique(), len(few))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
