"""Metrics by scib-metrics 0.5.10, stored in tests/unit/scib.json; tests/unit/test_mixing.py compares ours.

scib-metrics needs JAX, some 500 MB. Written by

    SOMERSAULT_TEST_DATA=... uv run --with scib-metrics==0.5.10 python tests/scib_reference.py
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

STORED = Path(__file__).with_name("unit") / "scib.json"
COHORTS = ["pbmc_3tech", "demo"]
N_GENES, N_COMPS = 1000, 20


@dataclass(frozen=True)
class Example:
    """Cells in an unintegrated and an integrated space, with batches and labels (codes from 0 on)."""

    spaces: dict[str, np.ndarray]
    batches: np.ndarray
    labels: np.ndarray


def example(name: str) -> Example:
    """A cohort's principal components, and the same with the mean of each batch removed: a crude integration.

    They depend on nothing of ours, so that stored values stay right.
    """
    X, obs = {"pbmc_3tech": pbmc, "demo": demo}[name]()
    totals = X.sum(1, keepdims=True)
    values = np.log1p(1e4 * X / totals)
    values = values[:, np.argsort(-values.var(0), kind="stable")[:N_GENES]]
    values -= values.mean(0)
    vectors = np.linalg.eigh(values.T @ values)[1]
    before = values @ vectors[:, ::-1][:, :N_COMPS]
    batches, labels = (pd.factorize(obs[key], sort=True)[0] for key in ("batch", "label"))
    after = before - np.stack([before[batches == batch].mean(0) for batch in range(batches.max() + 1)])[batches]
    spaces = {"unintegrated": before, "integrated": after}
    return Example({key: space.astype(np.float32) for key, space in spaces.items()}, batches, labels)


def pbmc() -> tuple[np.ndarray, pd.DataFrame]:
    """The counts of 2,000 PBMC of three technologies; some types are in one batch only."""
    adata = ad.read_h5ad(Path(os.environ["SOMERSAULT_TEST_DATA"]) / "pbmc_3tech" / "pbmc_3tech.h5ad")
    X = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    return X.astype(np.float64), pd.DataFrame({"batch": adata.obs["batch"], "label": adata.obs["cell_type"]})


def demo() -> tuple[np.ndarray, pd.DataFrame]:
    """Three patients of the demo, of unequal sizes."""
    sys.path.append(str(Path(__file__).parents[1] / "scripts"))  # at the end: it has an umap.py of its own
    from simulate import Design, simulate_patient, simulated_genes

    design = Design(n_genes=2000)
    genes = simulated_genes(design)
    parts = []
    for patient, n_obs in enumerate((500, 400, 250), 1):
        ((X, obs),) = simulate_patient(design, patient, n_obs, genes)
        parts.append((X.toarray().astype(np.float64), obs.assign(batch=str(patient), label=obs["CellType"])))
    X, obs = zip(*parts, strict=True)
    return np.concatenate(X), pd.concat(obs)[["batch", "label"]]


def main() -> None:
    """Write the reference."""
    import scib_metrics as scib
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    found: dict[str, object] = {"version": scib.__version__}
    for name in COHORTS:
        of = example(name)
        for space, X in of.spaces.items():
            distances, indices = NearestNeighbors(n_neighbors=90, algorithm="brute").fit(X).kneighbors(X)
            near = NeighborsResults(indices=indices, distances=distances)
            found[f"{name} {space}"] = {
                "iLISI": scib.ilisi_knn(near, of.batches),
                "cLISI": scib.clisi_knn(near, of.labels),
                "kBET": scib.kbet(near.subset_neighbors(50), of.batches)[0],
                "label ASW": scib.silhouette_label(X, of.labels),
                "batch ASW": scib.silhouette_batch(X, of.labels, of.batches),
                "graph connectivity": scib.graph_connectivity(near.subset_neighbors(15), of.labels),
                "isolated labels": scib.isolated_labels(X, of.labels, of.batches),
                "PC regression": scib.utils.principal_component_regression(X, of.batches, categorical=True),
            }
    numbers = json.dumps(found, indent=1, default=float)
    STORED.write_text(numbers + "\n")


if __name__ == "__main__":
    main()
