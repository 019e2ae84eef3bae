"""Score the phases of the cell cycle in each cell, and name its phase, in two passes over the counts.

S_score and G2M_score are scanpy.tl.score_genes of the genes of Tirosh et al. (Science 352, 189, 2016), with as many
control genes from each bin as the shorter list has genes. The phase is G1 if both are negative, else G2M if G2M_score
is larger, else S. Source: scanpy.tl.score_genes_cell_cycle.
"""

from lib.start import run

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from lib.inputs.genesets import match, phase_genes
from lib.methods import enrichment
from lib.methods.enrichment import Task, Weights
from lib.methods.scaling import target_of
from lib.report import facts
from lib.report.parts import Finished, Methods, Part
from lib.report.words import listed, percent
from lib.run import device as devices
from lib.run import stage
from lib.run.errors import UserError
from lib.run.resources import KB, MB, Job, Need
from lib.store.cohort import Cohort
from lib.store.files import read_table, write_table

LEAST = 5  # genes of a phase


def phases(scores: pd.DataFrame) -> pd.Categorical:
    """The phase of each cell by S_score and G2M_score."""
    S, G2M = (scores[name].to_numpy() for name in ("S_score", "G2M_score"))
    found = np.where((S < 0) & (G2M < 0), "G1", np.where(G2M > S, "G2M", "S"))
    return pd.Categorical(found, categories=["G1", "S", "G2M"])


def tells(run: Finished) -> Iterator[Part]:
    """How many cells are in each phase."""
    shares = facts.grouping(run, "phase").value_counts(normalize=True, sort=False)
    said = listed(f"{percent(share)} of the cells are in {phase}" for phase, share in shares.items())
    yield Methods(
        f"Phases of the cell cycle were scored by the genes of Tirosh et al. ({run.config['scores']['cell_cycle']}) as "
        f"scanpy does: {said}.",
        ["tirosh", "scanpy", "seurat"],
    )


def needs(job: Job) -> Need:
    """A chunk, and two scores of each cell."""
    memory = job.pass_memory(420 * MB, 60 * MB + job.places + 0.5 * KB * job.n_kept, gpu_chunk=100 * MB)
    return Need(**memory, seconds=10 + 0.5e-6 * job.nnz, disk=24 * job.n_kept, vram=job.claim(2300 * MB))


def main(snakemake: Any) -> None:
    """Read the cohort's counts, write the scores and the phase of each cell."""
    files, params, device = snakemake.input, snakemake.params, devices.of(snakemake)
    totals = read_table(files.obs, ["kept_counts"])["kept_counts"]
    counts = Cohort(files.counts, files.cells, files.genes, params.gene_key, device, obs=files.obs)
    target_sum = target_of(totals.to_numpy(), params.target_sum)
    where = f"scores: cell_cycle: {params.organism}"
    matched = match(phase_genes(params.organism), counts.genes, where)
    n_found = np.bincount(matched.columns, minlength=2)
    stage.log.info("%d genes of S, %d of G2M", *n_found)
    if n_found.min() < LEAST:
        raise UserError(
            f"{where}: {n_found[0]} of the genes of S and {n_found[1]} of those of G2M passed the filters; {LEAST} of "
            "each are needed. Set the key to none."
        )
    means = enrichment.gene_means(counts, totals.to_numpy(), target_sum)
    contrast, _ = enrichment.contrasts(matched, means, params.seed, int(n_found.min()))
    task = Task("cell_cycle", "score_genes", Weights.of(contrast, counts.n_vars, device))
    ((scores, _),) = enrichment.score_cells(counts, totals.to_numpy(), target_sum, [task])
    table = pd.DataFrame(scores, totals.index, ["S_score", "G2M_score"])
    write_table(table.assign(phase=phases(table)), snakemake.output.cell_cycle, "cohort", "obs")


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
