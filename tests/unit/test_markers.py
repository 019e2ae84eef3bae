"""Compare markers with scanpy.tl.rank_genes_groups and scikit-learn, on simulated counts and on PBMC."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import markers_logreg
import markers_ttest
import markers_wilcoxon
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from atlases import markers_output
from lib.methods import logreg
from lib.methods.markers import (
    Comparisons,
    Groups,
    group_sums,
    hidden_genes,
    rank_genes,
    read_groups,
    specific_genes,
    write_markers,
)
from lib.methods.scaling import Scaling, log_normalize, regressors
from lib.run import device as devices
from lib.run.errors import UserError
from lib.store.counts import CountsWriter
from lib.store.files import read_table, write_arrays, write_table
from lib.store.stream import InMemory
from tables import read_markers

CPU = devices.resolve("cpu")


def simulated(n_obs=400, n_vars=120, n_groups=4, seed=0):
    """Counts in which group g over-expresses genes 5 g to 5 g + 5; some genes are empty. Counts, labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_obs) % n_groups
    means = np.tile(rng.gamma(0.5, 1.0, n_vars), (n_groups, 1))
    means[:, -3:] = 0
    for group in range(n_groups):
        means[group, 5 * group : 5 * group + 5] += 3
    counts = rng.poisson(means[labels] * rng.lognormal(0, 0.4, n_obs)[:, None])
    return sp.csr_matrix(counts.astype(np.uint16)), pd.Series(labels, name="type").map("type {}".format)


def in_scanpy(X, labels, scanpy_method, **options):
    """scanpy's table for the same cells, log-normalised to 10,000 counts."""
    import anndata as ad
    import scanpy as sc

    keep = labels.notna().to_numpy()
    adata = ad.AnnData(X[keep].astype(np.float64), obs=pd.DataFrame({"type": labels[keep].to_numpy()}))
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"gene{i}" for i in range(adata.n_vars)]
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    if scanpy_method == "wilcoxon":  # ties are those of float32 in both
        adata.X = adata.X.astype(np.float32)
    adata.obs["type"] = adata.obs["type"].astype("category")
    sc.tl.rank_genes_groups(adata, "type", method=scanpy_method, pts=True, **options)
    return sc.get.rank_genes_groups_df(adata, group=None)


def t_test(X, labels, max_cells=97, reference="rest"):
    groups = Groups.of(labels)
    totals = np.asarray(X.sum(1)).ravel()
    sums = group_sums(InMemory(X, max_cells=max_cells), groups.codes, len(groups.names), totals, 1e4)
    names = np.array([f"gene{i}" for i in range(X.shape[1])], object)
    compared = Comparisons.of(groups.names, "type", reference)
    return rank_genes(compared.names, markers_ttest.welch(sums, groups.sizes, compared), names, names)


def rank_sum_test(X, labels, reference="rest", names=None, most=1 << 40):
    """The table of Wilcoxon's test, by blocks of genes with at most `most` non-zeros."""
    groups, totals = Groups.of(labels), np.asarray(X.sum(1)).ravel()
    compared = Comparisons.of(groups.names, "type", reference)
    X, found = sp.csr_matrix(X), []
    for some in markers_wilcoxon.blocks(np.diff(X.tocsc().indptr), most):
        counts = InMemory(X[:, some].tocsr(), max_cells=97)
        keys = markers_wilcoxon.sorted_nonzeros(counts, groups.codes, totals, 1e4, X.nnz)
        found.append(markers_wilcoxon.tests_of_block(keys, counts.n_vars, groups.sizes, compared, CPU))
    tests = markers_wilcoxon.wilcoxon(markers_wilcoxon.joined(found), groups.sizes, compared)
    names = np.array([f"gene{i}" for i in range(X.shape[1])], object) if names is None else names
    return rank_genes(compared.names, tests, names, names)


def tables_agree(ours, theirs, tolerance=1e-5):
    """The same statistics of all genes; log p-values to 1e-6 of their size, and scores of float32 to `tolerance`."""
    ours, theirs = (table.set_index(["group", "names"]).sort_index() for table in (ours, theirs))
    assert set(ours.index) == set(theirs.index)
    for name in ("scores", "logfoldchanges", "pct_nz_group", "pct_nz_reference"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)
    for name in ("pvals", "pvals_adj"):
        a, b = (np.log10(np.maximum(table[name], 1e-300)) for table in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=10 * tolerance, atol=tolerance, err_msg=name)


def fit(Z, y, n_groups, **options):
    rows = [(Z[at], y[at]) for at in np.array_split(np.arange(len(y)), 3)]
    return logreg.logistic_regression(rows, len(y), Z.shape[1], n_groups, CPU, **options)[0]


@pytest.mark.parametrize("n_groups", [2, 5])
def test_t_test_equals_scanpys(n_groups):
    """Scores and p-values within 1e-5 of scanpy's, whose scores are float32 and whose means use other sums."""
    X, labels = simulated(n_groups=n_groups)
    ours = t_test(X, labels).set_index(["group", "names"]).sort_index()
    theirs = in_scanpy(X, labels, "t-test").set_index(["group", "names"]).sort_index()
    assert len(ours) == n_groups * X.shape[1]
    for name in ("scores", "logfoldchanges"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    for name in ("pvals", "pvals_adj"):
        np.testing.assert_allclose(np.log10(ours[name]), np.log10(theirs[name]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reference", ["rest", "type 1"])
@pytest.mark.parametrize("method", ["t-test", "wilcoxon"])
def test_statistics_equal_scanpys(method, reference):
    """All columns of the table within 1e-5: scanpy's scores are float32."""
    X, labels = simulated()
    if method == "t-test":
        ours, options = t_test(X, labels, reference=reference), {}
    else:
        ours, options = rank_sum_test(X, labels, reference, most=3000), {"tie_correct": True}
    theirs = in_scanpy(X, labels, method, reference=reference, **options)
    if reference != "rest":  # scanpy has no pct_nz_reference of a group, but that group's pct_nz_group
        of = in_scanpy(X, labels, method, reference="type 0").query("group == @reference").set_index("names")
        theirs["pct_nz_reference"] = of["pct_nz_group"].loc[theirs["names"]].to_numpy()
    tables_agree(ours, theirs)


def test_pairs_of_groups():
    """Each pair as scanpy with the second as reference, ranked among these two groups alone."""
    X, labels = simulated()
    pairs = ["type 0 vs type 2", "type 0 vs type 3", "type 3 vs type 0"]
    for method, test in (("t-test", t_test), ("wilcoxon", rank_sum_test)):
        ours = test(X, labels, reference=pairs)
        assert list(ours["group"].unique()) == pairs
        for one, other in (pair.split(" vs ") for pair in pairs):
            options = {"tie_correct": True} if method == "wilcoxon" else {}
            theirs = in_scanpy(X, labels, method, reference=other, groups=[one, other], **options)
            a = ours[ours["group"] == f"{one} vs {other}"].set_index("names")["scores"]
            b = theirs.set_index("names")["scores"].loc[a.index]
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_references_that_are_not_there():
    with pytest.raises(UserError, match="type has no group 'typo' of at least 2 cells; there are a, b"):
        Comparisons.of(["a", "b"], "type", "typo")
    assert Comparisons.of(["a", "b", "c"], "type", "b").names == ["a", "c"]
    two = Comparisons.of(["a", "b", "a vs b", "c"], "type", ["a vs b vs c", "b vs a"])
    assert two.members.argmax(1).tolist() == [2, 1]
    assert two.references.argmax(1).tolist() == [3, 0]


def test_rank_sums_of_ties_and_of_genes_that_are_equal_everywhere():
    """As SciPy's ranks: a gene without counts, one that is equal in all cells, one that only one cell has."""
    from scipy.stats import mannwhitneyu

    X = sp.csr_matrix(np.array([[0, 2, 0, 3, 1]] * 4 + [[0, 2, 0, 1, 3]] * 3 + [[0, 1, 1, 2, 2]] * 2, np.uint16))
    labels = pd.Series(list("aabbbaaab"), name="type")
    table = rank_sum_test(X, labels).query("group == 'a'").set_index("names")
    assert table.loc["gene0", ["scores", "pvals", "pvals_adj"]].tolist() == [0, 1, 1]
    values = log_normalize(X, np.asarray(X.sum(1)).ravel(), 1e4, CPU).toarray().astype(np.float64)
    mine = (labels == "a").to_numpy()
    for gene in range(1, 5):
        theirs = mannwhitneyu(values[mine, gene], values[~mine, gene], method="asymptotic", use_continuity=False)
        assert table.loc[f"gene{gene}", "pvals"] == pytest.approx(theirs.pvalue, rel=1e-9)


def test_blocks_of_genes():
    cut = list(markers_wilcoxon.blocks(np.array([3, 0, 2, 9, 1, 1]), 5))
    assert cut == [slice(0, 3), slice(3, 4), slice(4, 6)]
    assert list(markers_wilcoxon.blocks(np.zeros(0, int), 5)) == []
    many = list(markers_wilcoxon.blocks(np.zeros(150_000, int), 5))
    assert [s.stop - s.start for s in many] == [65_535, 65_535, 18_930]


def test_hidden_families_and_panels(tmp_path):
    """Figures leave out hidden genes, tables do not; a gene is in the panel of the group it is most specific to."""
    genes = ["MT-CO1", "RPS3", "HLA-A", "A", "B", "C"]
    table = pd.DataFrame({"gene_symbols": genes, "gene_ids": genes, "kept": True}, index=genes)
    hidden = hidden_genes({"MT": ["MT-"], "RIBO": ["RPS", "RPL"], "HLA": ["HLA-"]}, table)
    assert list(hidden) == ["MT-CO1", "RPS3", "HLA-A"]
    found = {"scores": np.array([[9.0, 8, 7, 6, 5, -1], [9, 8, 7, 6, 5, 4]])}
    found |= {"pct_nz_group": np.array([[1, 1, 1, 0.9, 0.9, 0], [1, 1, 1, 0.9, 0.2, 0.3]])}
    found |= {"pct_nz_reference": np.array([[1, 1, 1, 0.8, 0.1, 0], [1, 1, 1, 0.2, 0.1, 0.1]])}
    ranked = rank_genes(["x", "y"], found, np.array(genes, object), np.array(genes, object))
    output = markers_output(tmp_path)
    write_markers(ranked, output, 2, "type", "t-test", hidden=hidden)
    read = {name: pd.read_csv(getattr(output, name), sep="\t") for name in ("top", "shown", "panel")}
    assert read["top"]["names"].tolist() == ["MT-CO1", "RPS3", "MT-CO1", "RPS3"]
    assert read["shown"]["names"].tolist() == ["A", "B", "A", "B"]
    assert read["shown"]["rank"].tolist() == [1, 2, 1, 2]
    assert read["panel"][["group", "names"]].to_numpy().tolist() == [["x", "B"], ["y", "A"], ["y", "C"]]
    assert len(specific_genes(ranked[:0], 3)) == 0


@pytest.mark.parametrize("reference", ["rest", "type 2"])
def test_wilcoxon_stage(artifacts, tmp_path, reference, monkeypatch):
    X, obs, _ = artifacts
    monkeypatch.setitem(markers_wilcoxon.BLOCK, "cpu", 5000)
    monkeypatch.setattr(markers_wilcoxon, "PART", 1000)
    table, top = run(markers_wilcoxon.main, tmp_path, "type", reference=reference)
    expected = rank_sum_test(X, obs["type"], reference)
    expected["gene_symbols"] = expected["names"].str.upper()
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=1e-6)
    assert len(top) == 5 * (4 if reference == "rest" else 3)


@pytest.mark.slow
def test_wilcoxon_of_pbmc(pbmc3k):
    """All genes of PBMC as scanpy's, to 1e-5, on values that were normalised in float64 and then rounded.

    Normalised in float32, as scanpy does, some values that are equal differ: then scores differ by up to 4e-4.
    """
    import scanpy as sc

    adata = pbmc3k[pbmc3k.obs["cell_type"].notna()].copy()
    names = adata.var_names.to_numpy()
    ours = rank_sum_test(adata.X.astype(np.uint16), adata.obs["cell_type"].rename("type"), names=names, most=1_000_000)
    adata.X = adata.X.astype(np.float64)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.X = adata.X.astype(np.float32)
    sc.tl.rank_genes_groups(adata, "cell_type", method="wilcoxon", tie_correct=True, pts=True)
    tables_agree(ours, sc.get.rank_genes_groups_df(adata, group=None))


def test_unexpressed_and_exclusive_genes():
    """A gene without expression has score 0 and p-value 1; a gene with equal values in a group has a finite score."""
    X = sp.csr_matrix(np.array([[0, 5, 5], [0, 5, 5], [0, 0, 10], [0, 0, 10], [0, 1, 9]], np.uint16))
    table = t_test(X, pd.Series(list("aabbb"), name="type")).query("group == 'a'").set_index("names")
    assert table.loc["gene0", "scores"] == 0
    assert table.loc["gene0", "pvals"] == table.loc["gene0", "pvals_adj"] == 1
    assert np.isfinite(table["scores"]).all()
    assert table["rank"].idxmin() == "gene1"


def test_t_test_does_not_depend_on_the_chunks():
    X, labels = simulated()
    pd.testing.assert_frame_equal(t_test(X, labels, 400), t_test(X, labels, 7), rtol=1e-6)


def test_cells_without_a_label_and_tiny_groups_are_left_out(caplog):
    """As scanpy on only the other cells; the log names those left out. Tolerance: float32 scores."""
    X, labels = simulated()
    labels[:7] = np.nan
    labels[7] = "alone"
    with caplog.at_level(logging.INFO):
        ours = t_test(X, labels)
    assert "7 of 400 cells without a label" in caplog.text
    assert "fewer than 2 cells: alone" in caplog.text
    theirs = in_scanpy(X, labels.where(labels != "alone"), "t-test")
    ours, theirs = (t.set_index(["group", "names"]).sort_index()["scores"] for t in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_one_group_gives_an_empty_table(tmp_path):
    X, labels = simulated()
    labels[:] = "all alike"
    table = t_test(X, labels)
    write_markers(table, markers_output(tmp_path), 20, "type", "t-test")
    assert len(read_markers(tmp_path / "m.tsv.gz")) == 0
    assert (tmp_path / "m.top.tsv").read_text().startswith("group\trank\tnames\tgene_symbols\tscores")


def test_order_of_categories_is_kept():
    labels = pd.Series(pd.Categorical(list("bbaacc"), categories=["c", "unused", "a", "b"]), name="type")
    groups = Groups.of(labels)
    assert groups.names == ["c", "a", "b"]
    assert groups.codes.tolist() == [2, 2, 1, 1, 0, 0]
    assert Groups.of(pd.Series([10, 10, 9, 9], name="n")).names == ["9", "10"]


def test_groupings_that_do_not_exist(tmp_path):
    write_table(pd.DataFrame({"type": ["a"]}), tmp_path / "obs.parquet")
    with pytest.raises(UserError, match="'typo' is neither a clustering nor an obs column; there are type"):
        read_groups("typo", tmp_path / "obs.parquet", [])


def test_tables_read_back_equal_and_have_equal_bytes(tmp_path):
    """Also with names that a careless reader would take for missing values or separators."""
    names = np.array(["NA", "nan", "A-1", "", 'a "b"'], object)
    rng = np.random.default_rng(0)
    statistics = {"scores": rng.normal(size=(2, 5)), "pvals": 10.0 ** -rng.integers(0, 300, (2, 5))}
    statistics |= dict.fromkeys(["pct_nz_group", "pct_nz_reference"], rng.random((2, 5)))
    for groups in (["0", "1"], ['CD4 "naive"', "NA"]):
        table = rank_genes(groups, statistics, names, names)
        files = [markers_output(tmp_path / name) for name in "ab"]
        for output in files:
            write_markers(table, output, 2, "type", "t-test")
        assert files[0].markers.read_bytes() == files[1].markers.read_bytes()
        pd.testing.assert_frame_equal(read_markers(files[0].markers), table, check_dtype=False)
        pd.testing.assert_frame_equal(read_table(files[0].ranking), table)
        assert len(files[0].top.read_text().splitlines()) == 5


@pytest.mark.parametrize("n_groups", [2, 4])
def test_logistic_regression_equals_scikit_learns(n_groups):
    """The same optimum at convergence: weights within 2e-3 of the largest (the gradient's tolerance)."""
    from sklearn.linear_model import LogisticRegression

    X, labels = simulated(n_groups=n_groups)
    Z = np.log1p(X.toarray()).astype(np.float32)
    y = labels.astype("category").cat.codes.to_numpy()
    theirs = LogisticRegression(C=0.5, max_iter=500).fit(Z.astype(np.float64), y).coef_
    ours = fit(Z, y, n_groups, C=0.5, max_iter=500)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())


def test_loss_gradient_is_the_loss_gradient():
    """Compared with central differences of the loss, float64 in steps of 1e-5; float32 logits limit this to 1e-2."""
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(50, 6)).astype(np.float32), rng.integers(0, 3, 50)
    W, step = rng.normal(size=(3, 7)), 1e-2
    _, gradient = logreg.loss_gradient(W, [(Z, y)], 3, np)
    for at in np.ndindex(W.shape):
        nudge = np.zeros_like(W)
        nudge[at] = step
        up, down = (logreg.loss_gradient(W + sign * nudge, [(Z, y)], 3, np)[0] for sign in (1, -1))
        assert gradient[at] == pytest.approx((up - down) / (2 * step), abs=1e-2)


def test_matrix_in_memory_in_half_precision_or_streamed(monkeypatch):
    """Float16 has 11 bits: weights within 1 % of the largest; streamed equals float32 in memory exactly."""
    X, labels = simulated()
    codes = Groups.of(labels).codes.copy()
    codes[::9] = -1

    def weights(cache_bytes):
        monkeypatch.setattr(logreg, "CACHE_BYTES", cache_bytes)
        rows = logreg.DenseRows(
            InMemory(X, max_cells=64), codes, lambda X, cells: np.log1p(X.toarray()).astype(np.float32)
        )
        return logreg.logistic_regression(rows, int((codes >= 0).sum()), X.shape[1], 4, CPU, max_iter=500)[0]

    single, half, streamed = weights(1 << 20), weights(100_000), weights(0)
    np.testing.assert_array_equal(single, streamed)
    assert 0 < np.abs(half - single).max() < 0.01 * np.abs(single).max()


def run(main, tmp_path, grouping, clustering=(), **params):
    """A stage's main on the files in tmp_path."""
    (tmp_path / "out").mkdir(exist_ok=True)
    files = SimpleNamespace(
        counts=[tmp_path / "counts.h5ad"],
        cells=[tmp_path / "cells.parquet"],
        genes=tmp_path / "genes.parquet",
        features=[tmp_path / "counts.h5ad"],
        shards=[],
        pca=tmp_path / "pca.h5",
        cell_cycle=[],
        obs=tmp_path / "obs.parquet",
        grouping=list(clustering),
    )
    output = markers_output(tmp_path / "out")
    defaults = {"target_sum": 1e4, "gene_key": "gene_symbols", "n_genes": 5, "reference": "rest", "hidden_families": {}}
    main(
        SimpleNamespace(
            input=files,
            output=output,
            params=SimpleNamespace(grouping=grouping, **defaults | params),
            wildcards=SimpleNamespace(),
            resources={},
        )
    )
    return read_markers(output.markers), pd.read_csv(output.top, sep="\t", dtype={"group": str})


@pytest.fixture
def artifacts(tmp_path):
    """A simulated cohort's artifacts: all genes are kept, all are features, scaled and regressed."""
    X, labels = simulated()
    names = [f"gene{i}" for i in range(X.shape[1])]
    totals = np.asarray(X.sum(1)).ravel().astype(np.int64)
    obs = pd.DataFrame(
        {"type": labels.to_numpy(), "kept_counts": totals, "total_counts": totals},
        index=[f"c{i}" for i in range(X.shape[0])],
    )
    symbols = [name.upper() for name in names]
    var = pd.DataFrame({"gene_symbols": symbols, "gene_ids": names, "kept": True}, index=names)
    var["n_cells_by_counts"] = np.diff(X.tocsc().indptr)
    writer = CountsWriter(tmp_path / "counts.h5ad", X.shape[1])
    writer.append(X)
    writer.close(obs, var)
    write_table(obs, tmp_path / "obs.parquet")
    write_table(obs[["type"]].assign(kept=True, reason=""), tmp_path / "cells.parquet")
    write_table(var, tmp_path / "genes.parquet")
    write_table(pd.DataFrame({"leiden_1": obs["type"].str[-1].astype("category")}), tmp_path / "leiden.parquet")
    L = log_normalize(X, totals, 1e4, CPU, np.float64).toarray()
    design = regressors(obs, ["total_counts"])
    B = np.linalg.lstsq(design, L, rcond=None)[0]
    residuals = L - design @ B
    std = residuals.std(0, ddof=1)
    std[std < 1e-9] = 1
    scaling = Scaling(1e4, ("total_counts",), B, np.zeros(X.shape[1]), std, 2.0)
    write_arrays(tmp_path / "pca.h5", scaling.arrays(), **scaling.attrs())
    return X, obs, np.clip(residuals / std, -2, 2)


def test_t_test_stage(artifacts, tmp_path):
    X, obs, _ = artifacts
    table, top = run(markers_ttest.main, tmp_path, "leiden_1", [tmp_path / "leiden.parquet"])
    expected = t_test(X, obs["type"].str[-1].rename("leiden_1"))
    expected["gene_symbols"] = expected["names"].str.upper()
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=1e-6)
    assert top.groupby("group")["names"].apply(set).to_dict() == {
        str(g): {f"gene{5 * g + i}" for i in range(5)} for g in range(4)
    }


@pytest.mark.parametrize("use_scaled", [True, False])
def test_logreg_stage(artifacts, tmp_path, use_scaled):
    """As scikit-learn on the matrix built here, at convergence, to 1e-2 of the largest weight."""
    from sklearn.linear_model import LogisticRegression

    X, obs, scaled = artifacts
    options = {"C": 1.0, "max_iter": 1000}
    table, top = run(markers_logreg.main, tmp_path, "type", logreg=options | {"use_scaled": use_scaled})
    Z = scaled if use_scaled else log_normalize(X, obs["kept_counts"], 1e4, CPU, np.float64).toarray()
    theirs = LogisticRegression(**options, tol=1e-4).fit(Z, obs["type"]).coef_
    ours = table.assign(gene=table["names"].str[4:].astype(int)).pivot(index="group", columns="gene", values="scores")
    np.testing.assert_allclose(ours.to_numpy(), theirs, atol=1e-2 * np.abs(theirs).max())
    described = t_test(X, obs["type"])[["group", "names", "logfoldchanges", "pct_nz_group", "pct_nz_reference"]]
    both = described.merge(table, on=["group", "names"])
    for name in described.columns[2:]:
        np.testing.assert_array_equal(both[f"{name}_x"], both[f"{name}_y"].astype(np.float32))
    assert not {"pvals", "pvals_adj"} & set(table)
    assert len(top) == 20


def test_logreg_of_two_groups_gives_each_its_markers(artifacts, tmp_path):
    """scanpy has one row of weights, the second group's; the first group's are its negative. Tolerance: as above."""
    X, obs, _ = artifacts
    labels = obs["type"].where(obs["type"].isin(["type 0", "type 1"]))
    write_table(obs.assign(type=labels), tmp_path / "obs.parquet")
    table, top = run(markers_logreg.main, tmp_path, "type", logreg={"C": 1.0, "max_iter": 1000, "use_scaled": False})
    theirs = in_scanpy(X, labels, "logreg", max_iter=1000).set_index("names")["scores"]
    for number, sign in ((0, -1), (1, 1)):
        mine = table[table["group"] == f"type {number}"].set_index("names")["scores"].loc[theirs.index]
        np.testing.assert_allclose(sign * mine, theirs, atol=1e-2 * theirs.abs().max())
        best = top[top["group"] == f"type {number}"]["names"]
        assert set(best) == {f"gene{i}" for i in range(5 * number, 5 * number + 5)}


def test_pbmc(pbmc3k):
    """Both methods on the 2,000 most variable expressed genes of PBMC, compared with scanpy.

    t-test: scores to 1e-4, as scanpy's sums are float32. logreg: both stop at a gradient of 1e-4, on different paths;
    nine of the ten best genes of each type agree, and the weights correlate above 0.999.
    """
    import scanpy as sc
    from sklearn.linear_model import LogisticRegression

    adata = pbmc3k[pbmc3k.obs["cell_type"].notna()].copy()
    sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=2000, subset=True)
    labels = adata.obs["cell_type"]
    X = adata.X.astype(np.uint16)
    totals = np.asarray(X.sum(1)).ravel()
    groups = Groups.of(labels)
    sums = group_sums(InMemory(X), groups.codes, len(groups.names), totals, 1e4)
    ours = markers_ttest.welch(sums, groups.sizes, Comparisons.of(groups.names, "type"))
    names = adata.var_names.to_numpy()
    ours = rank_genes(groups.names, ours, names, names).set_index(["group", "names"]).sort_index()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.tl.rank_genes_groups(adata, "cell_type", method="t-test")
    theirs = sc.get.rank_genes_groups_df(adata, group=None).set_index(["group", "names"]).sort_index()
    np.testing.assert_allclose(ours["scores"], theirs["scores"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours["logfoldchanges"], theirs["logfoldchanges"], rtol=1e-4, atol=1e-4)

    Z = adata.X.toarray()
    Z = np.clip((Z - Z.mean(0)) / (Z.std(0, ddof=1) + 1e-12), -10, 10).astype(np.float32)
    W = fit(Z, groups.codes, len(groups.names))
    coef = LogisticRegression().fit(Z, groups.codes).coef_
    best, their_best = (np.argsort(-w, axis=1)[:, :10] for w in (W, coef))
    assert np.mean([len(set(a) & set(b)) for a, b in zip(best, their_best, strict=True)]) >= 9
    assert np.corrcoef(W.ravel(), coef.ravel())[0, 1] > 0.999
