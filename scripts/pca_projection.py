"""Pass 3 of `pca` over one shard of the cells: their places along the components."""

from typing import Any

from lib.methods.scaling import Scaling
from lib.run import device as devices
from lib.run import stage
from lib.store.counts import Counts
from lib.store.files import read_arrays, write_arrays
from lib.store.shards import rows_of_part
from pca import project, read_cells


def main(snakemake: Any) -> None:
    """Read a shard's features and the components, write the shard's rows of X_pca."""
    files = snakemake.input
    counts = Counts(files.features, devices.of(snakemake))
    totals, design, *_ = read_cells(files.obs, snakemake.params)
    mine = rows_of_part(counts, files.obs)
    found, scaling = read_arrays(files.components, "PCs", "center"), Scaling.read(files.components)
    X_pca = project(counts, totals[mine], design[mine], scaling, found["PCs"], found["center"])
    write_arrays(snakemake.output.projection, {"X_pca": X_pca}, files.features)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
