"""Run the workflow's stages by rapids-singlecell, in one process and in GPU memory, and measure each stage.

    python tests/benchmarks/rapids_peer.py config.yaml measured.jsonl atlas.h5ad cohort.h5ad --skip tsne

A stage has the name of the workflow's rule that does the same, or is mapped to it. One line of JSON is written when a
stage starts and one when it ends, with its error if there was one, so that the last stage is known however the process
ends. All GPU memory comes from an RMM pool, as rapids-singlecell's documentation recommends for speed; the peaks are of
allocations from the pool. Seconds are between two device synchronisations; libraries are imported before the first.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import cugraph  # noqa: F401
import cuml.cluster
import cuml.decomposition
import cuml.linear_model
import cuml.manifold  # noqa: F401
import cupy as cp
import numpy as np
import rapids_singlecell as rsc
import rmm
import skimage.filters  # noqa: F401
import skmisc.loess  # noqa: F401
import yaml
from gpu import knn_recall, sampled
from rmm.allocators.cupy import rmm_cupy_allocator
from sklearn.metrics import adjusted_rand_score

# cugraph, cuml, skimage and skmisc are imported here, so that no stage's seconds include their import

warnings.filterwarnings("ignore")


class Peer:
    """The stages by rapids-singlecell: one AnnData of all genes, one of the highly variable genes."""

    def __init__(self, h5ads: list[Path], config: dict[str, Any], atlas: Path) -> None:
        self.h5ads, self.config, self.atlas = h5ads, config, atlas
        self.seed, self.batch_key, self.label_key = config["seed"], config["batch_key"], config["label_key"]
        self.resolutions = {name: config[name]["resolutions"] for name in ("leiden", "louvain")}
        self.groupings = [self.label_key, *(f"leiden_{r}" for r in self.resolutions["leiden"])]

    def ingest(self) -> None:
        tables = [ad.read_h5ad(h5ad) for h5ad in self.h5ads]
        self.adata = tables[0] if len(tables) == 1 else ad.concat(tables, merge="same")

    def to_gpu(self) -> None:
        rsc.get.anndata_to_GPU(self.adata)

    def qc(self) -> None:
        families = self.config["qc"]["gene_families"]
        for name, prefixes in families.items():
            self.adata.var[name] = self.adata.var_names.str.startswith(tuple(prefixes))
        rsc.pp.calculate_qc_metrics(self.adata, qc_vars=list(families))

    def cells(self) -> None:
        obs, limits = self.adata.obs, self.config["cells"]
        keep = (obs["n_genes_by_counts"] > limits["min_genes"]) & (obs["n_genes_by_counts"] < limits["max_genes"])
        for family, most in limits["max_pct_counts"].items():
            keep &= obs[f"pct_counts_{family}"] < most
        self.adata = self.adata[keep].copy()

    def doublets(self) -> None:
        params = self.config["doublets"]
        rsc.pp.scrublet(
            self.adata,
            batch_key=self.batch_key,
            sim_doublet_ratio=params["sim_doublet_ratio"],
            expected_doublet_rate=params["expected_doublet_rate"],
            n_prin_comps=params["n_prin_comps"],
            n_neighbors=params["n_neighbors"],
            threshold=params["threshold"],
            random_state=self.seed,
            verbose=False,
        )
        self.adata = self.adata[~self.adata.obs["predicted_doublet"].astype(bool)].copy()

    def genes(self) -> None:
        rsc.pp.filter_genes(self.adata, min_counts=self.config["genes"]["min_counts"], verbose=False)

    def counts_layer(self) -> None:
        self.adata.layers["counts"] = self.adata.X.copy()

    def normalize(self) -> None:
        rsc.pp.normalize_total(self.adata, target_sum=self.config["normalize"]["target_sum"])

    def log1p(self) -> None:
        rsc.pp.log1p(self.adata)

    def hvg(self) -> None:
        params = self.config["hvg"]
        rsc.pp.highly_variable_genes(
            self.adata,
            layer="counts",
            flavor=params["flavor"],
            n_top_genes=params["n_top_genes"],
            span=params["span"],
            batch_key=self.batch_key,
        )

    def features(self) -> None:
        self.scaled = self.adata[:, self.adata.var["highly_variable"]].copy()
        del self.scaled.layers["counts"]

    def regress_out(self) -> None:
        rsc.pp.regress_out(self.scaled, self.config["regress_out"]["keys"])

    def scale(self) -> None:
        rsc.pp.scale(self.scaled, max_value=self.config["scale"]["max_value"])

    def pca(self) -> None:
        # All remaining genes are highly variable: without a mask they are not copied again
        rsc.pp.pca(self.scaled, n_comps=self.config["pca"]["n_comps"], mask_var=None, random_state=self.seed)
        self.adata.obsm["X_pca"] = self.scaled.obsm["X_pca"]

    def harmony(self) -> None:
        params = self.config["harmony"]
        rsc.pp.harmony_integrate(
            self.adata,
            params["keys"] or self.batch_key,
            theta=params["theta"],
            sigma=params["sigma"],
            max_iter_harmony=params["max_iter_harmony"],
            random_state=self.seed,
            # Harmony 2 estimates the ridge penalty, as the workflow does unless it is set
            **({} if params["lamb"] is None else {"flavor": "harmony1", "ridge_lambda": params["lamb"]}),
        )

    def neighbors(self) -> None:
        self._neighbors("X_pca_harmony")

    def _neighbors(self, use_rep: str, key_added: str | None = None) -> None:
        params = self.config["neighbors"]
        rsc.pp.neighbors(
            self.adata,
            n_neighbors=params["n_neighbors"],
            n_pcs=params["n_pcs"],
            metric=params["metric"],
            use_rep=use_rep,
            key_added=key_added,
            random_state=self.seed,
        )

    def umap(self) -> None:
        params = self.config["umap"]
        rsc.tl.umap(
            self.adata,
            min_dist=params["min_dist"],
            spread=params["spread"],
            maxiter=params["n_epochs"],
            init_pos=params["init_pos"],
            random_state=self.seed,
        )

    def density(self) -> None:
        rsc.tl.embedding_density(self.adata, "umap", groupby=self.batch_key)

    def leiden(self) -> None:
        for resolution in self.resolutions["leiden"]:
            rsc.tl.leiden(self.adata, resolution, key_added=f"leiden_{resolution}", random_state=self.seed)

    def louvain(self) -> None:
        for resolution in self.resolutions["louvain"]:
            rsc.tl.louvain(self.adata, resolution, key_added=f"louvain_{resolution}")

    def kmeans(self) -> None:
        for n_clusters in self.config["kmeans"]["n_clusters"]:
            rsc.tl.kmeans(
                self.adata,
                n_clusters,
                n_pcs=self.config["neighbors"]["n_pcs"],
                use_rep="X_pca_harmony",
                n_init=10,
                random_state=self.seed,
                key_added=f"kmeans_{n_clusters}",
            )

    def markers_logreg(self) -> None:
        params = self.config["markers"]["logreg"]
        for name in self.groupings:
            self.scaled.obs[name] = self.adata.obs[name]
            kwargs = {"C": params["C"], "max_iter": params["max_iter"], "key_added": f"logreg_{name}"}
            rsc.tl.rank_genes_groups(self.scaled, name, method="logreg", use_raw=False, **kwargs)
            self.adata.uns[f"logreg_{name}"] = self.scaled.uns[f"logreg_{name}"]

    def markers_ttest(self) -> None:
        for name in self.groupings:
            kwargs = {"method": "t-test", "use_raw": False, "key_added": f"t-test_{name}"}
            rsc.tl.rank_genes_groups(self.adata, name, **kwargs)

    def tsne(self) -> None:
        params = self.config["tsne"]
        learning_rate = {} if params["learning_rate"] is None else {"learning_rate": params["learning_rate"]}
        rsc.tl.tsne(
            self.adata,
            n_pcs=self.config["neighbors"]["n_pcs"],
            use_rep="X_pca_harmony",
            perplexity=params["perplexity"],
            early_exaggeration=params["early_exaggeration"],
            random_state=self.seed,
            **learning_rate,
        )

    def neighbors_unintegrated(self) -> None:
        self._neighbors("X_pca", "unintegrated")

    def leiden_unintegrated(self) -> None:
        kwargs = {"neighbors_key": "unintegrated", "key_added": "leiden_unintegrated", "random_state": self.seed}
        rsc.tl.leiden(self.adata, self.resolutions["leiden"][0], **kwargs)

    def to_cpu(self) -> None:
        rsc.get.anndata_to_CPU(self.adata, convert_all=True)

    def write(self) -> None:
        self.adata.write_h5ad(self.atlas)

    def result(self, stage: str) -> dict[str, Any]:
        """The quality of a stage's result."""
        obs = self.adata.obs
        truth = obs[self.label_key].astype(str)
        if stage == "features":
            return {"n_obs": self.adata.n_obs, "n_vars": self.adata.n_vars}
        if stage == "neighbors":
            X = self.adata.obsm["X_pca_harmony"][:, : self.config["neighbors"]["n_pcs"]]
            cells, distances = sampled(self.adata.n_obs), self.adata.obsp["distances"].tocsr()
            found = [np.setdiff1d(distances[cell].indices, [cell]) for cell in cells]
            return {"recall": knn_recall(X, cells, found, self.config["neighbors"]["metric"])}
        columns = {name: f"{name}_{resolutions[0]}" for name, resolutions in self.resolutions.items()}
        columns["leiden_unintegrated"] = "leiden_unintegrated"
        if stage not in columns:
            return {}
        found, key = obs[columns[stage]], "" if stage == "leiden" else f"_{stage.removeprefix('leiden_')}"
        return {f"ari{key}": adjusted_rand_score(truth, found), f"clusters{key}": int(found.nunique())}


# In this order; stages that no other stage needs come last, and run even if earlier ones failed
NEEDED = ["ingest", "to_gpu", "qc", "cells", "doublets", "genes", "counts_layer", "normalize", "log1p", "hvg"]
NEEDED += ["features", "regress_out", "scale", "pca", "harmony", "neighbors"]
STAGES = [*NEEDED, "umap", "density", "leiden", "louvain", "kmeans", "markers_ttest", "markers_logreg", "tsne"]
STAGES += ["neighbors_unintegrated", "leiden_unintegrated", "to_cpu", "write"]
# Stages with other names; the unintegrated graph has no counterpart
RULE_OF = {"to_gpu": "ingest", "counts_layer": "normalize", "log1p": "normalize", "regress_out": "pca", "scale": "pca"}
RULE_OF |= {"to_cpu": "atlas", "write": "atlas"}
RULE_OF |= {"neighbors_unintegrated": "unintegrated", "leiden_unintegrated": "unintegrated"}


def set_up_memory(memory_gb: float | None) -> rmm.mr.StatisticsResourceAdaptor:
    """A pool that grows from half the card's free memory, or has `memory_gb`; its allocations are counted."""
    size = None if memory_gb is None else int(memory_gb * 2**30) // 256 * 256
    rmm.reinitialize(pool_allocator=True, managed_memory=False, initial_pool_size=size, maximum_pool_size=size)
    resource = rmm.mr.StatisticsResourceAdaptor(rmm.mr.get_current_device_resource())
    rmm.mr.set_current_device_resource(resource)
    cp.cuda.set_allocator(rmm_cupy_allocator)
    return resource


def measured(stage: Callable[[], None], resource: rmm.mr.StatisticsResourceAdaptor) -> dict[str, Any]:
    """Run a stage; its seconds, the highest GPU memory in use while it ran, in MB, and its error if it had one."""
    cost: dict[str, Any] = {}
    cp.cuda.Device().synchronize()
    # Pushed counters start from zero, so their peak is relative to the memory in use now
    before = resource.push_counters().current_bytes
    started = time.perf_counter()
    try:
        stage()
        cp.cuda.Device().synchronize()
    except Exception as error:
        traceback.print_exc()
        cost["error"] = f"{type(error).__name__}: {error}"[:1000]
    cost["seconds"] = time.perf_counter() - started
    cost["gpu_mb"] = (before + resource.pop_counters().peak_bytes) / 2**20
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="a complete config of the workflow, whose parameters are taken")
    parser.add_argument("out", type=Path)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("h5ad", type=Path, nargs="+")
    parser.add_argument("--skip", nargs="*", default=[], help="rules")
    parser.add_argument("--memory-gb", type=float, help="size of the memory pool (default: grows to the card's)")
    args = parser.parse_args()
    resource = set_up_memory(args.memory_gb)
    peer = Peer(args.h5ad, yaml.safe_load(args.config.read_text()), args.atlas)
    with args.out.open("w", buffering=1) as out:
        print(json.dumps({"ready": time.time()}), file=out)
        for name in STAGES:
            stage = {"stage": name, "rule": RULE_OF.get(name, name)}
            if stage["rule"] in args.skip:
                continue
            print(json.dumps(stage), file=out)
            cost = measured(getattr(peer, name), resource)
            print(json.dumps(stage | cost), file=out)
            if "error" in cost and name in NEEDED:
                break
            if "error" not in cost and (result := peer.result(name)):
                print(json.dumps({"result": result}), file=out)


if __name__ == "__main__":
    main()
