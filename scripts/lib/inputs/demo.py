"""What of config/config.yaml is the demo's own, and is left out for other samples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from lib.inputs.sheet import find_sheet

SHEET = "config/samples.tsv"  # the default of the config's `samples`
GENE_SETS = {  # the markers that scripts/simulate.py gives these types
    "CD4 T": ["IL7R", "CD4", "LTB", "MAL"],
    "CD8 T": ["CD8A", "CD8B", "GZMK", "CCL5"],
    "NK": ["GNLY", "NKG7", "KLRD1", "NCAM1"],
    "B": ["MS4A1", "CD19", "BANK1", "VPREB3"],
    "plasma": ["MZB1", "JCHAIN", "XBP1", "SDC1"],
    "CD14 monocyte": ["CD14", "S100A8", "S100A9", "VCAN"],
    "FCGR3A monocyte": ["FCGR3A", "MS4A7", "CDKN1C", "LST1"],
    "dendritic": ["FCER1A", "CD1C", "CLEC10A", "HLA-DQA1"],
}


def without_demo(given: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """The config as given, without the demo's gene sets if the sheet has none of its samples.

    A config of the user's extends config.yaml; blood's markers would tell nothing of a kidney, or of a mouse. Sets that
    are the same as the demo's are left out, and `annotation: markers` if it names their collection and no list is left.
    """
    given = deepcopy(dict(given))
    sets, annotation = given.get("gene_sets"), given.get("annotation")
    if not isinstance(sets, dict) or _has_demo(given.get("samples", SHEET), home):
        return given
    given["gene_sets"] = {name: genes for name, genes in sets.items() if genes != GENE_SETS.get(name)}
    left = any(not isinstance(genes, str) for genes in given["gene_sets"].values())
    if len(given["gene_sets"]) < len(sets) and not left and isinstance(annotation, dict):
        given["annotation"] = annotation | ({"markers": None} if annotation.get("markers") == "lists" else {})
    return given


def _has_demo(sheet: Any, home: Path) -> bool:
    """Whether a sample sheet has a path within demo/; False if it cannot be read, which is told later."""
    try:
        text = find_sheet(sheet, home).read_text(errors="replace")
    except (OSError, TypeError, ValueError):
        return False
    return re.search(r'(^|[\t,;"])demo/', text, re.M) is not None
