"""Imports that cost less: what is hidden from whom, and what a background import leaves behind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def python(code: str) -> str:
    """What a fresh process prints."""
    code = f"import sys; sys.path.append({str(SCRIPTS)!r})\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("name", "unused"), [("igraph", "matplotlib"), ("anndata.io", "cupy")])
def test_lean_import_leaves_out_what_is_not_used_and_hides_it_from_nobody_else(tmp_path, name, unused):
    (tmp_path / f"{unused}.py").write_text("")  # stands for the library, found first
    found = python(f"""
        sys.path.insert(0, {str(tmp_path)!r})
        from lib.imports import import_lean
        module = import_lean({name!r})
        print(module is sys.modules[{name!r}], {unused!r} in sys.modules)
        import {unused}
    """)
    assert found == "True False"


def test_import_ahead_is_there_when_it_is_asked_for_and_errors_surface_then(tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(0.3); value = 7")
    (tmp_path / "broken.py").write_text("raise RuntimeError('broken')")
    found = python(f"""
        sys.path.insert(0, {str(tmp_path)!r})
        import time
        from lib.imports import import_ahead, import_lean
        import_ahead("slow"), import_ahead("broken")
        time.sleep(0.1)
        print(import_lean("slow").value)
        try:
            import broken
        except RuntimeError as error:
            print(error)
    """)
    assert found.split() == ["7", "broken"]
