"""Find the gene sets in which the genes that differ between two conditions are enriched, in each group.

The methods, ora and gsea, and their sources are in `lib.methods.enrichment`. The profile of a group are the scores of
its test over all genes tested there. ora looks at either end of it, the genes that rise (`up`) and that fall (`down`).
"""

from lib.start import run

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from lib.inputs.genesets import Matched, Sets, match, n_sets, read_collections
from lib.methods import enrichment
from lib.report import differences as told
from lib.report.parts import Finished, Methods, Part
from lib.report.words import listed
from lib.run import stage
from lib.run.progress import Pace
from lib.run.resources import MB, N_TESTED, PYTHON, Job, Need
from lib.store.files import read_table, write_tsv

COLUMNS = ["group", "direction", "collection", "method", "source", "score", "pval", "padj", "n_found", "genes"]


def of_tested(given: Mapping[str, Sets], genes: pd.DataFrame, tmin: int) -> dict[str, Matched]:
    """The collections (`read_collections`) in the genes that were tested; those of too few of them are left out."""
    matched = {name: match(sets, genes, name) for name, sets in given.items()}
    return {name: one.of(one.n_found >= tmin) for name, one in matched.items() if max(one.n_found) >= tmin}


def enriched(
    ranking: pd.DataFrame, genes: pd.DataFrame, collections: Mapping[str, Matched], methods: list[str]
) -> pd.DataFrame:
    """The enrichment in one group.

    Parameters
    ----------
    ranking
        `group`, `rank`, `names`, `scores` of the group, by falling score.
    genes
        The genes tested in it, with `gene_symbols` and `gene_ids`.
    collections
        See `of_tested`.
    methods
        ora and gsea.
    """
    sides = {"up": ranking, "down": ranking.iloc[::-1].assign(scores=-ranking["scores"].to_numpy()[::-1])}
    found = []
    for method in methods:
        moved = enrichment.permutations(len(genes)) if method == "gsea" else None
        for name, matched in collections.items():
            for direction, side in sides.items() if method == "ora" else [("both", ranking)]:
                table = enrichment.of_table(method, side, genes.index, matched, moved)
                found.append(table.assign(method=method, collection=name, direction=direction))
    return pd.concat(found)[COLUMNS].sort_values(["method", "pval"], kind="stable") if found else pd.DataFrame()


def needs(job: Job) -> Need:
    """The table of all groups, and for gsea the random sets."""
    sets, methods = n_sets(job.config["gene_sets"]), job.config["scores"]["marker_methods"]
    gsea, tested = 5 + 0.01 * job.n_groups * sets if "gsea" in methods else 0, min(job.n_vars, N_TESTED)
    drawn = 8000 * tested if "gsea" in methods else 0
    mem = PYTHON + 100 * MB + 150 * job.n_groups * tested + drawn + 2e6 * job.threads
    return Need(mem, 15 + 2e-3 * job.n_groups * sets + gsea, 2 * MB + 400 * job.n_groups * sets)


def tells(run: Finished) -> Iterator[Part]:
    """The tables, and the sets found."""
    for job in run.of("de_enrichment"):
        yield told.of_enrichment(run, job)
    if run.of("de_enrichment"):
        methods = " and ".join(run.config["scores"]["marker_methods"])
        yield Methods(
            f"Gene sets were sought among the genes that differ, ranked by their test, by {methods}.", ["decoupler"]
        )


def main(snakemake: Any) -> None:
    """Read the tests of a contrast and the gene sets; write a line for each group, method and set."""
    files, params = snakemake.input, snakemake.params
    ranking = read_table(files.de, ["group", "rank", "names", "scores"])
    ranking = ranking.assign(group=ranking["group"].astype(str))
    genes, given = read_table(files.genes), read_collections(params.gene_sets)
    parts, pace = [], Pace("enrichment", ranking["group"].nunique(), "groups")
    methods, tmin, lacking = params.scores["marker_methods"], params.scores["tmin"], defaultdict(list)
    for group, of_group in ranking.groupby("group", sort=False):
        tested = genes[genes.index.isin(of_group["names"])]
        collections = of_tested(given, tested, tmin)
        for name in given.keys() - collections.keys():
            lacking[name].append(group)
        parts.append(enriched(of_group, tested, collections, methods))
        pace.step()
    pace.end()
    for name, groups in sorted(lacking.items()):
        said = "gene_sets: %s: no set has %d of the genes that were tested in %s"
        stage.notice(said, name, tmin, listed(groups))
    table = pd.concat(parts) if any(map(len, parts)) else pd.DataFrame(columns=COLUMNS)
    write_tsv(table, snakemake.output.enrichment)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
