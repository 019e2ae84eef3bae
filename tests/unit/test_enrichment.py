"""Compare scores of gene sets with decoupler's stored results and with scanpy."""

from __future__ import annotations

import decoupler_reference as reference
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lib.inputs.genesets import Matched
from lib.methods import enrichment
from lib.methods.enrichment import Task, Weights, score_cells
from lib.run import device as devices
from lib.store.stream import InMemory

CPU = devices.resolve("cpu")
TESTED = ["ulm", "mlm", "zscore"]


def matched_of(weights, names=None) -> Matched:
    """Sets as `match` finds them, from genes x sets."""
    genes, columns = np.nonzero(weights)
    n = (np.asarray(weights) != 0).sum(0)
    names = names or [f"s{i}" for i in range(weights.shape[1])]
    return Matched(names, genes, columns, np.asarray(weights)[genes, columns], n, n)


@pytest.fixture(scope="module")
def stored():
    return np.load(reference.STORED)


def of_cells(counts, weights, method, order=None, max_cells=17):
    totals = counts.sum(1)
    task = Task("x", method, Weights.of(matched_of(weights), counts.shape[1], CPU), order)
    X = InMemory(sp.csr_matrix(counts.astype(np.uint16)), max_cells=max_cells)
    return score_cells(X, totals, 1e4, [task])[0]


def decouplers_order(n):
    """The permutation in which decoupler breaks ties."""
    return np.random.default_rng(seed=0).choice(np.arange(n), n, replace=False)


@pytest.mark.parametrize("method", ["ulm", "mlm", "zscore", "waggr", "aucell"])
def test_scores_of_cells_equal_decouplers(stored, method):
    """float32 of the same numbers; mlm's stored p-values are not adjusted, so that they are adjusted here."""
    counts, weights = reference.example()
    order = decouplers_order(counts.shape[1]) if method == "aucell" else None
    scores, padj = of_cells(counts, weights, method, order)
    np.testing.assert_allclose(scores, stored[method], rtol=1e-6, atol=1e-7)
    assert (padj is not None) == (method in TESTED)
    if method in TESTED:
        theirs = stored[f"{method}_padj"]
        theirs = enrichment.adjusted(theirs) if method == "mlm" else theirs
        np.testing.assert_allclose(padj, theirs, rtol=1e-5, atol=1e-8)


def test_formulas_to_1e_12(stored):
    """In float64 without the cast that the atlas gets."""
    counts, weights = reference.example()
    W = Weights.of(matched_of(weights), counts.shape[1], CPU)
    found = enrichment.Products.of(sp.csr_matrix(reference.profiles(counts)), W)
    for method, function in enrichment.LINEAR.items():
        np.testing.assert_allclose(function(found, W), stored[method], rtol=1e-10, atol=1e-12, err_msg=method)


def test_mlm_is_the_linear_model():
    import numpy.linalg as la

    counts, weights = reference.example()
    x = reference.profiles(counts)
    D = np.column_stack([np.ones(len(weights)), weights])
    b, sse, *_ = la.lstsq(D, x.T, rcond=None)
    t = b / np.sqrt(sse / (len(D) - D.shape[1]) * np.diag(la.inv(D.T @ D))[:, None])
    scores, _ = of_cells(counts, weights, "mlm")
    np.testing.assert_allclose(scores, t[1:].T, rtol=1e-5, atol=1e-6)


def test_aucell_by_its_definition():
    """Also of cells with fewer genes than are looked at, and of the empty cell."""
    rng = np.random.default_rng(3)
    counts = rng.poisson(0.02, (30, 400)) * rng.integers(1, 4, (30, 400))
    counts[0] = 0
    counts[1, :200] += 1
    weights = (rng.random((400, 5)) < 0.1).astype(float)
    order = rng.permutation(400)
    n_up, expected = 20, np.zeros((30, 5))
    for i, row in enumerate(counts):
        ranked = order[np.argsort(-row[order], kind="stable")]
        rank = np.empty(400, int)
        rank[ranked] = np.arange(1, 401)
        for j in range(5):
            genes = np.flatnonzero(weights[:, j])
            hits = np.maximum(n_up - rank[genes], 0).sum()
            expected[i, j] = hits / sum(n_up - k for k in range(1, min(len(genes), n_up - 1) + 1))
    totals = np.maximum(counts.sum(1), 1)
    task = Task("x", "aucell", Weights.of(matched_of(weights), 400, CPU), order)
    ((scores, _),) = score_cells(InMemory(sp.csr_matrix(counts.astype(np.uint16))), totals, 1e4, [task])
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert 0 < scores.max() <= 1


def test_chunks_do_not_change_scores():
    counts, weights = reference.example()
    order = np.random.default_rng(0).permutation(counts.shape[1])
    for method in ("mlm", "aucell"):
        one, other = (of_cells(counts, weights, method, order if method == "aucell" else None, n)[0] for n in (3, 40))
        np.testing.assert_allclose(one, other, rtol=1e-6)


def ranked_table():
    counts, _ = reference.example()
    genes = np.array([f"g{i:03d}" for i in range(counts.shape[1])], object)
    parts = []
    for i, row in enumerate(reference.table(counts)):
        order = np.argsort(-row)
        part = {"group": f"c{i}", "rank": np.arange(1, len(row) + 1), "names": genes[order], "scores": row[order]}
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True), pd.Index(genes)


@pytest.mark.parametrize("method", ["ora", "gsea"])
def test_enrichment_of_tables_equals_decouplers(stored, method):
    """gsea with decoupler's random sets; to 1e-7 of the sums."""
    _, weights = reference.example()
    table, genes = ranked_table()
    moved = enrichment.permutations(len(genes)) if method == "gsea" else None
    found = enrichment.of_table(method, table, genes, matched_of(weights), moved)
    ours = {name: found.pivot(index="group", columns="source", values=name) for name in ("score", "padj")}
    cells = table["group"].unique()
    np.testing.assert_allclose(ours["score"].loc[cells], stored[method], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ours["padj"].loc[cells], stored[f"{method}_padj"], rtol=1e-6, atol=1e-9)


def test_fisher_is_scipys():
    from scipy.stats import fisher_exact

    for k, m, n, total in [(3, 8, 20, 100), (0, 5, 10, 60), (5, 5, 10, 60), (22, 30, 50, 60), (0, 1, 2, 5)]:
        theirs = fisher_exact([[k, m - k], [n - k, total - m - n + k]]).pvalue
        assert enrichment.fisher(k, m, n, total) == pytest.approx(theirs, rel=1e-9)


def test_adjusted_is_scipys():
    from scipy.stats import false_discovery_control

    p = np.random.default_rng(0).random((20, 7)) ** 3
    np.testing.assert_allclose(enrichment.adjusted(p), false_discovery_control(p, axis=1), rtol=1e-12)


def test_sets_that_depend_on_each_other():
    A = np.zeros((50, 5))
    A[:10, 0] = A[5:20, 1] = A[:10, 2] = 1
    A[:, 3] = A[:, 0] + 2 * A[:, 1]
    A[20:25, 4] = 1
    assert enrichment.independent(matched_of(A), 50).tolist() == [True, True, False, False, True]
    everything = np.ones((4, 1))  # as the constant
    assert enrichment.independent(matched_of(everything), 4).tolist() == [False]
    assert enrichment.independent(matched_of(everything), 5).tolist() == [True]


def scored(adata, lists, seed=0, ctrl_size=50):
    """score_genes by our functions on raw counts."""
    X = adata.X.astype(np.uint16)
    totals = np.asarray(X.sum(1)).ravel()
    stream = InMemory(X)
    means = enrichment.gene_means(stream, totals, 1e4)
    weights = np.zeros((adata.n_vars, len(lists)))
    for i, genes in enumerate(lists.values()):
        weights[adata.var_names.isin(genes), i] = 1
    contrast, lacking = enrichment.contrasts(matched_of(weights, list(lists)), means, seed, ctrl_size)
    assert not lacking
    task = Task("x", "score_genes", Weights.of(contrast, adata.n_vars, CPU))
    return score_cells(stream, totals, 1e4, [task])[0][0]


@pytest.mark.parametrize("seed", [0, 7])
def test_score_genes_of_pbmc_is_scanpys(pbmc3k, seed):
    """The same control genes, hence the same scores, to float32 of scanpy's normalisation."""
    import scanpy as sc

    adata = pbmc3k.copy()
    sc.pp.filter_genes(adata, min_counts=3)
    lists = {"B": ["MS4A1", "CD79A", "CD79B", "CD74"], "NK": ["GNLY", "NKG7", "GZMB"], "mono": ["LYZ", "CD14", "CST3"]}
    ours = scored(adata, lists, seed)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    for i, (name, genes) in enumerate(lists.items()):
        sc.tl.score_genes(adata, genes, score_name=name, random_state=seed)
        np.testing.assert_allclose(ours[:, i], adata.obs[name], rtol=1e-4, atol=2e-5)


def test_groups_in_which_no_set_was_tested_are_told(tmp_path, job, notices):
    """A set of 20 genes: enriched where 10 of them were tested, left out where 2 were."""
    import de_enrichment
    from lib.store.files import write_table

    genes = [f"G{i}" for i in range(100)]
    write_table(
        pd.DataFrame({"gene_symbols": genes, "gene_ids": genes, "kept": True}, genes), tmp_path / "genes.parquet"
    )
    tested = {"T": genes[:60], "B": [*genes[8:10], *genes[20:60]]}
    parts = [
        pd.DataFrame(
            {"group": group, "rank": range(1, len(of) + 1), "names": of, "scores": np.linspace(5, -5, len(of))}
        )
        for group, of in tested.items()
    ]
    write_table(pd.concat(parts, ignore_index=True), tmp_path / "de.parquet", slot="uns/de/x", uns={})
    params = {
        "gene_sets": {"first": [*genes[:10], *(f"U{i}" for i in range(90))]},
        "scores": {"marker_methods": ["ora", "gsea"], "tmin": 5},
    }
    given = job({"enrichment": "e.tsv"}, params, de=tmp_path / "de.parquet", genes=tmp_path / "genes.parquet")
    de_enrichment.main(given)
    found = pd.read_csv(tmp_path / "e.tsv", sep="\t")
    assert set(found["group"]) == {"T"}
    assert found.set_index(["method", "direction"])["pval"]["ora", "up"] < 0.01
    assert "no set has 5 of the genes that were tested in B" in "".join(notices)
