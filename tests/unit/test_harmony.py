"""Harmony against R's, and on real batches."""

from __future__ import annotations

import harmony
import numpy as np
import pandas as pd
import pytest
from leiden import leiden
from lib import device as devices
from lib.errors import UserError
from lib.files import read_arrays, read_attrs
from lib.fuzzy import fuzzy_graph
from lib.knn import nearest
from sklearn.metrics import adjusted_rand_score

CONFIG = {"theta": 2, "sigma": 0.1, "lamb": None, "max_iter_harmony": 10}


def test_correlates_with_harmony_in_r(real_data):
    folder = real_data / "harmony_reference"
    X = pd.read_csv(folder / "pbmc_3500_pcs.tsv.gz", sep="\t").to_numpy(np.float32)
    obs = pd.read_csv(folder / "pbmc_3500_meta.tsv.gz", sep="\t")[["donor"]]
    expected = pd.read_csv(folder / "pbmc_3500_pcs_harmonized.tsv.gz", sep="\t").to_numpy()
    found = harmony.harmonize(X, obs, CONFIG, seed=0, n_jobs=1)
    r = [np.corrcoef(found[:, i], expected[:, i])[0, 1] for i in range(X.shape[1])]
    # R's is Harmony 1, harmonypy's Harmony 2: the same method, other penalties
    assert min(r) >= 0.95
    assert np.median(r) >= 0.99


def test_batches_mix_and_types_are_found_better(pbmc_3tech):
    before = pbmc_3tech.obsm["X_pca"].astype(np.float32)
    after = harmony.harmonize(before, pbmc_3tech.obs[["batch"]], CONFIG, seed=0, n_jobs=1)
    scores = []
    for X in (before, after):
        graph = fuzzy_graph(*nearest(X, 14), devices.resolve("cpu"))
        scores.append(adjusted_rand_score(pbmc_3tech.obs["cell_type"], leiden(graph, 0.6, 2, 0)))
    # About 0.30 and 0.50
    assert scores[1] > scores[0] + 0.1


def test_equal_seeds_give_equal_results_with_any_number_of_threads(blobs):
    X, labels = blobs
    obs = pd.DataFrame({"batch": labels.astype(str)})
    one, two = (harmony.harmonize(X, obs, CONFIG, seed=0, n_jobs=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_two_keys_each_take_their_shift_away():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(rng.integers(0, 2, (600, 2)).astype(str), columns=["lab", "kit"])
    X = rng.normal(size=(600, 10)).astype(np.float32)
    X[:, 0] += 3 * (obs["lab"] == "1")
    X[:, 1] += 3 * (obs["kit"] == "1")
    found = harmony.harmonize(X, obs, CONFIG, seed=0, n_jobs=1)
    for component, key in enumerate(obs):
        means = pd.Series(found[:, component]).groupby(obs[key]).mean()
        # Of a shift of 3, with a standard error of 0.1
        assert abs(means["1"] - means["0"]) < 0.75


def test_few_cells_are_integrated():
    X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    found = harmony.harmonize(X, pd.DataFrame({"batch": ["a", "b"] * 6}), CONFIG, seed=0, n_jobs=1)
    assert found.shape == X.shape
    assert np.isfinite(found).all()


def test_one_batch_only_is_skipped_and_said_so(job, cohort, caplog):
    obs = pd.read_parquet(cohort.obs).assign(sample="a")
    obs.to_parquet(cohort.obs)
    caplog.set_level("INFO")
    task = job({"harmony": "h.h5"}, {"vars_use": ["sample"], "harmony": CONFIG}, pca=cohort.pca, obs=cohort.obs)
    harmony.main(task)
    assert read_arrays(task.output.harmony) == {}
    assert read_attrs(task.output.harmony)["skipped"] == "only one batch (sample)"
    assert "only one batch" in caplog.text


def test_the_artifact_and_a_quiet_terminal(job, cohort, capfd):
    params = {"vars_use": ["sample", "blob"], "harmony": CONFIG}
    runs = [job({"harmony": f"{i}.h5"}, params, pca=cohort.pca, obs=cohort.obs) for i in range(2)]
    for task in runs:
        harmony.main(task)
    X = read_arrays(runs[0].output.harmony)["X_pca_harmony"]
    assert X.dtype == np.float32
    assert X.shape == (700, 10)
    assert runs[0].output.harmony.read_bytes() == runs[1].output.harmony.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_unusable_keys_are_named():
    obs = pd.DataFrame({"sample": ["a", "b", "b"], "donor": ["x", None, "y"], "lab": "one"})
    with pytest.raises(UserError, match=r"no obs column 'patient'\. Columns: sample, donor, lab"):
        harmony.batches(obs, ["patient"])
    with pytest.raises(UserError, match="1 of 3 cells have no 'donor'"):
        harmony.batches(obs, ["donor"])
    assert list(harmony.batches(obs, ["sample", "lab"])) == ["sample"]
