"""Fixtures of the tests of the stages after PCA."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session")
def umap_stage():
    """scripts/umap.py; `import umap` would import umap-learn."""
    spec = importlib.util.spec_from_file_location("umap_stage", SCRIPTS / "umap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def log_normalised_pca(adata, n_comps):
    import scanpy as sc

    sc.pp.filter_genes(adata, min_cells=3)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=2000)
    adata = adata[:, adata.var["highly_variable"]].copy()
    sc.pp.pca(adata, n_comps=n_comps)
    return adata


@pytest.fixture(scope="session")
def pbmc3k_graph(real_data):
    """pbmc3k with scanpy's PCA and its 15 exact neighbours on 40 components."""
    import anndata as ad
    import scanpy as sc

    adata = ad.read_h5ad(real_data / "pbmc3k" / "pbmc3k_raw.h5ad")
    adata.var_names_make_unique()
    adata = log_normalised_pca(adata, 50)
    sc.pp.neighbors(adata, n_neighbors=15, n_pcs=40, transformer="sklearn")
    return adata


@pytest.fixture(scope="session")
def pbmc_3tech(real_data):
    """PBMC of three donors in three chemistries: scanpy's PCA, `batch` and `cell_type`."""
    import anndata as ad

    return log_normalised_pca(ad.read_h5ad(real_data / "pbmc_3tech" / "pbmc_3tech.h5ad"), 40)


@pytest.fixture(scope="session")
def blobs():
    """Five well separated clusters of 300, 200, 100, 60 and 40 points in 10 dimensions: points and labels."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), [300, 200, 100, 60, 40]))
    centres = rng.normal(scale=10, size=(5, 10))
    return (centres[labels] + rng.normal(size=(len(labels), 10))).astype(np.float32), labels


@pytest.fixture
def notices(monkeypatch) -> list[str]:
    """The notices of stages in this test."""
    from lib.run import stage

    said: list[str] = []
    monkeypatch.setattr(stage, "_NOTICES", said)
    return said


@pytest.fixture
def job(tmp_path):
    """A function that makes Snakemake's job object for a stage, with outputs in the test's folder."""

    def make(outputs, params=None, wildcards=None, threads=1, **inputs):
        return SimpleNamespace(
            input=SimpleNamespace(**inputs),
            output=SimpleNamespace(**{name: tmp_path / file for name, file in outputs.items()}),
            params=SimpleNamespace(seed=0, **(params or {})),
            wildcards=SimpleNamespace(**(wildcards or {})),
            resources={},
            threads=threads,
        )

    return make


@pytest.fixture
def cohort(tmp_path, blobs):
    """The blobs as a cohort's artifacts: paths of pca.h5, obs.parquet and neighbors.h5, without Harmony."""
    import neighbors
    from lib.store.files import write_arrays, write_table

    X, labels = blobs
    paths = SimpleNamespace(pca=tmp_path / "pca.h5", obs=tmp_path / "obs.parquet", neighbors=tmp_path / "neighbors.h5")
    write_arrays(paths.pca, {"X_pca": X})
    obs = pd.DataFrame({"sample": np.where(labels % 2, "a", "b"), "blob": labels.astype(str)})
    write_table(obs.set_index("cell" + obs.index.astype(str)), paths.obs)
    neighbors.main(
        SimpleNamespace(
            input=SimpleNamespace(pca=paths.pca, harmony=[]),
            output=SimpleNamespace(neighbors=paths.neighbors),
            params=SimpleNamespace(
                seed=0,
                neighbors={"n_neighbors": 15, "n_pcs": 8, "metric": "euclidean", "use_rep": "auto"},
            ),
            resources={},
            threads=1,
        )
    )
    return paths
