"""Draw the cells in two dimensions: a figure for each grouping, one of the quality metrics, and one of densities."""

from lib.start import run

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import embeddings, plots
from lib.run.forked import run_all
from lib.run.progress import timed
from lib.run.resources import KB, MB, Job, Need
from lib.store.categories import as_categories
from lib.store.cohort import with_results
from lib.store.files import column_names, read_column, read_table
from matplotlib.figure import Figure


def density_figure(X: np.ndarray, groups: pd.Series, density: np.ndarray, axes_names: list[str], seed: int) -> Figure:
    """A tile for each category, its cells shaded by their density."""
    return embeddings.category_tiles(X, *plots.categories(groups), axes_names, seed, density)


def quality_figure(X: np.ndarray, table: pd.DataFrame, metrics: list[str], axes_names: list[str], seed: int) -> Figure:
    """The cells shaded by each metric; those of a gene family without genes are left out."""
    known = table[[name for name in metrics if name in table and table[name].notna().any()]]
    return embeddings.value_panels(X, known, axes_names, seed)


def needs(job: Job) -> Need:
    """Tables of cells, and the images."""
    return job.drawn(110 * MB, 0.6 * KB, seconds=20)


def main(snakemake: Any) -> None:
    """Draw an embedding by each of `params.groupings` and by `params.metrics`, or the density of a grouping's cells."""
    inputs, params, output, seed = snakemake.input, snakemake.params, snakemake.output, snakemake.params.seed
    embedding = read_table(inputs.embedding, named=False)
    X, axes_names = embedding.to_numpy(dtype=np.float32), list(embedding.columns)
    tables = [read_table(path, named=False) for path in inputs.clusterings]
    clusterings = pd.concat([pd.DataFrame(index=embedding.index), *tables], axis=1)
    known, named = column_names(inputs.obs), [name for name in params.groupings if name not in clusterings]
    table = read_table(inputs.obs, [*named, *(name for name in params.metrics if name in known)], named=False)
    table = with_results(table, clusterings)
    table = table.assign(**{name: as_categories(table[name]) for name in params.groupings})

    def draw_grouping(name: str, paths: list[str]) -> None:
        with timed(name):
            family = params.colours.get(name, "types")
            named = family != "batches"
            plots.save(embeddings.by_category(X, table[name], axes_names, seed, named, family), paths)

    def draw_density(name: str, paths: list[str]) -> None:
        density = read_column(inputs.density[0], f"umap_density_{name}")
        plots.save(density_figure(X, table[name], density, axes_names, seed), paths)

    def draw_quality() -> None:
        with timed("quality"):
            plots.save(quality_figure(X, table, params.metrics, axes_names, seed), output.quality)

    draw = draw_density if inputs.density else draw_grouping
    paths = np.array_split(output.groupings, max(1, len(params.groupings)))[: len(params.groupings)]
    tasks = [partial(draw, *pair) for pair in zip(params.groupings, paths, strict=True)]
    run_all([*([draw_quality] if params.metrics else []), *tasks], snakemake.threads)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
