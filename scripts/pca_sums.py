"""Pass 1 of `pca` over one shard of the cells: the sums that the regression and the scaling follow from."""

from typing import Any

from lib.run import device as devices
from lib.run import stage
from lib.store.counts import Counts
from lib.store.files import write_arrays
from lib.store.shards import rows_of_part
from pca import normal_sums, read_cells


def main(snakemake: Any) -> None:
    """Read a shard's features and all cells' table, write the shard's sums."""
    files, params = snakemake.input, snakemake.params
    counts = Counts(files.features, devices.of(snakemake))
    totals, design, target_sum, _ = read_cells(files.obs, params)
    mine = rows_of_part(counts, files.obs)
    write_arrays(snakemake.output.sums, normal_sums(counts, totals[mine], design[mine], target_sum))


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
