"""The explorer: what its page holds, and what a browser does with it."""

import json
import re
import zlib
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace

import chromium
import explorer
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lib.explorer import page
from lib.store.categories import PALETTES
from lib.store.counts import CountsWriter
from lib.store.files import write_table
from matplotlib.path import Path as Polygon
from snakemake.iocontainers import Namedlist

SCRIPT = "<script>alert(1)</script>"
GENES = ["CD3E", "MS4A1", "LYZ", "<b>", "NONE"]


def built(folder: Path, n: int = 1500, seed: int = 0, **params) -> SimpleNamespace:
    """An explorer of simulated cells: the page, the table of cells, their embedding and log-normalised values."""
    rng = np.random.default_rng(seed)
    names = pd.Index([f"CELL{i:05d}-1-S{i % 2}" for i in range(n)])
    codes = rng.integers(0, 4, n)
    X = np.array([[0, 0], [9, 1], [3, 8], [12, 9]])[codes] + rng.normal(size=(n, 2))
    counts = rng.poisson(
        np.array([[3, 0.1, 0.5, 1, 0], [0.1, 5, 0.5, 1, 0], [0.2, 0.2, 9, 1, 0], [1, 1, 1, 1, 0]])[codes]
    )
    obs = pd.DataFrame({"sample": [f"S{i % 2}" for i in range(n)]}, names)
    obs["type"] = pd.Categorical(np.array(["T", "B", SCRIPT, None], object)[codes])
    obs["total_counts"] = rng.lognormal(7, 1, n).astype(int)
    obs["pct_counts_MT"] = np.where(rng.random(n) < 0.1, np.nan, rng.gamma(2, 3, n))
    obs["nothing"], obs["same"], obs["note"] = np.nan, 1.0, [f"note {i} of a cell" for i in range(n)]
    obs["flag"] = codes == 1
    obs["kept_counts"] = counts.sum(1) + 50
    write_table(obs, folder / "obs.parquet", "cohort")
    leiden = pd.DataFrame({"leiden_0.6": pd.Categorical(codes.astype(str))}, names)
    write_table(leiden, folder / "leiden.parquet", "cohort", "obs")
    for name in ("umap", "tsne"):
        basis = pd.DataFrame(X if name == "umap" else X[:, ::-1] * 3, names, [f"{name}1", f"{name}2"])
        write_table(basis, folder / f"{name}.parquet", "cohort", f"obsm/X_{name}")
    writer = CountsWriter(folder / "panel.h5ad", len(GENES))
    writer.append(sp.csr_matrix(counts))
    var = pd.DataFrame({"gene_symbols": GENES, "gene_ids": GENES, "order": [1, 0, 2, 3, 4]}, GENES)
    writer.close(pd.DataFrame(index=names), var, "cohort")
    given = {"seed": 0, "title": f"Cells of {SCRIPT}", "batch_key": "sample", "target_sum": 1e4, "max_cells": 10**6}
    given |= {"groupings": ["type", "leiden_0.6", "sample"]}
    given |= {"colours": {"leiden_0.6": "clusters", "sample": "batches"}} | params
    artifacts = [folder / f"{name}.parquet" for name in ("leiden", "umap", "tsne")]
    inputs = {"artifacts": artifacts, "obs": folder / "obs.parquet", "panel": folder / "panel.h5ad"}
    output = SimpleNamespace(explorer=folder / "explorer.html")
    explorer.main(SimpleNamespace(input=Namedlist(fromdict=inputs), params=SimpleNamespace(**given), output=output))
    values = np.log1p(counts * 1e4 / obs["kept_counts"].to_numpy()[:, None])
    table = obs.assign(**{"leiden_0.6": leiden["leiden_0.6"]})
    return SimpleNamespace(path=output.explorer, table=table, X=X, values=pd.DataFrame(values, names, GENES))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return built(tmp_path_factory.mktemp("explorer"))


def held(path):
    """What a page's script is told, and the bytes of its columns."""
    text = path.read_text()
    about = json.loads(re.search(r'id="about-data">(.*?)</script>', text, re.S)[1])
    columns = re.findall(r'<script type="text/plain" id="([^"]+)">([^<]*)</script>', text)
    return about, {name: zlib.decompress(b64decode(value)) for name, value in columns}


def test_categories_of_the_cells(made):
    about, columns = held(made.path)
    cells = columns["barcodes"].decode().split("\n")
    assert sorted(cells) == sorted(made.table.index)
    for name in ("type", "leiden_0.6", "sample", "flag"):
        told = next(column for column in about["columns"] if column["name"] == name)
        codes = np.frombuffer(columns[told["id"]], np.uint8)
        shown = pd.Series([*told["names"], *[None] * (256 - len(told["names"]))], dtype=object)[codes].tolist()
        expected = made.table.loc[cells, name].astype(object)
        assert shown == [None if pd.isna(value) else str(value) for value in expected]
        assert told["counts"] == [shown.count(value) for value in told["names"]]


def test_colours_are_the_figures(made):
    families = {"type": "types", "leiden_0.6": "clusters", "sample": "batches"}
    told = {column["name"]: column for column in held(made.path)[0]["columns"]}
    for name, family in families.items():
        natural = sorted(told[name]["names"])
        colours = dict(zip(told[name]["names"], told[name]["colours"], strict=True))
        assert [colours[value] for value in natural] == PALETTES[family][: len(natural)]


def test_numbers_have_255th_parts_of_their_range(made):
    about, columns = held(made.path)
    cells = columns["barcodes"].decode().split("\n")
    told = {column["name"]: column for column in about["columns"]}
    for name in ("pct_counts_MT", "total_counts"):
        column, expected = told[name], made.table.loc[cells, name].to_numpy(float)
        levels = np.frombuffer(columns[column["id"]], np.uint8)
        np.testing.assert_array_equal(levels == 255, np.isnan(expected))
        scale = np.log if column["log"] else np.asarray
        low, high = scale(column["low"]), scale(column["high"])
        values = low + levels / column["levels"] * (high - low)
        known = ~np.isnan(expected)
        clipped = np.clip(scale(expected[known]), low, high)
        np.testing.assert_allclose(values[known], clipped, atol=(high - low) / 500)
    assert told["same"]["levels"] == 254
    assert about["notes"] == ["Columns that are not shown: nothing (without values)."]


def test_texts_of_too_many_kinds_are_named_as_left_out(tmp_path):
    about, _ = held(built(tmp_path, n=2100).path)
    assert about["notes"] == ["Columns that are not shown: nothing (without values), note (2,100 different texts)."]


def test_values_of_genes_are_near(made):
    """A level is within half a 128th of the gene's maximum."""
    about, columns = held(made.path)
    cells = columns["barcodes"].decode().split("\n")
    assert [gene["name"] for gene in about["genes"]] == ["MS4A1", "CD3E", "LYZ", "<b>", "NONE"]
    for gene in about["genes"]:
        expected = made.values.loc[cells, gene["name"]].to_numpy()
        values = np.frombuffer(columns[gene["id"]], np.uint8) * gene["max"] / about["gene_levels"]
        assert gene["max"] == pytest.approx(expected.max())
        assert abs(values - expected).max() <= gene["max"] / 255 + 1e-9


def test_positions_keep_the_shape(made):
    about, columns = held(made.path)
    cells = columns["barcodes"].decode().split("\n")
    X = made.X[made.table.index.get_indexer(cells)]
    low, high = (np.frombuffer(columns[name], np.uint8).reshape(2, -1) for name in about["embeddings"][0]["places"])
    places = np.column_stack([part[0] + 256.0 * part[1] for part in (low, high)]) / 65535
    np.testing.assert_allclose(places - places.min(0), (X - X.min(0)) / np.ptp(X, axis=0).max(), atol=1e-4)


def test_same_bytes_again(made, tmp_path):
    assert built(tmp_path).path.read_bytes() == made.path.read_bytes()


def test_of_too_many_cells_a_share_of_each_stratum_is_shown(tmp_path):
    again = built(tmp_path, max_cells=1000)
    about, columns = held(again.path)
    cells = columns["barcodes"].decode().split("\n")
    assert about["said"].startswith(f"{len(cells):,} of 1,500 cells, chosen at random")
    assert 990 <= len(cells) <= 1000
    names = ["leiden_0.6", "sample"]
    shares = (
        again.table.loc[cells].groupby(names, observed=True).size() / again.table.groupby(names, observed=True).size()
    )
    assert shares.between(0.65, 0.67).all()


def test_small_strata_are_not_lost():
    strata = pd.Series(["a"] * 9990 + ["b"] * 5 + [None] * 5)
    cells = explorer.chosen_cells(strata, 500, 0)
    assert len(cells) <= 500
    assert strata[cells].value_counts(dropna=False).index.isin(["a", "b", None]).sum() == 3
    np.testing.assert_array_equal(cells, explorer.chosen_cells(strata, 500, 0))
    assert (cells != explorer.chosen_cells(strata, 500, 1)).any()


def test_more_strata_than_cells():
    cells = explorer.chosen_cells(pd.Series(np.arange(3000).astype(str)), 1000, 0)
    assert len(set(cells)) == 1000


def test_genes_that_exceed_the_limit_are_left_out(tmp_path, monkeypatch):
    size = built(tmp_path).path.stat().st_size
    monkeypatch.setattr(page, "LIMIT", size - 2000)
    again = built(tmp_path)
    about, _ = held(again.path)
    assert 0 < len(about["genes"]) < 5
    assert about["genes"][0]["name"] == "MS4A1"
    assert f"{len(about['genes'])} of 5 marker genes, as more would exceed 30 MB" in about["said"]
    assert again.path.stat().st_size < size - 2000


def test_names_of_users_are_text(made):
    text = made.path.read_text()
    assert SCRIPT not in text
    assert "<b>" not in text
    assert held(made.path)[0]["title"] == f"Cells of {SCRIPT}"


# In a browser


@pytest.fixture(scope="module")
def opened(made, tmp_path_factory):
    with chromium.Page(tmp_path_factory.mktemp("browser"), (1200, 800)) as shown:
        shown.open(made.path)
        shown.run("explorer.ready")
        yield shown


def fresh(opened):
    """The page as at the start."""
    opened.run("explorer.plot().deselect()")
    opened.run("explorer.show('column:leiden_0.6', 0)")
    opened.run("document.getElementById('all').click()")
    opened.run("explorer.plot().reset()")


@pytest.mark.slow
def test_it_draws_the_cells_in_their_colours(opened, made, tmp_path):
    from matplotlib.image import imread

    fresh(opened)
    opened.screenshot(tmp_path / "page.png")
    image = np.round(imread(tmp_path / "page.png")[:, :850, :3] * 255).astype(int)
    for colour in PALETTES["clusters"][:4]:
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        drawn = np.round(255 - 0.85 * (255 - rgb)).astype(int)  # by the opacity on white
        assert (abs(image - drawn).max(-1) <= 6).sum() > 200, colour
    assert (image == 255).all(-1).mean() > 0.5


@pytest.mark.slow
def test_counts_of_a_lasso_are_numpys(opened, made):
    """Cells whose places on the screen lie in the polygon; those within five pixels of its border may be in or out."""
    fresh(opened)
    opened.run("window.box = document.getElementById('canvas').getBoundingClientRect()")
    box = opened.run("[box.left, box.top, box.width, box.height]")
    angles = np.linspace(0, 1.9 * np.pi, 40)
    corners = np.column_stack(
        [box[0] + box[2] * (0.35 + 0.25 * np.cos(angles)), box[1] + box[3] * (0.6 + 0.3 * np.sin(angles))]
    )
    opened.mouse("mouseMoved", *corners[0])
    opened.mouse("mousePressed", *corners[0], button="left", buttons=1, clickCount=1, modifiers=8)
    for corner in corners[1:]:
        opened.mouse("mouseMoved", *corner, button="left", buttons=1, modifiers=8)
        opened.run("new Promise((done) => setTimeout(done, 20))")
    opened.mouse("mouseReleased", *corners[-1], button="left", modifiers=8)
    opened.wait("document.querySelector('[data-of=genes]')")
    selected = opened.run("Array.from(explorer.state.selection)")
    names = np.array(opened.run("explorer.barcodes()"))
    places = opened.run("Array.from({ length: explorer.about.n }, (_, i) => explorer.plot().getScreenPosition(i))")
    places = np.array(places) + box[:2]
    inside = Polygon(corners).contains_points(places)
    sure = Polygon(corners).contains_points(places, radius=5) == Polygon(corners).contains_points(places, radius=-5)
    mine = np.isin(np.arange(len(names)), selected)
    assert mine.sum() > 100
    np.testing.assert_array_equal(mine[sure], inside[sure])
    cells = made.table.loc[names[mine]]
    for name in ("leiden_0.6", "sample"):
        opened.run(f"window.rows = [...document.querySelectorAll('[data-of=\"{name}\"] tbody tr')]")
        rows = opened.run("rows.map((row) => [...row.children].slice(0, 2).map((cell) => cell.textContent))")
        expected = cells[name].value_counts()
        assert {group: int(n.replace(",", "")) for group, n in rows} == expected[expected > 0].to_dict()
    top = opened.run(
        "explorer.topGenes(explorer.state.selection).then((genes) => genes.map((g) => [g.gene.name, g.mean, g.other]))"
    )
    values = made.values.loc[names]
    for name, mean, other in top:
        tolerance = values[name].max() / 255
        assert mean == pytest.approx(values.loc[mine, name].mean(), abs=tolerance)
        assert other == pytest.approx(values.loc[~mine, name].mean(), abs=tolerance)
    assert [row[0] for row in top] == sorted([row[0] for row in top], key={n: o - m for n, m, o in top}.get)
    exported = opened.run("explorer.exported()").split()
    assert exported == list(names[mine])


@pytest.mark.slow
def test_values_of_a_gene_in_the_page(opened, made):
    names = np.array(opened.run("explorer.barcodes()"))
    for name in ("CD3E", "<b>"):
        values = opened.run(f"explorer.values('gene:{name}')")
        expected = made.values.loc[names, name]
        assert abs(np.array(values) - expected.to_numpy()).max() <= expected.max() / 255


@pytest.mark.slow
def test_the_legend_by_keyboard(opened, made):
    """Enter hides a group, the arrow goes to the next, O isolates; hidden cells are not exported."""
    fresh(opened)
    opened.run("document.querySelector('#legend .group').focus()")
    opened.press("Enter")
    assert opened.run("document.activeElement.getAttribute('aria-pressed')") == "false"
    shown = opened.run("explorer.exported()").split()
    expected = made.table.index[made.table["leiden_0.6"] != "0"]
    assert set(shown) == set(expected)
    assert len(opened.run("explorer.plot().get('filteredPoints')")) == len(expected)
    opened.press("ArrowDown")
    opened.press("o")
    assert set(opened.run("explorer.exported()").split()) == set(made.table.index[made.table["leiden_0.6"] == "1"])
    opened.press("o")
    assert len(opened.run("explorer.exported()").split()) == len(made.table)


@pytest.mark.slow
def test_a_gene_is_searched(opened):
    fresh(opened)
    opened.run("document.getElementById('gene').focus()")
    for letter in "lyz":
        opened.press(letter)
    opened.press("Enter")
    opened.wait("document.getElementById('legend-title').textContent === 'LYZ, log-normalised'")
    assert opened.run("explorer.state.key") == "gene:LYZ"
    opened.run("document.getElementById('gene').value = 'XYZ'")
    opened.run("document.getElementById('gene').onchange({ target: document.getElementById('gene') })")
    assert opened.run("document.getElementById('unknown').textContent") == "XYZ is not among the 5 genes of this page."


@pytest.mark.slow
def test_a_link_restores_the_view(opened, made):
    fresh(opened)
    opened.run("explorer.show('column:type', 1)")
    opened.run("explorer.hide(0)")
    opened.run("explorer.plot().set({ cameraView: Float32Array.from([2,0,0,0, 0,2,0,0, 0,0,1,0, 0.25,-0.5,0,1]) })")
    opened.wait("location.hash.includes('0.25')")
    link = opened.run("location.href")
    before = opened.run("[explorer.state.key, explorer.state.embedding, [...explorer.state.hidden]]")
    opened.open("about:blank")
    opened.open(link)
    opened.run("explorer.ready")
    assert opened.run("[explorer.state.key, explorer.state.embedding, [...explorer.state.hidden]]") == before
    view = opened.run("Array.from(explorer.plot().get('cameraView'))")
    np.testing.assert_allclose(view, [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0.25, -0.5, 0, 1], atol=1e-5)
    assert opened.run("document.querySelectorAll('#legend [aria-pressed=false]').length") == 1


@pytest.mark.slow
def test_of_many_wishes_the_last_is_shown(opened):
    fresh(opened)
    opened.run("for (const key of ['column:type', 'gene:LYZ', 'column:flag', 'column:sample']) explorer.show(key, 0)")
    opened.wait("document.getElementById('legend-title').textContent === 'sample'")
    assert opened.run("document.querySelectorAll('#legend .group').length") == 2


@pytest.mark.slow
def test_hover_tells_the_cell(opened, made):
    fresh(opened)
    places = opened.run("explorer.plot().getScreenPosition(3)")
    opened.mouse("mouseMoved", places[0] + 1, places[1])
    opened.mouse("mouseMoved", *places)
    opened.wait("!document.getElementById('tip').hidden && document.getElementById('tip').textContent")
    said = opened.run("document.getElementById('tip').textContent").split("\n")
    cell = made.table.loc[said[0]]
    assert said[1:] == [f"leiden_0.6: {cell['leiden_0.6']}", f"sample: {cell['sample']}"]


@pytest.mark.slow
def test_nothing_is_requested_and_no_error_is_told(opened, made):
    assert opened.run("document.title") == f"Cells of {SCRIPT}"
    assert opened.run("performance.getEntriesByType('resource').length") == 0
    assert opened.requests == []
    assert opened.errors == []
