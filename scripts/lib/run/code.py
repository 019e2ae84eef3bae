"""Find the code of this workflow that a stage's results may depend on."""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

SCRIPTS = Path(__file__).resolve().parents[2]
REPORT = "report.py"
IMPORT = re.compile(r"^\s*(?:from ([\w.]+) )?import (\([^)]*\)|.*)", re.MULTILINE)
STRING = re.compile(r"""["']([\w/-]*\.[\w./-]*)["']""")


class Facts(NamedTuple):
    """What a file of code tells: `computes`, what results depend on; `told`, what the report does; the files of ours
    that it needs."""

    computes: str
    told: str
    needs: tuple[Path, ...]


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
        digest.update("".join(facts_of(path).told for path in sorted(SCRIPTS.glob("*.py"))).encode())
    for path in sorted(files):
        digest.update(path.name.encode() + facts_of(path).computes.encode())
    return digest.hexdigest()


def closure(script: Path) -> set[Path]:
    """A script, all modules of this workflow that it needs, and the data files that they name."""
    found, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(facts_of(path).needs)
    return found


@cache
def facts_of(path: Path) -> Facts:
    """The facts of a file, without comments on lines of their own, docstrings, blank lines and models of resources."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return Facts(text, "", ())
    body, lines = syntax_tree(path).body, text.splitlines()
    told = only(text, filter(_is_told, body))
    blocks = [_computing(body)]
    for block in blocks:
        if block and _is_text(block[0]):
            lines[block[0].lineno - 1 : block[0].end_lineno] = [""] * (block[0].end_lineno - block[0].lineno + 1)
        for node in block:
            inner = (getattr(node, name, None) for name in ("body", "orelse", "handlers", "finalbody", "cases"))
            blocks += [part for part in inner if part]
    computes = only("\n".join(lines), blocks[0])
    needed = (_file_of(path, name) for name in _names(computes))
    return Facts(computes, told, tuple(file for file in needed if file is not None))


def only(text: str, nodes: Iterable[ast.stmt]) -> str:
    """The lines of these statements of a module, without blank ones and comments on lines of their own."""
    lines = text.splitlines()
    wanted = [line for node in nodes for line in lines[first_line(node) - 1 : node.end_lineno]]
    return "\n".join(line for line in wanted if not re.match(r"\s*(#|$)", line))


def first_line(node: ast.stmt) -> int:
    """The number of a statement's first line, that of its first decorator if it has some."""
    return min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))


def syntax_tree(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _computing(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a module without those that no result depends on.

    These are models of resources, what a stage tells the report, and the imports that only they need.
    """
    beside = ["lib.run.resources", *(["lib.report"] if any(map(_is_told, body)) else [])]

    def computes(node: ast.stmt) -> bool:
        if isinstance(node, ast.ImportFrom):
            return not f"{node.module}.".startswith(tuple(f"{module}." for module in beside))
        return not (_is_told(node) or _is_function(node, r"needs(_\w+)?|\w+_needs"))

    return list(filter(computes, body))


def _is_told(node: ast.stmt) -> bool:
    """Whether a statement is a part of what a stage tells the report."""
    return _is_function(node, r"tells|\w+_told")


def _is_function(node: ast.stmt, pattern: str) -> bool:
    return isinstance(node, ast.FunctionDef) and re.fullmatch(pattern, node.name) is not None


def _names(text: str) -> Iterator[str]:
    """Names in a text of code that may be files: imported modules as a/b, and strings with a dot."""
    for module, imported in IMPORT.findall(text):
        names = [words[0] for part in imported.strip("()").split(",") if (words := part.split())]
        yield from (name.replace(".", "/") for name in ([module] if module else names))
        yield from (f"{module}/{name}".replace(".", "/") for name in names if module)
    yield from STRING.findall(text)


def _file_of(path: Path, name: str) -> Path | None:
    """The file that a module or a string names, relative to the file that names it or to the folder of scripts."""
    named = [name] if "." in name else [f"{name}.py", f"{name}/__init__.py"]
    there = (f"{folder}/{n}" for folder in (path.parent, SCRIPTS) for n in named)
    return next((Path(file) for file in there if os.path.isfile(file)), None)
