"""Write Snakemake's report of all figures and tables: one file, completely or not at all, for any targets of a run."""

from lib.start import run

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import MB, PYTHON, Job, Need


def needs(job: Job) -> Need:
    """A separate Snakemake process, and every figure as text."""
    return Need(PYTHON + 300 * MB + 3 * MB * job.n_samples, 60 + 2 * job.n_samples, 50 * MB + 2 * MB * job.n_samples)


def main(snakemake: Any) -> None:
    """Have Snakemake write its report of everything that the table of jobs depends on."""
    output = Path(snakemake.output[0])
    with TemporaryDirectory(prefix=".report.", dir=output.parent) as folder:
        report, config = Path(folder, "report.html"), Path(folder, "config.json")
        config.write_text(json.dumps(snakemake.params.config | {"device": "cpu"}))  # nothing is computed
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            Path(snakemake.scriptdir).parent / "Snakefile",
            "--configfile",
            config,
        ]
        command += ["--cores", "1", "--nolock", "--report", report, "--", snakemake.input[0]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        stage.log.info("%s%s", done.stdout, done.stderr)
        if done.returncode or not report.exists():
            raise UserError(f"Snakemake wrote no report:\n{done.stderr[-3000:]}")
        os.replace(report, output)
    print(f"Report: {output}", file=sys.stderr)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
