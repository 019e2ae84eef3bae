"""The pass of `markers_ttest` over one shard of the cells: each group's sums of the genes' values and squares."""

from typing import Any

from lib.methods.markers import read_groups
from lib.run import device as devices
from lib.run import stage
from lib.store.cohort import Cohort
from lib.store.files import write_arrays
from markers_ttest import group_sums, read_totals


def main(snakemake: Any) -> None:
    """Read a shard of the cohort's counts and a grouping, write the shard's sums."""
    files, params, wildcards = snakemake.input, snakemake.params, snakemake.wildcards
    groups = read_groups(params.grouping, files.obs, files.grouping)
    shard = {"shard": wildcards.shard, "obs": files.obs}
    cohort = Cohort(files.counts, files.cells, files.genes, params.gene_key, devices.of(snakemake), **shard)
    totals, target_sum = read_totals(files.obs, params.target_sum)
    mine = cohort.rows
    sums, squares = group_sums(cohort, groups.codes[mine], len(groups.names), totals[mine], target_sum)
    write_arrays(snakemake.output.sums, {"sums": sums, "squares": squares})


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
