"""Numbers and lists in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MOST = 5


def count(n: float, noun: str = "", plural: str = "") -> str:
    """A whole number with separators, and its noun: "1 cell", "12,000 cells"."""
    return f"{n:,.0f} {noun if round(n) == 1 else plural or f'{noun}s'}".strip() if noun else f"{n:,.0f}"


def percent(share: float) -> str:
    """A share of one as per cent, with two digits below 10 %."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.2g} %" if value >= 0.1 else "< 0.1 %"


def listed(names: Iterable[object], most: int = MOST) -> str:
    """Names as a list in a sentence: "A, B and C", "A, B, C and 12 more"."""
    names = [str(name) for name in names]
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def spread(values: Sequence[float], unit: str = "") -> str:
    """The smallest and the largest value: "from 2.1 to 7.5 %"."""
    low, high = (f"{end:,.0f}" if end >= 100 else f"{end:.3g}" for end in (min(values), max(values)))
    return f"{low}{unit}" if low == high else f"from {low} to {high}{unit}"
