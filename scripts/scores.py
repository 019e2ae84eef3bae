"""Score gene sets in each cell, on its log-normalised values in all kept genes, in one pass over the counts.

The methods and their sources are in `lib.methods.enrichment`. score_genes takes a pass more, for the means of the genes
among which control genes are drawn. Scores are float32, as are their p-values, adjusted over the sets of a cell.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import pandas as pd
from lib.inputs.genesets import n_sets, read_collections
from lib.methods import enrichment
from lib.methods.scaling import target_of
from lib.report import sets as told_sets
from lib.report.parts import Finished, Methods, Part
from lib.report.words import count, listed
from lib.run import device as devices
from lib.run.progress import timed
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import Cohort
from lib.store.files import read_table, write_table


def slot(what: str, method: str, collection: str, first: str) -> str:
    """The place in the atlas: decoupler's key, and for further collections this key and their name."""
    key = f"{what}_{method.removeprefix('score_')}"
    return f"frame/{key}" if collection == first else f"frame/{key}_{collection}"


def tells(run: Finished) -> Iterator[Part]:
    """The sets of which the cohort has few genes, and how cells were scored."""
    found, options = told_sets.collections(run), run.config["scores"]
    for name, matched in found.items():
        yield from told_sets.of_few(name, matched, options["tmin"], run.figure(name, options["methods"][0]))
    numbers = listed(f"{count(len(matched.names), 'set')} of `{name}`" for name, matched in found.items())
    methods = listed(options["methods"], 9)
    yield Methods(
        f"Gene sets ({numbers}) were scored in each cell, on log-normalised values in all kept genes, by {methods}.",
        told_sets.cited(options["methods"]),
    )


def needs(job: Job) -> Need:
    """Products of a chunk, and all scores and p-values, twice."""
    values = job.n_kept * n_sets(job.config["gene_sets"]) * len(job.config["scores"]["methods"])
    tables = job.places + 20 * values + 0.5 * KB * job.n_kept
    memory = job.pass_memory(520 * MB, 120 * MB + tables, gpu_chunk=100 * MB)
    seconds = 10 + 0.5e-6 * job.nnz + 1e-6 * values
    return Need(**memory, seconds=seconds, disk=MB + 8 * values, vram=job.claim(3100 * MB, 200 * MB))


def main(snakemake: Any) -> None:
    """Read the cohort's counts and the gene sets, write a table of scores, and one of p-values, for each method."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    totals = read_table(files.obs, ["kept_counts"])["kept_counts"]
    counts = Cohort(files.counts, files.cells, files.genes, params.gene_key, device, obs=files.obs)
    target_sum = target_of(totals.to_numpy(), params.target_sum)
    given = read_collections(params.gene_sets)
    tasks = enrichment.tasks_of(given, counts.genes, counts, totals.to_numpy(), target_sum, params.scores, params.seed)
    found = enrichment.score_cells(counts, totals.to_numpy(), target_sum, tasks)
    first = tasks[0].collection
    padj = iter(snakemake.output.padj)
    with timed("tables"):
        for task, (scores, adjusted), path in zip(tasks, found, snakemake.output.scores, strict=True):
            uns = {"params": {"method": task.method, "collection": task.collection}}
            for what, values in (("score", scores), ("padj", adjusted)):
                if values is None:
                    continue
                place = slot(what, task.method, task.collection, first)
                table = pd.DataFrame(values, totals.index, task.weights.names)
                about = {place.partition("/")[2]: uns} if what == "score" else {}
                write_table(table, path if what == "score" else next(padj), "cohort", place, about)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
