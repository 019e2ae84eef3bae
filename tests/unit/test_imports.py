"""Cheaper imports: which modules are hidden, and from which threads."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def python(code: str) -> str:
    """The output of a new process."""
    code = f"import sys; sys.path.append({str(SCRIPTS)!r})\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("name", "unused"), [("igraph", "matplotlib"), ("anndata.io", "cupy")])
def test_lean_import_leaves_out_what_is_not_used_and_hides_it_from_nobody_else(tmp_path, name, unused):
    (tmp_path / f"{unused}.py").write_text("")  # stands for the library, found first
    found = python(f"""
        sys.path.insert(0, {str(tmp_path)!r})
        from lib.run.imports import import_lean
        module = import_lean({name!r})
        print(module is sys.modules[{name!r}], {unused!r} in sys.modules)
        import {unused}
    """)
    assert found == "True False"


def test_a_library_is_found_beside_a_stage_of_its_name():
    found = python(f"""
        sys.path.insert(0, {str(SCRIPTS)!r})
        import umap
        from lib.run.imports import import_library
        library = import_library("umap")
        from umap.umap_ import simplicial_set_embedding
        ours = umap.__file__ == {str(SCRIPTS / "umap.py")!r}
        print(ours, library.__file__ == umap.__file__, sys.modules["umap"] is library)
    """)
    assert found == "True False True"
