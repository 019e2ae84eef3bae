"""What the page says of the clusters: small ones, those of one batch or of poor quality, and the known labels."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lib.figures.words import metric_label
from lib.report import facts
from lib.report.parts import Finding, Finished, Numbers, Part
from lib.report.words import count, listed, percent

ONE_BATCH = 0.9  # a cluster with a larger share of its cells in one batch is a finding
FEW = 20  # and so is one with fewer cells
AGREE = 0.8  # and so are clusters in which fewer cells have the label of most
SHARE = 0.5  # a batch with a larger share of all cells may fill a cluster


def told(run: Finished, method: str) -> Iterator[Part]:
    """The findings of the main clustering, if it is of this method, and the sentences of the method's figures."""
    yield from findings(run, method)
    yield from numbers(run, method)


def findings(run: Finished, method: str) -> Iterator[Finding]:
    """The findings of the main clustering, if it is of this method."""
    name = facts.main_clustering(run)
    if name is None or not name.startswith(f"{method}_"):
        return
    clusters, batch_key, label_key = facts.grouping(run, name), run.config["batch_key"], run.config["label_key"]
    figure = run.figure("UMAP", name)
    yield from of_size(clusters, name, figure)
    batches = facts.grouping(run, batch_key)
    yield from of_batches(clusters, batches, name, run.figure(name, f"by {batch_key}") or figure)
    metrics = [f"pct_counts_{family}" for family in run.config["cells"]["max_pct_counts"]]
    for metric, values in facts.obs(run, *metrics, "doublet_score").items():
        yield from of_quality(clusters, values, metric, name, run.figure(name, "quality") or figure)
    if label_key:
        labels = facts.grouping(run, label_key)
        yield from of_labels(clusters, labels, name, label_key, run.figure(name, f"by {label_key}") or figure)


def numbers(run: Finished, method: str) -> Iterator[Numbers]:
    """The sentences of the figures that are about the clusterings of a method, as their label `clusters` says."""
    names = [name for name in facts.clusterings(run) if name.startswith(f"{method}_")]
    for mark in run.marks:
        of = names if mark.labels.get("clusters") == method else [mark.labels.get("clusters")]
        if set(of) <= set(names):
            yield Numbers(mark.path, " ".join(sizes(run, name) for name in of))


def of_size(clusters: pd.Series, name: str, figure: str = "") -> Iterator[Finding]:
    """Clusters of few cells."""
    for cluster, n in clusters.value_counts(sort=False).items():
        if 0 < n < FEW:
            said = f"{count(n, 'cell')}"
            yield Finding(
                f"Cluster {cluster} of {name}", said, f"expected at least {FEW}", FEW / n, figure, kind="small clusters"
            )


def of_batches(clusters: pd.Series, batches: pd.Series, name: str, figure: str = "") -> Iterator[Finding]:
    """Clusters that are nearly of one batch, where this batch does not hold most of all cells."""
    cells = pd.crosstab(clusters.to_numpy(), batches.to_numpy())
    whole = cells.sum() / max(1, cells.to_numpy().sum())
    for cluster, row in cells.div(cells.sum(1), axis=0).loc[clusters.cat.categories].iterrows():
        batch, share = row.idxmax(), row.max()
        if share > ONE_BATCH and whole[batch] <= SHARE:
            said = f"{percent(share)} of its {count(cells.loc[cluster].sum(), 'cell')} are of batch {batch}"
            limit = f"expected at most {percent(ONE_BATCH)}; this batch has {percent(whole[batch])} of all cells"
            beyond = 1 + (share - ONE_BATCH) / (1 - ONE_BATCH)
            yield Finding(f"Cluster {cluster} of {name}", said, limit, beyond, figure, kind="clusters of one batch")


def of_quality(clusters: pd.Series, values: pd.Series, metric: str, name: str, figure: str = "") -> Iterator[Finding]:
    """Clusters whose median lies far above that of all cells."""
    if values.notna().sum() < FEW:
        return
    limit, middle = facts.three_spreads_above(values), values.median()
    medians = values.groupby(clusters.to_numpy()).median()
    label = metric_label(metric).replace("(% of a cell's)", "in %")
    for cluster in clusters.cat.categories:
        if limit > middle and medians[cluster] > limit:
            said = f"the median of {label} is {medians[cluster]:.3g}"
            expected = f"expected at most {limit:.3g}, three spreads above the median of all cells, {middle:.3g}"
            beyond = (medians[cluster] - middle) / (limit - middle)
            where, kind = f"Cluster {cluster} of {name}", "clusters of poor quality"
            yield Finding(where, said, expected, beyond, figure, kind=kind)


def of_labels(clusters: pd.Series, labels: pd.Series, name: str, key: str, figure: str = "") -> Iterator[Finding]:
    """Clusters and known labels that disagree: many cells have another label than most cells of their cluster."""
    known = labels.notna().to_numpy()
    cells = pd.crosstab(clusters.to_numpy()[known], labels.to_numpy()[known])
    if cells.shape[0] < 2 or cells.shape[1] < 2:
        return
    agree = cells.max(1).sum() / cells.to_numpy().sum()
    if agree < AGREE:
        main = cells.idxmax(1)
        found = pd.Series({label: cells.loc[main == label, label].sum() / cells[label].sum() for label in cells})
        worst = [f"{label} ({percent(share)})" for label, share in found.sort_values().items() if share < AGREE]
        said = f"{percent(agree)} of the labelled cells have the label of most cells of their cluster"
        said += f"; the labels least so are {listed(worst, 3)};" if worst else ""
        yield Finding(
            f"{key} and {name}", said, f"expected at least {percent(AGREE)}", (1 - agree) / (1 - AGREE), figure
        )


def sizes(run: Finished, name: str) -> str:
    """A sentence on the groups of a clustering, a label or batches."""
    groups = facts.grouping(run, name)
    n, of_group = len(groups), groups.value_counts()
    of_group = of_group[of_group > 0]
    noun = "cluster" if name in facts.clusterings(run) else "group"
    said = f"{count(n, 'cell')} in {count(len(of_group), noun)} of `{name}`"
    if len(of_group) > 1:
        ends = [
            f"{of_group.index[i]} with {count(of_group.iloc[i])} ({percent(of_group.iloc[i] / n)})" for i in (0, -1)
        ]
        said += f"; the largest is {ends[0]}, the smallest {ends[1]}"
    missing = int(groups.isna().sum())
    return f"{said}; {count(missing, 'cell has', 'cells have')} no value." if missing else f"{said}."
