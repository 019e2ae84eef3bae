"""The features of one shard of the cells: as `features`, of a part of the cohort, its cells' table within."""

from typing import Any

from features import write_store
from lib.run import device as devices
from lib.run import stage
from lib.store.cohort import Cohort


def main(snakemake: Any) -> None:
    """Read a shard of the cohort's counts, write its part of the features."""
    files, shard = snakemake.input, snakemake.wildcards.shard
    device = devices.of(snakemake)
    cohort = Cohort(files.counts, files.cells, files.genes, snakemake.params.gene_key, device, shard=shard)
    write_store(cohort, files.hvg, snakemake.output.features)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
