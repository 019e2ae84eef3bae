"""Highly variable genes, within batches and over them.

A flavour gives each gene a statistic in each batch (`lib.hvg_statistics`): the variance of standardised clipped counts
(seurat_v3, seurat_v3_paper), the dispersion among genes of similar mean (seurat, cell_ranger), the variance of Pearson
residuals (pearson_residuals), or the probability that a gene has more zeros than Poisson counts would
(poisson_gene_selection). Genes are ranked by it in each batch, and over the batches by

    seurat_v3                                the median rank, then in how many batches they are among the first n
    seurat_v3_paper, pearson_residuals       in how many batches they are among the first n, then the median rank
    seurat, cell_ranger                      the same number, then the mean of the normalised dispersions
    poisson_gene_selection                   the same number, then the median rank

Ties keep the genes' order, so that exactly n_top_genes are selected. A flavour reads the counts once or twice
(`lib.config.hvg_passes`), each time for sums (`next_sums`), which shards of the cells may have made (hvg_sums.py).
Sources: scanpy.pp.highly_variable_genes, scanpy.experimental.pp.highly_variable_genes,
scvi.data.poisson_gene_selection.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from lib import config as settings
from lib import device as devices
from lib import hvg_statistics as statistics
from lib import stage
from lib.cohort import Cohort, kept_cells
from lib.counts import Stream
from lib.errors import UserError
from lib.files import read_table, write_table
from lib.genelists import read_names
from lib.hvg_statistics import Batches
from lib.shards import combine

Sums = dict[str, np.ndarray]  # what a pass returns
CUTOFFS = ("seurat", "cell_ranger")  # flavours that can select by cut-offs instead of n_top_genes
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
        If there are fewer genes to select from than n_top_genes, or a batch has too few cells.
    """
    include = np.zeros(counts.n_vars, bool) if include is None else include
    exclude = np.zeros(counts.n_vars, bool) if exclude is None else exclude
    batches = joined(batches, hvg)
    check(hvg, batches, include, ~exclude)
    passes = all_passes(counts, batches, hvg, target_sum)
    return select(passes, batches, hvg, include, ~exclude, counts.device, seed)


def all_passes(counts: Stream, batches: Batches, hvg: Mapping[str, Any], target_sum: float | None) -> list[Sums]:
    """All passes of the flavour over the counts, one after another."""
    passes: list[Sums] = []
    for _ in range(settings.hvg_passes(hvg["flavor"], target_sum)):
        passes.append(next_sums(counts, batches, hvg, target_sum, passes))
    return passes


def next_sums(
    counts: Stream, batches: Batches, hvg: Mapping[str, Any], target_sum: float | None, passes: Sequence[Sums]
) -> Sums:
    """The flavour's next pass over the counts, after those whose sums over all cells are known.

    Parameters
    ----------
    counts, batches
        Of all cells, or of a shard.
    """
    flavor, first = hvg["flavor"], not passes
    if flavor in CUTOFFS and target_sum is None and first:
        return {"totals": statistics.cell_totals(counts)}
    if flavor in CUTOFFS:
        if target_sum is None:
            totals = passes[0]["totals"]
            target_sum = float(np.median(totals[totals > 0]))
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
    passes: Sequence[Sums],
    batches: Batches,
    hvg: Mapping[str, Any],
    include: np.ndarray,
    eligible: np.ndarray,
    device: devices.Device,
    seed: int = 0,
) -> pd.DataFrame:
    """The table of `highly_variable_genes`, from the sums of all passes over all cells."""
    flavor, n_top = hvg["flavor"], hvg["n_top_genes"]
    if flavor in CUTOFFS:
        table, order = by_dispersion(passes[-1]["sums"], batches, hvg, eligible)
    elif flavor == "poisson_gene_selection":
        table, order = by_zeros(passes[0], batches, n_top, hvg["n_samples"], eligible, device, seed)
    else:
        table, order = by_variance(passes, batches, hvg, eligible, device)
    n_selected = len(order) if n_top is None else n_top - int(include.sum())
    selected = include.copy()
    selected[order[~include[order]][:n_selected]] = True
    table.insert(0, "highly_variable", selected)
    if "highly_variable_rank" not in table:
        table.insert(1, "highly_variable_rank", np.nan)
        table.loc[order[:n_top], "highly_variable_rank"] = np.arange(len(order[:n_top]), dtype=np.float64)
    if not hvg["per_batch"]:
        table = table.drop(columns=["highly_variable_nbatches", "highly_variable_intersection"], errors="ignore")
    return table


def by_variance(
    passes: Sequence[Sums], batches: Batches, hvg: Mapping[str, Any], eligible: np.ndarray, device: devices.Device
) -> tuple[pd.DataFrame, np.ndarray]:
    """seurat_v3, seurat_v3_paper and pearson_residuals: the table, and the eligible genes, the best first."""
    counted, second = passes
    mean, variance = statistics.moments(counted["sums"].sum(1), len(batches.codes))
    if hvg["flavor"] == "pearson_residuals":
        column, (theta, clip) = "residual_variances", (hvg["theta"], hvg["clip"])
        sums = counted["sums"][0], counted["totals"], second["correction"]
        scores = statistics.residual_variances(*sums, batches, theta, clip, device)
    else:
        column = "variances_norm"
        scores = statistics.standardized_variances(counted["sums"], second["excess"], second["deviation"], batches)
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


def by_dispersion(
    sums: np.ndarray, batches: Batches, hvg: Mapping[str, Any], eligible: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """seurat and cell_ranger: the table, and the eligible genes (within the cut-offs without n_top_genes) in order.

    Per batch, genes without counts have zeros in all columns and are not binned, as in scanpy.
    """
    n_vars = sums.shape[2]
    per_batch = []
    for code, n in enumerate(batches.sizes):
        present = sums[0, code] > 0 if hvg["per_batch"] else np.ones(n_vars, bool)
        mean, variance = statistics.moments(sums[:, code, present], n)
        found = statistics.dispersions(mean, variance, hvg["flavor"], hvg["n_bins"])
        found["variable"] = _variable(found, eligible[present], hvg)
        rows = pd.DataFrame(0.0, index=range(n_vars), columns=list(found))
        rows.loc[present] = np.column_stack(list(found.values()))
        per_batch.append(rows)
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
    counted: Sums,
    batches: Batches,
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
    observed, expected = statistics.zero_fractions(counted["sums"], counted["totals"], batches, device)
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


def check(hvg: Mapping[str, Any], batches: Batches, include: np.ndarray, eligible: np.ndarray) -> None:
    """Refuse, before the counts are read, what `highly_variable_genes` cannot do."""
    n_top, flavor = hvg["n_top_genes"], hvg["flavor"]
    small = [f"{name} ({n})" for name, n in zip(batches.names, batches.sizes, strict=True) if n < 2]
    if small:
        raise UserError(
            f"no variance exists in batches with fewer than two kept cells: {', '.join(small)}. "
            "Leave these samples out, merge batches (batch_key), or set hvg: per_batch: false."
        )
    if n_top is None and flavor not in CUTOFFS:
        raise UserError(
            f"hvg: flavor: {flavor} needs hvg: n_top_genes, the number of genes to select; "
            "null selects by cut-offs, with the flavours seurat and cell_ranger only."
        )
    if n_top is not None and n_top > eligible.sum():
        raise UserError(
            f"hvg: n_top_genes: {n_top} is more than the {eligible.sum()} genes to select from "
            f"({len(eligible)} kept, {(~eligible).sum()} excluded). Lower hvg: n_top_genes, or genes: min_counts."
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
    check(hvg, batches, include[kept], ~exclude[kept])
    return batches, include[kept], ~exclude[kept], genes.index[kept]


def read_passes(*passes: Sequence[str]) -> list[Sums]:
    """The sums of each pass over all cells, from those of its shards."""
    return [combine(files, totals=_appended, deviation=np.fmax) for files in passes if files]


def _appended(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.concatenate([one, other])


def main(snakemake: Any) -> None:
    """Read the cohort's counts, or what shards made of them, write `hvg.parquet`."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    batches, include, eligible, genes = read_choice(snakemake)
    passes = read_passes(files.first, files.second)
    if not passes:
        counts = Cohort(files.counts, files.cells, files.genes, params.gene_key, device)
        passes = all_passes(counts, batches, params.hvg, params.target_sum)
    table = select(passes, batches, params.hvg, include, eligible, device, snakemake.params.seed)
    table.index = genes
    stage.log.info(
        "%s: %d genes selected, %d of them forced in, %d kept out",
        *(params.hvg["flavor"], table["highly_variable"].sum(), include.sum(), (~eligible).sum()),
    )
    write_table(table, snakemake.output.hvg)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
