"""Figures: they show the tables' values, colours are stable, hard cases run, files are byte-identical when repeated."""

from functools import partial
from traceback import format_exception
from types import SimpleNamespace

import figures_embedding
import figures_hvg
import figures_markers
import figures_pca
import figures_qc
import figures_sample
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from doublets import Doublets, write_simulated
from lib.figures import plots, tables, words
from lib.methods.markers import Groups
from lib.store.cohort import Cohort
from lib.store.counts import CountsWriter
from lib.store.files import read_table, write_arrays, write_table
from lib.store.stream import InMemory
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from snakemake.iocontainers import Namedlist

LIMITS = {"min_genes": 200, "max_genes": 5000, "max_pct_counts": {"MT": 20}}
REASONS = ["min_genes", "max_genes", "max_pct_counts_MT", "doublet"]


def make_cells(n=600, batches=("P1", "P2", "P10"), seed=0):
    rng = np.random.default_rng(seed)
    total = rng.lognormal(8, 0.9, n).astype(int) + 1
    genes = (total**0.87).astype(int)
    mt = np.clip(rng.gamma(2, 4, n), 0, 100)
    reason = np.select([genes <= 200, genes >= 5000, mt >= 20], REASONS[:3], "")
    cells = {"batch": rng.choice(batches, n), "total_counts": total, "n_genes_by_counts": genes, "pct_counts_MT": mt}
    cells |= {"doublet_score": rng.beta(1, 9, n), "reason": reason, "kept": reason == ""}
    return pd.DataFrame(cells, index=[f"cell{i}" for i in range(n)])


def make_ledger(cells, sample):
    rows = []
    for batch, reasons in cells.groupby("batch")["reason"]:
        left = len(reasons)
        rows.append((sample, batch, "input", "", 0, left))
        for reason in REASONS:
            left -= (reasons == reason).sum()
            rows.append((sample, batch, "thresholds", reason, (reasons == reason).sum(), left))
    return pd.DataFrame(rows, columns=["sample", "batch", "step", "reason", "removed", "left"])


def fake(inputs, params, outputs, **wildcards):
    return SimpleNamespace(
        input=Namedlist(fromdict=inputs),
        params=SimpleNamespace(seed=0, **params),
        output=Namedlist(fromdict=outputs),
        wildcards=SimpleNamespace(**wildcards),
        resources={},
        threads=1,
    )


def lines_at(ax, axis):
    """Positions of the straight lines across a panel."""
    data = [np.asarray(line.get_xdata() if axis == "x" else line.get_ydata(), float) for line in ax.lines]
    other = [np.asarray(line.get_ydata() if axis == "x" else line.get_xdata(), float) for line in ax.lines]
    return sorted(d[0] for d, o in zip(data, other, strict=True) if len(d) == 2 and d[0] == d[1] and set(o) == {0, 1})


def test_natural_order_compares_numbers():
    assert plots.natural_order(["P10", "P2", "P1"]) == ["P1", "P2", "P10"]
    assert plots.natural_order([10, 9, 1]) == ["1", "9", "10"]


def test_palette_is_distinct():
    assert len(set(plots.PALETTE)) == len(plots.PALETTE) >= 40


def test_colours_of_a_category_agree_between_figures():
    """A batch without kept cells does not change the colours of the others in figures of kept cells."""
    cells = make_cells()
    cells.loc[cells["batch"] == "P1", "kept"] = False
    order = figures_qc.batch_order(cells, "batch")
    assert order == ["P2", "P10", "P1"]
    _, kept = plots.categories(cells.loc[cells["kept"], "batch"])
    assert plots.category_colours(kept).items() <= plots.category_colours(order).items()


def test_limits_are_drawn_where_they_cut():
    fig = figures_sample.qc_scatter(make_cells(), words.limits(LIMITS), REASONS, "MT", 0)
    genes, mt = fig.axes
    assert lines_at(genes, "y") == [200, 5000]
    assert lines_at(mt, "y") == [20]
    assert lines_at(genes, "x") == []


def test_scatter_draws_every_cell_in_its_reasons_colour():
    cells = make_cells()
    fig = figures_sample.qc_scatter(cells, words.limits(LIMITS), REASONS, "MT", 0)
    drawn = fig.axes[1].collections[0]
    colours = plots.reason_colours(REASONS)
    for reason, n in cells["reason"].value_counts().items():
        same = np.isclose(drawn.get_facecolors()[:, :3], to_rgba(colours[reason])[:3]).all(1)
        assert same.sum() == n
        expected = np.sort(cells.loc[cells["reason"] == reason, "pct_counts_MT"])
        np.testing.assert_allclose(np.sort(drawn.get_offsets()[same, 1]), expected)


def test_outlier_limits_are_those_of_the_thresholds():
    from lib.methods.thresholds import threshold_reasons

    cells = make_cells()
    config = {"mad": 3, "mad_metrics": ["log1p_n_genes_by_counts", "pct_counts_MT"]}
    limits = figures_sample.outlier_limits(cells, config)
    table = cells.assign(log1p_n_genes_by_counts=np.log1p(cells["n_genes_by_counts"]))
    removed = threshold_reasons(table, config) != ""
    low, high = limits["n_genes_by_counts"]
    beyond = ~cells["n_genes_by_counts"].between(low, high) | (cells["pct_counts_MT"] > limits["pct_counts_MT"][0])
    # Limits are rounded to 0.1, so a cell at a limit may be on either side
    assert removed.sum() > 0
    assert (removed != beyond).sum() <= 1


def test_doublet_histograms_hold_every_score():
    rng = np.random.default_rng(0)
    observed, simulated = {"P1": rng.beta(1, 9, 300)}, {"P1": rng.beta(3, 5, 600)}
    fig = figures_sample.doublet_histograms(observed, simulated, {"P1": 0.25})
    left, right = fig.axes
    assert sum(bar.get_height() for bar in left.patches) == 300
    assert sum(bar.get_height() for bar in right.patches) == 600
    assert lines_at(left, "x") == lines_at(right, "x") == [0.25]
    assert f"{(observed['P1'] > 0.25).sum()} of 300" in left.get_title(loc="left")


def test_doublet_histograms_without_threshold():
    scores = {"P1": np.full(50, 0.1)}
    fig = figures_sample.doublet_histograms(scores, scores, {"P1": np.nan})
    assert lines_at(fig.axes[0], "x") == []


@pytest.fixture
def ledger():
    parts = [make_ledger(make_cells(seed=s), sample) for s, sample in enumerate(["S1", "S2", "S10"])]
    return pd.concat(parts)


def test_attrition_adds_up_to_the_input(ledger):
    lost = figures_qc.attrition(ledger)
    assert list(lost.index) == ["S1", "S2", "S10"]
    assert list(lost.columns) == ["", *REASONS]
    assert (lost.sum(1) == 600).all()
    assert lost.loc["S2", ""] == make_cells(seed=1)["kept"].sum()


def test_attrition_bars_are_the_table(ledger):
    lost = figures_qc.attrition(ledger)
    fig = figures_qc.attrition_bars(lost)
    widths = np.array([bar.get_width() for bar in fig.axes[0].patches]).reshape(len(lost.columns), len(lost))
    np.testing.assert_array_equal(widths.T, lost.to_numpy())
    last = fig.axes[1].patches[-len(lost) :]
    np.testing.assert_allclose([bar.get_x() + bar.get_width() for bar in last], 100)


def test_summary_by_batch():
    cells = make_cells()
    table = figures_qc.summary(cells, "batch", ["total_counts", "pct_counts_MT"]).set_index("batch")
    of_batch = cells[cells["batch"] == "P2"]
    assert table.loc["P2", "cells"] == len(of_batch)
    assert table.loc["P2", "kept"] == of_batch["kept"].sum()
    assert table.loc["P2", "median_pct_counts_MT"] == round(of_batch.loc[of_batch["kept"], "pct_counts_MT"].median(), 2)


def test_violin_has_its_mode_and_median_where_the_values_have():
    _, axes = plots.panels(1, 1, (2, 2))
    values = np.random.default_rng(0).normal(50, 5, 20_000)
    figures_qc.violin(axes[0, 0], values, 0, "#000000", log=False)
    outline = axes[0, 0].collections[0].get_paths()[0].vertices
    # The mode of 20,000 draws, smoothed, lies within a fifth of the standard deviation
    assert outline[outline[:, 1].argmax(), 0] == pytest.approx(50, abs=1)
    assert axes[0, 0].lines[1].get_xdata()[0] == pytest.approx(np.median(values))


@pytest.mark.parametrize("flavor", list(figures_hvg.AXES))
def test_hvg_colours_the_selected_genes(flavor):
    rng = np.random.default_rng(0)
    columns = {column.name for column in figures_hvg.AXES[flavor]}
    hvg = pd.DataFrame({name: rng.gamma(1, 1, 500) + 0.01 for name in sorted(columns)})
    hvg["highly_variable"] = rng.random(500) < 0.2
    fig = figures_hvg.hvg_scatter(hvg, pd.Series([f"G{i}" for i in range(500)]), flavor)
    for ax in fig.axes:
        other, selected = ax.collections
        assert len(selected.get_offsets()) == hvg["highly_variable"].sum()
        assert len(other.get_offsets()) == (~hvg["highly_variable"]).sum()
    y = figures_hvg.AXES[flavor][1].name
    best = f"G{hvg.loc[hvg['highly_variable'], y].idxmax()}"
    assert best in [text.get_text() for text in fig.axes[0].texts]


def test_variance_ratio_marks_the_components_used():
    ratio = 0.5 ** np.arange(1, 11)
    fig = figures_pca.variance_ratio(ratio, 4)
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), 100 * ratio)
    assert lines_at(fig.axes[0], "x") == [4]
    assert "93.8 %" in fig.axes[0].texts[0].get_text()


@pytest.mark.parametrize("n_comps", [2, 5])
def test_components_before_and_after(n_comps):
    X = np.random.default_rng(0).normal(size=(50, n_comps))
    batches = pd.Series(["a", "b"] * 25)
    fig = figures_pca.components({"PCA": X, "Harmony": X / 2}, batches, 0)
    assert len(fig.axes) == 2 * (1 if n_comps == 2 else 2)
    fig = figures_pca.components({"PCA": X}, batches, 0)
    drawn = fig.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(np.sort(drawn[:, 0]), np.sort(X[:, 0]))


def embedding_of(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2))


def test_forty_clusters_are_named_and_counted():
    codes = np.random.default_rng(0).integers(0, 40, 3000)
    values = pd.Series(pd.Categorical(codes.astype(str)), name="leiden_2")
    fig = figures_embedding.by_category(embedding_of(3000), values, ["UMAP1", "UMAP2"], 0, named=True)
    assert [text.get_text() for text in fig.axes[0].texts] == [str(i) for i in range(40)]
    legend = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert legend == [f"{i} ({n})" for i, n in enumerate(np.bincount(codes))]


def test_points_keep_their_colours_in_the_shuffled_order():
    X, values = embedding_of(500), pd.Series(["b", "a", "c", None, "a"] * 100, name="type")
    drawn = figures_embedding.by_category(X, values, ["x", "y"], 0, named=False).axes[0].collections[0]
    colours = plots.category_colours(["a", "b", "c"])
    place = {tuple(x): value for x, value in zip(X, values, strict=True)}
    for at, colour in zip(drawn.get_offsets(), drawn.get_facecolors(), strict=True):
        assert to_rgba(colours.get(place[tuple(at)], plots.BACKGROUND))[:3] == pytest.approx(tuple(colour[:3]))


def test_two_hundred_samples_become_small_multiples():
    samples = [f"S{i}" for i in np.random.default_rng(0).integers(1, 201, 4000)]
    values = pd.Series(samples, name="sample")
    fig = figures_embedding.by_category(embedding_of(4000), values, ["UMAP1", "UMAP2"], 0, named=False)
    ax = fig.axes[0]
    titles = {text.get_text(): text.get_position() for text in ax.texts}
    assert len(titles) == 200
    x, y = titles[f"S10 ({samples.count('S10')})"]
    drawn = ax.collections[0].get_offsets()
    inside = (abs(drawn[:, 0] - x) < 0.5) & (drawn[:, 1] < y) & (drawn[:, 1] > y - 1)
    assert len(drawn) == 4000
    assert inside.sum() == samples.count("S10")


def dense_and_sparse(n=40_000):
    """A dense cloud within a sparse one, and categories that are spread evenly over both."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 2)) * np.where(np.arange(n) % 20, 0.3, 1.5)[:, None], rng.integers(0, 4, n)


def drawn_image(tmp_path, X, colours, **options):
    fig, axes = plots.panels(1, 1, (3, 3))
    plots.without_ticks(axes[0, 0])
    drawn = plots.points(axes[0, 0], *X.T, colours, 0, **options)
    plots.save(fig, tmp_path / "points.png")
    return imread(tmp_path / "points.png")[..., :3], drawn


@pytest.mark.parametrize("n", [plots.MANY, 200_000])
@pytest.mark.parametrize("shaded", [False, True])
def test_many_points_look_as_matplotlib_draws_them(tmp_path, monkeypatch, n, shaded):
    """Dots lie at whole pixels: averages over 10 x 10 pixels differ by less than 0.06 of black to white, 0.002 overall.

    In the dense middle, none of the four colours is on top more often than in matplotlib's drawing.
    """
    X, codes = dense_and_sparse(n)
    colours = np.hypot(*X.T) if shaded else plots.rgba(["#FF0000", "#00FF00", "#0000FF", "#000000"])[codes]
    options = {"cmap": "viridis"} if shaded else {}
    ours, drawn = drawn_image(tmp_path, X, colours, **options)
    assert isinstance(drawn, plots.Dots)
    monkeypatch.setattr(plots, "Dots", type("Plain", (plots.PathCollection,), {}))
    theirs, _ = drawn_image(tmp_path, X, colours, **options)
    assert ours.shape == theirs.shape
    rows, columns = (side // 10 for side in ours.shape[:2])
    means = [
        pixels[: rows * 10, : columns * 10].reshape(rows, 10, columns, 10, 3).mean((1, 3)) for pixels in (ours, theirs)
    ]
    assert abs(means[0] - means[1]).max() < 0.06
    assert abs(means[0] - means[1]).mean() < 0.002
    middle = [pixels[rows * 5 - 30 :, columns * 5 - 30 :][:60, :60].mean((0, 1)) for pixels in (ours, theirs)]
    np.testing.assert_allclose(*middle, atol=0.02)


def test_figures_drawn_side_by_side(tmp_path):
    """The files are the same as drawn one after the other; an error says where it was raised."""

    def draw(i):
        fig, axes = plots.panels(1, 1, (1, 1))
        axes[0, 0].plot([0, i])
        plots.save(fig, tmp_path / f"{i}.png")

    tasks = [partial(draw, i) for i in range(5)]
    plots.draw_all(tasks, 1)
    first = [(tmp_path / f"{i}.png").read_bytes() for i in range(5)]
    plots.draw_all(tasks, 3)
    assert first == [(tmp_path / f"{i}.png").read_bytes() for i in range(5)]

    def broken():
        raise KeyError("no such column")

    for processes in (1, 2):
        with pytest.raises(KeyError, match="no such column") as raised:
            plots.draw_all([tasks[0], broken], processes)
        assert "in broken" in "".join(format_exception(raised.value))


def test_more_cells_than_are_drawn(monkeypatch):
    monkeypatch.setattr(plots, "MAX_DRAWN", 100)
    order = plots.drawing_order(1000, 0)
    assert len(set(order)) == 100
    assert order.max() > 500


def test_unscored_cells_are_grey():
    values = pd.Series([np.nan] * 10 + [0.1, 0.2, 0.9], name="doublet_score")
    fig = figures_embedding.by_value(embedding_of(13), values, ["x", "y"], 0)
    grey, shaded = fig.axes[0].collections
    assert len(grey.get_offsets()) == 10
    assert sorted(shaded.get_array()) == [0.1, 0.2, 0.9]
    all_missing = pd.Series([np.nan] * 13, name="doublet_score")
    assert len(figures_embedding.by_value(embedding_of(13), all_missing, ["x", "y"], 0).axes[0].collections) == 1


@pytest.mark.parametrize(("low", "high"), [(1100, 1900), (1200, 8300), (150, 9000), (1, 60_000)])
def test_colours_of_counts_are_labelled(low, high):
    """On a log scale a bar of less than a decade has no power of ten, but must show at least two numbers."""
    counts = pd.Series(np.geomspace(low, high, 300), name="total_counts")
    fig = figures_embedding.by_value(np.random.default_rng(0).normal(size=(300, 2)), counts, ["x", "y"], 0)
    bar = fig.axes[0].child_axes[0].yaxis
    ticks = [at for at in bar.get_majorticklocs() if low <= at <= high]
    assert len(ticks) >= 2
    assert all(bar.get_major_formatter()(at) for at in ticks)


def test_a_name_lies_on_a_cell_of_its_group():
    ring = np.column_stack([np.cos(np.linspace(0, 6, 99)), np.sin(np.linspace(0, 6, 99))])
    assert np.hypot(*figures_embedding.central_cell(ring)) == pytest.approx(1)


def test_expression_by_group_is_scanpys():
    """Means and fractions as by scanpy's normalize_total, log1p and pandas; float64 sums, scanpy's values float32."""
    import anndata as ad
    import scanpy as sc

    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(0.5, (300, 12)))
    labels = pd.Series(rng.choice(["a", "b", "c"], 300), name="group").where(rng.random(300) > 0.05)
    totals = np.asarray(X.sum(1)).ravel()
    groups = Groups.of(labels)
    means, fractions = figures_markers.expression_by_group(InMemory(X, max_cells=70), groups, totals, 1e4)
    adata = ad.AnnData(X.astype(np.float32))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    frame = pd.DataFrame(adata.X.toarray())
    np.testing.assert_allclose(means, frame.groupby(labels.to_numpy()).mean(), rtol=1e-5)
    np.testing.assert_allclose(fractions, (frame > 0).groupby(labels.to_numpy()).mean(), rtol=1e-12)


def test_expression_by_group_in_parts(tmp_path, monkeypatch):
    """Samples in parts, by several threads: bit-identical for any number of threads, and exact numbers of cells."""
    rng = np.random.default_rng(0)
    names = [f"G{i}" for i in range(9)]
    genes = pd.DataFrame({"gene_symbols": names, "gene_ids": names, "kept": True}, names)
    write_table(genes, tmp_path / "genes.parquet")
    X, kept, files = rng.poisson(0.7, (150, 9)), rng.random(150) > 0.2, []
    for sample, rows in enumerate((slice(0, 80), slice(80, 150))):
        files.append((tmp_path / f"{sample}.h5ad", tmp_path / f"{sample}.parquet"))
        writer = CountsWriter(files[-1][0], 9)
        writer.append(sp.csr_matrix(X[rows]))
        obs = pd.DataFrame(index=[f"C{i}" for i in range(150)][rows])
        writer.close(obs, genes.drop(columns="kept"))
        write_table(obs.assign(kept=kept[rows]), files[-1][1])
    cohort = Cohort(*zip(*files, strict=True), tmp_path / "genes.parquet", "gene_symbols")
    X = X[kept]
    totals, labels = X.sum(1) + 1, pd.Series(rng.choice(["a", "b"], len(X)), name="group")
    groups = Groups.of(labels)
    monkeypatch.setattr(figures_markers, "PART", 20)
    monkeypatch.setattr(figures_markers, "CELLS", 7)
    means, fractions = figures_markers.expression_by_group(cohort, groups, totals, 1e4, threads=1)
    np.testing.assert_allclose(
        means, pd.DataFrame(np.log1p(X * 1e4 / totals[:, None])).groupby(labels).mean(), rtol=1e-12
    )
    np.testing.assert_array_equal(fractions, pd.DataFrame(X > 0).groupby(labels).mean())
    again = figures_markers.expression_by_group(cohort, groups, totals, 1e4, threads=3)
    np.testing.assert_array_equal(again, [means, fractions])


def top_markers(n_groups=40, n_genes=20):
    rng = np.random.default_rng(0)
    rows = {
        "group": np.repeat(np.arange(n_groups).astype(str), n_genes),
        "rank": np.tile(np.arange(n_genes) + 1, n_groups),
    }
    names = [f"G{i}" for i in rng.integers(0, 300, n_groups * n_genes)]
    scores = -np.sort(-rng.gamma(2, 3, (n_groups, n_genes)), axis=1)
    return pd.DataFrame(rows | {"names": names, "gene_symbols": names, "scores": scores.ravel()})


def test_scores_are_drawn_by_rank():
    top = top_markers()
    fig = figures_markers.score_panels(top)
    shown = [ax for ax in fig.axes if ax.get_title(loc="left")]
    assert len(shown) == 40
    third = top[top["group"] == "2"]
    np.testing.assert_allclose(shown[2].lines[0].get_xdata(), third["scores"])
    assert [label.get_text() for label in shown[2].get_yticklabels()] == third["gene_symbols"].tolist()


def test_dots_are_the_fractions_and_the_means():
    genes = figures_markers.chosen_genes(top_markers())
    assert genes["names"].is_unique
    assert len(genes) <= figures_markers.MAX_DOTS
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(40)]
    means, fractions = (pd.DataFrame(rng.random((40, len(genes))), names, genes["names"]) for _ in range(2))
    fig = figures_markers.dot_plot(means, fractions, genes["names"].tolist(), genes["group"].tolist())
    dots = fig.axes[0].collections[0]
    np.testing.assert_allclose(dots.get_sizes() / figures_markers.DOT, fractions.to_numpy().ravel())
    np.testing.assert_allclose(dots.get_array(), means.to_numpy().ravel())
    np.testing.assert_array_equal(dots.get_offsets()[len(genes)], [0, 1])


def test_limits_that_take_more_of_one_batch_are_told_once(notices):
    """Few genes remove 5 % of P1 to P4, 25 % of P5, and 40 % of P6, for which the stage `cells` gave a notice."""
    cells = pd.concat(
        pd.DataFrame(
            {"batch": f"P{i}", "sample": "S", "n_genes_by_counts": 150, "reason": [""] * (100 - n) + REASONS[:1] * n}
        )
        for i, n in enumerate([5, 5, 5, 5, 25, 40], 1)
    )
    figures_qc.tell_uneven(make_ledger(cells, "S"), cells, "batch")
    assert notices == [
        "cells: min_genes takes 25 % of P5 (median 150); medians are of n_genes_by_counts: so few are usual in "
        "matrices of all droplets and in panels of few genes: give the filtered matrix, or lower cells: min_genes "
        "(of the median batch it takes 5 %)"
    ]


def test_a_family_that_some_batches_lack_is_drawn_for_the_others():
    cells = make_cells()
    cells.loc[cells["batch"] == "P2", "pct_counts_MT"] = np.nan
    fig = figures_qc.violins(cells, "batch", ["total_counts", "pct_counts_MT"], {})
    assert [len(ax.collections) for ax in fig.axes] == [3, 2]
    fig = figures_qc.cohort_scatter(cells, "batch", ["n_genes_by_counts", "pct_counts_MT"], {}, 0)
    drawn = [len(ax.collections[0].get_offsets()) for ax in fig.axes]
    assert drawn == [600, (cells["batch"] != "P2").sum()]
    assert np.isnan(
        figures_qc.summary(cells, "batch", ["pct_counts_MT"]).set_index("batch")["median_pct_counts_MT"]["P2"]
    )


def test_a_family_without_genes_has_a_figure_that_says_so():
    embedding = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 2)), columns=["UMAP1", "UMAP2"])
    for table in (pd.DataFrame(index=range(5)), pd.DataFrame({"pct_counts_MT": [np.nan] * 5})):
        fig = figures_embedding.figure_of(embedding, table, "pct_counts_MT", 0, False)
        assert [text.get_text() for text in fig.axes[0].texts] == [
            "pct_counts_MT: the gene family has no gene in this cohort."
        ]


def test_tables_escape_and_format(tmp_path):
    table = pd.DataFrame({"name": ["<b>", "x"], "cells": [12345, 1], "share": [0.123456, np.nan]})
    tables.write_html(table, tmp_path / "t.html", "A & B")
    page = (tmp_path / "t.html").read_text()
    assert "&lt;b&gt;" in page
    assert "12,345" in page
    assert "0.1235" in page
    assert "A &amp; B" in page


@pytest.fixture
def cohort(tmp_path):
    """Artifacts of two samples, in the form that the stages write."""
    files = {"cells": [], "ledgers": []}
    kept = []
    for seed, sample in enumerate(["S1", "S2"]):
        cells = make_cells(seed=seed).assign(sample=sample, predicted_doublet=False).add_suffix(f"-{sample}", axis=0)
        folder = tmp_path / sample
        folder.mkdir()
        write_table(cells, folder / "cells.parquet")
        make_ledger(cells, sample).to_csv(folder / "ledger.tsv", sep="\t", index=False)
        with h5py.File(folder / "doublets_simulated.h5", "w") as file:
            for batch in ("P1", "P2"):
                scores = file.create_dataset(f"scores/{batch}", data=np.random.default_rng(seed).beta(3, 5, 100))
                scores.attrs["threshold"] = 0.3 if batch == "P1" else np.nan
        files["cells"].append(folder / "cells.parquet")
        files["ledgers"].append(folder / "ledger.tsv")
        kept.append(cells[cells["kept"]].drop(columns=["kept", "reason"]))
    obs = pd.concat(kept)
    write_table(obs, tmp_path / "obs.parquet")
    umap = pd.DataFrame(embedding_of(len(obs)), index=obs.index, columns=["UMAP1", "UMAP2"])
    write_table(umap, tmp_path / "umap.parquet")
    clusters = pd.DataFrame({"leiden_0.6": pd.Categorical((np.arange(len(obs)) % 7).astype(str))}, index=obs.index)
    write_table(clusters, tmp_path / "leiden.parquet")
    density = np.random.default_rng(0).random(len(obs))
    write_table(pd.DataFrame({"umap_density_batch": density}, index=obs.index), tmp_path / "density.parquet")
    X = np.random.default_rng(0).normal(size=(len(obs), 10)).astype(np.float32)
    write_arrays(tmp_path / "pca.h5", {"X_pca": X, "variance_ratio": 0.5 ** np.arange(1, 11)})
    write_arrays(tmp_path / "harmony.h5", {"X_pca_harmony": X})
    write_arrays(tmp_path / "skipped.h5", {}, skipped="one batch")
    return tmp_path, files


def stages(folder, files, out):
    """Each stage's main on these artifacts."""
    sample = folder / "S1"
    inputs = {name: sample / file for name, file in (("cells", "cells.parquet"), ("ledger", "ledger.tsv"))}
    inputs["simulated"] = sample / "doublets_simulated.h5"
    params = {"batch_key": "batch", "families": ["MT"], "cells": LIMITS}
    yield figures_sample, fake(inputs, params, {name: out / f"{name}.png" for name in ("qc", "doublets")})
    outputs = {name: out / f"{name}.png" for name in ("violins", "scatter", "attrition")}
    outputs |= {name: out / f"{name}.html" for name in ("attrition_html", "summary_html")}
    outputs |= {name: out / f"{name}.tsv" for name in ("attrition_table", "summary")}
    yield figures_qc, fake(files | {"obs": folder / "obs.parquet"}, params, outputs)
    yield figures_pca, pca_stage(folder, out, [folder / "harmony.h5"])
    inputs = {"embedding": folder / "umap.parquet", "obs": folder / "obs.parquet"}
    inputs |= {"clusterings": [folder / "leiden.parquet"], "density": [folder / "density.parquet"]}
    colours = ["leiden_0.6", "batch", "total_counts", "pct_counts_MT", "density_batch"]
    outputs = {name: out / f"{name}.png" for name in colours}
    yield figures_embedding, fake(inputs, {"colours": colours, "groupings": ["leiden_0.6", "batch"]}, outputs)


def pca_stage(folder, out, harmony):
    outputs = {name: out / f"{name}.png" for name in ("variance", "components")}
    inputs = {"pca": folder / "pca.h5", "harmony": harmony, "obs": folder / "obs.parquet"}
    return fake(inputs, {"batch_key": "batch", "n_pcs": 8}, outputs)


def test_pca_without_harmony_has_one_row(cohort):
    folder, _ = cohort
    sizes = []
    for i, harmony in enumerate(([], [folder / "skipped.h5"], [folder / "harmony.h5"])):
        figures_pca.main(pca_stage(folder, folder / str(i), harmony))
        sizes.append(imread(folder / str(i) / "components.png").shape[0])
    assert sizes[0] == sizes[1] < 0.6 * sizes[2]


def test_numbers_that_group_are_drawn_as_categories(cohort, monkeypatch):
    """Missing values make floats; 7.0 is "7", as in the atlas."""
    folder, _ = cohort
    obs = read_table(folder / "obs.parquet")
    numbers = pd.Series(np.choose(np.arange(len(obs)) % 3, [7.0, 10.0, np.nan]), obs.index)
    write_table(obs.assign(PatientNumber=numbers), folder / "obs.parquet")
    drawn = []
    monkeypatch.setattr(figures_embedding, "by_category", lambda X, values, *_: drawn.append(plots.categories(values)))
    monkeypatch.setattr(plots, "save", lambda fig, path: None)
    inputs = {"embedding": folder / "umap.parquet", "obs": folder / "obs.parquet", "clusterings": [], "density": []}
    params = {"colours": ["PatientNumber"], "groupings": ["PatientNumber"]}
    figures_embedding.main(fake(inputs, params, {"PatientNumber": folder / "x.png"}))
    assert drawn[0][1] == plots.categories(numbers)[1] == ["7", "10"]
    np.testing.assert_array_equal(drawn[0][0], plots.categories(numbers)[0])
    assert drawn[0][0][:3].tolist() == [0, 1, -1]


def test_doublets_of_batches_with_slashes(cohort, monkeypatch):
    """a/b and a_b are different batches."""
    folder, _ = cohort
    cells = read_table(folder / "S1" / "cells.parquet")
    batches = np.where(np.arange(len(cells)) % 3, "a/b", "a_b")
    write_table(cells.assign(batch=batches), folder / "S1" / "cells.parquet")
    found = {name: Doublets(np.empty(0), np.zeros(n), 0.5) for n, name in enumerate(("a/b", "a_b"), 3)}
    write_simulated(found, folder / "S1" / "doublets_simulated.h5")
    drawn = []
    monkeypatch.setattr(figures_sample, "doublet_histograms", lambda *values: drawn.append(values))
    monkeypatch.setattr(plots, "save", lambda fig, path, dpi: None)
    figures_sample.main(next(stages(folder, None, folder))[1])
    observed, simulated, _ = drawn[0]
    assert {name: len(scores) for name, scores in simulated.items()} == {"a/b": 3, "a_b": 4}
    for name, scores in observed.items():
        assert len(scores) == (cells["doublet_score"].notna() & (batches == name)).sum() > 0


def test_stages_draw_cohorts_of_which_a_sample_or_all_lack_a_family(cohort):
    folder, files = cohort
    for lacking in (files["cells"][:1], files["cells"]):
        for path in lacking:
            write_table(pd.read_parquet(path).drop(columns="pct_counts_MT", errors="ignore"), path)
        for module, snakemake in stages(folder, files, folder / str(len(lacking))):
            module.main(snakemake)
        table = pd.read_csv(folder / str(len(lacking)) / "summary.tsv", sep="\t")
        assert ("median_pct_counts_MT" in table) == (len(lacking) == 1)


def test_stages_draw_a_sample_without_a_cell_left(cohort):
    folder, files = cohort
    empty = pd.read_parquet(files["cells"][0]).assign(kept=False, reason="min_genes")
    write_table(empty, files["cells"][0])
    make_ledger(empty, "S1").to_csv(files["ledgers"][0], sep="\t", index=False)
    for module, snakemake in stages(folder, files, folder / "out"):
        if module in (figures_sample, figures_qc):
            module.main(snakemake)
    table = pd.read_csv(folder / "out" / "summary.tsv", sep="\t")
    assert table["cells"].sum() == 1200
    assert table["kept"].sum() == pd.read_parquet(files["cells"][1])["kept"].sum()


def test_stages_write_the_same_bytes_twice(cohort):
    folder, files = cohort
    for threads, run in ((1, "first"), (2, "second")):
        for module, snakemake in stages(folder, files, folder / run):
            snakemake.threads = threads
            module.main(snakemake)
    first = sorted((folder / "first").iterdir())
    assert len(first) == 16
    for path in first:
        assert path.read_bytes() == (folder / "second" / path.name).read_bytes(), path.name
        assert path.stat().st_size < 1_000_000


def test_cells_without_counts_in_kept_genes_are_in_the_attrition(cohort):
    folder, files = cohort
    obs = pd.read_parquet(folder / "obs.parquet")
    gone = obs.index[obs["sample"] == "S2"][:3]
    write_table(obs.drop(index=gone), folder / "obs.parquet")
    for module, snakemake in stages(folder, files, folder / "out"):
        if module is figures_qc:
            module.main(snakemake)
    table = pd.read_csv(folder / "out" / "attrition_table.tsv", sep="\t", keep_default_na=False)
    assert table.loc[table["reason"] == "no_counts_in_kept_genes", "removed"].sum() == 3
    assert table.groupby(["sample", "batch"])["left"].last().sum() == len(obs) - 3
    assert pd.read_csv(folder / "out" / "summary.tsv", sep="\t")["kept"].sum() == len(obs) - 3


def test_attrition_table_holds_every_ledger(cohort):
    folder, files = cohort
    for module, snakemake in stages(folder, files, folder / "out"):
        if module is figures_qc:
            module.main(snakemake)
    table = pd.read_csv(folder / "out" / "attrition_table.tsv", sep="\t", keep_default_na=False)
    joined = pd.concat([pd.read_csv(path, sep="\t", keep_default_na=False) for path in files["ledgers"]])
    pd.testing.assert_frame_equal(table, joined.reset_index(drop=True))


def test_no_markers_still_makes_figures(tmp_path):
    columns = ["group", "rank", "names", "gene_symbols", "scores"]
    pd.DataFrame(columns=columns).to_csv(tmp_path / "top.tsv", sep="\t", index=False)
    outputs = {"scores": tmp_path / "s.png", "dotplot": tmp_path / "d.png", "table": tmp_path / "t.html"}
    snakemake = fake({"top": tmp_path / "top.tsv"}, {"grouping": "leiden_0.1"}, outputs, method="t-test")
    figures_markers.main(snakemake)
    assert all(path.read_bytes() for path in outputs.values())
