"""Figures of hard cases, measured as drawn: no text covers another, none is above 2,500 pixels, bars have numbers.

The names have 26 characters. The cases: few and many batches, clusters and types; 48 is the most that have own colours.
"""

import figures_clusters
import figures_composition
import figures_de
import figures_hvg
import figures_markers
import figures_pca
import figures_pseudobulk
import figures_qc
import numpy as np
import pandas as pd
import pytest
from drawn import bars, height, numbers, overlaps, texts
from lib.figures import distributions, embeddings, plots, words
from lib.methods.markers import chosen_genes
from scipy.sparse import random as random_sparse

MAX_HEIGHT = 2500
KINDS = ["CD4+", "CD8+", "NK", "B", "Monocyte", "Dendritic", "Mast", "Stromal"]
LIMITS = {"min_genes": 200, "max_genes": 5000, "max_pct_counts": {"MT": 20}}
REASONS = ["min_genes", "max_genes", "max_pct_counts_MT", "doublet"]


def names_of(n):
    """Names of 26 characters that differ in the middle or at the end."""
    return [f"{KINDS[i % 8]} cell, activated {i:03d} tissue-resident"[:23] + f"{i:03d}" for i in range(n)]


def cells_of(n_groups, n=3000, seed=0):
    """Cells around a centre for each group: positions, and each cell's group."""
    rng = np.random.default_rng(seed)
    codes = np.sort(rng.integers(0, n_groups, n))
    codes[:n_groups] = np.arange(n_groups)
    return rng.normal(size=(n_groups, 2))[codes] * 6 + rng.normal(size=(n, 2)), codes


def table_of(codes, names, seed=0):
    rng = np.random.default_rng(seed)
    n = len(codes)
    cells = {"total_counts": rng.lognormal(8, 0.9, n) + 1, "pct_counts_MT": np.clip(rng.gamma(2, 4, n), 0, 100)}
    cells |= {
        "doublet_score": rng.beta(1, 9, n),
        "reason": rng.choice(["", *REASONS], n),
        "batch": np.array(names)[codes],
    }
    return pd.DataFrame(cells).assign(n_genes_by_counts=lambda table: table["total_counts"] ** 0.87)


def markers_of(names, n_genes=20, seed=0):
    rng = np.random.default_rng(seed)
    n = len(names)
    table = {"group": np.repeat(names, n_genes), "rank": np.tile(np.arange(n_genes) + 1, n)}
    table |= {"names": [f"GENE{i:05d}-AS1" for i in rng.integers(0, 20 * n, n * n_genes)]}
    table |= {"scores": -np.sort(-rng.gamma(2, 3, (n, n_genes)), axis=1).ravel()}
    return pd.DataFrame(table).assign(gene_symbols=lambda table: table["names"])


def embedding(n, named, family):
    X, codes = cells_of(n)
    values = pd.Series(np.array(names_of(n))[codes], name="a grouping with a long name, of the sheet")
    return embeddings.by_category(X, values, ["UMAP1", "UMAP2"], 0, named, family)


def density(n):
    X, codes = cells_of(n)
    shares = np.random.default_rng(0).random(len(X))
    return embeddings.category_tiles(X, codes, names_of(n), ["UMAP1", "UMAP2"], 0, shares)


def quality(n):
    X, codes = cells_of(n)
    metrics = ["total_counts", "n_genes_by_counts", "pct_counts_MT", "doublet_score"]
    return embeddings.value_panels(X, table_of(codes, names_of(n))[metrics], ["UMAP1", "UMAP2"], 0)


def violins(n):
    _, codes = cells_of(n)
    table = table_of(codes, names_of(n))
    colours = plots.category_colours(names_of(n), "batches")
    metrics = ["total_counts", "n_genes_by_counts", "pct_counts_MT", "doublet_score"]
    return distributions.violins(table[metrics], table["batch"], colours, words.limits(LIMITS))


def attrition(n):
    lost = np.random.default_rng(0).integers(1, 900, (n, 5))
    return figures_qc.attrition_bars(pd.DataFrame(lost, names_of(n), ["", *REASONS]))


def limits(n, family="MT"):
    _, codes = cells_of(n)
    cells = dict(list(table_of(codes, names_of(n)).groupby("batch")))
    return figures_qc.limit_tiles(cells, dict.fromkeys(cells, words.limits(LIMITS)), REASONS, family, 0)


def doublets(n):
    rng = np.random.default_rng(0)
    observed, simulated = ({name: rng.beta(1, 9, 300) for name in names_of(n)} for _ in range(2))
    return figures_qc.doublet_tiles(observed, simulated, dict.fromkeys(observed, 0.251))


def cohort_scatter(n):
    _, codes = cells_of(n)
    cells = table_of(codes, names_of(n)).assign(kept=True)
    limited = words.limits(LIMITS)
    return figures_qc.cohort_scatter(cells, "batch", ["n_genes_by_counts", "pct_counts_MT"], limited, 0)


def composition(n, m):
    rng = np.random.default_rng(0)
    clusters, other = (
        pd.Series(np.array(names)[rng.integers(0, len(names), 5000)]) for names in (names_of(n), names_of(m))
    )
    shares = figures_clusters.composition(clusters, other)
    return figures_clusters.heatmap(shares, [12_345] * len(shares), "leiden_0.6", "a grouping of the sheet")


def tree(*numbers):
    rng = np.random.default_rng(0)
    found = {f"leiden_{i}": rng.integers(0, n, 3000).astype(str) for i, n in enumerate(numbers)}
    return figures_clusters.tree(pd.DataFrame(found))


def scores(n):
    return figures_markers.score_panels(markers_of(names_of(n)))


def dot_plot(n):
    genes = chosen_genes(markers_of(names_of(n)))
    shape = n, len(genes)
    rng = np.random.default_rng(0)
    means, fractions = (pd.DataFrame(rng.random(shape), names_of(n), genes["names"]) for _ in range(2))
    return figures_markers.dot_plot(means, fractions, genes["gene_symbols"].tolist(), genes["group"].tolist())


def expression(n):
    X, _ = cells_of(n)
    values = random_sparse(len(X), n, 0.2, "csc", random_state=np.random.default_rng(0))
    titles = names_of(n), [f": GENE{i:05d}" for i in range(n)]
    return figures_markers.expression_tiles(X, values, titles, ["UMAP1", "UMAP2"], 0, "")


def integration(n):
    X, codes = cells_of(n)
    values = pd.Series(np.array(names_of(n))[codes])
    return figures_pca.integration(
        X, X / 2, {"patient of the study": (values, "batches"), "type": (values, "types")}, 0
    )


def components(n):
    X, codes = cells_of(n)
    return figures_pca.components(np.hstack([X, X]), pd.Series(np.array(names_of(n))[codes]), 0)


def hvg(n):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: rng.gamma(1, 1, n) + 0.01 for name in ("means", "variances", "variances_norm")})
    table["highly_variable"] = rng.random(n) < 0.2
    return figures_hvg.hvg_scatter(table, pd.Series([f"GENE{i:05d}-AS1" for i in range(n)]), "seurat_v3")


CONTRAST = {"name": "x", "column": "condition", "level": "treated with a long name", "reference": "control"}


def profiles(n, m):
    """Profiles of `n` samples in `m` groups."""
    rng = np.random.default_rng(0)
    samples = [f"donor {i:03d} of hospital" for i in range(n)]
    table = pd.DataFrame(
        {
            "sample": pd.Categorical(np.repeat(samples, m), samples),
            "group": pd.Categorical(np.tile(names_of(m), n), names_of(m)),
            "n_cells": rng.geometric(0.01, n * m),
            "condition": np.repeat(np.where(np.arange(n) % 2, CONTRAST["level"], "control"), m),
            "share": rng.dirichlet(np.ones(m), n).ravel(),
        }
    )
    places = {name: rng.normal(size=n * m) for name in ("PC1", "PC2", "all_PC1", "all_PC2")}
    return table.assign(few_cells=table["n_cells"] < 10, distance=rng.uniform(0.5, 1.9, n * m), **places)


def cells_of_samples(n, m):
    return figures_pseudobulk.cells(profiles(n, m), 10)


def profile_components(n, m):
    shares = dict.fromkeys(["", *names_of(m)], np.array([0.4, 0.2]))
    return figures_pseudobulk.pca(profiles(n, m), shares, "condition", "types")


def genes_found(m):
    rng = np.random.default_rng(0)
    counts = {name: rng.geometric(0.005, m) - 1 for name in ("n_up", "n_down", "n_cell_tests")}
    table = pd.DataFrame({"group": names_of(m), **counts, "n_samples_level": 12, "n_samples_reference": 9})
    return figures_de.overview(table, CONTRAST["level"], "control")


def sample_bars(n, m):
    table = profiles(n, m)
    shares, levels = figures_composition.in_order(table, [CONTRAST])
    return figures_composition.bars(shares, levels, table.groupby("sample", observed=True)["n_cells"].sum(), "types")


def shares_by_level(n, m):
    shares, levels = figures_composition.in_order(profiles(n, m), [CONTRAST])
    tests = pd.DataFrame({"group": names_of(m), "pvals_adj": 0.0123456})
    return figures_composition.dots(shares, levels, tests, CONTRAST)


CASES = {
    **{f"embedding of {n} types": (embedding, n, True, "types") for n in (2, 8, 40, 48, 49, 200)},
    **{f"embedding of {n} batches": (embedding, n, False, "batches") for n in (3, 30)},
    **{f"densities of {n}": (density, n) for n in (1, 3, 30, 200)},
    "quality": (quality, 5),
    **{f"violins of {n}": (violins, n) for n in (1, 3, 30, 80)},
    **{f"attrition of {n}": (attrition, n) for n in (1, 3, 30, 80)},
    **{f"limits of {n}": (limits, n) for n in (1, 3, 30, 36)},
    "limits without a family": (limits, 3, None),
    **{f"doublets of {n}": (doublets, n) for n in (1, 3, 30, 36)},
    **{f"scatter of {n}": (cohort_scatter, n) for n in (3, 20, 30)},
    **{f"{n} clusters by {m}": (composition, n, m) for n, m in ((3, 2), (8, 8), (40, 30), (40, 40), (90, 200))},
    "tree": (tree, 3, 8, 12),
    "wide tree": (tree, 20, 40),
    **{f"scores of {n}": (scores, n) for n in (2, 8, 40, 120)},
    **{f"dot plot of {n}": (dot_plot, n) for n in (2, 8, 40, 120)},
    **{f"expression in {n}": (expression, n) for n in (2, 8, 48)},
    "integration of 3": (integration, 3),
    "integration of 40": (integration, 40),
    "components of 30": (components, 30),
    "components of 60": (components, 60),
    "highly variable genes": (hvg, 2000),
    **{f"cells of {n} samples in {m}": (cells_of_samples, n, m) for n, m in ((4, 2), (24, 20), (120, 60))},
    **{f"profiles of {n} in {m}": (profile_components, n, m) for n, m in ((4, 2), (24, 20), (60, 60))},
    **{f"genes found in {m}": (genes_found, m) for m in (1, 8, 40)},
    **{f"bars of {n} samples, {m} groups": (sample_bars, n, m) for n, m in ((2, 2), (24, 20), (120, 48))},
    **{f"shares of {m} by level": (shares_by_level, 24, m) for m in (2, 20, 60)},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_drawn_boxes(case, tmp_path):
    draw, *given = CASES[case]
    fig = draw(*given)
    assert len(texts(fig)) > 1
    assert overlaps(fig) == []
    assert height(fig, tmp_path) <= MAX_HEIGHT
    for bar in bars(fig):
        assert len(numbers(bar)) >= 2


def test_overlaps_are_found():
    fig, axes = plots.panels(1, 1, (2, 2))
    axes[0, 0].text(0.4, 0.5, "one")
    axes[0, 0].text(0.45, 0.5, "other")
    assert ("one", "other") in overlaps(fig)


def test_a_name_that_is_cut_on_the_plot_is_whole_in_the_legend():
    fig = embedding(40, True, "types")
    said = [text.get_text() for text in fig.axes[0].texts]
    whole = [name for name in said if name.endswith(")")]
    assert {name.rpartition(" (")[0] for name in whole} == set(names_of(40))
    cut = [name for name in said if "…" in name]
    assert len(cut) > 20  # there is not room for all
    assert len(set(cut)) == len(cut)


def test_names_are_pushed_apart_and_stay_near():
    rng = np.random.default_rng(0)
    anchors = rng.random((30, 2)) * 4
    boxes = np.column_stack([rng.uniform(0.3, 1.0, 30), np.full(30, 0.15)])
    centres = plots.apart(anchors, boxes, np.array([4.0, 4.0]))
    low, high = centres - boxes / 2, centres + boxes / 2
    over = ((low[:, None] < high[None] - 1e-6) & (high[:, None] > low[None] + 1e-6)).all(2)
    assert over.sum() == 30  # each with itself
    assert (low > -1e-9).all()
    assert (high < 4 + 1e-9).all()
    assert np.median(np.hypot(*(centres - anchors).T)) < 0.2


@pytest.mark.parametrize("text", ["a$b$ $\\foo$", "日本語", "\U0001f9ec", "a\nb\tc", "", "é" * 300, "<script>"])
def test_odd_names_are_drawn(text, tmp_path):
    values = pd.Series([text, "other"] * 20, name=text or "empty")
    fig = embeddings.by_category(np.random.default_rng(0).random((40, 2)), values, ["x", "y"], 0, True)
    assert height(fig, tmp_path) < 1200
