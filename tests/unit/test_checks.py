"""The table of preflight, and the findings of doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import doctor
import pandas as pd
import preflight
import pytest
from doctor import GOOD, ODD, WRONG, in_range
from lib.run import diagnosis

HOME = Path(__file__).parents[2]
JOBS = pd.DataFrame(
    {
        "rule": ["qc", "qc", "pca"],
        "mem_mb": [700, 2500, 600],
        "vram_mb": [1300, 900, 0],
        "runtime": [10, 90, 10],
        "disk_mb": [5, 7, 1],
    }
)


def test_a_line_a_rule_and_what_exceeds_its_limit():
    table = preflight.by_rule(JOBS, {"mem_mb": 2000, "vram_mb": None, "runtime": 60})
    assert table.loc["qc"].tolist() == [2, 2500, 1300, 90, 12, "no: memory, time"]
    assert table.loc["pca", "fits"] == "yes"
    text = preflight.shown(table)
    assert "1:30" in text
    assert "GPU memory GB" in text
    assert "GPU memory GB" not in preflight.shown(table.assign(vram_mb=0))


@pytest.mark.parametrize(
    ("version", "wanted", "inside"),
    [
        ("0.12.19", ">=0.12,<0.14", True),
        ("0.14.0", ">=0.12,<0.14", False),
        ("3.9", ">=3.10", False),
        ("3.10", ">=3.9", True),
        ("26.10.1", "==26.10.*", True),
        ("26.12.0", "==26.10.*", False),
        ("2.0.0+cu13", ">=2", True),
        ("2.1rc1", ">=2.1", True),
        ("5", "", True),
    ],
)
def test_versions_in_ranges(version, wanted, inside):
    assert in_range(version, wanted) is inside


def states(findings):
    return {finding.what: finding.state for finding in findings}


def test_packages_missing_of_another_version_or_not_the_locks():
    import numpy

    wanted = {"numpy": ">=2", "scipy": ">=99", "nowhere": ">=1"}
    found = states(doctor.check_packages(wanted, {"numpy": {"2.0"}}))
    assert found == {"numpy": ODD, "scipy": WRONG, "nowhere": WRONG, "packages": GOOD}
    assert "numpy" not in states(doctor.check_packages(wanted, {"numpy": {"1.0", numpy.__version__}}))


def test_this_environment_is_in_order():
    findings = list(doctor.check_environment(HOME, gpu=False))
    assert {"Python", "packages"} <= set(states(findings))
    assert WRONG not in states(findings).values(), findings


def test_markers_of_requirements():
    python = "{}.{}".format(*sys.version_info[:2])
    assert doctor.applies("")
    assert doctor.applies(f"python_version >= '{python}' and sys_platform == '{sys.platform}'")
    assert not doctor.applies(f"python_version < '{python}'")
    assert not doctor.applies("sys_platform == 'plan9'")


def test_an_extra_brings_its_packages(monkeypatch):
    monkeypatch.setattr(doctor, "applies", lambda marker: True)
    project = {"dependencies": ["a>=1,<2"], "optional-dependencies": {"gpu": ["B==26.10.*; python_version >= '3.12'"]}}
    assert doctor.requirements(project) == {"a": ">=1,<2"}
    assert doctor.requirements(project, "gpu") == {"a": ">=1,<2", "b": "==26.10.*"}


@pytest.mark.parametrize(("wanted", "state"), [(True, WRONG), (False, GOOD)])
def test_no_gpu_is_wrong_where_one_is_wanted(monkeypatch, wanted, state):
    monkeypatch.setattr(diagnosis, "unusable", lambda: "no driver.")
    (finding,) = doctor.check_gpu(wanted)
    assert finding.state == state
    assert "no driver." in finding.found


def test_rapids_of_two_releases_is_wrong(monkeypatch):
    monkeypatch.setattr(diagnosis, "unusable", lambda: None)
    monkeypatch.setattr(doctor.cards, "visible", lambda: [doctor.cards.Card(0, "GPU-1", 80_000)])
    versions = {"rmm-cu13": "26.10.0", "cuvs-cu13": "26.10.1", "cuml-cu13": "26.10.0", "pylibcugraph-cu13": "26.10.0"}

    def version(name):
        if name not in versions:
            raise doctor.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor, "version", version)
    assert states(doctor.check_gpu(True)) == {"driver": GOOD, "card": GOOD, "RAPIDS": GOOD}
    versions["cuml-cu13"] = "26.12.0"
    assert states(doctor.check_gpu(True))["RAPIDS"] == WRONG


def test_a_folder_that_cannot_be_written_is_wrong(tmp_path):
    (tmp_path / "file").touch()
    assert [f.state for f in doctor.check_disk(tmp_path / "file" / "results", 1 << 20)] == [WRONG]
    (finding,) = doctor.check_disk(tmp_path / "results", 1 << 20)
    assert "MB/s" in finding.found
    assert list((tmp_path / "results").iterdir()) == []
