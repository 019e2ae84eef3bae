"""The names of metrics, limits and reasons in figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIGNIFICANT = 0.05  # adjusted p-value below which a gene, a set or a share counts as found
STABILITY = "stability_"  # before the name of a clustering: the share of a cell's cluster that stays with it
LABELS = {
    "total_counts": "counts per cell",
    "n_genes_by_counts": "genes per cell",
    "doublet_score": "doublet score",
}


def metric_label(metric: str) -> str:
    """An axis label, with its unit, for a column of quality metrics."""
    if metric.startswith("pct_counts_"):
        return f"{metric.removeprefix('pct_counts_')} counts (% of a cell's)"
    if metric.startswith(STABILITY):
        return f"stability of {metric.removeprefix(STABILITY)}"
    return LABELS.get(metric, metric)


def reason_label(reason: str) -> str:
    """A reason of the attrition ledger in words: max_pct_counts_MT is "high MT %", "" is "kept"."""
    words = {
        "min_genes": "few genes",
        "max_genes": "many genes",
        "min_counts": "few counts",
        "max_counts": "many counts",
        "no_counts_in_kept_genes": "no counts in kept genes",
    }
    if reason.startswith("max_pct_counts_"):
        return f"high {reason.removeprefix('max_pct_counts_')} %"
    if reason.startswith("mad_"):
        return f"outlier in {reason.removeprefix('mad_')}"
    return words.get(reason, reason or "kept")


def limits(cells: Mapping[str, Any]) -> dict[str, list[float]]:
    """The fixed limits of the config's `cells` section, by the metric that they cut."""
    found = {
        "total_counts": [cells.get("min_counts"), cells.get("max_counts")],
        "n_genes_by_counts": [cells.get("min_genes"), cells.get("max_genes")],
        **{f"pct_counts_{family}": [at] for family, at in (cells.get("max_pct_counts") or {}).items()},
    }
    return {metric: [at for at in values if at is not None] for metric, values in found.items()}
