"""Small atlases from artifacts that scanpy made, for the tests of the atlas and of its readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import atlas
import markers_ttest
import matrices
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from lib.methods.markers import Comparisons, Groups, group_sums, rank_genes, write_markers
from lib.store.categories import as_categories
from lib.store.cohort import kept_cells
from lib.store.counts import CountsWriter
from lib.store.files import write_arrays, write_table
from lib.store.stream import InMemory
from pca import SLOTS, UNS

CONFIG = {
    "seed": 0,
    "hvg": {"flavor": "seurat_v3"},
    "umap": {"min_dist": 0.5, "spread": 1.0},
    "tsne": {"enabled": True, "perplexity": 30, "init": None},
    "leiden": {"resolutions": [0.6], "n_iterations": 2},
    "louvain": {"resolutions": [0.6]},
}


def simulated() -> tuple[np.ndarray, np.ndarray]:
    """120 cells of two samples, 60 genes; the first two genes are empty, every fifth cell is not kept."""
    rng = np.random.default_rng(0)
    types = np.arange(120) % 3
    means = np.tile(rng.gamma(1, 2, 60), (3, 1))
    for k in range(3):
        means[k, 10 * k + 2 : 10 * k + 8] += 6
    means[:, :2] = 0
    return rng.poisson(means[types]).astype(np.uint16), types


@dataclass
class Built:
    """A cohort's artifacts, made by scanpy, and their atlas.

    Attributes
    ----------
    atlas
        Its path.
    theirs
        scanpy's AnnData.
    inputs, params
        Input files and params of the stage.
    """

    atlas: Path
    theirs: ad.AnnData
    inputs: dict[str, Any]
    params: dict[str, Any]


def build(
    folder: Path,
    change: Callable[[pd.DataFrame], pd.DataFrame] = lambda obs: obs,
    label: str = "cell_type",
    batch: str = "sample",
) -> Built:
    """The atlas of the simulated cells, with their table changed by `change`, and its column `label` as a grouping."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    X, types = simulated()
    kept = np.arange(120) % 5 > 0
    genes = pd.DataFrame({"gene_symbols": [f"G{i}" for i in range(60)], "gene_ids": [f"ENSG{i}" for i in range(60)]})
    genes.index = pd.Index([f"G{i}" for i in range(60)])
    genes["n_samples"], genes["kept"] = 2, np.arange(60) > 1
    obs = pd.DataFrame({"sample": ["a"] * 70 + ["b"] * 50, "total_counts": X.sum(1).astype(np.int64)})
    obs["cell_type"] = pd.Series(types).map("type {}".format).where(types < 2)
    obs.index = [f"cell{i}-{s}" for i, s in enumerate(obs["sample"])]
    obs = change(obs)

    # The second sample lists its genes backwards
    files: dict[str, Any] = {"counts": [], "cells": []}
    for sample, order in (("a", slice(None)), ("b", slice(None, None, -1))):
        mine = (obs["sample"] == sample).to_numpy()
        writer = CountsWriter(folder / f"{sample}.h5ad", 60)
        writer.append(sp.csr_matrix(X[mine][:, order]))
        writer.close(obs.loc[mine, ["sample"]], genes.iloc[order].drop(columns="kept"))
        write_table(obs[mine].assign(kept=kept[mine], reason=""), folder / f"{sample}.parquet")
        files["counts"].append(folder / f"{sample}.h5ad")
        files["cells"].append(folder / f"{sample}.parquet")

    adata = ad.AnnData(sp.csr_matrix(X[kept][:, 2:].astype(np.float64)), obs=kept_cells(files["cells"]), var=genes[2:])
    adata.layers["counts"] = adata.X.copy()
    adata.obs["kept_counts"] = np.asarray(adata.X.sum(1)).ravel().astype(np.int64)
    write_table(adata.obs, folder / "obs.parquet", "cohort")
    files["obs"] = folder / "obs.parquet"
    adata.obs["leiden_0.6"] = pd.Categorical(types[kept].astype(str))
    for column in (label, batch):
        adata.obs[column] = as_categories(adata.obs[column])
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=30, layer="counts", span=1)
    sc.pp.pca(adata, n_comps=6)
    adata.obsm["X_pca_harmony"] = adata.obsm["X_pca"] + 1
    sc.pp.neighbors(adata, n_neighbors=5, n_pcs=4, use_rep="X_pca_harmony")
    adata.obsm["X_umap"], adata.obsm["X_tsne"] = rng.normal(size=(2, adata.n_obs, 2)).astype(np.float32)
    sc.tl.embedding_density(adata, "umap", groupby=batch)

    artifacts: dict[str, Path] = {}

    def table(name: str, values: pd.DataFrame, slot: str, **uns: Any) -> None:
        artifacts[name] = folder / f"{name}.parquet"
        write_table(values, artifacts[name], None if slot == "var" else "cohort", slot, uns)

    def arrays(name: str, values: dict[str, np.ndarray], slots: dict[str, str], uns: Any = None, **attrs: Any) -> None:
        artifacts[name] = folder / f"{name}.h5"
        write_arrays(artifacts[name], values, files["obs"], slots, uns, **attrs)

    files["genes"] = folder / "genes.parquet"
    write_table(genes, files["genes"])
    table("hvg", adata.var.drop(columns=genes.columns), "var", hvg={"flavor": "seurat_v3"})
    of_features = adata.varm["PCs"][adata.var["highly_variable"]].astype(np.float32)
    values = {"X_pca": adata.obsm["X_pca"], "PCs": of_features}
    values |= {name: adata.uns["pca"][name] for name in ("variance", "variance_ratio")}
    arrays("pca", values, SLOTS, UNS)
    harmony = {"X_pca_harmony": "obsm/X_pca_harmony"}
    arrays("harmony", {"X_pca_harmony": adata.obsm["X_pca_harmony"]}, harmony)
    # The nearest first, and more neighbours than scanpy's graph has
    D = np.sqrt(((adata.obsm["X_pca_harmony"][:, None, :4] - adata.obsm["X_pca_harmony"][None, :, :4]) ** 2).sum(2))
    nearest = np.argsort(D, axis=1, kind="stable")[:, 1:10]
    fuzzy = {f"connectivities/{k}": getattr(adata.obsp["connectivities"], k) for k in ("data", "indices", "indptr")}
    found = {"indices": nearest.astype(np.int32), "distances": np.take_along_axis(D, nearest, 1).astype(np.float32)}
    made_with = {"n_neighbors": 5, "n_pcs": 4, "metric": "euclidean", "use_rep": "X_pca_harmony"}
    slots = {name: f"obsp/{name}" for name in ("connectivities", "distances")}
    uns = {f"{name}_key": name for name in slots} | {"params": {"method": "umap", **made_with}}
    arrays("neighbors", found | fuzzy, slots, {"neighbors": uns}, **made_with)
    index = adata.obs.index
    curve = {"a": 0.58, "b": 1.33, "random_state": 0}
    table("umap", pd.DataFrame(adata.obsm["X_umap"], index, ["UMAP1", "UMAP2"]), "obsm/X_umap", umap={"params": curve})
    tsne = {"params": {"perplexity": 30, "init": None}}
    table("tsne", pd.DataFrame(adata.obsm["X_tsne"], index, ["tSNE1", "tSNE2"]), "obsm/X_tsne", tsne=tsne)
    density = f"umap_density_{batch}"
    table("density", adata.obs[[density]], "obs", **{f"{density}_params": {"covariate": batch, "components": [1, 2]}})
    params = {"resolution": 0.6, "random_state": 0, "n_iterations": 2}
    table("leiden", adata.obs[["leiden_0.6"]], "obs", **{"leiden_0.6": {"params": params}})
    names = adata.var_names.to_numpy()
    for grouping in ("leiden_0.6", label):
        groups = Groups.of(adata.obs[grouping])
        totals = adata.obs["kept_counts"].to_numpy()
        counts = InMemory(adata.layers["counts"])
        sums = group_sums(counts, groups.codes, len(groups.names), totals, 1e4)
        tests = markers_ttest.welch(sums, groups.sizes, Comparisons.of(groups.names, grouping))
        ranked = rank_genes(groups.names, tests, names, names)
        for method, columns in (
            ("t-test", list(ranked)),
            ("logreg", [name for name in ranked if not name.startswith("pvals")]),
        ):
            output = markers_output(folder / "markers" / str(len(artifacts)))
            write_markers(ranked[columns], output, 5, grouping, method)
            artifacts[f"{grouping} {method}"] = output.ranking
    sc.tl.rank_genes_groups(adata, "leiden_0.6", method="t-test", pts=True)

    inputs = files | {"artifacts": list(artifacts.values())}
    params = {"gene_key": "gene_symbols", "target_sum": 1e4, "config": CONFIG}
    params["groupings"] = list(dict.fromkeys(["sample", batch, label, "leiden_0.6"]))
    params["colours"] = {"sample": "batches", batch: "batches", "leiden_0.6": "clusters"}
    run_atlas(folder / "atlas.h5ad", inputs, params)
    return Built(folder / "atlas.h5ad", adata, inputs, params)


def markers_output(folder: Path) -> SimpleNamespace:
    """The files of one ranking."""
    lists = {name: folder / f"m.{name}.tsv" for name in ("top", "shown", "panel")}
    return SimpleNamespace(markers=folder / "m.tsv.gz", ranking=folder / "m.parquet", **lists)


def run_atlas(path: Path, inputs: dict[str, Any], params: dict[str, Any]) -> None:
    """Run the stages `matrices` and `atlas`."""
    inputs, output = inputs | {"matrices": path.with_name("matrices.h5")}, SimpleNamespace(atlas=path)
    output.matrices = inputs["matrices"]
    given = {"input": SimpleNamespace(**inputs), "params": SimpleNamespace(**params), "resources": {}}
    for stage in (matrices, atlas):
        stage.main(SimpleNamespace(output=output, **given))


def numbered(obs: pd.DataFrame) -> pd.DataFrame:
    """Patients 9, 10 and 11; clusters 2 and 10 as floats, as some cells have none; a flag; a declared order."""
    codes = np.arange(len(obs))
    clusters = pd.Series(np.choose(codes % 3, [10.0, 2.0, np.nan]), obs.index)
    stages = pd.Categorical(np.choose(codes % 2, ["low", "high"]), ["low", "unseen", "high"], ordered=True)
    return obs.assign(PatientNumber=codes % 3 + 9, seurat_clusters=clusters, treated=codes % 2 == 0, stage=stages)


def slashed(obs: pd.DataFrame) -> pd.DataFrame:
    """A label `cell/type`, with groups that contain slashes or are empty, and a column `cell_type`."""
    values = np.choose(np.arange(len(obs)) % 4, ["T/NK", "", "B", "T_NK"])
    return obs.assign(**{"cell/type": values, "a/b": 1.0, "a": 2.0, ".": 3.0})
