"""UMAP: the fuzzy graph of the cells laid out in two dimensions.

Source: McInnes, Healy & Melville 2018; umap-learn's `simplicial_set_embedding`, called as scanpy.tl.umap calls it.
This file is named as umap-learn's package: `scripts/` must stand behind it on `sys.path`, as it does under Snakemake.
"""

from typing import Any

import numpy as np
import pandas as pd
from lib import stage
from lib.files import read_attrs, read_table, write_table
from lib.fuzzy import read_graph
from lib.representation import representation

PACE = "layout: {n_fmt} of {total_fmt} epochs, {rate_fmt}, {remaining} left"  # as tqdm's bar


def embed(graph: Any, X: np.ndarray, metric: str, config: dict[str, Any], seed: int) -> np.ndarray:
    """The layout of the graph, by one thread: equal seeds give equal layouts.

    Parameters
    ----------
    graph
        cells x cells, symmetric CSR of memberships.
    X
        The representation that the graph was made from; places the graph's components, where there are several.
    metric
        The distance between rows of X.
    config
        min_dist, spread, n_epochs and init_pos, as scanpy.tl.umap names them.

    Returns
    -------
    cells x 2, float32.
    """
    from umap.umap_ import find_ab_params, simplicial_set_embedding

    a, b = find_ab_params(config["spread"], config["min_dist"])
    layout, _ = simplicial_set_embedding(
        data=X,
        graph=graph.copy(),  # in which umap-learn zeroes the small memberships
        n_components=2,
        initial_alpha=1.0,
        a=a,
        b=b,
        gamma=1.0,
        negative_sample_rate=5,
        n_epochs=config["n_epochs"],
        init=config["init_pos"],
        random_state=np.random.RandomState(seed),
        metric=metric,
        metric_kwds={},
        densmap=False,
        densmap_kwds={},
        output_dens=False,
        tqdm_kwds={"file": stage.LogLines(), "mininterval": stage.LOG_EVERY, "bar_format": PACE, "disable": False},
    )
    return layout


def main(snakemake: Any) -> None:
    """Read the graph and the representation, write `umap.parquet`."""
    made_with = read_attrs(snakemake.input.neighbors)
    _, X = representation(snakemake.input.pca, snakemake.input.harmony, made_with["use_rep"], made_with["n_pcs"])
    graph = read_graph(snakemake.input.neighbors)
    layout = embed(graph, X, made_with["metric"], snakemake.params.umap, snakemake.config["seed"])
    obs_names = read_table(snakemake.input.obs, columns=[]).index
    write_table(pd.DataFrame(layout, index=obs_names, columns=["UMAP1", "UMAP2"]), snakemake.output.umap)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
