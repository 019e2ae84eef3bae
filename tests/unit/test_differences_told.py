"""What the page tells of differences between conditions: a fault planted is found, a clean run has none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lib.inputs.config import complete
from lib.report import differences, sets
from lib.report.parts import Done, Finding, Finished, Paragraph, Table

CONFIG = {"label_key": "type", "de": [{"column": "condition", "level": "b", "reference": "a"}]}
OF = {"grouping": "type", "contrast": "condition_b_vs_a"}


def told(function, tmp_path, **tables):
    """What is told of a job with these tables; they are written first."""
    outputs = {"volcano": [], "cells": [], "pca": [], "tables": "groups"}
    for name, table in tables.items():
        path = tmp_path / f"{name}.tsv"
        table.to_csv(path, sep="\t", index=False)
        outputs[name] = str(path)
    job = Done("x", "x", OF, outputs)
    found = function(Finished(complete(CONFIG), [job]), job)
    return list(found) if not isinstance(found, Table | Paragraph) else found


def overview(n_level, n_reference):
    rows = [("T", n_level, n_reference, 900, 12, 3, 200), ("B", n_level - 1, n_reference, 800, 0, 0, 150)]
    columns = ["group", "n_samples_level", "n_samples_reference", "n_genes", "n_up", "n_down", "n_cell_tests"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize(("n", "expected"), [(3, []), (2, ["there are 2 samples of b"])])
def test_contrasts_of_few_samples(tmp_path, n, expected):
    parts = told(differences.of_de, tmp_path, overview=overview(n, 5), top=pd.DataFrame({"group": ["T"]}))
    assert [part.said for part in parts if isinstance(part, Finding)] == expected
    first = next(part for part in parts if isinstance(part, Table))
    assert first.said.startswith(
        f"{n - 1} to {n} samples of b against 5 of a, in 2 groups of `type`: genes that differ"
    )
    assert "15 in T" in first.said
    assert "In all 15; a test of cells would call 350" in first.said


def test_a_contrast_without_genes(tmp_path):
    none = overview(4, 4).assign(n_up=0, n_down=0)
    assert differences.describe(none, {"level": "b", "reference": "a"}, "type").endswith(
        "no gene differs (adjusted p below 0.05)."
    )


def profiles(**distances):
    """Six samples in four groups; `distances` of a sample's profiles."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame([(f"P{i}", g, 100, False) for i in range(6) for g in "abcd"])
    table.columns = ["sample", "group", "n_cells", "few_cells"]
    table["distance"] = rng.uniform(0.7, 1.5, len(table))
    for sample, values in distances.items():
        table.loc[table["sample"] == sample, "distance"] = values
    return table


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (profiles(), []),
        (profiles(P3=[2.5, 1, 1.1, 0.9]), []),  # in one group of four
        (profiles(P3=[2.5, 3, 4.1, 0.9]), ["Sample P3"]),
        (profiles(P3=[2.5, 3, 4.1, 9]).assign(n_cells=lambda t: np.where(t["sample"] == "P3", 20, 100)), []),  # noise
        (profiles(P3=[2.5, 3, 4.1, 9]).query("sample != 'P1' and sample != 'P2'"), []),  # too few to tell
        (profiles(P3=[np.nan, np.nan, 4.1, 9]), ["Sample P3"]),
    ],
)
def test_samples_that_stand_apart(tmp_path, table, expected):
    parts = told(differences.of_profiles, tmp_path, table=table)
    assert [part.where for part in parts if isinstance(part, Finding)] == expected


def test_few_samples_behind_shares(tmp_path):
    table = pd.DataFrame({"sample": ["P1", "P2"], "group": "T", "n_cells": [5, 6], "share": 1.0})
    tests = pd.DataFrame({"contrast": "condition_b_vs_a", "group": ["T", "B"], "pvals_adj": [0.01, 0.5]})
    tests = tests.assign(n_samples_level=2, n_samples_reference=4, share_level=0.5, share_reference=0.25)
    *tables, finding = told(differences.of_composition, tmp_path, table=table, tests_table=tests)
    assert finding.said == "shares of 2 and 4 samples are compared"
    assert "the share differs (adjusted p below 0.05) in 1 of 2 groups: T (25 to 50 %)" in tables[1].said


def test_long_tables_of_sets_are_left_out(tmp_path, monkeypatch):
    table = pd.DataFrame({"group": ["T", "B"], "source": ["x", "y"], "padj": [0.01, 0.9]})
    found = told(differences.of_enrichment, tmp_path, enrichment=table)
    assert found.said == "1 set with an adjusted p below 0.05: x in T."
    monkeypatch.setattr(sets, "MOST_ROWS", 1)
    assert isinstance(told(differences.of_enrichment, tmp_path, enrichment=table), Paragraph)
