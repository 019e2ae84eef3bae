"""Highly variable genes, within batches and over them.

A flavour (`lib.methods.hvg`) gives each gene a statistic in each batch: the variance of standardised clipped counts
(seurat_v3, seurat_v3_paper), the dispersion among genes of similar mean (seurat, cell_ranger), the variance of Pearson
residuals (pearson_residuals), or the probability that a gene has more zeros than Poisson counts would
(poisson_gene_selection). Genes are ranked by it in each batch, and over the batches by

    seurat_v3                                the median rank, then in how many batches they are among the first n
    seurat_v3_paper, pearson_residuals       in how many batches they are among the first n, then the median rank
    seurat, cell_ranger                      the same number, then the mean of the normalised dispersions
    poisson_gene_selection                   the same number, then the median rank

Ties keep the genes' order, so that exactly n_top_genes are selected, or all that there are. A batch in which no two
cells differ ranks nothing. A flavour reads the counts once or twice, each time for sums (`next_pass`), which shards of
the cells may have made (shard.py). Sources: scanpy.pp.highly_variable_genes,
scanpy.experimental.pp.highly_variable_genes, scvi.data.poisson_gene_selection.
"""

from lib.start import run

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from lib.inputs.genelists import read_names
from lib.methods.hvg import dispersions, pearson_residuals, poisson_gene_selection, seurat_v3
from lib.methods.hvg.shared import Batches, Cells, Flavor
from lib.methods.ledgers import shortened, where_cells_went
from lib.methods.tolerances import Tolerance
from lib.report.parts import Finished, Methods, Numbers, Part
from lib.report.words import count, listed
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import Cohort, kept_cells
from lib.store.files import read_table, write_table, write_tsv
from lib.store.shards import Arrays, Known, Passes, appended
from lib.store.stream import Stream

FLAVORS: Mapping[str, Flavor] = {
    "seurat_v3": seurat_v3,
    "seurat_v3_paper": seurat_v3,
    "seurat": dispersions,
    "cell_ranger": dispersions,
    "pearson_residuals": pearson_residuals,
    "poisson_gene_selection": poisson_gene_selection,
}
# Flavours that can select by cut-offs instead of n_top_genes
CUTOFFS = tuple(name for name, flavor in FLAVORS.items() if flavor is dispersions)
MIN_GENES = 3  # to select from
NAMES_SHOWN = 5  # unknown genes that a message spells out
# How far results may lie from those of a sample of cells (`trust_stages`)
TOLERANCES = {
    "means": Tolerance(0.99, "a sample's mean lies within five standard errors, but for genes seen in few cells", True),
    "overlap": Tolerance(0.8, "a sample ranks genes of like variance otherwise", True),
}


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
    batches, hvg = batches_to_rank_in(batches, hvg), within(hvg, ~exclude)
    refuse_choice(hvg, include, ~exclude)
    known = over_all(Cells(counts, batches, hvg, target_sum))
    return select(list(known.values()), batches, hvg, include, ~exclude, counts.device, seed)[0]


def next_pass(cells: Cells, known: Known) -> Arrays:
    """The flavour's next pass over the counts, after those whose sums over all cells are known."""
    return FLAVORS[cells.hvg["flavor"]].passes(cells.target_sum)[len(known)](cells, list(known.values()))


def select(
    known: Sequence[Arrays],
    batches: Batches,
    hvg: Mapping[str, Any],
    include: np.ndarray,
    eligible: np.ndarray,
    device: devices.Device,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of `highly_variable_genes`, from the sums of all passes over all cells; and one of the batches.

    The latter has `batch`, `cells`, `ranked` (bool: whether the batch can rank genes), and the flavour's `fits`.
    """
    flavor, n_top = FLAVORS[hvg["flavor"]], hvg["n_top_genes"]
    statistics = flavor.statistics(known, batches, hvg, eligible, device, seed)
    table, order = flavor.order(statistics, hvg, eligible)
    n_selected = len(order) if n_top is None else n_top - int(include.sum())
    selected = include.copy()
    selected[order[~include[order]][:n_selected]] = True
    table.insert(0, "highly_variable", selected)
    if "highly_variable_rank" not in table:
        table.insert(1, "highly_variable_rank", np.nan)
        table.loc[order[:n_top], "highly_variable_rank"] = np.arange(len(order[:n_top]), dtype=np.float64)
    if not hvg["per_batch"]:
        table = table.drop(columns=["highly_variable_nbatches", "highly_variable_intersection"], errors="ignore")
    of_batches = {"batch": list(batches.names), "cells": batches.sizes, "ranked": statistics["ranked"]}
    return table, pd.DataFrame(of_batches | statistics.get("fits", {}))


def batches_to_rank_in(batches: Batches, hvg: Mapping[str, Any]) -> Batches:
    """The batches as the config wants them: one of all cells with `per_batch` false."""
    return batches if hvg["per_batch"] else Batches(np.zeros_like(batches.codes), ["all cells"])


def within(hvg: Mapping[str, Any], eligible: np.ndarray) -> dict[str, Any]:
    """The config's section with as many n_top_genes as there are genes to select from, at most."""
    n_top = hvg["n_top_genes"]
    return {**hvg, "n_top_genes": None if n_top is None else min(n_top, int(eligible.sum()))}


def refuse_choice(hvg: Mapping[str, Any], include: np.ndarray, eligible: np.ndarray) -> None:
    """Refuse, before the counts are read, a choice of genes that `highly_variable_genes` cannot make."""
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


def refuse_few(n_selected: int, hvg: Mapping[str, Any]) -> None:
    """Refuse a selection of so few genes that there is no PCA of them."""
    if n_selected < MIN_GENES:
        keys = ("min_mean", "max_mean", "min_disp", "max_disp") if hvg["n_top_genes"] is None else ("n_top_genes",)
        raise UserError(
            f"{n_selected} genes are highly variable, too few for any analysis: loosen "
            + ", ".join(f"hvg: {key} ({hvg[key]})" for key in keys)
        )


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
    wanted = pd.unique(np.array(read_names(names, f"hvg: {key}") if isinstance(names, str) else names, dtype=object))
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
    """The kept cells' batches, masks of the kept genes forced in and of those that may be selected, and the kept genes;
    the choice is checked."""
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
    obs = getattr(snakemake.input, "obs", None)
    asked = {"columns": [batch_key], "named": False}
    table = kept_cells(snakemake.input.cells, **asked) if obs is None else read_table(obs, **asked)
    codes, names = pd.factorize(table[batch_key])
    if (codes < 0).any():
        raise UserError(
            f"{(codes < 0).sum()} kept cells have no {batch_key} (batch_key in the config). Fill the column in."
        )
    stage.log.info("%d cells, %d genes, %d batches", len(codes), kept.sum(), len(names))
    batches = batches_to_rank_in(Batches(codes, [str(name) for name in names]), hvg)
    eligible = ~exclude[kept]
    if eligible.sum() < MIN_GENES:
        went = where_cells_went(snakemake.input.cells, batch_key)
        raise UserError(f"{eligible.sum()} genes are left to select from, too few for any analysis. {went}")
    refuse_choice(within(hvg, eligible), include[kept], eligible)
    return batches, include[kept], ~exclude[kept], genes.index[kept]


def read(snakemake: Any, shard: str) -> Cells:
    """A shard of the cohort's counts and its cells' batches; the choice of genes is checked."""
    batches, *_ = read_choice(snakemake)
    counts = read_counts(snakemake, shard)
    return Cells(counts, batches.of_shard(counts.rows), snakemake.params.hvg, snakemake.params.target_sum)


def read_counts(snakemake: Any, shard: str | None = None) -> Cohort:
    """The cohort's counts, a shard of them, or those of the cells in `obs`."""
    files, device = snakemake.input, devices.of(snakemake)
    gene_key, obs = snakemake.params.gene_key, getattr(files, "obs", None)
    return Cohort(files.counts, files.cells, files.genes, gene_key, device, shard=shard, obs=obs)


PASSES = Passes({"first": next_pass, "second": next_pass}, read, joins={"totals": appended, **seurat_v3.JOINS})


def over_all(cells: Cells) -> Known:
    """The sums of the flavour's passes over all cells."""
    return PASSES.over_all(cells, len(FLAVORS[cells.hvg["flavor"]].passes(cells.target_sum)))


def give_notices(of_batches: pd.DataFrame, hvg: Mapping[str, Any], path: str) -> None:
    """Notices of the batches that rank nothing, and of those without a fit of their own; their table is at `path`."""
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
            "in %d of %d batches too few genes vary for the loess of hvg: span: %g; instead %s (%s)",
            *(len(others), len(of_batches), hvg["span"], "; ".join(said), path),
        )


def needs(job: Job) -> Need:
    """Sums of each batch and gene, and statistics made of them; of a shard also each cell's batch."""
    if job.part:
        return replace(job.of_shard(needs, 0.6 * KB), disk=40 * job.n_batches * job.n_vars + 8 * job.n_kept)
    sums = 64 * job.n_batches * job.n_vars
    chunk = 330 * MB * (job.shards == 1)
    memory = job.pass_memory(chunk, 40 * MB + job.places + sums + 0.6 * KB * job.n_kept + 1 * KB * job.n_vars)
    vram = job.claim(2000 * MB, sums)
    return Need(**memory, seconds=5 + 0.15e-6 * job.nnz, disk=200 * job.n_vars, vram=vram)


def tells(run: Finished) -> Iterator[Part]:
    """How many genes were selected, and the most variable ones."""
    job, options = run.one("hvg"), run.config["hvg"]
    table = read_table(job.hvg, ["highly_variable", "highly_variable_rank"])
    chosen = table[table["highly_variable"]]
    first = chosen["highly_variable_rank"].sort_values(kind="stable").index[:5]
    said = f"{count(len(chosen))} of {count(len(table), 'gene')} are highly variable; first rank {listed(first)}."
    for path in run.files("figures_hvg", "hvg"):
        yield Numbers(path, said)
    each = ", ranked in each batch" if options["per_batch"] else ""
    flavor = options["flavor"]
    said = f"{count(len(chosen))} highly variable genes were selected (`{flavor}`{each})."
    yield Methods(said, [flavor.removesuffix("_paper")])


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
    known = PASSES.gathered(files.shards) or over_all(Cells(read_counts(snakemake), batches, hvg, params.target_sum))
    try:
        table, of_batches = select(list(known.values()), batches, hvg, include, eligible, device, params.seed)
    except UserError as error:
        raise UserError(f"{error} {where_cells_went(files.cells, params.batch_key)}") from None
    give_notices(of_batches, hvg, snakemake.output.batches)
    refuse_few(int(table["highly_variable"].sum()), hvg)
    table.index = genes
    stage.log.info(
        "%s: %d genes selected, %d of them forced in, %d kept out",
        *(hvg["flavor"], table["highly_variable"].sum(), include.sum(), (~eligible).sum()),
    )
    write_table(table, snakemake.output.hvg, slot="var", uns={"hvg": {"flavor": hvg["flavor"]}})
    write_tsv(of_batches, snakemake.output.batches)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
