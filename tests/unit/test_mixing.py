"""Metrics of an integration: those of scib-metrics; by a sample; of odd cohorts."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from lib.methods import knn, mixing
from lib.run import device as devices
from scib_reference import COHORTS, STORED, Example, example
from sklearn.metrics import silhouette_samples

CPU = devices.cpu()
STORED_VALUES = json.loads(STORED.read_text())


@pytest.fixture(scope="module", params=COHORTS)
def cohort(request) -> tuple[str, Example]:
    if request.param != "demo" and not os.environ.get("SOMERSAULT_TEST_DATA"):
        pytest.skip("needs the real data: set SOMERSAULT_TEST_DATA to its folder")
    return request.param, example(request.param)


def measured(X, batches, labels, n=None):
    groups = batches if labels is None else (labels + 1) * (batches.max() + 1) + batches
    return mixing.measure(X, batches, labels, mixing.stratified(groups, n, 0), 1, CPU)


def test_values_of_scib_metrics(cohort):
    """To 1e-3: scib-metrics computes in float32, and a cell at a limit of kBET is 1 of 1,150."""
    name, of = cohort
    for space, X in of.spaces.items():
        found = measured(X, of.batches, of.labels).of_all
        assert found == pytest.approx(STORED_VALUES[f"{name} {space}"], abs=1e-3)


def test_a_sample_tells_nearly_the_same(cohort):
    """500 cells: the standard error of a share is 0.02; the graph among fewer cells falls apart sooner or later."""
    name, of = cohort
    for space, X in of.spaces.items():
        found, truth = measured(X, of.batches, of.labels, 500).of_all, STORED_VALUES[f"{name} {space}"]
        assert {key: found[key] for key in truth if key != "graph connectivity"} == pytest.approx(
            {key: value for key, value in truth.items() if key != "graph connectivity"}, abs=0.05
        )


def test_strata_have_their_share_and_small_ones_a_minimum():
    groups = np.repeat([3, 0, 7], [9000, 900, 5])
    sample = mixing.stratified(groups, 1000, 0)
    assert [(groups[sample.rows] == group).sum() for group in (3, 0, 7)] == [909, 91, 5]
    assert sample.weights.sum() == pytest.approx(len(groups))
    assert (np.diff(sample.rows) > 0).all()
    assert sample.mean((groups[sample.rows] == 3).astype(float)) == pytest.approx(9000 / 9905)


def test_silhouettes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(200, 5)).astype(np.float32), rng.integers(4, size=200)
    groups[groups == 3] = 2
    groups[0] = 3  # alone
    X += groups[:, None]
    sums = mixing.distance_sums(X, np.arange(200), groups, CPU)
    found = mixing.silhouette(sums, np.bincount(groups), groups)
    np.testing.assert_allclose(found, silhouette_samples(X, groups), atol=1e-4)


def test_nearest_of_some_points_are_those_among_all():
    X = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    X[7] = X[8]
    rows = np.array([0, 7, 8, 299])
    for metric in knn.METRICS:
        for one, other in zip(
            knn.nearest_of(X, rows, 9, metric, 1, CPU), knn.nearest_neighbors(X, 9, metric, exact=True), strict=True
        ):
            np.testing.assert_allclose(one, other[rows], atol=1e-6)


def test_cells_that_leave_their_neighbours_within_a_batch_are_seen():
    rng = np.random.default_rng(0)
    X, batches = rng.normal(size=(400, 8)).astype(np.float32), np.repeat([0, 1], 200)
    moved = X + 5 * batches[:, None].astype(np.float32)
    assert mixing.kept_within(X, moved, batches, 1, CPU).mean() > 0.999
    assert mixing.kept_within(X, rng.permutation(X), batches, 1, CPU).mean() < 0.15


@pytest.mark.parametrize("n", [2, 3, 12])
@pytest.mark.parametrize(("n_batches", "n_labels"), [(1, None), (1, 1), (2, None), (2, 1), (2, 2)])
def test_tiny_cohorts(n, n_batches, n_labels):
    X = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    batches = np.arange(n) % n_batches
    labels = None if n_labels is None else np.arange(n) // 2 % n_labels
    found = measured(X, batches, labels)
    assert ("iLISI" in found.of_all) == (n_batches > 1)
    assert ("graph connectivity" in found.of_all) == (labels is not None)
    assert all(0 <= value <= 1 or np.isnan(value) for value in found.of_all.values())


def test_cells_without_a_label_are_left_out_of_its_metrics():
    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(200, 4)).astype(np.float32), np.arange(200) % 3
    X += 8 * np.eye(4, dtype=np.float32)[labels]
    some = np.where(np.arange(200) < 30, -1, labels)
    whole, found = (measured(X, np.arange(200) // 3 % 2, of).of_all for of in (labels, some))
    assert found["label ASW"] == pytest.approx(whole["label ASW"], abs=0.05)
    assert found["cLISI"] > 0.7


def test_equal_cells():
    found = measured(np.ones((60, 3), np.float32), np.arange(60) % 2, np.arange(60) // 30)
    assert np.isnan(found.of_all["PC regression"])
    assert found.of_all["label ASW"] == 0.5
