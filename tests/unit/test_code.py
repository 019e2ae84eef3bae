import shutil
from pathlib import Path

from lib.run import code, handover, models


def test_a_stage_depends_on_what_it_imports():
    names = {path.name for path in code.closure(code.SCRIPTS / "hvg.py")}
    assert {"hvg.py", "shared.py", "seurat_v3.py", "dispersions.py", "counts.py", "stage.py"} <= names
    assert {"pearson_residuals.py", "poisson_gene_selection.py"} <= names
    assert "plots.py" not in names


def test_a_stage_depends_on_packages_and_on_what_functions_import():
    found = {path.relative_to(code.SCRIPTS).as_posix() for path in code.closure(code.SCRIPTS / "ingest.py")}
    package = code.SCRIPTS / "lib" / "inputs" / "formats"
    assert {path.relative_to(code.SCRIPTS).as_posix() for path in package.glob("*.py")} <= found


def versions(folder, stage: str, lib: str) -> str:
    for cached in (code.version_of_code, code.facts_of):
        cached.cache_clear()
    (folder / "lib").mkdir(exist_ok=True)
    (folder / "lib" / "sums.py").write_text(lib)
    (folder / "toy.py").write_text(stage)
    return code.version_of_code(folder / "toy.py")


def test_version_changes_with_code_and_not_with_comments(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "SCRIPTS", tmp_path)
    stage, lib = '"""A toy."""\nfrom lib.sums import add\n', 'def add(a, b):\n    """Adds."""\n    return a + b\n'
    version = versions(tmp_path, stage, lib)
    assert versions(tmp_path, stage + "\n# a comment\n", lib.replace("Adds", "Adds up")) == version
    assert versions(tmp_path, stage, lib.replace("a + b", "a - b")) != version
    assert versions(tmp_path, stage + "print(1)\n", lib) != version


def test_version_does_not_change_with_a_model_of_resources(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "SCRIPTS", tmp_path)
    stage = "from lib.run.resources import Need\nX = 1\n\n\ndef needs(job):\n    return Need(1)\n"
    version = versions(tmp_path, stage, "")
    assert (
        versions(tmp_path, stage.replace("Need(1)", "Need(2)").replace("import Need", "import MB, Need"), "") == version
    )
    assert versions(tmp_path, stage.replace("X = 1", "X = 2"), "") != version
    assert "resources.py" not in {path.name for path in code.closure(Path(code.__file__).parents[2] / "pca.py")}


def test_version_changes_with_a_data_file_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "SCRIPTS", tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "genes.tsv").write_text("MT-ND1\n")
    stage, lib = "from lib import sums\n", 'FILE = "genes.tsv"\n'
    version = versions(tmp_path, stage, lib)
    (tmp_path / "lib" / "genes.tsv").write_text("MT-ND2\n")
    assert versions(tmp_path, stage, lib) != version


def test_facts_are_kept_until_a_file_of_the_code_changes(tmp_path, monkeypatch):
    names = {path.name for path in code.SCRIPTS.glob("*.py")}
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    monkeypatch.setattr(code, "SCRIPTS", scripts)
    monkeypatch.setattr(handover, "SCRIPTS", scripts)
    found = {"versions": {"toy.py": versions(scripts, "X = 1\n", "")}, "models": {"toy": ""}}
    assert models.of_scripts() == found
    with monkeypatch.context() as patch:
        patch.setattr(code, "version_of_code", lambda script: "asked")
        asked = found | {"versions": {"toy.py": "asked"}}
        assert models.of_scripts() == found
        (scripts / "lib" / "sums.py").write_text("Y = 10\n")
        assert models.of_scripts() == asked
        for text in ("no JSON", "[1]"):
            (scripts / "__pycache__" / "somersault.json").write_text(text)
            assert models.of_scripts() == asked
        shutil.rmtree(scripts / "__pycache__")
        (scripts / "__pycache__").write_text("a file, in which nothing can be kept")
        assert models.of_scripts() == asked
    monkeypatch.undo()
    assert set(models.of_scripts()["versions"]) == names


def test_a_model_is_the_same_from_its_kept_source():
    for stage in ("pca", "markers_ttest", "ingest"):
        source = models.source_of(stage, "needs")
        kept, read = models.model_of(stage, source), models.model_of(stage)
        assert (kept.__code__, kept.__code__.co_firstlineno) == (read.__code__, read.__code__.co_firstlineno)
        assert "def main" not in source


def test_a_file_is_needed_by_imports_in_functions_and_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "SCRIPTS", tmp_path)
    (tmp_path / "lib").mkdir()
    for name in ("a.py", "b.py", "c.py", "d.tsv", "e.py"):
        (tmp_path / "lib" / name).write_text("")
    text = "def f():\n    from lib import (\n        a,\n        b as g,\n    )\n    import os, lib.c as h\n"
    (tmp_path / "toy.py").write_text(f'{text}\n\n@cache\ndef g():\n    """See lib.e."""\n    return h("lib/d.tsv")\n')
    code.facts_of.cache_clear()
    assert {path.name for path in code.closure(tmp_path / "toy.py")} == {"toy.py", "a.py", "b.py", "c.py", "d.tsv"}
