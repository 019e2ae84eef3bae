"""Config and sheet: defaults, and a message for every mistake before any job runs."""

from __future__ import annotations

import datetime
import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from lib.inputs import config as settings
from lib.inputs import sheet as sheets
from lib.inputs.computed import COMPUTED
from lib.inputs.demo import GENE_SETS, without_demo
from lib.inputs.sections import Config
from lib.run import code
from lib.run.errors import UserError
from lib.store.categories import name_of

HOME = Path(__file__).parents[2]


def complete(**config):
    return settings.complete(config)


def leaves(config, prefix=()):
    for key, value in config.items():
        if (
            isinstance(value, dict)
            and value
            and key not in ("gene_families", "max_pct_counts", "hidden_families", "gene_sets")
        ):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def test_committed_config_shows_every_key_with_its_default():
    shown = dict(leaves(yaml.safe_load((HOME / "config" / "config.yaml").read_text())))
    defaults = dict(leaves(complete()))
    assert shown.keys() == defaults.keys()
    assert {key: value for key, value in shown.items() if value != defaults[key]}.keys() == {
        ("label_key",),
        ("gene_sets",),
        ("annotation", "markers"),
    }


def test_reference_explains_every_key():
    text = (HOME / "config" / "README.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_:A-Z -]+)` \|", text, flags=re.M))
    assert documented == {": ".join(path) for path, _ in leaves(complete())}


@pytest.mark.parametrize("path", sorted((HOME / "config" / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_valid(path):
    complete(**yaml.safe_load(path.read_text()))


GENERATED = runpy.run_path(str(HOME / "config" / "generate.py"))["generated"]()


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generated_files_are_those_of_the_model(path):
    stale = "stale: run `uv run python config/generate.py`"
    assert path.read_bytes() == GENERATED[path].encode(), stale


@pytest.mark.parametrize("stage", ["hvg", "ingest"])
def test_stages_load_no_model_of_the_config_and_do_not_run_again_for_its_text(stage):
    names = {path.name for path in code.closure(code.SCRIPTS / f"{stage}.py")}
    assert not {"keys.py", "sections.py", "refusals.py"} & names
    asked = f"import sys; sys.path.insert(0, {str(code.SCRIPTS)!r}); import {stage}; print('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    "name",
    [
        *("total_counts", "log1p_total_counts_MT", "n_genes_by_counts", "pct_counts_in_top_50_genes", "doublet_score"),
        *("predicted_doublet", "kept", "reason", "kept_counts", "umap_density_x", "leiden_0.6", "louvain_1e-05"),
        "kmeans_8",
    ],
)
def test_columns_that_stages_write(name):
    assert COMPUTED.fullmatch(name)
    assert not COMPUTED.fullmatch(f"my_{name}")


def test_clusterings_are_those_of_the_sections():
    config = complete(leiden={"resolutions": [1, 0.5]}, louvain={"resolutions": []}, kmeans={"n_clusters": [8, 3]})
    assert settings.clustering_names(config) == ["leiden_1", "leiden_0.5", "kmeans_8", "kmeans_3"]


def test_names_of_clusterings_differ_and_tell_the_value_exactly():
    values = [0.3, 0.30000000000000004, 1, 1.5, 1e-5, 1e-300, 100.0]
    names = settings.clustering_names(complete(leiden={"resolutions": values}, louvain={"resolutions": []}))[:-1]
    assert len(set(names)) == len(values)
    assert [float(name.removeprefix("leiden_")) for name in names] == values
    assert all(COMPUTED.fullmatch(name) for name in names)


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
        (
            {"pca": {"n_comps": "50"}},
            "`pca: n_comps` is '50', a str; it must be integer. YAML reads this as text: write 50",
        ),
        ({"hvg": {"span": "1e-5"}}, "it must be number. YAML reads this as text: write 1.0e-05"),
        ({"hvg": {"span": "nan"}}, "`hvg: span` is 'nan', a str; it must be number$"),
        ({"leiden": {"n_iterations": 0}}, "`leiden: n_iterations` is 0, which clusters nothing"),
        ({"label_key": "x" * 300}, "whose 300 characters do not fit a path"),
        ({"label_key": "."}, "`label_key` names '.', which no file of HDF5 can have as a name"),
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
        ({"batch_key": "leiden_0.6"}, "`batch_key` names leiden_0.6, which this run .* kept as leiden_0.6_file"),
        ({"batch_key": "total_counts"}, "`batch_key` names total_counts"),
        ({"label_key": "kept"}, "`label_key` names kept, which"),
        ({"label_key": "cell/type"}, r"`label_key` names cell/type; .*rename\(columns={.cell/type.: .cell_type.}\)"),
        ({"umap": {"min_dist": 2}}, r"`umap: min_dist` \(2\) exceeds `umap: spread` \(1.0\)"),
        ({"hvg": {"flavor": "seurat", "n_top_genes": None, "min_mean": 4}}, r"`hvg: min_mean` \(4\) is not below"),
        ({"cells": {"mad": 5, "mad_metrics": ["genes"]}}, "`cells: mad_metrics` names 'genes', no metric of cells"),
        ({"device": "cuda"}, "`device` is 'cuda', not one of auto, cpu, gpu"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(UserError, match=message):
        complete(**config)


@pytest.mark.parametrize("families", [{"MT": None}, {"HB": ["HB"]}, {"MT": None, "RIBO": ["RPS"]}])
def test_what_hangs_on_a_family_goes_with_it(families):
    config = complete(qc={"gene_families": families}, cells={"mad": 5})
    assert config["cells"]["max_pct_counts"] == {}
    assert config["cells"]["mad_metrics"] == ["log1p_total_counts", "log1p_n_genes_by_counts"]
    assert config["regress_out"]["keys"] == ["total_counts"]


def test_what_the_config_asks_of_a_family_that_it_takes_away():
    asked = {"cells": {"max_pct_counts": {"MT": 20}}, "regress_out": {"keys": ["pct_counts_MT"]}}
    config = complete(qc={"gene_families": {"MT": None}}, **asked)
    assert (config["cells"]["max_pct_counts"], config["regress_out"]["keys"]) == ({}, [])
    with pytest.raises(UserError, match="max_pct_counts: MT` is no gene family"):
        complete(qc={"gene_families": {"HB": ["HB"]}}, **asked)


@pytest.mark.parametrize("config", [None, {}, {"pca": None, "markers": {"logreg": None}}, {"markers": None}])
def test_a_section_that_is_missing_or_null_has_its_defaults(config):
    assert json.dumps(settings.complete(config)) == json.dumps(complete())


def schemas(schema, path=()):
    """Each key's path and JSON schema, as editors read it."""
    for name, inner in schema["properties"].items():
        if "properties" in inner:
            yield from schemas(inner, (*path, name))
        else:
            yield pytest.param((*path, name), inner, id=".".join((*path, name)))


KEYS = list(schemas(yaml.safe_load((HOME / "config" / "schemas" / "config.schema.yaml").read_text())))
POOL = [  # values, and the type in JSON schema that accepts them
    *[("many", "string"), ("5", "string"), ("yes", "string"), (True, "boolean"), (False, "boolean"), (5.5, "number")],
    *[(None, "null"), ({}, "object"), ([], "array"), ([[1]], ""), ([{"a": 1}], ""), ([None], ""), ({5: 5}, "")],
    *[(math.nan, ""), (math.inf, ""), (-math.inf, ""), (10**400, ""), (-(10**400), ""), ((1, 2), ""), (b"x", "")],
    *[(datetime.date(2020, 1, 1), ""), (datetime.datetime(2020, 1, 1), ""), ({"a": {}}, ""), ({None: 1}, "")],
]


def types_of(schema):
    types = schema.get("type", "string")
    return types if isinstance(types, list) else [types]


def wrong_values(schema):
    """Values of the wrong type, out of range, not among the choices, or repeated; also within lists and mappings."""
    types = types_of(schema)
    yield from (value for value, kind in POOL if kind not in types)
    if "enum" in schema or "pattern" in schema:
        yield from ("many", "", schema["default"].upper() * 2 if schema.get("default") else "Many")
    if "minimum" in schema:
        yield from (schema["minimum"] - 1, schema["minimum"] - 1.0, -(10**12))
    if "exclusiveMinimum" in schema:
        yield from (schema["exclusiveMinimum"], schema["exclusiveMinimum"] - 1)
    if "maximum" in schema:
        yield from (schema["maximum"] + 1, 10**12)
    if "exclusiveMaximum" in schema:
        yield from (schema["exclusiveMaximum"], schema["exclusiveMaximum"] + 1)
    if "minLength" in schema:
        yield ""
    if "minItems" in schema:
        yield []
    if "items" in schema:
        yield from ([value] for value in wrong_values(schema["items"]))
    if schema.get("uniqueItems"):
        value = next(right_values(schema["items"]))
        yield from ([value, value], [value, float(value)] if isinstance(value, int) else [value] * 3)
    if schema.get("additionalProperties"):
        yield from ({"MT": value} for value in wrong_values(schema["additionalProperties"]))
        yield from ({key: None} for key in (5, None, True, 1.5, datetime.date(2020, 1, 1)))
    if "propertyNames" in schema:
        yield from ({"1MT": ["MT-"]}, {"": None}, {"MT X": None})


def right_values(schema):
    yield from schema.get("enum", [])
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1e6) + 1e-9)
    high = schema.get("maximum", schema.get("exclusiveMaximum", 1e6) - 1e-9)
    for kind in types_of(schema):
        if kind == "integer":
            yield from (low, float(low), int(high))
        elif kind == "number":
            yield from (low, high, (low + high) / 2, *(n for n in (0, 1, 2, 100) if low <= n <= high))
        elif kind == "boolean":
            yield from (True, False)
        elif kind == "string" and not {"enum", "pattern"} & schema.keys():
            yield from ("x", "µ, 5")
        elif kind == "array":
            yield from ([value] for value in right_values(schema["items"]))
        elif kind == "object" and "properties" in schema:
            yield {name: next(right_values(inner)) for name, inner in schema["properties"].items()}
        elif kind == "object":
            yield from ({"MT": value} for value in right_values(schema["additionalProperties"]))
    if "null" in types_of(schema):
        yield None


def nested(path, value):
    return {path[0]: nested(path[1:], value)} if path else value


@pytest.mark.parametrize(("path", "schema"), KEYS)
def test_every_wrong_value_of_every_key_is_named(path, schema):
    for value in wrong_values(schema):
        with pytest.raises(UserError) as error:
            settings.complete(nested(path, value))
        assert f"`{': '.join(path)}" in str(error.value), value


@pytest.mark.parametrize(("path", "schema"), KEYS)
def test_right_values_of_every_key_are_taken(path, schema):
    for value in [schema["default"], *right_values(schema)]:
        model, problems = Config.checked(nested(path, value))
        assert problems == [], value
        found = model.model_dump(warnings=False)
        for name in path:
            found = found[name]
        assert found == (list(map(name_of, value)) if path == ("subclusters", "groups") else value)  # names are text
        kinds = types_of(schema)
        assert type(found) is (int if "integer" in kinds and isinstance(value, float) else type(value))


SECTIONS = sorted({key.values[0][:n] for key in KEYS for n in range(1, len(key.values[0]))})


@pytest.mark.parametrize("path", SECTIONS, ids=".".join)
def test_sections_that_are_no_mapping_or_have_odd_keys_are_named(path):
    where = ": ".join(path)
    for value in (5, "x", [1], True, math.nan, datetime.date(2020, 1, 1)):
        with pytest.raises(UserError, match=f"`{where}` is .*; it must be object"):
            settings.complete(nested(path, value))
    for key in (5, None, True, 1.5, datetime.date(2020, 1, 1), "no such key", ""):
        with pytest.raises(UserError, match=re.escape(f"unknown key `{where}: ")):
            settings.complete(nested(path, {key: 1}))


@pytest.mark.parametrize("config", [5, "x", [1], [{"seed": 1}], True, math.nan])
def test_a_config_that_is_no_mapping_is_refused(config):
    with pytest.raises(UserError, match=r"`config` is .*; it must be object"):
        settings.complete(config)


def test_keys_of_the_config_that_are_no_strings_are_refused():
    with pytest.raises(UserError, match="unknown key `True`") as error:
        settings.complete({True: 1, 5: {}, None: None, "seed": -1})
    assert str(error.value).count("\n  - ") == 4


def test_all_mistakes_at_once():
    with pytest.raises(UserError) as error:
        complete(pca={"n_comps": 0}, hvg={"span": 2}, seed=-1)
    assert str(error.value).count("\n  - ") == 3


def test_a_column_that_is_named_like_a_clustering_is_a_grouping():
    config = complete(markers={"groupings": ["leiden_0.6_file", "kmeans_score"]})
    assert settings.groupings(config) == ["leiden_0.6_file", "kmeans_score"]


def test_required_columns_are_those_that_no_stage_makes():
    config = complete(
        batch_key="PatientNumber", regress_out={"keys": ["total_counts", "S_score", "pct_counts_MT", "pct_counts_RIBO"]}
    )
    assert settings.required_columns(config) == {"PatientNumber": "batch_key", "S_score": "regress_out: keys"}


def test_columns_of_the_file_that_the_config_names_although_a_run_may_write_such():
    config = complete(
        label_key="leiden_1.0", density={"groupby": "umap_density_x"}, markers={"groupings": ["leiden_0.6"]}
    )
    assert settings.kept_columns(config) == ["leiden_1.0", "umap_density_x"]
    assert settings.kept_columns(complete(label_key="CellType")) == []
    names = sheets.stored_names(["leiden_1.0", "leiden_0.6", "kept", "x", "sample"], ["x"], ["leiden_1.0"])
    assert list(names.values()) == ["leiden_1.0", "leiden_0.6_file", "kept_file", "x_file", "sample_file"]


@pytest.mark.parametrize(
    ("samples", "suffixes"),
    [
        (["S", "1-S", "2-1-S"], ["S", "1:S", "2:1:S"]),
        (["S", "AS", "S-1", "1.S"], ["S", "AS", "S-1", "1.S"]),
    ],
)
def test_cells_of_no_two_samples_have_the_same_name(samples, suffixes):
    sheet = pd.DataFrame(index=samples)
    assert [sheets.cell_suffix(sheet, sample) for sample in samples] == suffixes
    names = [f"{barcode}-{s}" for s in suffixes for barcode in ("A", "A-1", "A-1-1", "A-2-1", "A-2")]
    assert len(set(names)) == len(names)


@pytest.fixture
def sheet(tmp_path, monkeypatch):
    """Write a sheet whose two files exist, and read it."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.h5ad", "b.h5ad"):
        (tmp_path / name).touch()

    def read(text):
        (tmp_path / "samples.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return sheets.read_sheet("samples.tsv", complete())

    return read


def test_sheet_keeps_order_obs_and_overrides(sheet):
    read = sheet(
        "sample\tpath\tsite\tmax_genes\tmax_pct_counts_MT\ts2\nB\tb.h5ad\tlung\t\t5\tx\nA\ta.h5ad\t\t300\t\t\n"
    )
    assert list(read.index) == ["B", "A"]
    assert sheets.sheet_obs(read, "B") == {"site": "lung", "s2": "x"}
    assert sheets.sheet_obs(read, "A") == {"site": None, "s2": None}
    cells = complete()["cells"]
    used = {name: value for name, value in cells.items() if name != "mad_metrics"}  # which nothing reads without mad
    assert sheets.cell_limits(read, "B", cells) == {**used, "max_pct_counts": {"MT": 5}}
    assert sheets.cell_limits(read, "A", cells) == {**used, "max_genes": 300}
    assert sheets.cell_limits(read, "A", cells | {"mad": 5}) == {**cells, "mad": 5, "max_genes": 300}
    assert cells == complete()["cells"]


def test_options_of_the_file_of_a_sample(sheet):
    read = sheet("sample\tpath\tcounts\tgenome\nA\ta.h5ad\traw\thg19\nB\tb.h5ad\t\thg38\n")
    config = complete(ingest={"genome": "GRCh38", "obs_names": "barcode"})
    whole = {"counts": "X", "genome": "GRCh38", "orientation": "auto", "obs_names": "barcode", "var_names": None}
    assert sheets.file_options(read, "A", config) == whole | {"counts": "raw"}
    assert sheets.file_options(read, "B", config) == whole  # a column genome is one of obs


def test_doublet_options_of_a_sample(sheet):
    read = sheet("sample\tpath\texpected_doublet_rate\tdoublet_threshold\nA\ta.h5ad\t0.08\t\nB\tb.h5ad\t\t0.3\n")
    doublets = complete()["doublets"]
    assert sheets.doublet_options(read, "A", doublets) == {**doublets, "expected_doublet_rate": 0.08}
    assert sheets.doublet_options(read, "B", doublets) == {**doublets, "threshold": 0.3}
    assert sheets.sheet_obs(read, "A") == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("45", "62"), [45, 62]),
        (("45", ""), [45.0, None]),
        (("4.5", "NA"), [4.5, None]),
        (("-1e-3", ".5"), [-0.001, 0.5]),
        (("007", "012"), ["007", "012"]),
        (("45", "old"), ["45", "old"]),
        (("NA", "EU"), ["NA", "EU"]),
        (("12345678901234567", "1"), ["12345678901234567", "1"]),
        (("true", "false"), ["true", "false"]),
        (("", ""), [None, None]),
        (("1,5", "2"), ["1,5", "2"]),
    ],
)
def test_types_of_sheet_columns(sheet, values, expected):
    read = sheet(
        "sample\tpath\tx\n" + "".join(f"{s}\t{s.lower()}.h5ad\t{v}\n" for s, v in zip("AB", values, strict=True))
    )
    found = [sheets.sheet_obs(read, sample)["x"] for sample in "AB"]
    assert [None if value is None or value != value else value for value in found] == expected
    assert [type(value) for value in found] == [float if isinstance(expected[0], float) else type(v) for v in expected]


def test_what_is_no_comment_and_no_blank_counts(sheet):
    """Only a line that begins with # is a comment; blanks around fields are no part of them."""
    read = sheet("# a comment\n\n sample \tpath \tdonor\n#A\ta.h5ad\tx\nA \t a.h5ad\tdonor #1\nB\tb.h5ad\t donor #2 \n")
    assert read["donor"].tolist() == ["donor #1", "donor #2"]
    assert read["path"].tolist() == ["a.h5ad", "b.h5ad"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_of_sheets(sheet, encoding, end):
    text = end.join(["sample\tpath\tsite\t", 'A\ta.h5ad\t"Zürich, ""old"""\t', "B\tb.h5ad", ""])
    read = sheet(text.encode(encoding))
    assert read["site"].tolist() == ['Zürich, "old"', None]
    assert list(read) == ["sample", "path", "site"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample,path\nA,a.h5ad\n", "lacks the column sample and path; it has sample,path"),
        ("sample\tfile\nA\ta.h5ad\n", "lacks the column path; it has sample, file"),
        ("sample\tpath\n", "it names no sample"),
        ("", "lacks the column sample and path"),
        ("sample\tpath\nA\ta.h5ad\nA\tb.h5ad\n", "the sample name 'A' stands on several lines"),
        ("sample\tpath\nA/1\ta.h5ad\n", "the sample name 'A/1' cannot be part of a path"),
        ("sample\tpath\n\ta.h5ad\n", "a line has no sample name"),
        ("sample\tpath\nA\tgone.h5ad\n", "sample A: gone.h5ad does not exist"),
        ("sample\tpath\nA\t\n", "sample A has no path"),
        ("sample\tpath\nS1\ta.h5ad\ns1\ta.h5ad\n", "S1 and s1 differ by case only"),
        (f"sample\tpath\n{'S' * 200}\ta.h5ad\n", "has 200 characters: use 150 at most"),
        ("sample\tpath\tmin_genes\nA\ta.h5ad\tmany\n", "sample A: min_genes is 'many', not a number"),
        ("sample\tpath\texpected_doublet_rate\nA\ta.h5ad\t8\n", "expected_doublet_rate is '8', not between 0 and 1"),
        ("sample\tpath\tdoublet_threshold\nA\ta.h5ad\t8%\n", "sample A: doublet_threshold is '8%', not a number"),
        ("sample\tpath\tcounts\nA\ta.h5ad\tcounts\n", "sample A: counts is 'counts', not X, raw or layers/NAME"),
        ("sample\tpath\torientation\nA\ta.h5ad\tT\n", "sample A: orientation is 'T', not one of auto, cells_by_genes"),
        ("sample\tpath\tmax_pct_counts_HB\nA\ta.h5ad\t5\n", "the column max_pct_counts_HB limits a gene family"),
        ("sample\tpath\ttotal_counts\nA\ta.h5ad\t5\n", "the column total_counts is named as what this workflow writes"),
        ("sample\tpath\tsite\tsite\nA\ta.h5ad\tx\ty\n", "the column site stands there twice"),
        ("sample\tpath\n# no\nA\ta.h5ad\tx\n", "line 3 has a field without a name above it: A | a.h5ad | x"),
        ("sample\tpath\nA\tx{y}.h5ad\n", "x{y}.h5ad has braces, which mean wildcards to Snakemake"),
        ('sample\tpath\n"A\ta.h5ad\nB\ta.h5ad\n', 'line 2 has a quote that is not closed: "A'),
        (b"PK\x03\x04xlsx", "is an Excel workbook"),
        ("sample\tpath\nA\ta.h5ad\n".encode("utf-16-le"), "is no text"),
    ],
)
def test_sheet_mistakes_are_named(sheet, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        sheet(text)


def test_missing_sheet_says_what_to_write(tmp_path):
    with pytest.raises(UserError, match=r"does not exist. Write one: tab-separated, with the columns sample and path"):
        sheets.read_sheet(tmp_path / "samples.tsv", complete())


@pytest.mark.parametrize(
    ("flavor", "read"),
    [
        ("seurat_v3", {"span"}),
        ("seurat_v3_paper", {"span"}),
        ("seurat", {"n_bins", "min_mean", "max_mean", "min_disp", "max_disp"}),
        ("cell_ranger", {"min_mean", "max_mean", "min_disp", "max_disp"}),
        ("pearson_residuals", {"theta", "clip"}),
        ("poisson_gene_selection", {"n_samples"}),
    ],
)
def test_a_flavour_is_given_the_keys_that_it_reads(flavor, read):
    config = settings.complete({"hvg": {"flavor": flavor}})
    assert set(settings.hvg_options(config)) == {"flavor", "n_top_genes", "per_batch", "include", "exclude"} | read


def test_the_demos_gene_sets_are_for_its_samples_alone(tmp_path):
    """A config of the user's extends config.yaml: of its sets the demo's go, and the types with the last list."""
    theirs, own = tmp_path / "own.tsv", {"mine": ["GENE1", "GENE2", "GENE3"]}
    theirs.write_text("sample\tpath\nkidney\tdata/demo/kidney.h5ad\n")
    asked = {"gene_sets": GENE_SETS, "annotation": {"markers": "lists"}}
    assert without_demo(asked | {"samples": "config/samples.tsv"}, HOME) == asked | {"samples": "config/samples.tsv"}
    assert without_demo(asked, HOME) == asked
    found = without_demo(asked | {"samples": str(theirs)}, HOME)
    assert found["gene_sets"] == {}
    assert found["annotation"]["markers"] is None
    found = without_demo({**asked, "samples": str(theirs), "gene_sets": GENE_SETS | own}, HOME)
    assert found["gene_sets"] == own
    assert found["annotation"]["markers"] == "lists"
    changed = {"B": ["MS4A1", "CD79A", "CD19"]}
    assert without_demo({"samples": str(theirs), "gene_sets": changed}, HOME)["gene_sets"] == changed
    assert asked == {"gene_sets": GENE_SETS, "annotation": {"markers": "lists"}}
