"""Lists of genes as configs give them: prefixes, names, or a file with one name a line; and which genes they mean.

A family's genes are sought by the genes' symbols; where none fits, by Ensembl ids, whose symbols
`ensembl_families.tsv` has for human and mouse; where none fits either, by a column of booleans of the file's `var` that
is named as the family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from lib.run.errors import UserError
from lib.run.stage import log
from lib.store.counts import Counts

ENSEMBL = Path(__file__).with_name("ensembl_families.tsv")
# Before names where a reference has several genomes: GRCh38_MT-ND1, mm10___mt-Nd1
GENOME = re.compile(r"^(hg|mm|rn|GRC[a-z])\d+_+", re.IGNORECASE)
VERSION = re.compile(r"^(ENS[A-Z]*G\d{6,})\.\d+.*$", re.IGNORECASE)
COLUMN_NAMES = (  # columns of var under which files flag the same family; `is_` before them does not count
    {"mt", "mito", "mitochondrial", "mitochondria", "mt_gene", "mt_genes"},
    {"ribo", "ribosomal", "rb", "rp", "ribo_gene", "ribo_genes"},
    {"hb", "hemo", "hemoglobin", "haemoglobin", "hb_gene", "hb_genes"},
)


@dataclass(frozen=True)
class GeneNames:
    """What tells which genes these are.

    Attributes
    ----------
    symbols, ids
        Of each gene; equal where a file has one of them alone.
    flags
        Name -> a boolean for each gene: such columns of the file's `var`.
    """

    symbols: np.ndarray
    ids: np.ndarray
    flags: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Counts) -> GeneNames:
        """The genes of a counts store."""
        with h5py.File(store.path, "r", locking=False) as file:
            columns = {name: column for name, column in file["var"].items() if isinstance(column, h5py.Dataset)}
            flags = {name: column[...] for name, column in columns.items() if column.dtype == bool}
        return cls(store.names("var", "gene_symbols"), store.names("var", "gene_ids"), flags)


def gene_families(config: Mapping[str, Sequence[str] | str], genes: GeneNames) -> dict[str, np.ndarray]:
    """For each family of the config that has genes here a boolean mask over the genes.

    Parameters
    ----------
    config
        Name -> symbol prefixes, in any case, or the path of a file with one symbol or id a line.
    genes
        The genes.

    Raises
    ------
    UserError
        If a file does not exist, or no gene that it names.
    """
    by_symbol, by_id = [written(name) for name in genes.symbols], None
    masks = {}
    for name, spec in config.items():
        wanted = read_names(spec) if isinstance(spec, str) else spec
        find = listed if isinstance(spec, str) else beginning
        mask, how = find(wanted, genes.symbols, by_symbol), "symbol"
        if not mask.any():
            by_id = ensembl_symbols(genes) if by_id is None else by_id
            ids = listed(wanted, genes.ids, [written(i) for i in genes.ids]) if isinstance(spec, str) else False
            mask, how = ids | find(wanted, np.array(by_id, object), by_id), "Ensembl id"
        if not mask.any():
            mask, how = flagged(name, genes)
        if mask.any():
            log.info("gene family %s: %d genes, found by %s", name, mask.sum(), how)
            masks[name] = mask
            continue
        like = ", ".join(map(str, genes.symbols[:3]))
        if isinstance(spec, str):
            raise UserError(
                f"none of the {len(wanted)} genes in {spec} is there (config key qc: gene_families: {name}); the genes "
                f"are named like {like}. Name them so in the file, or set the family to null."
            )
        log.warning("gene family %s (%s): no gene, named like %s, belongs to it", name, ", ".join(spec), like)
    return masks


def beginning(prefixes: Sequence[str], symbols: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """Which genes' `keys` (symbols as `written` has them) begin with one of the prefixes."""
    starts = tuple(written(prefix) for prefix in prefixes)
    return np.array([key.startswith(starts) for key in keys], dtype=bool)


def listed(names: Sequence[str], symbols: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """Which genes are listed: as their `symbols` are, or else as their `keys` (what `written` makes of these)."""
    exact = np.isin(symbols.astype(str), list(names))
    return exact if exact.any() else np.isin(keys, [written(name) for name in names])


def written(name: str) -> str:
    """A name of a gene in one way of writing: upper case, `-` for what else parts MT from ND1, without the genome of a
    reference of several, and an Ensembl id without its version."""
    plain = GENOME.sub("", str(name))
    return VERSION.sub(r"\1", plain).upper().replace(".", "-").replace(":", "-").replace("_", "-")


def ensembl_symbols(genes: GeneNames) -> list[str]:
    """The symbols, as `written`, of the genes that `ensembl_families.tsv` has the ids of; "" for others."""
    table = pd.read_csv(ENSEMBL, sep="\t", comment="#")
    known = dict(zip(table["gene_id"], map(written, table["symbol"]), strict=True))
    pairs = zip(genes.ids, genes.symbols, strict=True)
    return [known.get(written(i)) or known.get(written(symbol), "") for i, symbol in pairs]


def flagged(family: str, genes: GeneNames) -> tuple[np.ndarray, str]:
    """The genes that a column of `var` named as the family flags, and what to call that; none where there is none."""
    alike = next((names for names in COLUMN_NAMES if family.lower() in names), {family.lower()})
    for name, mask in genes.flags.items():
        if name.lower().removeprefix("is_") in alike and mask.any():
            return np.asarray(mask, bool), f"the column {name} of the file's var"
    return np.zeros(len(genes.symbols), bool), ""


def read_names(path: str | Path) -> list[str]:
    """The names in a file, one a line; blank lines and what follows a # are left out."""
    if not Path(path).is_file():
        raise UserError(f"gene list {path} does not exist. Give the path of a file with one gene symbol a line.")
    lines = (line.split("#")[0].strip() for line in Path(path).read_text().splitlines())
    return [line for line in lines if line]
