"""Compare densities with scanpy's and SciPy's, which sum the kernels of all pairs."""

from __future__ import annotations

import density
import numpy as np
import pandas as pd
import pytest
from lib.run.errors import UserError
from scipy.stats import gaussian_kde

# On a scale of 0 to 1: the error of the kernels' shape on a grid of six steps per bandwidth
TOLERANCE = 0.005


def scaled_kde(points):
    z = gaussian_kde(points.T)(points.T)
    return (z - z.min()) / (z.max() - z.min())


def test_densities_are_scanpys(pbmc3k_graph):
    import anndata as ad
    import scanpy as sc

    adata = ad.AnnData(obs=pbmc3k_graph.obs[["cell_type"]].astype(str).astype("category"))
    adata.obsm["X_umap"] = pbmc3k_graph.obsm["X_pca"][:, :2].astype(np.float64)
    sc.tl.embedding_density(adata, "umap", groupby="cell_type")
    found = density.density_by(adata.obsm["X_umap"], adata.obs["cell_type"])
    np.testing.assert_allclose(found, adata.obs["umap_density_cell_type"], atol=TOLERANCE)


@pytest.mark.parametrize("n", [4, 20, 4000])
def test_uneven_shapes_outliers_and_correlated_axes(n):
    rng = np.random.default_rng(n)
    points = rng.normal(size=(n, 2)) * [[3, 0.2]] + rng.choice([0, 10], n)[:, None]
    if n > 10:
        points[:2] = [[60, -40], [-30, 50]]
    np.testing.assert_allclose(density.density(points), scaled_kde(points), atol=TOLERANCE)


def test_categories_are_scaled_each_by_itself():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 2))
    groups = pd.Series(["a"] * 100 + ["b"] * 150 + [None] * 50, name="group")
    found = density.density_by(points, groups)
    for cells in (slice(0, 100), slice(100, 250)):
        np.testing.assert_array_equal(found[cells], density.density(points[cells]))
        assert (found[cells].min(), found[cells].max()) == (0, 1)
    assert np.isnan(found[250:]).all()


def test_too_few_cells_get_density_one(caplog):
    groups = pd.Series(["a", "b", "b", "b", "c", "c", "c", "c"], name="group")
    points = np.array([[0, 0], [0, 1], [1, 0], [5, 5], [0, 0], [1, 1], [2, 2], [3, 3]], float)  # c: all on one line
    assert list(density.density_by(points, groups)) == [1] * 8
    assert "group a: 1 cells are too few" in caplog.text
    assert "group b: 3 cells are too few" in caplog.text


def test_the_table(job, cohort, tmp_path):
    obs = pd.read_parquet(cohort.obs)
    umap = tmp_path / "umap.parquet"
    layout = pd.DataFrame(np.random.default_rng(0).normal(size=(700, 2)), index=obs.index, columns=["UMAP1", "UMAP2"])
    layout.astype(np.float32).to_parquet(umap)
    task = job({"density": "density.parquet"}, {"groupby": "sample"}, umap=umap, obs=cohort.obs, grouping=[])
    density.main(task)
    table = pd.read_parquet(task.output.density)
    assert list(table) == ["umap_density_sample"]
    assert list(table.index) == list(obs.index)
    assert table["umap_density_sample"].between(0, 1).all()
    task.params.groupby = "patient"
    with pytest.raises(UserError, match=r"no obs column 'patient'\. Columns: sample, blob"):
        density.main(task)


def test_the_categories_may_be_a_clustering(job, cohort, tmp_path):
    obs = pd.read_parquet(cohort.obs)
    points = np.random.default_rng(0).normal(size=(700, 2))
    pd.DataFrame(points, obs.index, ["UMAP1", "UMAP2"]).to_parquet(tmp_path / "umap.parquet")
    labels = pd.DataFrame({"leiden_0.6": pd.Categorical(np.where(points[:, 0] > 0, "0", "1"))}, obs.index)
    labels.to_parquet(tmp_path / "leiden.parquet")
    files = {"umap": tmp_path / "umap.parquet", "obs": cohort.obs, "grouping": [tmp_path / "leiden.parquet"]}
    task = job({"density": "density.parquet"}, {"groupby": "leiden_0.6"}, **files)
    density.main(task)
    found = pd.read_parquet(task.output.density)["umap_density_leiden_0.6"]
    np.testing.assert_allclose(found, density.density_by(points, labels["leiden_0.6"]), rtol=1e-12)  # the same function
