"""Show the resources that the jobs of a whole run will request, before any is submitted, and whether each job fits.

The jobs are those of all rules (`lib.run.plan`), with the resources that the models of their stages compute. The table
has one line per rule: its number of jobs, the largest requests, and the disk space of all its jobs.
"""

from lib.start import run

import shutil
from collections.abc import Mapping
from typing import Any

import pandas as pd
from lib.run import stage
from lib.run.errors import UserError

COLUMNS = {"mem_mb": "memory GB", "vram_mb": "GPU memory GB", "runtime": "time h:mm", "disk_mb": "disk GB"}
PER = {"mem_mb": 1000, "vram_mb": 1024, "disk_mb": 1000}


def by_rule(jobs: pd.DataFrame, limits: Mapping[str, float | None]) -> pd.DataFrame:
    """One line per rule, in the order of the jobs: `jobs`, the maximum of each resource (disk: the sum), and `fits`.

    `fits` is "yes", or names the resources that exceed their limits.

    Parameters
    ----------
    jobs
        One line per job: `rule`, and integers for the keys of `COLUMNS`.
    limits
        Resource -> the largest request of a job that is allowed; None: no limit.
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
    """An amount of a resource as text: in GB, or hours and minutes."""
    return f"{value // 60:.0f}:{value % 60:02.0f}" if name == "runtime" else f"{value / PER[name]:.2f}"


def main(snakemake: Any) -> None:
    """Print the table; fail if a job does not fit."""
    params = snakemake.params
    load, limits = params.load, params.limits
    jobs = pd.DataFrame(params.jobs)
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
    run(main, snakemake)  # noqa: F821
