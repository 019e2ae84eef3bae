"""The contrasts of the config (`de`, `composition`): which samples are compared with which, and by which design.

The design of a contrast is a matrix with a line for each sample of its two levels: 1; 1 for samples of the level and 0
for those of the reference; then its covariates, as far as they vary. A covariate of numbers is standardised, any other
one has a column for each of its values but the first. `C(batch)` takes the numbers of `batch` as names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lib.inputs import config as settings
from lib.inputs import sheet as sheets
from lib.run.errors import UserError
from lib.store.categories import as_categories, name_of, natural_order
from lib.store.names import LONGEST, escape

FEWEST = 2  # samples of a level
SHOWN = 30  # samples that a table of a message names
NAMED = re.compile(r"C\((.+)\)")  # a covariate whose numbers are names

Contrast = Mapping[str, Any]  # name, column, level, reference, covariates, groupby


def declared(config: Mapping[str, Any], section: str = "de") -> list[dict[str, Any]]:
    """The contrasts of `de` or `composition`, each with a name, and with levels as text."""
    given = config["de"] if section == "de" else config["composition"]["contrasts"]
    found = []
    for contrast in config["de"] if given is None else given:
        level, reference = name_of(contrast["level"]), name_of(contrast["reference"])
        name = contrast["name"] or f"{contrast['column']}_{level}_vs_{reference}"
        found.append({**contrast, "name": name, "level": level, "reference": reference})
    return found


def sections(config: Mapping[str, Any]) -> dict[str, str]:
    """The sections that declare contrasts of their own -> the key that messages name."""
    own = config["composition"]["contrasts"] is not None
    return {"de": "de"} | ({"composition": "composition: contrasts"} if own else {})


def bulk_groupings(config: Mapping[str, Any]) -> list[str]:
    """The groupings whose pseudobulks are made: those named; with `de` alone the label, or the first clustering."""
    named = [*config["pseudobulk"]["groupings"], *(contrast["groupby"] for contrast in config["de"])]
    found = list(dict.fromkeys(filter(None, named)))
    if config["de"] and not found:
        found = [config["label_key"] or next(iter(settings.clustering_names(config)), "")]
    return list(filter(None, found))


def pairs(config: Mapping[str, Any], section: str = "de") -> list[tuple[str, dict[str, Any]]]:
    """Each grouping with each contrast that is tested in its groups."""
    groupings = bulk_groupings(config) if section == "de" else config["composition"]["groupings"]
    everywhere = config["pseudobulk"]["groupings"] or groupings if section == "de" else groupings
    return [
        (grouping, contrast)
        for grouping in groupings
        for contrast in declared(config, section)
        if contrast["groupby"] == grouping or (contrast["groupby"] is None and grouping in everywhere)
    ]


def columns_of(contrast: Contrast) -> list[str]:
    """The columns of obs that a contrast reads."""
    return [contrast["column"], *(plain(name) for name in contrast["covariates"])]


def plain(covariate: str) -> str:
    """The column of a covariate: `batch` of `C(batch)`."""
    named = NAMED.fullmatch(covariate)
    return named[1] if named else covariate


def used_columns(config: Mapping[str, Any]) -> dict[str, str]:
    """obs columns that the contrasts, their samples and groupings need -> the config key that names them."""
    given = [(where, one) for section, where in sections(config).items() for one in declared(config, section)]
    compared = [*bulk_groupings(config), *config["composition"]["groupings"]]
    found = {config["pseudobulk"]["sample_key"]: "pseudobulk: sample_key"} if compared else {}
    found |= dict.fromkeys(config["pseudobulk"]["groupings"], "pseudobulk: groupings")
    found |= dict.fromkeys(config["composition"]["groupings"], "composition: groupings")
    for where, contrast in given:
        found |= dict.fromkeys(columns_of(contrast), f"{where}: {contrast['name']}")
        found |= {contrast["groupby"]: f"{where}: {contrast['name']}: groupby"} if contrast["groupby"] else {}
    return found


def config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the contrasts whatever the samples are."""
    required = settings.required_columns(config)
    for section, where in sections(config).items():
        contrasts = declared(config, section)
        names = [contrast["name"] for contrast in contrasts]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            yield f"`{where}` has several contrasts called {name}: give each its own `name`"
        for contrast in contrasts:
            here, columns = f"`{where}`: {contrast['name']}", columns_of(contrast)
            if contrast["level"] == contrast["reference"]:
                yield f"{here}: level and reference are both {contrast['level']!r}"
            if len(set(columns)) < len(columns):
                yield f"{here}: a column is named twice among {', '.join(columns)}"
            for name in columns:
                if name != "sample" and name not in required:
                    yield f"{here} names {name}, which this run computes for each cell: name a column of the samples"
            if config["pseudobulk"]["sample_key"] in columns:
                yield f"{here} names {config['pseudobulk']['sample_key']}, whose values are the samples themselves"
            if len(escape(contrast["name"])) > LONGEST:
                yield f"{here} is too long a name for a path: give it a shorter `name`"
            if section == "composition" and contrast["groupby"] not in (None, *config["composition"]["groupings"]):
                yield f"{here}: {contrast['groupby']} is none of `composition: groupings`"
    if config["de"] and not bulk_groupings(config):
        yield "`de` needs a grouping: name one in `pseudobulk: groupings`"
    if config["composition"]["contrasts"] and not config["composition"]["groupings"]:
        yield "`composition: contrasts` needs groups: name a grouping in `composition: groupings`"


def check(sheet: pd.DataFrame, config: Mapping[str, Any]) -> None:
    """Refuse contrasts that the sheet tells to be impossible.

    Raises
    ------
    UserError
        Lists all: levels that no sample has, or one only; columns that vary within a sample; designs not of full rank.
    """
    key, columns = config["pseudobulk"]["sample_key"], ["sample", *sheets.obs_columns(sheet)]
    problems = []
    for section, where in sections(config).items():
        for contrast in declared(config, section):
            if {key, *columns_of(contrast)} <= set(columns):
                table = sheet[list(dict.fromkeys([key, *columns_of(contrast)]))]
                problems += [f"`{where}`: {contrast['name']}: {text}" for text in problems_of(table, key, contrast)]
    if problems:
        listed = "\n".join(f"  - {text}" for text in problems)
        raise UserError(f"the sample sheet {config['samples']} does not have what the contrasts need:\n{listed}")


def problems_of(table: pd.DataFrame, key: str, contrast: Contrast) -> Iterator[str]:
    """The problems of a contrast: columns that vary within a sample; or else those of its samples.

    Parameters
    ----------
    table
        A line for each line of the sheet, or for each cell, with the contrast's columns.
    key
        The column of the samples.
    """
    varying = list(varying_columns(table, key, columns_of(contrast)))
    yield from (text for _, text in varying)
    if not varying:
        yield from sample_problems(samples_of(table, key, columns_of(contrast)), contrast)


def varying_columns(table: pd.DataFrame, key: str, columns: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The columns that have several values within a sample, and a message with the table of counts."""
    samples = as_categories(table[key])
    for name in columns:
        values = as_categories(table[name]).astype(object).fillna("(none)")
        counts = pd.crosstab(samples.to_numpy(), values.to_numpy())
        mixed = counts[(counts > 0).sum(axis=1) > 1]
        if len(mixed):
            shown = mixed.loc[natural_order(mixed.index)]
            shown = shown.loc[:, (shown > 0).any()]
            said = (
                f"{name} varies within {len(mixed)} of {len(counts)} values of {key}, which are compared as a whole. "
                f"Name a column that is constant there, or another `pseudobulk: sample_key`:\n{drawn(shown, key)}"
            )
            yield name, said


def samples_of(table: pd.DataFrame, key: str, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of each sample, from its first line; index: the samples' names in their order."""
    samples = as_categories(table[key])
    first = ~samples.duplicated() & samples.notna()
    found = table.loc[first.to_numpy(), list(dict.fromkeys(columns))].set_axis(samples[first].astype(str), axis=0)
    return found.loc[list(samples.cat.categories)].rename_axis(key)


def levels_of(samples: pd.DataFrame, contrast: Contrast) -> pd.Series:
    """Each sample's level as text; missing where it has none."""
    return as_categories(samples[contrast["column"]]).astype(object)


def sample_problems(samples: pd.DataFrame, contrast: Contrast) -> Iterator[str]:
    """The problems of a contrast on these samples, each with the table of samples per level."""
    levels, column = levels_of(samples, contrast), contrast["column"]
    known, enough = list(levels.dropna().unique()), True
    for level in (contrast["level"], contrast["reference"]):
        n = int((levels == level).sum())
        if n == 0:
            near = difflib.get_close_matches(level, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            yield f"no sample has the level {level!r} of {column}.{hint}\n{by_level(levels, column)}"
        elif n < FEWEST:
            yield (
                f"one sample has the level {level!r} of {column}; {FEWEST} are needed at least, to tell how samples of "
                f"a level differ.\n{by_level(levels, column)}"
            )
        enough &= n >= FEWEST
    if not enough:
        return
    mine = compared(samples, contrast)
    left = levels[mine.index].value_counts()
    for level in (contrast["level"], contrast["reference"]):
        if left.get(level, 0) < FEWEST:
            yield (
                f"{left.get(level, 0)} samples of the level {level!r} of {column} have a value of each covariate "
                f"({', '.join(contrast['covariates'])}); {FEWEST} are needed at least."
            )
            return
    design = design_of(mine, contrast)
    if rank_of(design) < design.shape[1]:
        yield confounded(mine, contrast)
    elif len(design) == design.shape[1]:
        yield (
            f"{len(design)} samples cannot tell {design.shape[1]} effects ({', '.join(design)}) apart from chance: "
            f"leave out covariates.\n{by_level(levels[mine.index], column)}"
        )


def compared(samples: pd.DataFrame, contrast: Contrast) -> pd.DataFrame:
    """The samples of the two levels that have a value of each covariate."""
    levels = levels_of(samples, contrast)
    return samples[levels.isin([contrast["level"], contrast["reference"]]) & samples.notna().all(axis=1)]


def design_of(samples: pd.DataFrame, contrast: Contrast) -> pd.DataFrame:
    """The design of these samples, float64; the second column is the contrast's."""
    found = {"Intercept": np.ones(len(samples))}
    found[contrast["column"]] = (levels_of(samples, contrast) == contrast["level"]).to_numpy(np.float64)
    for covariate in contrast["covariates"]:
        name = plain(covariate)
        values = samples[name]
        if covariate == name and is_number(values):
            numbers = values.to_numpy(np.float64)
            if deviation := numbers.std():
                found[name] = (numbers - numbers.mean()) / deviation
            continue
        names = as_categories(values)
        for value in names.cat.categories[1:]:
            found[f"{name}: {value}"] = (names == value).to_numpy(np.float64)
    return pd.DataFrame(found, samples.index)


def is_number(values: pd.Series) -> bool:
    """Whether a column's values are numbers."""
    return pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)


def rank_of(design: pd.DataFrame) -> int:
    """The rank of a design."""
    return int(np.linalg.matrix_rank(design.to_numpy()))


def confounded(samples: pd.DataFrame, contrast: Contrast) -> str:
    """Which covariates the contrast cannot be told apart from, with a table of the samples."""
    guilty = []
    for covariate in contrast["covariates"]:
        alone = design_of(samples, {**contrast, "covariates": [covariate]})
        guilty += [covariate] if rank_of(alone) < alone.shape[1] else []
    column, named = contrast["column"], guilty or contrast["covariates"]
    levels, names = levels_of(samples, contrast), [plain(name) for name in named]
    values = [as_categories(samples[name]).astype(object).to_numpy() for name in names]
    together = "alone" if guilty else "together"
    return (
        f"the effect of {column} cannot be told apart from that of {', '.join(names)} {together} (the design is not of "
        "full rank). Leave out the covariate, or compare samples that share its values.\n"
        f"{drawn(pd.crosstab(values, levels.to_numpy(), rownames=names).T, column)}"
    )


def by_level(levels: pd.Series, column: str) -> str:
    """A table of the samples of each level."""
    of_level = levels.fillna("(none)")
    lines = [f"{column}\tsamples\tnames"]
    for level in natural_order(of_level.unique()):
        names = [str(name) for name in levels.index[of_level == level]]
        more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines.append(f"{level}\t{len(names)}\t{', '.join(names[:SHOWN])}{more}")
    return aligned([line.split("\t") for line in lines])


def drawn(counts: pd.DataFrame, name: str) -> str:
    """A table of counts as text."""
    columns = [" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in counts.columns]
    lines = [[name, *columns]] + [
        [str(i), *map(str, row)] for i, row in zip(counts.index, counts.to_numpy(), strict=True)
    ]
    return aligned(lines[: SHOWN + 1] + ([[f"and {len(lines) - SHOWN - 1} more"]] if len(lines) > SHOWN + 1 else []))


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Fields in columns."""
    n = max(map(len, lines))
    widths = [max((len(line[i]) for line in lines if len(line) > i), default=0) for i in range(n)]
    return "\n".join(
        "      " + "  ".join(field.ljust(width) for field, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )
