"""Compare the atlas with an AnnData that scanpy made, slot by slot, and use it in scanpy's plots."""

from __future__ import annotations

import json
from importlib.metadata import version

import anndata as ad
import atlas
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from atlases import CONFIG, build, markers_output, numbered, run_atlas, slashed
from lib.methods.markers import rank_genes, write_markers
from lib.run import stage
from lib.run.errors import UserError
from lib.store import identity
from lib.store.categories import PALETTES
from lib.store.files import read_table, write_arrays, write_table
from lib.store.slots import parts_of


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def made(built):
    """The atlas' path, scanpy's AnnData, and the stage's inputs."""
    return built.atlas, built.theirs, built.inputs


def test_matrices(made):
    """Counts are equal; X is within 1e-6 of scanpy's float64, the precision of float32."""
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
    """Backed mode reads the same; copies that anndata writes of the atlas are complete."""
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
    """Tables and embeddings are equal; distances are within 1e-5, as float32."""
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
    assert ours["hvg"] == theirs.uns["hvg"]
    assert theirs.uns["log1p"] == {"base": None}
    assert ours["log1p"] == {}
    assert ours["tsne"]["params"] == {"perplexity": 30}
    np.testing.assert_array_equal(ours["pca"]["variance_ratio"], theirs.uns["pca"]["variance_ratio"])
    assert ours["pca"]["params"] == theirs.uns["pca"]["params"]
    assert ours["neighbors"]["params"].items() <= theirs.uns["neighbors"]["params"].items()
    assert theirs.uns["neighbors"].keys() == ours["neighbors"].keys()
    assert ours["leiden_0.6"]["params"] == {"resolution": 0.6, "random_state": 0, "n_iterations": 2}
    assert ours["umap_density_sample_params"]["covariate"] == "sample"
    assert list(ours["umap_density_sample_params"]["components"]) == [1, 2]
    assert json.loads(ours["somersault"]["config"]) == CONFIG
    assert ours["somersault"]["versions"]["anndata"] == version("anndata")


def test_rank_genes_groups(made):
    """The first ranking has scanpy's key and structure; scores to 1e-5, as float32."""
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
        "pct_nz_group",
        "pct_nz_reference",
    ]


@pytest.mark.parametrize("beta", ["b", "\u03b2"])
def test_names_of_ranked_genes_are_strings(beta, tmp_path):
    """Also if they are not ASCII; a group's name may be empty or not ASCII."""
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
    """They run, and give the same results for the atlas as for scanpy's AnnData."""
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


def test_without_harmony_tsne_and_markers(built, made, tmp_path):
    """If Harmony is skipped, its file has no arrays; if t-SNE is off, there is no file; the target is the median."""
    _, theirs, inputs = made
    write_arrays(tmp_path / "harmony.h5", {}, skipped="one batch")
    names = ("hvg", "pca", "neighbors", "umap", "density")
    kept = [path for path in built.inputs["artifacts"] if path.stem in names]
    without = {"artifacts": [*kept, tmp_path / "harmony.h5"]}
    params = built.params | {"target_sum": None, "groupings": ["sample"]}
    run_atlas(tmp_path / "atlas.h5ad", inputs | without, params)
    ours = ad.read_h5ad(tmp_path / "atlas.h5ad")
    assert set(ours.obsm) == {"X_pca", "X_umap"}
    assert not any(key.startswith("rank_genes_groups") for key in ours.uns)
    sums = np.expm1(ours.X.toarray().astype(np.float64)).sum(1)
    np.testing.assert_allclose(sums, np.median(theirs.obs["kept_counts"]), rtol=1e-5)


def test_colours_are_the_figures(made):
    """The palette of each family by the categories' natural order, in the order of the categories."""
    ours = ad.read_h5ad(made[0])
    for name, family in {"sample": "batches", "cell_type": "types", "leiden_0.6": "clusters"}.items():
        assert list(ours.uns[f"{name}_colors"]) == PALETTES[family][: ours.obs[name].nunique()]
    obs = pd.DataFrame({"stage": pd.Categorical(["late", "early", "10", "9"], ["late", "9", "early", "10"])})
    assert list(atlas.colours(obs, {"stage": "types"})["stage_colors"]) == [PALETTES["types"][i] for i in (3, 0, 2, 1)]
    many = pd.DataFrame({"x": pd.Categorical([f"c{i}" for i in range(60)], [f"c{i}" for i in range(60)])})
    palette = PALETTES["batches"]
    assert list(atlas.colours(many, {"x": "batches"})["x_colors"]) == palette + palette[:12]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return build(tmp_path_factory.mktemp("numbers"), numbered, "seurat_clusters", "PatientNumber")


def test_groupings_of_numbers_are_categories_in_natural_order(numbers):
    ours = ad.read_h5ad(numbers.atlas)
    assert ours.obs["seurat_clusters"].cat.categories.tolist() == ["2", "10"]
    assert ours.obs["PatientNumber"].cat.categories.tolist() == ["9", "10", "11"]
    kept = np.flatnonzero(np.arange(120) % 5)
    expected = pd.Series(np.choose(kept % 3, ["10", "2", None]), ours.obs_names, dtype=object)
    assert ours.obs["seurat_clusters"].astype(object).where(lambda x: x.notna(), None).tolist() == expected.tolist()
    assert ours.uns["rank_genes_groups_seurat_clusters_t-test"]["names"].dtype.names == ("2", "10")
    assert ours.obs["treated"].dtype == bool  # columns that do not group keep their dtype
    assert ours.obs["stage"].cat.ordered
    assert ours.obs["stage"].cat.categories.tolist() == ["low", "high"]
    assert len(ours.uns["PatientNumber_colors"]) == 3


def test_slashes_in_columns_and_groups(tmp_path, caplog, monkeypatch):
    """Names do not become paths; all references to a column use its name in the atlas."""
    monkeypatch.setattr(stage, "_NOTICES", [])  # a notice is given once
    built = build(tmp_path, slashed, "cell/type")
    assert "cell/type is cell_type-1" in caplog.text
    ours = ad.read_h5ad(built.atlas)
    assert {"cell_type", "cell_type-1", "a_b", "a", "_"} <= set(ours.obs)
    assert ours.obs["cell_type-1"].cat.categories.tolist() == ["", "B", "T/NK", "T_NK"]
    assert ours.obs["a_b"].unique().tolist() == [1.0]
    ranked = ours.uns["rank_genes_groups_cell_type-1_t-test"]
    assert ranked["params"]["groupby"] == "cell_type-1"
    assert ranked["names"].dtype.names == ("(empty)", "B", "T/NK", "T_NK")
    assert len(sc.get.rank_genes_groups_df(ours, "T/NK", key="rank_genes_groups_cell_type-1_t-test")) == 58
    with h5py.File(built.atlas) as file:
        assert sorted(file["obs"]) == sorted({*file["obs"].attrs["column-order"], file["obs"].attrs["_index"]})


def test_more_groups_than_hdf5_describes_are_left_out(tmp_path, caplog):
    """Recarrays of 3,000 fields cannot be written; AnnData must be able to copy those in the atlas."""
    assert atlas.fields_fit([f"group {i}" for i in range(700)])
    groups = [f"group {i}" for i in range(3000)]
    names = np.array(["A", "B"], object)
    files = []
    for n, groupby in ((3000, "donor/clone"), (2, "type")):
        found = dict.fromkeys(["scores", "pct_nz_group", "pct_nz_reference"], np.ones((n, 2)))
        table = rank_genes(groups[:n], found, names, names)
        files.append(markers_output(tmp_path / str(n)))
        write_markers(table, files[-1], 1, groupby, "logreg")
    parts = [part for file in files for part in parts_of(file.ranking)]
    found = atlas.all_rankings(parts, {"type": "type"})
    assert list(found) == ["rank_genes_groups"]
    assert found["rank_genes_groups"]["params"]["groupby"] == "type"
    assert (
        f"3000 groups are more than HDF5 takes, so that they are not in the atlas, but in {files[0].ranking}"
        in caplog.text
    )


def test_nothing_without_a_value_is_in_uns():
    uns = {"a": None, "b": {"c": None, "d": {"e": None, "f": 0}}, "g": ""}
    assert atlas.without_none(uns) == {"b": {"d": {"f": 0}}, "g": ""}


@pytest.mark.parametrize("name", ["umap", "tsne", "density", "leiden"])
def test_tables_of_other_cells_are_refused(built, tmp_path, name):
    """The same number of other cells, which a join by position would accept."""
    identity.check_inputs(built.inputs)
    other = tmp_path / f"{name}.parquet"
    artifacts = [other if path.stem == name else path for path in built.inputs["artifacts"]]
    write_table(read_table(next(p for p in built.inputs["artifacts"] if p.stem == name)).iloc[::-1], other, "cohort")
    with pytest.raises(UserError, match=f"{name}.parquet .*not of the same cells in the same order"):
        identity.check_inputs(built.inputs | {"artifacts": artifacts})


def test_totals_that_are_not_the_counts_are_refused(built, tmp_path):
    """obs.parquet of an earlier run, of one gene more, or of cells in another order."""
    obs = read_table(built.inputs["obs"])
    older = obs.assign(kept_counts=obs["kept_counts"] + (np.arange(len(obs)) == 80))
    for table, message in ((older, "cell 81 of the cohort has.*--forcerun"), (obs[::-1], "in another order")):
        write_table(table, tmp_path / "obs.parquet")
        inputs = built.inputs | {"obs": tmp_path / "obs.parquet"}
        with pytest.raises(UserError, match=message):
            run_atlas(tmp_path / "atlas.h5ad", inputs, built.params)
        assert not list(tmp_path.glob("*atlas*"))


def test_own_columns_of_the_same_name_give_way(tmp_path):
    """A cohort whose file was one of our atlases."""
    own = build(tmp_path, lambda obs: obs.assign(**{"leiden_0.6": "old", "umap_density_sample": -1.0}))
    ours = ad.read_h5ad(own.atlas)
    assert ours.obs.columns.is_unique
    assert set(ours.obs["leiden_0.6"]) == {"0", "1", "2"}
    assert ours.obs["umap_density_sample"].min() == 0
