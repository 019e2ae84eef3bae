"""Config and sheet: defaults, and a message for every mistake before any job runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from lib import config as settings
from lib.errors import UserError

HOME = Path(__file__).parents[2]
SCHEMA = HOME / "config" / "schemas" / "config.schema.yaml"


def complete(**config):
    return settings.complete(config, SCHEMA)


def leaves(config, prefix=()):
    for key, value in config.items():
        if isinstance(value, dict) and value and key not in ("gene_families", "max_pct_counts"):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def test_committed_config_shows_every_key_with_its_default():
    shown = dict(leaves(yaml.safe_load((HOME / "config" / "config.yaml").read_text())))
    defaults = dict(leaves(complete()))
    assert shown.keys() == defaults.keys()
    assert {key: value for key, value in shown.items() if value != defaults[key]}.keys() == {("label_key",)}


def test_reference_explains_every_key():
    text = (HOME / "config" / "README.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_:A-Z -]+)` \|", text, flags=re.M))
    assert documented == {": ".join(path) for path, _ in leaves(complete())}


@pytest.mark.parametrize("path", sorted((HOME / "config" / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_valid(path):
    complete(**yaml.safe_load(path.read_text()))


def test_null_is_a_value_and_not_the_default():
    config = complete(scale={"max_value": None}, cells={"max_pct_counts": {"MT": None}})
    assert config["scale"] == {"enabled": True, "max_value": None}
    assert config["cells"]["max_pct_counts"] == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"leidn": {}}, "unknown key `leidn`: did you mean `leiden`?"),
        ({"leiden": {"resolution": [1]}}, "unknown key `leiden: resolution`: did you mean `resolutions`?"),
        ({"markers": {"logreg": {"c": 1}}}, "unknown key `markers: logreg: c`"),
        (
            {"hvg": {"flavor": "seurat_v4"}},
            "`hvg: flavor` is 'seurat_v4', not one of seurat_v3, .* did you mean seurat_v3",
        ),
        ({"pca": {"n_comps": "50"}}, "`pca: n_comps` is '50', a str; it must be integer"),
        ({"pca": {"n_comps": 0}}, "`pca: n_comps`: 0 is less than the minimum of 2"),
        ({"leiden": {"resolutions": 0.6}}, "`leiden: resolutions` is 0.6, a float; it must be array"),
        ({"pca": {"n_comps": 30}}, r"`neighbors: n_pcs` \(40\) exceeds `pca: n_comps` \(30\)"),
        ({"cells": {"min_genes": 6000}}, r"`cells: min_genes` \(6000\) is not below `cells: max_genes` \(5000\)"),
        ({"cells": {"max_pct_counts": {"HB": 5}}}, "`cells: max_pct_counts: HB` is no gene family"),
        ({"regress_out": {"keys": ["pct_counts_HB"]}}, "`regress_out: keys` names pct_counts_HB"),
        ({"hvg": {"n_top_genes": None}}, "`hvg: n_top_genes` is null, which only"),
        ({"harmony": {"enabled": False}, "neighbors": {"use_rep": "X_pca_harmony"}}, "`harmony: enabled` is false"),
        ({"markers": {"groupings": ["leiden_1.0"]}}, "names leiden_1.0, which is not computed; there are leiden_0.6"),
        ({"ingest": {"counts": "layer/raw"}}, "`ingest: counts`"),
        ({"device": "cuda"}, "`device` is 'cuda', not one of auto, cpu, gpu"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(UserError, match=message):
        complete(**config)


def test_all_mistakes_at_once():
    with pytest.raises(UserError) as error:
        complete(pca={"n_comps": 0}, hvg={"span": 2}, seed=-1)
    assert str(error.value).count("\n  - ") == 3


def test_required_columns_are_those_that_no_stage_makes():
    config = complete(
        batch_key="PatientNumber", regress_out={"keys": ["total_counts", "S_score", "pct_counts_MT", "pct_counts_RIBO"]}
    )
    assert settings.required_columns(config) == {"PatientNumber": "batch_key", "S_score": "regress_out: keys"}


@pytest.fixture
def sheet(tmp_path, monkeypatch):
    """Write a sheet whose two files exist, and read it."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.h5ad", "b.h5ad"):
        (tmp_path / name).touch()

    def read(text):
        (tmp_path / "samples.tsv").write_text(text)
        return settings.read_sheet("samples.tsv", complete())

    return read


def test_sheet_keeps_order_obs_and_overrides(sheet):
    read = sheet(
        "sample\tpath\tsite\tmax_genes\tmax_pct_counts_MT\ts2\nB\tb.h5ad\tlung\t\t5\tx\nA\ta.h5ad\t\t300\t\t\n"
    )
    assert list(read.index) == ["B", "A"]
    assert settings.sheet_obs(read, "B") == {"site": "lung", "s2": "x"}
    cells = complete()["cells"]
    assert settings.cell_limits(read, "B", cells) == {**cells, "max_pct_counts": {"MT": 5}}
    assert settings.cell_limits(read, "A", cells) == {**cells, "max_genes": 300}
    assert cells == complete()["cells"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample,path\nA,a.h5ad\n", "lacks the column sample and path; it has sample,path"),
        ("sample\tfile\nA\ta.h5ad\n", "lacks the column path; it has sample, file"),
        ("sample\tpath\n", "it names no sample"),
        ("sample\tpath\nA\ta.h5ad\nA\tb.h5ad\n", "the sample name 'A' stands on several lines"),
        ("sample\tpath\nA/1\ta.h5ad\n", "the sample name 'A/1' cannot be part of a path"),
        ("sample\tpath\nA\tgone.h5ad\n", "sample A: gone.h5ad does not exist"),
        ("sample\tpath\nA\t\n", "sample A has no path"),
        ("sample\tpath\tmin_genes\nA\ta.h5ad\tmany\n", "sample A: min_genes is 'many', not a number"),
        ("sample\tpath\tmax_pct_counts_HB\nA\ta.h5ad\t5\n", "the column max_pct_counts_HB limits a gene family"),
    ],
)
def test_sheet_mistakes_are_named(sheet, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        sheet(text)


def test_missing_sheet_says_what_to_write(tmp_path):
    with pytest.raises(UserError, match=r"does not exist. Write one: tab-separated, with the columns sample and path"):
        settings.read_sheet(tmp_path / "samples.tsv", complete())
