"""Names of cell types: the model against scikit-learn, and predictions on real data with known types."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from annotation import majority
from annotation_markers import best_sets
from annotation_model import f_statistic, train
from lib.methods.markers import Groups, group_sums
from lib.methods.typing_model import UNASSIGNED, Model, is_model, label_cells, top_two
from lib.run import device as devices
from lib.run.errors import UserError
from lib.store.counts import CountsWriter
from lib.store.stream import InMemory

CPU = devices.resolve("cpu")
PARAMS = {"n_genes": 2000, "C": 1.0, "max_iter": 200}


def table_of(names, ids=None):
    names = pd.Index(names, dtype=object)
    return pd.DataFrame({"gene_symbols": names, "gene_ids": names if ids is None else ids}, index=names)


def stored(folder, X, names):
    """A counts store."""
    path = folder / f"store{len(list(folder.iterdir()))}.h5ad"
    writer = CountsWriter(path, X.shape[1])
    writer.append(sp.csr_matrix(X).astype(np.uint16))
    writer.close(pd.DataFrame(index=[f"c{i}" for i in range(X.shape[0])]), table_of(names))
    return path


def predicted(model, X, names, threshold=0.0):
    """The labels of the cells of a matrix."""
    X = sp.csr_matrix(X).astype(np.uint16)
    totals = np.asarray(X.sum(1)).ravel()
    label, probability, second = label_cells(InMemory(X, max_cells=200), model, table_of(names), totals, "the model")
    labels = np.where(probability >= threshold, model.labels[label], UNASSIGNED)
    return labels, probability, model.labels[second]


def simulated(n_obs=600, n_vars=200, n_types=4, seed=0):
    """Counts and types: each type has twenty genes that the others hardly have."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, n_types, n_obs)
    means = np.tile(np.random.default_rng(9).gamma(0.5, 1.0, n_vars), (n_types, 1))
    for i in range(n_types):
        means[i, 20 * i : 20 * i + 20] += 1.5
    X = rng.poisson(means[types] * rng.lognormal(0, 0.3, (n_obs, 1)))
    return X, pd.Series(types, name="type").map("type {}".format)


def genes_named(n):
    return [f"g{i}" for i in range(n)]


def test_model_is_scikit_learns(tmp_path):
    """The same probabilities on the same standardised genes, to 0.01: both stop near the optimum."""
    from sklearn.linear_model import LogisticRegression

    X, types = simulated()
    names = genes_named(X.shape[1])
    model = train(stored(tmp_path, X, names), types, table_of(names), {**PARAMS, "n_genes": 80}, CPU, "x")
    assert len(model.genes) == 80
    assert {*names[:80]} & {*model.genes} == {*model.genes}
    L = np.log1p(X * (1e4 / X.sum(1, keepdims=True)))[:, [names.index(name) for name in model.genes]]
    Z = np.minimum((L - L.mean(0)) / L.std(0), 10)
    np.testing.assert_allclose(model.mean, L.mean(0), rtol=1e-6)
    theirs = LogisticRegression(max_iter=1000).fit(Z, types)
    other, truth = simulated(seed=1)
    labels, probability, second = predicted(model, other, names)
    L = np.log1p(other * (1e4 / other.sum(1, keepdims=True)))[:, [names.index(name) for name in model.genes]]
    expected = theirs.predict_proba(np.minimum((L - model.mean) / model.std, 10))
    np.testing.assert_allclose(probability, expected.max(1), atol=0.01)
    assert (labels == truth).mean() > 0.98
    assert (labels != second).all()


@pytest.mark.parametrize("n_types", [2, 3])
def test_models_read_back_and_lack_genes(tmp_path, n_types):
    X, types = simulated(n_types=n_types)
    names = genes_named(X.shape[1])
    model = train(stored(tmp_path, X, names), types, table_of(names), PARAMS, CPU, "x")
    assert model.weights.shape[0] == n_types
    model.write(tmp_path / "model.h5")
    assert is_model(tmp_path / "model.h5")
    again = Model.read(tmp_path / "model.h5")
    assert (again.link, again.target_sum, again.max_value) == ("softmax", 1e4, 10.0)
    other, truth = simulated(n_types=n_types, seed=1)
    for name in ("labels", "genes", "universe"):
        assert list(getattr(again, name)) == list(getattr(model, name))
    np.testing.assert_array_equal(predicted(again, other, names)[0], predicted(model, other, names)[0])
    # In another order, with other genes, and without a third of the model's
    order = np.random.default_rng(0).permutation(len(names))[: 2 * len(names) // 3]
    wider = np.hstack([other[:, order], np.ones((len(other), 50), int)])
    labels, _, _ = predicted(again, wider, [names[i] for i in order] + [f"new{i}" for i in range(50)])
    assert (labels == truth).mean() > 0.95
    with pytest.raises(UserError, match=r"share 0 of \d+ genes .*They share \d+ if upper and lower"):
        predicted(again, other, [name.upper() for name in names])


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "x.h5").write_text("no HDF5")
    assert not is_model(tmp_path / "x.h5")
    assert not is_model(tmp_path)
    with pytest.raises(UserError, match="is no model of cell types"):
        Model.read(tmp_path / "x.h5")


def test_f_statistic_is_scipys():
    from scipy.stats import f_oneway

    X, types = simulated(n_vars=50, n_types=2)
    X[:, 3] = 0
    totals, groups = X.sum(1), Groups.of(types)
    found = group_sums(InMemory(sp.csr_matrix(X)), groups.codes, len(groups.names), totals, 1e4)
    L = np.log1p(X * (1e4 / totals[:, None]))
    theirs = np.nan_to_num(f_oneway(*(L[groups.codes == i] for i in range(2))).statistic)
    np.testing.assert_allclose(f_statistic(found, groups.sizes), theirs, rtol=1e-8, atol=1e-9)


def test_top_two():
    logits = np.array([[1.0, 3, 2], [0, 0, -1]])
    first, probability, second = top_two(logits, "softmax", np)
    assert first.tolist() == [1, 0]
    assert second.tolist() == [2, 1]
    np.testing.assert_allclose(probability, np.exp(logits.max(1)) / np.exp(logits).sum(1))
    np.testing.assert_allclose(top_two(logits, "sigmoid", np)[1], 1 / (1 + np.exp(-logits.max(1))))


def test_majority():
    labels, clusters = np.array([0, 1, 1, 2, 0, 0]), np.array([0, 0, 0, 1, 1, 2])
    assert majority(labels, clusters, 3).tolist() == [1, 1, 1, 0, 0, 0]


def test_best_sets_have_their_margin():
    scores = pd.DataFrame({"a": [3.0, 3, 0, 0, -1, -1], "b": [0.0, 0, 2, 2, -1, -1], "c": [-1.0, -2, -1, -2, -1, -2]})
    table = best_sets(scores, np.array([0, 0, 1, 1, 2, 2]), ["0", "1", "2"]).set_index("cluster")
    assert table["label"].tolist() == ["a", "b", UNASSIGNED]
    z = (scores - scores.mean()) / scores.std(ddof=0)
    expected = z["a"][:2].mean() - max(z[name][:2].mean() for name in "bc")
    assert table.loc["0", "margin"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def three(real_data):
    """PBMC in three chemistries."""
    import anndata as ad

    return ad.read_h5ad(real_data / "pbmc_3tech" / "pbmc_3tech.h5ad")


def trained_on(tmp_path, adata, genes):
    labels = adata.obs["cell_type"].astype(str).reset_index(drop=True)
    return train(stored(tmp_path, adata.X, adata.var_names), labels, table_of(genes), PARAMS, CPU, "x")


@pytest.mark.parametrize("batch", ["V2", "V3", "VDJ"])
def test_one_chemistry_names_the_cells_of_the_others(three, tmp_path, batch):
    """Trained on one batch, tested on the two others: known types by their authors' labels."""
    mine = (three.obs["batch"] == batch).to_numpy()
    model = trained_on(tmp_path, three[mine], three.var_names)
    labels, probability, _ = predicted(model, three[~mine].X, three.var_names)
    right = labels == three.obs["cell_type"][~mine].astype(str).to_numpy()
    assert right.mean() > 0.95, right.mean()
    assert probability[right].mean() > probability[~right].mean() + 0.1


def test_other_patients_on_another_platform(three, pbmc3k, tmp_path):
    """pbmc3k by pbmc_3tech, which has three types: T and NK together, and no platelets or dendritic cells."""
    model = trained_on(tmp_path, three, pbmc3k.var_names)
    labels, *_ = predicted(model, pbmc3k.X, pbmc3k.var_names, threshold=0.5)
    known = pbmc3k.obs["cell_type"].astype(str)
    expected = known.map({"B": "B cells", "CD14+ Mono": "Monocytes", "FCGR3A+ Mono": "Monocytes"})
    lymphocytes = ["Naive CD4 T", "Memory CD4 T", "CD8 T", "NK"]
    expected = expected.where(~known.isin(lymphocytes), "T/NK cells")
    right = (labels == expected)[expected.notna()]
    assert right.mean() > 0.97, right.mean()
