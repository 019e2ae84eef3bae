"""The jobs' table and timeline: every record is there, at its time, in its colours."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

# By its path: the tests have a module of that name
spec = spec_from_file_location("runs_stage", Path(__file__).parents[2] / "scripts" / "runs.py")
runs = module_from_spec(spec)
spec.loader.exec_module(runs)


def record(rule: str, started: float, seconds: float, **others) -> dict:
    """A run record with a quarter of its time in each kind."""
    return {
        "rule": rule,
        "wildcards": {},
        "device": "cpu",
        "seed": 0,
        "threads": 1,
        "started": started,
        "ended": started + seconds,
        "seconds": seconds,
        "seconds_by": dict.fromkeys(("import", "read", "write", "compute"), seconds / 4),
        "peak_rss_mb": 200.0,
        "peak_gpu_mb": None,
        "host": "here",
        "python": "3.12.1",
        "versions": {"numpy": "2.4.6", "scanpy": None},
        **others,
    }


GPU = {
    "device": "gpu",
    "card": "H100",
    "peak_gpu_mb": 900.5,
    "driver": "580.1",
    "cuda": "13.2",
    "gpu_versions": {"cupy": "14.2.0"},
}


def test_table_has_a_line_a_job_with_card_and_versions():
    table = runs.run_table([record("qc", 0.0, 4.0, wildcards={"sample": "P1"}), record("markers", 86400.0, 8.0, **GPU)])
    assert list(table.columns) == runs.COLUMNS
    cpu, gpu = (table.iloc[i] for i in (0, 1))
    assert (cpu["wildcards"], cpu["started"], cpu["versions"]) == ("sample=P1", "1970-01-01T00:00:00Z", "numpy 2.4.6")
    assert cpu[["import", "read", "compute", "write"]].tolist() == [1.0] * 4
    assert np.isnan(cpu["peak_gpu_mb"])
    assert (gpu["card"], gpu["driver"], gpu["cuda"], gpu["peak_gpu_mb"]) == ("H100", "580.1", "13.2", 900.5)
    assert gpu["versions"] == "numpy 2.4.6, cupy 14.2.0"


def test_idle_time_is_cut_out_and_said():
    started, ended = np.array([0.0, 5.0, 4000.0, 4020.0]), np.array([10.0, 400.0, 4010.0, 4030.0])
    begin, (cut,) = runs.timeline(started, ended)
    gap = begin[2] - 400
    assert begin.tolist() == [0, 5, 400 + gap, 420 + gap]
    assert 0 < gap < 0.05 * begin.max()
    assert cut.seconds == 3600
    assert 400 < cut.at < begin[2]
    assert runs.timeline(started[:2], ended[:2])[1] == []


def test_jobs_side_by_side_lie_in_lanes_and_lanes_are_used_again():
    assert runs.lanes(np.array([0.0, 1, 2, 6]), np.array([5.0, 9, 3, 7])).tolist() == [0, 1, 2, 0]


def test_every_job_is_a_bar_of_its_seconds():
    records = [record("qc", 10.0, 4.0), record("qc", 11.0, 8.0), record("pca", 20.0, 2.0, **GPU)]
    ax = runs.draw(records).axes[0]
    bars = [patch for container in ax.containers for patch in container]
    assert len(bars) == 4 * 3
    assert sum(bar.get_width() for bar in bars) == pytest.approx(14)
    assert len({bar.get_y() for bar in bars}) == 3
    assert [label.get_text() for label in ax.get_yticklabels()] == ["qc (2)", "pca, GPU"]
    assert ax.get_xlim() == (0, 12)


def test_700_jobs_fit_on_a_page():
    records = [record(f"rule{i % 30}", i // 60 * 10.0, 9.0) for i in range(700)]
    fig = runs.draw(records)
    assert fig.get_size_inches()[1] <= runs.HEIGHT
    assert len(fig.axes[0].get_yticklabels()) == 30


def test_stage_reads_the_records_that_are_there(tmp_path):
    (tmp_path / "b.run.json").write_text(json.dumps(record("pca", 20.0, 2.0)))
    (tmp_path / "a.run.json").write_text(json.dumps(record("qc", 10.0, 4.0)))
    for names, expected in ((["b", "gone", "a"], ["qc", "pca"]), (["gone"], [])):
        output = SimpleNamespace(
            table=tmp_path / "runs.tsv", timeline=tmp_path / "runs.png", notices=tmp_path / "n.tsv"
        )
        files = [str(tmp_path / f"{name}.run.json") for name in names]
        runs.main(SimpleNamespace(params=SimpleNamespace(records=files, versions={}), output=output))
        assert pd.read_csv(output.table, sep="\t")["rule"].tolist() == expected
        assert output.timeline.stat().st_size > 1000
