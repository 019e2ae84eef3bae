"""Lists of genes as configs give them: prefixes, names, or a file with one name a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .errors import UserError
from .stage import log


def gene_families(config: Mapping[str, Sequence[str] | str], symbols: np.ndarray) -> dict[str, np.ndarray]:
    """For each family of the config a boolean mask over the genes.

    Parameters
    ----------
    config
        Name -> symbol prefixes, or the path of a file with one symbol a line.
    symbols
        The genes' symbols.

    Raises
    ------
    UserError
        If no gene belongs to a family.
    """
    masks = {}
    for name, spec in config.items():
        if isinstance(spec, str):
            masks[name] = np.isin(symbols, read_names(spec))
        else:
            masks[name] = np.char.startswith(symbols.astype(str)[:, None], np.array(spec, dtype=str)).any(1)
        if not masks[name].any():
            raise UserError(_no_gene_matches(name, spec, symbols))
        log.info("gene family %s: %d genes", name, masks[name].sum())
    return masks


def read_names(path: str | Path) -> list[str]:
    """The names in a file, one a line; blank lines and what follows a # are left out."""
    if not Path(path).is_file():
        raise UserError(f"gene list {path} does not exist. Give the path of a file with one gene symbol a line.")
    lines = (line.split("#")[0].strip() for line in Path(path).read_text().splitlines())
    return [line for line in lines if line]


def _no_gene_matches(name: str, spec: Sequence[str] | str, symbols: np.ndarray) -> str:
    spec = spec if isinstance(spec, str) else ", ".join(spec)
    example = ", ".join(map(str, symbols[:3]))
    upper = np.char.upper(symbols.astype(str))
    if np.char.startswith(symbols.astype(str), "ENS").mean() > 0.5:
        advice = "The symbols are Ensembl ids: name the family's ids in a file, and its path in the config"
    elif not Path(spec).is_file() and any(np.char.startswith(upper, s.upper()).any() for s in spec.split(", ")):
        advice = "The case differs, as in mouse (mt-, Rps, Rpl): set the prefixes as your genes are written"
    else:
        advice = "Set the prefixes, or a file with the genes' symbols, or remove the family where your genes have none"
    return (
        f"no gene belongs to the gene family {name} ({spec}); the genes are named like {example}. {advice}: "
        f"config key qc: gene_families: {name}."
    )
