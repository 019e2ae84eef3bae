"""Imports that cost less: libraries without what they load for uses that are not ours."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .clock import counted

# What these libraries import where it is installed, and do without where it is not: anndata for CuPy's arrays, igraph
# to draw
UNUSED = {"anndata.io": ("cupy",), "igraph": ("matplotlib",)}


@counted("import")
def import_lean(name: str) -> ModuleType:
    """The module `name`, imported as if what it has in `UNUSED` were not installed, unless that is imported already."""
    if name in sys.modules:
        return import_module(name)
    absent = _Absent(UNUSED.get(name, ()))
    sys.meta_path.insert(0, absent)
    try:
        return import_module(name)
    finally:
        sys.meta_path.remove(absent)


class _Absent:
    """Of `sys.meta_path`: modules that the thread which made it does not find."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.thread = names, threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None, that the next finder may look for it."""
        if name in self.names and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None
