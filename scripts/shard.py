"""Run one pass of a stage over one shard of the cells, for the stages that have passes: hvg, pca, markers_ttest.

The script of the stage defines the pass (`PASSES`).
"""

from lib.start import run

from importlib import import_module
from types import SimpleNamespace
from typing import Any


def main(snakemake: Any) -> None:
    """Read the stage's input for one shard, run the pass and write its arrays."""
    name_of_stage, *_, name = snakemake.params.passed.split("/")
    job = SimpleNamespace(
        input=snakemake.input,
        output=snakemake.output,
        params=SimpleNamespace(**snakemake.params.options),
        wildcards=snakemake.wildcards,
        resources=snakemake.resources,
    )
    import_module(name_of_stage).PASSES.over_shard(job, name, snakemake.wildcards.scatteritem)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
