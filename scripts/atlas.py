"""The atlas: everything about the cohort in one AnnData, in scanpy's slots, written in a stream.

X holds log(1 + counts * target_sum / total) of the kept genes, `layers['counts']` the counts. Both have the same
non-zeros: they share one `indices` and one `indptr`, by HDF5 hard link. Names and structure of all else are
scanpy's (pp.pca, pp.neighbors, tl.umap, tl.leiden, tl.embedding_density, tl.rank_genes_groups ...), so that its
functions go on from here; `uns['somersault']` has the config and the versions. All else is not compressed: most of it
is floats, of which deflate leaves nine tenths.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem
from lib import device as devices
from lib import stage
from lib.clock import spending
from lib.cohort import Cohort
from lib.compressed import CompressedArray, pool
from lib.counts import Stream
from lib.files import read_arrays, read_attrs, read_table, replacing
from lib.fuzzy import read_graph
from lib.h5ad import plain_strings
from lib.markers import FLOATS, read_markers
from lib.scaling import log_normalize, target_of

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
    """
    device = counts.device
    columns = np.uint16 if counts.n_vars <= 1 << 16 else np.int32
    X, layer = file.create_group("X"), file.create_group("layers/counts")
    values, numbers = CompressedArray(X, "data", np.float32), CompressedArray(layer, "data", np.int32)
    indices = CompressedArray(X, "indices", np.int32)
    lengths = [np.zeros(1, np.int64)]
    for chunk in stage.progress(counts.chunks(), counts.n_obs, "X and counts"):
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


def with_categories(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns of strings as categories, as scanpy's plots want them."""
    strings = [name for name in table if not pd.api.types.is_numeric_dtype(table[name].dtype)]
    strings = [name for name in strings if not isinstance(table[name].dtype, pd.CategoricalDtype)]
    as_categories = {name: table[name].astype(str).where(table[name].notna()).astype("category") for name in strings}
    return table.assign(**as_categories)


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
    """What scanpy.tl.rank_genes_groups leaves in uns, from a markers table: recarrays with one field per group."""
    n_genes = int(table["rank"].iloc[-1])  # every group ranks all
    groups = list(table["group"].iloc[::n_genes])
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


def all_rankings(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Every markers table by its key in uns: the first is `rank_genes_groups`, for it is what scanpy looks for."""
    rankings: dict[str, Any] = {}
    with spending("read"):
        tables = list(pool().map(read_markers, paths))
    for path, table in zip(map(Path, paths), tables, strict=True):
        grouping, method = path.parent.name, path.name.removesuffix(".tsv.gz")
        if len(table):
            key = f"rank_genes_groups_{grouping}_{method}" if rankings else "rank_genes_groups"
            rankings[key] = rank_genes_groups(table, grouping, method)
    return rankings


def clustering_params(name: str, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What scanpy's clusterings leave in uns, for a clustering named {algorithm}_{resolution or k}."""
    algorithm, number = name.split("_", 1)
    if algorithm == "kmeans":
        return {"params": {"n_clusters": int(number), "random_state": seed}}
    params = {"resolution": float(number), "random_state": seed}
    return {"params": params | {k: v for k, v in config[algorithm].items() if k != "resolutions"}}


def main(snakemake: Any) -> None:
    """Read all artifacts of the cohort, write `atlas.h5ad`."""
    files, config = snakemake.input, snakemake.params.config
    device, seed = devices.of(snakemake), config["seed"]
    cohort = Cohort(files.counts, files.cells, files.genes, snakemake.params.gene_key, device)
    obs, density = read_table(files.obs), read_table(files.density)
    clusterings = [read_table(path) for path in files.clusterings]
    totals = obs["kept_counts"].to_numpy()
    target_sum = target_of(totals, snakemake.params.target_sum)
    hvg = read_table(files.hvg)
    var = cohort.genes.drop(columns="kept")
    var = var.join(hvg[hvg.columns.difference(var.columns, sort=False)])

    pca = read_arrays(files.pca, "X_pca", "PCs", "variance", "variance_ratio")
    obsm = {"X_pca": pca["X_pca"]}
    for path in files.harmony:
        obsm |= read_arrays(path)
    obsm["X_umap"] = read_table(files.umap).to_numpy(np.float32)
    for path in files.tsne:
        obsm["X_tsne"] = read_table(path).to_numpy(np.float32)
    obsp, neighbors = graphs(files.neighbors)

    uns = {
        "log1p": {"base": None},
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
            f"{name}_params": {"covariate": name.removeprefix("umap_density_"), "components": [1, 2]}
            for name in density
        },
        **all_rankings(files.markers),
        "somersault": {
            "config": json.dumps(config, default=str),
            "versions": {name: version(name) for name in PACKAGES},
        },
    }
    if "X_tsne" in obsm:
        uns["tsne"] = {"params": {k: v for k, v in config["tsne"].items() if k != "enabled"}}

    with replacing(snakemake.output.atlas) as partial, h5py.File(partial, "w", libver="latest") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        nnz = write_matrices(file, cohort, totals, target_sum, np.result_type(*(s.dtype for s in cohort.stores)))
        obs = with_categories(pd.concat([obs, density, *clusterings], axis=1))
        elements = {"obs": plain_strings(obs), "var": plain_strings(var), "uns": uns}
        elements |= {"obsm": obsm, "varm": {"PCs": loadings(pca["PCs"], var["highly_variable"].to_numpy())}}
        elements |= {"obsp": obsp, "varp": {}}
        with stage.timed("the other slots"), spending("write"):
            for name, element in elements.items():
                write_elem(file, name, element)
    size = Path(snakemake.output.atlas).stat().st_size / 1e6
    stage.log.info("%d cells x %d genes, %d non-zeros, %.0f MB", cohort.n_obs, cohort.n_vars, nnz, size)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
