"""The components of `pca`, from the Gram matrices of all shards: found once, so that all are projected on the same."""

from typing import Any

from lib.methods.scaling import Scaling
from lib.run import device as devices
from lib.run import stage
from lib.run.progress import timed
from lib.store.files import read_table, write_arrays
from lib.store.shards import combine
from pca import components_of, leading_components


def main(snakemake: Any) -> None:
    """Read the shards' Gram matrices, write the components, what the cells are centred by, and the scaling."""
    files, device = snakemake.input, devices.of(snakemake)
    n_obs = len(read_table(files.obs, []))
    sums = combine(files.gram, "ZZ", "sums")
    n_comps = components_of(snakemake.params.n_comps, n_obs, len(sums["ZZ"]))
    with timed("eigenvectors"):
        ZZ, Z_sums = (device.xp.asarray(sums[name]) for name in ("ZZ", "sums"))
        PCs, variance, total = leading_components(ZZ, Z_sums, n_obs, n_comps, device)
    arrays = {"PCs": PCs, "center": sums["sums"] / n_obs, "variance": variance, "variance_ratio": variance / total}
    scaling = Scaling.read(files.gram[0])
    write_arrays(snakemake.output.components, arrays | scaling.arrays(), **scaling.attrs())


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
