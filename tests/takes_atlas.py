"""Read and use an atlas with a user's anndata and scanpy: run as a script in environments with other versions.

    python takes_atlas.py FOLDER ATLAS LABEL BATCH [ATLAS LABEL BATCH ...]

prints a line of JSON with the values read of each atlas; every failure raises. It needs only the packages that it
imports.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import scanpy as sc

mpl.use("Agg")
warnings.simplefilter("ignore")


def of_table(table: pd.DataFrame) -> dict:
    """A table's dtypes, categories and values."""
    shown = {}
    for name, column in table.items():
        kind = "category" if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype.kind
        values = column.astype(str).value_counts().sort_index().to_dict() if kind in ("category", "O") else None
        categories = list(map(str, column.cat.categories)) if kind == "category" else None
        shown[name] = [kind, categories, values, round(float(column.sum()), 3) if kind in "biuf" else None]
    return {"index": list(table.index[:3]), **shown}


def seen(adata: ad.AnnData) -> dict:
    """A summary of the values of every slot."""

    def of_uns(uns) -> object:
        if hasattr(uns, "items"):
            return {key: of_uns(value) for key, value in sorted(uns.items())}
        if getattr(uns, "dtype", None) is not None and uns.dtype.names:
            return {name: str(uns[name][0]) for name in uns.dtype.names}
        return np.asarray(uns).astype(str).ravel()[:5].tolist()

    return {
        "shape": adata.shape,
        "X": round(float(adata.X.sum()), 1),
        "layers": {key: int(value.sum()) for key, value in adata.layers.items()},
        "obs": of_table(adata.obs),
        "var": of_table(adata.var),
        **{
            slot: {key: [value.shape, round(float(value.sum()), 1)] for key, value in getattr(adata, slot).items()}
            for slot in ("obsm", "varm", "obsp")
        },
        "uns": of_uns({key: value for key, value in adata.uns.items() if key != "somersault"}),
    }


def draw(adata: ad.AnnData, label: str, batch: str) -> None:
    """scanpy's figures of all slots."""
    genes, off = list(adata.var_names[[1, 5, 9]]), {"show": False}
    sc.pl.umap(adata, color=[label, batch, "sample", "leiden_0.6", genes[0], "total_counts"], **off)
    sc.pl.tsne(adata, color=batch, **off)
    sc.pl.embedding(adata, "X_pca_harmony", color=label, **off)
    sc.pl.pca_variance_ratio(adata, **off)
    sc.pl.pca_loadings(adata, **off)
    sc.pl.highly_variable_genes(adata, **off)
    sc.pl.embedding_density(adata, "umap", key=f"umap_density_{batch}", **off)
    sc.pl.embedding_density(adata, "umap", groupby=batch, **off)
    for groupby in (label, batch):
        sc.pl.violin(adata, genes, groupby=groupby, **off)
        sc.pl.dotplot(adata, genes, groupby, **off)
        sc.pl.matrixplot(adata, genes, groupby, **off)
        sc.pl.heatmap(adata[adata.obs[groupby].notna()], genes, groupby, **off)
        sc.pl.stacked_violin(adata, genes, groupby, **off)
    for key in [key for key in adata.uns if key.startswith("rank_genes_groups")]:
        sc.pl.rank_genes_groups(adata, n_genes=5, key=key, **off)
        sc.pl.rank_genes_groups_dotplot(adata, n_genes=2, key=key, **off)
        labelled = adata[
            adata.obs[adata.uns[key]["params"]["groupby"]].notna()
        ].copy()  # scanpy draws no heatmap of other groups
        sc.pl.rank_genes_groups_heatmap(labelled, n_genes=2, key=key, **off)
        sc.pl.rank_genes_groups_matrixplot(adata, n_genes=2, key=key, **off)
        sc.get.rank_genes_groups_df(adata, None, key=key)
        mpl.pyplot.close("all")


def go_on(adata: ad.AnnData, path: str, label: str, folder: Path) -> None:
    """Read in backed mode, run tools that read uns, join two atlases, copy to h5ad and zarr."""
    backed = ad.read_h5ad(path, backed="r")
    assert backed.isbacked
    rows = np.array([1, 5, 40])
    assert abs(backed[rows].to_memory().X - adata[rows].X).sum() == 0
    backed.file.close()
    both = ad.concat({"one": adata, "two": adata}, label="atlas", index_unique="-")
    assert both.shape == (2 * adata.n_obs, adata.n_vars)
    assert both.layers["counts"].sum() == 2 * adata.layers["counts"].sum()
    assert list(both.obs[label].cat.categories) == list(adata.obs[label].cat.categories)
    more = adata.copy()
    sc.tl.rank_genes_groups(more, label, method="wilcoxon", key_added="wilcoxon")
    sc.pp.highly_variable_genes(more, n_top_genes=10)
    sc.tl.paga(more, "leiden_0.6")
    sc.pl.paga(more, show=False)
    for name, write, read in (("h5ad", "write_h5ad", ad.read_h5ad), ("zarr", "write_zarr", ad.read_zarr)):
        getattr(more, write)(folder / f"copy.{name}")
        copy = read(folder / f"copy.{name}")
        assert of_table(copy.obs) == of_table(adata.obs), name
        assert {*adata.uns} <= {*copy.uns}, name


def main(folder: str, *atlases: str) -> None:
    """Read, draw, continue with each atlas; print the values read."""
    for i in range(0, len(atlases), 3):
        path, label, batch = atlases[i : i + 3]
        adata = ad.read_h5ad(path)
        print(json.dumps(seen(adata)), flush=True)
        draw(adata, label, batch)
        copies = Path(folder, str(i))
        copies.mkdir(parents=True)
        go_on(adata, path, label, copies)


if __name__ == "__main__":
    main(*sys.argv[1:])
