"""Assemble the page of the explorer: its columns, deflated and in base64, and what its script is told of them."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import deflate
import numpy as np

from lib.store.compressed import pool

HERE = Path(__file__).parent
LIMIT = 29_500_000  # bytes of a page
LEVEL = 6  # of deflate; 9 takes thirty times as long for 3 % less


def packed(arrays: Iterable[np.ndarray | bytes]) -> Iterator[str]:
    """Each array's bytes as the page holds them, deflated by threads; those that are not asked for need not be."""

    def one(array: np.ndarray | bytes) -> str:
        raw = array if isinstance(array, bytes) else np.ascontiguousarray(array).tobytes()
        return b64encode(deflate.zlib_compress(raw, LEVEL)).decode()

    return pool().map(one, arrays)


def rendered(about: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """The page as text.

    Parameters
    ----------
    about
        What the script needs to know. It is written as JSON in which no `<` occurs, so that no name of a user ends
        the element; the script sets names as text alone.
    columns
        The id of each column, and what `packed` made of it.
    """
    told = json.dumps(about, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    held = "\n".join(f'<script type="text/plain" id="{name}">{text}</script>' for name, text in columns.items())
    library = (HERE / "../vendor/regl-scatterplot.min.js").read_text(encoding="utf-8")
    page = (HERE / "page.html").read_text(encoding="utf-8")
    parts = {"style": (HERE / "page.css").read_text(), "script": (HERE / "page.js").read_text(), "library": library}
    before, after = page.split("{{columns}}")
    for name, text in parts.items():
        before, after = before.replace(f"{{{{{name}}}}}", text), after.replace(f"{{{{{name}}}}}", text)
    return f"{before.replace('{{about}}', told)}{held}{after}"
