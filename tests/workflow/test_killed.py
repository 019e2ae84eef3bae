"""Every job of a run fails once, midway: killed, or on a full disk; Snakemake starts it again, and nothing is lost."""

from __future__ import annotations

import re
from filecmp import cmp

import pytest
from runs import Run, copy_workflow, sheet_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("finished")]

# Called when an artifact is written but has its temporary name, and when a job ends; fails once for each job
ONCE = """

def fail_once(path):
    import errno, os, signal, sys
    job = sys.modules["__main__"].snakemake
    mark = "failed/" + str(job.log[0]).replace("/", "_")
    os.makedirs("failed", exist_ok=True)
    if os.path.exists(mark):
        return
    open(mark, "w").close()
    {how}
"""
FAIL = "        fail_once(path)\n"
HOW = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "full disk": "raise OSError(errno.ENOSPC, 'No space left on device', str(path))",
}


@pytest.mark.parametrize("how", HOW)
def test_every_job_that_fails_midway_is_made_anew_with_the_same_bytes(how, finished, tmp_path, cohort_files):
    home = copy_workflow(tmp_path / "home")
    for name, before, after in (
        ("store/files.py", FAIL, "        os.replace(partial, path)\n"),
        ("run/stage.py", "        main(snakemake)\n", FAIL.replace("path", "log_file")),
    ):
        file = home / "scripts" / "lib" / name
        text, call = file.read_text(), after if before == FAIL else before
        assert text.count(call) == 1
        file.write_text(text.replace(call, before + after) + ONCE.format(how=HOW[how]))
    run = Run(tmp_path / "run", home=home)
    run.folder.mkdir()
    run.write(sheet_of(cohort_files))
    done = run.snakemake("--retries", "1")
    jobs = {str(path.relative_to(run.folder)) for path in run.folder.glob("logs/**/*.log")}
    failed = list((run.folder / "failed").iterdir())
    assert len(failed) == len(jobs)
    if how == "full disk":
        assert len(re.findall("^Somersault, .*: the disk is full while writing", done.stderr, re.M)) == len(jobs)
        assert "Traceback" not in done.stderr
    assert not list(run.folder.glob("results/**/.*"))
    made, expected = (
        {path.relative_to(folder) for path in folder.glob("results/**/*") if path.is_file()}
        for folder in (run.folder, finished.folder)
    )
    assert made == expected
    told = {"report.html", "runs.tsv", "runs.png", "notices.tsv"}  # times, and the version of the copy's code
    files = [path for path in sorted(made) if path.name not in told]
    differ = [path for path in files if not cmp(run.folder / path, finished.folder / path, shallow=False)]
    assert differ == [], [(path, [(one.folder / path).stat().st_size for one in (run, finished)]) for path in differ]


def rows() -> list[tuple[str, str, str]]:
    """Runs that are cut off, for docs/odd_input.md."""
    same = "the run ends with the bytes of an undisturbed run, and nothing half-written is left"
    return [
        ("killed jobs", "every job is killed once (SIGKILL), with its artifact half in place, and started again", same),
        ("full disk", "every job finds the disk full once, and is started again", f"each says so by name; {same}"),
        ("killed Snakemake", "Snakemake and all its processes are killed midway; `--unlock`, and run again", same),
    ]
