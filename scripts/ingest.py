"""Validate one sample's counts, and write them once as the store that all later stages stream.

The input has any format of `lib.inputs.formats`, and is opened read-only. The output is `counts.h5ad`: raw integer
counts, CSR, sorted rows, unique names of cells and genes, and in obs the columns of the file and of the sample sheet.
"""

from lib.start import run

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lib.inputs.formats import open_counts
from lib.inputs.formats.base import NO_CELLS, NO_GENES, Reader
from lib.inputs.formats.blocks import NotSortedError
from lib.inputs.sheet import stored_names
from lib.report import facts
from lib.report.parts import Finished, Methods, Part
from lib.report.words import count
from lib.run import stage
from lib.run.clock import counted
from lib.run.errors import UserError
from lib.run.progress import progress
from lib.run.resources import BLOCKS, KB, MB, Job, Need
from lib.store.compressed import pool
from lib.store.counts import CountsWriter
from lib.store.files import replacing
from lib.store.h5ad import constant, storable
from lib.store.stream import Chunk


def cell_table(
    obs: pd.DataFrame,
    sample: str,
    suffix: str,
    sheet: Mapping[str, Any],
    batch_key: str,
    keep: Collection[str],
) -> pd.DataFrame:
    """The store's obs: `sample`, the file's columns, the batch from the sheet, under unique names of cells.

    A column of the file becomes `{column}_file` if the sheet has it too, or this workflow writes it. Strings become
    categories. A cell is named `{barcode}-{suffix}`, or `{barcode}-{batch}-{suffix}` if barcodes repeat across the
    file's batches.

    Parameters
    ----------
    obs
        The file's table of cells; the index holds the barcodes.
    sample
        The sample's name.
    suffix
        The suffix of its cell names.
    sheet
        The sample's value in the sheet's column of batches, if the sheet has it; `cells` adds the other columns.
    batch_key
        Column that names the batches.
    keep
        Columns that the config takes from the file although this workflow may write columns of the same names.

    Raises
    ------
    UserError
        If there are no cells or no batches, if a cell's batch is missing, or if cells of one batch share a barcode.
    """
    if not len(obs):
        raise UserError(NO_CELLS)
    columns = {"sample": pd.Series([sample] * len(obs))}
    names = stored_names(obs.columns, sheet, keep)
    columns |= {names[str(name)]: pd.Series(values.array) for name, values in obs.items()}
    if renamed := {name: kept for name, kept in names.items() if kept != name}:
        pairs = ", ".join(f"{name} as {kept}" for name, kept in renamed.items())
        say = stage.notice if renamed.keys() - {"sample"} else stage.log.info
        say("sample %s: columns of the file with names of the run's or the sheet's columns are kept: %s", sample, pairs)
    columns |= {name: constant(value, len(obs)) for name, value in sheet.items()}
    stored = {name: storable(values) for name, values in columns.items() if name != "_index"}
    if odd := [name for name in columns if stored.get(name) is None]:
        kinds = ", ".join(f"{name} ({columns[name].dtype})" for name in odd)
        stage.notice("sample %s: columns of the file that h5ad files cannot hold are left out: %s", sample, kinds)
    table = pd.DataFrame({name: values for name, values in stored.items() if values is not None})
    if batch_key not in table:
        raise UserError(
            f"batch_key: neither the file nor the sheet has a column {batch_key}; there are {', '.join(table)}. "
            "Correct batch_key in the config."
        )
    if missing := int(table[batch_key].isna().sum()):
        raise UserError(
            f"batch_key: {missing} of {len(table)} cells have no {batch_key}. Fill it, or remove these cells."
        )
    table.index = cell_names(obs.index.to_numpy(str), suffix, table[batch_key].to_numpy(str))
    return table


def cell_names(barcodes: np.ndarray, suffix: str, batches: np.ndarray) -> pd.Index:
    """Unique names of cells; see `cell_table`."""
    index = pd.Index(barcodes, dtype=object)
    if not index.has_duplicates:
        return index + f"-{suffix}"
    pairs = pd.MultiIndex.from_arrays([batches, barcodes])
    if pairs.has_duplicates:
        batch, barcode = pairs[pairs.duplicated()][0]
        raise UserError(
            f"{int(pairs.duplicated().sum())} cells have the barcode of an earlier cell of their batch, the first of "
            f"them {barcode} (batch {batch}). If the file holds several batches, set `batch_key` in the config to the "
            "column that tells them apart; else remove the duplicates."
        )
    stage.log.info("barcodes repeat across batches: cells are named {barcode}-{batch}-%s", suffix)
    named = index + "-" + pd.Index(batches, dtype=object) + f"-{suffix}"
    if named.has_duplicates:  # barcode A-1 of batch 2, and barcode A of batch 1-2
        named = index + "::" + pd.Index(batches, dtype=object) + f"-{suffix}"
    return named


def gene_table(symbols: np.ndarray, ids: np.ndarray, flags: pd.DataFrame | None = None) -> pd.DataFrame:
    """The store's var: unique symbols as index, `gene_symbols` as in the file, unique `gene_ids`, the file's flags.

    Genes that share a symbol are named `{symbol}-{id}`, so that a gene's name does not depend on the order. Genes whose
    symbols AnnData made unique (`X`, `X-1`) are treated as sharing them. If their ids are the same too, the second is
    `X-1`, the third `X-2`.
    """
    shared = shared_symbols(symbols, ids)
    names = np.where(shared == "", symbols, shared + "-" + ids)
    if n := int((shared != "").sum()):
        first = int(np.argmax(shared != ""))
        stage.log.info("%d genes that share a symbol are named with their ids, the first of them %s", n, names[first])
    index = pd.Index(make_unique(names, "symbols"), dtype=object)
    table = pd.DataFrame({"gene_symbols": symbols, "gene_ids": make_unique(ids, "ids")}, index=index, dtype=object)
    for name, values in ({} if flags is None else flags).items():
        if name not in (*table, "_index"):
            table[name] = values.to_numpy(bool)
    return table


def shared_symbols(symbols: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Per gene the symbol that it shares with genes of other ids, "" if there are none."""
    symbols, ids = pd.Series(symbols, dtype=object), pd.Series(ids, dtype=object)
    # If there is an X too, X-1 is AnnData's name for a second X
    base = symbols.str.extract(r"^(.+)-\d{1,2}$", expand=False)
    origin = base.where(base.isin(symbols), symbols).astype(object)
    groups = ids.groupby(origin, sort=False)
    told = (groups.transform("size") > 1) & (groups.transform("nunique") == groups.transform("size"))
    own = ids.eq(symbols).groupby(origin, sort=False).transform("any")  # ids that repeat the symbols are no evidence
    return origin.where(told & ~own, "").to_numpy(object)


def make_unique(names: np.ndarray, what: str) -> np.ndarray:
    """Give the second and later genes of a name the next free suffix -1, -2 ...

    Source: anndata.utils.make_index_unique.
    """
    taken, used, unique = set(names), Counter(), names.astype(object)
    repeated = np.flatnonzero(pd.Index(names).duplicated())
    for i in repeated:
        while unique[i] in taken or unique[i] == names[i]:
            used[names[i]] += 1
            unique[i] = f"{names[i]}-{used[names[i]]}"
        taken.add(unique[i])
    if len(repeated):
        say = stage.notice if what == "symbols" else stage.log.info
        say(
            "%d genes with repeated %s that no ids distinguish are numbered in their order, the first of them %s: in "
            "samples with another order the same names are other genes",
            len(repeated),
            what,
            unique[repeated[0]],
        )
    return unique


def write_counts(reader: Reader, obs: pd.DataFrame, var: pd.DataFrame, path: Path) -> tuple[int, int]:
    """Write the store in one pass; a second pass is needed if a count needs uint32 or cells are not sorted.

    Returns
    -------
    Non-zeros and the sum of all counts.
    """
    dtype = np.uint16
    while True:
        writer = CountsWriter(path, reader.n_vars, dtype)
        sums: list[Future] = []
        try:
            with closing(ahead(reader.chunks())) as matrices:
                for chunk in progress(chunks(matrices), reader.n_obs, "ingest"):
                    writer.append(chunk.X)
                    sums.append(pool().submit(np.sum, chunk.X.data, dtype=np.int64))
            total = int(sum(found.result() for found in sums))
            if not total:
                raise UserError(
                    f"{reader.path}: all counts in {reader.where} are zero. Remove the sample from the sheet."
                )
            writer.close(obs, var)
            return writer.nnz, total
        except OverflowError as error:
            if dtype == np.uint32:
                raise
            stage.log.info("%s: written anew, as uint32", error)
            dtype = np.uint32
        except NotSortedError:
            stage.log.info("%s is not sorted by cell: it is read again, through a scratch file", reader.path)
        finally:
            writer.abort()


def chunks(matrices: Iterator[Any]) -> Iterator[Chunk]:
    """Turn row ranges into the chunks of a stream."""
    done = 0
    for X in matrices:
        yield Chunk(done, X)
        done += X.shape[0]


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yield items while a thread prepares the next one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := _waited(coming)) is not None:
            coming = thread.submit(next, items, None)
            yield item


@counted("read")
def _waited(coming: Future) -> Any:
    return coming.result()


@contextmanager
def blaming(what: object) -> Iterator[None]:
    """Prefix the messages of a block's UserErrors with `what`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def needs(job: Job) -> Need:
    """Blocks of the file and of the store, tables of cells; files by genes: scratch of 12 bytes per non-zero."""
    blocks = (400 if job.turned else 300) + 75 * (min(BLOCKS, job.threads) - 1)
    mem = job.process + blocks * MB * job.chunk + 0.8 * KB * job.n_obs + 0.7 * KB * job.n_vars
    seconds = 5 + 0.15e-6 * job.nnz + 0.35e-6 * job.turned
    return Need(mem, seconds, disk=job.store + 12 * job.turned, reads=8 * job.nnz)


def tells(run: Finished) -> Iterator[Part]:
    """Where the counts come from."""
    samples = len(run.of("ingest"))
    n_cells = facts.batches(run)["cells"].sum()
    said = f"Raw counts of {count(n_cells, 'cell')} in {count(samples, 'sample')} were read"
    yield Methods(
        f"{said} and processed with Somersault, a Snakemake workflow (Python {run.versions.get('Python', '')}, "
        f"{run.package('anndata')}, {run.package('numpy')} and {run.package('scipy')}).",
        ["snakemake", "anndata"],
    )


def main(snakemake: Any) -> None:
    """Read a sample's file, write `counts.h5ad`."""
    params, output, started = snakemake.params, Path(snakemake.output.counts), time.time()
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        blaming(f"sample {params.sample}"),
        open_counts(snakemake.input.file, scratch=output.parent, **params.options) as reader,
    ):
        stage.log.info("sample %s: %s, counts in %s", params.sample, reader.path, reader.where)
        with blaming(reader.path):
            obs = cell_table(reader.obs, params.sample, params.suffix, params.sheet, params.batch_key, params.keep)
            if not reader.n_vars:
                raise UserError(NO_GENES)
        var = gene_table(reader.gene_symbols, reader.gene_ids, reader.flags)
        with replacing(output) as partial:
            nnz, total = write_counts(reader, obs, var, partial)
    seconds = time.time() - started
    stage.log.info("%d cells, %d genes, %d non-zeros, %d counts in %.1f s", len(obs), len(var), nnz, total, seconds)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
