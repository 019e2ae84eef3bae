"""Write X and `layers['counts']` of the atlas: the kept genes of all cells, streamed.

X holds log(1 + counts * target_sum / total), `layers['counts']` the counts. Both have the same non-zeros: they share
one `indices` and one `indptr` by HDF5 hard links. `atlas` adds all other slots to a copy of the file: most of the atlas
is known long before its clusterings and markers, and is written beside them.
"""

from lib.start import run

from typing import Any

import h5py
import numpy as np
from lib.methods.scaling import log_normalize, target_of
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.progress import progress
from lib.run.resources import MB, Job, Need
from lib.store import identity
from lib.store.cohort import Cohort
from lib.store.compressed import CompressedArray
from lib.store.csr import row_sums
from lib.store.files import LIBVER, read_column, replacing
from lib.store.stream import Stream


def write_matrices(
    file: h5py.File, counts: Stream, totals: np.ndarray, target_sum: float, dtype: Any = np.uint32
) -> int:
    """Write X (float32) and `layers/counts` (int32) as CSR, streamed; return the number of non-zeros.

    Parameters
    ----------
    file
        A file open for writing.
    counts
        cells x genes.
    totals, target_sum
        See `log_normalize`.
    dtype
        An unsigned dtype that holds every count; a GPU's counts are copied in it.

    Raises
    ------
    UserError
        If a cell's counts do not sum to its total.
    """
    device = counts.device
    columns = np.uint16 if counts.n_vars <= 1 << 16 else np.int32
    X, layer = file.create_group("X"), file.create_group("layers/counts")
    values, numbers = CompressedArray(X, "data", np.float32), CompressedArray(layer, "data", np.int32)
    indices = CompressedArray(X, "indices", np.int32)
    lengths = [np.zeros(1, np.int64)]
    for chunk in progress(counts.chunks(), counts.n_obs, "X and counts"):
        sums = device.to_host(row_sums(chunk.X, device))
        if len(other := np.flatnonzero(sums != totals[chunk.rows])):
            row = chunk.start + other[0]
            raise UserError(
                f"cell {row + 1} of the cohort has {sums[other[0]]} counts in the kept genes, but {totals[row]} by "
                f"kept_counts of obs.parquet, which is of other cells or genes. {again('features')}"
            )
        normalized = log_normalize(chunk.X, totals[chunk.rows], target_sum, device)
        values.append(device.to_host(normalized.data))
        numbers.append(compact(chunk.X.data, dtype, device))
        indices.append(compact(chunk.X.indices, columns, device))
        lengths.append(np.diff(device.to_host(chunk.X.indptr)))
    for array in (values, numbers, indices):
        array.close()
    indptr = np.concatenate(lengths).cumsum()
    # SciPy wants the same dtype as for indices, if the numbers allow it
    indptr = indptr.astype(np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64)
    X["indptr"] = indptr
    for name in ("indices", "indptr"):
        layer[name] = X[name]
    for group in (X, layer):
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([counts.n_obs, counts.n_vars])
    file["layers"].attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    return int(indptr[-1])


def compact(array: Any, dtype: Any, device: devices.Device) -> np.ndarray:
    """An array on the host; an array of a GPU is copied as `dtype`."""
    return device.to_host(array.astype(dtype) if device.is_gpu else array)


def again(rule: str) -> str:
    """The advice in an error about an artifact that does not fit the others."""
    return f"Make it anew: `snakemake --forcerun {rule}`."


def needs(job: Job) -> Need:
    """Chunks that wait to be deflated."""
    memory = job.pass_memory(500 * MB, 40 * MB + job.places, gpu_chunk=700 * MB)
    return Need(**memory, seconds=10 + 0.1e-6 * job.nnz, disk=6 * job.nnz, vram=job.claim(900 * MB))


def main(snakemake: Any) -> None:
    """Stream the counts of the kept genes, write `matrices.h5`."""
    files, params = snakemake.input, snakemake.params
    cohort = Cohort(files.counts, files.cells, files.genes, params.gene_key, devices.of(snakemake), obs=files.obs)
    totals = read_column(files.obs, "kept_counts")
    target_sum, dtype = target_of(totals, params.target_sum), np.result_type(*(s.dtype for s in cohort.stores))
    with replacing(snakemake.output.matrices) as partial, h5py.File(partial, "w", libver=LIBVER) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        file.attrs[identity.KEY] = identity.read_mark(files.obs) or ""
        nnz = write_matrices(file, cohort, totals, target_sum, dtype)
    stage.log.info("%d cells x %d genes, %d non-zeros", cohort.n_obs, cohort.n_vars, nnz)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
