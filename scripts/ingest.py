"""One sample's counts, validated and written once as the store that every later stage streams.

Any format that `lib.readers` knows comes in; what goes out is `counts.h5ad`: raw integer counts, CSR, sorted rows,
unique names of cells and genes, and in obs the file's columns and the sample sheet's. The source is opened read-only.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lib import stage
from lib.clock import counted
from lib.compressed import pool
from lib.config import required_columns
from lib.counts import Chunk, CountsWriter
from lib.errors import UserError
from lib.files import replacing
from lib.readers import NotSortedError, Reader, open_counts


def cell_table(
    obs: pd.DataFrame, sample: str, sheet: Mapping[str, Any], batch_key: str, required: Mapping[str, str]
) -> pd.DataFrame:
    """The store's obs: `sample`, the file's columns, the sheet's columns, under unique names of cells.

    A file's column that the sheet has as well becomes `{column}_file`. Strings become categories. A cell is named
    `{barcode}-{sample}`, or `{barcode}-{batch}-{sample}` where barcodes repeat across the file's batches.

    Parameters
    ----------
    obs
        The file's table of cells; the index holds the barcodes.
    sample
        The sample's name.
    sheet
        The sheet's further columns for this sample, a value each.
    batch_key
        Column that names the batches.
    required
        Columns that later stages need -> the config key that names each.

    Raises
    ------
    UserError
        If there are no cells, if a required column is absent, if the batch of a cell is missing, if cells of one batch
        share a barcode.
    """
    if not len(obs):
        raise UserError("there are no cells. Remove the sample from the sheet, or correct its path.")
    columns = {"sample": pd.Series([sample] * len(obs))}
    for name, values in obs.items():
        kept = str(name)
        while kept in columns or kept in sheet:
            kept += "_file"
        if kept != name:
            stage.log.info("the file's column %s is kept as %s", name, kept)
        columns[kept] = pd.Series(values.array)
    columns |= {name: pd.Series([value] * len(obs)) for name, value in sheet.items()}
    stored = {name: storable(values) for name, values in columns.items() if name != "_index"}
    for name in columns.keys() - {name for name, values in stored.items() if values is not None}:
        stage.log.info("left out: column %s (%s), which h5ad files cannot hold", name, columns[name].dtype)
    table = pd.DataFrame({name: values for name, values in stored.items() if values is not None})
    for name, key in required.items():
        if name not in table:
            raise UserError(
                f"{key}: neither the file nor the sheet has a column {name}; there are {', '.join(table)}. "
                f"Correct {key} in the config."
            )
    if missing := int(table[batch_key].isna().sum()):
        raise UserError(
            f"batch_key: {missing} of {len(table)} cells have no {batch_key}. Fill it, or remove these cells."
        )
    table.index = cell_names(obs.index.to_numpy(str), sample, table[batch_key].to_numpy(str))
    return table


def storable(values: pd.Series) -> pd.Series | None:
    """A column as the store holds it: plain numbers and booleans, strings as categories; None for other types.

    Missing integers and booleans turn a column into float64 with NaN.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        categories = values.cat.categories
        if is_text(categories):
            return values.cat.rename_categories(pd.Index(categories.map(str), dtype=object))
        return values if pd.api.types.is_numeric_dtype(categories) else None
    if is_text(values):
        strings = values.astype(object).map(str, na_action="ignore")
        return pd.Series(pd.Categorical(strings, pd.Index(sorted(strings.dropna().unique()), dtype=object)))
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_complex_dtype(values):
        return None
    if pd.api.types.is_extension_array_dtype(values):
        return values.astype(np.float64 if values.hasnans else values.dtype.numpy_dtype)
    return values


def is_text(values: pd.Series | pd.Index) -> bool:
    """Whether values are strings, or Python objects that are written as such."""
    return pd.api.types.is_object_dtype(values) or pd.api.types.is_string_dtype(values)


def cell_names(barcodes: np.ndarray, sample: str, batches: np.ndarray) -> pd.Index:
    """Unique names of cells; see `cell_table`."""
    index = pd.Index(barcodes, dtype=object)
    if not index.has_duplicates:
        return index + f"-{sample}"
    pairs = pd.MultiIndex.from_arrays([batches, barcodes])
    if pairs.has_duplicates:
        batch, barcode = pairs[pairs.duplicated()][0]
        raise UserError(
            f"{int(pairs.duplicated().sum())} cells have the barcode of an earlier cell of their batch, the first of "
            f"them {barcode} (batch {batch}). If the file holds several batches, set `batch_key` in the config to the "
            "column that tells them apart; else remove the duplicates."
        )
    stage.log.info("barcodes repeat across batches: cells are named {barcode}-{batch}-%s", sample)
    return index + "-" + pd.Index(batches, dtype=object) + f"-{sample}"


def gene_table(symbols: np.ndarray, ids: np.ndarray) -> pd.DataFrame:
    """The store's var: unique symbols as index, `gene_symbols` as in the file, unique `gene_ids`."""
    index = pd.Index(make_unique(symbols, "symbols"), dtype=object)
    return pd.DataFrame({"gene_symbols": symbols, "gene_ids": make_unique(ids, "ids")}, index=index, dtype=object)


def make_unique(names: np.ndarray, what: str) -> np.ndarray:
    """Give the second and further genes of a name the suffix -1, -2 ..., the next one that is free.

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
        stage.log.info(
            "%d genes with repeated %s made unique, the first of them %s", len(repeated), what, unique[repeated[0]]
        )
    return unique


def write_counts(reader: Reader, obs: pd.DataFrame, var: pd.DataFrame, path: Path) -> tuple[int, int]:
    """Write the store in one pass; another one where a count needs uint32, or cells are not in order.

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
                for chunk in stage.progress(chunks(matrices), reader.n_obs, "ingest"):
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
            stage.log.info("%s: written anew, as uint32", error)
            dtype = np.uint32
        except NotSortedError:
            stage.log.info("%s is not sorted by cell: read anew, through a scratch file", reader.path)
        finally:
            writer.abort()


def chunks(matrices: Iterator[Any]) -> Iterator[Chunk]:
    """Row ranges as chunks of a stream."""
    done = 0
    for X in matrices:
        yield Chunk(done, X)
        done += X.shape[0]


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Pass items on while the next one is made by a thread."""
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
    """Begin the messages for users that come out of a block with what they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def main(snakemake: Any) -> None:
    """Read a sample's file, write `counts.h5ad`."""
    params, output, started = snakemake.params, Path(snakemake.output.counts), time.time()
    required = required_columns(snakemake.config)  # no param: another label re-reads no file
    output.parent.mkdir(parents=True, exist_ok=True)
    stage.log.info("sample %s: %s, counts in %s", params.sample, snakemake.input.file, params.counts)
    with (
        blaming(f"sample {params.sample}"),
        open_counts(snakemake.input.file, params.counts, params.genome, output.parent) as reader,
    ):
        with blaming(reader.path):
            obs = cell_table(reader.obs, params.sample, params.sheet, params.batch_key, required)
        var = gene_table(reader.gene_symbols, reader.gene_ids)
        with replacing(output) as partial:
            nnz, total = write_counts(reader, obs, var, partial)
    seconds = time.time() - started
    stage.log.info("%d cells, %d genes, %d non-zeros, %d counts in %.1f s", len(obs), len(var), nnz, total, seconds)


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
