"""Highly variable genes, within batches and over them.

A flavour gives each gene a statistic in each batch (`lib.methods.hvg_statistics`): the variance of standardised clipped
counts (seurat_v3, seurat_v3_paper), the dispersion among genes of similar mean (seurat, cell_ranger), the variance of
Pearson residuals (pearson_residuals), or the probability that a gene has more zeros than Poisson counts would
(poisson_gene_selection). Genes are ranked by it in each batch, and over the batches by

    seurat_v3                                the median rank, then in how many batches they are among the first n
    seurat_v3_paper, pearson_residuals       in how many batches they are among the first n, then the median rank
    seurat, cell_ranger                      the same number, then the mean of the normalised dispersions
    poisson_gene_selection                   the same number, then the median rank

Ties keep the genes' order, so that exactly n_top_genes are selected, or all that there are. A batch ranks nothing in
which no two cells differ. A flavour reads the counts once or twice (`lib.inputs.config.hvg_passes`), each time for sums
(`next_pass`), which shards of the cells may have made (shard.py). Sources: scanpy.pp.highly_variable_genes,
scanpy.experimental.pp.highly_variable_genes, scvi.data.poisson_gene_selection.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from lib.figures.tables import write_tsv
from lib.inputs import config as settings
from lib.inputs.genelists import read_names
from lib.methods import hvg_statistics as statistics
from lib.methods.hvg_statistics import Batches
from lib.methods.ledgers import shortened, where_cells_went
from lib.methods.scaling import target_of
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import Cohort, kept_cells
from lib.store.files import read_table, write_table
from lib.store.shards import Arrays, Known, Passes, appended
from lib.store.stream import Stream

CUTOFFS = ("seurat", "cell_ranger")  # flavours that can select by cut-offs instead of n_top_genes
MIN_GENES = 3  # to select from
NAMES_SHOWN = 5  # unknown genes that a message spells out


def highly_variable_genes(
    counts: Stream,
    batches: Batches,
    hvg: Mapping[str, Any],
    target_sum: float | None = 1e4,
    include: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Statistics of all genes, and which are highly variable.

    Parameters
    ----------
    counts
        cells x genes.
    batches
        The cells' batches. With `hvg["per_batch"]` false the cells count as one batch.
    hvg
        The config's section `hvg`, whose names are scanpy's.
    target_sum
        Of the normalisation (seurat, cell_ranger); None: the median of the cells' totals.
    include, exclude
        Boolean masks of genes forced in and kept out. Forced genes take the place of the last ones selected;
        the others rank as though those kept out did not exist.
    seed
        Of the sampling (poisson_gene_selection).

    Returns
    -------
    One row per gene: the flavour's columns as scanpy names them, `highly_variable` (bool) and `highly_variable_rank`
    (float: as scanpy's for seurat_v3 and pearson_residuals, else the place from 0 in the order of selection; NaN for
    genes beyond n_top_genes or the cut-offs). Per batch also `highly_variable_nbatches`, and
    `highly_variable_intersection` where scanpy has it.

    Raises
    ------
    UserError
        If genes are both forced in and kept out, or no batch can rank genes.
    """
    include = np.zeros(counts.n_vars, bool) if include is None else include
    exclude = np.zeros(counts.n_vars, bool) if exclude is None else exclude
    batches, hvg = joined(batches, hvg), within(hvg, ~exclude)
    check(hvg, include, ~exclude)
    known = PASSES.over_all(Cells(counts, batches, hvg, target_sum), settings.hvg_passes(hvg["flavor"], target_sum))
    return select(list(known.values()), batches, hvg, include, ~exclude, counts.device, seed)[0]


@dataclass(frozen=True)
class Cells:
    """What a pass reads: all cells, or a shard of them.

    Attributes
    ----------
    counts
        cells x genes.
    batches
        Theirs.
    hvg, target_sum
        See `highly_variable_genes`.
    """

    counts: Stream
    batches: Batches
    hvg: Mapping[str, Any]
    target_sum: float | None


def next_pass(cells: Cells, known: Known) -> Arrays:
    """The flavour's next pass over the counts, after those whose sums over all cells are known."""
    counts, batches, hvg, target_sum = cells.counts, cells.batches, cells.hvg, cells.target_sum
    passes = list(known.values())
    flavor, first = hvg["flavor"], not passes
    if flavor in CUTOFFS and target_sum is None and first:
        return {"totals": statistics.cell_totals(counts)}
    if flavor in CUTOFFS:
        if target_sum is None:
            target_sum = target_of(passes[0]["totals"], None)
        return {"sums": statistics.normalized_sums(counts, batches, target_sum, log1p=flavor == "cell_ranger")}
    if flavor in ("poisson_gene_selection", "pearson_residuals") and first:
        tallied = statistics.Tallied(counts)
        of_counts = statistics.count_sums if flavor == "pearson_residuals" else statistics.presence_sums
        return {"sums": of_counts(tallied, batches), "totals": counts.device.to_host(tallied.totals)}
    if flavor == "pearson_residuals":
        return statistics.residual_sums(counts, batches, passes[0]["sums"][0], hvg["theta"], hvg["clip"])
    if first:
        return {"sums": statistics.count_sums(counts, batches)}
    return statistics.clipped_sums(counts, batches, passes[0]["sums"], hvg["span"])


def select(
    passes: Sequence[Arrays],
    batches: Batches,
    hvg: Mapping[str, Any],
    include: np.ndarray,
    eligible: np.ndarray,
    device: devices.Device,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of `highly_variable_genes`, from the sums of all passes over all cells; and one of the batches.

    The latter has `batch`, `cells`, `ranked` (bool: whether the batch can rank genes), and, for seurat_v3*, `fit` (own,
    wider, pooled: which loess its genes' variances are compared with) and `span`, of an own or wider fit.
    """
    flavor, n_top = hvg["flavor"], hvg["n_top_genes"]
    ranked = differing(passes, batches, flavor, eligible)
    found = batch_dispersions(passes[-1]["sums"], batches, hvg, eligible, ranked) if flavor in CUTOFFS else {}
    if flavor in CUTOFFS:
        ranked = np.isin(np.arange(len(ranked)), list(found))
    if not ranked.any():
        raise UserError("no gene can be called highly variable, for in no batch do two cells differ.")
    if flavor in CUTOFFS:
        table, order = by_dispersion(list(found.values()), hvg, eligible)
    elif flavor == "poisson_gene_selection":
        table, order = by_zeros(passes[0], batches, ranked, n_top, hvg["n_samples"], eligible, device, seed)
    else:
        table, order = by_variance(passes, batches, ranked, hvg, eligible, device)
    n_selected = len(order) if n_top is None else n_top - int(include.sum())
    selected = include.copy()
    selected[order[~include[order]][:n_selected]] = True
    table.insert(0, "highly_variable", selected)
    if "highly_variable_rank" not in table:
        table.insert(1, "highly_variable_rank", np.nan)
        table.loc[order[:n_top], "highly_variable_rank"] = np.arange(len(order[:n_top]), dtype=np.float64)
    if not hvg["per_batch"]:
        table = table.drop(columns=["highly_variable_nbatches", "highly_variable_intersection"], errors="ignore")
    return table, batch_table(batches, ranked, passes[-1].get("spans"), hvg["span"])


def differing(passes: Sequence[Arrays], batches: Batches, flavor: str, eligible: np.ndarray) -> np.ndarray:
    """Whether in each batch there are two cells that differ in genes to choose from: a mask of the batches."""
    first, second = passes[-1 if flavor in CUTOFFS else 0]["sums"][:, :, eligible]
    n = batches.sizes[:, None]
    if flavor == "poisson_gene_selection":
        return ((second > 0) & (second < n)).any(1)
    _, variance = statistics.moments((first, second), np.maximum(n, 2))
    return (batches.sizes > 1) & (variance > 1e-12 * second / np.maximum(n, 1)).any(1)  # less is rounding


def batch_table(batches: Batches, ranked: np.ndarray, spans: np.ndarray | None, span: float) -> pd.DataFrame:
    """The table of the batches; see `select`."""
    table = pd.DataFrame({"batch": list(batches.names), "cells": batches.sizes, "ranked": ranked})
    if spans is None:
        return table
    kinds = np.select([spans == statistics.POOLED, spans > span], ["pooled", "wider"], "own")
    spans = np.where(ranked & (spans != statistics.POOLED), spans, np.nan)
    return table.assign(fit=np.where(ranked, kinds, ""), span=spans)


def by_variance(
    passes: Sequence[Arrays],
    batches: Batches,
    ranked: np.ndarray,
    hvg: Mapping[str, Any],
    eligible: np.ndarray,
    device: devices.Device,
) -> tuple[pd.DataFrame, np.ndarray]:
    """seurat_v3, seurat_v3_paper and pearson_residuals: the table, and the eligible genes, the best first."""
    counted, second = passes
    mean, variance = statistics.moments(counted["sums"].sum(1), len(batches.codes))
    batches, sums = batches.only(ranked), counted["sums"][:, ranked]
    if hvg["flavor"] == "pearson_residuals":
        column, (theta, clip) = "residual_variances", (hvg["theta"], hvg["clip"])
        totals, correction = counted["totals"], second["correction"][:, ranked]
        scores = statistics.residual_variances(sums[0], totals, correction, batches, theta, clip, device)
    else:
        column, excess, deviation = "variances_norm", second["excess"][:, ranked], second["deviation"][ranked]
        scores = statistics.standardized_variances(sums, excess, deviation, batches)
    ranks = ranks_within(scores, eligible)
    top = ranks < hvg["n_top_genes"]
    rank = np.ma.median(np.ma.masked_array(ranks, ~top), axis=0).filled(np.nan)
    n_batches = top.sum(0)
    table = pd.DataFrame(
        {
            "highly_variable_rank": rank,
            "means": mean,
            "variances": variance,
            column: scores.mean(0),
            "highly_variable_nbatches": n_batches,
        }
    )
    if column == "residual_variances":
        table["highly_variable_intersection"] = n_batches == len(top)
    keys = (-n_batches, rank) if hvg["flavor"] == "seurat_v3" else (rank, -n_batches)
    return table, _sorted(keys, eligible)


def batch_dispersions(
    sums: np.ndarray, batches: Batches, hvg: Mapping[str, Any], eligible: np.ndarray, differs: np.ndarray
) -> dict[int, pd.DataFrame]:
    """seurat and cell_ranger: the genes' statistics in each batch, by its code; none of a batch that cannot rank them.

    Genes without counts in the batch have zeros in all columns and are not binned, as in scanpy.
    """
    n_vars, of_batches = sums.shape[2], {}
    for code in np.flatnonzero(differs):
        present = sums[0, code] > 0 if hvg["per_batch"] else np.ones(n_vars, bool)
        mean, variance = statistics.moments(sums[:, code, present], batches.sizes[code])
        found = statistics.dispersions(mean, variance, hvg["flavor"], hvg["n_bins"])
        if np.isnan(found["dispersions_norm"][eligible[present]]).all():
            continue
        found["variable"] = _variable(found, eligible[present], hvg)
        rows = pd.DataFrame(0.0, index=range(n_vars), columns=list(found))
        rows.loc[present] = np.column_stack(list(found.values()))
        of_batches[int(code)] = rows
    return of_batches


def by_dispersion(
    per_batch: Sequence[pd.DataFrame], hvg: Mapping[str, Any], eligible: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """seurat and cell_ranger: the table, and the eligible genes (within the cut-offs without n_top_genes) in order.

    `per_batch` is what `batch_dispersions` found.
    """
    table = pd.concat(per_batch).groupby(level=0).mean()
    n_batches = sum(rows["variable"] for rows in per_batch).to_numpy().astype(np.int64)
    table = table.drop(columns="variable")
    table["highly_variable_nbatches"] = n_batches
    table["highly_variable_intersection"] = n_batches == len(per_batch)
    norm = table["dispersions_norm"].to_numpy()
    order = _sorted((-norm, -n_batches), eligible)
    if hvg["n_top_genes"] is None:
        order = order[_within_cutoffs(table["means"].to_numpy(), norm, hvg)[order]]
    return table, order


def by_zeros(
    counted: Arrays,
    batches: Batches,
    ranked: np.ndarray,
    n_top: int,
    n_samples: int | None,
    eligible: np.ndarray,
    device: devices.Device,
    seed: int,
) -> tuple[pd.DataFrame, np.ndarray]:
    """poisson_gene_selection: the table, and the eligible genes, the best first.

    The probability that a cell lacks a gene though a Poisson cell would have it, observed * (1 - expected), is
    estimated from `n_samples` draws as in scvi-tools (whose draws sum to this one binomial); None: taken as it is.
    """
    sums, totals = counted["sums"][:, ranked], counted["totals"]
    observed, expected = statistics.zero_fractions(sums, totals, batches.only(ranked), device)
    enrichment = observed * (1 - expected)
    if n_samples is not None:
        enrichment = np.random.default_rng(seed).binomial(n_samples, np.clip(enrichment, 0, 1)) / n_samples
    n_vars = len(eligible)
    ranks = n_vars - 1 - ranks_within(enrichment, eligible)
    n_batches = (ranks >= n_vars - n_top).sum(0)
    table = pd.DataFrame(
        {
            "observed_fraction_zeros": np.median(observed, axis=0),
            "expected_fraction_zeros": np.median(expected, axis=0),
            "prob_zero_enriched_nbatches": n_batches,
            "prob_zero_enrichment": np.median(enrichment, axis=0),
            "prob_zero_enrichment_rank": np.median(ranks, axis=0).astype(np.float64),
            "highly_variable_nbatches": n_batches,
        }
    )
    return table, _sorted((-table["prob_zero_enrichment_rank"], -n_batches), eligible)


def ranks_within(scores: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """Rank of each gene in each batch, 0 for the highest score; genes not eligible come last."""
    falling = np.where(eligible, -scores, np.inf)
    return falling.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")


def _sorted(keys: Sequence[np.ndarray], eligible: np.ndarray) -> np.ndarray:
    """Positions of the eligible genes by rising keys, the last key first; NaN after all numbers."""
    keys = [np.where(np.isnan(key), np.inf, key) for key in keys]
    order = np.lexsort(keys)
    return order[eligible[order]]


def _variable(found: Mapping[str, np.ndarray], eligible: np.ndarray, hvg: Mapping[str, Any]) -> np.ndarray:
    """Which genes count as highly variable in one batch: scanpy takes all that tie with the last."""
    norm = np.where(eligible, found["dispersions_norm"], np.nan)
    if hvg["n_top_genes"] is None:
        return eligible & _within_cutoffs(found["means"], norm, hvg)
    falling = -np.sort(-norm[~np.isnan(norm)])
    return np.nan_to_num(norm, nan=-np.inf) >= falling[: hvg["n_top_genes"]][-1]


def _within_cutoffs(means: np.ndarray, norm: np.ndarray, hvg: Mapping[str, Any]) -> np.ndarray:
    norm = np.nan_to_num(norm, posinf=np.finfo(np.float64).max)
    max_disp = np.inf if hvg["max_disp"] is None else hvg["max_disp"]
    by_mean = (means > hvg["min_mean"]) & (means < hvg["max_mean"])
    return by_mean & (norm > hvg["min_disp"]) & (norm < max_disp)


def joined(batches: Batches, hvg: Mapping[str, Any]) -> Batches:
    """The batches as the config wants them: one of all cells with `per_batch` false."""
    return batches if hvg["per_batch"] else Batches(np.zeros_like(batches.codes), ["all cells"])


def within(hvg: Mapping[str, Any], eligible: np.ndarray) -> dict[str, Any]:
    """The config's section with as many n_top_genes as there are genes to select from, at most."""
    n_top = hvg["n_top_genes"]
    return {**hvg, "n_top_genes": None if n_top is None else min(n_top, int(eligible.sum()))}


def check(hvg: Mapping[str, Any], include: np.ndarray, eligible: np.ndarray) -> None:
    """Refuse, before the counts are read, what `highly_variable_genes` cannot do."""
    n_top, flavor = hvg["n_top_genes"], hvg["flavor"]
    if n_top is None and flavor not in CUTOFFS:
        raise UserError(
            f"hvg: flavor: {flavor} needs hvg: n_top_genes, the number of genes to select; "
            "null selects by cut-offs, with the flavours seurat and cell_ranger only."
        )
    if (include & ~eligible).any():
        raise UserError(
            f"{(include & ~eligible).sum()} genes are both in hvg: include and in hvg: exclude. Choose one."
        )
    if n_top is not None and include.sum() > n_top:
        raise UserError(f"hvg: include forces {include.sum()} genes in, but hvg: n_top_genes is {n_top}. Raise it.")


def named_genes(key: str, names: Sequence[str] | str, genes: pd.DataFrame) -> np.ndarray:
    """Which genes of the cohort are named by the config's `hvg: include` or `hvg: exclude`.

    Parameters
    ----------
    key
        include or exclude.
    names
        Symbols (or ids), or the path of a file with one a line.
    genes
        The cohort's genes table, kept or not: its index, `gene_symbols` and `gene_ids` are searched.

    Raises
    ------
    UserError
        For names that no gene has. Lists in files are often longer than a cohort's genes: for these if none is known.
    """
    if not names:
        return np.zeros(len(genes), bool)
    wanted = pd.unique(np.array(read_names(names) if isinstance(names, str) else names, dtype=object))
    columns = [genes.index, *(genes[name] for name in ("gene_symbols", "gene_ids") if name in genes)]
    known = pd.unique(np.concatenate([np.asarray(column, dtype=object) for column in columns]))
    unknown = wanted[~np.isin(wanted, known)].tolist()
    if unknown:
        message = _unknown(key, names, unknown, len(wanted), known)
        if not isinstance(names, str) or len(unknown) == len(wanted):
            raise UserError(message)
        stage.log.warning("%s", message)
    return np.any([np.isin(column, wanted) for column in columns], axis=0)


def _unknown(key: str, names: Sequence[str] | str, unknown: Sequence[str], n: int, known: np.ndarray) -> str:
    shown = []
    for name in unknown[:NAMES_SHOWN]:
        near = difflib.get_close_matches(name, known, n=3)
        shown.append(f"{name} (like {', '.join(near)}?)" if near else name)
    more = f" and {len(unknown) - NAMES_SHOWN} more" if len(unknown) > NAMES_SHOWN else ""
    where = f"{names} (hvg: {key})" if isinstance(names, str) else f"hvg: {key}"
    found = f"{len(unknown)} of the {n} genes in {where} are not among the cohort's: {', '.join(shown)}{more}"
    return f"{found}. Correct or remove them."


def read_choice(snakemake: Any) -> tuple[Batches, np.ndarray, np.ndarray, pd.Index]:
    """What the genes are chosen by, checked: the kept cells' batches, masks of the kept genes forced in and of those
    that may be chosen, and the kept genes."""
    hvg, batch_key = snakemake.params.hvg, snakemake.params.batch_key
    genes = read_table(snakemake.input.genes)
    kept = genes["kept"].to_numpy()
    include = named_genes("include", hvg["include"], genes)
    if (include & ~kept).any():
        dropped = ", ".join(genes.index[include & ~kept][:NAMES_SHOWN])
        raise UserError(
            f"{(include & ~kept).sum()} genes of hvg: include were filtered out ({dropped}): "
            "remove them from the list, or lower genes: min_counts and genes: min_cells."
        )
    exclude = named_genes("exclude", hvg["exclude"], genes)
    codes, names = pd.factorize(kept_cells(snakemake.input.cells, [batch_key])[batch_key])
    if (codes < 0).any():
        raise UserError(
            f"{(codes < 0).sum()} kept cells have no {batch_key} (batch_key in the config). Fill the column in."
        )
    stage.log.info("%d cells, %d genes, %d batches", len(codes), kept.sum(), len(names))
    batches = joined(Batches(codes, [str(name) for name in names]), hvg)
    eligible = ~exclude[kept]
    if eligible.sum() < MIN_GENES:
        went = where_cells_went(snakemake.input.cells, batch_key)
        raise UserError(f"{eligible.sum()} genes are left to select from, too few for any analysis. {went}")
    check(within(hvg, eligible), include[kept], eligible)
    return batches, include[kept], ~exclude[kept], genes.index[kept]


def read(snakemake: Any, shard: str) -> Cells:
    """A shard of the cohort's counts, and of what its genes are chosen by, checked."""
    batches, *_ = read_choice(snakemake)
    counts = read_counts(snakemake, shard)
    return Cells(counts, batches.of_shard(counts.rows), snakemake.params.hvg, snakemake.params.target_sum)


def read_counts(snakemake: Any, shard: str | None = None) -> Cohort:
    """The cohort's counts, or a shard of them."""
    files, device = snakemake.input, devices.of(snakemake)
    return Cohort(files.counts, files.cells, files.genes, snakemake.params.gene_key, device, shard=shard)


PASSES = Passes(
    {"first": next_pass, "second": next_pass}, read, joins={"totals": appended, "deviation": np.fmax, "spans": np.fmax}
)


def tell(of_batches: pd.DataFrame, hvg: Mapping[str, Any]) -> None:
    """Say which batches rank nothing, and which have no fit of their own at the config's span."""
    unranked = of_batches[~of_batches["ranked"]]
    if len(unranked):
        names = [f"{row.batch} ({row.cells} cells)" for row in unranked.itertuples()]
        stage.notice("no say in which genes are highly variable, for their cells do not differ: %s", shortened(names))
    if "fit" not in of_batches:
        return
    others = of_batches[of_batches["fit"].isin(["wider", "pooled"])]
    kinds = {"wider": "a wider one", "pooled": "that of all batches together"}
    said = [f"{kinds[kind]} for {shortened(list(some['batch']))}" for kind, some in others.groupby("fit", sort=False)]
    if said:
        stage.notice(
            "in %d of %d batches too few genes vary for the loess of hvg: span: %g; instead %s "
            "(results/cohort/hvg_batches.tsv)",
            *(len(others), len(of_batches), hvg["span"], "; ".join(said)),
        )


def needs(job: Job) -> Need:
    """Sums of each batch and gene, and statistics made of them; of a shard also each cell's batch."""
    if job.part:
        return replace(job.of_shard(needs, 0.6 * KB), disk=40 * job.n_batches * job.n_vars + 8 * job.n_kept)
    sums = 64 * job.n_batches * job.n_vars
    chunk = 330 * MB * (job.shards == 1)
    memory = job.pass_memory(chunk, 40 * MB + job.places + sums + 0.6 * KB * job.n_kept + 1 * KB * job.n_vars)
    vram = job.claim(1900 * MB, sums)
    return Need(**memory, seconds=5 + 0.3e-6 * job.nnz, disk=200 * job.n_vars, vram=vram)


def main(snakemake: Any) -> None:
    """Read the cohort's counts, or what shards made of them, write `hvg.parquet` and `hvg_batches.tsv`."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    batches, include, eligible, genes = read_choice(snakemake)
    hvg = within(params.hvg, eligible)
    if hvg["n_top_genes"] != params.hvg["n_top_genes"]:
        stage.notice(
            "hvg: n_top_genes: all %d genes instead of %d: there are no more (%d kept, %d excluded)",
            *(hvg["n_top_genes"], params.hvg["n_top_genes"], len(eligible), (~eligible).sum()),
        )
    known = PASSES.gathered(files.shards)
    if not known:
        cells = Cells(read_counts(snakemake), batches, hvg, params.target_sum)
        known = PASSES.over_all(cells, settings.hvg_passes(hvg["flavor"], params.target_sum))
    try:
        table, of_batches = select(list(known.values()), batches, hvg, include, eligible, device, params.seed)
    except UserError as error:
        raise UserError(f"{error} {where_cells_went(files.cells, params.batch_key)}") from None
    tell(of_batches, hvg)
    table.index = genes
    stage.log.info(
        "%s: %d genes selected, %d of them forced in, %d kept out",
        *(hvg["flavor"], table["highly_variable"].sum(), include.sum(), (~eligible).sum()),
    )
    write_table(table, snakemake.output.hvg, slot="var", uns={"hvg": {"flavor": hvg["flavor"]}})
    write_tsv(of_batches, snakemake.output.batches)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
