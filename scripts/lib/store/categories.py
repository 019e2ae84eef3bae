"""Categories of cells: their names, their order and their colours, the same in artifacts, figures and the atlas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pandas as pd

# Three families, so that no colour stands for a type, a cluster and a batch at once. Types: the eight colours of Okabe
# and Ito, then colours chosen one by one: each as far as possible, in CIELAB, from the earlier ones, white and light
# grey, as seen with normal vision and with red-green blindness (Machado et al. 2009). Clusters are likewise chosen of
# the light and vivid colours, batches of the muted ones, and far from the first colours of the other families.
PALETTES = {
    "types": [
        "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000",
        "#4E4300", "#7A0085", "#B10037", "#439000", "#BC85FF", "#C8D385", "#F4907A", "#2C5959",
        "#6F2C59", "#004EBC", "#00E9E9", "#2CE990", "#A68537", "#90594E", "#C80B7A", "#E9BCFF",
        "#006421", "#9BDE59", "#FF5985", "#009BA6", "#90DEB1", "#902C00", "#FF7ADE", "#9B9B7A",
        "#9059A6", "#0090FF", "#FFB164", "#E94E43", "#6F9B4E", "#9BA600", "#6F6F90", "#F4C8A6",
        "#F4A6B1", "#4E6F4E", "#43437A", "#A6A6C8", "#9090DE", "#B14364", "#4E432C", "#0BB14E",
    ],
    "clusters": [
        "#A54BFF", "#A5F069", "#96874B", "#FF7896", "#4BE1FF", "#96B44B", "#F01EC3", "#B4E1A5",
        "#2DD21E", "#E1A5D2", "#C36969", "#7887D2", "#3CC3A5", "#B469FF", "#C35A87", "#C35AA5",
        "#1EFF00", "#A57800", "#4BC3FF", "#D2A578", "#78F087", "#FF8700", "#E14B3C", "#B487FF",
        "#E187D2", "#3CE1B4", "#F0C34B", "#FF3C1E", "#0FA578", "#D2C369", "#C33CE1", "#1E87A5",
        "#4BB4B4", "#4B78E1", "#A5A55A", "#FFB4F0", "#D296F0", "#4BD287", "#FFD200", "#78D2C3",
        "#E1873C", "#FFD287", "#FF4B78", "#69E14B", "#4BF0FF", "#F0A52D", "#69872D", "#F00FD2",
    ],
    "batches": [
        "#00693C", "#785A0F", "#784B87", "#2D7878", "#FFA5B4", "#87A569", "#C387C3", "#E1B469",
        "#A54B4B", "#A5873C", "#69D2E1", "#B4C396", "#78B4FF", "#3CD2FF", "#A59687", "#964B69",
        "#2D78C3", "#F087B4", "#0078A5", "#699696", "#697896", "#69692D", "#A5784B", "#A587D2",
        "#5A785A", "#D2C387", "#3C5AA5", "#F0A5D2", "#B4A5E1", "#5A9669", "#A59B5A", "#698778",
        "#96B4C3", "#698796", "#5A5A78", "#B4A587", "#96D2C3", "#1E78B4", "#78782D", "#E1B4FF",
        "#87C3A5", "#3C96B4", "#1EB496", "#4BA5F0", "#5A965A", "#3CA5E1", "#F09678", "#00695A",
    ],
}  # fmt: skip
PALETTE = PALETTES["types"]
EXACT = 2**53  # float64 holds every integer below it


def name_of(value: Any) -> str:
    """A category as text. Whole floats become integers (7.0 is "7"), as a missing value turns integers into floats."""
    whole = isinstance(value, float | np.floating) and abs(value) < EXACT and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def natural_order(names: Iterable[Any]) -> list[str]:
    """The distinct names (`name_of`) in natural order: numbers within them compare as numbers, P2 before P10."""
    parts = {name: re.split(r"(\d+)", name) for name in map(name_of, names)}
    return sorted(parts, key=lambda name: ([(int(p), "") if p.isdecimal() else (-1, p) for p in parts[name]], name))


def category_colours(names: Sequence[str], family: str = "types") -> dict[str, str]:
    """A colour of a family of `PALETTES` for each category by its position in `names`; they repeat after the end."""
    palette = PALETTES[family]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def as_categories(values: pd.Series) -> pd.Series:
    """A column as a categorical of strings (`name_of`), of the categories that occur; missing values stay missing.

    Ordered categories keep their order, and so do others whose order is not alphabetical. All other columns get natural
    order.
    """
    return united([values])


def united(parts: Sequence[pd.Series]) -> pd.Series:
    """The parts of a column, concatenated, as one categorical of strings: see `as_categories`.

    The order agrees with every part that has its own order, and is natural where these leave it open; if they
    contradict each other, it is natural for all categories. The result is ordered if all parts with a value are
    ordered, and their orders determine it completely.
    """
    named = [_named(part) for part in parts]
    every = natural_order(chain.from_iterable(part.cat.categories for part in named))
    names, unique = merged([part.cat.categories for part in named if _has_order(part)], every)
    index = pd.Index(names, dtype=object)
    # The code of a missing value, -1, takes the last element. NumPy looks a Series' attributes up among its row names
    places = [np.append(index.get_indexer(part.cat.categories), -1)[part.cat.codes.to_numpy()] for part in named]
    ordered = unique and all(part.cat.ordered for part in named if part.notna().any())
    joined = pd.Categorical.from_codes(np.concatenate(places), index, ordered=ordered).remove_unused_categories()
    rows = parts[0].index.append([part.index for part in parts[1:]])
    return pd.Series(joined, rows, name=parts[0].name)


def merged(orders: Sequence[Iterable[str]], names: Sequence[str]) -> tuple[list[str], bool]:
    """`names` in an order that agrees with all `orders`, and whether it is the only such order.

    Names whose order is left open follow the order of `names`; if the orders contradict each other, all names do.
    """
    before: dict[str, set[str]] = {name: set() for name in names}
    for order in orders:
        for low, high in pairwise(order):
            before[high].add(low)
    sorter, place = TopologicalSorter(before), {name: i for i, name in enumerate(names)}
    try:
        sorter.prepare()
    except CycleError:
        return list(names), False
    found: list[str] = []
    ready: list[int] = []
    unique = True
    while sorter.is_active():
        for name in sorter.get_ready():
            heappush(ready, place[name])
        unique &= len(ready) == 1
        found.append(names[heappop(ready)])
        sorter.done(found[-1])
    return found, unique


def _named(values: pd.Series) -> pd.Series:
    """A categorical whose categories are strings."""
    values = values.astype("category")
    names = [name_of(category) for category in values.cat.categories]
    if len(set(names)) == len(names):
        return values.cat.rename_categories(pd.Index(names, dtype=object))
    # 7 and "7" are one category
    distinct = pd.Index(dict.fromkeys(names), dtype=object)
    codes = np.append(distinct.get_indexer(names), -1)[values.cat.codes]
    return pd.Series(pd.Categorical.from_codes(codes, distinct, ordered=values.cat.ordered), values.index)


def _has_order(values: pd.Series) -> bool:
    """Whether a categorical has its own order; text from files comes in alphabetical order."""
    names = values.cat.categories.tolist()
    return values.cat.ordered or names not in (sorted(names), natural_order(names))
