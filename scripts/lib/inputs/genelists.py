"""Find the genes of the config's lists, which are prefixes, names, or a file with one name per line.

The genes of a family are matched by their symbols. If none matches, they are matched by Ensembl ids, whose symbols
`ensembl_families.tsv` has for human and mouse. If none matches either, a boolean column of the file's `var` with the
name of the family is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lib.run.errors import UserError
from lib.run.stage import log
from lib.store.counts import Counts

ENSEMBL = Path(__file__).with_name("ensembl_families.tsv")
# Prefix of names if a reference has several genomes: GRCh38_MT-ND1, mm10___mt-Nd1
GENOME = re.compile(r"^(hg|mm|rn|GRC[a-z])\d+_+", re.IGNORECASE)
VERSION = re.compile(r"^(ENS[A-Z]*G\d{6,})\.\d+.*$", re.IGNORECASE)
COLUMN_NAMES = (  # columns of var that flag the same family, with or without the prefix `is_`
    {"mt", "mito", "mitochondrial", "mitochondria", "mt_gene", "mt_genes"},
    {"ribo", "ribosomal", "rb", "rp", "ribo_gene", "ribo_genes"},
    {"hb", "hemo", "hemoglobin", "haemoglobin", "hb_gene", "hb_genes"},
)


@dataclass(frozen=True)
class GeneNames:
    """The names and flags of a file's genes.

    Attributes
    ----------
    symbols, ids
        Symbol and id of each gene; equal if a file has only one of them.
    flags
        Name -> boolean column of the file's `var`.
    """

    symbols: np.ndarray
    ids: np.ndarray
    flags: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Counts) -> GeneNames:
        """The genes of a counts store."""
        return cls(store.names("var", "gene_symbols"), store.names("var", "gene_ids"), store.flags())


def gene_families(
    config: Mapping[str, Sequence[str] | str], genes: GeneNames, key: str = "qc: gene_families"
) -> dict[str, np.ndarray]:
    """A boolean mask over the genes for each family of the config that has genes here.

    Parameters
    ----------
    config
        Name -> symbol prefixes, in any case, or the path of a file with one symbol or id per line.
    genes
        The genes.
    key
        The key of the config that has the families, for messages.

    Raises
    ------
    UserError
        If a file does not exist, or names none of the genes.
    """
    by_symbol, by_id = [written(name) for name in genes.symbols], None
    masks = {}
    for name, spec in config.items():
        wanted = read_names(spec, f"{key}: {name}") if isinstance(spec, str) else spec
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
                f"none of the {len(wanted)} genes in {spec} is there (config key {key}: {name}); the genes "
                f"are named like {like}. Name them so in the file, or set the family to null."
            )
        log.warning("gene family %s (%s): no gene, named like %s, belongs to it", name, ", ".join(spec), like)
    return masks


def beginning(prefixes: Sequence[str], symbols: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """Mask of the genes whose `keys` (symbols as normalised by `written`) begin with one of the prefixes."""
    starts = tuple(written(prefix) for prefix in prefixes)
    return np.array([key.startswith(starts) for key in keys], dtype=bool)


def listed(names: Sequence[str], symbols: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """Mask of the genes with these names: by their `symbols`, or else by their `keys` (`written` of the symbols)."""
    exact = np.isin(symbols.astype(str), list(names))
    return exact if exact.any() else np.isin(keys, [written(name) for name in names])


def written(name: str) -> str:
    """A gene's name in normalised spelling: upper case, `-` for any separator of MT and ND1, without the prefix of a
    genome, and an Ensembl id without its version."""
    plain = GENOME.sub("", str(name))
    versioned = VERSION.match(plain)
    return (versioned[1] if versioned else plain).upper().replace(".", "-").replace(":", "-").replace("_", "-")


def ensembl_symbols(genes: GeneNames) -> list[str]:
    """The symbols (`written`) of the genes whose ids are in `ensembl_families.tsv`; "" for others."""
    table = pd.read_csv(ENSEMBL, sep="\t", comment="#")
    known = dict(zip(table["gene_id"], map(written, table["symbol"]), strict=True))
    pairs = zip(genes.ids, genes.symbols, strict=True)
    return [known.get(written(i)) or known.get(written(symbol), "") for i, symbol in pairs]


def flagged(family: str, genes: GeneNames) -> tuple[np.ndarray, str]:
    """The genes that a column of `var` flags for the family, and the name of that source; no genes without a column."""
    alike = next((names for names in COLUMN_NAMES if family.lower() in names), {family.lower()})
    for name, mask in genes.flags.items():
        if name.lower().removeprefix("is_") in alike and mask.any():
            return np.asarray(mask, bool), f"the column {name} of the file's var"
    return np.zeros(len(genes.symbols), bool), ""


def read_names(path: str | Path, key: str) -> list[str]:
    """The names in the file that a key of the config names, one per line, without blank lines and comments (#)."""
    try:
        text = Path(path).read_text(errors="replace")
    except (OSError, ValueError):  # of a name that no file can have
        raise UserError(
            f"{key}: the gene list {path} does not exist or cannot be read. Give the path of a file with one gene "
            "symbol a line."
        ) from None
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]
