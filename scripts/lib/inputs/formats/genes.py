"""Find the genes among a file's features, and their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lib.inputs.formats.base import plain
from lib.run.errors import UserError
from lib.run.stage import log

GENES = "gene expression"  # 10x's feature type, in lower case
NO_TYPE = ("", "na", "nan", "none", "unknown")
OTHER_TYPES = ("antibody", "crispr", "multiplexing", "peak", "custom", "antigen", "vdj")  # prefixes of its other types
SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "gene_names", "gene_name", "feature_name", "symbol", "Symbol")
ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_ids", "ensembl_id", "ensembl", "feature_id", "Accession")


def gene_features(path: Path, types: np.ndarray) -> np.ndarray:
    """Mask of the genes: features of 10x's type for genes, or of no type. Other features are logged.

    If no feature has the type for genes, all are taken except 10x's types for antibodies, guides, peaks.
    """
    small = np.array(["" if pd.isna(value) else str(value).strip().lower() for value in types], dtype=object)
    known = pd.Series(~np.isin(small, NO_TYPE))
    if (small == GENES).any():
        genes = (small == GENES) | ~known.to_numpy()
    else:
        genes = np.array([not value.startswith(OTHER_TYPES) for value in small], bool)
    if len(genes) and not genes.any():
        raise UserError(f"{path} has no features of type Gene Expression, but {', '.join(map(str, pd.unique(types)))}.")
    for name, n in pd.Series(types[~genes]).value_counts().items():
        log.info("left out: %d features of type %s", n, name)
    return genes


def filled_names(path: Path, symbols: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and ids; an empty one is replaced by the other.

    Raises
    ------
    UserError
        If a gene has neither.
    """
    symbols, ids = symbols.astype(object), ids.astype(object)
    no_symbol, no_id = (np.array([not name.strip() for name in names], bool) for names in (symbols, ids))
    if (nameless := no_symbol & no_id).any():
        raise UserError(
            f"{path}: {nameless.sum()} genes have neither a symbol nor an id, the first is number "
            f"{int(np.argmax(nameless)) + 1}. Name them, or leave them out."
        )
    return np.where(no_symbol, ids, symbols), np.where(no_id, symbols, ids)


def names_in(path: Path, var: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and ids from a table of genes: columns with known names, else the index."""
    index = pd.Series(plain(var.index), dtype=object)
    symbols = next((var[name].reset_index(drop=True) for name in SYMBOL_COLUMNS if name in var), None)
    ids = next((var[name].reset_index(drop=True) for name in ID_COLUMNS if name in var), index)
    symbols = index if symbols is None else symbols
    symbols, ids = (names.astype(object).where(names.notna(), "") for names in (symbols, ids))
    return filled_names(path, plain(symbols).to_numpy(), plain(ids).to_numpy())


def with_symbols(raw: pd.DataFrame, var: pd.DataFrame) -> pd.DataFrame:
    """The table of genes of `raw`, plus the symbols and flags that only `var` has, joined on the index."""
    names = [name for name in var if name in SYMBOL_COLUMNS or _is_flag(var[name])]
    names = [name for name in names if name not in raw]
    if not names or var.index.has_duplicates or not raw.index.isin(var.index).any():
        return raw
    log.info("raw has no %s: taken from var", ", ".join(map(str, names)))
    found = var[names].reindex(raw.index)
    for name in names:
        if _is_flag(var[name]):
            found[name] = found[name].astype(object).where(found[name].notna(), False).astype(bool)
    return raw.join(found) if raw.index.is_unique else raw


def flags_in(var: pd.DataFrame) -> pd.DataFrame:
    """The boolean columns of a table of genes."""
    flags = {str(name): var[name].to_numpy(bool) for name in var if _is_flag(var[name])}
    return pd.DataFrame(flags, index=range(len(var)))


def _is_flag(values: pd.Series) -> bool:
    return pd.api.types.is_bool_dtype(values.dtype) and not values.isna().any()
