"""Categories: their names, their order, and how those of several samples are joined."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lib.store import categories
from lib.store.cohort import kept_cells
from lib.store.files import write_table


def ordered(values, names, flag=True):
    return pd.Series(pd.Categorical(values, names, ordered=flag))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *((7, "7"), (7.0, "7"), (np.float32(7), "7"), (-2.0, "-2"), (0.5, "0.5"), (np.float32(0.1), "0.1")),
        *((1e300, "1e+300"), (True, "True"), (np.bool_(False), "False"), ("7.0", "7.0"), (float("inf"), "inf")),
    ],
)
def test_names(value, name):
    assert categories.name_of(value) == name


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pd.Series([10, 9, 1]), ["1", "9", "10"]),
        (pd.Series([10.0, np.nan, 9.0]), ["9", "10"]),
        (pd.Series([10.5, 9.0, 2.25]), ["2.25", "9", "10.5"]),
        (pd.Series([True, False]), ["False", "True"]),
        (pd.Series(["P10", "P2", None]), ["P2", "P10"]),
        (pd.Series([7, "7", 7.0, "x"], dtype=object), ["7", "x"]),
        (pd.Series(pd.Categorical([9, 10, 10])), ["9", "10"]),
        (ordered(["P2", "P10"], ["P10", "P2", "P3"], flag=False), ["P2", "P10"]),
        (ordered(["low", "high"], ["low", "unseen", "high"]), ["low", "high"]),
        (ordered(["b", "c"], ["c", "a", "b"], flag=False), ["c", "b"]),
        (pd.Series(["²", "x2"]), ["x2", "²"]),
    ],
)
def test_a_columns_categories(values, names):
    """Natural order, unless the column has its own; missing values stay; categories without cells are removed."""
    found = categories.as_categories(values)
    assert found.cat.categories.tolist() == names
    assert found.isna().tolist() == values.isna().tolist()
    assert [categories.name_of(value) for value in values.dropna()] == found.dropna().tolist()
    assert found.cat.ordered == bool(getattr(values.dtype, "ordered", False))


@pytest.mark.parametrize(
    ("parts", "names", "is_ordered"),
    [
        # The same order; an order beside a sample without values; an order that fits into the other
        ([ordered(["a"], ["c", "a"]), ordered(["c"], ["c", "a"])], ["c", "a"], True),
        ([ordered(["c", "a"], ["c", "a"]), pd.Series([np.nan])], ["c", "a"], True),
        ([ordered(["x", "z"], ["x", "z"]), ordered(["y"], ["x", "y", "z"])], ["x", "y", "z"], True),
        # Orders that leave it open, orders that contradict each other, and one order beside none
        ([ordered(["I", "III"], ["I", "III"]), ordered(["II", "III"], ["II", "III"])], ["I", "II", "III"], False),
        ([ordered(["a", "b"], ["a", "b"]), ordered(["a", "b"], ["b", "a"])], ["a", "b"], False),
        ([ordered(["b", "a"], ["b", "a"]), pd.Series(["a", "c"])], ["b", "a", "c"], False),
        # Text with different values in each sample
        ([pd.Series(["P10", "P1"]), pd.Series(["P2"])], ["P1", "P2", "P10"], False),
        ([ordered(["0", "10", "2"], ["0", "2", "10"], False), pd.Series(["3"])], ["0", "2", "3", "10"], False),
        ([pd.Series([9, 10]), pd.Series(["11"])], ["9", "10", "11"], False),
    ],
)
def test_samples_categories_are_united(parts, names, is_ordered):
    found = categories.united(parts)
    assert found.cat.categories.tolist() == names
    assert found.cat.ordered == is_ordered
    expected = [categories.name_of(value) if pd.notna(value) else None for part in parts for value in part]
    assert found.astype(object).where(found.notna(), None).tolist() == expected


def test_many_categories_are_joined_at_once():
    """Two samples of 20,000 clones each take a second at most, as the time is linear."""
    parts = [pd.Series([f"clone{i}" for i in range(start, start + 20_000)]) for start in (0, 10_000)]
    assert categories.united(parts).cat.categories[[0, -1]].tolist() == ["clone0", "clone29999"]


def cells(folder, **tables):
    """The samples' cells.parquet with these columns; all cells except the first are kept."""
    paths = []
    for sample, columns in tables.items():
        table = pd.DataFrame(columns).assign(reason="")
        table["kept"] = np.arange(len(table)) > 0
        table.index = [f"{i}-{sample}" for i in range(len(table))]
        paths.append(folder / f"{sample}.parquet")
        write_table(table, paths[-1])
    return paths


def test_columns_of_different_kinds(tmp_path, caplog):
    """The kinds of a column in the samples, and its kind in the cohort, which parquet, h5ad and scanpy accept."""
    flag, empty = [True, True, False], [np.nan] * 3
    one = {"n": [1, 2, 3], "n_and_x": [1, 2, 3], "flag": flag, "both": flag, "mixed": [1, 2, 3], "gone": empty}
    two = {"n": [4, 5, 6], "n_and_x": [0.5, 1.5, 2.5], "both": flag, "mixed": ["x", "y", "7"], "gone": empty}
    stage = pd.Categorical(["low", "high", "low"], ["low", "high"], ordered=True)
    paths = cells(
        tmp_path, one=one | {"stage": stage, "late": empty}, two=two | {"stage": stage, "late": ["a", "b", "c"]}
    )
    joined = kept_cells(paths)
    assert joined.index.tolist() == ["1-one", "2-one", "1-two", "2-two"]
    assert joined["n"].tolist() == [2, 3, 5, 6]
    assert joined["n"].dtype == np.int64
    assert joined["n_and_x"].tolist() == [2, 3, 1.5, 2.5]
    assert joined["both"].tolist() == [True, False, True, False]
    assert joined["both"].dtype == bool
    assert joined["flag"].tolist()[:2] == ["True", "False"]
    assert joined["flag"].isna().tolist() == [False, False, True, True]
    assert joined["mixed"].tolist() == ["2", "3", "y", "7"]
    assert joined["gone"].isna().all()
    assert joined["gone"].dtype == np.float64
    assert joined["late"].cat.categories.tolist() == ["b", "c"]
    assert joined["stage"].cat.ordered
    assert joined["stage"].cat.categories.tolist() == ["low", "high"]
    assert "obs column mixed holds numbers in some samples and text: it becomes text" in caplog.text
    write_table(joined, tmp_path / "obs.parquet")
    again = pd.read_parquet(tmp_path / "obs.parquet")
    pd.testing.assert_frame_equal(again, joined, check_dtype=False, check_categorical=False, check_index_type=False)
    assert again["stage"].cat.ordered


def test_an_order_that_is_lost_is_told(tmp_path, caplog):
    stages = [pd.Categorical(["I", "II"], names, ordered=True) for names in (["I", "II"], ["II", "I"])]
    joined = kept_cells(cells(tmp_path, one={"stage": stages[0]}, two={"stage": stages[1]}))
    assert not joined["stage"].cat.ordered
    assert "obs column stage: the samples order its categories differently" in caplog.text
