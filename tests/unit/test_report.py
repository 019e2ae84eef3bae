"""What stages tell the report, with planted faults and without; and the page, of hostile names too."""

from __future__ import annotations

import base64
import gzip
import html
import io
import re
from pathlib import Path

import annotation
import cell_cycle
import doublets
import enrichment as enrichment_stage
import figures_annotation
import figures_scores
import figures_volcano
import harmony
import numpy as np
import pandas as pd
import pytest
import scores as scores_stage
from lib.inputs.config import complete
from lib.report import batches, clusters, markers, page, sets, words
from lib.report.parts import Column, Done, Finding, Finished, Mark, Methods, Numbers, Table
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


def test_a_finding_links_to_the_page_of_its_batch(tmp_path):
    """Of seven batches in natural order on three pages, P10 is the last one, on the third."""
    of_batches(tmp_path)
    table = pd.read_csv(tmp_path / "qc_by_batch.tsv", sep="\t")
    table = pd.concat([table, table.iloc[:3].assign(sample=["P5", "P6", "P10"], kept=[900, 900, 400])])
    table.sort_values("sample").to_csv(tmp_path / "qc_by_batch.tsv", sep="\t", index=False)
    labels = {"figure": "cells kept and removed"}
    marks = [Mark(f"a{i}.png", "figures_qc", {}, "", "", "", labels | {"page": f"{i} of 3"}) for i in (1, 2, 3)]
    (found,) = batches.findings(run_of(marks=marks, figures_qc=({}, {"summary": str(tmp_path / "qc_by_batch.tsv")})))
    assert (found.where, found.figure) == ("Batch P10", "a3.png")


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
    outputs["shown"] = outputs["top"]
    run = run_of(
        genes=({}, {"genes": str(tmp_path / "genes.parquet")}), markers_ttest=({"grouping": "leiden_0.6"}, outputs)
    )
    told = list(markers.told(run, "markers_ttest", "t-test", "t"))
    (found,) = [part for part in told if isinstance(part, Finding)]
    assert found.where == "Group 0 of leiden_0.6"
    assert "55 % of its first 20 markers" in found.said
    (table,) = [part for part in told if isinstance(part, Table)]
    assert "RPS0, RPS1, RPS2 (0)" in table.said


# Gene sets and cell types


def of_sets(folder, gene_sets, kept=8, **scores) -> list:
    """What `scores` tells of sets of the genes G0, G1 ..., of which the first are kept."""
    names = [f"G{i}" for i in range(12)]
    genes = pd.DataFrame({"gene_symbols": names, "gene_ids": names, "kept": np.arange(12) < kept}, index=names)
    write_table(genes, folder / "genes.parquet")
    config = {"gene_sets": gene_sets, "scores": scores}
    mark = Mark("heatmap.png", "figures_scores", {}, "", "", "lists", {"method": "ulm", "figure": "means by x"})
    return list(scores_stage.tells(run_of(config, [mark], genes=({}, {"genes": str(folder / "genes.parquet")}))))


def test_a_set_of_which_few_genes_are_in_the_cohort_is_found(tmp_path):
    gene_sets = {"whole": ["G0", "G1", "G2", "G3"], "half": ["G4", "G5", "G6", "G9", "G10", "G11"]}
    few = {"few": ["G1", "G2", "G3", "G9", "G10", "G11", "X1"], "left out": ["G0", "G11"]}
    found = [part for part in of_sets(tmp_path, gene_sets | few) if isinstance(part, Finding)]
    assert [(finding.where, finding.figure) for finding in found] == [
        ("Set few of lists", "heatmap.png"),
        ("Set left out of lists", "heatmap.png"),
    ]
    assert found[0].said == "the cohort has 3 of its 7 genes"
    assert found[1].said == "the cohort has 1 of its 2 genes, so it is left out"
    assert all(finding.beyond > 1 for finding in found)


def test_the_methods_of_scores_cite_each_method_once(tmp_path):
    (methods,) = of_sets(tmp_path, {"whole": ["G0", "G1", "G2"]}, methods=["ulm", "mlm", "aucell", "score_genes"])
    assert "1 set of `lists`" in methods.said
    assert methods.references == ["decoupler", "aucell", "seurat"]
    (text, references) = page.methods_of([methods])
    assert "ulm, mlm, aucell and score_genes" in text
    assert all("doi:" in reference for reference in references)  # each name is in references.yaml


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_many_cells_without_a_name_are_found(tmp_path, share):
    labels = np.where(np.arange(100) < 100 * share, "unassigned", "T")
    cells = [f"c{i}" for i in range(100)]
    write_table(pd.DataFrame({"sample": "P1"}, cells), tmp_path / "obs.parquet")
    table = pd.DataFrame({"annotation_label": labels}, cells)
    write_table(table, tmp_path / "annotation.parquet", "cohort", "obs")
    jobs = {name: ({}, {name: str(tmp_path / f"{name}.parquet")}) for name in ("obs", "annotation")}
    run = run_of({"annotation": {"reference": "model.h5"}}, features=jobs["obs"], annotation=jobs["annotation"])
    *found, methods = annotation.tells(run)
    assert [finding.said for finding in found] == (["30 % of the cells are unassigned"] if share > 0.2 else [])
    assert "a logistic regression given as `model.h5`" in methods.said


def of_names(folder, cells, label_key="CellType") -> tuple[list[Finding], str]:
    """What `figures_annotation` tells of a matrix of confusion: findings, and the sentence of the figure."""
    cells.rename_axis("CellType").reset_index().to_csv(folder / "annotation_label.tsv", sep="\t", index=False)
    mark = Mark("x.png", "figures_annotation", {}, "", "", "Cell types", {"figure": "confusion of annotation_label"})
    outputs = {"tables": [str(folder / "annotation_label.tsv")]}
    run = run_of({"label_key": label_key}, [mark], figures_annotation=({}, outputs))
    told = list(figures_annotation.tells(run))
    (numbers,) = [part for part in told if isinstance(part, Numbers)]
    assert numbers.figure == "x.png"
    return [part for part in told if isinstance(part, Finding)], numbers.said


def test_names_that_agree_with_the_labels_are_no_finding(tmp_path):
    cells = pd.DataFrame({"B": [90, 2], "T": [5, 190], "unassigned": [5, 8]}, ["B", "T"])
    found, said = of_names(tmp_path, cells)
    assert found == []
    assert said.startswith("98 % of 287 cells have, by `annotation_label`, the name of their `CellType`; 4.3 % of all")


def test_names_that_disagree_with_the_labels_are_found(tmp_path):
    cells = pd.DataFrame({"B": [90, 100], "T": [10, 100]}, ["B", "T"])
    (found,), _ = of_names(tmp_path, cells)
    assert "63 % of the assigned cells have the name of their `CellType`; the least so are T (50 %)" in found.said
    assert found.beyond > 1
    assert of_names(tmp_path, cells, "other")[0] == []  # a clustering is no label


def test_names_in_other_words_are_compared_by_most_cells(tmp_path):
    cells = pd.DataFrame({"B cells": [90, 3], "T cells": [10, 197]}, ["B lymphocyte", "T lymphocyte"])
    found, said = of_names(tmp_path, cells)
    assert found == []
    assert "96 % of 300 cells have, by `annotation_label`, the name of most cells of their `CellType`" in said


def test_the_sets_that_differ_most_are_named(tmp_path):
    means = {"set": ["B", "1"], "between_groups": [0.93, 0.2], "mean_x": [0.1, 3], "mean_y": [4.0, 1]}
    pd.DataFrame(means).to_csv(tmp_path / "means.tsv", sep="\t", index=False)
    outputs = {"means": str(tmp_path / "means.tsv"), "heatmap": "h.png", "umaps": ["u.png", "u.pdf"]}
    wildcards = {"collection": "lists", "scored": "ulm", "grouping": "type"}
    *numbers, table = figures_scores.tells(run_of(figures_scores=(wildcards, outputs)))
    assert [part.figure for part in numbers] == ["h.png", "u.png", "u.pdf"]
    said = "2 sets of `lists` by ulm, in 2 groups of `type`; B (highest in y; 93 % of its variance)"
    assert all(part.said.startswith(said) for part in numbers)
    assert table.columns["mean_x"].title == "x"


def test_the_sets_of_markers_are_named_and_long_tables_are_left_out(tmp_path, monkeypatch):
    rows = [
        ["x", "lists", "ora", "A", 2.0, 0.001, 0.01, 3, "G1,G2,G3"],
        ["y", "lists", "ora", "B", 1, 0.2, 0.3, 1, "G1"],
    ]
    pd.DataFrame(rows, columns=enrichment_stage.COLUMNS).to_csv(tmp_path / "e.tsv", sep="\t", index=False)
    run = run_of(enrichment=({"grouping": "type"}, {"enrichment": str(tmp_path / "e.tsv")}))
    table, methods = enrichment_stage.tells(run)
    said = "The markers of 1 of 2 groups of `type` are enriched in a set (adjusted p below 0.05): A in x."
    assert table.said == said
    assert methods.references == ["decoupler", "fdr"]
    monkeypatch.setattr(sets, "MOST_ROWS", 1)
    paragraph, _ = enrichment_stage.tells(run)
    assert paragraph.said.startswith(said)


def test_a_volcano_tells_how_many_genes_groups_express_more(tmp_path):
    table = pd.DataFrame({"group": ["x"] * 3 + ["y"] * 3, "logfoldchanges": [1, 2, -3, 1, 1, 1.0]})
    write_table(table.assign(pvals_adj=[0.01, 0.01, 0.01, 0.5, 0.01, 0.5]), tmp_path / "t-test.parquet")
    wildcards = {"grouping": "type", "method": "t-test"}
    markers_job = {"grouping": "type"}, {"ranking": str(tmp_path / "t-test.parquet")}
    run = run_of(markers_ttest=markers_job, figures_volcano=(wildcards, {"volcano": ["v.png"]}))
    (numbers,) = figures_volcano.tells(run)
    assert numbers.said.startswith("From 1 (y) to 2 (x) of 3 genes have an adjusted p-value below 0.05")


def test_the_sentence_of_a_test_names_what_groups_are_compared_with():
    config = {"markers": {"groupings": ["type"], "reference": {"type": ["B vs T"]}}}
    assert "against all other cells (of `type` B vs T), with" in markers.of_test(run_of(config), "Welch's t-test").said
    assert "against all other cells, with" in markers.of_test(run_of(), "Welch's t-test").said


def test_the_phases_of_the_cell_cycle_are_told(tmp_path):
    write_table(pd.DataFrame({"sample": ["P1"] * 4}), tmp_path / "obs.parquet")
    phases = pd.DataFrame({"phase": pd.Categorical(["G1", "G1", "S", "G1"])})
    write_table(phases, tmp_path / "cell_cycle.parquet", "cohort", "obs")
    jobs = {"features": ({}, {"obs": str(tmp_path / "obs.parquet")})}
    jobs["cell_cycle"] = {}, {"cell_cycle": str(tmp_path / "cell_cycle.parquet")}
    (methods,) = cell_cycle.tells(run_of(**jobs))
    assert "75 % of the cells are in G1 and 25 % of the cells are in S" in methods.said


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
    book.add_figures([mark], {mark.path: f"2 cells of `{EVIL}`"})
    book.add_pictures(1)
    (tmp_path / "t.tsv").write_text(f"{EVIL}\tp\n{EVIL}</script>\t0\n")
    book.add_table(Table(str(tmp_path / "t.tsv"), EVIL, EVIL, EVIL, "", {EVIL: Column(EVIL)}))
    methods, references = page.methods_of([Methods(EVIL, [EVIL])])
    text = page.rendered(
        **dict.fromkeys(("title", "version", "when", "where", "config"), EVIL),
        logo="",
        numbers=[{"value": EVIL, "name": EVIL, "remark": EVIL}],
        n_findings=7,
        findings=page.folded([Finding(EVIL, EVIL, EVIL, 2, EVIL, EVIL)] * 7),
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
    assert {name: column["text"] for name, column in sheet.columns.items()} == {"group": True}


def test_names_that_look_like_numbers_stay_names(tmp_path):
    data = b"batch\tcells\tgroup\tset\n007\t12\t1e5\t3\n"
    columns = {"batch": Column("the batch"), "cells": Column("cells"), "set": Column("set", text=True)}
    sheet = page.Book(tmp_path, {}).sheet(Table(str(tmp_path / "x.tsv"), "x", "", "", columns=columns), data)
    told = {name: (column["title"], column["text"]) for name, column in sheet.columns.items()}
    assert told == {
        "batch": ("the batch", True),
        "cells": ("cells", False),
        "group": ("group", True),
        "set": ("set", True),
    }


def test_different_names_have_different_addresses():
    names = ["CD4 T", "CD4/T", "CD4<T", "cd4-t", "é", "è", "P.1", "P_1", ".", "methods"]
    book = page.Book(Path(), {})
    addresses = [book.section(name).anchor for name in names] + [book.section("Markers", name).anchor for name in names]
    assert len(set(addresses)) == 2 * len(names)
    assert not {"methods", "zoom"} & set(addresses)
    assert book.section("Quality control").anchor == "quality-control"


def test_the_page_holds_the_figures_with_findings_first(tmp_path):
    samples = [f"S{i}" for i in range(page.EACH + 20)]
    marks = []
    for sample in samples:
        path = figure_file(tmp_path / "figures" / f"{sample}.png", (8, 8))
        marks.append(Mark(str(path), "r", {"sample": sample}, "", "1 Quality control", "Samples", {"sample": sample}))
    book = page.Book(tmp_path, {})
    book.add_figures(marks, {})
    book.add_pictures(2, [marks[40].path, marks[33].path])
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
