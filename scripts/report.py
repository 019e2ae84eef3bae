"""Write the page of the run: what was run, what a human must look at, and every figure and table; one file."""

from lib.start import run

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from lib.report import facts, page, pictures
from lib.report.page import RUNS
from lib.report.parts import Column, Done, Finding, Finished, Mark, Numbers, Paragraph, Part, Table
from lib.report.words import count
from lib.run import stage
from lib.run.models import declared
from lib.run.notices import read_records
from lib.run.resources import MB, PYTHON, Job, Need
from lib.store.files import replacing

TITLES = ("Methods", "Config", "Samples")  # of the chapters of every page; then come the runs


def parts_of(run: Finished) -> Iterator[Part]:
    """What the scripts of the run's jobs tell, each once, in the order of the jobs."""
    for script in dict.fromkeys(job.script for job in run.jobs):
        tells = declared(script, "tells")
        if tells is not None:
            yield from tells(run)


def versions(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The versions of the packages that the jobs ran with, several of a package if jobs ran with several."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        of_job = record["versions"] | record.get("gpu_versions", {}) | {"Python": record["python"]}
        for name, version in of_job.items():
            if version:
                found.setdefault(name, {})[version] = None
    return {name: " and ".join(several) for name, several in sorted(found.items())}


def when(records: Sequence[Mapping[str, Any]]) -> str:
    """When the jobs ran, in UTC: the first start and the last end."""
    if not records:
        return "at a time that no run record tells"
    first = datetime.fromtimestamp(min(record["started"] for record in records), UTC)
    last = datetime.fromtimestamp(max(record["ended"] for record in records), UTC)
    end = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%d %B %Y, %H:%M}"
    return f"{first:%d %B %Y, %H:%M} to {end} UTC".lstrip("0")


def where(records: Iterable[Mapping[str, Any]]) -> str:
    """The devices that the jobs ran on: "CPU", or the cards."""
    cards = dict.fromkeys(record.get("card", "") for record in records if record["device"] == "gpu")
    names = list(dict.fromkeys(name.partition(" (")[0] or "GPU" for name in cards))
    return ", ".join(names) or "CPU"


def untold(run: Finished, told: Iterable[Table]) -> Iterator[Table]:
    """The marked tables that no stage tells of, in the chapters of their categories; the notices have their place."""
    known = {run.one("runs").notices, *(table.path for table in told)}
    for mark in run.marks:
        if mark.path.endswith(".tsv") and mark.path not in known:
            yield Table(mark.path, page.title_of(mark.labels), "", mark.chapter, mark.section)


def needs(job: Job) -> Need:
    """The pictures, some columns of the cells, and the jobs."""
    mem = PYTHON + 340 * MB + 0.2 * MB * job.n_samples + 150 * job.n_kept
    return Need(mem, 10 + 0.05 * job.n_samples + 1e-5 * job.n_kept, 15 * MB)


def main(snakemake: Any) -> None:
    """Ask the stages, gather figures and tables, write the page."""
    params, output = snakemake.params, Path(snakemake.output.report)
    config, records = params.config, read_records(params.records)
    marks = [Mark(**mark) for mark in params.marks]
    on_gpu = {record["rule"] for record in records if record["device"] == "gpu"}
    run = Finished(config, [Done(**job) for job in params.jobs], marks, versions(records), on_gpu)
    parts = list(parts_of(run))
    told = {kind: [part for part in parts if isinstance(part, kind)] for kind in (Finding, Numbers, Paragraph, Table)}
    findings = sorted(told[Finding], key=lambda finding: -finding.beyond)
    numbers = {part.figure: part.said for part in told[Numbers]}

    book = page.Book(output.parent, config)
    book.add_figures([mark for mark in marks if mark.path.endswith(".png")], numbers)
    for part in told[Paragraph]:
        book.section(part.chapter, part.section).paragraphs.append(page.sentence(part.said))
    for table in [*told[Table], *untold(run, told[Table])]:
        book.add_table(table)
    book.add_pictures(snakemake.threads, [finding.figure for finding in findings])
    methods, references = page.methods_of(parts)
    sheet = pd.DataFrame(params.sheet)
    as_given = {name: Column(name, text=True) for name in sheet}
    n_samples = count(len(sheet), "sample")
    samples = Table(config["samples"], "The sample sheet", f"{n_samples}.", "Samples", columns=as_given)
    wanted = config["report"]["sections"]
    chapters, known = book.ordered(wanted), [*book.chapters, *TITLES]
    if unknown := [name for name in wanted or [] if name not in known]:
        stage.notice("`report: sections` names %s, but there are %s", ", ".join(unknown), ", ".join(known))
    text = page.rendered(
        title=config["report"]["title"] or f"Atlas of {n_samples}",
        logo=pictures.logo(snakemake.input.logo) if snakemake.input.logo else "",
        version=params.version,
        when=when(records),
        where=where(records),
        numbers=facts.numbers(run, len(sheet)),
        n_findings=len(findings),
        findings=page.folded(findings),
        links=book.links,
        notices=facts.notices(run),
        explorer=book.beside(snakemake.input.explorer[0]) if snakemake.input.explorer else "",
        chapters=[chapter for chapter in chapters if chapter.title != RUNS],
        runs=next((chapter for chapter in chapters if chapter.title == RUNS), None),
        shown=[name for name in TITLES if wanted is None or name in wanted],
        methods=methods,
        references=references,
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        samples=book.sheet(samples, sheet.to_csv(sep="\t", index=False).encode()),
        versions=run.versions,
    )
    with replacing(output) as partial:
        partial.write_text(text, encoding="utf-8")
    stage.log.info("%d findings, %d figures, %.1f MB", len(findings), len(marks), len(text) / MB)
    print(f"Report: {output}", file=sys.stderr)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
