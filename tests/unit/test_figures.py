"""Figures: they show the tables' values, colours are stable, hard cases run, files are byte-identical when repeated."""

from functools import partial
from traceback import format_exception
from types import SimpleNamespace

import figures_clusters
import figures_embedding
import figures_hvg
import figures_markers
import figures_pca
import figures_qc
import h5py
import numpy as np
import pandas as pd
import panel
import pytest
import scipy.sparse as sp
from doublets import Doublets, write_simulated
from drawn import bars, numbers, texts
from lib.figures import distributions, embeddings, plots, words
from lib.methods.markers import Groups, chosen_genes
from lib.run import forked
from lib.store.categories import PALETTES
from lib.store.counts import Counts, CountsWriter
from lib.store.files import read_table, write_arrays, write_table
from lib.store.stream import ROWS_NNZ, InMemory
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


def test_no_colour_stands_for_a_type_a_cluster_and_a_batch():
    every = [colour for family in PALETTES.values() for colour in family]
    assert len(set(every)) == len(every)
    assert {len(family) for family in PALETTES.values()} == {48}


def test_first_colours_of_the_families_differ_visibly():
    """Of the first eight colours of each family no two are nearer than 10 in CIELAB, where 2.3 is just noticeable."""
    from skimage.color import rgb2lab

    lab = rgb2lab(plots.rgba([colour for family in PALETTES.values() for colour in family[:8]])[:, :3])
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(24, 1)]
    assert apart.min() > 10


def test_colours_of_a_category_agree_between_figures():
    """A batch without kept cells does not change the colours of the others in figures of kept cells."""
    cells = make_cells()
    cells.loc[cells["batch"] == "P1", "kept"] = False
    order = figures_qc.batch_order(cells, "batch")
    assert order == ["P2", "P10", "P1"]
    _, kept = plots.categories(cells.loc[cells["kept"], "batch"])
    assert plots.category_colours(kept).items() <= plots.category_colours(order).items()


def limit_tiles(cells, family="MT", limits=LIMITS):
    drawn = dict(list(cells.groupby("batch")))
    return figures_qc.limit_tiles(drawn, dict.fromkeys(drawn, words.limits(limits)), REASONS, family, 0)


def dashed(fig):
    return [line for line in fig.axes[0].lines if line.get_linestyle() == "--"]


def test_limits_are_drawn_in_the_panel_of_each_batch():
    fig = limit_tiles(make_cells())
    assert len(dashed(fig)) == 3 * 3  # genes twice, and MT
    said = [text.get_text() for text in fig.axes[0].texts]
    assert [said.count(value) for value in ("200", "5,000", "20")] == [3, 3, 3 + 1]  # 20 is a tick too
    assert not dashed(limit_tiles(make_cells(), limits={}))


def test_a_limit_far_from_the_data_does_not_stretch_the_axes():
    fig = limit_tiles(make_cells(), limits={"max_genes": 10**9, "max_pct_counts": {"MT": 20}})
    assert len(dashed(fig)) == 3
    _, axes = plots.panels(1, 1, (2, 2))
    axes[0, 0].plot([0, 1], [0, 1])
    plots.draw_limits(axes[0, 0], "y", [1.5, 40])
    assert lines_at(axes[0, 0], "y") == [1.5]
    assert 1.5 < axes[0, 0].get_ylim()[1] < 2


def test_panels_of_limits_show_every_cell_in_its_reasons_colour():
    cells = make_cells()
    drawn = limit_tiles(cells).axes[0].collections[0]
    colours = plots.reason_colours(REASONS)
    for reason, n in cells["reason"].value_counts().items():
        same = np.isclose(drawn.get_facecolors()[:, :3], to_rgba(colours[reason])[:3]).all(1)
        assert same.sum() == n
        # a cell with more of the family lies higher; three panels stand side by side
        height = np.sort(drawn.get_offsets()[same, 1])
        expected = np.sort(cells.loc[cells["reason"] == reason, "pct_counts_MT"])
        np.testing.assert_allclose(np.diff(height), np.diff(expected) * scale_of(drawn, cells), atol=1e-6)


def scale_of(drawn, cells):
    """Inches of a percent."""
    return np.ptp(drawn.get_offsets()[:, 1]) / np.ptp(cells["pct_counts_MT"])


def test_outlier_limits_are_those_of_the_thresholds():
    from lib.methods.thresholds import threshold_reasons

    cells = make_cells()
    config = {"mad": 3, "mad_metrics": ["log1p_n_genes_by_counts", "pct_counts_MT"]}
    limits = figures_qc.outlier_limits(cells, config)
    table = cells.assign(log1p_n_genes_by_counts=np.log1p(cells["n_genes_by_counts"]))
    removed = threshold_reasons(table, config) != ""
    low, high = limits["n_genes_by_counts"]
    beyond = ~cells["n_genes_by_counts"].between(low, high) | (cells["pct_counts_MT"] > limits["pct_counts_MT"][0])
    # Limits are rounded to 0.1, so a cell at a limit may be on either side
    assert removed.sum() > 0
    assert (removed != beyond).sum() <= 1


def test_doublet_panels_hold_every_score():
    rng = np.random.default_rng(0)
    observed, simulated = {"P1": rng.beta(1, 9, 300)}, {"P1": rng.beta(3, 5, 600)}
    fig = figures_qc.doublet_tiles(observed, simulated, {"P1": 0.25})
    ax = fig.axes[0]
    (filled,), outline = ax.patches, next(line for line in ax.lines if line.get_linestyle() == "-")
    edges = np.linspace(0, max(observed["P1"].max(), simulated["P1"].max()), 51)
    top = ax.get_ylim()[1]
    for path, scores in ((filled.get_xy(), observed["P1"]), (outline.get_xydata(), simulated["P1"])):
        counts = np.histogram(scores, edges)[0]
        heights = path[1:101:2, 1]  # the left end of each step
        order = counts.argsort(kind="stable")
        assert (np.diff(heights[order]) >= -1e-9).all()
        assert heights.max() <= top
    assert len(dashed(fig)) == 1
    assert f"P1: {(observed['P1'] > 0.25).sum()} of 300 called" in [text.get_text() for text in ax.texts]


def test_doublet_panels_without_threshold():
    scores = {"P1": np.full(50, 0.1)}
    assert not dashed(figures_qc.doublet_tiles(scores, scores, {"P1": np.nan}))


@pytest.fixture
def ledger():
    parts = [make_ledger(make_cells(seed=s), sample) for s, sample in enumerate(["S1", "S2", "S10"])]
    return pd.concat(parts)


def test_attrition_adds_up_to_the_input(ledger):
    """By batch, also where a batch is in several samples."""
    lost = figures_qc.attrition(ledger)
    assert list(lost.index) == ["P1", "P2", "P10"]
    assert list(lost.columns) == ["", *REASONS]
    cells = pd.concat(make_cells(seed=s) for s in range(3))
    assert lost.sum(1).to_dict() == cells["batch"].value_counts().to_dict()
    assert lost.loc["P2", ""] == (cells["kept"] & (cells["batch"] == "P2")).sum()


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
    values = np.random.default_rng(0).normal(50, 5, 20_000)
    outline, quartiles = distributions.violin(values, 0, log=False)
    # The mode of 20,000 draws, smoothed, lies within a fifth of the standard deviation
    assert outline[outline[:, 1].argmax(), 0] == pytest.approx(50, abs=1)
    assert quartiles[1] == pytest.approx(np.median(values))


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
def test_components_and_integration(n_comps):
    X = np.random.default_rng(0).normal(size=(50, n_comps))
    batches = pd.Series(["a", "b"] * 25)
    fig = figures_pca.components(X, batches, 0)
    assert len(fig.axes) == (1 if n_comps == 2 else 2)
    drawn = fig.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(np.sort(drawn[:, 0]), np.sort(X[:, 0]))
    fig = figures_pca.integration(X, X / 2, {"batch": (batches, "batches"), "type": (batches, "types")}, 0)
    before, after = (ax.collections[0].get_offsets() for ax in fig.axes[:2])
    np.testing.assert_allclose(before / 2, after)
    assert len(fig.axes) == 4


def embedding_of(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2))


def test_forty_clusters_are_named_and_counted():
    codes = np.random.default_rng(0).integers(0, 40, 3000)
    values = pd.Series(pd.Categorical(codes.astype(str)), name="leiden_2")
    fig = embeddings.by_category(embedding_of(3000), values, ["UMAP1", "UMAP2"], 0, True, "clusters")
    said = [text.get_text() for text in fig.axes[0].texts]
    assert said[:40] == [f"{i} ({n})" for i, n in enumerate(np.bincount(codes))]  # the legend
    assert set(said[40:]) == {str(i) for i in range(40)}


def test_points_keep_their_colours_in_the_shuffled_order():
    X, values = embedding_of(500), pd.Series(["b", "a", "c", None, "a"] * 100, name="type")
    drawn = embeddings.by_category(X, values, ["x", "y"], 0, False).axes[0].collections[0]
    colours = plots.category_colours(["a", "b", "c"])
    place = {tuple(x): value for x, value in zip(X, values, strict=True)}
    for at, colour in zip(drawn.get_offsets(), drawn.get_facecolors(), strict=True):
        assert to_rgba(colours.get(place[tuple(at)], plots.BACKGROUND))[:3] == pytest.approx(tuple(colour[:3]))


def test_two_hundred_samples_become_small_multiples():
    samples = [f"S{i}" for i in np.random.default_rng(0).integers(1, 201, 4000)]
    values = pd.Series(samples, name="sample")
    fig = embeddings.by_category(embedding_of(4000), values, ["UMAP1", "UMAP2"], 0, False, "batches")
    ax = fig.axes[0]
    titles = {text.get_text(): text.get_position() for text in ax.texts}
    assert len(titles) == 200
    x, y = titles[f"S10 ({samples.count('S10')})"]
    drawn = np.concatenate([tile.get_offsets() for tile in ax.collections])
    inside = (abs(drawn[:, 0] - x) < 0.5) & (drawn[:, 1] < y) & (drawn[:, 1] > y - 1.1)
    assert len(drawn) == 4000
    assert inside.sum() == samples.count("S10")


def test_one_category_is_told_and_not_drawn():
    fig = embeddings.by_category(embedding_of(9), pd.Series(["only"] * 9, name="sample"), ["x", "y"], 0, False)
    assert fig.axes[0].texts[0].get_text() == "sample: all cells are of one category, only."
    assert not fig.axes[0].collections


def dense_and_sparse(n=40_000):
    """A dense cloud within a sparse one, and categories that are spread evenly over both."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 2)) * np.where(np.arange(n) % 20, 0.3, 1.5)[:, None], rng.integers(0, 4, n)


def drawn_image(X, colours, **options):
    fig, axes = plots.panels(1, 1, (3, 3))
    plots.without_ticks(axes[0, 0])
    drawn = plots.points(axes[0, 0], *X.T, colours, 0, **options)
    return plots.pixels(fig, 150, fig.bbox_inches) / 255, drawn


@pytest.mark.parametrize("n", [plots.MANY, 200_000])
@pytest.mark.parametrize("shaded", [False, True])
def test_many_points_look_as_matplotlib_draws_them(monkeypatch, n, shaded):
    """Dots lie at half pixels: averages over 10 x 10 pixels differ by less than 0.08 of black to white, 0.006 overall.

    In the dense middle, where the last of the points shows in both, the mean colours agree to 0.02.
    """
    X, codes = dense_and_sparse(n)
    colours = np.hypot(*X.T) if shaded else plots.rgba(["#FF0000", "#00FF00", "#0000FF", "#000000"])[codes]
    options = {"cmap": "viridis"} if shaded else {}
    ours, drawn = drawn_image(X, colours, **options)
    assert isinstance(drawn, plots.Dots)
    monkeypatch.setattr(plots, "Dots", type("Plain", (plots.PathCollection,), {}))
    theirs, _ = drawn_image(X, colours, **options)
    assert ours.shape == theirs.shape
    rows, columns = (side // 10 for side in ours.shape[:2])
    means = [
        pixels[: rows * 10, : columns * 10].reshape(rows, 10, columns, 10, 3).mean((1, 3)) for pixels in (ours, theirs)
    ]
    assert abs(means[0] - means[1]).max() < 0.08
    assert abs(means[0] - means[1]).mean() < 0.006
    middle = [pixels[rows * 5 - 30 :, columns * 5 - 30 :][:60, :60].mean((0, 1)) for pixels in (ours, theirs)]
    np.testing.assert_allclose(*middle, atol=0.02)


@pytest.mark.parametrize("radius", [0, 0.7, 1, 2.5, 6])
def test_dilation_is_the_maximum_within_a_circle(radius):
    from scipy.ndimage import maximum_filter

    last = np.random.default_rng(0).permutation(1200).reshape(30, 40).astype(np.int32)
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    expected = maximum_filter(last, footprint=x**2 + y**2 <= radius**2, mode="constant", cval=-1)
    np.testing.assert_array_equal(plots.dilated(last, radius), expected)


def test_a_palette_keeps_white_and_few_colours():
    image = np.full((40, 50, 3), 255, np.uint8)
    image[:10] = (0, 114, 178)
    image[10:20, ::2] = (230, 159, 0)
    np.testing.assert_allclose(np.array(plots.with_palette(image).convert("RGB")), image, atol=1)
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3)).astype(np.uint8)
    noise[:9] = 255
    drawn = np.array(plots.with_palette(noise).convert("RGB")).astype(int)
    assert (drawn[:9] == 255).all()
    assert abs(drawn - noise).mean() < 16


def test_figures_drawn_side_by_side(tmp_path):
    """The files are the same as drawn one after the other; an error says where it was raised."""

    def draw(i):
        fig, axes = plots.panels(1, 1, (1, 1))
        axes[0, 0].plot([0, i])
        plots.save(fig, tmp_path / f"{i}.png")

    tasks = [partial(draw, i) for i in range(5)]
    forked.run_all(tasks, 1)
    first = [(tmp_path / f"{i}.png").read_bytes() for i in range(5)]
    forked.run_all(tasks, 3)
    assert first == [(tmp_path / f"{i}.png").read_bytes() for i in range(5)]

    def broken():
        raise KeyError("no such column")

    for processes in (1, 2):
        with pytest.raises(KeyError, match="no such column") as raised:
            forked.run_all([tasks[0], broken], processes)
        assert "in broken" in "".join(format_exception(raised.value))


def panel_of(n, values):
    fig, axes = plots.panels(1, 1, (3, 3))
    return fig, axes[0, 0], embeddings.by_value(axes[0, 0], embedding_of(n), values, 0)


def test_unscored_cells_are_grey():
    _, ax, _ = panel_of(13, pd.Series([np.nan] * 10 + [0.1, 0.2, 0.9], name="doublet_score"))
    grey, shaded = ax.collections
    assert len(grey.get_offsets()) == 10
    assert sorted(shaded.get_array()) == [0.1, 0.2, 0.9]
    _, ax, drawn = panel_of(13, pd.Series([np.nan] * 13, name="doublet_score"))
    assert len(ax.collections) == 1
    assert drawn is None


def test_shares_are_shaded_from_0_to_1():
    _, _, drawn = panel_of(13, pd.Series(np.ones(13), name="stability_leiden_0.6"))
    assert (drawn.norm.vmin, drawn.norm.vmax) == (0, 1)


RANGES = [(1100, 1900), (1200, 8300), (150, 9000), (1, 60_000), (5, 5), (1, 2e7), (0, 0), (-3, 7), (1e-6, 3e-6)]


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("name", ["total_counts", "doublet_score"])
def test_every_colour_bar_has_two_numbers(low, high, name):
    """On a log scale a bar of less than a decade has no power of ten; a range may be of one value."""
    fig, _, _ = panel_of(300, pd.Series(np.linspace(low, high, 300), name=name))
    texts(fig)  # draws it
    (bar,) = bars(fig)
    assert len(numbers(bar)) >= 2


def test_a_name_lies_on_a_cell_of_its_group():
    ring = np.column_stack([np.cos(np.linspace(0, 6, 99)), np.sin(np.linspace(0, 6, 99))])
    assert np.hypot(*embeddings.central_cell(ring)) == pytest.approx(1)


def test_expression_by_group_is_scanpys():
    """Means and fractions as by scanpy's normalize_total, log1p and pandas; float64 sums, scanpy's values float32."""
    import anndata as ad
    import scanpy as sc

    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(0.5, (300, 12)))
    labels = pd.Series(rng.choice(["a", "b", "c"], 300), name="group").where(rng.random(300) > 0.05)
    totals = np.asarray(X.sum(1)).ravel()
    groups = Groups.of(labels)
    means, fractions, values = figures_markers.read_expression(InMemory(X, max_cells=70), groups, totals, 1e4, [7, 2])
    adata = ad.AnnData(X.astype(np.float32))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    frame = pd.DataFrame(adata.X.toarray())
    np.testing.assert_allclose(means, frame.groupby(labels.to_numpy()).mean(), rtol=1e-5)
    np.testing.assert_allclose(fractions, (frame > 0).groupby(labels.to_numpy()).mean(), rtol=1e-12)
    np.testing.assert_allclose(values.toarray(), frame[[7, 2]], rtol=1e-6)


def test_panel_holds_the_counts_of_its_genes(tmp_path, monkeypatch):
    """Samples in chunks: the kept cells' counts, rank by rank."""
    rng = np.random.default_rng(0)
    names = [f"G{i}" for i in range(9)]
    genes = pd.DataFrame({"gene_symbols": names, "gene_ids": names, "kept": np.arange(9) != 4}, names)
    write_table(genes, tmp_path / "genes.parquet")
    X, kept, files = rng.poisson(0.7, (150, 9)), rng.random(150) > 0.2, []
    for sample, rows in enumerate((slice(0, 80), slice(80, 150))):
        files.append((tmp_path / f"{sample}.h5ad", tmp_path / f"{sample}.parquet"))
        writer = CountsWriter(files[-1][0], 9)
        writer.append(sp.csr_matrix(X[rows]))
        obs = pd.DataFrame(index=[f"C{i}" for i in range(150)][rows])
        writer.close(obs, genes.drop(columns="kept"))
        write_table(obs.assign(kept=kept[rows]), files[-1][1])
    write_table(pd.DataFrame(index=[f"C{i}" for i in range(150)])[kept].assign(kept_counts=1), tmp_path / "obs.parquet")
    top = pd.DataFrame({"group": list("aabb"), "rank": [1, 2, 1, 2], "names": ["G8", "G1", "G1", "G5"], "scores": 1.0})
    top.assign(gene_symbols=top["names"]).to_csv(tmp_path / "top.tsv", sep="\t", index=False)
    monkeypatch.setitem(ROWS_NNZ, "cpu", 50)
    counts, cells = (list(paths) for paths in zip(*files, strict=True))
    inputs = {"tops": [tmp_path / "top.tsv"], "counts": counts, "cells": cells, "genes": tmp_path / "genes.parquet"}
    made = []
    for n_genes in (0, 300):
        path = tmp_path / f"panel{n_genes}.h5ad"
        snakemake = fake(
            inputs | {"obs": tmp_path / "obs.parquet"},
            {"gene_key": "gene_symbols", "n_genes": n_genes},
            {"panel": path},
        )
        panel.main(snakemake)
        store = Counts(path)
        assert store.names("var").tolist() == ["G1", "G5", "G8"]
        made.append(sp.vstack([chunk.X for chunk in store.chunks()]).toarray())
    np.testing.assert_array_equal(made[0], X[kept][:, [1, 5, 8]])
    np.testing.assert_array_equal(*made)


def test_panel_without_markers_is_empty(tmp_path):
    assert panel.panel_genes([], 300) == []
    top = pd.DataFrame({"group": list("aaabbb"), "rank": [1, 2, 3] * 2, "names": list("ABCDEF"), "gene_symbols": ""})
    assert panel.panel_genes([top], 3)[:3] == ["A", "B", "C"]
    assert set(panel.panel_genes([top], 3)) == set("ABCDEF")  # the dot plot's are all there


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
    """Ten genes each, as there are many groups; the ends of the lines are the scores, up to the group's highest."""
    ax = figures_markers.score_panels(top).axes[0]
    titles = [text.get_text() for text in ax.texts if text.get_weight() == "bold"]
    assert titles == [str(i) for i in range(40)]
    third = top[top["group"] == "2"][:10]
    said = [text.get_text() for text in ax.texts if text.get_style() == "italic"]
    assert said[20:30] == third["gene_symbols"].tolist()
    stems = ax.collections[0].get_segments()[20:30]
    lengths = np.array([end[0] - start[0] for start, end in stems])
    np.testing.assert_allclose(lengths / lengths.max(), third["scores"] / third["scores"].max(), rtol=1e-6)


def test_dots_are_the_fractions_and_the_means():
    genes = chosen_genes(top_markers())
    assert genes["names"].is_unique
    assert len(genes) <= 100
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(40)]
    means, fractions = (pd.DataFrame(rng.random((40, len(genes))), names, genes["names"]) for _ in range(2))
    fig = figures_markers.dot_plot(means, fractions, genes["names"].tolist(), genes["group"].tolist())
    dots = fig.axes[0].collections[0]
    np.testing.assert_allclose(dots.get_sizes() / figures_markers.DOT, fractions.to_numpy().ravel())
    scaled = (means - means.min()) / (means.max() - means.min())
    np.testing.assert_allclose(dots.get_array(), scaled.to_numpy().ravel())
    np.testing.assert_array_equal(dots.get_offsets()[len(genes)], [0, 1])


def test_each_group_has_a_bracket_or_is_named():
    """A gene marks the group in which it ranks highest."""
    top = pd.DataFrame({"group": list("aabbcc"), "rank": [1, 2] * 3, "names": ["G", "H", "H", "I", "H", "G"]})
    top["gene_symbols"] = top["names"]
    genes = chosen_genes(top)
    assert dict(zip(genes["names"], genes["group"], strict=True)) == {"G": "a", "H": "b", "I": "b"}
    means = pd.DataFrame(np.eye(3), list("abc"), genes["names"])
    fig = figures_markers.dot_plot(means, means, genes["gene_symbols"].tolist(), genes["group"].tolist())
    said = [text.get_text() for text in fig.axes[0].texts]
    assert {"a", "b"} < set(said)
    assert "without a bracket, as their top genes rank as high in another group: c" in said


def test_composition_of_clusters():
    clusters = pd.Series(["0", "0", "0", "1", "10", "10"])
    other = pd.Series(["x", "x", "y", "y", "y", None])
    shares = figures_clusters.composition(clusters, other)
    assert list(shares.index) == ["0", "1", "10"]
    assert list(shares.columns) == ["x", "y", "missing"]
    np.testing.assert_allclose(shares, [[200 / 3, 100 / 3, 0], [0, 100, 0], [0, 50, 50]])
    fig = figures_clusters.heatmap(shares, [3, 1, 2], "leiden", "type")
    np.testing.assert_allclose(fig.axes[0].images[0].get_array(), shares)
    assert [text.get_text() for text in fig.axes[0].texts] == ["67", "33", "100", "50", "50"]


def test_tree_links_clusters_to_where_their_cells_go():
    table = pd.DataFrame({"leiden_0.1": list("000011"), "leiden_1.0": list("001122")})
    lines = figures_clusters.tree(table).axes[0].collections[0]
    assert len(lines.get_segments()) == 3  # 0 to 0 and 1, 1 to 2
    assert len(set(lines.get_linewidths())) == 1  # each lower cluster is of one upper one


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
    colours = plots.category_colours(figures_qc.batch_order(cells, "batch"), "batches")
    fig = distributions.violins(cells[["total_counts", "pct_counts_MT"]], cells["batch"], colours, {})
    assert [len(ax.collections[0].get_paths()) for ax in fig.axes] == [3, 2]
    fig = figures_qc.cohort_scatter(cells, "batch", ["n_genes_by_counts", "pct_counts_MT"], {}, 0)
    drawn = [len(ax.collections[0].get_offsets()) for ax in fig.axes]
    assert drawn == [600, (cells["batch"] != "P2").sum()]
    assert np.isnan(
        figures_qc.summary(cells, "batch", ["pct_counts_MT"]).set_index("batch")["median_pct_counts_MT"]["P2"]
    )


def test_a_family_without_genes_is_left_out_of_the_quality():
    table = pd.DataFrame({"pct_counts_MT": [np.nan] * 5, "doublet_score": [0.1] * 5})
    metrics = ["pct_counts_RIBO", "pct_counts_MT", "doublet_score"]
    fig = figures_embedding.quality_figure(embedding_of(5), table, metrics, ["x", "y"], 0)
    assert [ax.get_title(loc="left") for ax in fig.axes if ax.get_title(loc="left")] == ["doublet score"]


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
    simulated = [folder / name / "doublets_simulated.h5" for name in ("S1", "S2")]
    params = {"batch_key": "batch", "families": ["MT"], "cells": LIMITS, "limits": [LIMITS] * 2, "formats": 1}
    outputs = {name: [out / f"{name}.png"] for name in ("violins", "attrition", "limits", "doublets")}
    outputs |= {"scatter": out / "scatter.png"}
    outputs |= {name: out / f"{name}.tsv" for name in ("attrition_table", "summary")}
    yield figures_qc, fake(files | {"obs": folder / "obs.parquet", "simulated": simulated}, params, outputs)
    yield figures_pca, pca_stage(folder, out, [folder / "harmony.h5"])
    inputs = {"embedding": folder / "umap.parquet", "obs": folder / "obs.parquet"}
    inputs |= {"clusterings": [folder / "leiden.parquet"], "density": []}
    shown, metrics = ["leiden_0.6", "batch"], ["total_counts", "pct_counts_MT"]
    families = {"leiden_0.6": "clusters", "batch": "batches"}
    params = {"groupings": shown, "metrics": metrics, "colours": families}
    outputs = {"groupings": [out / f"{name}.png" for name in shown], "quality": out / "quality.png"}
    yield figures_embedding, fake(inputs, params, outputs)
    density = inputs | {"density": [folder / "density.parquet"], "clusterings": []}
    params = {"groupings": ["batch"], "metrics": [], "colours": families}
    yield figures_embedding, fake(density, params, {"groupings": [out / "density.png"]})
    params = {"clusterings": ["leiden_0.6"], "groupings": ["batch"], "metrics": metrics, "colours": families}
    outputs = {"composition": [out / "by_batch.png"], "quality": [out / "clusters.png"], "trees": []}
    yield figures_clusters, fake(inputs, params | {"trees": {}}, outputs)


def pca_stage(folder, out, harmony):
    outputs = {name: out / f"{name}.png" for name in ("variance", "components", "harmony")}
    inputs = {"pca": folder / "pca.h5", "harmony": harmony, "obs": folder / "obs.parquet"}
    params = {"batch_key": "batch", "groupings": ["batch"], "colours": {"batch": "batches"}, "n_pcs": 8}
    return fake(inputs, params, outputs)


def test_harmony_is_drawn_or_its_reason_told(cohort):
    folder, _ = cohort
    sizes = []
    for i, harmony in enumerate(([], [folder / "skipped.h5"], [folder / "harmony.h5"])):
        figures_pca.main(pca_stage(folder, folder / str(i), harmony))
        sizes.append(imread(folder / str(i) / "harmony.png").shape[0] if harmony else 0)
    assert 0 < sizes[1] < 150 < 400 < sizes[2]
    assert not (folder / "0" / "harmony.png").exists()


def test_figures_are_vectors_on_request(cohort):
    """A PDF beside the PNG holds text as text, and is the same when drawn again."""
    folder, files = cohort
    for out in (folder / "a", folder / "b"):
        for module, snakemake in stages(folder, files, out):
            if module is figures_clusters:
                snakemake.output.quality = [out / "clusters.png", out / "clusters.pdf"]
                module.main(snakemake)
    made = [(folder / out / "clusters.pdf").read_bytes() for out in "ab"]
    assert made[0] == made[1]
    assert made[0].startswith(b"%PDF")
    assert b"/Subtype /Image" not in made[0]


def test_numbers_that_group_are_drawn_as_categories(cohort, monkeypatch):
    """Missing values make floats; 7.0 is "7", as in the atlas."""
    folder, _ = cohort
    obs = read_table(folder / "obs.parquet")
    numbers = pd.Series(np.choose(np.arange(len(obs)) % 3, [7.0, 10.0, np.nan]), obs.index)
    write_table(obs.assign(PatientNumber=numbers), folder / "obs.parquet")
    drawn = []
    monkeypatch.setattr(embeddings, "by_category", lambda X, values, *_: drawn.append(plots.categories(values)))
    monkeypatch.setattr(plots, "save", lambda fig, path: None)
    inputs = {"embedding": folder / "umap.parquet", "obs": folder / "obs.parquet", "clusterings": [], "density": []}
    params = {"colours": {}, "groupings": ["PatientNumber"], "metrics": []}
    figures_embedding.main(fake(inputs, params, {"groupings": [folder / "x.png"]}))
    assert drawn[0][1] == plots.categories(numbers)[1] == ["7", "10"]
    np.testing.assert_array_equal(drawn[0][0], plots.categories(numbers)[0])
    assert drawn[0][0][:3].tolist() == [0, 1, -1]


def test_doublets_of_batches_with_slashes(cohort, monkeypatch):
    """a/b and a_b are different batches."""
    folder, files = cohort
    cells = read_table(folder / "S1" / "cells.parquet")
    batches = np.where(np.arange(len(cells)) % 3, "a/b", "a_b")
    write_table(cells.assign(batch=batches), folder / "S1" / "cells.parquet")
    found = {name: Doublets(np.empty(0), np.zeros(n), 0.5) for n, name in enumerate(("a/b", "a_b"), 3)}
    write_simulated(found, folder / "S1" / "doublets_simulated.h5")
    drawn = []
    monkeypatch.setattr(figures_qc, "doublet_tiles", lambda *values: drawn.append(values))
    monkeypatch.setattr(plots, "save", lambda fig, path, dpi=0: None)
    figures_qc.main(next(stages(folder, files, folder))[1])
    observed, simulated, _ = drawn[0]
    assert {name: len(scores) for name, scores in simulated.items() if "/" in name or "_" in name} == {
        "a/b": 3,
        "a_b": 4,
    }
    for name in ("a/b", "a_b"):
        assert len(observed[name]) == (cells["doublet_score"].notna() & (batches == name)).sum() > 0


def test_a_batch_of_two_samples_has_a_panel_of_each(cohort, monkeypatch):
    folder, files = cohort
    drawn = []
    monkeypatch.setattr(figures_qc, "limit_tiles", lambda cells, *_: drawn.append(cells))
    monkeypatch.setattr(plots, "save", lambda fig, path, dpi=0: None)
    figures_qc.main(next(stages(folder, files, folder))[1])
    assert list(drawn[0]) == [f"{batch}, {sample}" for batch in ("P1", "P2", "P10") for sample in ("S1", "S2")]
    assert sum(map(len, drawn[0].values())) == 1200


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
        if module is figures_qc:
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


def test_no_markers_still_makes_figures(cohort, tmp_path):
    folder, _ = cohort
    columns = ["group", "rank", "names", "gene_symbols", "scores"]
    pd.DataFrame(columns=columns).to_csv(tmp_path / "top.tsv", sep="\t", index=False)
    obs = read_table(folder / "obs.parquet")
    write_table(obs.assign(kept_counts=obs["total_counts"]), folder / "obs.parquet")
    outputs = {name: [tmp_path / f"{name}.png"] for name in ("scores", "dotplot", "cells")}
    inputs = {"tops": [tmp_path / "top.tsv"], "panel": "", "clusterings": []}
    inputs |= {"embedding": folder / "umap.parquet", "obs": folder / "obs.parquet"}
    params = {"groupings": ["leiden_0.1"], "methods": ["t-test"], "clusterings": [], "target_sum": 1e4}
    figures_markers.main(fake(inputs, params, outputs))
    assert all(path[0].read_bytes() for path in outputs.values())
