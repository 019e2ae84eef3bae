"""Pass 2 of `pca` over one shard of the cells: its scaled matrix's Gram matrix and column sums.

Each shard adds up the sums of pass 1 and solves for the scaling, which takes less than a job of its own would.
"""

from typing import Any

from lib.run import device as devices
from lib.run import stage
from lib.store.counts import Counts
from lib.store.files import write_arrays
from lib.store.shards import combine, rows_of_part
from pca import gram, read_cells, solve_scaling


def main(snakemake: Any) -> None:
    """Read a shard's features and all shards' sums, write the shard's Gram matrix (see `gram`) and the scaling."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    totals, design, target_sum, keys = read_cells(files.obs, params)
    scale = params.scale
    sums = combine(files.sums)
    scaling = solve_scaling(sums, len(totals), target_sum, keys, scale["enabled"], scale["max_value"])
    counts = Counts(files.features, device)
    mine = rows_of_part(counts, files.obs)
    ZZ, Z_sums = gram(counts, totals[mine], design[mine], scaling)
    arrays = {"ZZ": device.to_host(ZZ), "sums": device.to_host(Z_sums)}
    write_arrays(snakemake.output.gram, arrays | scaling.arrays(), **scaling.attrs())


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
