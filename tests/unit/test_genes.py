"""The cohort's genes, its stream over samples, and the features."""

from __future__ import annotations

import genes as genes_stage
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from features import write_features
from genes import gene_sums, gene_universe
from lib.run.errors import UserError
from lib.store.cohort import Cohort, kept_cells
from lib.store.counts import Counts, CountsWriter
from lib.store.files import read_table, write_table
from lib.store.stream import InMemory

A, B = np.array(["G1", "G2", "G3", "G4"]), np.array(["G4", "G2", "G9", "G1"])


def test_universe_keeps_the_order_of_first_appearance():
    assert gene_universe([A, B], ["a", "b"], "inner", 0.5).tolist() == ["G1", "G2", "G4"]
    assert gene_universe([A, B], ["a", "b"], "outer", 0.5).tolist() == ["G1", "G2", "G3", "G4", "G9"]


def test_mixed_references_are_refused_by_name():
    keys = [A, A, np.array(["ENSG1", "ENSG2", "G4", "ENSG4"])]
    with pytest.raises(UserError, match="share only 1 genes") as error:
        gene_universe(keys, ["a", "b", "odd"], "inner", 0.5)
    message = str(error.value)
    assert "Sample odd (genes like ENSG1, ENSG2, G4)" in message
    assert "ingest: gene_key" in message
    assert len(gene_universe(keys, ["a", "b", "odd"], "inner", 0.25)) == 1


def store(path, X, genes, sample, kept, symbols=None, ids=None):
    obs = pd.DataFrame({"sample": sample}, index=[f"c{i}-{sample}" for i in range(len(kept))])
    writer = CountsWriter(path / f"{sample}.h5ad", len(genes))
    writer.append(sp.csr_matrix(X))
    symbols, ids = (genes if names is None else names for names in (symbols, ids))
    writer.close(obs, pd.DataFrame({"gene_symbols": symbols, "gene_ids": ids}, index=genes))
    write_table(obs.assign(kept=kept, reason=np.where(kept, "", "min_genes")), path / f"{sample}.parquet")


@pytest.fixture
def two_samples(tmp_path):
    """Two samples with different genes, their kept cells, and the kept cells x shared genes as one dense matrix."""
    rng = np.random.default_rng(0)
    X, Y = rng.poisson(1, (30, 4)).astype(np.uint16), rng.poisson(1, (20, 4)).astype(np.uint16)
    keep_X, keep_Y = rng.random(30) < 0.6, rng.random(20) < 0.6
    store(tmp_path, X, A, "a", keep_X)
    store(tmp_path, Y, B, "b", keep_Y)
    shared = gene_universe([A, B], ["a", "b"], "inner", 0.5)
    genes = pd.DataFrame({"gene_symbols": shared, "gene_ids": shared, "kept": True}, index=shared)
    write_table(genes, tmp_path / "genes.parquet")
    expected = np.vstack([X[keep_X][:, [0, 1, 3]], Y[keep_Y][:, [3, 1, 0]]])
    return tmp_path, expected


def cohort(path, order="ab", **kwargs):
    stores, cells = ([path / f"{s}.{ending}" for s in order] for ending in ("h5ad", "parquet"))
    return Cohort(stores, cells, path / "genes.parquet", "gene_symbols", **kwargs)


def test_cohort_is_the_kept_cells_by_the_shared_genes(two_samples):
    path, expected = two_samples
    whole = cohort(path)
    assert (whole.n_obs, whole.n_vars) == expected.shape
    for max_cells in (None, 3):
        chunks = list(whole.chunks(max_cells))
        assert [c.start for c in chunks] == np.cumsum([0, *[c.X.shape[0] for c in chunks]])[:-1].tolist()
        assert all(c.X.has_sorted_indices for c in chunks)
        assert (np.vstack([c.X.toarray() for c in chunks]) == expected).all()
    assert list(whole.obs().columns) == ["sample"]
    assert len(whole.obs()) == len(expected)


def test_stores_of_the_same_genes_have_one_mark(two_samples):
    path, expected = two_samples
    store(path, np.ones((2, 4), np.uint16), A, "c", [True, True])
    marks = [Counts(path / f"{sample}.h5ad").mark for sample in "abc"]
    assert marks[0] == marks[2] != marks[1]
    columns = [store.genes for store in cohort(path, "abc").stores]
    assert columns[0] is columns[2]
    for sample in "abc":  # as stores of earlier versions
        with h5py.File(path / f"{sample}.h5ad", "a") as file:
            del file.attrs["somersault-genes"]
    assert len({Counts(path / f"{sample}.h5ad").mark for sample in "abc"}) == 3
    got = np.vstack([chunk.X.toarray() for chunk in cohort(path, "abc").chunks()])
    assert (got == np.vstack([expected, np.ones((2, 3))])).all()


def test_order_of_the_samples_changes_the_order_of_the_cells_alone(two_samples):
    path, _ = two_samples
    sums, n_cells = gene_sums(cohort(path))
    swapped = gene_sums(cohort(path, "ba"))
    assert (sums == swapped[0]).all()
    assert (n_cells == swapped[1]).all()


def test_sums_equal_the_matrix(two_samples):
    path, expected = two_samples
    sums, n_cells = gene_sums(cohort(path))
    assert (sums == expected.sum(0)).all()
    assert (n_cells == (expected > 0).sum(0)).all()


def test_features_hold_selected_genes_and_every_genes_total(tmp_path):
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(0.7, (50, 40)).astype(np.uint16))
    selected = rng.random(40) < 0.3
    writer = CountsWriter(tmp_path / "features.h5ad", int(selected.sum()))
    totals = write_features(InMemory(X, max_cells=8), selected, writer)
    writer.close(pd.DataFrame(index=map(str, range(50))), pd.DataFrame(index=map(str, range(selected.sum()))))
    assert (totals == np.asarray(X.sum(1)).ravel()).all()
    (chunk,) = Counts(tmp_path / "features.h5ad").chunks()
    assert (chunk.X.toarray() == X[:, selected].toarray()).all()


def test_outer_join_counts_absent_genes_as_zero(two_samples):
    path, _ = two_samples
    union = gene_universe([A, B], ["a", "b"], "outer", 0.5)
    write_table(
        pd.DataFrame({"gene_symbols": union, "gene_ids": union, "kept": True}, index=union), path / "genes.parquet"
    )
    outer = cohort(path)
    X = np.vstack([chunk.X.toarray() for chunk in outer.chunks()])
    of_a = outer.obs(["sample"])["sample"].to_numpy() == "a"
    columns = pd.Index(union)
    assert (X[of_a][:, columns.get_indexer(["G9"])] == 0).all()
    assert (X[~of_a][:, columns.get_indexer(["G3"])] == 0).all()
    assert X[~of_a][:, columns.get_indexer(["G9"])].any()


def test_a_column_that_is_not_there_is_named(two_samples):
    with pytest.raises(UserError, match=r"a\.parquet has no column donor; there are sample, kept, reason"):
        cohort(two_samples[0]).obs(["donor"])


SETTINGS = {"join": "inner", "min_shared": 0.5, "min_counts": 1, "min_cells": 0}


def run_stage(job, folder, families, **names_of_genes):
    """`genes` on samples of 4 cells; the first cell of each is not kept, and no cell of the sample `gone`."""
    files = {"counts": [], "cells": []}
    for sample, names in names_of_genes.items():
        kept = np.array([False, True, True, True]) & (sample != "gone")
        store(folder, np.ones((4, len(names)), np.uint16), np.array(names), sample, kept)
        table = read_table(folder / f"{sample}.parquet")
        if any(name.startswith("MT-") for name in names):
            table["pct_counts_MT"] = 5.0
        write_table(table, folder / f"{sample}.parquet")
        files["counts"].append(folder / f"{sample}.h5ad")
        files["cells"].append(folder / f"{sample}.parquet")
    params = {"samples": list(names_of_genes), "batch_key": "sample", "genes": SETTINGS, "gene_key": "gene_symbols"}
    genes_stage.main(job({"genes": "genes.parquet"}, params | {"gene_families": families}, **files))
    return read_table(folder / "genes.parquet")


def test_families_that_samples_lack_are_told_once(tmp_path, job, notices):
    families = {"MT": ["MT-"], "HB": ["HB"]}
    table = run_stage(job, tmp_path, families, a=["MT-1", "X", "Y"], b=["X", "Y", "Z"], c=["X", "Y"])
    assert table.index.tolist() == ["X", "Y"]
    assert "HB" not in table
    whole, some = sorted(notices, key=lambda text: "samples" in text)
    assert whole.startswith("gene family HB has no gene in this cohort, by symbol, by Ensembl id or by a column of")
    assert some == "gene family MT has no gene in 2 of 3 samples (b, c): their cells pass its limits unjudged"


def test_a_sample_without_a_cell_left_has_no_say(tmp_path, job):
    table = run_stage(job, tmp_path, {}, a=["X", "Y"], gone=["Q"], b=["Y", "X"])
    assert table.index.tolist() == ["X", "Y"]
    assert table["total_counts"].tolist() == [6, 6]
    assert table["n_samples"].tolist() == [2, 2]
    whole = Cohort(
        *[[tmp_path / f"{s}.{end}" for s in ("gone", "a", "b")] for end in ("h5ad", "parquet")],
        tmp_path / "genes.parquet",
        "gene_symbols",
    )
    assert np.vstack([chunk.X.toarray() for chunk in whole.chunks()]).tolist() == [[1, 1]] * 6
    assert set(whole.obs()["sample"]) == {"a", "b"}


def test_too_few_cells_are_refused_with_where_they_went(tmp_path, job):
    with pytest.raises(UserError, match=r"^none of the cohort's 4 cells are left.*gone: 0 of 4 cells kept, min_genes"):
        run_stage(job, tmp_path, {}, gone=["X", "Y"])


def test_an_empty_samples_columns_have_no_say(tmp_path):
    kept = pd.DataFrame({"depth": [1, 2], "kept": True, "reason": ""}, index=["x", "y"])
    write_table(kept, tmp_path / "a.parquet")
    write_table(kept.assign(depth=["?", "!"], kept=False), tmp_path / "b.parquet")
    joined = kept_cells([tmp_path / "b.parquet", tmp_path / "a.parquet"])
    assert joined["depth"].dtype == np.int64
    assert joined.index.tolist() == ["x", "y"]


def test_ids_decide_where_samples_have_one_symbol_for_several_genes(tmp_path, job, notices):
    """TWIN is E1 and E2 in a, only E2 in b; in c, which has another annotation, X is E9."""
    kept = np.ones(3, bool)
    of_a = {"symbols": np.array(["TWIN", "TWIN", "X"]), "ids": np.array(["E1", "E2", "E3"])}
    X = np.array([[1, 10, 100]] * 3)
    store(tmp_path, X, np.array(["TWIN-E1", "TWIN-E2", "X"]), "a", kept, **of_a)
    store(tmp_path, X[:, 1:], np.array(["TWIN", "X"]), "b", kept, ids=np.array(["E2", "E3"]))
    store(tmp_path, X[:, :0:-1], np.array(["X", "TWIN"]), "c", kept, ids=np.array(["E9", "E2"]))
    files = {kind: [tmp_path / f"{s}.{end}" for s in "abc"] for kind, end in (("counts", "h5ad"), ("cells", "parquet"))}
    params = {"samples": ["a", "b", "c"], "batch_key": "sample", "genes": SETTINGS, "gene_key": "gene_symbols"}
    genes_stage.main(job({"genes": "genes.parquet"}, params | {"gene_families": {}}, **files))
    table = read_table(tmp_path / "genes.parquet")
    assert table["total_counts"].to_dict() == {"TWIN-E2": 90, "X": 900}
    assert table["gene_ids"].to_dict() == {"TWIN-E2": "E2", "X": "E3"}
    assert notices[-1].startswith("1 genes are joined by their symbols although their ids differ between samples (X)")
    whole = Cohort(files["counts"], files["cells"], tmp_path / "genes.parquet", "gene_symbols")
    assert np.vstack([chunk.X.toarray() for chunk in whole.chunks()]).tolist() == [[10, 100]] * 9


def test_names_of_many_samples_are_held_once():
    once, names = genes_stage.sharing(), ["CD3D", "MS4A1", "LYZ"]

    def read(names):  # new strings, as from a file
        return np.array([name.encode().decode() for name in names], dtype=object)

    first = once(read(names))
    assert first.tolist() == names
    assert once(read(names)) is first
    other = once(read(["MS4A1", "GNLY"]))
    assert other[0] is first[1]
    assert once(read([])).tolist() == []
