"""Test each gene between two conditions, in each group, on pseudobulks: samples are compared, not cells.

The tests and their sources are in `lib.methods.de`. In a group those samples are compared that have `min_cells` of its
cells; a group of which a level has fewer than two such samples is left out, and told. Groups are tested in parallel
processes. Beside each p-value stands that of a test on cells, which takes the cells of a patient for independent.
"""

from lib.start import run

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lib.inputs import contrasts
from lib.methods import de
from lib.methods.pseudobulk import Pseudobulk, expressed
from lib.report import differences as told
from lib.report.parts import Finished, Methods, Part
from lib.run import stage
from lib.run.errors import UserError
from lib.run.forked import run_all
from lib.run.progress import Pace
from lib.run.resources import MB, N_TESTED, PYTHON, Job, Need
from lib.store.files import read_table, write_table, write_tsv
from lib.store.names import file_names

SAMPLES = ("n_samples_level", "n_samples_reference")
COLUMNS = [
    *(
        "group",
        "rank",
        "names",
        "gene_symbols",
        "scores",
        "base_mean",
        "logfoldchanges",
        "lfc_se",
        "pvals",
        "pvals_adj",
    ),
    *("pct_nz_level", "pct_nz_reference", "pvals_adj_cells"),
]
FIRST = 50  # genes of a group in the table of the report


@dataclass(frozen=True)
class Group:
    """A group's part of a contrast.

    Attributes
    ----------
    name
        The group.
    rows
        Mask of its profiles that are compared.
    design
        A line for each of them.
    """

    name: str
    rows: np.ndarray
    design: pd.DataFrame

    @property
    def level(self) -> np.ndarray:
        """Mask of the compared profiles that are of the level; the others are of the reference."""
        return self.design.iloc[:, 1].to_numpy() > 0


def groups_of(
    bulk: Pseudobulk, samples: pd.DataFrame, contrast: Mapping[str, Any]
) -> Iterator[Group | tuple[str, str]]:
    """The groups that can be tested; and of the others the name, and why not.

    Parameters
    ----------
    samples
        The contrast's columns of each sample.
    """
    of_profile = bulk.obs["sample"].astype(str)
    for name in bulk.groups:
        mine = ((bulk.obs["group"] == name) & ~bulk.obs["few_cells"]).to_numpy()
        here = contrasts.compared(samples.loc[of_profile[mine]], contrast)
        problem = next(contrasts.sample_problems(samples.loc[of_profile[mine]], contrast), None)
        if problem:
            yield name, f"among the samples with enough of its cells, {problem.splitlines()[0]}"
        else:
            yield Group(name, mine & of_profile.isin(here.index).to_numpy(), contrasts.design_of(here, contrast))


def tested(bulk: Pseudobulk, group: Group) -> pd.DataFrame | str:
    """The table of a group, all tested genes by falling score; or why there is none."""
    counts, level = bulk.counts(group.rows), group.level
    mine = expressed(counts, min(level.sum(), (~level).sum()))
    if mine.sum() < de.FEWEST_GENES:
        return f"{mine.sum()} genes have enough counts to be tested"
    genes = bulk.var[mine]
    found = de.deseq(counts[:, mine], group.design, genes.index)
    n_cells = bulk.obs["n_cells"].to_numpy()[group.rows]
    _, pvals = de.of_cells(*(bulk.layer(name, group.rows)[:, mine] for name in ("mean", "var")), n_cells, level)
    share = bulk.layer("pct_nz", group.rows)[:, mine]
    for side, of_side in (("level", level), ("reference", ~level)):
        found[f"pct_nz_{side}"] = np.average(share[of_side], axis=0, weights=n_cells[of_side])
    found = found.assign(
        pvals_adj_cells=de.adjusted(pvals), gene_symbols=genes["gene_symbols"].to_numpy(), group=group.name
    )
    found = found.rename_axis("names").reset_index().fillna({"scores": 0})
    found = found.sort_values("scores", ascending=False, kind="stable", ignore_index=True)
    return found.assign(rank=np.arange(1, len(found) + 1))[COLUMNS]


def all_tested(bulk: Pseudobulk, groups: Sequence[Group], processes: int) -> list[pd.DataFrame | str]:
    """`tested` for each group, in this many forked processes; progress is logged group by group."""
    if min(processes, len(groups)) > 1:
        import pydeseq2.dds  # noqa: F401 - once, before the forks

    pace = Pace("tests", len(groups), "groups")
    found = run_all([partial(tested, bulk, group) for group in groups], processes, pace.step)
    pace.end()
    return found


def counted(table: pd.DataFrame, groups: Sequence[Group]) -> pd.DataFrame:
    """The overview: a line for each tested group, its samples, and the genes found; by tests of cells, too."""
    rows = []
    for group in groups:
        mine = table[table["group"] == group.name]
        found = mine[mine["pvals_adj"] < de.SIGNIFICANT]
        rows.append(
            {
                "group": group.name,
                SAMPLES[0]: int(group.level.sum()),
                SAMPLES[1]: int((~group.level).sum()),
                "n_genes": len(mine),
                "n_up": int((found["logfoldchanges"] > 0).sum()),
                "n_down": int((found["logfoldchanges"] < 0).sum()),
                "n_cell_tests": int((mine["pvals_adj_cells"] < de.SIGNIFICANT).sum()),
            }
        )
    return pd.DataFrame(rows)


def samples_of(obs: str, key: str, contrast: Mapping[str, Any]) -> pd.DataFrame:
    """The contrast's columns of each sample, by the cells' table.

    Raises
    ------
    UserError
        If the contrast is impossible; with the table of counts.
    """
    columns = contrasts.columns_of(contrast)
    cells = read_table(obs, list(dict.fromkeys([key, *columns])))
    problems = list(contrasts.problems_of(cells, key, contrast))
    if problems:
        listed = "\n".join(f"  - {text}" for text in problems)
        raise UserError(f"`de`: {contrast['name']} is impossible on the kept cells:\n{listed}")
    return contrasts.samples_of(cells, key, columns)


def cells_of(bulk: Pseudobulk, samples: pd.DataFrame, contrast: Mapping[str, Any]) -> str:
    """A table of the cells of each compared sample in each group, for a message."""
    mine = contrasts.compared(samples, contrast).index
    obs = bulk.obs[bulk.obs["sample"].astype(str).isin(mine)]
    counts = obs.pivot_table(
        index="sample", columns="group", values="n_cells", observed=True, aggfunc="sum", fill_value=0
    )
    return contrasts.drawn(counts.astype(int), "sample")


def needs(job: Job) -> Need:
    """The profiles of a group in each process, and PyDESeq2's tables of them; all groups' tables."""
    samples, genes = max(job.n_samples, job.n_batches), min(job.n_vars, 2 * N_TESTED)
    each = 40 * samples * job.n_vars + 200 * samples * genes + 60 * MB
    mem = PYTHON + 250 * MB + job.threads * each + 400 * job.n_groups * genes
    seconds = 20 + 0.4e-3 * job.n_groups * genes * max(1, samples / 24)
    return Need(mem, seconds, 300 * job.n_groups * genes)


def tells(run: Finished) -> Iterator[Part]:
    """The tables, their numbers, and contrasts of few samples."""
    for job in run.of("de"):
        yield from told.of_de(run, job)
    if run.of("de"):
        version = run.package("pydeseq2", "de")
        yield Methods(
            f"Genes were tested between conditions on pseudobulks by {version} (Wald's test; p-values adjusted by "
            "Benjamini and Hochberg after independent filtering), in genes with at least 10 counts, per the median "
            "library, in as many samples as the smaller level has.",
            ["pydeseq2", "deseq2", "filterbyexpr", "fdr"],
        )


def main(snakemake: Any) -> None:
    """Read the pseudobulks; write the table of all groups, one for each group, their first genes, and the overview."""
    files, params, output = snakemake.input, snakemake.params, snakemake.output
    contrast, bulk = params.contrast, Pseudobulk.open(files.pseudobulk)
    samples = samples_of(files.obs, params.sample_key, contrast)
    found = list(groups_of(bulk, samples, contrast))
    groups = [group for group in found if isinstance(group, Group)]
    left_out = dict(group for group in found if not isinstance(group, Group))
    parts = all_tested(bulk, groups, snakemake.threads)
    left_out |= {group.name: part for group, part in zip(groups, parts, strict=True) if isinstance(part, str)}
    groups = [group for group, part in zip(groups, parts, strict=True) if not isinstance(part, str)]
    if not groups:
        raise UserError(
            f"`de`: {contrast['name']}: no group of {params.grouping} (`pseudobulk: groupings`) can be tested, with at "
            f"least {contrasts.FEWEST} samples of each level of {params.min_cells} cells (`pseudobulk: min_cells`):\n"
            f"{cells_of(bulk, samples, contrast)}\n"
            + "\n".join(f"  - {name}: {why}" for name, why in list(left_out.items())[: contrasts.SHOWN])
        )
    for name, why in left_out.items():
        stage.notice("%s, %s: group %s is not tested: %s", contrast["name"], params.grouping, name, why)
    table = pd.concat([part for part in parts if not isinstance(part, str)], ignore_index=True)
    told_in_uns = {name: contrast[name] for name in ("column", "level", "reference", "covariates")}
    key = f"{contrast['name']}_{params.grouping}".replace("/", "_")
    about = {"de_params": {key: {**told_in_uns, "groupby": params.grouping, "method": "pydeseq2"}}}
    write_table(table, output.de, slot=f"uns/de/{key}", uns=about)
    write_tsv(counted(table, groups), output.overview)
    strongest = table.assign(strength=-table["scores"].abs()).sort_values("strength", kind="stable")
    first = strongest.groupby("group", sort=False).head(FIRST).sort_index()
    write_tsv(first, output.top)
    folder = Path(output.tables)
    folder.mkdir(parents=True, exist_ok=True)
    tables = dict(list(table.groupby("group", sort=False)))
    for name, path in file_names(tables).items():
        write_tsv(tables[name], folder / f"{path}.tsv")
    stage.log.info("%d groups, %d genes found", len(groups), (table["pvals_adj"] < de.SIGNIFICANT).sum())


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
