"""Find the gene sets in which the markers of each group of cells are enriched.

The methods, ora and gsea, and their sources are in `lib.methods.enrichment`. The profile of a group are the scores of
its markers, over all genes that were tested.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import pandas as pd
from lib.inputs.genesets import matched_in, n_sets, read_collections
from lib.methods import enrichment
from lib.report import facts
from lib.report import sets as told_sets
from lib.report.parts import Finished, Methods, Paragraph, Part, Table
from lib.report.words import listed
from lib.run.progress import timed
from lib.run.resources import MB, PYTHON, Job, Need
from lib.store.files import read_table, write_tsv

COLUMNS = ["group", "collection", "method", "source", "score", "pval", "padj", "n_found", "genes"]


def tells(run: Finished) -> Iterator[Part]:
    """The tables, as far as they are not too long to be read, and how they were made."""
    for job in run.of("enrichment"):
        grouping, table = job.wildcards["grouping"], facts.tsv(job.enrichment)
        said = told_sets.of_enrichment(table, grouping)
        if len(table) > told_sets.MOST_ROWS:
            yield Paragraph(f"{said} The table is `{job.enrichment}`.", told_sets.CHAPTER, told_sets.ENRICHMENT)
        else:
            title = f"Sets in which the markers of {grouping} are enriched"
            yield Table(job.enrichment, title, said, told_sets.CHAPTER, told_sets.ENRICHMENT, told_sets.ENRICHED)
    methods = run.config["scores"]["marker_methods"]
    yield Methods(
        f"Sets in which the markers of each group are enriched were sought by {listed(methods)}, with p-values "
        "adjusted by Benjamini and Hochberg.",
        [*told_sets.cited(methods), "fdr"],
    )


def needs(job: Job) -> Need:
    """The markers of all groups, and for gsea the random sets."""
    sets, methods = n_sets(job.config["gene_sets"]), job.config["scores"]["marker_methods"]
    gsea = 5 + 0.015 * job.n_groups * sets if "gsea" in methods else 0
    drawn = 8000 * job.n_vars if "gsea" in methods else 0
    mem = PYTHON + 120 * MB + 150 * job.n_groups * job.n_vars + drawn + 2e6 * job.threads
    return Need(mem, 10 + 1e-3 * job.n_groups * sets + gsea, 2 * MB + 400 * job.n_groups * sets)


def main(snakemake: Any) -> None:
    """Read a ranking and the gene sets; write a line for each group, method and set, the smallest p-values first."""
    files, params = snakemake.input, snakemake.params
    ranking = read_table(files.ranking, ["group", "rank", "names", "scores"])
    genes = read_table(files.genes)
    genes = genes[genes["kept"]]
    genes = genes[genes.index.isin(ranking["names"])] if len(ranking) else genes
    collections, _ = matched_in(read_collections(params.gene_sets), genes, params.scores["tmin"])
    found = []
    for method in params.scores["marker_methods"]:
        moved = enrichment.permutations(len(genes)) if method == "gsea" else None
        for name, matched in collections.items():
            with timed(f"{method} of {name}"):
                table = enrichment.of_table(method, ranking, genes.index, matched, moved)
            found.append(table.assign(method=method, collection=name))
    table = pd.concat(found)[COLUMNS]
    place = {name: i for i, name in enumerate(ranking["group"].unique())}
    table = table.assign(place=table["group"].map(place)).sort_values(["method", "place", "pval"], kind="stable")
    write_tsv(table.drop(columns="place"), snakemake.output.enrichment)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
