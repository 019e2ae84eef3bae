"""Every key of the config with some 25 values: refused by name before any job, or right results, or a message.

The values that the config takes run the stages that read them, on a tiny cohort, each in its own process
(`stage_runs`). Keys are those of the schema: a new key is tried without a change here.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import odd_table
import pytest
import yaml
from lib.inputs import config as settings
from lib.inputs.sections import Config
from lib.inputs.sheet import read_sheet
from lib.run.errors import UserError
from stage_runs import BULK, ODD, SETS, TINY, merged, steps, write_cohort

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("values")]

HOME = Path(__file__).parents[2]
Path_ = tuple[str, ...]

NUMBERS = [0, -1, 1, 5.0, 5.5, 40, 300, 1e-9, 1e-300, 1e4, 1e9, 1e15, 1e308, math.nan, math.inf, -math.inf]
TEXTS = ["", "5", "1e-5", "../../x", "a/b", "{sample}", "x\ny", "n" * 300, ".", "..", " ", "CellType", "PatientNumber"]
OTHERS = [[], {}, None, True, datetime.date(2020, 1, 1)]
# Those of them for what is inner: within a list, a mapping or a contrast, or with further contexts
INNER_NUMBERS = [0, -1, 5.5, 40, 1e-9, 1e15, math.nan, math.inf]
INNER_TEXTS = ["", "1e-5", "../../x", "{sample}", "x\ny", "n" * 300, "..", " ", "CellType", "😀", "X"]
CONTRAST = BULK["de"][0]
# Other keys with which a key is tried, so that a stage reads it
CONTEXTS: dict[Path_, list[dict[str, Any]]] = {
    ("cells", "mad_metrics"): [{"cells": {"mad": 5}}],
    ("normalize", "target_sum"): [{}, {"hvg": {"flavor": "seurat"}}, {"hvg": {"flavor": "cell_ranger"}}],
    ("harmony", "lamb"): [{}, {"harmony": {"keys": ["sample", "CellType"]}}],
    ("markers", "logreg", "C"): [{}, {"markers": {"logreg": {"use_scaled": False}}}],
    ("subclusters", "grouping"): [{"subclusters": {"groups": ["B", "P1"]}}],
    ("subclusters", "groups"): [{"subclusters": {"grouping": "CellType"}}],
    ("subclusters", "resolution"): [{"subclusters": {"grouping": "CellType", "groups": ["B"]}}],
}
FLAVORS = yaml.safe_load((HOME / "config" / "schemas" / "config.schema.yaml").read_text())["properties"]["hvg"]
FLAVORS = FLAVORS["properties"]["flavor"]["enum"]


def schemas(schema: dict[str, Any], path: Path_ = ()) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """Each key's path and JSON schema."""
    for name, inner in schema["properties"].items():
        if "properties" in inner:
            yield from schemas(inner, (*path, name))
        else:
            yield (*path, name), inner


KEYS = dict(schemas(yaml.safe_load((HOME / "config" / "schemas" / "config.schema.yaml").read_text())))


def types_of(schema: dict[str, Any]) -> list[str]:
    types = schema.get("type", "string")
    return types if isinstance(types, list) else [types]


def limits_of(schema: dict[str, Any]) -> Iterator[Any]:
    """Values at the limits of a schema, just inside and just outside."""
    whole = "integer" in types_of(schema)
    for name, inward in (("minimum", 1), ("exclusiveMinimum", 1), ("maximum", -1), ("exclusiveMaximum", -1)):
        if name in schema:
            at = schema[name]
            step = 1 if whole else max(abs(at), 1) * 1e-6
            yield from (at, at - inward * step)
            if inward > 0 or not whole:  # rounds just below the maximum take as long as those at it
                yield at + inward * step


def values_of(schema: dict[str, Any], inner: bool = False) -> Iterator[Any]:
    """The values for a key; fewer for what is `inner`."""
    types = set(types_of(schema))
    if types & {"number", "integer"}:
        yield from [*limits_of(schema), *(INNER_NUMBERS if inner else NUMBERS), *OTHERS, "", "5", "1e-5"]
        return
    if "properties" in schema:  # a contrast
        yield from ({}, CONTRAST)
        for name, of_field in schema["properties"].items():
            yield from (CONTRAST | {name: value} for value in values_of(of_field, True))
        return
    yield from [*schema.get("enum", []), False, *OTHERS, 0, -1, 5.5, math.nan, math.inf]
    if "array" in types:
        items = list(values_of(schema["items"], True))
        simple = list if "properties" in schema["items"] else list | dict
        yield from ([value] for value in items if not isinstance(value, simple))
        yield from ([value, value] for value in items[:2])
        kind = str if "string" in types_of(schema["items"]) else float
        yield [value for value in items if isinstance(value, kind)][:4]
    if "object" in types:
        yield from ({"MT": value} for value in values_of(schema["additionalProperties"], True))
        yield from ({name: 5} for name in TEXTS)
        yield from ({name: None} for name in ("MT", "RIBO", "HB"))
    if "array" not in types or "string" in types:
        yield from INNER_TEXTS if inner else [*TEXTS, *ODD]


def nested(path: Path_, value: Any) -> dict[str, Any]:
    return {path[0]: nested(path[1:], value)} if path else value


def contexts(path: Path_) -> list[dict[str, Any]]:
    """Configs in which stages read the key: of a flavour's key each of its flavours."""
    if path[0] != "hvg" or path[1] in ("flavor", "include", "exclude"):
        return CONTEXTS.get(path, [{}])
    field = Config.inner()["hvg"].model_fields[path[1]]
    only = field.json_schema_extra.get("only", FLAVORS)
    cut = path[1].startswith(("min_", "max_"))
    return [{"hvg": {"flavor": name} | ({"n_top_genes": None} if cut else {})} for name in only]


@contextmanager
def serving(folder: Path) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """A function that tries configs in the stages; see `stage_runs`."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    paths = f"sys.path.insert(0, {str(HOME / 'tests')!r}); sys.path.append({str(HOME / 'scripts')!r})"
    command = [sys.executable, "-c", f"import sys; {paths}; import stage_runs; stage_runs.serve({str(folder)!r})"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout.readline() == "[]\n"

        def tried(configs: list[dict[str, Any]], figures_of_every: int = 1) -> list[dict[str, Any]]:
            process.stdin.write(json.dumps([figures_of_every, configs]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield tried
        process.stdin.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("values")) as tried:
        yield tried


def cases_of(path: Path_) -> list[dict[str, Any]]:
    """The configs for a key: each value, in the first context; fewer in the others."""
    found: dict[str, dict[str, Any]] = {}
    for i, context in enumerate(contexts(path)):
        for value in values_of(KEYS[path], inner=i > 0):
            of_section = next((given for given in (SETS, BULK) if path[0] in given), {})
            config = merged(merged(of_section, context), nested(path, value))
            found.setdefault(repr(config), config)
    return list(found.values())


def refusal(config: dict[str, Any]) -> str:
    """The message by which `complete` refuses a config; empty if it takes it."""
    try:
        settings.complete(merged(TINY, config))
    except UserError as error:
        return str(error)
    return ""


@dataclass
class Tried:
    """What became of the values of a key: how many were refused, right, or told; and what is wrong."""

    refused: int = 0
    right: int = 0
    told: int = 0
    wrong: list[str] = field(default_factory=list)


def outcomes_of(path: Path_, server: Callable[..., list[dict[str, Any]]]) -> Tried:
    """Try all values of a key."""
    found, taken = Tried(), []
    for config in cases_of(path):
        text = refusal(config)
        if not text:
            taken.append(config)
        elif f"`{': '.join(path)}" in text:
            found.refused += 1
        else:
            found.wrong.append(f"{config!r}: the refusal does not name the key: {text}")
    for config, outcome in zip(taken, server(taken, figures_of_every=10), strict=True):
        told = outcome.get("told") or outcome.get("refused")
        if "wrong" in outcome:
            found.wrong.append(f"{config!r:.200}: {outcome['wrong']}")
        elif told and ": ".join(path) not in told:
            found.wrong.append(f"{config!r:.200}: the message does not name the key: {told}")
        elif told:
            found.told += 1
        else:
            found.right += 1
    return found


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_each_value_is_refused_by_name_or_gives_right_results(server, path):
    found = outcomes_of(path, server)
    assert found.refused >= 5
    assert not found.wrong, "\n".join(found.wrong)


def test_params_are_those_of_the_rules(tmp_path):
    """The jobs of `stage_runs` have the params that the rules name."""
    write_cohort(tmp_path)
    more = {"samples": str(tmp_path / "samples.tsv"), "annotation": {"reference": str(tmp_path / "P1.h5ad")}}
    more["subclusters"] = {"grouping": "CellType", "groups": ["B"]}
    config = settings.complete(merged(merged(merged(TINY, SETS), BULK), more))
    text = "".join(path.read_text() for path in (HOME / "rules").glob("*.smk"))
    rules = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", text, re.M | re.S))
    of_rules = {
        name: set(re.findall(r"^        (\w+)=", body.partition("    params:\n")[2].partition("    script:")[0], re.M))
        for name, body in rules.items()
    }
    made = steps(config, read_sheet(config["samples"], config)).values()
    assert {step.stage for step in made} >= set(rules) - {
        *("all", "simulate", "shard", "runs", "report", "explorer", "preflight", "doctor", "figures_density"),
        "cell_cycle",  # whose genes the tiny cohort does not have
    }
    for step in made:
        assert set(step.params) == of_rules[step.stage], step.stage


def rows() -> list[tuple[str, str, str]]:
    """Per key of the config what becomes of its values, for docs/odd_input.md."""
    table = []
    for path in KEYS:
        refused = [bool(refusal(config)) for config in cases_of(path)]
        n = len(refused) - sum(refused)
        taken = f"{n} taken: right results, or a message that names the key" if n else "none taken"
        table.append((": ".join(path), f"{len(refused)} values", f"{sum(refused)} refused before any job, {taken}"))
    return table


def test_the_table_of_values_in_the_docs_is_current():
    page = (HOME / "docs" / "odd_input.md").read_text()
    assert odd_table.rows_in(page, "Values of the config") == rows(), "run tests/odd_table.py"


OF_LABELS = {
    "label_key": {"label_key": "labels"},
    "batch_key": {"batch_key": "labels", "doublets": {"min_cells": 10}},
    "harmony: keys": {"harmony": {"keys": ["sample", "labels"]}},
    "density: groupby": {"density": {"groupby": "labels"}},
    "markers: groupings": {"markers": {"groupings": ["labels"]}},
    "conditions": merged(
        BULK, {"pseudobulk": {"groupings": ["labels"], "min_cells": 2}, "composition": {"groupings": ["labels"]}}
    ),
    "names that differ by case": {"label_key": "x", "batch_key": "X", "markers": {"groupings": ["x", "X"]}},
}


@pytest.mark.parametrize("config", OF_LABELS.values(), ids=OF_LABELS)
def test_odd_labels_of_a_column_work_to_the_atlas_and_the_figures(server, config):
    (outcome,) = server([config])
    assert not {"wrong", "told", "refused"} & outcome.keys(), outcome
    assert "atlas" in outcome["ran"]
