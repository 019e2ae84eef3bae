from pathlib import Path

from lib.run import code


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
    for cached in (code.version_of_code, code.imported, code.statements, code.syntax_tree):
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


def test_versions_are_kept_until_a_file_of_the_code_changes(tmp_path, monkeypatch):
    scripts, known = tmp_path / "scripts", tmp_path / "deep" / "code.json"
    scripts.mkdir()
    monkeypatch.setattr(code, "SCRIPTS", scripts)
    first = versions(scripts, "X = 1\n", "")
    assert code.versions_of_code(known) == {"toy.py": first}
    monkeypatch.setattr(code, "version_of_code", lambda script: "asked")
    assert code.versions_of_code(known) == {"toy.py": first}
    (scripts / "lib" / "sums.py").write_text("Y = 10\n")
    assert code.versions_of_code(known) == {"toy.py": "asked"}
    for text in ("no JSON", "[1]"):
        known.write_text(text)
        assert code.versions_of_code(known) == {"toy.py": "asked"}
    monkeypatch.undo()
    assert set(code.versions_of_code(tmp_path / "all.json")) == {path.name for path in code.SCRIPTS.glob("*.py")}
