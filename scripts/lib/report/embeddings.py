"""The sentences of the figures of an embedding."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lib.figures.words import metric_label
from lib.report import clusters, facts
from lib.report.parts import Finished, Numbers

QUALITY = "quality metrics"  # the label of the figure with several of them


def numbers(run: Finished, section: str) -> Iterator[Numbers]:
    """A sentence for each figure of a section (UMAP, t-SNE) that is coloured by a column: its groups, or its values."""
    families = (f"pct_counts_{family}" for family in run.config["qc"]["gene_families"])
    metrics = facts.obs(run, "total_counts", *families)
    for mark in run.marks:
        name = mark.labels.get("coloured by", "").removeprefix("density by ")
        if mark.section != section or not name:
            continue
        if name == QUALITY:
            yield Numbers(mark.path, " ".join(of_values(values, metric) for metric, values in metrics.items()))
        else:
            yield Numbers(mark.path, clusters.sizes(run, name))


def of_values(values: pd.Series, name: str) -> str:
    """The median of a metric, and where most of the cells lie."""
    low, middle, high = values.quantile([0.05, 0.5, 0.95])
    label = metric_label(name)
    label = label[:1].upper() + label[1:] if not name.startswith("pct_") else label
    return f"{label}: the median is {middle:,.4g}, and 90 % of the cells lie between {low:,.4g} and {high:,.4g}."
