"""Draw the markers of each group as a volcano: change of expression against the adjusted p-value.

Left and right of a group's panel are the genes that it expresses less and more than its reference. Changes are cut at
the largest one of a gene that a twentieth of the cells on either side express: below, a ratio of two small means says
little.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

from lib.figures import plots, volcanoes
from lib.figures.words import SIGNIFICANT
from lib.methods.markers import read_top
from lib.report import markers as told_markers
from lib.report.parts import Finished, Numbers, Part
from lib.report.words import count
from lib.run.resources import MB, PYTHON, Job, Need
from lib.store.files import read_table


def tells(run: Finished) -> Iterator[Part]:
    """How many genes each group expresses more."""
    for job in run.of("figures_volcano"):
        ranking = told_markers.ranking(run, job.wildcards["grouping"], job.wildcards["method"])
        table = read_table(ranking, ["group", "logfoldchanges", "pvals_adj"])
        more = (table["pvals_adj"] < SIGNIFICANT) & (table["logfoldchanges"] > 0)
        for path in job.files("volcano"):
            yield Numbers(path, more_told(more.groupby(table["group"], sort=False)))


def more_told(groups: Any) -> str:
    """A sentence on the numbers of genes that groups express more."""
    found, tested = groups.sum(), groups.size()
    if found.empty:
        return "There are fewer than 2 groups to compare."
    of = f"of {count(tested.max(), 'gene')} have an adjusted p-value below {SIGNIFICANT} and are expressed more"
    ends = [f"{count(found[name])} ({name})" for name in (found.idxmin(), found.idxmax())]
    return f"From {ends[0]} to {ends[1]} {of}." if len(found) > 1 else f"{ends[0]} {of}."


def needs(job: Job) -> Need:
    """The table of all genes of all groups, and an image."""
    return Need(PYTHON + 110 * MB + 260 * job.n_groups * job.n_vars, 30 + 1e-5 * job.n_groups * job.n_vars, 10 * MB)


def main(snakemake: Any) -> None:
    """Draw the tests of a grouping's markers."""
    inputs, output = snakemake.input, snakemake.output
    columns = ["group", "names", "logfoldchanges", "pvals_adj", "pct_nz_group", "pct_nz_reference"]
    table = read_table(inputs.ranking, columns)
    if table.empty:
        why = f"{snakemake.params.grouping}: fewer than two groups to compare, hence no markers."
        plots.save(plots.nothing(why), output.volcano)
        return
    plots.save(volcanoes.volcanoes(table, read_top(inputs.shown)), output.volcano)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
