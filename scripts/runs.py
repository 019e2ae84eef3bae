"""Collect the run records of a cohort's jobs in one table and a timeline.

`lib.run.stage.run` writes a record beside each job's log. Jobs of earlier runs whose results are still valid are
included, at the time when they ran.
"""

from lib.start import run

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from lib.figures import plots
from lib.report import facts
from lib.report.parts import Column, Finished, Numbers, Part, Table
from lib.report.words import count
from lib.run import stage
from lib.run.notices import notices, read_records
from lib.run.resources import KB, MB, PYTHON, Job, Need
from lib.store.files import write_tsv
from matplotlib.figure import Figure

KINDS = {"import": "#E69F00", "read": "#56B4E9", "compute": "#0072B2", "write": "#D55E00"}  # in the order within a bar
IDLE = 60.0  # seconds: longer times without a job are cut out of the timeline
CUT = 2.0  # width of such a cut, per cent of the time axis
WIDTH, LANE, HEIGHT = 7.0, 0.13, 12.0  # inches: the axis' width, a lane's height, the maximal height of all lanes
COLUMNS = ["rule", "wildcards", "device", "card", "seconds", *KINDS, "peak_rss_mb", "peak_gpu_mb", "started"]
COLUMNS += ["seed", "threads", "host", "python", "driver", "cuda", "versions"]
UNITS = {"h": 3600, "min": 60, "s": 1}

JOBS_TOLD = {
    "rule": Column("rule"),
    "wildcards": Column("of"),
    "device": Column("device"),
    "card": Column("card", hidden=True),
    "seconds": Column("seconds"),
    **{name: Column(f"{name}, s", hidden=True) for name in KINDS},
    "peak_rss_mb": Column("memory, MB"),
    "peak_gpu_mb": Column("GPU memory, MB"),
    "started": Column("started (UTC)"),
    **{name: Column(name, hidden=True) for name in COLUMNS[COLUMNS.index("seed") :]},
}


def run_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One line per job with `COLUMNS`; `peak_gpu_mb` is NaN on the CPU, `started` is in UTC."""
    lines = []
    for record in records:
        versions = record["versions"] | record.get("gpu_versions", {})
        lines.append(
            {
                "rule": record["rule"],
                "wildcards": pairs(record["wildcards"], "="),
                "device": record["device"],
                "card": record.get("card", ""),
                "seconds": record["seconds"],
                **{kind: record["seconds_by"][kind] for kind in KINDS},
                "peak_rss_mb": record["peak_rss_mb"],
                "peak_gpu_mb": np.nan if record["peak_gpu_mb"] is None else record["peak_gpu_mb"],
                "started": datetime.fromtimestamp(record["started"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                **{name: record[name] for name in ("seed", "threads", "host", "python")},
                **{name: record.get(name) or "" for name in ("driver", "cuda")},
                "versions": pairs(versions, " "),
            }
        )
    return pd.DataFrame(lines, columns=COLUMNS)


def pairs(values: Mapping[str, Any], between: str) -> str:
    """Names and values as text: `sample=P1, method=t-test`; empty values are left out."""
    return ", ".join(f"{name}{between}{value}" for name, value in values.items() if value is not None)


class Cut(NamedTuple):
    """A time without jobs: its position on the axis and its length, both in seconds."""

    at: float
    seconds: float


def timeline(started: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, list[Cut]]:
    """The start of each job, in seconds since the first, without the times when no job ran; and these times."""
    order = np.argsort(started, kind="stable")
    last = np.maximum.accumulate(ended[order])[:-1]
    idle = np.maximum(started[order][1:] - last, 0)
    idle[idle <= IDLE] = 0
    begin = np.empty(len(started))
    begin[order] = started[order] - started[order[0]] - np.concatenate([[0], idle.cumsum()])
    gap = CUT / 100 * (begin + ended - started).max()
    begin[order] += np.concatenate([[0], (idle > 0).cumsum()]) * gap
    return begin, [Cut(begin[order[1:]][i] - gap / 2, idle[i]) for i in np.flatnonzero(idle)]


def lanes(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The lane of each job, the lowest that is free at its start; jobs are in order of `begin`."""
    free: list[float] = []
    found = np.empty(len(begin), int)
    for i, (start, stop) in enumerate(zip(begin, end, strict=True)):
        found[i] = next((lane for lane, until in enumerate(free) if until <= start), len(free))
        free[found[i] : found[i] + 1] = [stop]
    return found


def draw(records: Sequence[Mapping[str, Any]]) -> Figure:
    """A bar per job, grouped by rule, rules in the order of their starts; records are in order of `started`."""
    if not records:
        fig, axes = plots.panels(1, 1, (WIDTH, 0.5))
        axes[0, 0].text(0.5, 0.5, "no job left a run record here", ha="center", va="center")
        axes[0, 0].axis("off")
        return fig
    rules = np.array([record["rule"] for record in records])
    started, ended = (np.array([record[name] for record in records], float) for name in ("started", "ended"))
    begin, cuts = timeline(started, ended)
    end = begin + ended - started
    span = end.max()
    unit = next(name for name, size in UNITS.items() if span >= 3 * size or name == "s")

    row, first, ticks = np.empty(len(rules)), 0, []
    for rule in dict.fromkeys(rules):
        of_rule = np.flatnonzero(rules == rule)
        own = lanes(begin[of_rule], end[of_rule])
        row[of_rule] = first + own
        on_gpu = any(records[i]["device"] == "gpu" for i in of_rule)
        count = f" ({len(of_rule)})" if len(of_rule) > 1 else ""
        ticks.append((first, first + own.max() + 1, f"{rule}{count}{', GPU' if on_gpu else ''}"))
        first += own.max() + 1.6
    fig, axes = plots.panels(1, 1, (WIDTH, max(1.0, min(LANE * first, HEIGHT))))
    ax = axes[0, 0]
    for n, (top, bottom, _) in enumerate(ticks):
        if n % 2 == 0:
            ax.axhspan(top - 0.8, bottom - 0.2, color="#F2F4F6", zorder=0)
    left = begin.copy()
    for kind, colour in KINDS.items():
        seconds = np.array([record["seconds_by"][kind] for record in records]).clip(0)
        label = f"{kind} ({duration(seconds.sum())})"
        ax.barh(row, seconds / UNITS[unit], 0.84, left / UNITS[unit], color=colour, linewidth=0, label=label)
        left += seconds
    for cut in cuts:
        ax.axvline(cut.at / UNITS[unit], color=plots.LIMIT, lw=0.9, ls=(0, (4, 2)))
        where = {"ha": "center", "va": "bottom", "size": 7, "color": plots.LIMIT}
        ax.text(cut.at / UNITS[unit], 1, duration(cut.seconds), transform=ax.get_xaxis_transform(), **where)
    ax.set_yticks([(top + bottom - 1) / 2 for top, bottom, _ in ticks], [name for *_, name in ticks], size=7)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(first - 0.8, -0.8)
    ax.set_xlim(0, span / UNITS[unit])
    ax.set_xlabel(f"time ({unit})")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def duration(seconds: float) -> str:
    """A time in the largest unit with a value of at least one: 95 s is 1.6 min."""
    unit = next(name for name, size in UNITS.items() if seconds >= size or name == "s")
    return f"{seconds / UNITS[unit]:.3g} {unit}"


def needs(job: Job) -> Need:
    """One line per job."""
    return Need(PYTHON + 60 * MB + 50 * KB * job.n_samples, 30 + 0.02 * job.n_samples, 20 * MB)


def tells(run: Finished) -> Iterator[Part]:
    """The table of jobs and the sentence of the timeline."""
    job = run.one("runs")
    table = facts.tsv(job.table)
    if table.empty:
        return
    longest = table.loc[table["seconds"].idxmax()]
    named = f"{longest['rule']}{' (' + longest['wildcards'] + ')' if longest['wildcards'] else ''}"
    said = f"{count(len(table), 'job')} took {duration(table['seconds'].sum())} together; the longest, {named}, took "
    said += f"{duration(longest['seconds'])}, and the most memory was {table['peak_rss_mb'].max() / 1000:.2g} GB."
    yield Numbers(job.timeline, said)
    yield Table(job.table, "Jobs", said, "Runs", columns=JOBS_TOLD)


def main(snakemake: Any) -> None:
    """Read the records, write `runs.tsv`, `notices.tsv` and `runs.png`."""
    records = read_records(snakemake.params.records)
    found = notices(records, snakemake.params.versions)
    write_tsv(pd.DataFrame(found, columns=["rule", "wildcards", "notice"]), snakemake.output.notices)
    stage.log.info("%d of %d jobs left a record", len(records), len(snakemake.params.records))
    write_tsv(run_table(records), snakemake.output.table)
    plots.save(draw(records), snakemake.output.timeline)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
