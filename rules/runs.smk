# What every job took, last of all: from the run records that lie beside the logs.

PASSES = [f"hvg_sums/{number}" for number in range(1, HVG_PASSES + 1)]
PASSES += ["features_part", "pca_sums", "pca_gram", "pca_projection"]
STAGES = ["genes", "hvg", "features", "pca", "harmony", "neighbors", *BASES, "density"]
PARTS = ["qc", "hvg", "pca", "density"]
RECORDS = [
    *(
        str(Path("logs", path).with_suffix(""))
        for path in SHEET["path"]
        if path.startswith("demo/")
    ),
    *expand(
        "logs/samples/{sample}/{stage}",
        sample=SAMPLES,
        stage=["ingest", "qc", "doublets", "cells", "figures_sample"],
    ),
    *expand(
        "logs/cohort/{stage}",
        stage=[*STAGES, *(name.replace("_", "/", 1) for name in CLUSTERINGS)],
    ),
    *expand(
        "logs/cohort/markers_{method}/{grouping}",
        grouping=GROUPING_PARTS,
        method=[name.replace("-", "") for name in METHODS],
    ),
    *of_shards(expand("logs/cohort/{passed}/{{shard}}", passed=PASSES)),
    *([] if WHOLE else ["logs/cohort/pca_components"]),
    *of_shards(
        expand(
            "logs/cohort/markers_ttest_sums/{grouping}/{{shard}}",
            grouping=GROUPING_PARTS if "t-test" in METHODS else [],
        )
    ),
    "logs/atlas",
    *expand(
        "logs/cohort/figures_{part}",
        part=[*PARTS, *(f"embedding/{basis}" for basis in BASES)],
    ),
    *expand(
        "logs/cohort/figures_markers/{grouping}/{method}",
        grouping=GROUPING_PARTS,
        method=METHODS,
    ),
]

NOTICES = "results/tables/notices.tsv"


rule runs:
    input:
        atlas=rules.atlas.output,
        figures=FIGURES,
    output:
        table=report(
            "results/tables/runs.tsv",
            caption="captions/runs_table.rst",
            category=RUNS,
            labels={"table": "what every job took"},
        ),
        timeline=report(
            "results/figures/runs.png",
            caption="captions/runs.rst",
            category=RUNS,
            labels={"figure": "what every job took"},
        ),
        notices=report(
            NOTICES,
            caption="captions/notices.rst",
            category=NOTES,
            labels={"table": "worth a look"},
        ),
    log:
        "logs/runs.log",
    benchmark:
        "benchmarks/runs.tsv"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("runs"),
    params:
        # no input: what a job leaves beside its log makes nothing run again
        records=[f"{record}.run.json" for record in RECORDS],
        versions={rule.name: code_of(rule) for rule in own_rules()},
    script:
        "../scripts/runs.py"


localrules:
    report,


rule report:
    input:
        rules.runs.output,
    output:
        "results/report.html",
    log:
        "logs/report.log",
    benchmark:
        "benchmarks/report.tsv"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("report"),
    params:
        config=config_but("device", "gpu", "limits"),
    script:
        "../scripts/report.py"
