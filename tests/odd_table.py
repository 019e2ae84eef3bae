"""Write the tables of docs/odd_input.md: what a user gets of each odd input. `uv run python tests/odd_table.py`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import odd_files

Row = tuple[str, str, str]  # name, what is odd, what the user gets
PAGE = Path(__file__).parents[1] / "docs" / "odd_input.md"
READ, LONGEST = "read", 100
HEAD = "| case | what is odd | what you get |\n|---|---|---|\n"


def file_rows(results: dict | None = None) -> list[Row]:
    """A row for each odd file, from results of the judge or from new ones."""
    if results is None:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "results.json"
            subprocess.run([sys.executable, odd_files.__file__, str(target)], check=True, stderr=subprocess.DEVNULL)
            results = json.loads(target.read_text())
    return [(case.name, case.about, _outcome(results[case.name])) for case in odd_files.cases()]


def _outcome(result: dict) -> str:
    """`read`, or the beginning of the message, as one field of a table."""
    text = " ".join(
        result["header"][0].split() if result["header"] else result["job"].removeprefix("sample s: ").split()
    )
    text = re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    return (text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} ...") if text else READ


def rows_of(test: str) -> Callable[[], list[Row]]:
    """The rows that a module of tests gives."""
    return lambda: import_module(test).rows()


SECTIONS: dict[str, Callable[[], list[Row]]] = {
    "Files": file_rows,
    "Values of the config": rows_of("test_config_values"),
    "Names of columns": rows_of("test_odd_names"),
    "Runs that are cut off": rows_of("test_killed"),
}


def markers(title: str) -> tuple[str, str]:
    """The lines before and after the table of a section."""
    return f"<!-- {title}: written by tests/odd_table.py -->\n", f"<!-- {title}: end -->\n"


def table(rows: list[Row]) -> str:
    """Rows as a table of Markdown."""
    return HEAD + "".join(
        f"| `{name}` | {about.replace('|', chr(92) + '|')} | {outcome} |\n" for name, about, outcome in rows
    )


def rows_in(page: str, title: str) -> list[Row]:
    """The rows of a section's table."""
    start, end = markers(title)
    lines = page.partition(start)[2].partition(end)[0].removeprefix(HEAD).splitlines()
    fields = (re.split(r" (?<!\\)\| ", line[2:-2]) for line in lines)
    return [(name.strip("`"), about.replace("\\|", "|"), outcome) for name, about, outcome in fields]


def main() -> None:
    """Write the tables into the page, each between its two markers; the rest of the page stays."""
    page = PAGE.read_text()
    for title, rows in SECTIONS.items():
        start, end = markers(title)
        if start not in page:
            page = f"{page.rstrip()}\n\n## {title}\n\n{start}{end}"
        head, _, rest = page.partition(start)
        page = f"{head}{start}{table(rows())}{end}{rest.partition(end)[2]}"
    PAGE.write_text(page)


if __name__ == "__main__":
    home = Path(__file__).parents[1]
    sys.path += [str(home / name) for name in ("scripts", "tests/unit", "tests/workflow")]
    main()
