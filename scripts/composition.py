"""Compare the shares of groups between samples: how many cells of each sample are in each group, and who differs.

The test of a contrast and its source are in `lib.methods.de`: samples are compared, not cells. Shares of a sample sum
up to 1, so that a group that grows lets the others shrink.
"""

from lib.start import run

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from lib.inputs import contrasts
from lib.methods import de
from lib.report import differences as told
from lib.report.parts import Finished, Methods, Part
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import KB, MB, PYTHON, Job, Need
from lib.store.categories import as_categories
from lib.store.files import read_table, write_table, write_tsv

TESTS = ["contrast", "group", "n_samples_level", "n_samples_reference", "share_level", "share_reference"]
TESTS += ["logit_change", "scores", "pvals", "pvals_adj"]


def cells_by_sample(samples: pd.Series, groups: pd.Series) -> pd.DataFrame:
    """The number of cells of each sample in each group: samples x groups, both in their order."""
    samples, groups = as_categories(samples), as_categories(groups)
    counts = pd.crosstab(samples.to_numpy(), groups.to_numpy())
    return counts.reindex(index=list(samples.cat.categories), columns=list(groups.cat.categories), fill_value=0)


def tested(counts: pd.DataFrame, samples: pd.DataFrame, contrast: Mapping[str, Any]) -> pd.DataFrame:
    """The test of a contrast in each group that has cells of its samples.

    Parameters
    ----------
    counts
        See `cells_by_sample`.
    samples
        The contrast's columns of each sample.
    """
    mine = contrasts.compared(samples, contrast)
    counts = counts.loc[mine.index]
    counts = counts.loc[:, counts.sum() > 0]
    design = contrasts.design_of(mine, contrast)
    level = design.iloc[:, 1].to_numpy() > 0
    shares = counts.to_numpy() / counts.sum(axis=1).to_numpy()[:, None]
    found = pd.DataFrame(de.of_shares(counts.to_numpy(), design)).assign(
        contrast=contrast["name"], group=counts.columns
    )
    for side, of_side in (("level", level), ("reference", ~level)):
        found[f"n_samples_{side}"], found[f"share_{side}"] = int(of_side.sum()), shares[of_side].mean(0)
    return found.sort_values("pvals", kind="stable")[TESTS]


def long_table(counts: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """A line for each sample and group: `sample`, the columns of the contrasts, `group`, `n_cells`, `share`."""
    table = counts.rename_axis(index="sample", columns="group").stack().rename("n_cells").reset_index()
    table["share"] = table["n_cells"] / table.groupby("sample")["n_cells"].transform("sum")
    columns = [name for name in samples if name not in table]
    return table.join(samples[columns], on="sample")[["sample", *columns, "group", "n_cells", "share"]]


def read_samples(obs: str, key: str, given: list[Mapping[str, Any]]) -> pd.DataFrame:
    """The columns of all contrasts, of each sample.

    Raises
    ------
    UserError
        If contrasts are impossible; with the tables of counts.
    """
    columns = list(dict.fromkeys(name for contrast in given for name in contrasts.columns_of(contrast)))
    cells, problems = read_table(obs, list(dict.fromkeys([key, *columns]))), []
    for contrast in given:
        problems += [f"{contrast['name']}: {text}" for text in contrasts.problems_of(cells, key, contrast)]
    if problems:
        raise UserError(
            "`composition: contrasts` (null: those of `de`) are impossible on the kept cells:\n"
            + "\n".join(f"  - {text}" for text in problems)
        )
    return contrasts.samples_of(cells, key, columns)


def needs(job: Job) -> Need:
    """Some columns of the cells."""
    return Need(PYTHON + 90 * MB + 0.3 * KB * job.n_kept, seconds=20 + 2e-6 * job.n_kept, disk=2 * MB)


def tells(run: Finished) -> Iterator[Part]:
    """The tables, and which groups differ."""
    for job in run.of("composition"):
        yield from told.of_composition(run, job)
    if any(run.config["de"]) or run.config["composition"]["contrasts"]:
        yield Methods(
            "Shares of groups were tested between conditions by linear models of their logits in each sample, with "
            "variances moderated over the groups, and p-values adjusted by Benjamini and Hochberg.",
            ["propeller", "limma", "fdr"],
        )


def main(snakemake: Any) -> None:
    """Read the cells' samples and groups; write their numbers and shares, and the tests."""
    files, params, output = snakemake.input, snakemake.params, snakemake.output
    groups = read_table(files.grouping[0] if files.grouping else files.obs, [params.grouping])[params.grouping]
    samples = read_samples(files.obs, params.sample_key, params.contrasts)
    counts = cells_by_sample(read_table(files.obs, [params.sample_key])[params.sample_key], groups)
    if counts.empty:
        raise UserError(
            f"composition: no cell has both a group of {params.grouping} and a value of {params.sample_key}."
        )
    if empty := list(counts.index[counts.sum(axis=1) == 0]):
        stage.notice("%s: samples without cells in groups: %s", params.grouping, ", ".join(empty))
        counts = counts.drop(index=empty)
        samples = samples.drop(index=[name for name in empty if name in samples.index])
    found = []
    for contrast in params.contrasts:
        if problem := next(contrasts.sample_problems(samples, contrast), None):
            stage.notice("%s, %s: no test of shares: %s", contrast["name"], params.grouping, problem.partition("\n")[0])
        else:
            found.append(tested(counts, samples, contrast))
    tests = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=TESTS)
    table = long_table(counts, samples.reindex(counts.index))
    key = params.grouping.replace("/", "_")
    about = {"composition_params": {key: {"groupby": params.grouping, "sample_key": params.sample_key}}}
    write_table(plain(table), output.composition, slot=f"uns/composition/{key}", uns=about)
    write_table(plain(tests), output.tests, slot=f"uns/composition/{key}_tests")
    write_tsv(table, output.table)
    write_tsv(tests, output.tests_table)
    stage.log.info("%d samples, %d groups, %d tests", *counts.shape, len(tests))


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with text in all columns that are not of numbers, which every version of AnnData reads."""
    other = [name for name in table if not pd.api.types.is_numeric_dtype(table[name].dtype)]
    text = {name: np.where(table[name].isna(), "", table[name].astype(str)).astype(object) for name in other}
    return table.assign(**text).set_axis(table.index.astype(str), axis=0)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
