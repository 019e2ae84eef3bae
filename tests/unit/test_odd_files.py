"""Odd, damaged and hostile files are read right, or refused with a message that says what is wrong; nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import odd_files
import odd_table
import pytest

CASES = odd_files.cases()
# These, and some of the others, are judged in every run of the tests
WORST = re.compile(
    r"wrap|bomb|huge|link_|outside|storage|virtual|fifo|pickle|flipped|negative|beyond|symlink|short|zeroed"
)
QUICK = [case for i, case in enumerate(CASES) if WORST.search(case.name) or not i % 12]
SLOW = [case for case in CASES if case not in QUICK]


def judged(cases, folder):
    """The results of cases, from a process of their own."""
    target = folder / "results.json"
    command = [sys.executable, odd_files.__file__, str(target), *(case.name for case in cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return judged(QUICK, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return judged(SLOW, tmp_path_factory.mktemp("slow"))


@pytest.mark.xdist_group("odd files")
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_an_odd_file_is_read_right_or_refused_in_words(case, quick):
    assert odd_files.verdict(case, quick[case.name]) == "", case.about


@pytest.mark.slow
@pytest.mark.xdist_group("more odd files")
@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_another_odd_file_is_read_right_or_refused_in_words(case, slow):
    assert odd_files.verdict(case, slow[case.name]) == "", case.about


def test_each_odd_file_has_a_name_of_its_own():
    assert [name for name, n in Counter(case.name for case in CASES).items() if n > 1] == []
    assert sum(case.name.startswith("h5ad_") for case in CASES) >= 60
    assert sum(not case.name.startswith("h5ad_") for case in CASES) >= 73


@pytest.mark.parametrize(
    ("result", "wrong"),
    [
        ({"crash": "SIGSEGV"}, "ended by SIGSEGV"),
        ({"header": [], "job": "", "differs": "", "path": "a"}, "does not say 'odd'"),
        ({"header": ["a: odd"], "job": "a: odd", "differs": "counts: 1, not 2", "path": "a"}, "counts: 1, not 2"),
        ({"header": ["b: odd"], "job": "a: odd", "differs": "", "path": "a"}, "the file is not named"),
        ({"header": ["a: odd"], "job": "a: odd. truncated or damaged", "differs": "", "path": "a"}, "damage said"),
        ({"header": [], "job": "a: odd", "differs": "", "path": "a"}, "header does not say 'odd'"),
        ({"header": ["a: odd"], "job": "a: odd", "differs": "", "path": "a"}, ""),
    ],
)
def test_the_judge_tells_what_is_not_as_expected(result, wrong):
    case = odd_files.Case("x", "about", lambda folder, truth: folder, "odd")
    assert wrong in odd_files.verdict(case, result)
    assert bool(wrong) == bool(odd_files.verdict(case, result))


def test_a_crash_a_hang_and_much_memory_are_the_failure_of_one_case(monkeypatch):
    def build(what):
        def built(folder, truth):
            exec(what, {})
            return folder

        return built

    monkeypatch.setattr(odd_files, "SECONDS", 2)
    codes = {
        "crash": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "hang": "import time; time.sleep(30)",
        "memory": f"bytes({2 * odd_files.MEMORY})",
    }
    found = odd_files.judged([odd_files.Case(name, "", build(code)) for name, code in codes.items()])
    assert found["crash"]["crash"] == "SIGKILL"
    assert found["hang"]["crash"] == "SIGALRM"
    assert found["memory"]["crash"].startswith("MemoryError")


def test_the_table_of_odd_files_in_the_docs_is_current():
    text = (Path(__file__).parents[2] / "docs" / "odd_input.md").read_text()
    told = odd_table.rows_in(text, "Files")
    assert [row[:2] for row in told] == [(case.name, case.about) for case in CASES], "run tests/odd_table.py"
    for case, (_, _, outcome) in zip(CASES, told, strict=True):
        assert (outcome == odd_table.READ) == (not case.expected), f"{case.name}: run tests/odd_table.py"


@pytest.mark.slow
@pytest.mark.xdist_group("more odd files")
def test_the_messages_of_odd_files_in_the_docs_are_current(quick, slow):
    text = (Path(__file__).parents[2] / "docs" / "odd_input.md").read_text()
    assert odd_table.rows_in(text, "Files") == odd_table.file_rows(quick | slow)
