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

# The eight colours of Okabe & Ito, then colours chosen one by one: each as far as possible, in CIELAB, from the earlier
# ones, white and light grey, as seen with normal vision and with red-green blindness (Machado et al. 2009)
PALETTE = [
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000",
    "#4E4300", "#7A0085", "#B10037", "#439000", "#BC85FF", "#C8D385", "#F4907A", "#2C5959",
    "#6F2C59", "#004EBC", "#00E9E9", "#2CE990", "#A68537", "#90594E", "#C80B7A", "#E9BCFF",
    "#006421", "#9BDE59", "#FF5985", "#009BA6", "#90DEB1", "#902C00", "#FF7ADE", "#9B9B7A",
    "#9059A6", "#0090FF", "#FFB164", "#E94E43", "#6F9B4E", "#9BA600", "#6F6F90", "#F4C8A6",
    "#F4A6B1", "#4E6F4E", "#43437A", "#A6A6C8", "#9090DE", "#B14364", "#4E432C", "#0BB14E",
]  # fmt: skip
EXACT = 2**53  # float64 holds every integer below it


def name_of(value: Any) -> str:
    """A category as text. Whole floats become integers (7.0 is "7"), as a missing value turns integers into floats."""
    whole = isinstance(value, float | np.floating) and abs(value) < EXACT and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def natural_order(names: Iterable[Any]) -> list[str]:
    """The distinct names (`name_of`) in natural order: numbers within them compare as numbers, P2 before P10."""
    parts = {name: re.split(r"(\d+)", name) for name in map(name_of, names)}
    return sorted(parts, key=lambda name: ([(int(p), "") if p.isdecimal() else (-1, p) for p in parts[name]], name))


def category_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each category by its position in `names`; colours repeat after the palette's end."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


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
