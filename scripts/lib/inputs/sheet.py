"""Check the complete sample sheet before any job runs, and read the settings of each sample from its line."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.inputs.computed import COMPUTED
from lib.run.errors import UserError
from lib.store.names import LONGEST

OVERRIDES = ("min_genes", "max_genes", "min_counts", "max_counts", "mad")  # sheet columns that replace `cells` keys


SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


DOUBLET_OPTIONS = {"expected_doublet_rate": "expected_doublet_rate", "doublet_threshold": "threshold"}  # and `doublets`


TEXT = ("sample", "path", "counts", "orientation")


NOT_OBS = (*TEXT, *OVERRIDES, *DOUBLET_OPTIONS)  # sheet columns with a special meaning


NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d{0,14}|(?:0|[1-9]\d*)?\.\d+|(?:0|[1-9]\d*)\.)(?:[eE][+-]?\d+)?")


NO_NUMBER = ("NA", "N/A", "n/a", "#N/A", "NaN", "nan", "null")  # texts for a missing number


def read_sheet(path: str | Path, config: Mapping[str, Any]) -> pd.DataFrame:
    """The sample sheet, indexed by `sample`, in the order of the file.

    Blanks around fields are ignored; a blank field is missing (None, or NaN in a column of numbers). A column has
    integers or float64 if all its values are numbers (`typed`), else text (object).

    Raises
    ------
    UserError
        Lists all problems: missing columns, names that repeat or cannot be part of a path, missing files.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"the sample sheet {path} does not exist. Write one: tab-separated, with the columns sample and path, "
            "a line a sample; or name yours in the config (`samples:`)."
        )
    names, lines = _sheet_lines(path)
    missing = [name for name in ("sample", "path") if name not in names]
    if missing:
        raise UserError(
            f"the sample sheet {path} lacks the column {' and '.join(missing)}; it has {', '.join(names)}. "
            "Columns are separated by tabs."
        )
    problems = [f"the column {name} stands there twice" for name, n in Counter(filter(None, names)).items() if n > 1]
    for number, line in lines.items():
        if any(line[len(names) :]) or any(v for name, v in zip(names, line, strict=False) if not name):
            problems.append(f"line {number} has a field without a name above it: {' | '.join(filter(None, line))}")
    if not problems:
        filled = [[value or None for value in line] + [None] * (len(names) - len(line)) for line in lines.values()]
        columns = {name: [line[i] for line in filled] for i, name in enumerate(names) if name}
        sheet = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
        problems = list(_sheet_problems(sheet, config))
    if problems:
        raise UserError(f"the sample sheet {path} is not right:\n" + "\n".join(f"  - {p}" for p in problems))
    sheet = pd.DataFrame({name: values if name in TEXT else typed(values) for name, values in sheet.items()})
    return sheet.set_index(pd.Index(sheet["sample"], dtype=object), drop=False)


def _sheet_lines(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    """The names of the columns, and the fields of each later line by its number, without comments and empty lines."""
    raw = path.read_bytes()
    if raw.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"the sample sheet {path} is an Excel workbook. Save it as text, separated by tabs.")
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))  # Excel's Unicode text
    if b"\0" in raw and not wide:
        raise UserError(f"the sample sheet {path} is no text. Save it as text, separated by tabs.")
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("utf-16" if wide else "cp1252", errors="replace")
    found = {}
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if not line.startswith("#") and line.strip():
            try:
                found[number] = [field.strip() for field in next(csv.reader([line], delimiter="\t", strict=True))]
            except csv.Error:
                raise UserError(
                    f"the sample sheet {path}: line {number} has a quote that is not closed: {line[:80]}. Remove it, "
                    'or write the field in quotes, with two ("") for each quote in it.'
                ) from None
    return found.pop(next(iter(found), None), []), found


def typed(values: pd.Series) -> pd.Series:
    """Convert a column of text to numbers if all values are numbers: int64, or float64 with NaN if some are missing.

    A column with a leading 0 that is not needed, or with more than 15 digits, holds names and stays text.
    """
    present = values.notna() & ~values.isin(NO_NUMBER)
    if not present.any() or not values[present].map(lambda text: bool(NUMBER.fullmatch(text))).all():
        return values
    numbers = values.where(present).astype(np.float64)
    whole = present.all() and values.str.fullmatch(r"[+-]?\d+").all()
    return numbers.astype(np.int64) if whole else numbers


def find_sheet(path: str, home: Path) -> Path:
    """The sheet's path: in the working directory if it exists there, else in the workflow's folder (the demo's)."""
    return Path(path) if Path(path).exists() or not (home / path).exists() else home / path


def path_of(sheet: pd.DataFrame, sample: str) -> str:
    """A sample's file."""
    return sheet.loc[sample, "path"]


def file_options(sheet: pd.DataFrame, sample: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """How a sample's file is read: the config's `ingest` section, with the values that the sheet's columns replace."""
    line, options = sheet.loc[sample], {name: value for name, value in config["ingest"].items() if name != "gene_key"}
    return options | {name: line[name] for name in ("counts", "orientation") if line.get(name)}


def cell_limits(sheet: pd.DataFrame, sample: str, cells: Mapping[str, Any]) -> dict[str, Any]:
    """The config's `cells` section, with the values that the sample's line of the sheet replaces."""
    line = sheet.loc[sample].dropna()
    limits = {**cells, "max_pct_counts": dict(cells["max_pct_counts"])}
    for name, value in line.items():
        if name in OVERRIDES:
            limits[name] = float(value)
        elif name.startswith("max_pct_counts_"):
            limits["max_pct_counts"][name.removeprefix("max_pct_counts_")] = float(value)
    return used_limits(limits)


def used_limits(cells: Mapping[str, Any]) -> dict[str, Any]:
    """A `cells` section without `mad_metrics` if `mad` is null, and so nothing reads them."""
    return {name: value for name, value in cells.items() if name != "mad_metrics" or cells["mad"] is not None}


def doublet_options(sheet: pd.DataFrame, sample: str, doublets: Mapping[str, Any]) -> dict[str, Any]:
    """The config's `doublets` section with this sample's own `expected_doublet_rate` and `threshold`."""
    line = sheet.loc[sample].dropna()
    return {**doublets, **{key: float(line[name]) for name, key in DOUBLET_OPTIONS.items() if name in line}}


def sheet_obs(sheet: pd.DataFrame, sample: str) -> dict[str, Any]:
    """The values that the sample's line adds to obs: text (None: missing), integers, or floats (NaN: missing)."""
    found = {}
    for name in obs_columns(sheet):
        value = sheet.loc[sample, name]
        found[name] = value.item() if isinstance(value, np.generic) else value
    return found


def batch_of_line(sheet: pd.DataFrame, sample: str, batch_key: str) -> dict[str, Any]:
    """The sample's batch, if a column of the sheet tells the batches."""
    return {name: value for name, value in sheet_obs(sheet, sample).items() if name == batch_key}


def obs_columns(sheet: pd.DataFrame) -> list[str]:
    """The sheet's columns that become obs."""
    return [name for name in sheet if name not in NOT_OBS and not name.startswith("max_pct_counts_")]


def cell_suffix(sheet: pd.DataFrame, sample: str) -> str:
    """The suffix of a sample's cell names after `{barcode}-`: its name.

    If that ends with `-` and another sample's name, the cells of both could have the same names (`A-1` of sample `S`,
    and `A` of sample `1-S`). Then each `-` in the longer name becomes `:`, which no sample's name contains.
    """
    parts, others = sample.split("-"), set(sheet.index)
    ambiguous = any("-".join(parts[i:]) in others for i in range(1, len(parts)))
    return sample.replace("-", ":") if ambiguous else sample


def stored_names(columns: Iterable[str], sheet: Collection[str], keep: Collection[str]) -> dict[str, str]:
    """File's obs column -> its name in the store.

    The name is `{column}_file` if the sheet has the same column, or a stage writes one of this name (`COMPUTED`).

    Parameters
    ----------
    columns
        The file's columns.
    sheet
        The sheet's columns of obs.
    keep
        Columns that the config takes from the file although stages may write columns of the same names.
    """
    columns = [str(name) for name in columns]
    ours = {name for name in columns if name in {"sample", *sheet} or (COMPUTED.fullmatch(name) and name not in keep)}
    taken, names = {"sample", *sheet, *columns}, {}
    for name in columns:
        stored = name
        while name in ours and stored in taken:
            stored += "_file"
        taken.add(stored)
        names[name] = stored
    return names


def _sheet_problems(sheet: pd.DataFrame, config: Mapping[str, Any]) -> Iterator[str]:
    """The problems of a sheet, whose columns are all still text."""
    if sheet.empty:
        yield "it names no sample"
    for name in sheet["sample"][sheet["sample"].duplicated() & sheet["sample"].notna()].unique():
        yield f"the sample name {name!r} stands on several lines: give each line its own"
    known: dict[str, str] = {}
    for name in sheet["sample"].dropna():
        other = known.setdefault(name.lower(), name)
        if other != name:
            yield f"the sample names {other} and {name} differ by case only, which some file systems do not tell apart"
    for name in sheet["sample"]:
        if name is None:
            yield "a line has no sample name"
        elif len(name) > LONGEST:
            yield f"the sample name {name[:40]}... has {len(name)} characters: use {LONGEST} at most"
        elif not SAFE_NAME.fullmatch(name):
            yield f"the sample name {name!r} cannot be part of a path: use letters, digits, '.', '_' and '-'"
    for sample, path in zip(sheet["sample"], sheet["path"], strict=True):
        if not path:
            yield f"sample {sample} has no path"
        elif set(path) & set("{}"):
            yield f"sample {sample}: {path} has braces, which mean wildcards to Snakemake: rename the file, or link it"
        elif not Path(path).exists() and not path.startswith("demo/"):
            yield f"sample {sample}: {path} does not exist (relative paths start at {Path.cwd()})"
    families = config["qc"]["gene_families"]
    for column in sheet.columns:
        family = column.removeprefix("max_pct_counts_")
        if family != column and family not in families:
            yield f"the column {column} limits a gene family that `qc: gene_families` does not have"
        if COMPUTED.fullmatch(column) or column == "_index":
            yield f"the column {column} is named as what this workflow writes itself: give it another name"
        for sample, value in zip(sheet["sample"], sheet[column], strict=True):
            if value and (problem := _sheet_value_problem(column, value)):
                yield f"sample {sample}: {column} is {value!r}, {problem}"


def _sheet_value_problem(column: str, value: str) -> str | None:
    """The problem of a value in a column with a special meaning; None if it is right."""
    if column in (*OVERRIDES, *DOUBLET_OPTIONS) or column.startswith("max_pct_counts_"):
        number = pd.to_numeric(value, errors="coerce")
        if pd.isna(number):
            return "not a number"
        inside = 0 < number < 1 or (column == "doublet_threshold" and 0 <= number <= 1)
        return "not between 0 and 1" if column in DOUBLET_OPTIONS and not inside else None
    if column == "counts" and not re.fullmatch("X|raw|layers/.+", value):
        return "not X, raw or layers/NAME"
    known = ("auto", "cells_by_genes", "genes_by_cells")
    return f"not one of {', '.join(known)}" if column == "orientation" and value not in known else None
