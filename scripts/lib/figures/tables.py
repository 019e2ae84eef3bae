"""Write small tables for readers: TSV, and HTML for the report."""

from __future__ import annotations

from html import escape
from pathlib import Path

import pandas as pd

from lib.store.files import replacing

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5em; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #444; }
th, td { padding: 0.25em 0.9em; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
tbody tr:nth-child(even) { background: #f4f6f8; }
"""


def write_tsv(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table without its index, floats with six significant digits."""
    with replacing(path) as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g")


def write_html(table: pd.DataFrame, path: str | Path, title: str) -> None:
    """Write a table as an HTML page: text on the left, numbers on the right, with thousands separators."""
    kinds = {name: "" if pd.api.types.is_numeric_dtype(table[name]) else ' class="text"' for name in table}
    head = "".join(f"<th{kind}>{escape(str(name).replace('_', ' '))}</th>" for name, kind in kinds.items())
    rows = []
    for row in table.itertuples(index=False):
        cells = zip(kinds.values(), row, strict=True)
        rows.append("<tr>" + "".join(f"<td{kind}>{_shown(value)}</td>" for kind, value in cells) + "</tr>")
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h3>{escape(title)}</h3><table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{chr(10).join(rows)}</tbody></table></body></html>\n"
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _shown(value: object) -> str:
    if isinstance(value, float):
        if pd.isna(value):
            return "–"
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if pd.api.types.is_integer(value) else escape(str(value))
