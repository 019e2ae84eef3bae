"""A pass of `hvg` over the counts of one shard of the cells: its sums, which add up over shards.

What they are depends on the flavour, and on the pass (`hvg.next_sums`): of seurat_v3 the counts and their squares, then
what clipping takes off them, for which each shard fits the deviations of the batches that it has cells of.
"""

from typing import Any

from hvg import next_sums, read_choice, read_passes
from lib.run import device as devices
from lib.run import stage
from lib.store.cohort import Cohort
from lib.store.files import write_arrays


def main(snakemake: Any) -> None:
    """Read a shard of the cohort's counts, write its sums."""
    files, params, shard = snakemake.input, snakemake.params, snakemake.wildcards.shard
    batches, *_ = read_choice(snakemake)
    counts = Cohort(files.counts, files.cells, files.genes, params.gene_key, devices.of(snakemake), shard=shard)
    batches = batches.of_shard(counts.rows)
    sums = next_sums(counts, batches, params.hvg, params.target_sum, read_passes(files.first))
    write_arrays(snakemake.output.sums, sums)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
