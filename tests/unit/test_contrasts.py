"""Contrasts: what is refused before any job, with the table of samples, and the designs of what is not."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from lib.inputs import config as settings
from lib.inputs import contrasts
from lib.run.errors import UserError

CONDITION = {"column": "condition", "level": "treated", "reference": "control"}


def config_of(*given, **more):
    return settings.complete({"label_key": "CellType", "de": list(given)} | more)


def sheet_of(**columns):
    names = [f"P{i + 1}" for i in range(len(next(iter(columns.values()))))]
    table = pd.DataFrame({"sample": names, "path": "x.h5ad", **columns})
    return table.set_index("sample", drop=False)


def refused(sheet, *given, **more):
    with pytest.raises(UserError) as error:
        contrasts.check(sheet, config_of(*given, **more))
    return str(error.value)


def test_24_samples_with_a_confounded_covariate_are_refused_with_their_numbers():
    """12 against 12, each condition at its own site; with one sample elsewhere the design has full rank."""
    sites = ["Oslo"] * 12 + ["Bergen"] * 12
    sheet = sheet_of(condition=["control"] * 12 + ["treated"] * 12, site=sites, age=[*range(30, 54)])
    said = refused(sheet, CONDITION | {"covariates": ["age", "site"]})
    assert "the effect of condition cannot be told apart from that of site alone" in said
    assert re.search(r"condition +Bergen +Oslo\n +control +0 +12\n +treated +12 +0$", said)
    contrasts.check(sheet, config_of(CONDITION | {"covariates": ["age"]}))
    sheet["site"] = ["Oslo"] * 11 + ["Bergen"] * 13
    contrasts.check(sheet, config_of(CONDITION | {"covariates": ["age", "site"]}))


def test_covariates_that_confound_together_are_told():
    sheet = sheet_of(condition=["control"] * 3 + ["treated"] * 3, a=list("xxyxyy"), b=list("pqpqpp"))
    sheet["c"] = ["1" if (s.a == "x") ^ (s.condition == "treated") else "2" for s in sheet.itertuples()]
    sheet["d"] = [f"{s.a}{s.c}" for s in sheet.itertuples()]
    assert "from that of d together" in refused(sheet, CONDITION | {"covariates": ["d"]}).replace("alone", "together")


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (["control"] * 3 + ["treatd"] * 3, "no sample has the level 'treated' of condition. Did you mean treatd?"),
        (["control"] * 3 + ["treated"], "one sample has the level 'treated' of condition; 2 are needed"),
        (["control", None, None, "treated", "treated"], "one sample has the level 'control'"),
    ],
)
def test_levels_without_samples_are_refused_with_the_samples_of_each(conditions, said):
    found = refused(sheet_of(condition=conditions), CONDITION)
    assert said in found
    assert re.search(r"condition +samples +names\n", found)
    assert re.search(r"control +\d +P1", found)


def test_samples_without_a_covariate_do_not_count():
    sheet = sheet_of(condition=["control"] * 3 + ["treated"] * 3, age=[40, np.nan, np.nan, 50, 60, 70])
    assert "1 samples of the level 'control' of condition have a value" in refused(
        sheet, CONDITION | {"covariates": ["age"]}
    )


def test_as_many_effects_as_samples_are_refused():
    sheet = sheet_of(condition=["control"] * 2 + ["treated"] * 2, age=[4.0, 5, 6, 9], day=[1.0, 4, 9, 2])
    said = refused(sheet, CONDITION | {"covariates": ["age", "day"]})
    assert "4 samples cannot tell 4 effects (Intercept, condition, age, day) apart from chance" in said


def test_conditions_that_vary_within_a_patient_are_refused():
    sheet = sheet_of(condition=["control"] * 3 + ["treated"] * 3, patient=list("abccde"))
    said = refused(sheet, CONDITION, pseudobulk={"sample_key": "patient"})
    assert "condition varies within 1 of 5 values of patient" in said
    assert re.search(r"patient +control +treated\n +c +1 +1", said)


def test_several_lines_of_a_patient_are_one_sample():
    sheet = sheet_of(condition=["control"] * 3 + ["treated"] * 3, patient=list("aaabbb"))
    said = refused(sheet, CONDITION, pseudobulk={"sample_key": "patient"})
    assert said.count("one sample has the level") == 2


def test_columns_of_the_files_are_left_to_the_job():
    contrasts.check(sheet_of(sex=["f", "m"]), config_of(CONDITION))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"de": [CONDITION, CONDITION]}, "several contrasts called condition_treated_vs_control"),
        ({"de": [CONDITION | {"level": "control"}]}, "level and reference are both 'control'"),
        ({"de": [{"column": "batch", "level": 1, "reference": 1.0}]}, "both '1'"),
        ({"de": [CONDITION | {"covariates": ["condition"]}]}, "a column is named twice"),
        ({"de": [CONDITION | {"covariates": ["age", "C(age)"]}]}, "a column is named twice"),
        ({"de": [CONDITION | {"column": "sample"}]}, "names sample, whose values are the samples"),
        ({"de": [CONDITION | {"column": "leiden_0.6"}]}, "names leiden_0.6, which this run computes for each cell"),
        ({"de": [CONDITION | {"covariates": ["total_counts"]}]}, "names total_counts, which this run computes"),
        ({"de": [CONDITION | {"groupby": "leiden_2"}]}, "names leiden_2, which is not computed"),
        ({"pseudobulk": {"groupings": ["leiden_9"]}}, "`pseudobulk: groupings` names leiden_9, which is not computed"),
        ({"de": [CONDITION], "label_key": None, "leiden": {"resolutions": []}, "louvain": {"resolutions": []}}, ""),
        ({"composition": {"contrasts": [CONDITION]}}, "needs groups: name a grouping"),
        ({"de": [CONDITION | {"name": "n" * 200}]}, "too long a name for a path"),
    ],
)
def test_configs_that_no_sheet_could_fit(config, said):
    asked = {"kmeans": {"n_clusters": []}, "label_key": "CellType"} | config
    with pytest.raises(UserError, match=re.escape(said or "`de` needs a grouping")):
        settings.complete(asked)


def test_nothing_runs_by_default():
    config = settings.complete({"label_key": "CellType"})
    assert (contrasts.bulk_groupings(config), contrasts.pairs(config), contrasts.used_columns(config)) == ([], [], {})


def test_groupings_of_contrasts():
    one, two = CONDITION, CONDITION | {"name": "of clusters", "groupby": "leiden_0.6"}
    assert [(of, c["name"]) for of, c in contrasts.pairs(config_of(one, two, label_key=None))] == [
        ("leiden_0.6", "condition_treated_vs_control"),
        ("leiden_0.6", "of clusters"),
    ]
    config = config_of(one, two, pseudobulk={"groupings": ["CellType"]}, composition={"groupings": ["CellType"]})
    assert contrasts.bulk_groupings(config) == ["CellType", "leiden_0.6"]
    assert [of for of, _ in contrasts.pairs(config)] == ["CellType", "leiden_0.6"]
    assert [c["name"] for _, c in contrasts.pairs(config, "composition")] == ["condition_treated_vs_control"]
    assert contrasts.bulk_groupings(config_of(one)) == ["CellType"]


def test_design():
    """Numbers are standardised, or names by C(); a covariate of one value has no column; batch 2.0 is "2"."""
    samples = pd.DataFrame(
        {"condition": ["a", "b", "b", "a", "c"], "age": [1.0, 2, 3, 4, 5], "day": [1.0, 2, 2, 1, 1], "site": "x"},
        [f"P{i}" for i in range(5)],
    )
    asked = {"column": "condition", "level": "b", "reference": "a", "covariates": ["age", "C(day)", "site"]}
    design = contrasts.design_of(contrasts.compared(samples, asked), asked)
    assert list(design) == ["Intercept", "condition", "age", "day: 2"]
    assert list(design.index) == ["P0", "P1", "P2", "P3"]
    assert design["condition"].tolist() == [0, 1, 1, 0]
    assert design["day: 2"].tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(design["age"], (np.arange(1, 5) - 2.5) / np.sqrt(1.25))
