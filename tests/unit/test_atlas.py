"""The atlas against an AnnData that scanpy made, slot by slot, and in scanpy's plots."""

from __future__ import annotations

import json
from importlib.metadata import version
from types import SimpleNamespace

import anndata as ad
import atlas
import h5py
import markers_ttest
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from lib.counts import CountsWriter, InMemory
from lib.files import write_arrays, write_table
from lib.markers import Groups, rank_genes, write_markers

CONFIG = {
    "seed": 0,
    "hvg": {"flavor": "seurat_v3"},
    "umap": {"min_dist": 0.5, "spread": 1.0},
    "tsne": {"enabled": True, "perplexity": 30, "init": None},
    "leiden": {"resolutions": [0.6], "n_iterations": 2},
    "louvain": {"resolutions": [0.6]},
}


def simulated():
    """120 cells of two samples, 60 genes of which the first two are empty; every fifth cell is not kept."""
    rng = np.random.default_rng(0)
    types = np.arange(120) % 3
    means = np.tile(rng.gamma(1, 2, 60), (3, 1))
    for k in range(3):
        means[k, 10 * k + 2 : 10 * k + 8] += 6
    means[:, :2] = 0
    return rng.poisson(means[types]).astype(np.uint16), types


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The atlas of a cohort whose artifacts come from scanpy; its path, and scanpy's AnnData."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(1)
    X, types = simulated()
    kept = np.arange(120) % 5 > 0
    genes = pd.DataFrame({"gene_symbols": [f"G{i}" for i in range(60)], "gene_ids": [f"ENSG{i}" for i in range(60)]})
    genes.index = pd.Index([f"G{i}" for i in range(60)])
    genes["n_samples"], genes["kept"] = 2, np.arange(60) > 1
    obs = pd.DataFrame({"sample": ["a"] * 70 + ["b"] * 50, "total_counts": X.sum(1).astype(np.int64)})
    obs["cell_type"] = pd.Series(types).map("type {}".format).where(types < 2)
    obs.index = [f"cell{i}-{s}" for i, s in enumerate(obs["sample"])]

    # The second sample lists its genes backwards
    files = {"counts": [], "cells": []}
    for sample, order in (("a", slice(None)), ("b", slice(None, None, -1))):
        mine = (obs["sample"] == sample).to_numpy()
        writer = CountsWriter(folder / f"{sample}.h5ad", 60)
        writer.append(sp.csr_matrix(X[mine][:, order]))
        writer.close(obs.loc[mine, ["sample"]], genes.iloc[order].drop(columns="kept"))
        write_table(obs[mine].assign(kept=kept[mine], reason=""), folder / f"{sample}.parquet")
        files["counts"].append(folder / f"{sample}.h5ad")
        files["cells"].append(folder / f"{sample}.parquet")

    adata = ad.AnnData(sp.csr_matrix(X[kept][:, 2:].astype(np.float64)), obs=obs[kept], var=genes[2:])
    adata.layers["counts"] = adata.X.copy()
    adata.obs["kept_counts"] = np.asarray(adata.X.sum(1)).ravel().astype(np.int64)
    adata.obs["leiden_0.6"] = pd.Categorical(types[kept].astype(str))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=30, layer="counts", span=1)
    sc.pp.pca(adata, n_comps=6)
    adata.obsm["X_pca_harmony"] = adata.obsm["X_pca"] + 1
    sc.pp.neighbors(adata, n_neighbors=5, n_pcs=4, use_rep="X_pca_harmony")
    adata.obsm["X_umap"], adata.obsm["X_tsne"] = rng.normal(size=(2, adata.n_obs, 2)).astype(np.float32)
    sc.tl.embedding_density(adata, "umap", groupby="sample")

    def arrays(name, *, table=None, **arrays):
        files[name] = folder / (f"{name}.h5" if table is None else f"{name}.parquet")
        write_arrays(files[name], arrays) if table is None else write_table(table, files[name])

    arrays("genes", table=genes)
    arrays("hvg", table=adata.var.drop(columns=genes.columns))
    arrays("obs", table=obs[kept].assign(kept_counts=adata.obs["kept_counts"]))
    index = adata.obs.index
    arrays("umap", table=pd.DataFrame(adata.obsm["X_umap"], index, ["UMAP1", "UMAP2"]))
    arrays("tsne", table=pd.DataFrame(adata.obsm["X_tsne"], index, ["tSNE1", "tSNE2"]))
    arrays("density", table=adata.obs[["umap_density_sample"]])
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
    files["markers"] = []
    names = adata.var_names.to_numpy()
    for grouping in ("leiden_0.6", "cell_type"):
        groups = Groups.of(adata.obs[grouping])
        totals = adata.obs["kept_counts"].to_numpy()
        counts = InMemory(adata.layers["counts"])
        sums = markers_ttest.group_sums(counts, groups.codes, len(groups.names), totals, 1e4)
        table = rank_genes(groups.names, markers_ttest.welch(*sums, groups.sizes), names, names)
        for method, columns in (
            ("t-test", list(table)),
            ("logreg", ["group", "rank", "names", "gene_symbols", "scores"]),
        ):
            path = folder / "markers" / grouping / f"{method}.tsv.gz"
            write_markers(table[columns], path, path.with_name("top.tsv"), 5)
            files["markers"].append(path)
    sc.tl.rank_genes_groups(adata, "leiden_0.6", method="t-test")

    inputs = files | {"clusterings": [files["leiden"]], "harmony": [files["harmony"]], "tsne": [files["tsne"]]}
    atlas.main(
        SimpleNamespace(
            input=SimpleNamespace(**inputs),
            output=SimpleNamespace(atlas=folder / "atlas.h5ad"),
            params=SimpleNamespace(gene_key="gene_symbols", target_sum=1e4, config=CONFIG),
            resources={},
        )
    )
    return folder / "atlas.h5ad", adata, inputs


def test_matrices(made):
    """Counts exactly; X within 1e-6 of scanpy's float64, what float32 holds."""
    path, theirs, _ = made
    ours = ad.read_h5ad(path)
    assert ours.obs_names.equals(theirs.obs_names)
    assert ours.var_names.equals(theirs.var_names)
    assert (ours.layers["counts"] != theirs.layers["counts"]).nnz == 0
    assert (ours.X.dtype, ours.layers["counts"].dtype) == (np.float32, np.int32)
    assert ours.X.indices.dtype == ours.X.indptr.dtype == np.int32
    assert ours.X.has_sorted_indices
    np.testing.assert_allclose(ours.X.toarray(), theirs.X.toarray(), rtol=1e-6)


def test_structure_is_stored_once(made):
    with h5py.File(made[0]) as file:
        for name in ("indices", "indptr"):
            assert file["X"][name] == file["layers/counts"][name]
        assert file["X/data"] != file["layers/counts/data"]


def test_backed_mode_and_copies(made, tmp_path):
    """Backed reading sees the same; what anndata writes from the atlas reads back whole."""
    path, theirs, _ = made
    backed = ad.read_h5ad(path, backed="r")
    some = np.array([1, 5, 80])
    np.testing.assert_allclose(backed[some].X.toarray(), theirs.X[some].toarray(), rtol=1e-6)
    np.testing.assert_array_equal(
        backed[some].to_memory().layers["counts"].toarray(), theirs.layers["counts"][some].toarray()
    )
    ad.read_h5ad(path).write_h5ad(tmp_path / "copy.h5ad")
    copy = ad.read_h5ad(tmp_path / "copy.h5ad")
    assert copy.layers["counts"].sum() == theirs.layers["counts"].sum()
    assert copy.uns.keys() == ad.read_h5ad(path).uns.keys()
    for ranked in (copy.uns["rank_genes_groups"], theirs.uns["rank_genes_groups"]):
        assert set(ranked["names"]["1"]) == set(theirs.var_names)


def test_slots_equal_scanpys(made):
    """Tables and embeddings exactly; distances within 1e-5: float32."""
    path, theirs, _ = made
    ours = ad.read_h5ad(path)
    assert set(theirs.obs) == set(ours.obs)
    assert set(theirs.var) == {*ours.var, "kept"}
    pd.testing.assert_frame_equal(ours.obs[theirs.obs.columns], theirs.obs, check_categorical=False, check_dtype=False)
    assert ours.obs["cell_type"].dtype == "category"
    assert ours.obs["sample"].dtype == "category"
    assert ours.obs["cell_type"].isna().sum() == theirs.obs["cell_type"].isna().sum() > 0
    pd.testing.assert_frame_equal(ours.var[theirs.var.columns.drop("kept")], theirs.var.drop(columns="kept"))
    assert set(ours.obsm) == {"X_pca", "X_pca_harmony", "X_umap", "X_tsne"}
    for key in ours.obsm:
        np.testing.assert_array_equal(ours.obsm[key], theirs.obsm[key])
    np.testing.assert_allclose(ours.varm["PCs"], theirs.varm["PCs"], rtol=1e-6)
    assert (ours.obsp["connectivities"] != theirs.obsp["connectivities"]).nnz == 0
    np.testing.assert_allclose(ours.obsp["distances"].toarray(), theirs.obsp["distances"].toarray(), rtol=1e-5)


def test_uns_equals_scanpys(made):
    path, theirs, _ = made
    ours = ad.read_h5ad(path).uns
    for key in ("log1p", "hvg"):
        assert ours[key] == theirs.uns[key]
    np.testing.assert_array_equal(ours["pca"]["variance_ratio"], theirs.uns["pca"]["variance_ratio"])
    assert ours["pca"]["params"] == theirs.uns["pca"]["params"]
    assert ours["neighbors"]["params"].items() <= theirs.uns["neighbors"]["params"].items()
    assert theirs.uns["neighbors"].keys() == ours["neighbors"].keys()
    assert ours["leiden_0.6"]["params"] == {"resolution": 0.6, "random_state": 0, "n_iterations": 2}
    assert ours["umap_density_sample_params"]["covariate"] == "sample"
    assert list(ours["umap_density_sample_params"]["components"]) == [1, 2]
    assert json.loads(ours["somersault"]["config"]) == CONFIG
    assert ours["somersault"]["versions"]["anndata"] == version("anndata")


def test_umap_curve_is_umap_learns():
    """a and b as scanpy records them for min_dist 0.5, spread 1.0; the fit ends within 1e-6."""
    assert atlas.umap_curve(0.5, 1.0) == pytest.approx({"a": 0.5830300205483709, "b": 1.334166992455648}, rel=1e-6)


def test_rank_genes_groups(made):
    """The first is under scanpy's own key with scanpy's structure; scores to 1e-5, float32."""
    path, theirs, _ = made
    ours = ad.read_h5ad(path)
    keys = [key for key in ours.uns if key.startswith("rank_genes_groups")]
    assert sorted(keys) == [
        "rank_genes_groups",
        "rank_genes_groups_cell_type_logreg",
        "rank_genes_groups_cell_type_t-test",
        "rank_genes_groups_leiden_0.6_logreg",
    ]
    mine, reference = ours.uns["rank_genes_groups"], theirs.uns["rank_genes_groups"]
    assert {*mine} == {*reference}
    for name in ("scores", "logfoldchanges", "pvals", "pvals_adj"):
        assert mine[name].dtype == reference[name].dtype
    assert mine["names"].dtype.names == reference["names"].dtype.names
    a, b = (sc.get.rank_genes_groups_df(x, group="1").set_index("names").sort_index() for x in (ours, theirs))
    pd.testing.assert_frame_equal(a, b, rtol=1e-5, check_dtype=False)
    assert list(sc.get.rank_genes_groups_df(ours, None, key="rank_genes_groups_leiden_0.6_logreg")) == [
        "group",
        "names",
        "scores",
    ]


@pytest.mark.parametrize("beta", ["b", "\u03b2"])
def test_names_of_ranked_genes_are_strings(beta, tmp_path):
    """Whether or not they are ASCII; a group's name may be neither."""
    names = np.array([f"A{beta}", "longer", "C"], object)
    table = rank_genes(["T\u03b1", "2"], {"scores": np.array([[3.0, 2, 1], [1, 2, 3]])}, names, names)
    with h5py.File(tmp_path / "uns.h5", "w") as file:
        ad.io.write_elem(file, "ranked", atlas.rank_genes_groups(table, "leiden", "t-test"))
        read = ad.io.read_elem(file["ranked"])
    assert read["names"].dtype.names == ("T\u03b1", "2")
    assert list(read["names"]["T\u03b1"]) == list(names)
    assert list(read["names"]["2"]) == list(names[::-1])
    assert all(isinstance(name, str) for name in read["names"]["2"])
    np.testing.assert_array_equal(read["scores"]["2"], np.float32([3, 2, 1]))


def test_scanpys_plots_and_tools_take_it_as_it_is(made, monkeypatch):
    """They run, and what they compute from the atlas they compute from scanpy's AnnData too."""
    import matplotlib as mpl

    mpl.use("Agg")
    path, theirs, _ = made
    ours = ad.read_h5ad(path)
    genes = ["G5", "G15", "G25"]
    sc.pl.umap(ours, color=["leiden_0.6", "cell_type", "G5", "total_counts"], show=False)
    sc.pl.tsne(ours, color="sample", show=False)
    sc.pl.pca_variance_ratio(ours, show=False)
    sc.pl.pca_loadings(ours, show=False)
    sc.pl.highly_variable_genes(ours, show=False)
    sc.pl.violin(ours, genes, groupby="leiden_0.6", show=False)
    sc.pl.embedding_density(ours, basis="umap", key="umap_density_sample", show=False)
    for key in [key for key in ours.uns if key.startswith("rank_genes_groups")]:
        sc.pl.rank_genes_groups(ours, key=key, n_genes=5, show=False)
    sc.pl.rank_genes_groups_dotplot(ours, n_genes=3, show=False)
    for layer in (None, "counts"):
        a, b = (
            sc.pl.dotplot(x, genes, "leiden_0.6", layer=layer, return_fig=True).dot_color_df for x in (ours, theirs)
        )
        pd.testing.assert_frame_equal(a, b, rtol=1e-5, check_dtype=False)
    sc.tl.dendrogram(ours, "leiden_0.6")
    sc.tl.paga(ours, "leiden_0.6")
    sc.tl.paga(theirs, "leiden_0.6")
    np.testing.assert_allclose(
        ours.uns["paga"]["connectivities"].toarray(), theirs.uns["paga"]["connectivities"].toarray(), rtol=1e-6
    )
    mpl.pyplot.close("all")


def test_without_harmony_tsne_and_markers(made, tmp_path):
    """Where Harmony is skipped its file has no arrays; where t-SNE is off there is no file; the median as target."""
    _, theirs, inputs = made
    write_arrays(tmp_path / "harmony.h5", {}, skipped="one batch")
    without = {"harmony": [tmp_path / "harmony.h5"], "tsne": [], "markers": [], "clusterings": []}
    atlas.main(
        SimpleNamespace(
            input=SimpleNamespace(**inputs | without),
            output=SimpleNamespace(atlas=tmp_path / "atlas.h5ad"),
            params=SimpleNamespace(gene_key="gene_symbols", target_sum=None, config=CONFIG),
            resources={},
        )
    )
    ours = ad.read_h5ad(tmp_path / "atlas.h5ad")
    assert set(ours.obsm) == {"X_pca", "X_umap"}
    assert not any(key.startswith("rank_genes_groups") for key in ours.uns)
    sums = np.expm1(ours.X.toarray().astype(np.float64)).sum(1)
    np.testing.assert_allclose(sums, np.median(theirs.obs["kept_counts"]), rtol=1e-5)
