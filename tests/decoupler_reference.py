"""Scores by decoupler 2.3.1, stored in tests/unit/decoupler.npz; tests/unit/test_enrichment.py compares ours.

decoupler 2.3.1 says that it needs Python 3.12. Written by

    uv run --no-project --python 3.12 --with decoupler==2.3.1 python tests/decoupler_reference.py
"""

from pathlib import Path

import numpy as np

STORED = Path(__file__).with_name("unit") / "decoupler.npz"
N_OBS, N_VARS, N_SETS = 40, 300, 6


def example() -> tuple[np.ndarray, np.ndarray]:
    """Counts, cells x genes, most of them 0 or 1, and weights, genes x sets, some of them negative."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.3, 2.0, N_VARS) * rng.lognormal(0, 0.6, (N_OBS, 1)))
    counts[:, 0] += 1
    counts[:, counts.sum(0) == 0] = 1
    weights = np.where(rng.random((N_VARS, N_SETS)) < 0.08, np.round(rng.normal(1, 1, (N_VARS, N_SETS)), 2), 0)
    return counts, weights


def profiles(counts: np.ndarray) -> np.ndarray:
    """The log-normalised values."""
    return np.log1p(counts * (1e4 / counts.sum(1, keepdims=True)))


def table(counts: np.ndarray) -> np.ndarray:
    """Scores of both signs without ties, as in marker tables."""
    return profiles(counts) + np.random.default_rng(1).normal(0, 0.5, counts.shape) - 1


def main() -> None:
    """Write the reference."""
    import decoupler as dc
    import pandas as pd

    counts, weights = example()
    genes, sets = [f"g{i:03d}" for i in range(N_VARS)], [f"s{i}" for i in range(N_SETS)]
    cells = [f"c{i}" for i in range(N_OBS)]
    data = pd.DataFrame(profiles(counts), cells, genes)
    rows, columns = np.nonzero(weights)
    net = {"source": np.array(sets)[columns], "target": np.array(genes)[rows], "weight": weights[rows, columns]}
    net = pd.DataFrame(net)
    found = {"version": np.array(dc.__version__)}
    options = {"waggr": {"times": 0}, "ora": {"n_bg": None}}
    for method in ("ulm", "mlm", "zscore", "waggr", "aucell", "ora", "gsea"):
        data_of = pd.DataFrame(table(counts), cells, genes) if method in ("ora", "gsea") else data
        scores, padj = getattr(dc.mt, method)(data_of, net, tmin=1, **options.get(method, {}))
        found[method] = scores[sets].to_numpy()
        if padj is not None:
            found[f"{method}_padj"] = padj[sets].to_numpy()
    np.savez_compressed(STORED, **found)


if __name__ == "__main__":
    main()
