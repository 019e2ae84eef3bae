"""Read sets of genes, with weights, from GMT and TSV files and from the config, and find their genes in the cohort.

GMT: a set on each line, its name, a description and its genes, separated by tabs. TSV: `source`, `target` and, if there
is one, `weight` on each line, with or without these names in the first line (decoupler's networks). Both may be
gzipped; text is UTF-8.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from lib.run.errors import UserError
from lib.run.kept import keep, recall

LISTS = "lists"  # the collection of the sets that the config itself lists
COLUMNS = ("source", "target", "weight")
FACTS = Path(".snakemake/somersault")
PHASES = Path(__file__).with_name("cell_cycle.tsv")
SHOWN = 4  # names in a message
SHARE = 0.25  # of a collection's genes, that must be in the cohort
PHASES_SHARE = 0.1  # of the genes of the cell cycle: a panel may have few
VERSION = re.compile(r"^(ENS[A-Z]*G\d{6,})\.\d+$")

Sets: TypeAlias = dict[str, dict[str, float]]  # set -> gene -> weight


def read_collections(given: Mapping[str, Sequence[str] | str]) -> dict[str, Sets]:
    """The collections of the config's `gene_sets`: one for each file, and one, LISTS, of all sets that are lists.

    Raises
    ------
    UserError
        If a file cannot be read, or is not in its format.
    """
    found: dict[str, Sets] = {}
    for name, spec in given.items():
        if isinstance(spec, str):
            found[name] = read_file(spec, f"gene_sets: {name}")
        else:
            found.setdefault(LISTS, {})[name] = dict.fromkeys(spec, 1.0)
    return found


@cache
def _n_sets_of_file(path: str) -> int:
    return len(read_file(path, "gene_sets"))


def n_sets(given: Mapping[str, Sequence[str] | str]) -> int:
    """The number of sets in all collections of the config's `gene_sets`."""
    return sum(_n_sets_of_file(spec) if isinstance(spec, str) else 1 for spec in given.values())


def read_file(path: str | Path, key: str) -> Sets:
    """The sets in a GMT or TSV file that a key of the config names."""
    where = f"{key}: {path}"
    lines = [(i, line) for i, line in enumerate(_text(Path(path), where).splitlines(), 1) if line.strip()]
    lines = [(i, [part.strip() for part in line.split("\t")]) for i, line in lines if not line.startswith("#")]
    if not lines:
        raise UserError(f"{where} is empty: it has no set of genes.")
    gmt = Path(path).name.lower().removesuffix(".gz").endswith(".gmt")
    sets = _gmt(lines, where) if gmt else _tsv(lines, where)
    if lacking := [name for name, genes in sets.items() if not genes]:
        raise UserError(f"{where}: sets without genes: {_some(lacking)}. Remove them, or fill them.")
    return sets


def _text(path: Path, where: str) -> str:
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', error)}. Correct its path.") from None
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{where} is no text in UTF-8 ({error}). GMT and TSV files are text: save it so.") from None
    except Exception as error:  # zlib.error has no base class but Exception
        raise UserError(f"{where} is damaged ({error}): copy or download it again.") from None
    if "\0" in text:
        raise UserError(f"{where} is no text: it has bytes of zero. GMT and TSV files are text: save it so.")
    return text


def _gmt(lines: Sequence[tuple[int, list[str]]], where: str) -> Sets:
    sets: Sets = {}
    first: dict[str, int] = {}
    for i, (name, *parts) in lines:
        if not parts:
            raise UserError(
                f"{where}, line {i}: {name[:60]!r} has no tab. A line of a GMT is name, description and genes, "
                "with tabs between them."
            )
        if not name:
            raise UserError(f"{where}, line {i}: the set has no name.")
        genes = dict.fromkeys((gene for gene in parts[1:] if gene), 1.0)
        if name in sets and sets[name] != genes:
            raise UserError(
                f"{where}: lines {first[name]} and {i} are two sets of the name {name!r}. Give each its own name."
            )
        sets[name] = genes
        first.setdefault(name, i)
    return sets


def _tsv(lines: Sequence[tuple[int, list[str]]], where: str) -> Sets:
    head = [name.lower() for name in lines[0][1]]
    named = {"source", "target"} <= {*head}
    columns = [head.index(name) if name in head else -1 for name in COLUMNS] if named else [0, 1, 2]
    sets: Sets = {}
    for i, parts in lines[named:]:
        if len(parts) <= max(columns[:2]):
            raise UserError(
                f"{where}, line {i}: {' '.join(parts)[:60]!r} has no tab. A line of the table is source, target and, "
                "perhaps, weight, with tabs between them. A GMT file is named .gmt."
            )
        source, target = (parts[column] for column in columns[:2])
        given = parts[columns[2]] if 0 <= columns[2] < len(parts) else ""
        if not source or not target:
            raise UserError(f"{where}, line {i}: {'target' if source else 'source'} is missing.")
        try:
            weight = float(given) if given else 1.0
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            hint = "; a file with one set on each line is a GMT: name it .gmt" if len(parts) > len(COLUMNS) else ""
            raise UserError(f"{where}, line {i}: the weight {given!r} is no number{hint}.")
        if sets.setdefault(source, {}).setdefault(target, weight) != weight:
            raise UserError(f"{where}, line {i}: {target} is in {source} twice, with two weights. Leave one.")
    for name, genes in sets.items():
        sets[name] = {gene: weight for gene, weight in genes.items() if weight}
    return sets


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def phase_genes(organism: str) -> Sets:
    """The genes of S and G2M: symbols, and for genes that were renamed the new and the old one."""
    table = pd.read_csv(PHASES, sep="\t", comment="#", dtype=str, keep_default_na=False)
    sets: Sets = {"S": {}, "G2M": {}}
    for phase, human, before in table[["phase", "human", "before"]].itertuples(index=False):
        for name in filter(None, (human, before)):
            sets[phase][name.capitalize() if organism == "mouse" else name] = 1.0
    return sets


@dataclass(frozen=True)
class Matched:
    """The sets of a collection, as far as their genes are in the cohort.

    Attributes
    ----------
    names
        The sets, in the order of the file.
    genes, columns, weights
        For each gene of a set its position in the cohort, the position of its set, and its weight.
    n_found, n_genes
        Per set the number of its genes that are in the cohort, and of all.
    """

    names: list[str]
    genes: np.ndarray
    columns: np.ndarray
    weights: np.ndarray
    n_found: np.ndarray
    n_genes: np.ndarray

    def of(self, keep: np.ndarray) -> Matched:
        """Some of the sets, by a mask."""
        mine, place = keep[self.columns], np.cumsum(keep) - 1
        names = [name for name, kept in zip(self.names, keep, strict=True) if kept]
        columns = place[self.columns[mine]]
        return Matched(names, self.genes[mine], columns, self.weights[mine], self.n_found[keep], self.n_genes[keep])


def match(sets: Sets, genes: pd.DataFrame, where: str, share: float = 0) -> Matched:
    """Find the genes of a collection's sets by the cohort's names, symbols or ids, whichever knows most of them.

    Genes that share a symbol are all taken. `genes` is the table of `positions`.

    Raises
    ------
    UserError
        If less than `share` of the genes are there; the message has the numbers.
    """
    wanted = dict.fromkeys(gene for listed in sets.values() for gene in listed)
    symbols = genes["gene_symbols"].tolist()
    tables = [_places(keys) for keys in (genes.index, symbols, [VERSION.sub(r"\1", str(i)) for i in genes["gene_ids"]])]
    known = [{gene: table[key] for gene in wanted if (key := VERSION.sub(r"\1", gene)) in table} for table in tables]
    found = max(known, key=len)
    if len(found) < share * len(wanted):
        from lib.inputs.genelists import written

        alike = {written(name) for name in symbols}
        n = sum(written(gene) in alike for gene in wanted)
        hint = "Are they of another organism, or of other names?"
        if n > len(found):
            hint = (
                f"{n} are if upper and lower case count as the same: they are of another organism. Name those of the "
                "cohort's, or their orthologs."
            )
        raise UserError(
            f"{where}: {len(found)} of its {len(wanted)} genes are in the cohort ({len(found) / len(wanted):.0%}); "
            f"{share:.0%} are needed. The sets' genes are named like {', '.join(list(wanted)[:3])}, the cohort's like "
            f"{', '.join(map(str, symbols[:3]))}. {hint}"
        )
    hits = [
        (place, column, weight)
        for column, listed in enumerate(sets.values())
        for gene, weight in listed.items()
        for place in found.get(gene, ())
    ]
    parts = np.array(hits, np.float64).reshape(-1, 3).T
    n_found = np.array([sum(gene in found for gene in listed) for listed in sets.values()], int)
    n_genes = np.array([len(listed) for listed in sets.values()], int)
    places, columns = parts[:2].astype(np.int64)
    return Matched(list(sets), places, columns, parts[2], n_found, n_genes)


def positions(wanted: Sequence[str], genes: pd.DataFrame) -> np.ndarray:
    """The position of each wanted gene among the cohort's, by name, symbol or id, whichever knows most; -1: not there.

    Parameters
    ----------
    wanted
        Names, symbols or ids.
    genes
        A table of genes: names as index, `gene_symbols`, `gene_ids`.
    """
    names = [VERSION.sub(r"\1", str(name)) for name in wanted]
    keys = genes.index, genes["gene_symbols"], [VERSION.sub(r"\1", str(i)) for i in genes["gene_ids"]]
    found = [np.array([table.get(name, [-1])[0] for name in names], int) for table in map(_places, keys)]
    return max(found, key=lambda places: (places >= 0).sum())


def _places(keys: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(str(key), []).append(place)
    return places


def large_enough(matched: Matched, tmin: int, where: str) -> tuple[Matched, list[str]]:
    """The sets with at least `tmin` genes in the cohort, and in words those that are left out.

    Raises
    ------
    UserError
        If none is left.
    """
    keep = matched.n_found >= tmin
    lost = [f"{matched.names[i]} ({matched.n_found[i]} of {matched.n_genes[i]})" for i in np.flatnonzero(~keep)]
    if not keep.any():
        raise UserError(
            f"{where}: no set has {tmin} genes in the cohort (`scores: tmin`); it has {_some(lost)}. Lower `tmin`, or "
            "give larger sets."
        )
    return matched.of(keep), [_some(lost)] if lost else []


def matched_in(
    collections: Mapping[str, Sets], genes: pd.DataFrame, tmin: int, share: float = 0
) -> tuple[dict[str, Matched], list[str]]:
    """The sets of all collections in the cohort's genes, and in words those that are left out.

    Parameters
    ----------
    collections
        See `read_collections`.
    genes
        Their table.
    tmin
        See `large_enough`.
    share
        See `match`: SHARE of all genes of a file, to find sets of another organism. Of the genes that filters or tests
        keep, few may be a set's.
    """
    found, lost = {}, []
    for name, sets in collections.items():
        where = f"gene_sets: {name}"
        found[name], few = large_enough(match(sets, genes, where, share), tmin, where)
        lost += [f"{where}: {text}" for text in few]
    return found, lost


def genes_of_sample(
    sheet: pd.DataFrame, config: Mapping[str, Any], read: bool = True
) -> tuple[pd.DataFrame | None, list[Any]]:
    """The genes of the first sample whose file is there, and the version of that file; None without one.

    The file is opened only to `read` the genes.
    """
    from lib.inputs import formats
    from lib.inputs import sheet as sheets

    sample = next((name for name in sheet.index if Path(sheets.path_of(sheet, name)).exists()), None)
    if sample is None:
        return None, []
    path, options = Path(sheets.path_of(sheet, sample)), sheets.file_options(sheet, sample, config)
    genes = None
    if read:
        # What is wrong with the file has been told by its header, or ingest tells it
        with contextlib.suppress(UserError), formats.open_counts(path, **options) as reader:
            symbols, ids = reader.gene_symbols, reader.gene_ids
            genes = pd.DataFrame({"gene_symbols": symbols, "gene_ids": ids}, index=symbols)
    return genes, [formats.version_of_file(path, options["genome"]), str(path), options]


def check(collections: Mapping[str, Sets], sheet: pd.DataFrame, config: Mapping[str, Any], facts: Path = FACTS) -> None:
    """Refuse collections, and an organism's cell cycle, of which little is in the first sample's file that is there.

    What was found right is kept in the folder `facts`, by the version of the file.
    """
    tmin, organism = config["scores"]["tmin"], config["scores"]["cell_cycle"]
    if not collections and organism == "none":
        return
    cache = facts / "gene_sets.json"
    _, version = genes_of_sample(sheet, config, read=False)
    key = json.dumps([version, tmin, organism, collections], default=str)
    if not version or recall(cache).get("right") == key:
        return
    genes, _ = genes_of_sample(sheet, config)
    if genes is not None:
        matched_in(collections, genes, tmin, SHARE)
        if organism != "none":
            match(phase_genes(organism), genes, f"scores: cell_cycle: {organism}", PHASES_SHARE)
        keep(cache, {"right": key})
