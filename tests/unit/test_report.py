"""What stages tell the report, with planted faults and without; and the page, of hostile names too."""

from __future__ import annotations

import base64
import gzip
import html
import io
import re
from pathlib import Path

import doublets
import harmony
import numpy as np
import pandas as pd
import pytest
from lib.inputs.config import complete
from lib.report import batches, clusters, markers, page, words
from lib.report.parts import Column, Done, Finding, Finished, Mark, Methods, Table
from lib.report.pictures import picture
from lib.store.files import write_arrays, write_table
from PIL import Image

EVIL = "<script>alert(1)</script>\"'&"


def run_of(config=None, marks=(), **outputs) -> Finished:
    """A finished run with one job for each rule: rule -> its outputs."""
    jobs = [Done(rule, rule, wildcards, output) for rule, (wildcards, output) in outputs.items()]
    return Finished(complete(config or {}), jobs, marks)


# Batches


def of_batches(folder, **changes) -> Finished:
    """Four batches like those of a usual run; `changes` are columns of the last one."""
    row = {"cells": 1000, "kept": 900, "kept_pct": 90.0, "median_total_counts": 3000, "median_n_genes_by_counts": 1100}
    row |= {"median_pct_counts_MT": 5.5, "lost_pct_min_genes": 2.0, "lost_pct_max_pct_counts_MT": 3.0}
    row |= {"scored": 950, "doublets": 50, "doublets_pct": 5.26}
    table = pd.DataFrame([{"sample": f"P{i}"} | row | (changes if i == 4 else {}) for i in range(1, 5)])
    table.to_csv(folder / "qc_by_batch.tsv", sep="\t", index=False)
    return run_of(figures_qc=({}, {"summary": str(folder / "qc_by_batch.tsv")}))


BATCH_FAULTS = {
    "kept": ({"kept": 620, "kept_pct": 62.0, "lost_pct_max_pct_counts_MT": 30.0}, ["62 %", "30 %", "1,000 cells"]),
    "below the median": ({"kept": 810, "cells": 1000, "kept_pct": 70.0}, None),
    "lost to one limit": ({"lost_pct_max_pct_counts_MT": 14.0}, ["14 %", "high MT %"]),
    "few": ({"cells": 160, "kept": 150}, ["150 cells are kept"]),
    "near the limit": ({"median_pct_counts_MT": 16.0}, ["16 %", "the limit of 20 %"]),
}


@pytest.mark.parametrize("fault", BATCH_FAULTS)
def test_a_batch_with_a_fault_is_found_and_no_other(tmp_path, fault):
    changes, said = BATCH_FAULTS[fault]
    found = list(batches.findings(of_batches(tmp_path, **changes)))
    if said is None:  # 81 % are above 80 %, and less than 15 points below 90 %
        assert found == []
        return
    assert [finding.where for finding in found] == ["Batch P4"]
    assert all(word in found[0].said for word in said)
    assert found[0].beyond > 1
    assert found[0].sample == "P4"


def test_a_batch_far_below_the_median_is_found_though_it_keeps_most_cells(tmp_path):
    run = of_batches(tmp_path, kept=830)
    table = pd.read_csv(tmp_path / "qc_by_batch.tsv", sep="\t")
    table.loc[:2, "kept"] = 990
    table.to_csv(tmp_path / "qc_by_batch.tsv", sep="\t", index=False)
    (found,) = batches.findings(run)
    assert "83 %" in found.said
    assert "the median batch keeps 99 %" in found.limit


def test_clean_batches_have_no_finding(tmp_path):
    assert list(batches.findings(of_batches(tmp_path))) == []


def test_the_worse_of_two_faults_is_further_beyond(tmp_path):
    (tmp_path / "worse").mkdir()
    (one,) = batches.findings(of_batches(tmp_path, kept=780))
    (other,) = batches.findings(of_batches(tmp_path / "worse", kept=400))
    assert other.beyond > one.beyond


# Doublets


def of_doublets(folder, rate=0.05, threshold=0.3, trusted=True, n=1000) -> list[Finding]:
    scores = np.where(np.arange(n) < rate * n, 0.9, 0.1)
    found = {"P1": doublets.Doublets(scores, np.linspace(0, 1, 2 * n), threshold, trusted)}
    path = str(folder / "doublets_simulated.h5")
    doublets.write_simulated(found, path, 0.05)
    told = list(doublets.tells(run_of(doublets=({"sample": "P1"}, {"simulated": path}))))
    assert any(isinstance(part, Methods) for part in told)
    return [part for part in told if isinstance(part, Finding)]


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.12])
def test_usual_rates_of_doublets_are_no_finding(tmp_path, rate):
    assert of_doublets(tmp_path, rate) == []


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"rate": 0.2}, "20 % of 1,000 cells"),
        ({"rate": 0.004}, "0.4 % of 1,000 cells"),
        ({"threshold": np.nan}, "no valley"),
        ({"rate": 0.1, "trusted": False}, "divides single cells"),
    ],
)
def test_odd_rates_of_doublets_are_found(tmp_path, known, said):
    (found,) = of_doublets(tmp_path, **known)
    assert found.where == "Batch P1"
    assert said in found.said
    assert found.beyond > 1


def test_few_cells_without_doublets_are_no_finding(tmp_path):
    """Of 120 cells six are expected; none is chance in one of 400 cases."""
    assert of_doublets(tmp_path, rate=0, n=120) == []


# Clusters

RNG = np.random.default_rng(0)
CLUSTERS = pd.Series(pd.Categorical(np.repeat(["0", "1", "2"], [500, 300, 200])))
BATCHES = pd.Series(pd.Categorical(RNG.choice(["A", "B", "C"], 1000)))


def test_clusters_without_faults_are_no_findings():
    assert list(clusters.of_size(CLUSTERS, "leiden_0.6")) == []
    assert list(clusters.of_batches(CLUSTERS, BATCHES, "leiden_0.6")) == []
    assert list(clusters.of_quality(CLUSTERS, pd.Series(RNG.gamma(4, 1.4, 1000)), "pct_counts_MT", "leiden_0.6")) == []
    labels = CLUSTERS.cat.rename_categories({"0": "T", "1": "B", "2": "NK"})
    assert list(clusters.of_labels(CLUSTERS, labels, "leiden_0.6", "CellType")) == []


def test_a_cluster_of_one_batch_is_found():
    planted = BATCHES.astype(object).where(CLUSTERS != "2", "B").astype("category")
    (found,) = clusters.of_batches(CLUSTERS, planted, "leiden_0.6")
    assert found.where == "Cluster 2 of leiden_0.6"
    assert "100 % of its 200 cells are of batch B" in found.said


def test_a_batch_of_nearly_all_cells_may_fill_clusters():
    assert list(clusters.of_batches(CLUSTERS, pd.Series(["A"] * 990 + ["B"] * 10), "leiden_0.6")) == []


def test_a_small_cluster_is_found():
    planted = pd.Series(pd.Categorical(["0"] * 990 + ["1"] * 8))
    (found,) = clusters.of_size(planted, "leiden_0.6")
    assert (found.where, found.said, found.beyond) == ("Cluster 1 of leiden_0.6", "8 cells", 20 / 8)


@pytest.mark.parametrize("metric", ["pct_counts_MT", "doublet_score"])
def test_a_cluster_of_poor_quality_is_found(metric):
    values = pd.Series(RNG.gamma(4, 1.4, 1000))
    values[CLUSTERS == "2"] += 20
    (found,) = clusters.of_quality(CLUSTERS, values, metric, "leiden_0.6")
    assert found.where == "Cluster 2 of leiden_0.6"
    assert f"{values[CLUSTERS == '2'].median():.3g}" in found.said


def test_labels_that_cross_the_clusters_are_found_and_the_worst_is_named():
    labels = CLUSTERS.cat.rename_categories({"0": "T", "1": "B", "2": "NK"}).astype(object)
    labels[:240] = "lost"  # in the cluster of T cells, of which 260 are left
    (found,) = clusters.of_labels(CLUSTERS, labels.astype("category"), "leiden_0.6", "CellType")
    assert "76 % of the labelled cells" in found.said
    assert "lost (0 %)" in found.said


def test_groups_marked_by_ribosomal_genes_are_found(tmp_path):
    names = [f"RPS{i}" for i in range(20)] + [f"G{i}" for i in range(40)]
    genes = pd.DataFrame({"RIBO": [name.startswith("RPS") for name in names]}, index=names)
    write_table(genes, tmp_path / "genes.parquet")
    top = pd.DataFrame({"group": ["0"] * 20 + ["1"] * 20, "rank": [*range(1, 21)] * 2})
    top["names"] = top["gene_symbols"] = names[:11] + names[20:29] + names[11:20] + names[30:41]
    top["scores"] = 1.0
    top.to_csv(tmp_path / "t-test.top.tsv", sep="\t", index=False)
    outputs = {"top": str(tmp_path / "t-test.top.tsv"), "markers": "t-test.tsv.gz"}
    run = run_of(
        genes=({}, {"genes": str(tmp_path / "genes.parquet")}), markers_ttest=({"grouping": "leiden_0.6"}, outputs)
    )
    told = list(markers.told(run, "markers_ttest", "t-test", "t"))
    (found,) = [part for part in told if isinstance(part, Finding)]
    assert found.where == "Group 0 of leiden_0.6"
    assert "55 % of its first 20 markers" in found.said
    (table,) = [part for part in told if isinstance(part, Table)]
    assert "RPS0, RPS1, RPS2 (0)" in table.said


# Harmony


def of_harmony(folder, apart, change=0.001) -> list[Finding]:
    """Two batches of 300 cells, `apart` standard deviations from each other after Harmony."""
    codes = np.repeat(["A", "B"], 300)
    X = np.random.default_rng(1).normal(size=(600, 10)).astype(np.float32)
    after = X + np.where(codes == "A", 0, apart)[:, None].astype(np.float32)
    write_arrays(folder / "pca.h5", {"X_pca": X + np.where(codes == "A", 0, 9)[:, None].astype(np.float32)})
    write_arrays(folder / "harmony.h5", {"X_pca_harmony": after}, rounds=4, change=change)
    write_table(pd.DataFrame({"sample": codes}), folder / "obs.parquet")
    outputs = {name: ({}, {name: str(folder / f"{name}.h5")}) for name in ("pca", "harmony")}
    run = run_of(**outputs, features=({}, {"obs": str(folder / "obs.parquet")}))
    return [part for part in harmony.tells(run) if isinstance(part, Finding)]


def test_mixed_batches_are_no_finding(tmp_path):
    assert of_harmony(tmp_path, apart=0) == []


def test_batches_that_stay_apart_are_found(tmp_path):
    (found,) = of_harmony(tmp_path, apart=9)
    assert "100 % of a cell's nearest neighbours are of its own batch after it" in found.said


def test_a_harmony_that_did_not_converge_is_found(tmp_path):
    (found,) = of_harmony(tmp_path, apart=0, change=0.03)
    assert "3 % in round 4" in found.said


# The page


def figure_file(path, size=(300, 200)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(path, dpi=(150, 150))
    return path


def test_every_name_is_escaped_everywhere(tmp_path):
    figure_file(tmp_path / "figures" / "x.png")
    caption = tmp_path / "x.rst"
    caption.write_text(
        "Cells of {{ snakemake.wildcards.sample }} by ``{{ snakemake.config['label_key'] }}``.\n\n**How.**"
    )
    mark = Mark(str(tmp_path / "figures/x.png"), "r", {"sample": EVIL}, str(caption), EVIL, EVIL, {"figure": EVIL})
    book = page.Book(tmp_path, {"label_key": EVIL})
    book.add_figures([mark], {mark.path: f"2 cells of `{EVIL}`"}, [EVIL])
    book.add_pictures(1)
    (tmp_path / "t.tsv").write_text(f"{EVIL}\tp\n{EVIL}</script>\t0\n")
    book.add_table(Table(str(tmp_path / "t.tsv"), EVIL, EVIL, EVIL, "", {EVIL: Column(EVIL)}))
    methods, references = page.methods_of([Methods(EVIL, [EVIL])])
    text = page.rendered(
        **dict.fromkeys(("title", "version", "when", "where", "config"), EVIL),
        logo="",
        numbers=[{"value": EVIL, "name": EVIL, "remark": EVIL}],
        n_findings=7,
        findings=page.folded([Finding(EVIL, EVIL, EVIL, 2, EVIL, EVIL, EVIL)] * 7),
        links={EVIL: ("#x", EVIL)},
        notices=[{"rule": EVIL, "wildcards": EVIL, "notice": EVIL}],
        explorer=EVIL,
        chapters=book.ordered(None),
        runs=None,
        shown=["Methods", "Config", "Samples"],
        methods=methods,
        references=references,
        samples=book.sheet(Table("samples.tsv", EVIL, EVIL, ""), b"sample\nP1\n"),
        versions={EVIL: EVIL},
    )
    body = text[: text.index("<script>/* Tabulator")] if "<script>/* Tabulator" in text else text.split("</main>")[0]
    assert "alert(1)" in body
    assert "<script>alert" not in text
    assert not re.search(r'<[^>]*"[^"=<>]*"\'&', body)  # no attribute ends at the quote of a name
    assert EVIL in html.unescape(body)


def test_a_table_of_the_page_holds_the_bytes_of_the_file(tmp_path):
    data = b'group\tp\n"a\tb"\t1e-310\n\xc3\xa9\t0\r\n'
    sheet = page.Book(tmp_path, {}).sheet(Table(str(tmp_path / "tables" / "x.tsv"), "x", "", ""), data)
    assert gzip.decompress(base64.b64decode(sheet.data)) == data
    assert sheet.name == "x.tsv"


def test_different_names_have_different_addresses():
    names = ["CD4 T", "CD4/T", "CD4<T", "cd4-t", "é", "è", "P.1", "P_1", ".", "methods"]
    book = page.Book(Path(), {})
    addresses = [book.section(name).anchor for name in names] + [book.section("Markers", name).anchor for name in names]
    assert len(set(addresses)) == 2 * len(names)
    assert not {"methods", "zoom"} & set(addresses)
    assert book.section("Quality control").anchor == "quality-control"


def test_the_page_holds_the_figures_of_samples_with_findings_first(tmp_path):
    samples = [f"S{i}" for i in range(page.EACH + 20)]
    marks = []
    for sample in samples:
        path = figure_file(tmp_path / "figures" / f"{sample}.png", (8, 8))
        marks.append(Mark(str(path), "r", {"sample": sample}, "", "1 Quality control", "Samples", {"sample": sample}))
    book = page.Book(tmp_path, {})
    book.add_figures(marks, {}, ["S40", "S33"])
    book.add_pictures(2)
    (group,) = book.section("1 Quality control", "Samples").groups
    held = {figure.of for figure in group.held}
    assert len(held) == page.EACH
    assert {"S40", "S33"} <= held
    assert book.links[marks[40].path][0] == "#" + group.figures[40].anchor
    assert book.links[marks[39].path][0] == "figures/S39.png"  # not held: the file


def test_chapters_stand_in_the_order_of_their_numbers_and_runs_last():
    book = page.Book(Path(), {})
    for category in ("6 Runs", "Scores", "3 Embeddings", "1 Quality control", "Markers", "4 Markers"):
        book.section(category)
    titles = [chapter.title for chapter in book.ordered(None)]
    assert titles == ["Quality control", "Embeddings", "Markers", "Runs", "Scores"]  # the template puts runs last
    assert [chapter.title for chapter in book.ordered(["Scores", "Markers"])] == ["Scores", "Markers"]


def test_a_picture_has_the_size_and_the_colours_of_its_figure(tmp_path):
    values = np.full((400, 600, 3), 255, np.uint8)
    values[100:200, 50:300] = (0, 114, 178)
    values[250:300, 50:550] = np.linspace(0, 255, 500).astype(np.uint8)[None, :, None]
    Image.fromarray(values).save(tmp_path / "x.png", dpi=(150, 150))
    found = picture(tmp_path / "x.png")
    assert (found.width, found.height) == (384, 256)  # 96 of 150 pixels per inch
    with Image.open(io.BytesIO(base64.b64decode(found.uri.split(",")[1]))) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert (shown[0, 0] == 255).all()
    assert np.abs(shown - values).max() <= 16  # a palette of 256 colours, cut by octree


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.00001, "< 0.1 %"), (0.0123, "1.2 %"), (0.099, "9.9 %"), (0.5, "50 %"), (1, "100 %")],
)
def test_percentages_have_two_digits(share, text):
    assert words.percent(share) == text


def test_lists_are_cut():
    assert words.listed("ABC") == "A, B and C"
    assert words.listed(range(9), 2) == "0, 1 and 7 more"
    assert words.listed(["A"]) == "A"


def test_a_spread_has_two_ends_or_one():
    assert words.spread([3181.5, 1100.2]) == "from 1,100 to 3,182"
    assert words.spread([5.64, 5.6], " %") == "from 5.6 to 5.64 %"
    assert words.spread([2.0], " %") == "2 %"


def test_of_many_findings_of_a_kind_most_are_folded_and_the_worst_come_first():
    many = [Finding(f"Batch {n}", "said", "limit", 1 + n / 10, kind="doublet rates") for n in range(9)]
    one = Finding("Harmony", "said", "limit", 5)
    (first, none), (shown, others) = page.folded([*many, one])
    assert (first, none) == ([one], [])
    assert [finding.where for finding in shown] == ["Batch 8", "Batch 7", "Batch 6"]
    assert len(others) == 6
    assert page.folded(many[:5])[0][1] == []
