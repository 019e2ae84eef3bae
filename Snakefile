# Somersault turns a cohort of single-cell count files into an atlas and a report.
# Table of contents: rules/common.smk reads config and sheet; the other files hold the steps in their order.

import os

from snakemake.utils import min_version

min_version("9.14")


if os.path.exists("config/config.yaml"):

    configfile: "config/config.yaml"

else:

    configfile: workflow.source_path("config/config.yaml")


include: "rules/common.smk"
include: "rules/passes.smk"
include: "rules/whole.smk"
include: "rules/demo.smk"
include: "rules/samples.smk"
include: "rules/shards.smk"
include: "rules/cohort.smk"
include: "rules/embeddings.smk"
include: "rules/clusters.smk"
include: "rules/markers.smk"
include: "rules/scores.smk"
include: "rules/annotation.smk"
include: "rules/trust.smk"
include: "rules/subgroups.smk"
include: "rules/subclusters.smk"
include: "rules/contrasts.smk"
include: "rules/differences.smk"
include: "rules/atlas.smk"
include: "rules/shown.smk"
include: "rules/figures.smk"
include: "rules/figures_markers.smk"
include: "rules/figures_subclusters.smk"
include: "rules/figures_differences.smk"
include: "rules/explorer.smk"
include: "rules/runs.smk"
include: "rules/checks.smk"


rule all:
    default_target: True
    input:
        atlas="results/atlas.h5ad",
        figures=FIGURES,
        runs=rules.runs.output,
        report=rules.report.output,


with_gpu_resources(own_rules())
warm_processes()

# Snakemake compares params without their names, and checks a script but not its imports
for made in own_rules():
    made.set_params(code=code_of(made), named_params=hash_of(made.params))
    make_literal(made.params)
    if workflow.remote_exec:
        made.group = (
            None  # within a job of a cluster the stages of its group run one by one
        )


onstart:
    check_device()
    unlimited_rate()


onsuccess:
    say_notices()


onerror:
    say_notices()
