"""Measure the integration, against the unintegrated space: batches should mix, and types stay apart.

The metrics are those of scib-metrics (`lib.methods.mixing`), each from 0 (worst) to 1 (best) but for the PC regression,
the share of variance that batches explain. They are measured at a sample of cells against all cells. `within batches`
tells of over-correction without labels: the share of a cell's nearest neighbours in its own batch that stay such.
"""

from lib.start import run

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import pandas as pd
from lib.methods import mixing
from lib.report import facts
from lib.report.parts import Column, Finding, Finished, Methods, Paragraph, Part, Table
from lib.report.words import listed, percent
from lib.run import device as devices
from lib.run import stage
from lib.run.progress import timed
from lib.run.resources import CUPY, MB, Job, Need
from lib.store.categories import as_categories
from lib.store.files import read_table, write_tsv

SPACES = ("unintegrated", "integrated")
BATCHES, LABELS, WITHIN = "batches", "labels", "within batches"
# Metric -> what it measures
METRICS = {
    "iLISI": BATCHES,
    "kBET": BATCHES,
    "batch ASW": BATCHES,
    "PC regression": BATCHES,
    WITHIN: LABELS,
    "cLISI": LABELS,
    "label ASW": LABELS,
    "graph connectivity": LABELS,
    "isolated labels": LABELS,
}
ONE_BATCH, NO_LABELS = "there is one batch", "there are neither labels nor clusters"
NO_SPACE = "there is no integrated space"
# Limits of findings: of the way from mixed to separate batches; neighbours that stay; loss of a label's own neighbours
SEPARATE, KEPT, LOST = 0.5, 0.7, 0.1
CHAPTER, SECTION = "Trust", "Integration"


def codes_of(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """The code of each cell, -1 without a value, and the categories' names."""
    values = as_categories(values)
    return values.cat.codes.to_numpy().astype(np.int64), list(values.cat.categories)


def batches_of(obs: pd.DataFrame, keys: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The batch of each cell by one column or several; cells without a value are a batch of their own."""
    named = [as_categories(obs[key]).astype(object).fillna("(none)") for key in keys]
    joined = named[0] if len(named) == 1 else pd.Series([", ".join(of) for of in zip(*named, strict=True)])
    return codes_of(joined.astype(str))


def read_spaces(pca: str, harmony: Sequence[str], n_pcs: int) -> dict[str, np.ndarray]:
    """The unintegrated space, and the integrated one if there is one, of the first components each; float32."""
    with h5py.File(pca, "r", locking=False) as file:
        found = {SPACES[0]: file["X_pca"][:, :n_pcs].astype(np.float32)}
    for path in harmony:
        with h5py.File(path, "r", locking=False) as file:
            if "X_pca_harmony" in file:
                found[SPACES[1]] = file["X_pca_harmony"][:, :n_pcs].astype(np.float32)
    return found


def compare(
    spaces: Mapping[str, np.ndarray],
    batches: np.ndarray,
    labels: np.ndarray | None,
    sample: mixing.Sample,
    n_jobs: int,
    device: devices.Device,
) -> dict[str, mixing.Measured]:
    """What is measured of each space (`mixing.measure`), and what stays within batches from the first space on."""
    found, first = {}, None
    for name, X in spaces.items():
        with timed(name):
            X = device.xp.asarray(X)
            found[name] = mixing.measure(X, batches, labels, sample, n_jobs, device)
            mine = X[device.xp.asarray(sample.rows)]
            if first is not None:
                stays = mixing.kept_within(first, mine, batches[sample.rows], n_jobs, device)
                found[name].of_all[WITHIN] = sample.mean(stays)
            first = mine if first is None else first
    return found


def table_of_metrics(found: Mapping[str, mixing.Measured], n_batches: int, labelled: bool) -> pd.DataFrame:
    """A row for each metric: what it measures, its value in each space, and why values are left out."""
    rows = []
    for metric, of in METRICS.items():
        values = [found[space].of_all.get(metric, np.nan) if space in found else np.nan for space in SPACES]
        needs_batches = of == BATCHES or metric in (WITHIN, "isolated labels")
        needs_labels = metric == "batch ASW" or (of == LABELS and metric != WITHIN)
        why = ONE_BATCH if needs_batches and n_batches < 2 else NO_LABELS if needs_labels and not labelled else ""
        why = why or (NO_SPACE if len(found) < 2 else "too few groups" if np.isnan(values[1]) else "")
        rows.append([metric, of, *values, why])
    return pd.DataFrame(rows, columns=["metric", "of", *SPACES, "left_out"])


def expected_own(batches: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """For each batch the share of a cell's neighbours that would be of its batch, were batches mixed in each label."""
    groups = np.zeros_like(batches) if labels is None else labels + 1
    pairs = np.zeros((groups.max() + 1, batches.max() + 1))
    np.add.at(pairs, (groups, batches), 1)
    shares = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
    return (shares * pairs).sum(0) / pairs.sum(0)


def table_of_groups(
    names: Sequence[str], codes: np.ndarray, found: Mapping[str, dict[str, np.ndarray]], **columns: np.ndarray
) -> pd.DataFrame:
    """A row for each batch or label: its cells, `columns`, and each value in each space."""
    table = {"cells": np.bincount(codes[codes >= 0], minlength=len(names))} | columns
    for space, values in found.items():
        table |= {f"{name.replace(' ', '_')}_{space}": array for name, array in values.items()}
    return pd.DataFrame(table, pd.Index(names, name="group")).reset_index()


def needs(job: Job) -> Need:
    """Both spaces, and the neighbours and distances of the sampled cells."""
    asked = job.config["trust"]["n_cells"]
    n = min(job.n_kept, asked or job.n_kept)
    points = 8 * job.n_pcs * job.n_kept
    pairs = n * job.n_kept
    mem = job.process + 150 * MB + 3 * points + 40 * mixing.LISI * n + 100 * job.n_kept
    gpu_mem = job.process + CUPY + 2 * points + 20 * mixing.LISI * n + 100 * job.n_kept
    vram = 600 * MB + 3 * points + 80 * mixing.LISI * n
    scans = 1 + len(job.config["trust"]["thetas"])
    seconds = 20 + scans * (1e-8 * pairs + 2e-5 * job.n_kept)
    return Need(mem, seconds, 5 * MB, vram, gpu_mem, reads=8 * job.n_comps * job.n_kept)


def tells(run: Finished) -> Iterator[Part]:
    """How well the batches mix and the labels stay apart; which do not."""
    job = run.one("trust_integration")
    told = facts.tsv(job.metrics)
    batches, labels = facts.tsv(job.batches), facts.tsv(job.labels)
    used = SPACES[int(told[SPACES[1]].notna().any())]
    label = run.config["label_key"] or facts.main_clustering(run)
    clusters_told = bool(label) and not run.config["label_key"]
    figure = run.figure("before and after Harmony")
    yield Paragraph(_summary_told(told, label, clusters_told), CHAPTER, SECTION)
    yield Table(
        job.metrics,
        "Integration",
        "Each metric before and after the integration, as scib-metrics computes it, from 0 to 1. The best value is 1, "
        "but 0 of the PC regression, the share of the variance that the batches explain. Of `within batches`, the "
        "share of a cell's nearest neighbours in its batch that stay such, low values tell of over-correction.",
        CHAPTER,
        SECTION,
        {"left_out": Column("left out, as")},
    )
    if len(batches):
        said = "Each batch: the share of its cells' neighbours that are of this batch, and what it would be if mixed."
        yield Table(job.batches, "Mixing by batch", said, CHAPTER, SECTION, {"group": Column("batch", text=True)})
    if len(labels):
        said = f"Each group of {label}: the share of its cells' neighbours that are of it, and its metrics."
        yield Table(job.labels, "Metrics by label", said, CHAPTER, SECTION, {"group": Column(label, text=True)})
    for path in job.files("thetas"):
        said = "The metrics of Harmony with other values of theta. They are for comparison; the run has its own."
        yield Table(path, "Other values of theta", said, CHAPTER, SECTION)
    yield from _separate_told(batches, used, figure)
    yield from _lost_told(told, labels, str(label), clusters_told, figure)
    yield Methods("The integration was judged by the metrics of scib-metrics.", ["scib"])


def _summary_told(told: pd.DataFrame, label: str | None, clusters_told: bool) -> str:
    """What the metrics are measured against, and what is left out."""
    against = f"The labels are those of {label}" if label else "There are neither labels nor clusters"
    against += (
        ": clusters of this run, as `label_key` is not set. They favour the space that they are of" * clusters_told
    )
    out = told[told["left_out"].notna()]
    reasons = [f"{listed(rows['metric'], 9)} ({reason})" for reason, rows in out.groupby("left_out", sort=False)]
    return f"{against}." + (f" Left out, wholly or in part: {'; '.join(reasons)}." if reasons else "")


def _separate_told(batches: pd.DataFrame, used: str, figure: str) -> Iterator[Finding]:
    """Batches that do not mix."""
    for row in batches.to_dict("records"):
        own, expected = row[f"own_{used}"], row["expected"]
        left = (own - expected) / max(1 - expected, 1e-9)
        if left > SEPARATE:
            said = f"does not mix: {percent(own)} of its cells' neighbours are its own"
            said += f", {percent(row[f'own_{SPACES[0]}'])} before integration" if used == SPACES[1] else ""
            limit = f"expected at most {percent(expected + SEPARATE * (1 - expected))}; {percent(expected)} if mixed"
            yield Finding(f"Batch {row['group']}", said, limit, left / SEPARATE, figure, "batches that do not mix")


def _lost_told(
    told: pd.DataFrame, labels: pd.DataFrame, label: str, clusters_told: bool, figure: str
) -> Iterator[Finding]:
    """Over-correction: cells leave those that they were among, and labels fall apart."""
    values = told.set_index("metric")
    stays = values.loc[WITHIN, SPACES[1]]
    if stays < KEPT:
        said = f"over-corrects: {percent(stays)} of a cell's neighbours within its batch are such after it"
        beyond = (1 - stays) / (1 - KEPT)
        yield Finding("Integration", said, f"expected at least {percent(KEPT)}", beyond, figure, "over-correction")
    before, after = values.loc["iLISI", list(SPACES)]
    if after < before - 0.05:
        said = f"separates the batches: iLISI is {after:.2f} after it, {before:.2f} before"
        yield Finding("Integration", said, "expected no lower", 1.5, figure)
    if clusters_told or f"own_{SPACES[1]}" not in labels:
        return
    for row in labels.to_dict("records"):
        before, after = (row[f"own_{space}"] for space in SPACES)
        if before - after > LOST:
            said = f"is mixed with others by the integration: {percent(after)} of its cells' neighbours are its own"
            limit = f"expected at most {percent(LOST)} fewer than before, {percent(before)}"
            beyond = (before - after) / LOST
            yield Finding(f"{row['group']} of {label}", said, limit, beyond, figure, "over-correction")


def scan(snakemake: Any, obs: pd.DataFrame, batches: np.ndarray, *given: Any) -> pd.DataFrame:
    """The metrics of Harmony with each theta that the config asks for, a row each."""
    from harmony import batch_columns, harmonize

    params, (labels, sample, n_jobs, device) = snakemake.params, given
    columns = batch_columns(obs, list(params.batch_keys))
    with h5py.File(snakemake.input.pca, "r", locking=False) as file:
        X_pca = file["X_pca"][...].astype(np.float32)
    rows = []
    for theta in params.thetas if len(columns.columns) else []:
        made = harmonize(X_pca, columns, params.harmony | {"theta": theta}, params.seed, device, n_jobs).X
        spaces = {SPACES[0]: X_pca[:, : params.n_pcs], SPACES[1]: made[:, : params.n_pcs]}
        of_all = compare(spaces, batches, labels, sample, n_jobs, device)[SPACES[1]].of_all
        rows.append({"theta": theta} | {name: of_all.get(name, np.nan) for name in METRICS})
    return pd.DataFrame(rows, columns=["theta", *METRICS])


def main(snakemake: Any) -> None:
    """Read the spaces, the batches and the labels, write the tables."""
    params, device, n_jobs = snakemake.params, devices.of(snakemake), snakemake.threads
    obs = read_table(snakemake.input.obs, named=False)
    batches, batch_names = batches_of(obs, list(params.batch_keys))
    labels, label_names = None, []
    if params.label:
        of_cells = read_table(snakemake.input.labels[0], named=False) if snakemake.input.labels else obs
        labels, label_names = codes_of(of_cells[params.label])
        labels = labels if label_names else None
    strata = batches if labels is None else (labels + 1) * len(batch_names) + batches
    sample = mixing.stratified(strata, params.n_cells, params.seed)
    stage.log.info("measured at %d of %d cells", len(sample.rows), len(obs))
    spaces = read_spaces(snakemake.input.pca, snakemake.input.harmony, params.n_pcs)
    found = compare(spaces, batches, labels, sample, n_jobs, device)
    table = table_of_metrics(found, len(batch_names), labels is not None)
    stage.log.info("metrics:\n%s", table.to_string(index=False))
    write_tsv(table, snakemake.output.metrics)
    expected = expected_own(batches, labels if params.known else None)
    several = len(batch_names) > 1
    of_batches = {space: measured.of_batches for space, measured in found.items()}
    table = table_of_groups(batch_names, batches, of_batches, expected=expected)
    write_tsv(table if several else table.iloc[:0], snakemake.output.batches)
    of_labels = {space: measured.of_labels for space, measured in found.items()}
    table = table_of_groups(label_names, np.array([-1]) if labels is None else labels, of_labels)
    write_tsv(table, snakemake.output.labels)
    for path in snakemake.output.thetas:
        write_tsv(scan(snakemake, obs, batches, labels, sample, n_jobs, device), path)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
