"""The cohort's genes, its stream over samples, and the features."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from features import write_features
from genes import gene_sums, gene_universe
from lib.cohort import Cohort
from lib.counts import Counts, CountsWriter, InMemory
from lib.errors import UserError
from lib.files import write_table

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


def store(path, X, genes, sample, kept):
    obs = pd.DataFrame({"sample": sample}, index=[f"c{i}-{sample}" for i in range(len(kept))])
    writer = CountsWriter(path / f"{sample}.h5ad", len(genes))
    writer.append(sp.csr_matrix(X))
    writer.close(obs, pd.DataFrame({"gene_symbols": genes, "gene_ids": genes}, index=genes))
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
    write_table(pd.DataFrame({"gene_symbols": union, "kept": True}, index=union), path / "genes.parquet")
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
