"""Read the size of each sample from its file's header, for the models of resources (`lib.run.resources`).

The headers are read before any job runs, and their problems are collected (`lib.inputs.formats`). A small cache file
keeps the sizes, so that jobs of a cluster, which read the workflow again, open none of the samples' files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lib.inputs import config as settings
from lib.inputs import sheet as sheets
from lib.inputs import subgroups
from lib.inputs.formats import header_of, version_of_file
from lib.inputs.formats.base import COMPLETE, Header, Question, unreadable
from lib.run.errors import UserError
from lib.run.kept import keep, recall
from lib.store.categories import name_of

# Assumed for a file that cannot be read
BYTES_PER_NONZERO, NONZEROS_PER_CELL, N_VARS = 1.5, 1500, 40_000
SHOWN = 5  # samples that a message names


@dataclass(frozen=True)
class Sizes:
    """The size of a sample.

    Attributes
    ----------
    n_obs, n_vars
        Cells and genes of the file.
    nnz
        Non-zeros; an estimate if the matrix is dense or text.
    n_kept
        Cells that may be kept: those with more than `cells: min_genes` non-zeros, if the file tells them; else all.
    n_batches, largest_batch
        Batches, and cells of the largest.
    turned
        Whether the file is stored gene by gene, and is transposed on disk when it is read.
    groups
        Cells of each group of `subclusters: grouping`; None if neither file nor sheet tells.
    """

    n_obs: int
    n_vars: int
    nnz: int
    n_kept: int
    n_batches: int = 1
    largest_batch: int = 0
    turned: bool = False
    groups: dict[str, int] | None = None


def questions(sheet: pd.DataFrame, config: Mapping[str, Any]) -> dict[str, Question]:
    """The question to the file of each line of the sheet."""
    asked, columns = {}, sheets.obs_columns(sheet)
    numeric, required = config["regress_out"]["keys"], settings.required_columns(config)
    wanted = tuple((name, key, name in numeric) for name, key in required.items() if name not in columns)
    grouping = config["subclusters"]["grouping"]
    for sample in sheet.index:
        asked[sample] = Question(
            path=sheet.loc[sample, "path"],
            **sheets.file_options(sheet, sample, config),
            batch_key=config["batch_key"],
            min_genes=sheets.cell_limits(sheet, sample, config["cells"])["min_genes"] or 0,
            wanted=wanted,
            sheet=tuple(name for name in columns if name != "sample"),
            keep=tuple(settings.kept_columns(config)),
            alone=len(sheet) == 1,
            grouping=grouping if grouping in required else "",
        )
    return asked


def column_problems(sheet: pd.DataFrame, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Per sample the problems of the sheet's obs columns that the config names."""
    problems: dict[str, list[str]] = {}
    for name, key in settings.required_columns(config).items():
        if name not in sheets.obs_columns(sheet):
            continue
        must = name in config["regress_out"]["keys"]
        text = must and not pd.api.types.is_numeric_dtype(sheet[name])
        constant = must and sheet[name].nunique(dropna=False) == 1
        for sample, value in sheet[name].items():
            if text:
                problems.setdefault(sample, []).append(
                    f"{key}: the sheet's column {name} is text, not numeric: name another, or make it numbers"
                )
            elif constant and not pd.isna(value):
                problems.setdefault(sample, []).append(
                    f"{key}: the sheet's column {name} has the same value for all samples: nothing to regress out"
                )
            elif pd.isna(value) and (must or key in COMPLETE):
                problems.setdefault(sample, []).append(f"{key}: the sheet's column {name} is blank: fill it")
    return problems


def refuse_problems(problems: Mapping[str, list[str]]) -> None:
    """Refuse samples whose files or lines have problems.

    Raises
    ------
    UserError
        Lists all problems; one that several samples share is named once.
    """
    samples_of: dict[str, list[str]] = {}
    for sample, texts in problems.items():
        for text in texts:
            samples_of.setdefault(text, []).append(sample)
    lines = []
    for text, samples in samples_of.items():
        more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
        lines.append(f"  - sample{'s' * (len(samples) > 1)} {', '.join(samples[:SHOWN])}{more}: {text}")
    if lines:
        raise UserError("the samples are not right:\n" + "\n".join(lines))


def read_headers(asked: Mapping[str, Question], cache: Path) -> tuple[dict[str, Sizes], dict[str, list[str]]]:
    """Each sample's sizes, from `cache` if its file is unchanged, else from the file; and the file's problems.

    Parameters
    ----------
    asked
        Per sample its file, and what to read from it.
    cache
        A JSON file, created if it does not exist, and not written without permission. Files with problems are not
        cached.
    """
    known = recall(cache)
    found, answers, problems = {}, {}, {}
    for sample, question in asked.items():
        key = json.dumps([*asdict(question).values(), version_of_file(Path(question.path), question.genome)])
        if key in known:
            answers[key] = known[key]
            found[sample] = Sizes(**known[key])
            continue
        found[sample], wrong = examined(question)
        if wrong:
            problems[sample] = wrong
        else:
            answers[key] = asdict(found[sample])
    if not answers.keys() <= known.keys():
        keep(cache, answers)
    return found, problems


def examined(question: Question) -> tuple[Sizes, list[str]]:
    """The sizes of one file, estimated from its bytes if its header cannot be read; and its problems."""
    path, problems = Path(question.path), []
    try:
        return _sized(header_of(question, problems.append), question), problems
    except Exception as error:  # whatever it is, the problems of the other samples must be told too
        problems.append(str(error) if isinstance(error, UserError) else unreadable(path, error))
    nnz = int(_bytes(path) / BYTES_PER_NONZERO)
    return _sized(Header(max(1, nnz // NONZEROS_PER_CELL), N_VARS, nnz), question), problems


def sizes_of(question: Question) -> Sizes:
    """The sizes of one file."""
    return examined(question)[0]


def _sized(header: Header, question: Question) -> Sizes:
    n_obs, nnz = int(header.n_obs), int(header.nnz)
    if header.per_cell is None:  # kept cells have more than min_genes each
        n_kept = min(n_obs, int(nnz / (question.min_genes + 1)))
    else:
        n_kept = int((header.per_cell > question.min_genes).sum())
    n_batches, largest = header.batches or (1, n_obs)
    largest = min(largest, n_obs)
    return Sizes(n_obs, int(header.n_vars), nnz, n_kept, n_batches, largest, header.turned, header.groups)


def group_sizes(sheet: pd.DataFrame, config: Mapping[str, Any], found: Mapping[str, Sizes]) -> dict[str, int] | None:
    """The cells of each group of `subclusters: grouping`, before any are removed; None: not known before the run.

    Raises
    ------
    UserError
        If groups that the config names are not there, or have too few cells.
    """
    grouping, cells = config["subclusters"]["grouping"], {}
    parts = [size.groups for size in found.values()]
    if grouping in sheets.obs_columns(sheet):
        of_samples = zip(sheet[grouping], found.values(), strict=True)
        parts = [{} if pd.isna(value) else {name_of(value): size.n_obs} for value, size in of_samples]
    if None in parts:
        return None
    for part in parts:
        cells |= {group: cells.get(group, 0) + n for group, n in part.items()}
    subgroups.check(config["subclusters"]["groups"], cells, grouping)
    return cells


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0
