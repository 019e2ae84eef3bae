"""The search for the neighbours of many points on the GPU against a comparison of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from lib.methods import knn
from lib.run import device as devices
from lib.run import diagnosis


@pytest.fixture(scope="module")
def gpu():
    if diagnosis.unusable():
        pytest.skip("needs a GPU")
    return devices.gpu()


def blobs(n: int, dims: int, between: float) -> np.ndarray:
    """Ten clusters, whose centres lie so far apart; the last point is far away from all."""
    rng = np.random.default_rng(0)
    points = between * rng.normal(size=(10, dims))[rng.integers(10, size=n)] + rng.normal(size=(n, dims))
    points[-1] = 1000
    return points.astype(np.float32)


CASES = {
    "overlapping": (blobs(20_000, 30, 0.3), 30, {}),
    "apart": (blobs(20_000, 30, 5), 90, {}),
    "off centre": (blobs(20_000, 10, 1) + 1000, 15, {}),
    "equal": (np.repeat(blobs(400, 10, 1), 50, axis=0), 15, {}),
    "crowded": (blobs(20_000, 2, 1), 15, {"WIDTH": 1, "NEAR": 1}),
    "all of them": (blobs(20_000, 30, 1), 30, {"MOST": 0, "NEAR": 1}),
    "in small blocks": (blobs(20_000, 20, 1), 1, {"ROWS": 50, "PAIRS": 15_000, "NEAR": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_all_neighbours_of_many_points_are_found(gpu, monkeypatch, case):
    from lib.methods import knn_gpu

    X, k, options = CASES[case]
    expected, distances = map(gpu.to_host, knn.nearest_neighbors(X, k, exact=True, device=gpu))
    for name, value in ({"FEW": 0} | options).items():
        monkeypatch.setattr(knn_gpu, name, value)
    found, theirs = map(gpu.to_host, knn.nearest_neighbors(X, k, exact=True, device=gpu))
    np.testing.assert_array_equal(theirs, distances)
    if case != "equal":  # of which any may be taken
        np.testing.assert_array_equal(found, expected)


def test_near_lists_hold_nearly_all(gpu):
    X = blobs(200_000, 30, 1)
    expected, _ = knn.nearest_neighbors(X, 30, exact=True, device=gpu)
    found, _ = knn.nearest_neighbors(X, 30, exact=False, device=gpu)
    assert float(knn.shared(expected, found, gpu.xp).mean()) > 0.98  # as the tolerance of the stage
