"""Cheaper imports: libraries without the optional dependencies that we do not use."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from lib.run.clock import counted

# Optional dependencies that these libraries import if installed: CuPy (anndata, for its arrays), matplotlib (igraph, to
# draw)
UNUSED = {"anndata.io": ("cupy",), "igraph": ("matplotlib",)}


@counted("import")
def import_lean(name: str) -> ModuleType:
    """The module `name`, imported as if its `UNUSED` modules were not installed, unless it is imported already."""
    if name in sys.modules:
        return import_module(name)
    with hidden(UNUSED.get(name, ())):
        return import_module(name)


@contextmanager
def hidden(names: Sequence[str]) -> Iterator[None]:
    """In the block, and in this thread, modules of these names cannot be imported."""
    absent = _Absent(names)
    sys.meta_path.insert(0, absent)
    try:
        yield
    finally:
        sys.meta_path.remove(absent)


@counted("import")
def import_library(name: str) -> ModuleType:
    """The library `name`, even if a stage's script has the same name and `scripts/` comes first in `sys.path`."""
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
    """A finder for `sys.meta_path` that hides some modules from the thread that created it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.thread = names, threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return None, so that the next finder is asked."""
        if name in self.names and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None
