"""Small atlases, of artifacts that scanpy made: what tests of the atlas and of its readers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import atlas
import markers_ttest
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from lib.methods.markers import Groups, rank_genes, write_markers
from lib.store.categories import as_categories
from lib.store.cohort import kept_cells
from lib.store.counts import CountsWriter
from lib.store.files import write_arrays, write_table
from lib.store.stream import InMemory

CONFIG = {
    "seed": 0,
    "hvg": {"flavor": "seurat_v3"},
    "umap": {"min_dist": 0.5, "spread": 1.0},
    "tsne": {"enabled": True, "perplexity": 30, "init": None},
    "leiden": {"resolutions": [0.6], "n_iterations": 2},
    "louvain": {"resolutions": [0.6]},
}


def simulated() -> tuple[np.ndarray, np.ndarray]:
    """120 cells of two samples, 60 genes of which the first two are empty; every fifth cell is not kept."""
    rng = np.random.default_rng(0)
    types = np.arange(120) % 3
    means = np.tile(rng.gamma(1, 2, 60), (3, 1))
    for k in range(3):
        means[k, 10 * k + 2 : 10 * k + 8] += 6
    means[:, :2] = 0
    return rng.poisson(means[types]).astype(np.uint16), types


@dataclass
class Built:
    """A cohort's artifacts, made by scanpy, and the atlas of them.

    Attributes
    ----------
    atlas
        Its path.
    theirs
        scanpy's AnnData.
    inputs, params
        What the stage was given.
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
    """The atlas of the simulated cells, whose table goes through `change`, with its column `label` as a grouping."""
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
    write_table(adata.obs, folder / "obs.parquet")
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

    def arrays(name: str, *, table: pd.DataFrame | None = None, **arrays: np.ndarray) -> None:
        files[name] = folder / (f"{name}.h5" if table is None else f"{name}.parquet")
        write_arrays(files[name], arrays) if table is None else write_table(table, files[name])

    arrays("genes", table=genes)
    arrays("hvg", table=adata.var.drop(columns=genes.columns))
    index = adata.obs.index
    arrays("umap", table=pd.DataFrame(adata.obsm["X_umap"], index, ["UMAP1", "UMAP2"]))
    arrays("tsne", table=pd.DataFrame(adata.obsm["X_tsne"], index, ["tSNE1", "tSNE2"]))
    arrays("density", table=adata.obs[[f"umap_density_{batch}"]])
    arrays("leiden", table=adata.obs[["leiden_0.6"]])
    of_features = adata.varm["PCs"][adata.var["highly_variable"]].astype(np.float32)
    pca = {"X_pca": adata.obsm["X_pca"], "PCs": of_features}
    arrays("pca", **pca, variance=adata.uns["pca"]["variance"], variance_ratio=adata.uns["pca"]["variance_ratio"])
    arrays("harmony", X_pca_harmony=adata.obsm["X_pca_harmony"])
    # Nearest first, and more of them than scanpy's graph has
    D = np.sqrt(((adata.obsm["X_pca_harmony"][:, None, :4] - adata.obsm["X_pca_harmony"][None, :, :4]) ** 2).sum(2))
    nearest = np.argsort(D, axis=1, kind="stable")[:, 1:10]
    fuzzy = {f"connectivities/{k}": getattr(adata.obsp["connectivities"], k) for k in ("data", "indices", "indptr")}
    files["neighbors"] = folder / "neighbors.h5"
    write_arrays(
        files["neighbors"],
        {"indices": nearest.astype(np.int32), "distances": np.take_along_axis(D, nearest, 1).astype(np.float32)}
        | fuzzy,
        **{"n_neighbors": 5, "n_pcs": 4, "metric": "euclidean", "use_rep": "X_pca_harmony"},
    )
    files["markers"], rankings = [], []
    names = adata.var_names.to_numpy()
    for grouping in ("leiden_0.6", label):
        groups = Groups.of(adata.obs[grouping])
        totals = adata.obs["kept_counts"].to_numpy()
        counts = InMemory(adata.layers["counts"])
        sums = markers_ttest.group_sums(counts, groups.codes, len(groups.names), totals, 1e4)
        table = rank_genes(groups.names, markers_ttest.welch(*sums, groups.sizes), names, names)
        for method, columns in (
            ("t-test", list(table)),
            ("logreg", ["group", "rank", "names", "gene_symbols", "scores"]),
        ):
            path = folder / "markers" / f"{len(rankings)}.tsv.gz"  # the names are params, whatever the path
            write_markers(table[columns], path, path.with_name("top.tsv"), 5)
            files["markers"].append(path)
            rankings.append([grouping, method])
    sc.tl.rank_genes_groups(adata, "leiden_0.6", method="t-test")

    inputs = files | {"clusterings": [files["leiden"]], "harmony": [files["harmony"]], "tsne": [files["tsne"]]}
    params = {"gene_key": "gene_symbols", "target_sum": 1e4, "config": CONFIG, "rankings": rankings}
    params["groupings"] = list(dict.fromkeys(["sample", batch, label, "leiden_0.6"]))
    run_atlas(folder / "atlas.h5ad", inputs, params)
    return Built(folder / "atlas.h5ad", adata, inputs, params)


def run_atlas(path: Path, inputs: dict[str, Any], params: dict[str, Any]) -> None:
    """Run the stage."""
    atlas.main(
        SimpleNamespace(
            input=SimpleNamespace(**inputs),
            output=SimpleNamespace(atlas=path),
            params=SimpleNamespace(**params),
            resources={},
        )
    )


def numbered(obs: pd.DataFrame) -> pd.DataFrame:
    """Patients 9, 10 and 11; clusters 2 and 10, floats, for some cells have none; a flag; a declared order."""
    codes = np.arange(len(obs))
    clusters = pd.Series(np.choose(codes % 3, [10.0, 2.0, np.nan]), obs.index)
    stages = pd.Categorical(np.choose(codes % 2, ["low", "high"]), ["low", "unseen", "high"], ordered=True)
    return obs.assign(PatientNumber=codes % 3 + 9, seurat_clusters=clusters, treated=codes % 2 == 0, stage=stages)


def slashed(obs: pd.DataFrame) -> pd.DataFrame:
    """A label `cell/type` with groups that hold slashes or nothing at all, beside a column `cell_type`."""
    values = np.choose(np.arange(len(obs)) % 4, ["T/NK", "", "B", "T_NK"])
    return obs.assign(**{"cell/type": values, "a/b": 1.0, "a": 2.0, ".": 3.0})
