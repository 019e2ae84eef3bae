"""Find the genes of the cohort, and decide which are kept.

The universe of genes is the intersection (`join: inner`) or the union (`join: outer`; a missing gene counts as zero) of
the samples' genes. A gene is kept if it has at least `min_counts` counts and `min_cells` cells among the kept cells of
all samples (scanpy.pp.filter_genes). Samples without kept cells are ignored.
"""

from lib.start import run

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from lib.inputs.genelists import GeneNames, gene_families
from lib.methods.ledgers import keys_of_limits, shortened, where_cells_went
from lib.report.parts import Finished, Methods, Part
from lib.report.words import count
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.progress import progress
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import gene_keys, named_by_id
from lib.store.counts import GENES, Counts
from lib.store.csr import column_counts, column_sums
from lib.store.files import column_names, read_column, read_table, write_table
from lib.store.stream import Stream, halving

MIN_CELLS = 3  # kept cells of the cohort


def gene_universe(keys: Sequence[np.ndarray], names: Sequence[str], join: str, min_shared: float) -> pd.Index:
    """The genes that all samples have, or that any sample has, in the order of first appearance.

    Parameters
    ----------
    keys
        Each sample's gene keys, unique within it.
    names
        The samples' names.
    join
        inner or outer.
    min_shared
        For an inner join the fraction of the smallest sample's genes that must at least be shared.

    Raises
    ------
    UserError
        If fewer are shared, as when samples were counted against different references.
    """
    union = pd.Index(pd.unique(np.concatenate(keys)), dtype=object)
    if join == "outer":
        return union
    shared = union[np.sum([union.isin(k) for k in keys], axis=0) == len(keys)]
    smallest = min(len(k) for k in keys)
    if len(shared) < min_shared * smallest:
        with_most = keys[int(np.argmax([len(k) for k in keys]))]
        odd = int(np.argmin([np.isin(k, with_most).mean() for k in keys]))
        raise UserError(
            f"the samples share only {len(shared)} genes, the smallest has {smallest}: they look as if counted against "
            f"different references. Sample {names[odd]} (genes like {', '.join(map(str, keys[odd][:3]))}) fits the "
            f"others (like {', '.join(map(str, with_most[:3]))}) least. Recount it, or set `ingest: gene_key` to what "
            "the samples have in common, or `genes: join: outer`, or lower `genes: min_shared`."
        )
    return shared


def sharing() -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives an equal array of strings, and equal strings, that it was given before.

    Samples mostly have the same genes: those of a thousand need no more memory than those of one.
    """
    strings: dict[str, str] = {}
    arrays: dict[tuple[str, ...], np.ndarray] = {}

    def once(values: np.ndarray) -> np.ndarray:
        values = np.array([strings.setdefault(value, value) for value in values], dtype=object)
        return arrays.setdefault(tuple(values), values)

    return once


@halving
def gene_sums(counts: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Total count and number of cells of each gene of a stream; int64, exact."""
    xp, device = counts.device.xp, counts.device
    totals, n_cells = xp.zeros(counts.n_vars, np.int64), xp.zeros(counts.n_vars, np.int64)
    for chunk in progress(counts.chunks(), counts.n_obs, "gene sums"):
        totals += column_sums(chunk.X, chunk.X.data, device).astype(np.int64)
        n_cells += column_counts(chunk.X, device)
    return device.to_host(totals), device.to_host(n_cells)


def check_kept(kept: Mapping[str, np.ndarray], cells: Sequence[str], batch_key: str) -> None:
    """Refuse fewer than MIN_CELLS kept cells, which suffice for no analysis.

    Parameters
    ----------
    kept
        Sample -> mask of its kept cells.
    cells
        The samples' `cells.parquet`.
    batch_key
        Column of the batches.
    """
    n_kept = sum(int(mask.sum()) for mask in kept.values())
    if n_kept < MIN_CELLS:
        n_obs = sum(map(len, kept.values()))
        raise UserError(
            f"{n_kept or 'none'} of the cohort's {n_obs} cells {'is' if n_kept == 1 else 'are'} left, too few for any "
            f"analysis. {where_cells_went(cells, batch_key)} Loosen the limits that took them: "
            f"{keys_of_limits(cells)}, or those of the sheet."
        )


def tell_families(families: Sequence[str], of_samples: Mapping[str, Sequence[str]]) -> None:
    """Give notice of gene families without genes, in all samples or in some.

    Parameters
    ----------
    families
        The families of the config.
    of_samples
        Sample -> the columns of its `cells.parquet`.
    """
    for family in families:
        without = [sample for sample, columns in of_samples.items() if f"pct_counts_{family}" not in columns]
        if len(without) == len(of_samples):
            stage.notice(
                "gene family %s has no gene in this cohort, by symbol, by Ensembl id or by a column of var: it is left "
                "out, and with it its limit, its regression and its figures. If there should be some, name them in "
                "qc: gene_families: %s",
                *(family, family),
            )
        elif without:
            stage.notice(
                "gene family %s has no gene in %d of %d samples (%s): their cells pass its limits unjudged",
                *(family, len(without), len(of_samples), shortened(without)),
            )


def needs(job: Job) -> Need:
    """Two sums per gene, and the names of each sample's genes."""
    names = 1.2 * KB * job.n_vars + 32 * job.n_samples * job.n_vars
    memory = job.pass_memory(350 * MB, job.places + 0.5 * KB * job.n_obs + names)
    return Need(**memory, seconds=5 + 0.1e-6 * job.nnz, disk=100 * job.n_vars, vram=job.claim(600 * MB))


def tells(run: Finished) -> Iterator[Part]:
    """The genes that were kept."""
    kept, options = read_table(run.one("genes").genes, ["kept"])["kept"], run.config["genes"]
    of = "every sample" if options["join"] == "inner" else "any sample"
    limits = f"at least {options['min_counts']:g} counts"
    limits += f" in at least {count(options['min_cells'], 'cell')}" if options["min_cells"] else ""
    yield Methods(
        f"Of {count(len(kept), 'gene')} of {of}, {count(kept.sum())} with {limits} over the kept cells were used."
    )


def main(snakemake: Any) -> None:
    """Sum every sample's genes over its kept cells; write `genes.parquet`."""
    params, device = snakemake.params, devices.of(snakemake)
    tables = dict(zip(params.samples, snakemake.input.cells, strict=True))
    kept = {sample: read_column(path, "kept") for sample, path in tables.items()}
    check_kept(kept, snakemake.input.cells, params.batch_key)
    tell_families(list(params.gene_families), {sample: column_names(path) for sample, path in tables.items()})
    samples = [sample for sample, mask in kept.items() if mask.any()]
    paths = dict(zip(params.samples, snakemake.input.counts, strict=True))
    stores = {sample: Counts(paths[sample], device) for sample in samples}
    first: dict[str, str] = {}  # of the samples with equal genes
    for sample, store in stores.items():
        first.setdefault(store.mark, sample)
    once = sharing()
    named = [
        {name: once(stores[sample].names("var", name)) for name in ("_index", *GENES)} for sample in first.values()
    ]
    shared = set().union(*(named_by_id(*of_store.values()) for of_store in named))
    keys = [once(gene_keys(of_store.get, params.gene_key, shared)) for of_store in named]
    universe = gene_universe(keys, [*first.values()], params.genes["join"], params.genes.get("min_shared", 0))
    union = len(pd.unique(np.concatenate(keys)))
    stage.log.info("%d genes (%s join) of %d in all samples", len(universe), params.genes["join"], union)

    genes = pd.DataFrame(index=universe, columns=list(GENES), dtype=object)
    columns = {
        mark: universe.get_indexer(of_store).astype(np.int32) for mark, of_store in zip(first, keys, strict=True)
    }
    other_ids: set[str] = set()
    for of_store, of_names in zip(columns.values(), named, strict=True):
        at, mine = of_store[of_store >= 0], of_store >= 0
        symbols, ids = (of_names[name][mine] for name in GENES)
        for name, values in zip(GENES, (symbols, ids), strict=True):
            new = genes[name].isna().to_numpy()[at]
            genes.iloc[at[new], genes.columns.get_loc(name)] = values[new]
        known = (ids != symbols) & (genes["gene_ids"] != genes["gene_symbols"]).to_numpy()[at]
        other_ids.update(universe[at[known & (genes["gene_ids"].to_numpy()[at] != ids)]])

    totals, n_cells, n_samples = (np.zeros(len(universe), np.int64) for _ in range(3))
    flags: dict[str, np.ndarray] = {}
    for sample, store in stores.items():
        of_store = columns[store.mark]
        at, mine = of_store[of_store >= 0], of_store >= 0
        for name, mask in store.flags().items():
            flags.setdefault(name, np.zeros(len(universe), bool))[at] |= mask[mine]
        sums = gene_sums(store.part(kept[sample], of_store, len(universe)))
        totals, n_cells = totals + sums[0], n_cells + sums[1]
        n_samples[at] += 1

    if other_ids and params.gene_key == "gene_symbols":
        stage.notice(
            "%d genes are joined by their symbols although their ids differ between samples (%s): these were counted "
            "against different annotations. To join by the ids: ingest: gene_key: gene_ids",
            *(len(other_ids), shortened(sorted(other_ids))),
        )
    all_of = GeneNames(genes["gene_symbols"].to_numpy(), genes["gene_ids"].to_numpy(), flags)
    families = gene_families(params.gene_families, all_of)
    genes = genes.assign(total_counts=totals, n_cells_by_counts=n_cells, n_samples=n_samples, **families)
    genes["kept"] = (totals >= params.genes["min_counts"]) & (n_cells >= params.genes["min_cells"])
    stage.log.info("%d of %d genes kept", genes["kept"].sum(), len(genes))
    if not genes["kept"].any():
        went = where_cells_went(snakemake.input.cells, params.batch_key)
        raise UserError(f"no gene is left: lower `genes: min_counts` and `genes: min_cells` in the config. {went}")
    write_table(genes, snakemake.output.genes)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
