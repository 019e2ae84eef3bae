"""Find the code of this workflow that a stage's results may depend on."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lib.run.kept import keep, recall

SCRIPTS = Path(__file__).resolve().parents[2]
REPORT = "report.py"


def versions_of_code(known: Path) -> dict[str, str]:
    """Each script's version by its name; `known` is a file that keeps them until a file of the code changes."""
    files = (file for file in sorted(SCRIPTS.rglob("*")) if file.suffix != ".pyc" and file.is_file())
    state = [[str(file), (about := file.stat()).st_mtime_ns, about.st_size] for file in files]
    facts = recall(known)
    if facts.get("state") != state:
        versions = {script.name: version_of_code(script) for script in sorted(SCRIPTS.glob("*.py"))}
        facts = {"state": state, "versions": versions}
        keep(known, facts)
    return facts["versions"]


@cache
def version_of_code(script: Path) -> str:
    """A hash of a stage's script and of all that it imports from this workflow, without comments and docstrings.

    That of the report holds what all stages tell it.
    """
    digest = hashlib.blake2b(digest_size=6)
    files = closure(script)
    if script.name == REPORT:
        ours = (SCRIPTS / "lib" / "report").rglob("*")
        files |= {file for file in ours if file.is_file() and file.parent.name != "__pycache__"}
        for path in sorted(SCRIPTS.glob("*.py")):
            digest.update("".join(ast.unparse(node) for node in syntax_tree(path).body if _is_told(node)).encode())
    for path in sorted(files):
        digest.update(path.name.encode() + statements(path).encode())
    return digest.hexdigest()


def closure(script: Path) -> set[Path]:
    """A script, all modules of this workflow that it needs, and the data files that they name."""
    found, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(imported(path))
    return found


@cache
def imported(path: Path) -> tuple[Path, ...]:
    """The files of this workflow that one file imports, or names in a string."""
    if path.suffix != ".py":
        return ()
    return tuple(file for name in _names(syntax_tree(path)) if (file := _file_of(path, name)) is not None)


@cache
def statements(path: Path) -> str:
    """A file's text without comments on lines of their own, docstrings, blank lines and models of resources."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".py":
        tree = syntax_tree(path)
        computing = set(map(id, _computing(tree)))
        for node in (node for node in tree.body if id(node) not in computing):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_text(body[0]):
                lines[body[0].lineno - 1 : body[0].end_lineno] = [""] * (body[0].end_lineno - body[0].lineno + 1)
        lines = [line for line in lines if not re.match(r"\s*(#|$)", line)]
    return "\n".join(lines)


@cache
def syntax_tree(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _computing(tree: ast.Module) -> list[ast.stmt]:
    """The statements of a module without those that no result depends on.

    These are models of resources, what a stage tells the report, and the imports that only they need.
    """
    beside = ["lib.run.resources", *(["lib.report"] if any(map(_is_told, tree.body)) else [])]

    def computes(node: ast.stmt) -> bool:
        if isinstance(node, ast.ImportFrom):
            return not f"{node.module}.".startswith(tuple(f"{module}." for module in beside))
        return not (_is_told(node) or _is_function(node, r"needs(_\w+)?|\w+_needs"))

    return list(filter(computes, tree.body))


def _is_told(node: ast.stmt) -> bool:
    """Whether a statement is a part of what a stage tells the report."""
    return _is_function(node, r"tells|\w+_told")


def _is_function(node: ast.stmt, pattern: str) -> bool:
    return isinstance(node, ast.FunctionDef) and re.fullmatch(pattern, node.name) is not None


def _names(tree: ast.Module) -> Iterator[str]:
    """Names that may be files: imported modules as a/b, and strings; without those that only models need."""
    for node in ast.walk(ast.Module(_computing(tree), [])):
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").replace(".", "/")
            yield module
            yield from (f"{module}/{alias.name}".strip("/") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.replace(".", "/") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            yield node.value


def _file_of(path: Path, name: str) -> Path | None:
    """The file that a module or a string names, relative to the file that names it or to the folder of scripts."""
    if not re.fullmatch(r"[\w./-]+", name):
        return None
    named = [name] if "." in name else [f"{name}.py", f"{name}/__init__.py"]
    return next((file for folder in (path.parent, SCRIPTS) for n in named if (file := folder / n).is_file()), None)
