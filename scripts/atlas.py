"""The atlas: everything about the cohort in one AnnData, in scanpy's slots, written in a stream.

X holds log(1 + counts * target_sum / total) of the kept genes, `layers['counts']` the counts. Both have the same
non-zeros: they share one `indices` and one `indptr`, by HDF5 hard link. Names and structure of all else are
scanpy's (pp.pca, pp.neighbors, tl.umap, tl.leiden, tl.embedding_density, tl.rank_genes_groups ...), so that its
functions go on from here; `uns['somersault']` has the config and the versions. All else is not compressed: most of it
is floats, of which deflate leaves nine tenths.

HDF5 from 1.8 on and AnnData from 0.10 on read it: no value is None, whose encoding is younger. Columns that group cells
are categories of strings, in the figures' colours. "/", which to HDF5 is a path, becomes "_" in the names of columns.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem
from lib.methods.fuzzy import read_graph
from lib.methods.markers import FLOATS, read_markers
from lib.methods.scaling import log_normalize, target_of
from lib.run import device as devices
from lib.run import stage
from lib.run.clock import spending
from lib.run.errors import UserError
from lib.run.progress import progress, timed
from lib.run.resources import MB, N_GROUPS, Job, Need
from lib.store.categories import as_categories, category_colours, natural_order
from lib.store.cohort import Cohort, with_results
from lib.store.compressed import CompressedArray, pool
from lib.store.csr import row_sums
from lib.store.files import LIBVER, read_arrays, read_attrs, read_table, replacing
from lib.store.h5ad import plain_strings
from lib.store.stream import Stream

PACKAGES = ("anndata", "h5py", "numpy", "pandas", "scipy")  # whose versions the atlas names


def write_matrices(
    file: h5py.File, counts: Stream, totals: np.ndarray, target_sum: float, dtype: Any = np.uint32
) -> int:
    """Write X (float32) and `layers/counts` (int32) in a stream, CSR; returns the number of non-zeros.

    Parameters
    ----------
    file
        Open for writing.
    counts
        cells x genes.
    totals, target_sum
        See `log_normalize`.
    dtype
        Unsigned integers that hold every count: what comes over from a GPU.

    Raises
    ------
    UserError
        If a cell's counts do not sum up to its total.
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
    # SciPy wants one type for both where the numbers allow it
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
    """An array on the host; one from a GPU comes over as `dtype`."""
    return device.to_host(array.astype(dtype) if device.is_gpu else array)


def again(rule: str) -> str:
    """What to do where an artifact does not fit the others."""
    return f"Make it anew: `snakemake --forcerun {rule}`."


def check_cells(table: pd.DataFrame, path: str | Path, rule: str, obs: pd.DataFrame) -> pd.DataFrame:
    """The table, whose cells must be those of obs, in their order.

    Raises
    ------
    UserError
        If they are not.
    """
    if not table.index.equals(obs.index):
        raise UserError(f"{path} holds other cells than obs.parquet ({len(table)}; {len(obs)}). {again(rule)}")
    return table


def with_categories(table: pd.DataFrame, groupings: Iterable[str]) -> pd.DataFrame:
    """The table with `groupings`, and its columns of strings, as categories of strings, as scanpy's plots want them."""
    text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name].dtype)]
    return table.assign(**{name: as_categories(table[name]) for name in {*text, *groupings}})


def colours(obs: pd.DataFrame, groupings: Iterable[str]) -> dict[str, np.ndarray]:
    """What scanpy keeps in uns: `{grouping}_colors`, the figures' colours in the order of the categories."""
    categories = {name: obs[name].cat.categories for name in groupings}
    of_names = {name: category_colours(natural_order(found)) for name, found in categories.items()}
    return {f"{name}_colors": np.array([of_names[name][c] for c in found]) for name, found in categories.items()}


def slot_names(columns: Iterable[str]) -> dict[str, str]:
    """Column -> its name in the atlas: "cell/type" becomes "cell_type", or "cell_type-1" where that is another one.

    What to HDF5 is no path stays as it is.
    """
    columns = list(columns)
    names = {name: name for name in columns if "/" not in name and name not in ("", ".")}
    for column in (name for name in columns if name not in names):
        plain = column.replace("/", "_").strip(".") or "_"
        names[column] = next(n for n in chain([plain], (f"{plain}-{i}" for i in count(1))) if n not in names.values())
    if renamed := [f"{column} is {name}" for column, name in names.items() if column != name]:
        stage.notice("names of columns in the atlas, where a / would be a path: %s", ", ".join(renamed))
    return names


def without_none(uns: Mapping[str, Any]) -> dict[str, Any]:
    """A dict of dicts without the keys whose value is None: AnnData reads them since 0.12 alone."""
    kept = {key: value for key, value in uns.items() if value is not None}
    return {key: without_none(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def graphs(path: str | Path) -> tuple[dict[str, sp.csr_matrix], dict[str, Any]]:
    """obsp and uns of scanpy.pp.neighbors, from `neighbors.h5`: distances are those to the n_neighbors - 1 others."""
    attrs = read_attrs(path)
    arrays = read_arrays(path, "indices", "distances")
    n_obs, others = len(arrays["indices"]), attrs["n_neighbors"] - 1
    starts = np.arange(n_obs + 1, dtype=np.int32) * others
    nearest = arrays["distances"][:, :others].ravel(), arrays["indices"][:, :others].ravel(), starts
    distances = sp.csr_matrix(nearest, shape=(n_obs, n_obs))
    distances.sort_indices()
    obsp = {"connectivities": read_graph(path), "distances": distances}
    params = {"method": "umap", **{name: attrs[name] for name in ("n_neighbors", "n_pcs", "metric", "use_rep")}}
    return obsp, {"connectivities_key": "connectivities", "distances_key": "distances", "params": params}


def loadings(PCs: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """The loadings of all genes, zero for those not selected; genes x comps."""
    of_all = np.zeros((len(selected), PCs.shape[1]), PCs.dtype)
    of_all[selected] = PCs
    return of_all


def umap_curve(min_dist: float, spread: float) -> dict[str, float]:
    """The a and b of 1 / (1 + a d^2b), UMAP's similarity at distance d (McInnes 2018), fitted as umap-learn does."""
    from scipy.optimize import curve_fit

    distance = np.linspace(0, 3 * spread, 300)
    wanted = np.where(distance < min_dist, 1, np.exp(-(distance - min_dist) / spread))
    a, b = curve_fit(lambda d, a, b: 1 / (1 + a * d ** (2 * b)), distance, wanted)[0]
    return {"a": float(a), "b": float(b)}


def rank_genes_groups(table: pd.DataFrame, groupby: str, method: str) -> dict[str, Any]:
    """What scanpy.tl.rank_genes_groups leaves in uns, from a markers table: recarrays with one field per group.

    A field has a name: a group that has none is "(empty)".
    """
    n_genes = int(table["rank"].iloc[-1])  # every group ranks all
    groups = groups_of(table)
    params = {"groupby": groupby, "reference": "rest", "method": method, "use_raw": False}
    params["corr_method"] = "benjamini-hochberg"
    columns = {"names": fixed_length(table["names"].to_numpy(object))}
    columns |= {name: table[name].to_numpy(dtype) for name, dtype in FLOATS.items() if name in table}
    recarrays = {
        name: np.rec.fromarrays(values.reshape(len(groups), n_genes), dtype=[(group, values.dtype) for group in groups])
        for name, values in columns.items()
    }
    return {"params": params, **recarrays}


def fixed_length(names: np.ndarray) -> np.ndarray:
    """Strings of fixed length, where they are ASCII: HDF5 writes them at once, and anndata reads them as strings."""
    try:
        return names.astype("S")
    except UnicodeEncodeError:
        return names


def groups_of(table: pd.DataFrame) -> list[str]:
    """The groups of a markers table, as fields of a recarray."""
    return [group or "(empty)" for group in table["group"].iloc[:: int(table["rank"].iloc[-1])]]


def fields_fit(names: Sequence[str]) -> bool:
    """Whether HDF5 can write recarrays with these fields: their description must not exceed 64 kB, some 900 fields.

    By the oldest format, in which AnnData writes copies of the atlas.
    """
    with h5py.File("probe", "w", driver="core", backing_store=False) as file:
        try:
            file.create_dataset("ranks", (1,), [(name, np.float64) for name in names])
        except ValueError:
            return False
    return True


def all_rankings(
    paths: Sequence[str | Path], rankings: Sequence[tuple[str, str]], names: Mapping[str, str]
) -> dict[str, Any]:
    """Every markers table by its key in uns: the first is `rank_genes_groups`, for it is what scanpy looks for.

    Parameters
    ----------
    paths
        The tables.
    rankings
        Grouping and method of each.
    names
        Grouping -> its column in the atlas.
    """
    found: dict[str, Any] = {}
    with spending("read"):
        tables = list(pool().map(read_markers, paths))
    for path, (grouping, method), table in zip(paths, rankings, tables, strict=True):
        if not len(table):
            continue
        if not fields_fit(groups := groups_of(table)):
            stage.notice(
                "markers of %s (%s): %d groups are more than HDF5 takes, so that they are not in the atlas, but in %s",
                grouping,
                method,
                len(groups),
                path,
            )
            continue
        key = f"rank_genes_groups_{names[grouping]}_{method}" if found else "rank_genes_groups"
        found[key] = rank_genes_groups(table, names[grouping], method)
    return found


def clustering_params(name: str, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What scanpy's clusterings leave in uns, for a clustering named {algorithm}_{resolution or k}."""
    algorithm, number = name.split("_", 1)
    if algorithm == "kmeans":
        return {"params": {"n_clusters": int(number), "random_state": seed}}
    params = {"resolution": float(number), "random_state": seed}
    return {"params": params | {k: v for k, v in config[algorithm].items() if k != "resolutions"}}


def needs(job: Job) -> Need:
    """Chunks that wait to be deflated; tables, components and graph of the cells; all marker tables."""
    markers = 60 * job.n_rankings * N_GROUPS * job.n_vars
    cells = job.n_kept * (8 * job.n_comps + 8 * job.k + 500) + 16 * job.edges
    memory = job.pass_memory(500 * MB, 40 * MB + job.places + markers + cells, gpu_chunk=700 * MB)
    disk = 6 * job.nnz + job.n_kept * (8 * job.n_comps + 500) + 16 * job.edges + markers
    return Need(**memory, seconds=15 + 0.2e-6 * job.nnz, disk=disk, vram=job.claim(1100 * MB))


def main(snakemake: Any) -> None:
    """Read all artifacts of the cohort, write `atlas.h5ad`."""
    files, params, config = snakemake.input, snakemake.params, snakemake.params.config
    device, seed = devices.of(snakemake), config["seed"]
    cohort = Cohort(files.counts, files.cells, files.genes, params.gene_key, device, obs=files.obs)
    obs = read_table(files.obs)
    umap = check_cells(read_table(files.umap), files.umap, "umap", obs)
    density = check_cells(read_table(files.density), files.density, "density", obs)
    tsne = [check_cells(read_table(path), path, "tsne", obs) for path in files.tsne]
    clusterings = [read_table(path) for path in files.clusterings]
    for path, table in zip(files.clusterings, clusterings, strict=True):
        check_cells(table, path, table.columns[0].split("_")[0], obs)
    totals = obs["kept_counts"].to_numpy()
    target_sum = target_of(totals, params.target_sum)
    obs = with_categories(with_results(obs, density, *clusterings), params.groupings)
    names = slot_names(obs)
    groupings = [names[name] for name in params.groupings]
    obs = obs.rename(columns=names)
    hvg = read_table(files.hvg)
    var = cohort.genes.drop(columns="kept")
    var = var.join(hvg[hvg.columns.difference(var.columns, sort=False)])
    var = var.rename(columns=slot_names(var))

    pca = read_arrays(files.pca, "X_pca", "PCs", "variance", "variance_ratio")
    obsm = {"X_pca": pca["X_pca"]}
    for path in files.harmony:
        obsm |= read_arrays(path)
    obsm["X_umap"] = umap.to_numpy(np.float32)
    for table in tsne:
        obsm["X_tsne"] = table.to_numpy(np.float32)
    obsp, neighbors = graphs(files.neighbors)

    uns = {
        "log1p": {},  # where there is no base, it is e
        "hvg": {"flavor": config["hvg"]["flavor"]},
        "pca": {
            "params": {"zero_center": True, "use_highly_variable": True, "mask_var": "highly_variable"},
            "variance": pca["variance"],
            "variance_ratio": pca["variance_ratio"],
        },
        "neighbors": neighbors,
        "umap": {"params": umap_curve(config["umap"]["min_dist"], config["umap"]["spread"]) | {"random_state": seed}},
        **{table.columns[0]: clustering_params(table.columns[0], config, seed) for table in clusterings},
        **{
            f"{names[name]}_params": {"covariate": names[name.removeprefix("umap_density_")], "components": [1, 2]}
            for name in density
        },
        **all_rankings(files.markers, params.rankings, names),
        **colours(obs, groupings),
        "somersault": {
            "config": json.dumps(config, default=str),
            "versions": {name: version(name) for name in PACKAGES},
        },
    }
    if "X_tsne" in obsm:
        uns["tsne"] = {"params": {k: v for k, v in config["tsne"].items() if k != "enabled"}}

    with replacing(snakemake.output.atlas) as partial, h5py.File(partial, "w", libver=LIBVER) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        nnz = write_matrices(file, cohort, totals, target_sum, np.result_type(*(s.dtype for s in cohort.stores)))
        elements = {"obs": plain_strings(obs), "var": plain_strings(var), "uns": without_none(uns)}
        elements |= {"obsm": obsm, "varm": {"PCs": loadings(pca["PCs"], var["highly_variable"].to_numpy())}}
        elements |= {"obsp": obsp, "varp": {}}
        with timed("the other slots"), spending("write"):
            for name, element in elements.items():
                write_elem(file, name, element)
    size = Path(snakemake.output.atlas).stat().st_size / 1e6
    stage.log.info("%d cells x %d genes, %d non-zeros, %.0f MB", cohort.n_obs, cohort.n_vars, nnz, size)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
