"""Look at the reference of cell types before any job runs: whether it is there, its labels, its genes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lib.inputs.genesets import FACTS, genes_of_sample, positions
from lib.run.errors import UserError
from lib.run.kept import keep, recall


def look_at(sheet: pd.DataFrame, config: Mapping[str, Any], facts: Path = FACTS) -> bool:
    """Whether the config's reference is a model; refuses one that is not there, has no labels, or other genes.

    What was found right is kept in the folder `facts`, by the versions of the files.

    Raises
    ------
    UserError
        See above.
    """
    asked, cache = config["annotation"], facts / "reference.json"
    if asked["reference"] is None:
        return False
    path, where = Path(asked["reference"]), f"annotation: reference: {asked['reference']}"
    try:
        there = path.exists()
    except (OSError, ValueError):  # of a name that no file can have
        there = False
    if not there and asked["reference"].startswith("demo/"):  # a rule makes it
        return False
    if not there:
        raise UserError(f"{where} does not exist. Correct its path.")
    from lib.inputs import formats

    sample, version = genes_of_sample(sheet, config, read=False)
    key = json.dumps([formats.version_of_file(path), version, str(path), asked], default=str)
    if (known := recall(cache)).get("right") == key:
        return known["model"]
    from lib.methods.typing_model import Model, check_overlap, is_model

    model = is_model(path)
    if model:
        genes = pd.Index(Model.read(path).genes)
        table = pd.DataFrame({"gene_symbols": genes, "gene_ids": genes}, index=genes)
    else:
        try:
            with formats.open_counts(path, counts=asked["reference_counts"]) as reader:
                obs, symbols, ids = reader.obs, reader.gene_symbols, reader.gene_ids
        except UserError as error:
            counts = f"annotation: reference_counts: {asked['reference_counts']}"
            raise UserError(f"{where} cannot be read ({counts}): {error}") from None
        check_labels(obs, asked["reference_key"], where)
        table = pd.DataFrame({"gene_symbols": symbols, "gene_ids": ids}, index=symbols)
    sample, _ = genes_of_sample(sheet, config)
    if sample is not None:
        fewer, more = (table, sample) if model or len(table) < len(sample) else (sample, table)
        n_found = max((positions(fewer[name], more) >= 0).sum() for name in ("gene_symbols", "gene_ids"))
        check_overlap(int(n_found), fewer["gene_symbols"].tolist(), more["gene_symbols"].tolist(), where)
    keep(cache, {"right": key, "model": model})
    return model


def check_labels(obs: pd.DataFrame, key: str, where: str) -> None:
    """Refuse a reference without the column of labels, or with fewer than two labels in it."""
    if key not in obs:
        raise UserError(
            f"{where} has no column {key!r} of labels (annotation: reference_key); it has {', '.join(map(str, obs))}."
        )
    sizes = obs[key].value_counts()
    if (sizes >= 2).sum() < 2:
        raise UserError(
            f"{where}: the column {key} has {(sizes >= 2).sum()} labels of at least two cells; two are needed. Name "
            "another column (annotation: reference_key)."
        )
