from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from lib.run.errors import UserError
from lib.store import identity
from lib.store.files import write_arrays, write_table

NAMES = [f"cell{i}-P{i % 3}" for i in range(30_000)]  # several blocks of bytes


def test_mark_tells_names_and_their_order():
    mark = identity.mark_of_names(NAMES, "cohort")
    assert mark == identity.mark_of_names(pd.Index(NAMES), "cohort")
    swapped = [*NAMES]
    swapped[7], swapped[4103] = swapped[4103], swapped[7]
    for other in (swapped, NAMES[::-1], NAMES[1:], ["cell0-P0x", *NAMES[1:]], [*NAMES[:-2], "".join(NAMES[-2:])]):
        assert identity.mark_of_names(other, "cohort") != mark


@pytest.mark.parametrize("cuts", [[0, 30_000], [1, 2], [999, 20_000], [0, 0]])
def test_marks_of_parts_join(cuts):
    parts = [NAMES[: cuts[0]], NAMES[cuts[0] : cuts[1]], NAMES[cuts[1] :]]
    marks = [identity.mark_of_names(part, "cohort") for part in parts]
    assert identity.mark_of_parts(marks) == identity.mark_of_names(NAMES, "cohort")


@pytest.fixture
def artifacts(tmp_path):
    """obs.parquet of six cells, pca.h5 made from it, and the tables of two samples with three cells each."""
    names = [f"c{i}" for i in range(6)]
    paths = {name: tmp_path / name for name in ("obs.parquet", "pca.h5", "a.parquet", "b.parquet", "genes.parquet")}
    for file, cells, scope in (("obs", names, "cohort"), ("a", names[:3], "sample"), ("b", names[3:], "sample")):
        write_table(pd.DataFrame({"x": range(len(cells))}, index=cells), paths[f"{file}.parquet"], scope)
    write_table(pd.DataFrame({"x": [1]}, index=["gene"]), paths["genes.parquet"])
    write_arrays(paths["pca.h5"], {"X_pca": np.zeros((6, 2))}, paths["obs.parquet"])
    return SimpleNamespace(**{name.partition(".")[0]: path for name, path in paths.items()})


def test_inputs_of_the_same_cells_pass(artifacts):
    a, b = artifacts.a, artifacts.b
    inputs = {"counts": [a, b], "cells": [a, b], "obs": artifacts.obs, "pca": artifacts.pca, "genes": artifacts.genes}
    identity.check_inputs(inputs | {"clusterings": [artifacts.obs, artifacts.pca]})


def test_cells_in_another_order_are_refused(artifacts):
    names = [f"c{i}" for i in (3, 4, 5, 0, 1, 2)]
    write_table(pd.DataFrame({"x": range(6)}, index=names), artifacts.obs, "cohort")
    with pytest.raises(UserError, match=r"obs.parquet and .*pca.h5 are not of the same cells in the same order"):
        identity.check_inputs({"obs": artifacts.obs, "pca": artifacts.pca})


def test_samples_in_another_order_are_refused(artifacts):
    with pytest.raises(UserError, match="not of the same cells"):
        identity.check_inputs({"counts": [artifacts.a, artifacts.b], "cells": [artifacts.b, artifacts.a]})


def test_parts_are_compared_as_a_whole(artifacts, tmp_path):
    parts = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    for part, names in zip(parts, (["c0", "c1"], ["c2", "c3", "c4", "c5"]), strict=True):
        write_table(pd.DataFrame({"x": 0}, index=names), part, "cohort")
    identity.check_inputs({"features": parts, "obs": artifacts.obs})
    with pytest.raises(UserError, match="not of the same cells"):
        identity.check_inputs({"features": parts[::-1], "obs": artifacts.obs})


def test_files_of_users_have_no_mark(tmp_path):
    for name in ("broken.h5ad", "broken.parquet", "matrix.mtx"):
        (tmp_path / name).write_text("nothing")
        assert identity.read_mark(tmp_path / name) is None
    assert identity.read_mark(tmp_path / "gone.h5") is None
