"""The end of a stage: complete artifacts, one message, a log and a record."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from lib.run import device as devices
from lib.run import diagnosis, progress
from lib.run.errors import UserError
from lib.run.progress import LogLines, Pace
from lib.store.files import read_arrays, read_attrs, read_table, replacing, write_arrays, write_table

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(folder: Path, main: str, gpu: int = 0) -> subprocess.CompletedProcess[str]:
    """A stage with this body of `main(snakemake)`, in its own process; its output is out.txt."""
    code = f"""
    import sys
    from types import SimpleNamespace
    sys.path.append({str(SCRIPTS)!r})
    from lib.run import device as devices
    from lib.run import stage
    from lib.run.errors import UserError
    from lib.store.files import replacing
    def main(snakemake):
        {main}
    stage.run(main, SimpleNamespace(
        rule="toy", input={{}}, wildcards={{"sample": "A"}}, log=["logs/toy.log"], output=["out.txt"], threads=1,
        params={{"seed": 3}}, resources={{"gpu": {gpu}, "vram_mb": 1000}},
    ))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_success_leaves_log_and_record(tmp_path):
    done = run(tmp_path, "stage.log.info('chose %d', 7); open(snakemake.output[0], 'w').close()")
    assert done.returncode == 0
    assert done.stderr == ""
    log = (tmp_path / "logs" / "toy.log").read_text()
    assert "chose 7" in log
    assert "peak memory" in log
    record = json.loads((tmp_path / "logs" / "toy.run.json").read_text())
    assert (record["rule"], record["wildcards"], record["device"], record["seed"]) == ("toy", {"sample": "A"}, "cpu", 3)
    assert record["versions"]["numpy"] == np.__version__


def test_users_error_is_its_message_alone_and_takes_the_outputs_along(tmp_path):
    done = run(tmp_path, "open('out.txt', 'w').close(); raise UserError('sample A: no cells. Add some.')")
    assert done.returncode == 1
    assert "Somersault, toy (sample=A): sample A: no cells. Add some." in done.stderr
    assert "Traceback" not in done.stderr
    assert "Add some." in (tmp_path / "logs" / "toy.log").read_text()
    assert not (tmp_path / "out.txt").exists()
    assert not (tmp_path / "logs" / "toy.run.json").exists()


def test_our_own_defect_keeps_its_traceback(tmp_path):
    done = run(tmp_path, "1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "ZeroDivisionError" in (tmp_path / "logs" / "toy.log").read_text()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("OSError(28, 'No space left on device', 'x.h5')", "the disk is full while writing x.h5"),
        ("OSError(30, 'Read-only file system', 'x.h5')", "no permission to write x.h5 (Read-only file system)"),
    ],
)
def test_disk_troubles_are_told(tmp_path, error, message):
    done = run(tmp_path, f"raise {error}")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_gpu_that_is_not_there_is_said_before_the_stage_begins(tmp_path, monkeypatch):
    if diagnosis.unusable() is None:
        pytest.skip("there is a GPU here")
    done = run(tmp_path, "devices.of(snakemake); open('begun', 'w').close()", gpu=1)
    assert "device: gpu cannot be used here: " in done.stderr
    assert "set `device: cpu`" in done.stderr
    assert not (tmp_path / "begun").exists()
    with pytest.raises(UserError, match="'tpu' is not one of auto, cpu, gpu"):
        devices.resolve("tpu")
    assert devices.resolve("auto").name == "cpu"


def test_replacing_is_all_or_nothing(tmp_path):
    path = tmp_path / "new" / "table.txt"
    with replacing(path) as partial:
        partial.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["table.txt"]


def test_arrays_and_tables_come_back_and_repeat_to_the_byte(tmp_path):
    arrays = {"X": np.arange(6, dtype=np.float32).reshape(2, 3), "graph/indptr": np.array([0, 2])}
    table = pd.DataFrame({"a": [1, 2], "b": pd.Categorical(["x", "y"])}, index=["c1", "c2"])
    for name in ("one", "two"):
        write_arrays(tmp_path / f"{name}.h5", arrays, k=15, why="because")
        write_table(table, tmp_path / f"{name}.parquet")
    for ending in ("h5", "parquet"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    assert (read_arrays(tmp_path / "one.h5", "X")["X"] == arrays["X"]).all()
    assert read_attrs(tmp_path / "one.h5") == {"k": 15, "why": "because"}
    assert list(h5py.File(tmp_path / "one.h5")["graph"]) == ["indptr"]
    pd.testing.assert_frame_equal(read_table(tmp_path / "one.parquet"), table)
    assert list(read_table(tmp_path / "one.parquet", ["a", "a"])) == ["a"]


def test_pace_logs_rate_and_time_left(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY", 0)
    caplog.set_level("INFO", "somersault")
    pace = Pace("walk", 8, "miles")
    pace.started -= 10  # as if it had started ten seconds ago
    pace.step(2)
    pace.end()
    assert re.fullmatch(r"walk: 2 of 8 miles, 0\.\d+ miles/s, \d+ s left", caplog.messages[0])
    seconds_left = int(caplog.messages[0].split()[-3])
    assert seconds_left == pytest.approx(30, abs=3)  # three times the time of two miles; the machine may pause
    assert caplog.messages[1].startswith("walk: 2 miles in 10")


def test_lines_that_libraries_print_reach_the_log_whole(caplog):
    caplog.set_level("INFO", "somersault")
    lines = LogLines()
    print("\t", "Building RP forest  with", 9, file=lines)
    print("\r 5 of 9", end="", file=lines, flush=True)
    assert caplog.messages == ["Building RP forest with 9", "5 of 9"]


def test_steps_that_libraries_print_become_a_pace(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY", 0)
    caplog.set_level("INFO", "somersault")
    lines = LogLines("descent", "iterations")
    for i in (1, 2, 3):
        print("\t", i, " / ", 14, file=lines)
    assert re.fullmatch(r"descent: 3 of 14 iterations, \S+ iterations/s, \d+ s left", caplog.messages[-1])
