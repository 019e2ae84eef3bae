"""Write a page on which the cells can be explored: embeddings, all columns of the cells, the values of marker genes.

The page is one file that loads nothing. Positions have 16 bits, numbers 255 levels between their 0.5th and 99.5th
percentile, log-normalised expression 129 levels from 0 to the gene's maximum M, so that a value is within M / 256. The
cells are sorted by cluster, which makes columns deflate well; the page draws them in a random order.
"""

from lib.start import run

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lib.explorer import page
from lib.figures import embeddings
from lib.figures.words import metric_label
from lib.methods.scaling import log_normalize, target_of
from lib.run import stage
from lib.run.progress import timed
from lib.run.resources import KB, MB, PYTHON, Job, Need
from lib.store.categories import as_categories, category_colours, natural_order
from lib.store.cohort import with_results
from lib.store.compressed import n_threads, pool
from lib.store.counts import Counts
from lib.store.files import read_index, read_table, replacing
from lib.store.slots import parts_of
from lib.store.stream import Chunk
from matplotlib import colormaps
from matplotlib.colors import to_hex

LEVELS, GENE_LEVELS = 254, 128  # of numbers, and of genes
MAX_CATEGORIES = 2000
BASES = {"X_umap": "UMAP", "X_tsne": "t-SNE"}
STEPS = 9  # colours of a colour map
CHUNK_NNZ = 500_000  # counts that a thread normalises at a time


def chosen_cells(strata: pd.Series, max_cells: int, seed: int) -> np.ndarray:
    """The positions of at most `max_cells` cells, in their order: of each stratum the same share, but one at least.

    Parameters
    ----------
    strata
        Each cell's stratum; missing is one too.
    """
    if len(strata) <= max_cells:
        return np.arange(len(strata))
    codes = strata.astype("category").cat.codes.to_numpy() + 1
    sizes = np.bincount(codes)
    quotas = np.minimum(np.maximum(1, sizes * max_cells // len(codes)), sizes)
    order = np.random.default_rng(seed).permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    found = np.sort(order[rank < np.repeat(quotas, sizes)])
    return found if len(found) <= max_cells else np.sort(np.random.default_rng(seed).permutation(found)[:max_cells])


def positions(X: np.ndarray) -> list[np.ndarray]:
    """The 16-bit positions of an embedding in a square, for each dimension: all low bytes, then all high bytes."""
    low, side = (X.max(0) + X.min(0)) / 2 - np.ptp(X, axis=0).max() / 2, max(np.ptp(X, axis=0).max(), 1e-12)
    places = np.rint(np.clip((X - low) / side, 0, 1) * 65535).astype(np.uint16)
    return [np.concatenate([values & 255, values >> 8]).astype(np.uint8) for values in places.T]


def number_column(values: pd.Series) -> tuple[dict[str, Any], np.ndarray]:
    """What the page is told of a column of numbers, and the level of each cell; 255: missing."""
    numbers = values.to_numpy(float)
    known = np.isfinite(numbers)
    log = values.name in embeddings.LOG
    shown = np.maximum(numbers[known], 1) if log else numbers[known]
    low, high = np.percentile(shown, [0.5, 99.5])
    if low == high:
        low, high = shown.min(), shown.max()
    scale = np.log if log else np.asarray
    places = (scale(shown) - scale(low)) / max(scale(high) - scale(low), 1e-300)
    levels = np.full(len(numbers), 255, np.uint8)
    levels[known] = np.rint(np.clip(places, 0, 1) * LEVELS)
    cut = bool(shown.min() < low or shown.max() > high)
    about = {"low": float(low), "high": float(high), "log": log, "cut": cut, "levels": LEVELS}
    return {"kind": "number", "title": metric_label(str(values.name)), **about}, levels


def category_column(values: pd.Series, family: str) -> tuple[dict[str, Any], np.ndarray]:
    """What the page is told of a column of categories, and the code of each cell; the highest one: missing."""
    names = list(values.cat.categories)
    colours = category_colours(natural_order(names), family)
    codes = values.cat.codes.to_numpy()
    wide = len(names) > 254
    dtype = np.uint16 if wide else np.uint8
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    about = {"kind": "category", "names": names, "colours": [colours[name] for name in names], "counts": counts}
    return about | {"wide": wide}, np.where(codes < 0, np.iinfo(dtype).max, codes).astype(dtype)


def columns_of(
    table: pd.DataFrame, groupings: Sequence[str], families: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any] | str, np.ndarray]]:
    """Each column of the cells: what the page is told, and the cells' codes; for a column that is left out, why."""
    first = [name for name in groupings if name in table]
    for name in dict.fromkeys([*first, *table]):
        values, empty = table[name], np.empty(0)
        numbers = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
        if not values.notna().any():
            yield f"{name} (without values)", empty
        elif numbers and name not in groupings:
            if not np.isfinite(values.to_numpy(float)).any():
                yield f"{name} (without finite values)", empty
                continue
            about, codes = number_column(values)
            yield {"name": name, **about}, codes
        else:
            n = values.nunique()
            if n > MAX_CATEGORIES:
                yield f"{name} ({n:,} different texts)", empty
                continue
            about, codes = category_column(as_categories(values), families.get(name, "types"))
            yield {"name": name, **about}, codes


def by_threads(function: Callable[[Chunk], Any], counts: Counts) -> Iterator[Any]:
    """What a function makes of each chunk of a stream; threads call it, and few chunks wait."""
    chunks = counts.chunks(max_nnz=CHUNK_NNZ)
    while some := list(islice(chunks, 2 * n_threads())):
        yield from pool().map(function, some)


def gene_levels(
    panel: Counts, rows: np.ndarray, totals: np.ndarray, target_sum: float
) -> tuple[np.ndarray, np.ndarray]:
    """The highest log-normalised value of each gene, and each cell's level of it, genes x cells, uint8.

    Parameters
    ----------
    panel
        The counts of all cells, cells x genes.
    rows
        The positions of the page's cells, in the order of the page.
    totals, target_sum
        See `log_normalize`.
    """
    shown = np.zeros(panel.n_obs, bool)
    shown[rows] = True
    place, totals = np.argsort(rows), totals[shown]

    def normalized(chunk: Chunk) -> Any:
        return log_normalize(chunk.X, totals[chunk.rows], target_sum, panel.device)

    def highest_of(chunk: Chunk) -> np.ndarray:
        X, found = normalized(chunk), np.zeros(panel.n_vars, np.float32)
        np.maximum.at(found, X.indices, X.data)
        return found

    def set_levels(chunk: Chunk) -> None:
        X = normalized(chunk)
        cells = np.repeat(place[chunk.rows], np.diff(X.indptr))
        levels[X.indices, cells] = np.rint(X.data / highest[X.indices] * GENE_LEVELS)

    highest = np.max(list(by_threads(highest_of, panel.part(shown))), axis=0)
    levels = np.zeros((panel.n_vars, len(rows)), np.uint8)
    for _ in by_threads(set_levels, panel.part(shown)):
        pass
    return highest, levels


def read_artifacts(paths: Sequence[str | Path]) -> tuple[list[pd.DataFrame], dict[str, pd.DataFrame]]:
    """The tables that fill obs, and the embeddings of all cells in two dimensions by name."""
    obs, found = [], {}
    for path in (path for path in paths if str(path).endswith(".parquet")):
        for part in parts_of(path, partial(read_table, named=False)):
            if part.slot == "obs":
                obs.append(part.value)
            elif part.slot.startswith("obsm/") and part.value.shape[1] == 2 and np.isfinite(part.value).all(None):
                found[BASES.get(part.name, part.name.removeprefix("X_"))] = part.value
    return obs, found


def colour_steps(name: Any) -> list[str]:
    """Colours of a colour map, from the lowest to the highest."""
    return [to_hex(colour) for colour in colormaps.get_cmap(name)(np.linspace(0, 1, STEPS))]


def needs(job: Job) -> Need:
    """The tables of all cells; of the page's cells the levels of the genes, and their text."""
    explorer = job.config["explorer"]
    shown = min(job.n_kept, explorer["max_cells"])
    mem = PYTHON + 350 * MB + 1.2 * KB * job.n_kept + shown * explorer["n_genes"] * 1.7
    return Need(mem, 10 + 5e-5 * job.n_kept, 30 * MB)


def main(snakemake: Any) -> None:
    """Read the tables of the cells and the panel of genes, write `explorer.html`."""
    inputs, params = snakemake.input, snakemake.params
    tables, bases = read_artifacts(inputs.artifacts)
    table = with_results(read_table(inputs.obs, named=False), *tables)
    totals = table.pop("kept_counts").to_numpy()
    target_sum = target_of(totals, params.target_sum)
    groupings = [name for name in params.groupings if name in table]
    for name in groupings:
        table[name] = as_categories(table[name])
    cluster = next((name for name in groupings if params.colours.get(name) == "clusters"), groupings[0])
    clusters, samples = (table[name].astype("category").cat.codes.astype(int) for name in (cluster, "sample"))
    cells = chosen_cells(clusters * (samples.max() + 1) + samples, params.max_cells, params.seed)
    # Like cells side by side
    keys = [table[name].cat.codes.to_numpy()[cells] for name in (params.batch_key, *groupings[::-1], cluster)]
    cells = cells[np.lexsort(keys)]
    table = table.iloc[cells]

    about: dict[str, Any] = {"title": params.title, "n": len(cells), "cluster": cluster, "sample": params.batch_key}
    barcodes = read_index(inputs.obs).take(cells).to_pylist()
    held: dict[str, np.ndarray | bytes] = {"barcodes": "\n".join(barcodes).encode()}
    about["embeddings"] = []
    for name, embedding in bases.items():
        ids = [f"{name}-{axis}" for axis in (0, 1)]
        held |= zip(ids, positions(embedding.to_numpy(np.float64)[cells]), strict=True)
        about["embeddings"].append({"name": name, "axes": list(embedding.columns), "places": ids})
    about["columns"], left_out = [], []
    for told, codes in columns_of(table, [cluster, *groupings], params.colours):
        if isinstance(told, str):
            left_out.append(told)
            continue
        about["columns"].append(told | {"id": f"column-{len(about['columns'])}"})
        held[about["columns"][-1]["id"]] = codes
    with timed("columns"):
        texts = dict(zip(held, page.packed(held.values()), strict=True))

    about |= {"genes": [], "gene_levels": GENE_LEVELS}
    about |= {"viridis": colour_steps("viridis"), "expression": colour_steps(embeddings.EXPRESSION)}
    panel = Counts(inputs.panel)
    names, symbols, order = (panel.names("var", column) for column in ("_index", "gene_symbols", "order"))
    with timed("genes"):
        highest, levels = gene_levels(panel, cells, totals, target_sum)
        size, n_genes = sum(map(len, texts.values())) + len(page.rendered(about, {})), 0
        ranked = np.argsort(order)
        for gene, text in zip(ranked, page.packed(levels[gene] for gene in ranked), strict=True):
            size += len(text) + 200
            if size > page.LIMIT:
                break
            named = {"name": str(names[gene]), "symbol": str(symbols[gene])}
            about["genes"].append(named | {"id": f"gene-{n_genes}", "max": float(highest[gene])})
            texts[f"gene-{n_genes}"] = text
            n_genes += 1
    about["said"], about["notes"] = said(len(cells), len(totals), n_genes, len(names)), []
    if left_out:
        about["notes"].append(f"Columns that are not shown: {', '.join(left_out)}.")
    text = page.rendered(about, texts)
    with replacing(snakemake.output.explorer) as partial:
        partial.write_text(text, encoding="utf-8")
    stage.log.info(
        "%d cells, %d columns, %d genes, %.1f MB", len(cells), len(about["columns"]), n_genes, len(text) / MB
    )


def said(n_cells: int, of_cells: int, n_genes: int, of_genes: int) -> str:
    """What the page shows, and what it leaves out, in a sentence each."""
    cells = f"{n_cells:,} cells"
    if n_cells < of_cells:
        cells = f"{n_cells:,} of {of_cells:,} cells, chosen at random: of each cluster and sample the same share"
    genes = f"{n_genes} marker genes"
    if n_genes < of_genes:
        genes = f"{n_genes} of {of_genes} marker genes, as more would exceed 30 MB"
    return f"{cells}. {genes}."


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
