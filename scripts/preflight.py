"""What the jobs of a whole run will ask for, before anything is submitted, and whether each fits.

Snakemake's own list of jobs, of a dry run that forces all of them, with the resources that `lib.run.resources` computes
for each. A table has a line a rule: its jobs, what the largest of them asks for, and what all of them write.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import MODELS

RESOURCES = ("mem_mb", "vram_mb", "runtime", "disk_mb")
COLUMNS = {"mem_mb": "memory GB", "vram_mb": "GPU memory GB", "runtime": "time h:mm", "disk_mb": "disk GB"}
PER = {"mem_mb": 1000, "vram_mb": 1024, "disk_mb": 1000}
# A job in the text of a dry run: its rule, and further down its resources
RULE = re.compile(r"^ *(?:local)?(?:rule|checkpoint) (\w+):$")
NEEDED = re.compile(r"^ *resources: (.*)$")


def parse_jobs(text: str, beside_mb: int = 0) -> pd.DataFrame:
    """A line for each job that a dry run shows, with a model of its resources: `rule` and `RESOURCES`, integers.

    Parameters
    ----------
    text
        What `snakemake --dry-run` prints.
    beside_mb
        Memory of each job on top, which a dry run does not know of.
    """
    jobs, rule = [], ""
    for line in text.splitlines():
        if found := RULE.match(line):
            rule = found[1]
        elif found := NEEDED.match(line):
            values = dict(pair.split("=", 1) for pair in found[1].split(", "))
            if rule in MODELS:  # those that only gather, like `all`, run nothing
                jobs.append({"rule": rule} | {name: int(values[name]) for name in RESOURCES})
    table = pd.DataFrame(jobs, columns=["rule", *RESOURCES])
    return table.assign(mem_mb=table["mem_mb"] + beside_mb)


def by_rule(jobs: pd.DataFrame, limits: Mapping[str, float | None]) -> pd.DataFrame:
    """A line a rule, in the order of the jobs: `jobs`, the largest of each resource (disk: the sum), and `fits`.

    `fits` is "yes", or names what exceeds its limit; None is no limit.
    """
    how = {"mem_mb": "max", "vram_mb": "max", "runtime": "max", "disk_mb": "sum"}
    groups = jobs.groupby("rule", sort=False)
    table = groups.agg(how)
    table.insert(0, "jobs", groups.size())

    def fits(row: pd.Series) -> str:
        over = [COLUMNS[n].rpartition(" ")[0] for n, most in limits.items() if most is not None and row[n] > most]
        return f"no: {', '.join(over)}" if over else "yes"

    return table.assign(fits=table.apply(fits, axis=1) if len(table) else [])


def shown(table: pd.DataFrame) -> str:
    """The table as text."""
    columns = {"jobs": table["jobs"]}
    columns |= {COLUMNS[name]: [amount(name, value) for value in table[name]] for name in COLUMNS}
    if not table["vram_mb"].any():
        columns.pop(COLUMNS["vram_mb"])
    return pd.DataFrame(columns | {"fits": table["fits"]}).rename_axis(None).to_string()


def amount(name: str, value: float) -> str:
    """A resource in GB, or hours and minutes."""
    return f"{value // 60:.0f}:{value % 60:02.0f}" if name == "runtime" else f"{value / PER[name]:.2f}"


def list_jobs(args: Sequence[str], cwd: str) -> str:
    """What a Snakemake command prints that is a dry run of all jobs, but for the target that stands for this one."""
    args = [word for word in args if word != "preflight"]
    done = subprocess.run(args, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"Snakemake cannot plan the run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def main(snakemake: Any) -> None:
    """Print the table; fail where a job does not fit."""
    params = snakemake.params
    load, limits = params.load, params.limits
    jobs = parse_jobs(list_jobs(**params.command), params.beside)
    if jobs.empty:
        raise UserError("Snakemake named no jobs: leave out --quiet, also in the profile")
    table = by_rule(jobs, limits)
    free = shutil.disk_usage(".").free / 1e6
    disk = table["disk_mb"].sum()
    known = [f"{COLUMNS[name]} {amount(name, most)}" for name, most in limits.items() if most is not None]
    lines = [
        f"{load['n_samples']} samples, {load['n_obs']:,} cells, {load['nnz'] / 1e6:,.1f} million non-zeros, "
        f"{load['n_vars']:,} genes, {load['n_batches']} batches",
        "",
        shown(table),
        "",
        f"{len(jobs)} jobs, of each rule the largest; {disk / 1000:.1f} GB to be written, {free / 1000:.0f} GB free",
        f"limits: {', '.join(known) or 'none'}",
    ]
    print("\n".join(lines), flush=True)
    stage.log.info("%s", "\n".join(lines))
    problems = [f"{rule}: {line}" for rule, line in table["fits"].items() if line != "yes"]
    if disk > free:
        problems.append(f"the disk has {free / 1000:.0f} GB left, less than is written")
    if problems:
        raise UserError("not everything fits:\n  " + "\n  ".join(problems))


if __name__ == "__main__":
    stage.run(main, snakemake)  # noqa: F821
