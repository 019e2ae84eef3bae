"""Run the workflow's stages by scanpy, in one process and in memory, and measure seconds and memory of each stage.

    python tests/benchmarks/scanpy_peer.py cohort.h5ad config.yaml measured.jsonl atlas.h5ad --skip tsne

A stage has the name of the workflow's rule that does the same, or is mapped to it. One line of JSON is written when a
stage starts and one when it ends, so that the last stage is known if the process is ended early.
"""

from __future__ import annotations

import argparse
import json
import resource
import threading
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import harmonypy
import pandas as pd
import psutil
import scanpy as sc
import scipy.sparse
import yaml
from scipy.sparse import coo_matrix
from sklearn.metrics import adjusted_rand_score

warnings.filterwarnings("ignore")

# scanpy 1.11 and 1.12 fail on SciPy's sparse arrays, as they call a method that only sparse matrices have
if not hasattr(scipy.sparse.csr_array, "getnnz"):
    scipy.sparse.csr_array.getnnz = scipy.sparse.csr_array._getnnz


class Peer:
    """The stages by scanpy: one AnnData of all genes, one of the highly variable genes."""

    def __init__(self, h5ad: Path, config: dict[str, Any], atlas: Path, cores: int) -> None:
        self.h5ad, self.config, self.atlas, self.cores = h5ad, config, atlas, cores
        self.seed, self.batch_key, self.label_key = config["seed"], config["batch_key"], config["label_key"]
        self.groupings = [self.label_key, *(f"leiden_{r}" for r in config["leiden"]["resolutions"])]
        self.notes: list[str] = []

    def ingest(self) -> None:
        self.adata = ad.read_h5ad(self.h5ad)

    def qc(self) -> None:
        families, top = self.config["qc"]["gene_families"], self.config["qc"]["percent_top"]
        for name, prefixes in families.items():
            self.adata.var[name] = self.adata.var_names.str.startswith(tuple(prefixes))
        sc.pp.calculate_qc_metrics(self.adata, qc_vars=list(families), percent_top=top, inplace=True)

    def cells(self) -> None:
        obs, limits = self.adata.obs, self.config["cells"]
        keep = (obs["n_genes_by_counts"] > limits["min_genes"]) & (obs["n_genes_by_counts"] < limits["max_genes"])
        for family, most in limits["max_pct_counts"].items():
            keep &= obs[f"pct_counts_{family}"] < most
        self.adata = self.adata[keep].copy()

    def doublets(self) -> None:
        params = self.config["doublets"]
        threshold = params["threshold"]
        if threshold is None and not find_spec("skimage"):
            threshold = 0.25
            self.notes.append("scanpy's scrublet with threshold 0.25, as scikit-image is not installed")
        sc.pp.scrublet(
            self.adata,
            batch_key=self.batch_key,
            sim_doublet_ratio=params["sim_doublet_ratio"],
            expected_doublet_rate=params["expected_doublet_rate"],
            n_prin_comps=params["n_prin_comps"],
            n_neighbors=params["n_neighbors"],
            threshold=threshold,
            random_state=self.seed,
            verbose=False,
        )
        self.adata = self.adata[~self.adata.obs["predicted_doublet"].astype(bool)].copy()

    def genes(self) -> None:
        sc.pp.filter_genes(self.adata, min_counts=self.config["genes"]["min_counts"])

    def hvg(self) -> None:
        params = self.config["hvg"]
        sc.pp.highly_variable_genes(
            self.adata,
            flavor=params["flavor"],
            n_top_genes=params["n_top_genes"],
            span=params["span"],
            batch_key=self.batch_key,
        )

    def normalize(self) -> None:
        self.adata.layers["counts"] = self.adata.X.copy()
        sc.pp.normalize_total(self.adata, target_sum=self.config["normalize"]["target_sum"])
        sc.pp.log1p(self.adata)

    def features(self) -> None:
        self.scaled = self.adata[:, self.adata.var["highly_variable"]].copy()
        del self.scaled.layers["counts"]

    def regress_out(self) -> None:
        sc.pp.regress_out(self.scaled, self.config["regress_out"]["keys"])

    def scale(self) -> None:
        sc.pp.scale(self.scaled, max_value=self.config["scale"]["max_value"])

    def pca(self) -> None:
        sc.pp.pca(self.scaled, n_comps=self.config["pca"]["n_comps"], random_state=self.seed)
        self.adata.obsm["X_pca"] = self.scaled.obsm["X_pca"]

    def harmony(self) -> None:
        params = {key: self.config["harmony"][key] for key in ("theta", "sigma", "lamb", "max_iter_harmony")}
        keys = self.config["harmony"]["keys"] or [self.batch_key]
        found = harmonypy.run_harmony(
            self.adata.obsm["X_pca"],
            self.adata.obs,
            keys,
            **params,
            random_state=self.seed,
            ncores=self.cores,
            verbose=False,
        )
        self.adata.obsm["X_pca_harmony"] = found.Z_corr

    def neighbors(self) -> None:
        from pynndescent import pynndescent_

        # scanpy expects pynndescent's neighbours as csr_matrix, and fails on the csr_array of newer releases
        pynndescent_.coo_array = coo_matrix
        params = self.config["neighbors"]
        sc.pp.neighbors(
            self.adata,
            n_neighbors=params["n_neighbors"],
            n_pcs=params["n_pcs"],
            metric=params["metric"],
            use_rep="X_pca_harmony",
            random_state=self.seed,
        )

    def umap(self) -> None:
        params = self.config["umap"]
        sc.tl.umap(self.adata, min_dist=params["min_dist"], spread=params["spread"], random_state=self.seed)

    def density(self) -> None:
        sc.tl.embedding_density(self.adata, basis="umap", groupby=self.batch_key)

    def leiden(self) -> None:
        params = self.config["leiden"]
        for resolution in params["resolutions"]:
            sc.tl.leiden(
                self.adata,
                resolution,
                key_added=f"leiden_{resolution}",
                n_iterations=params["n_iterations"],
                flavor="igraph",
                directed=False,
                random_state=self.seed,
            )

    def louvain(self) -> None:
        sc.tl.louvain(self.adata, resolution=None, flavor="igraph", directed=False, use_weights=True)

    def kmeans(self) -> None:
        from sklearn.cluster import KMeans

        X = self.adata.obsm["X_pca_harmony"][:, : self.config["neighbors"]["n_pcs"]]
        for n_clusters in self.config["kmeans"]["n_clusters"]:
            found = KMeans(n_clusters, n_init=10, random_state=self.seed).fit(X)
            self.adata.obs[f"kmeans_{n_clusters}"] = pd.Categorical(found.labels_.astype(str))

    def markers_logreg(self) -> None:
        params = self.config["markers"]["logreg"]
        for name in self.groupings:
            self.scaled.obs[name] = self.adata.obs[name]
            kwargs = {"C": params["C"], "max_iter": params["max_iter"], "key_added": f"logreg_{name}"}
            sc.tl.rank_genes_groups(self.scaled, name, method="logreg", use_raw=False, **kwargs)
            self.adata.uns[f"logreg_{name}"] = self.scaled.uns[f"logreg_{name}"]

    def markers_ttest(self) -> None:
        for name in self.groupings:
            sc.tl.rank_genes_groups(self.adata, name, method="t-test", use_raw=False, key_added=f"t-test_{name}")

    def write(self) -> None:
        self.adata.write_h5ad(self.atlas)

    def tsne(self) -> None:
        params = self.config["tsne"]
        sc.tl.tsne(
            self.adata,
            n_pcs=self.config["neighbors"]["n_pcs"],
            use_rep="X_pca_harmony",
            perplexity=params["perplexity"],
            early_exaggeration=params["early_exaggeration"],
            learning_rate=params["learning_rate"] or "auto",
            random_state=self.seed,
            n_jobs=self.cores,
        )


# In this order; the slowest last, so that little is lost if the process is ended early
STAGES = ["ingest", "qc", "cells", "doublets", "genes", "hvg", "normalize", "features", "regress_out", "scale", "pca"]
STAGES += ["harmony", "neighbors", "umap", "density", "leiden", "louvain", "kmeans", "markers_ttest", "write"]
STAGES += ["markers_logreg", "tsne"]
RULE_OF = {"regress_out": "pca", "scale": "pca", "write": "atlas"}  # stages with other names


def measured(stage: Callable[[], None]) -> dict[str, float]:
    """Run a stage; its seconds, and the highest resident memory of the process while it ran, in MB."""
    process, done, peak = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.time()
    stage()
    seconds = time.time() - started
    done.set()
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    highest = max(peak[0] / 2**20, after / 1024 if after > before else 0)
    return {"seconds": seconds, "mb": highest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("h5ad", type=Path)
    parser.add_argument("config", type=Path, help="a complete config of the workflow, whose parameters are taken")
    parser.add_argument("out", type=Path)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--skip", nargs="*", default=[], help="rules")
    args = parser.parse_args()
    sc.settings.n_jobs = args.cores
    peer = Peer(args.h5ad, yaml.safe_load(args.config.read_text()), args.atlas, args.cores)
    with args.out.open("w", buffering=1) as out:
        for name in STAGES:
            stage = {"stage": name, "rule": RULE_OF.get(name, name)}
            if stage["rule"] in args.skip:
                continue
            print(json.dumps(stage), file=out)
            print(json.dumps(stage | measured(getattr(peer, name))), file=out)
            if name == "leiden":
                truth, found = (peer.adata.obs[column].astype(str) for column in peer.groupings[:2])
                result = {"n_obs": peer.adata.n_obs, "n_vars": peer.adata.n_vars, "notes": peer.notes}
                result |= {"ari": adjusted_rand_score(truth, found), "clusters": found.nunique()}
                print(json.dumps({"result": result}), file=out)


if __name__ == "__main__":
    main()
