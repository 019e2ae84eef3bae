"""Imports that cost less: libraries without what they load for uses that are not ours."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from lib.run.clock import counted

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


@counted("import")
def import_library(name: str) -> ModuleType:
    """The library `name`, also where a stage's script has that name, wherever `scripts/` stands on `sys.path`."""
    scripts = Path(__file__).resolve().parents[2]
    known = sys.modules.get(name)
    if known is None or Path(known.__file__ or "").parent == scripts:
        elsewhere = [folder for folder in sys.path if Path(folder).resolve() != scripts]
        if (spec := PathFinder.find_spec(name, elsewhere)) is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        known = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(known)
    return known


class _Absent:
    """Of `sys.meta_path`: modules that the thread which made it does not find."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.thread = names, threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None, that the next finder may look for it."""
        if name in self.names and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None
